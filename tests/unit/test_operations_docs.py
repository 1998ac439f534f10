"""What docs/operations.md gives as examples is taken as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lamplighter import rules
from lamplighter.cloud import remedies
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.kernel.settings import Settings, parse

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def examples(field: str) -> list[Any]:
    found = [example for example in EXAMPLES if field in example]
    assert found, f"docs/operations.md has no example of {field}."
    return found


def test_the_settings() -> None:
    documents = [example for example in EXAMPLES if example.keys() <= Settings.model_fields.keys()]
    parsed = [parse(document, source="the page") for document in documents]
    (targets,) = [settings.cloud.targets for settings in parsed if settings.cloud.targets]
    assert [one.role for one in targets] == [None, "lamplighter-scan"]
    for settings in parsed:
        rules.checked(settings)
        remedies.checked(settings)
    assert len(documents) == 3


def test_the_exceptions() -> None:
    (document,) = examples("exceptions")
    exemptions = Exemptions.parse(json.dumps(document))
    assert [exemption.as_json() for exemption in exemptions.entries] == document["exceptions"]
