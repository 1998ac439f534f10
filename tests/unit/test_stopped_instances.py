"""`stopped_instances`: only a known moment counts, and only volumes cost (REQUIREMENTS C4)."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from lamplighter.cloud.checks.stopped_instances import check
from lamplighter.cloud.inventory import Instance
from tests.inventories import DAY, NOW, instance, inventory, judged, silent, volume

LONG_AGO = NOW - 40 * DAY


def stopped(at: datetime | None = LONG_AGO, *volumes: str) -> Instance:
    return instance(state="stopped", launched_at=NOW - 400 * DAY, stopped_at=at, volumes=volumes)


def test_none() -> None:
    assert silent(judged(check, inventory()))


@pytest.mark.parametrize("state", ["running", "pending", "stopping", "shutting-down"])
def test_only_what_is_stopped_is_asked(state: str) -> None:
    assert silent(judged(check, inventory(instances=(instance(state=state, stopped_at=LONG_AGO),))))


def test_it_costs_what_its_volumes_do() -> None:
    volumes = (volume(size_gb=100), volume("vol-2", type="io1", size_gb=10, iops=100), volume("vol-3", size_gb=500))

    (finding,) = judged(check, inventory(instances=(stopped(LONG_AGO, "vol-1", "vol-2"),), volumes=volumes)).findings

    assert finding.monthly_usd == pytest.approx(1.1 * (100 * 0.08 + 10 * 0.125 + 100 * 0.065))
    assert finding.since == LONG_AGO
    assert finding.evidence == {
        "type": "t3.micro",
        "stopped_at": "2026-10-13T12:00:00+00:00",
        "stopped_days": 40,
        "limit_days": 30,
        "volumes": ["vol-1", "vol-2"],
        "price_source": "price file of 2026-11-22, eu-west-1 estimated by region factor",
    }


def test_a_volume_that_another_instance_has_too_is_not_its_cost() -> None:
    """io1 and io2 volumes may be attached to several (EBS Multi-Attach)."""
    shared = volume("vol-2", type="io2", size_gb=1000, iops=10_000, instances=("i-1", "i-2"))
    here = inventory(instances=(stopped(LONG_AGO, "vol-1", "vol-2"),), volumes=(volume(size_gb=100), shared))

    (finding,) = judged(check, here).findings

    assert finding.monthly_usd == pytest.approx(1.1 * 100 * 0.08)
    assert finding.evidence["volumes"] == ["vol-1"]


@pytest.mark.parametrize(("short", "found"), [(timedelta(), 1), (timedelta(seconds=1), 0)])
def test_thirty_days_are_enough_and_a_second_less_is_not(short: timedelta, found: int) -> None:
    said = judged(check, inventory(instances=(stopped(NOW - 30 * DAY + short),)))

    assert (len(said.findings), said.unknown) == (found, ())


def test_an_unknown_moment_is_unknown() -> None:
    (unknown,) = judged(check, inventory(instances=(stopped(None),))).unknown

    assert unknown.reason == "its state transition reason does not say when it was stopped"


def test_without_volumes_it_costs_nothing() -> None:
    (finding,) = judged(check, inventory(instances=(stopped(),))).findings

    assert (finding.monthly_usd, finding.evidence["price_source"]) == (0, "nothing to pay")


@pytest.mark.parametrize("volumes", [(), (volume(type="gp4"),)])
def test_a_volume_without_a_price_leaves_it_without_one(volumes: tuple[object, ...]) -> None:
    (finding,) = judged(check, inventory(instances=(stopped(LONG_AGO, "vol-1"),), volumes=volumes)).findings

    assert (finding.monthly_usd, finding.evidence["price_source"]) == (None, "no price known")


def test_unread_volumes_leave_it_without_a_price() -> None:
    here = inventory(instances=(stopped(LONG_AGO, "vol-1"),), gaps={"volumes": "UnauthorizedOperation"})

    (finding,) = judged(check, here).findings

    assert (finding.monthly_usd, finding.evidence["price_source"]) == (None, "no price known")


def test_unread_instances_are_unknown() -> None:
    said = judged(check, inventory(gaps={"instances": "UnauthorizedOperation"}))

    assert [unknown.resource_id for unknown in said.unknown] == ["*"]
