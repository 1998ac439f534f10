"""`unassociated_addresses`: an Elastic IP address is paid whether or not anything uses it."""

from __future__ import annotations

import pytest

from lamplighter.cloud.checks.unassociated_addresses import check
from lamplighter.cloud.inventory import Address
from tests.inventories import TAGS, inventory, judged, silent


def address(id: str, *, associated: bool, pool: str = "amazon") -> Address:
    return Address(id=id, public_ip="203.0.113.9", associated=associated, pool=pool, tags=TAGS)


def test_none() -> None:
    assert silent(judged(check, inventory()))


def test_one_in_use_is_in_order_and_one_that_is_not_is_found() -> None:
    addresses = (address("eipalloc-1", associated=True), address("eipalloc-2", associated=False))

    (finding,) = judged(check, inventory(addresses=addresses)).findings

    assert (finding.resource_id, finding.owner, finding.confidence, finding.since) == ("eipalloc-2", "ada", 1, None)
    assert finding.monthly_usd == pytest.approx(3.65)
    assert finding.evidence["public_ip"] == "203.0.113.9"


def test_one_of_a_range_that_was_brought_along_is_not_charged_and_in_order() -> None:
    brought = address("eipalloc-1", associated=False, pool="ipv4pool-ec2-012345")

    assert silent(judged(check, inventory(addresses=(brought,))))


@pytest.mark.parametrize("pool", ["ipam-pool-012345", "ipv4pool-coip-012345"])
def test_one_of_a_pool_whose_price_is_not_known_has_none(pool: str) -> None:
    (finding,) = judged(check, inventory(addresses=(address("eipalloc-1", associated=False, pool=pool),))).findings

    assert (finding.monthly_usd, finding.evidence["price_source"]) == (None, "no price known")
    assert finding.evidence["pool"] == pool


def test_unread_addresses_are_unknown() -> None:
    assert [unknown.resource_id for unknown in judged(check, inventory(gaps={"addresses": "denied"})).unknown] == ["*"]
