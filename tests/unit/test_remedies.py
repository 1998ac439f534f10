"""What can be done about findings: which action fits, what the Recycle Bin keeps, when the governor refuses (C13)."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.cloud_actions import FEW, refusal
from lamplighter.cloud.remedies import ACTIONS, FITTING
from lamplighter.cloud.remedies.recycle_bin import Rule
from lamplighter.kernel.cloud import Remedy
from lamplighter.kernel.deletion import Entry, _pack, _unpack


def test_every_check_has_its_actions_but_the_one_whose_tags_nobody_reads() -> None:
    assert FITTING.keys() == BY_ID.keys() - {"log_groups_without_retention"}
    assert {action for actions in FITTING.values() for action in actions} == {"tag", *ACTIONS}


def tag(key: str, value: str | None = None) -> dict[str, str]:
    return {"ResourceTagKey": key} | ({} if value is None else {"ResourceTagValue": value})


@pytest.mark.parametrize(
    ("rule", "tags", "covers"),
    [
        ({}, {}, True),
        ({"ExcludeResourceTags": [tag("Temporary")]}, {"Temporary": "yes"}, False),
        ({"ExcludeResourceTags": [tag("Temporary", "yes")]}, {"Temporary": "no"}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Stage": "live"}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Keep": ""}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Stage": "test"}, False),
        ({"ResourceTags": [tag("Keep")]}, {}, False),
        ({"ResourceTags": [tag("Keep")]}, {"Keep": "yes"}, False),
    ],
)
def test_a_rule_of_the_recycle_bin_covers_what_aws_says(
    rule: dict[str, Any], tags: dict[str, str], covers: bool
) -> None:
    """Recycle Bin, "How Recycle Bin works": a rule is for some tags, or for the region but some tags.

    What a tag without a value matches AWS does not say: surely an empty one, and then no other is certain to be kept.
    """
    given = {"Identifier": "r", "RetentionPeriod": {"RetentionPeriodValue": 7, "RetentionPeriodUnit": "DAYS"}}
    assert Rule.parse(given | rule).covers(tags) is covers


@pytest.mark.parametrize(
    ("offending", "looked_at", "refused"),
    [(0, 0, False), (FEW, FEW, False), (FEW + 1, FEW + 1, True), (50, 100, False), (51, 100, True)],
)
def test_too_large_a_share_is_refused_but_a_few_are_not(offending: int, looked_at: int, refused: bool) -> None:
    sentence = refusal("open_ports", Remedy(action="revoke"), offending, looked_at)
    assert bool(sentence) is refused
    if sentence:
        assert f"{offending} of {looked_at}" in sentence


def test_manifests_of_files_that_are_kept_already_can_still_be_read() -> None:
    before = {"key": "a.jpg", "size": 3, "etag": "e", "last_modified": "2026-01-01", "outcome": "deleted"}
    (entry,) = _unpack(gzip.compress(json.dumps(before).encode()))
    assert (entry.key, entry.size, entry.etag, entry.facts) == ("a.jpg", 3, "e", None)
    assert _unpack(_pack([entry])) == [entry]
    resource = Entry(key="1/r/open_ports/sg-1", facts={"state": {"rules": []}}, outcome="revoked")
    assert _unpack(_pack([resource])) == [resource]
