"""gp2 volumes that would do as much for less as gp3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.checks.stopped_instances import long_stopped
from lamplighter.cloud.inventory import Inventory, Volume
from lamplighter.cloud.prices import GP3_IOPS, GP3_THROUGHPUT, source, together


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every gp2 volume that costs less as a gp3 volume that is at least as fast; the figure is what that saves.

    Not those of instances that have been stopped for long: all that they cost is in the figure of `stopped_instances`.
    """
    stopped = {id_ for instance in inventory.instances if long_stopped(instance, basis) for id_ in instance.volumes}
    for volume in inventory.volumes:
        if volume.type != "gp2" or volume.id in stopped:
            continue
        better = as_gp3(volume)
        before, after = basis.prices.volume(volume), basis.prices.volume(better)
        if not before or not after or after.usd >= before.usd:
            continue
        yield Found(
            resource_id=volume.id,
            tags=volume.tags,
            evidence={
                "size_gb": volume.size_gb,
                "gp3_iops": better.iops,
                "gp3_throughput": better.throughput,
                "monthly_usd_as_gp2": round(before.usd, 2),
                "monthly_usd_as_gp3": round(after.usd, 2),
                "monthly_usd_is": "what the change saves",
                "price_source": source(together((before, after))),
            },
            monthly_usd=before.usd - after.usd,
        )


def as_gp3(volume: Volume) -> Volume:
    """A gp3 volume that is never slower than the baseline of a gp2 volume.

    That is 3 operations a second for each GiB, from 100 to 16 000, and 256 KiB with each of them, up to 250 MiB a
    second ("General Purpose SSD volumes"). gp2's bursts to 3 000 operations are every gp3 volume's baseline.
    """
    iops = min(max(3 * volume.size_gb, 100), 16_000)
    throughput = min(ceil(iops / 4), 250)
    return replace(volume, type="gp3", iops=max(iops, GP3_IOPS), throughput=max(throughput, GP3_THROUGHPUT))


check = Check(
    id="gp2_volumes",
    title="A gp2 volume would cost less as gp3",
    advice="Change its type to gp3, with the IOPS and throughput named here; it stays in use meanwhile.",
    kind="gp2_volume",
    severity="informational",
    resource_type="AwsEc2Volume",
    needs=("volumes",),
    helped_by=("instances",),
    find=find,
)
