"""docs/api.md tells of the routes and problems that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lamplighter.jobs.api import document

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def test_what_the_page_calls_is_there() -> None:
    routes = [re.sub(r"\{\w+\}", r"[^/]+", path) for path in json.loads(document())["paths"]]
    told = set(re.findall(r"(?:\$API_URL|POST )(/[\w/{}.-]+)", PAGE))
    assert len(told) > 12
    assert not {path for path in told if not any(re.fullmatch(route, path) for route in routes)}


def test_the_page_names_every_kind_of_problem() -> None:
    source = "".join(path.read_text() for path in (ROOT / "functions" / "lamplighter" / "jobs").rglob("*.py"))
    kinds = set(re.findall(r'(?:conflict\(|HTTPStatus\.\w+,)\s*"([a-z-]+)"', source))
    assert {"lost-lease", "not-due", "not-json", "key-reused"} <= kinds
    assert not {kind for kind in kinds if f"`{kind}`" not in PAGE}
