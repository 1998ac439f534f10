"""Instances that were stopped long ago and whose volumes are still paid (REQUIREMENTS C4)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from lamplighter.cloud.check import Basis, Check, Found, Unknown
from lamplighter.cloud.inventory import Instance, Inventory
from lamplighter.cloud.prices import source, together


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every instance that has been stopped for `stopped_days` or longer, by its state transition reason.

    It costs what its volumes cost that no other instance has, too; None if one of its volumes was not read or has no
    known price.
    """
    volumes = {volume.id: volume for volume in inventory.volumes}
    for instance in inventory.instances:
        if instance.state == "stopped" and instance.stopped_at is None:
            reason = "its state transition reason does not say when it was stopped"
            yield Unknown(resource_id=instance.id, reason=reason)
        if instance.stopped_at is None or not long_stopped(instance, basis):
            continue
        own = [id_ for id_ in instance.volumes if id_ not in volumes or set(volumes[id_].instances) <= {instance.id}]
        price = together(basis.prices.volume(volumes[id_]) if id_ in volumes else None for id_ in own)
        yield Found(
            resource_id=instance.id,
            tags=instance.tags,
            evidence={
                "type": instance.type,
                "stopped_at": instance.stopped_at.isoformat(),
                "stopped_days": (basis.now - instance.stopped_at).days,
                "limit_days": basis.limits.stopped_days,
                "volumes": own,
                "price_source": source(price),
            },
            monthly_usd=price.usd if price else None,
            since=instance.stopped_at,
        )


def long_stopped(instance: Instance, basis: Basis) -> bool:
    """Whether it is known to have been stopped for `stopped_days` or longer."""
    return (
        instance.state == "stopped"
        and instance.stopped_at is not None
        and basis.now - instance.stopped_at >= timedelta(days=basis.limits.stopped_days)
    )


check = Check(
    id="stopped_instances",
    title="An instance has been stopped for long and its volumes are paid",
    advice="Make an image of it and terminate it; or start it.",
    kind="stopped_instance",
    severity="low",
    resource_type="AwsEc2Instance",
    needs=("instances",),
    helped_by=("volumes",),
    find=find,
)
