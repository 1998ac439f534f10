"""`idle_nat_gateways`: paid by the hour although nothing goes through."""

from __future__ import annotations

from typing import Any

import pytest

from lamplighter.cloud.checks.idle_nat_gateways import check
from lamplighter.cloud.inventory import NatGateway
from tests.inventories import DAY, NOW, TAGS, inventory, judged, series, silent


def gateway(**said: Any) -> NatGateway:
    return NatGateway(**{"id": "nat-1", "state": "available", "created_at": NOW - 30 * DAY, "tags": TAGS, **said})


def test_none() -> None:
    assert silent(judged(check, inventory()))


def test_a_used_one_is_in_order_and_an_idle_one_is_found() -> None:
    here = inventory(nat_gateways=(gateway(), gateway(id="nat-2")), traffic={"nat-1": series(12.0), "nat-2": series(0)})

    (finding,) = judged(check, here).findings

    assert finding.resource_id == "nat-2"
    assert finding.monthly_usd == pytest.approx(0.048 * 730, rel=0.001)
    assert (finding.evidence["bytes_sent"], finding.evidence["window_days"]) == (0, 7)


def test_a_regional_one_is_in_several_zones_and_has_no_known_price() -> None:
    here = inventory(nat_gateways=(gateway(regional=True),), traffic={"nat-1": series(0)})

    (finding,) = judged(check, here).findings

    assert (finding.monthly_usd, finding.evidence["price_source"]) == (None, "no price known")


@pytest.mark.parametrize("state", ["pending", "failed", "deleting", "deleted"])
def test_one_that_is_not_there_yet_or_any_more_is_in_order(state: str) -> None:
    assert silent(judged(check, inventory(nat_gateways=(gateway(state=state),), traffic={"nat-1": series(0)})))


def test_no_metric_is_unknown_and_youth_is_in_order() -> None:
    here = inventory(nat_gateways=(gateway(), gateway(id="nat-2", created_at=NOW - 6 * DAY)))

    assert [unknown.resource_id for unknown in judged(check, here).unknown] == ["nat-1"]
