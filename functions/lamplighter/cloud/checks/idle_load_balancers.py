"""Load balancers that nobody asks for anything."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.cloud import windows
from lamplighter.cloud.check import Basis, Check, Found, Unknown
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import source


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every load balancer that has served nothing in `idle_days`; a younger one has not had the time to be idle."""
    for balancer in inventory.load_balancers:
        idle = windows.silence(balancer.id, balancer.created_at, inventory, basis)
        if isinstance(idle, Unknown):
            yield idle
        elif idle:
            price = basis.prices.load_balancer(balancer)
            yield Found(
                resource_id=balancer.id,
                tags=balancer.tags,
                evidence={
                    "name": balancer.name,
                    "type": balancer.type,
                    "served": 0,
                    **windows.evidence(idle, basis),
                    "price_source": source(price),
                },
                monthly_usd=price.usd if price else None,
                confidence=windows.coverage(idle),
            )


check = Check(
    id="idle_load_balancers",
    title="A load balancer serves nobody",
    advice="Delete it, once no DNS name leads to it.",
    kind="idle_load_balancer",
    severity="low",
    resource_type="AwsElbv2LoadBalancer",
    needs=("load_balancers", "traffic"),
    find=find,
)
