"""`gp2_volumes`: what gp3 saves without being slower."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.checks.gp2_volumes import as_gp3, check
from tests.inventories import DAY, NOW, instance, inventory, judged, silent, volume


def test_none() -> None:
    assert silent(judged(check, inventory()))


@pytest.mark.parametrize("kind", ["gp3", "io1", "st1", "standard"])
def test_other_types_are_in_order(kind: str) -> None:
    assert silent(judged(check, inventory(volumes=(volume(type=kind, iops=100),))))


def test_the_figure_is_what_it_saves() -> None:
    (finding,) = judged(check, inventory(volumes=(volume(type="gp2", size_gb=100),))).findings

    assert finding.monthly_usd == pytest.approx(1.1 * 100 * (0.10 - 0.08))
    assert finding.evidence == {
        "size_gb": 100,
        "gp3_iops": 3000,
        "gp3_throughput": 125,
        "monthly_usd_as_gp2": 11,
        "monthly_usd_as_gp3": 8.8,
        "monthly_usd_is": "what the change saves",
        "price_source": "price file of 2026-11-22, eu-west-1 estimated by region factor",
    }


@pytest.mark.parametrize(
    ("size", "iops", "throughput"),
    [(1, 3000, 125), (166, 3000, 125), (167, 3000, 126), (334, 3000, 250), (1001, 3003, 250), (16_384, 16_000, 250)],
)
def test_it_is_never_slower(size: int, iops: int, throughput: int) -> None:
    better = as_gp3(volume(type="gp2", size_gb=size))

    assert (better.type, better.iops, better.throughput) == ("gp3", iops, throughput)


def test_the_performance_that_has_to_be_bought_is_in_the_figure() -> None:
    (finding,) = judged(check, inventory(volumes=(volume(type="gp2", size_gb=2000),))).findings

    assert finding.monthly_usd == pytest.approx(1.1 * (2000 * 0.02 - 3000 * 0.005 - 125 * 0.04))


def test_those_of_a_long_stopped_instance_are_in_its_own_figure() -> None:
    here = inventory(
        instances=(
            instance(state="stopped", stopped_at=NOW - 30 * DAY, volumes=("vol-1",)),
            instance("i-2", state="stopped", stopped_at=NOW - 29 * DAY, volumes=("vol-2",)),
            instance("i-3", state="stopped", volumes=("vol-3",)),
        ),
        volumes=tuple(volume(id, type="gp2", size_gb=100) for id in ("vol-1", "vol-2", "vol-3")),
    )

    assert [finding.resource_id for finding in judged(check, here).findings] == ["vol-2", "vol-3"]


def test_without_a_price_there_is_nothing_to_save() -> None:
    here = replace(inventory(volumes=(volume(type="gp2"),)), region="eu-atlantis-1")

    assert silent(judged(check, here))


@given(st.integers(1, 16_384))
def test_what_is_found_saves_something_and_less_than_it_costs(size: int) -> None:
    for finding in judged(check, inventory(volumes=(volume(type="gp2", size_gb=size),))).findings:
        assert finding.monthly_usd and 0 < finding.monthly_usd < finding.evidence["monthly_usd_as_gp2"] + 0.01
