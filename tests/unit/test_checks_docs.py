"""docs/checks.md tells of every check that there is, and of no other."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from lamplighter.cloud.check import Check
from lamplighter.cloud.checks import BY_ID, SECURITY, WASTE
from lamplighter.kernel.cloud import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("check", BY_ID.values(), ids=BY_ID.keys())
def test_every_check_has_a_section_that_tells_its_evidence(check: Check) -> None:
    assert check.id in SECTIONS, f"docs/checks.md has no section `### {check.id}`."
    assert "vidence" in SECTIONS[check.id], f"docs/checks.md does not say what {check.id} shows as evidence."
    assert f"| `{check.id}` |" in PAGE, f"no table of docs/checks.md names {check.id}."


def test_every_section_is_of_a_check() -> None:
    assert {name for name in SECTIONS if name != "Prices"} == BY_ID.keys()


def test_waste_and_security_are_told_where_they_belong() -> None:
    waste, security = (PAGE.index(f"\n## {half}\n") for half in ("Waste", "Security"))
    assert all(waste < PAGE.index(f"### {check.id}\n") < security for check in WASTE)
    assert all(security < PAGE.index(f"### {check.id}\n") for check in SECURITY)


def test_every_limit_is_named() -> None:
    assert not [limit.name for limit in fields(Limits) if f"`{limit.name}`" not in PAGE]
