"""Tests that the examples of docs/operations.md and docs/removing-orphaned-files.md hold as they stand there."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lamplighter import rules
from lamplighter.cloud import remedies
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.deletion import claims, versioning
from lamplighter.deletion.claims import Claim, Stack
from lamplighter.deletion.ramp import FACTOR, FIRST_OBJECTS
from lamplighter.kernel.deletion import GovernorLimits, Group, Measure, SourceCount, refusals
from lamplighter.kernel.job import InvalidParams
from lamplighter.kernel.media import DERIVED, Reference
from lamplighter.kernel.settings import MediaSettings, Settings, parse
from lamplighter.media.orphan_cleanup import Report
from lamplighter.media.parameters import Params

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
REMOVING = (DOCS / "removing-orphaned-files.md").read_text()
LIMITS = GovernorLimits(max_share=0.2, max_reference_shrink=0.2)


def examples(page: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]


def documents(page: str) -> list[Settings]:
    found = [example for example in examples(page) if example.keys() <= Settings.model_fields.keys()]
    return [parse(document, source="the page") for document in found]


def rows(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its header."""
    table = re.search(r"^\|.*?(?=\n\n|\Z)", page.partition(f"\n## {heading}\n")[2], re.DOTALL | re.MULTILINE)
    assert table, f"there is no table below {heading}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_the_settings_of_operations() -> None:
    parsed = documents(OPERATIONS)
    (targets,) = [settings.cloud.targets for settings in parsed if settings.cloud.targets]
    assert [one.role for one in targets] == [None, "lamplighter-scan"]
    for settings in parsed:
        rules.checked(settings)
        remedies.checked(settings)
    assert len(parsed) == 3


def test_the_exceptions() -> None:
    (document,) = [example for example in examples(OPERATIONS) if "exceptions" in example]
    exemptions = Exemptions.parse(json.dumps(document))
    assert [exemption.as_json() for exemption in exemptions.entries] == document["exceptions"]


def test_every_example_of_the_removal_is_a_document_of_settings() -> None:
    assert len(documents(REMOVING)) == len(examples(REMOVING)) == 5
    assert len([one for one in documents(REMOVING) if one.media.apply]) == 1


@pytest.mark.parametrize("fragment", re.findall(r"`(\{\"media\".*?\})`", REMOVING))
def test_every_fragment_of_the_removal_is_one_too(fragment: str) -> None:
    parse(json.loads(fragment), source="the page")


def test_the_page_has_every_setting_of_media_with_its_default() -> None:
    shown = {name.strip("`"): default.strip("`") for name, default, _ in rows(REMOVING, "Every setting")}
    known = {name: json.dumps(value, default=str) for name, value in MediaSettings()}
    known["derived"] = f"[{len(DERIVED)} patterns](../functions/lamplighter/kernel/media.py)"
    assert shown == known


def test_the_page_has_every_field_of_a_reference_with_its_default() -> None:
    shown = {name.strip("`"): default.strip("`") for name, default, _ in rows(REMOVING, "Declaring the columns")[1:]}
    known = {one.name: json.dumps(one.default) for one in fields(Reference) if one.default is not MISSING}
    assert shown == known


def test_the_page_names_fields_of_the_report() -> None:
    shown = {name for cell, _ in rows(REMOVING, "The first removal") for name in re.findall(r"`(\w+)`", cell)}
    assert shown <= Report.model_fields.keys()
    assert {"matched", "outside", "unmatched", "held_by_ramp", "missing_files", "refusals"} <= shown


def test_the_ramp_rises_as_the_page_says() -> None:
    limits = [int(limit.replace(" ", "")) for _, limit, _ in rows(REMOVING, "The ramp")[1:-1]]
    assert limits == [FIRST_OBJECTS * FACTOR**day for day in range(4)]


def counted(column: str, values: int, unmatched: int = 0, **more: Any) -> SourceCount:
    return SourceCount(column=column, values=values, matched=values - unmatched, unmatched=unmatched, **more)


def the_refusal() -> SourceCount:
    prefixed = [f"static/avatars/{n}.png" for n in (1, 2, 3)]
    host = "//gravatar.com/avatar/"
    groups = [
        Group(start="static/", count=40, examples=prefixed, declaration='"strip": ["static/"]'),
        Group(start=host, count=25, examples=[f"https:{host}4.jpg"], declaration='"elsewhere": ["gravatar.com"]'),
        Group(start="campaigns/", count=12, examples=["campaigns/5.jpg"]),
    ]
    return counted("media_files.storage_key", 1000, 77, groups=groups)


@pytest.mark.parametrize(
    "measure",
    [
        Measure(scanned=1000, planned=3, sources=[the_refusal()], baseline=None),
        Measure(scanned=1000, planned=3, sources=[counted("media_files.storage_key", 0)], baseline=None),
        Measure(
            scanned=1000,
            planned=3,
            sources=[counted("media_files.storage_key", 9, 9, max_unmatched=9)],
            baseline=None,
        ),
        Measure(
            scanned=1000,
            planned=300,
            sources=[counted("media_files.storage_key", 1000)],
            baseline={"media_files.storage_key": 1500},
        ),
    ],
    ids=["unmatched", "no references", "no match", "shrunken, and too many orphans"],
)
def test_the_governor_refuses_in_the_words_of_the_page(measure: Measure) -> None:
    found = refusals(measure, LIMITS)
    assert found
    assert not [sentence for sentence in found if sentence not in REMOVING]


def test_an_unreadable_value_is_refused_in_the_words_of_the_page() -> None:
    source = counted("posts.body", 1000, 100, unreadable=100, max_unmatched=100)
    (sentence,) = refusals(Measure(scanned=1000, planned=3, sources=[source], baseline=None), LIMITS)
    assert sentence.partition("(max_unreadable).")[0] + "(max_unreadable)." in REMOVING


@pytest.mark.parametrize("given", [{"max_orphan_share": 0.5}, {"dry_run": False}])
def test_a_looser_parameter_is_refused_in_the_words_of_the_page(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidParams) as refused:
        Params(**given).resolved(Settings())
    assert f"> {refused.value}\n" in REMOVING


class Unversioned:
    def get_bucket_versioning(self, Bucket: str) -> dict[str, str]:
        return {} if Bucket == "media" else {"Status": "Enabled"}


def test_a_bucket_without_versioning_is_refused_in_the_words_of_the_page() -> None:
    with pytest.raises(versioning.Permanent) as refused:
        versioning.demand_versioned(Unversioned(), "media")
    assert f"> {refused.value}\n" in REMOVING


def test_a_second_stack_is_refused_in_the_words_of_the_page() -> None:
    def stack(name: str) -> Stack:
        return Stack(name=name, account="111122223333", region="eu-west-1")

    now = datetime(2026, 11, 22, 3, tzinfo=UTC)
    claimed = [Claim(stack=stack("shop-prod"), folder="uploads/", renewed_at=now)]
    problem = claims._taken(claimed, "media", "", stack("lamplighter"), now)
    assert f"> {problem} Nothing was deleted.\n" in REMOVING
