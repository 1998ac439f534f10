"""Deletes a snapshot that nothing uses, where the Recycle Bin keeps it for a while. Undo takes it out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from lamplighter.cloud.remedies.action import Action, Gone, Kept, Offence, Place, Step, is_absence, tag_map
from lamplighter.cloud.remedies.recycle_bin import covering

_BACKUPS: Final = ("aws:backup:", "aws:dlm:")
"""Tags begin so on what AWS Backup and Data Lifecycle Manager made, and delete when its time has come."""


def look(place: Place, offence: Offence) -> Step:
    """More than the check looks at: every version of every launch template, disabled images, the Recycle Bin."""
    snapshot = _snapshot(place, offence.resource_id)
    if snapshot["State"] != "completed":
        raise Kept(f"It is {snapshot['State']}.")
    tags = tag_map(snapshot.get("Tags"))
    if managed := [key for key in tags if key.startswith(_BACKUPS)]:
        raise Kept(f"A backup plan manages it ({managed[0]}).")
    if user := _users(place).get(offence.resource_id):
        raise Kept(f"{user} uses it.")
    rule = covering(place, tags)
    if not rule:
        raise Kept("No Recycle Bin rule covers it: it would be gone for good.")
    state = {"started_at": snapshot["StartTime"].isoformat(), "recycle_bin": rule.id, "kept_days": rule.days}
    return Step(outcome="deleted", state=state)


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """EC2 itself refuses what an image uses."""
    place.ec2.delete_snapshot(SnapshotId=resource_id)
    return step.state


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """It was there when the plan was made, and is in the Recycle Bin."""
    return step.state if not _exists(place, resource_id) and _in_bin(place, resource_id) else None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Possible for as long as the rule keeps it."""
    if _exists(place, resource_id):
        return "already_restored", state
    if not _in_bin(place, resource_id):
        return "not_restorable", state
    if not dry_run:
        place.ec2.restore_snapshot_from_recycle_bin(SnapshotId=resource_id)
    return "restored", state


def _snapshot(place: Place, resource_id: str) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    try:
        return dict(place.ec2.describe_snapshots(SnapshotIds=[resource_id])["Snapshots"][0])
    except ClientError as error:
        if is_absence(error):
            raise Gone from None
        raise


def _exists(place: Place, resource_id: str) -> bool:
    try:
        return bool(_snapshot(place, resource_id))
    except Gone:
        return False


def _in_bin(place: Place, resource_id: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        return bool(place.ec2.list_snapshots_in_recycle_bin(SnapshotIds=[resource_id])["Snapshots"])
    except ClientError as error:
        if is_absence(error):
            return False
        raise


def _users(place: Place) -> dict[str, str]:
    """Every snapshot that an image or a version of a launch template names, and which one that is."""
    if "users" not in place.seen:
        place.seen["users"] = dict((*_named_by_images(place), *_named_by_templates(place)))
    named: dict[str, str] = place.seen["users"]
    return named


def _named_by_images(place: Place) -> Iterator[tuple[str, str]]:
    pages = place.ec2.get_paginator("describe_images")
    for page in pages.paginate(Owners=["self"], IncludeDeprecated=True, IncludeDisabled=True):
        for image in page["Images"]:
            for snapshot in _snapshots_of(image.get("BlockDeviceMappings", ())):
                yield snapshot, f"The image {image['ImageId']}"


def _named_by_templates(place: Place) -> Iterator[tuple[str, str]]:
    versions = place.ec2.get_paginator("describe_launch_template_versions")
    for page in place.ec2.get_paginator("describe_launch_templates").paginate():
        for template in page["LaunchTemplates"]:
            for found in versions.paginate(LaunchTemplateId=template["LaunchTemplateId"]):
                for version in found["LaunchTemplateVersions"]:
                    for snapshot in _snapshots_of(version["LaunchTemplateData"].get("BlockDeviceMappings", ())):
                        yield snapshot, f"The launch template {template['LaunchTemplateId']}"


def _snapshots_of(devices: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for device in devices:
        if snapshot := device.get("Ebs", {}).get("SnapshotId"):
            yield snapshot


action = Action(id="delete_snapshot", look=look, act=act, found=found, undo=undo, undone="deleted")
