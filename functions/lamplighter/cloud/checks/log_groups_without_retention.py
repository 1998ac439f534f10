"""CloudWatch log groups that keep everything for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import source

UNCOMPRESSED: Final = 0.5
"""How much of the figure a retention would save: what is stored is billed compressed, and a part of it would stay."""


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every log group without a retention, however little it stores: it only grows.

    Not one of the class DELIVERY, whose events are kept for a fixed, short time (CreateLogGroup).
    """
    for group in inventory.log_groups:
        if group.retention_days is None and group.log_class != "DELIVERY":
            price = basis.prices.log_group(group)
            yield Found(
                resource_id=group.id,
                tags={},
                evidence={
                    "retention_days": None,
                    "stored_bytes": group.stored_bytes,
                    "created_at": group.created_at.isoformat(),
                    "monthly_usd_is": "the most that its storage can cost",
                    "price_source": source(price),
                },
                monthly_usd=price.usd if price else None,
                confidence=UNCOMPRESSED,
                since=group.created_at,
            )


check = Check(
    id="log_groups_without_retention",
    title="A log group keeps its events for ever",
    advice="Set a retention.",
    kind="log_group_without_retention",
    severity="low",
    resource_type="Other",
    needs=("log_groups",),
    find=find,
)
