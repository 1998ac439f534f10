"""Elastic IP addresses that nothing uses, and that are paid as if something did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import source

BROUGHT: Final = "ipv4pool-ec2-"
"""How the names of pools begin whose ranges were brought to AWS (BYOIP), which charges nothing for them."""


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every Elastic IP address that is charged and not associated. EC2 does not say since when."""
    for address in inventory.addresses:
        if address.associated or address.pool.startswith(BROUGHT):
            continue
        price = basis.prices.address() if address.pool == "amazon" else None
        yield Found(
            resource_id=address.id,
            tags=address.tags,
            evidence={
                "public_ip": address.public_ip,
                "pool": address.pool,
                "associated": False,
                "price_source": source(price),
            },
            monthly_usd=price.usd if price else None,
        )


check = Check(
    id="unassociated_addresses",
    title="An Elastic IP address is not associated with anything",
    advice="Release it, unless somebody relies on having this very address again.",
    kind="unassociated_address",
    severity="low",
    resource_type="AwsEc2Eip",
    needs=("addresses",),
    find=find,
)
