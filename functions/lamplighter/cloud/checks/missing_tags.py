"""Instances, volumes and snapshots without the tags that they have to have (REQUIREMENTS C12)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lamplighter.cloud.check import Basis, Check, Found
from lamplighter.cloud.inventory import Instance, Inventory, Snapshot, Tags, Volume


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every resource that lacks one. Keys are exact, as AWS takes them; a tag without a value says nothing."""
    resources: dict[str, Sequence[Instance | Volume | Snapshot]] = {
        "AwsEc2Instance": inventory.instances,
        "AwsEc2Volume": inventory.volumes,
        "Other": inventory.snapshots,
    }
    for resource_type, resource in ((type_, one) for type_, those in resources.items() for one in those):
        missing = [key for key in basis.limits.required_tags if not resource.tags.get(key, "").strip()]
        if not missing:
            continue
        evidence: dict[str, Any] = {
            "missing": missing,
            "empty": [key for key in missing if key in resource.tags],
            "similar": _similar(missing, resource.tags),
        }
        yield Found(resource_id=resource.id, tags=resource.tags, evidence=evidence, resource_type=resource_type)


def _similar(missing: list[str], tags: Tags) -> dict[str, list[str]]:
    """Per missing tag the ones that it may have been meant by, such as `cost-center` for `CostCenter`."""
    found = {key: [other for other in tags if other != key and _letters(other) == _letters(key)] for key in missing}
    return {key: others for key, others in found.items() if others}


def _letters(key: str) -> str:
    return "".join(filter(str.isalnum, key)).casefold()


check = Check(
    id="missing_tags",
    title="A resource lacks required tags",
    advice="Add the tags that are missing.",
    kind="missing_tags",
    severity="low",
    resource_type="Other",
    needs=("instances", "volumes", "snapshots"),
    find=find,
)
