"""`lamplighter.cloud.checks.outdated_images` (REQUIREMENTS C11)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from lamplighter.cloud.checks.outdated_images import check
from tests.inventories import DAY, NOW, image, instance, inventory, judged

SECOND = timedelta(seconds=1)


def test_none() -> None:
    assert not judged(check, inventory(images=(image(created_at=NOW - 999 * DAY),))).findings


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"deprecated_at": None},
        {"deprecated_at": NOW + SECOND},
        {"created_at": NOW - 365 * DAY},
    ],
    ids=str,
)
def test_clean(said: dict[str, Any]) -> None:
    assert not judged(check, inventory(instances=(instance(),), images=(image(**said),))).findings


@pytest.mark.parametrize(
    ("said", "reasons", "severity", "since"),
    [
        ({"deprecated_at": NOW}, ["deprecated"], "medium", NOW),
        ({"created_at": NOW - 365 * DAY - SECOND}, ["old"], "low", NOW - SECOND),
        ({"created_at": NOW - 400 * DAY, "deprecated_at": NOW - DAY}, ["deprecated", "old"], "medium", NOW - 35 * DAY),
        ({"state": "disabled"}, ["disabled"], "high", None),
        ({"state": "disabled", "deprecated_at": NOW - DAY}, ["disabled", "deprecated"], "high", NOW - DAY),
        ({"state": "deregistered", "deprecated_at": NOW - DAY}, ["gone"], "high", None),
    ],
    ids=str,
)
def test_offending(said: dict[str, Any], reasons: list[str], severity: str, since: Any) -> None:
    world = inventory(
        instances=(instance("i-1"), instance("i-2", image_id="ami-2")), images=(image(**said), image("ami-2"))
    )
    (finding,) = judged(check, world).findings
    assert (finding.resource_id, finding.resource_type) == ("i-1", "AwsEc2Instance")
    assert (finding.evidence["reasons"], finding.severity, finding.since) == (reasons, severity, since)
    assert (finding.evidence["image_id"], finding.evidence["image_name"]) == ("ami-1", "linux")


def test_gone() -> None:
    (finding,) = judged(check, inventory(instances=(instance(),))).findings
    assert (finding.severity, finding.evidence) == ("high", {"image_id": "ami-1", "reasons": ["gone"]})


def test_each_instance_is_found() -> None:
    world = inventory(instances=(instance("i-1"), instance("i-2")), images=(image(deprecated_at=NOW),))
    assert [finding.resource_id for finding in judged(check, world).findings] == ["i-1", "i-2"]


def test_the_age_is_a_setting() -> None:
    world = inventory(instances=(instance(),), images=(image(created_at=NOW - 91 * DAY),))
    assert not judged(check, world).findings
    (finding,) = judged(check, world, image_days=90).findings
    assert (finding.evidence["age_days"], finding.evidence["limit_days"]) == (91, 90)


def test_images_that_could_not_be_read_are_not_gone() -> None:
    judgement = judged(check, inventory(instances=(instance(),), gaps={"images": "UnauthorizedOperation"}))
    assert (judgement.findings, judgement.judged) == ((), frozenset())
    assert [unknown.reason for unknown in judgement.unknown] == ["images: UnauthorizedOperation"]
