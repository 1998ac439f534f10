"""Snapshots that are old and that nothing is known to use (REQUIREMENTS C6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory, Snapshot
from lamplighter.cloud.prices import source

PLANNED_TAGS: Final = ("aws:backup:", "aws:dlm:", "dlm:managed", "AWSElasticDisasterRecovery", "drs.amazonaws.com-")
"""How the tags begin that AWS Backup, Data Lifecycle Manager and Elastic Disaster Recovery give to what they keep and
remove by their own plan."""
LAUNCHED_FAST: Final = ("CreatedBy", "EC2 Fast Launch")
"""The tag of what EC2 keeps ready to start instances of a Windows AMI from; the AMI does not name it."""
PLANNED_DESCRIPTION: Final = "This snapshot is created by the AWS Backup service"


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every completed snapshot older than `snapshot_days` that no AMI, launch template or backup plan uses.

    Snapshots are incremental, and what each adds is not told: the figure is that of all its blocks, and confidence
    says how much of that deleting it would save (`_confidence`).
    """
    limit = timedelta(days=basis.limits.snapshot_days)
    used = {id_ for image in inventory.images for id_ in image.snapshots}
    used |= {id_ for template in inventory.launch_templates for id_ in template.snapshots}
    of_volume = Counter(snapshot.volume_id for snapshot in inventory.snapshots)
    for snapshot in inventory.snapshots:
        age = basis.now - snapshot.started_at
        if snapshot.state != "completed" or age <= limit or snapshot.id in used or _planned(snapshot):
            continue
        price = basis.prices.snapshot(snapshot)
        alone = snapshot.tier == "archive" or of_volume[snapshot.volume_id] == 1
        yield Found(
            resource_id=snapshot.id,
            tags=snapshot.tags,
            evidence={
                "started_at": snapshot.started_at.isoformat(),
                "age_days": age.days,
                "limit_days": basis.limits.snapshot_days,
                "volume_id": snapshot.volume_id,
                "tier": snapshot.tier,
                "size_gb": snapshot.size_gb,
                "full_bytes": snapshot.full_bytes,
                "monthly_usd_is": "its cost" if alone and snapshot.full_bytes is not None else "the most it can cost",
                "price_source": source(price),
            },
            monthly_usd=price.usd if price else None,
            confidence=_confidence(snapshot, alone=alone),
            since=snapshot.started_at,
        )


def _planned(snapshot: Snapshot) -> bool:
    return (
        snapshot.description.startswith(PLANNED_DESCRIPTION)
        or LAUNCHED_FAST in snapshot.tags.items()
        or any(tag.startswith(PLANNED_TAGS) for tag in snapshot.tags)
    )


def _confidence(snapshot: Snapshot, *, alone: bool) -> float:
    """0.9 for what shares no block with others (archived, or the only one of its volume), 0.6 for what may.

    Two thirds of that where only the size of the volume is known, not how much of it was ever written.
    """
    share = 0.9 if alone else 0.6
    return share if snapshot.full_bytes is not None else share * 2 / 3


check = Check(
    id="old_snapshots",
    title="A snapshot is old and nothing is known to use it",
    advice="Delete it, or archive it if it has to be kept.",
    kind="old_snapshot",
    severity="low",
    resource_type="Other",
    needs=("snapshots", "images", "launch_templates"),
    find=find,
)
