"""NAT gateways that nothing goes through."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.cloud import windows
from lamplighter.cloud.check import Basis, Check, Found, Unknown
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import source


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every NAT gateway that has sent nothing in `idle_days`; a younger one has not had the time to be idle."""
    for gateway in inventory.nat_gateways:
        if gateway.state != "available":
            continue
        idle = windows.silence(gateway.id, gateway.created_at, inventory, basis)
        if isinstance(idle, Unknown):
            yield idle
        elif idle:
            price = basis.prices.nat_gateway(gateway)
            yield Found(
                resource_id=gateway.id,
                tags=gateway.tags,
                evidence={
                    "public": gateway.public,
                    "bytes_sent": 0,
                    **windows.evidence(idle, basis),
                    "price_source": source(price),
                },
                monthly_usd=price.usd if price else None,
                confidence=windows.coverage(idle),
            )


check = Check(
    id="idle_nat_gateways",
    title="Nothing goes through a NAT gateway",
    advice="Delete it with the routes that lead to it, and release its address.",
    kind="idle_nat_gateway",
    severity="medium",
    resource_type="Other",
    needs=("nat_gateways", "traffic"),
    find=find,
)
