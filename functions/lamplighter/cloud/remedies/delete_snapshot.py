"""Deletes a snapshot that nothing uses, where the Recycle Bin keeps it for a while. Undo takes it out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lamplighter.cloud.checks.old_snapshots import PLANNED_TAGS
from lamplighter.cloud.remedies.action import Action, Kept, Offence, Place, Step, absence_as_gone, is_there, tag_map
from lamplighter.cloud.remedies.recycle_bin import covering, unchanged


def look(place: Place, offence: Offence) -> Step:
    """More than the check looks at: every version of every launch template, disabled images, the Recycle Bin."""
    snapshot = _snapshot(place, offence.resource_id)
    if snapshot["State"] != "completed":
        raise Kept(f"It is {snapshot['State']}.")
    tags = tag_map(snapshot.get("Tags"))
    if managed := [key for key in tags if key.startswith(PLANNED_TAGS)]:
        raise Kept(f"A backup plan manages it ({managed[0]}).")
    if user := _users(place).get(offence.resource_id):
        raise Kept(f"{user} uses it.")
    rule = covering(place, tags)
    if not rule:
        raise Kept("No Recycle Bin rule covers it: it would be gone for good.")
    state = {"started_at": snapshot["StartTime"].isoformat(), "recycle_bin": rule.id, "kept_days": rule.days}
    return Step(outcome="deleted", state=state)


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """EC2 itself refuses what an image uses; that the Recycle Bin still keeps it is asked once more."""
    if not unchanged(place, step.state["recycle_bin"]):
        raise Kept("The Recycle Bin rule that covered it is not what it was a moment ago.")
    place.ec2.delete_snapshot(SnapshotId=resource_id)
    return step.state


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """It was there when the plan was made, and is in the Recycle Bin."""
    if is_there(lambda: _snapshot(place, resource_id)):
        return None
    return step.state if is_there(lambda: _binned(place, resource_id)) else None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Possible for as long as the rule keeps it."""
    if is_there(lambda: _snapshot(place, resource_id)):
        return "already_restored", state
    if not is_there(lambda: _binned(place, resource_id)):
        return "not_restorable", state
    if not dry_run:
        place.ec2.restore_snapshot_from_recycle_bin(SnapshotId=resource_id)
    return "restored", state


def _snapshot(place: Place, resource_id: str) -> dict[str, Any]:
    with absence_as_gone():
        return dict(place.ec2.describe_snapshots(SnapshotIds=[resource_id])["Snapshots"][0])


def _binned(place: Place, resource_id: str) -> list[Any]:
    with absence_as_gone():
        return list(place.ec2.list_snapshots_in_recycle_bin(SnapshotIds=[resource_id])["Snapshots"])


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
