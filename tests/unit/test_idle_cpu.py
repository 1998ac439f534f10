"""`idle_cpu`: every datapoint counts, and too few of them say nothing (REQUIREMENTS C2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.checks.idle_cpu import check
from lamplighter.cloud.inventory import Series
from tests.inventories import DAY, NOW, instance, inventory, judged, series, silent

OLD = NOW - 30 * DAY
PERCENT = st.floats(0, 100)


def test_none() -> None:
    assert judged(check, inventory()).findings == ()


def test_a_busy_instance_is_in_order() -> None:
    said = judged(check, inventory(instances=(instance(launched_at=OLD),), cpu={"i-1": series(50)}))

    assert (said.findings, said.unknown) == ((), ())


def test_an_idle_one_is_found_with_what_it_was_judged_by() -> None:
    idle = instance(type="m5.large", launched_at=OLD)

    (finding,) = judged(check, inventory(instances=(idle,), cpu={"i-1": series(*[1.0] * 14, *[2.0] * 14)})).findings

    assert finding.evidence == {
        "type": "m5.large",
        "highest_percent": 2.0,
        "mean_of_highs_percent": 1.5,
        "limit_percent": 5,
        "window_days": 7,
        "datapoints_seen": 28,
        "datapoints_expected": 28,
        "price_source": "price file of 2026-11-22, eu-west-1 estimated by region factor",
    }
    assert finding.kind == "idle_instance"
    assert finding.owner == "ada"
    assert finding.monthly_usd == pytest.approx(0.107 * 730, rel=0.001)
    assert finding.confidence == pytest.approx(1 - 0.5 * 2 / 5)
    assert finding.since is None


@pytest.mark.parametrize(("highest", "found"), [(4.999, 1), (5, 0), (5.001, 0)])
def test_one_part_at_the_limit_is_enough_to_be_busy(highest: float, found: int) -> None:
    cpu = {"i-1": series(*[0.1] * 27, highest)}

    assert len(judged(check, inventory(instances=(instance(launched_at=OLD),), cpu=cpu)).findings) == found


@pytest.mark.parametrize(("seen", "known"), [(26, True), (25, False), (2, False)])
def test_too_few_datapoints_are_unknown_and_never_idle(seen: int, known: bool) -> None:
    cpu = {"i-1": series(*[0.0] * seen)}

    said = judged(check, inventory(instances=(instance(launched_at=OLD),), cpu=cpu))

    assert (len(said.findings), len(said.unknown)) == ((1, 0) if known else (0, 1))
    for unknown in said.unknown:
        reason = f"datapoints in {seen} of the 28 parts of 7 days, at least 90% are needed"
        assert unknown.reason == reason


def test_few_datapoints_of_which_one_is_high_are_enough_to_be_busy() -> None:
    said = judged(check, inventory(instances=(instance(launched_at=OLD),), cpu={"i-1": series(90.0, 0.0)}))

    assert (said.findings, said.unknown) == ((), ())


@pytest.mark.parametrize(
    ("cpu", "reason"),
    [
        ({}, "no datapoint of CPUUtilization"),
        ({"i-1": series()}, "datapoints in 0 of the 28 parts of 7 days, at least 90% are needed"),
    ],
)
def test_no_datapoint_is_unknown(cpu: dict[str, Series], reason: str) -> None:
    (unknown,) = judged(check, inventory(instances=(instance(launched_at=OLD),), cpu=cpu)).unknown

    assert unknown.reason == reason


@pytest.mark.parametrize(("days", "found"), [(7, 1), (6.99, 0)])
def test_what_was_started_within_the_window_is_unknown(days: float, found: int) -> None:
    said = judged(check, inventory(instances=(instance(launched_at=NOW - days * DAY),), cpu={"i-1": series(0)}))

    assert len(said.findings) == found
    assert [unknown.reason for unknown in said.unknown] == ["started 6 days ago, 7 are needed"] * (1 - found)


def test_what_does_not_run_is_not_asked() -> None:
    stopped = instance(state="stopped", launched_at=OLD)

    said = judged(check, inventory(instances=(stopped,), cpu={"i-1": series(0)}))

    assert (said.findings, said.unknown) == ((), ())


def test_refused_metrics_are_unknown_for_all() -> None:
    said = judged(check, inventory(instances=(instance(launched_at=OLD),), gaps={"cpu": "AccessDenied"}))

    assert [unknown.resource_id for unknown in said.unknown] == ["*"]
    assert not said.judged


@pytest.mark.parametrize("said", [{"lifecycle": "spot"}, {"tenancy": "dedicated"}, {"type": "x99.large"}])
def test_what_has_no_known_price_is_found_without_one(said: dict[str, str]) -> None:
    idle = instance(launched_at=OLD, **said)

    (finding,) = judged(check, inventory(instances=(idle,), cpu={"i-1": series(0)})).findings

    assert (finding.monthly_usd, finding.score) == (None, None)
    assert finding.evidence["price_source"] == "no price known"


def test_the_part_that_is_not_over_prevents_idle_and_does_not_make_it() -> None:
    here = (instance(launched_at=OLD),)
    busy = Series(expected=28, values=(0.0,) * 28, under_way=97.0)
    quiet = Series(expected=28, values=(1.0,) * 28, under_way=2.0)
    sparse = Series(expected=28, values=(0.0,) * 25, under_way=0.0)

    assert silent(judged(check, inventory(instances=here, cpu={"i-1": busy})))
    (finding,) = judged(check, inventory(instances=here, cpu={"i-1": quiet})).findings
    assert (finding.evidence["highest_percent"], finding.confidence) == (2.0, pytest.approx(1 - 0.5 * 2 / 5))
    assert (finding.evidence["datapoints_seen"], finding.evidence["datapoints_expected"]) == (28, 28)
    assert len(judged(check, inventory(instances=here, cpu={"i-1": sparse})).unknown) == 1


@given(st.lists(PERCENT, max_size=28), st.none() | PERCENT, st.floats(0.01, 1), st.floats(0.1, 100))
def test_idle_means_that_enough_is_known_and_all_of_it_is_low(
    values: list[float], under_way: float | None, coverage: float, limit: float
) -> None:
    cpu = Series(expected=28, values=tuple(values), under_way=under_way)

    said = judged(
        check,
        inventory(instances=(instance(launched_at=OLD),), cpu={"i-1": cpu}),
        coverage=coverage,
        idle_cpu_percent=limit,
    )

    enough, low = len(values) >= coverage * 28, all(value < limit for value in (*values, under_way or 0))
    assert bool(said.findings) == (enough and low)
    assert bool(said.unknown) == (low and not enough)
    for finding in said.findings:
        assert 0 <= finding.confidence <= 1
        assert finding.evidence["datapoints_seen"] <= finding.evidence["datapoints_expected"]
