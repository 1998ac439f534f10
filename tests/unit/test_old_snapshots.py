"""`old_snapshots`: old, and neither an AMI nor a launch template nor a backup plan uses it (REQUIREMENTS C6)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from lamplighter.cloud.checks.old_snapshots import check
from lamplighter.cloud.inventory import LaunchTemplate, Snapshot
from tests.inventories import DAY, NOW, TAGS, image, inventory, judged, silent, snapshot


def old(id: str = "snap-1", **said: Any) -> Snapshot:
    return snapshot(id, **{"started_at": NOW - 100 * DAY, "size_gb": 100, **said})


def test_none() -> None:
    assert silent(judged(check, inventory()))


@pytest.mark.parametrize(("younger", "found"), [(timedelta(), 0), (timedelta(seconds=-1), 1)])
def test_ninety_days_are_not_too_old_and_a_second_more_is(younger: timedelta, found: int) -> None:
    said = judged(check, inventory(snapshots=(old(started_at=NOW - 90 * DAY + younger),)))

    assert (len(said.findings), said.unknown) == (found, ())


def test_the_only_one_of_its_volume_costs_what_it_holds() -> None:
    (finding,) = judged(check, inventory(snapshots=(old(full_bytes=50 * 2**30),))).findings

    assert finding.monthly_usd == pytest.approx(2.5)
    assert (finding.confidence, finding.since) == (0.9, NOW - 100 * DAY)
    assert finding.evidence == {
        "started_at": "2026-08-14T12:00:00+00:00",
        "age_days": 100,
        "limit_days": 90,
        "volume_id": "vol-1",
        "tier": "standard",
        "size_gb": 100,
        "full_bytes": 50 * 2**30,
        "monthly_usd_is": "its cost",
        "price_source": "price file of 2026-11-22, eu-west-1 estimated by region factor",
    }


@pytest.mark.parametrize(
    ("said", "usd", "confidence", "figure"),
    [
        ({"full_bytes": 2**30}, 0.05, 0.6, "the most it can cost"),
        ({}, 5, 0.4, "the most it can cost"),
        ({"tier": "archive", "full_bytes": 2**30}, 0.0125, 0.9, "its cost"),
        ({"tier": "archive"}, 1.25, 0.6, "the most it can cost"),
        ({"tier": "glacier"}, None, 0.4, "the most it can cost"),
    ],
)
def test_what_may_share_blocks_is_less_sure(
    said: dict[str, Any], usd: float | None, confidence: float, figure: str
) -> None:
    beside = snapshot("snap-2")

    (finding,) = judged(check, inventory(snapshots=(old(**said), beside))).findings

    assert finding.monthly_usd == pytest.approx(usd)
    assert finding.confidence == pytest.approx(confidence)
    assert finding.evidence["monthly_usd_is"] == figure


@pytest.mark.parametrize(
    "said",
    [
        {"tags": TAGS | {"aws:backup:source-resource": "arn:aws:ec2:::volume/vol-1"}},
        {"tags": {"aws:dlm:lifecycle-policy-id": "policy-1"}},
        {"tags": {"dlm:managed": "true"}},
        {"description": "This snapshot is created by the AWS Backup service."},
        {"tags": {"AWSElasticDisasterRecoveryManaged": "drs.amazonaws.com"}},
        {"tags": {"drs.amazonaws.com-job": "drsjob-1"}},
        {"tags": {"CreatedBy": "EC2 Fast Launch"}},
        {"state": "pending"},
        {"state": "error"},
    ],
)
def test_what_a_plan_keeps_or_is_not_complete_is_in_order(said: dict[str, Any]) -> None:
    assert silent(judged(check, inventory(snapshots=(old(**said),))))


def test_who_made_it_is_not_who_keeps_it() -> None:
    by_hand = old(tags={"CreatedBy": "ada", "backup": "aws:backup:"})

    assert len(judged(check, inventory(snapshots=(by_hand,))).findings) == 1


def test_what_an_image_or_a_launch_template_uses_is_in_order() -> None:
    here = inventory(
        snapshots=(old("snap-1"), old("snap-2"), old("snap-3")),
        images=(image(owned=True, snapshots=("snap-1",)),),
        launch_templates=(LaunchTemplate(id="lt-1", snapshots=("snap-2",)),),
    )

    assert [finding.resource_id for finding in judged(check, here).findings] == ["snap-3"]


@pytest.mark.parametrize("unread", ["images", "launch_templates", "snapshots"])
def test_while_it_is_unknown_who_uses_them_none_is_found(unread: str) -> None:
    said = judged(check, inventory(snapshots=(old(),), gaps={unread: "UnauthorizedOperation"}))

    assert (said.findings, len(said.unknown), said.judged) == ((), 1, frozenset())
