"""Volumes that no instance has had for long (REQUIREMENTS C5)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory, Volume
from lamplighter.cloud.prices import source

UNWATCHED: Final = 0.5
"""How sure it is that a volume has been unattached for long where nobody has kept since when."""


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every volume that has been unattached for `unattached_days` or longer.

    EC2 does not say since when: scans that come again keep when they first saw it so (`Basis.unattached_since`), and
    one that they see so for the first time has only begun. Where nobody has kept it, what is unattached now and was
    created that long ago is found with low confidence. A younger volume cannot have been unattached for as long.
    """
    limit = timedelta(days=basis.limits.unattached_days)
    for volume in inventory.volumes:
        if volume.state != "available" or volume.instances or basis.now - volume.created_at < limit:
            continue
        if basis.unattached_since is None:
            yield _found(volume, basis, since=None)
        elif (since := basis.unattached_since.get(volume.id)) and basis.now - since >= limit:
            yield _found(volume, basis, since=since)


def _found(volume: Volume, basis: Basis, *, since: datetime | None) -> Found:
    price = basis.prices.volume(volume)
    if since:
        told = {"unattached_since": since.isoformat(), "unattached_days": (basis.now - since).days}
    else:
        told = {"unattached_since": "unknown: nobody has watched it; it is unattached now"}
    return Found(
        resource_id=volume.id,
        tags=volume.tags,
        evidence={
            "type": volume.type,
            "size_gb": volume.size_gb,
            "created_at": volume.created_at.isoformat(),
            **told,
            "limit_days": basis.limits.unattached_days,
            "price_source": source(price),
        },
        monthly_usd=price.usd if price else None,
        confidence=1.0 if since else UNWATCHED,
        since=since,
    )


check = Check(
    id="unattached_volumes",
    title="A volume has been unattached for long",
    advice="Make a snapshot of it and delete it.",
    kind="unattached_volume",
    severity="low",
    resource_type="AwsEc2Volume",
    needs=("volumes",),
    find=find,
)
