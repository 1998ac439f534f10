"""`idle_load_balancers`: silent in every known part of the window, and enough of it known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.checks.idle_load_balancers import check
from lamplighter.cloud.inventory import LoadBalancer, Series
from tests.inventories import DAY, NOW, TAGS, inventory, judged, series, silent

ARN = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/app/web/1"


def balancer(**said: Any) -> LoadBalancer:
    usual: dict[str, Any] = {"name": "web", "type": "application", "internet_facing": True, "tags": TAGS}
    return LoadBalancer(id=ARN, **{**usual, "created_at": NOW - 30 * DAY, **said})


def test_none() -> None:
    assert silent(judged(check, inventory()))


def test_one_request_in_a_week_is_enough_to_be_in_order() -> None:
    traffic = {ARN: series(*[0.0] * 27, 1.0)}

    assert silent(judged(check, inventory(load_balancers=(balancer(),), traffic=traffic)))


@pytest.mark.parametrize(
    ("kind", "usd"),
    [("application", 0.0252 * 730), ("network", 0.0252 * 730), ("gateway", 0.014 * 730), ("classic", None)],
)
def test_an_idle_one_is_found(kind: str, usd: float | None) -> None:
    here = inventory(load_balancers=(balancer(type=kind),), traffic={ARN: series(0)})

    (finding,) = judged(check, here).findings

    assert finding.monthly_usd == pytest.approx(usd)
    assert (finding.resource_id, finding.owner, finding.confidence) == (ARN, "ada", 1)
    assert (finding.evidence["name"], finding.evidence["datapoints_seen"]) == ("web", 28)


@pytest.mark.parametrize(
    ("traffic", "reason"),
    [
        ({}, "no datapoint of its traffic"),
        ({ARN: series(*[0.0] * 25)}, "datapoints in 25 of the 28 parts of 7 days, at least 90% are needed"),
    ],
)
def test_too_little_is_unknown(traffic: dict[str, Series], reason: str) -> None:
    (unknown,) = judged(check, inventory(load_balancers=(balancer(),), traffic=traffic)).unknown

    assert (unknown.resource_id, unknown.reason) == (ARN, reason)


@pytest.mark.parametrize(("days", "found"), [(7, 1), (6.9, 0)])
def test_one_that_is_younger_than_the_window_is_in_order(days: float, found: int) -> None:
    here = inventory(load_balancers=(balancer(created_at=NOW - days * DAY),), traffic={ARN: series(0)})

    said = judged(check, here)

    assert (len(said.findings), said.unknown) == (found, ())


SERVED = st.sampled_from([0.0, 0.0, 0.0, 5.0])


@given(st.lists(SERVED, max_size=28), st.none() | SERVED)
def test_it_is_found_only_where_enough_is_known_and_all_of_it_is_nothing(
    values: list[float], under_way: float | None
) -> None:
    traffic = {ARN: Series(expected=28, values=tuple(values), under_way=under_way)}

    said = judged(check, inventory(load_balancers=(balancer(),), traffic=traffic))

    silent_throughout = not any(values) and not under_way
    assert bool(said.findings) == (len(values) >= 26 and silent_throughout)
    assert bool(said.unknown) == (len(values) < 26 and silent_throughout)
