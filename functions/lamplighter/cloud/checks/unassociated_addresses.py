"""Elastic IP addresses that nothing uses, and that are paid as if something did."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import source


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every Elastic IP address that is not associated. EC2 does not say since when."""
    price = basis.prices.address()
    for address in inventory.addresses:
        if not address.associated:
            yield Found(
                resource_id=address.id,
                tags=address.tags,
                evidence={"public_ip": address.public_ip, "associated": False, "price_source": source(price)},
                monthly_usd=price.usd if price else None,
            )


check = Check(
    id="unassociated_addresses",
    title="An Elastic IP address is not associated with anything",
    kind="unassociated_address",
    severity="low",
    resource_type="AwsEc2Eip",
    needs=("addresses",),
    find=find,
)
