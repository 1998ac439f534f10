"""What all waste checks have in common: they read what they say they read, and show where their dollars are from."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.checks import WASTE
from lamplighter.cloud.inventory import Address, Inventory, LaunchTemplate, LoadBalancer, LogGroup, NatGateway
from lamplighter.cloud.prices import Prices
from lamplighter.kernel.cloud import Limits
from tests.inventories import DAY, NOW, image, instance, inventory, judged, series, snapshot, volume

OLD = NOW - 400 * DAY
WASTEFUL = inventory(
    instances=(
        instance(launched_at=OLD, volumes=("vol-1",)),
        instance("i-2", state="stopped", stopped_at=OLD, volumes=("vol-2",)),
    ),
    volumes=(
        volume(type="gp2", size_gb=100),
        volume("vol-2", instances=("i-2",)),
        volume("vol-3", state="available", instances=(), created_at=OLD),
    ),
    snapshots=(snapshot(started_at=OLD),),
    images=(image(),),
    launch_templates=(LaunchTemplate(id="lt-1"),),
    addresses=(Address(id="eipalloc-1", public_ip="203.0.113.9", associated=False),),
    nat_gateways=(NatGateway(id="nat-1", state="available", created_at=OLD),),
    load_balancers=(LoadBalancer(id="arn", name="web", type="network", internet_facing=True, created_at=OLD),),
    log_groups=(LogGroup(id="/app", created_at=OLD, stored_bytes=2**40, retention_days=None),),
    cpu={"i-1": series(1)},
    memory={"i-1": series(1)},
    traffic={"nat-1": series(0), "arn": series(0)},
)
BASIS = Basis(now=NOW, limits=Limits(), prices=Prices.from_file("eu-west-1"))


class Watched:
    """An inventory that notes what is looked at."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self.seen = set[str]()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self._inventory, name)


waste = pytest.mark.parametrize("check", WASTE, ids=lambda check: check.id)


@waste
def test_a_check_reads_exactly_what_it_says(check: Check) -> None:
    watched = Watched(WASTEFUL)

    assert list(check.find(cast("Inventory", watched), BASIS))

    assert watched.seen == {*check.needs, *check.helped_by}


@waste
def test_a_finding_says_in_json_what_it_costs_and_where_that_is_from(check: Check) -> None:
    (finding,) = judged(check, WASTEFUL).findings

    assert finding.monthly_usd
    assert 0 < finding.confidence <= 1
    assert finding.evidence["price_source"] == "price file of 2026-11-22, eu-west-1 estimated by region factor"
    assert json.loads(json.dumps(finding.evidence)) == finding.evidence


@waste
def test_without_a_price_it_is_found_all_the_same(check: Check) -> None:
    nowhere = Basis(now=NOW, limits=Limits(), prices=Prices.from_file("eu-atlantis-1"))

    found = [one for one in check.find(WASTEFUL, nowhere) if isinstance(one, Found)]

    assert [(one.monthly_usd, one.evidence["price_source"]) for one in found] == (
        [] if check.id == "gp2_volumes" else [(None, "no price known")]
    )
