"""EBS volumes that are not encrypted (REQUIREMENTS C8)."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Inventory


def find(inventory: Inventory, _basis: Basis) -> Iterator[Found]:
    """Every volume, attached or not, whose blocks lie in the clear."""
    for volume in inventory.volumes:
        if not volume.encrypted:
            evidence = {"encrypted": False, "size_gb": volume.size_gb, "attached_to": list(volume.instances)}
            yield Found(resource_id=volume.id, tags=volume.tags, evidence=evidence)


check = Check(
    id="unencrypted_volumes",
    title="An EBS volume is not encrypted",
    advice="Replace it by a volume from an encrypted copy of its snapshot, and encrypt new ones by default.",
    kind="encryption",
    severity="medium",
    resource_type="AwsEc2Volume",
    needs=("volumes",),
    find=find,
)
