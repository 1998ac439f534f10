"""Takes a snapshot of a volume that nothing uses, and once that is complete deletes the volume.

It takes two runs, because nobody waits here for a snapshot: one starts it, a later one finds it complete. Undo takes
the volume out of the Recycle Bin, if a rule of its owner keeps deleted volumes there; else it makes one from the
snapshot: the same but for its id.

That nothing was written since the snapshot, CloudWatch says, some minutes late. EC2 does not tell when a volume was
last attached. So without such a rule one case is left in which data is lost: somebody attaches the volume, writes to it
and detaches it, all in the few minutes before it is deleted.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any, Final

from lamplighter.cloud.marks import PREFIX
from lamplighter.cloud.remedies.action import (
    Action,
    Gone,
    Kept,
    Offence,
    Place,
    Step,
    absence_as_gone,
    is_there,
    tag_list,
    tag_map,
)

ORIGIN: Final = f"{PREFIX}origin-volume"
"""The tag of a snapshot of ours that says which volume it is of."""
JOB: Final = f"{PREFIX}origin-job"
"""The run that made it."""
RESTORED: Final = f"{PREFIX}restored-from"
"""The tag of a volume that undo made, with the id of the one that was deleted."""

FRESH: Final = timedelta(days=2)
"""An older snapshot does not do; the next one has only to copy what was written since."""
TAGS: Final = 40
"""Of a volume's tags, so many go on the snapshot, which takes 50 (EC2, "Tag restrictions"); the manifest has all."""

_SETTINGS: Final = ("AvailabilityZone", "Size", "VolumeType", "Iops", "Throughput", "MultiAttachEnabled")
_TAKES: Final = {"Iops": {"gp3", "io1", "io2"}, "Throughput": {"gp3"}, "MultiAttachEnabled": {"io1", "io2"}}
"""Which types CreateVolume takes a setting for; DescribeVolumes shows it for others, too."""


def look(place: Place, offence: Offence) -> Step:
    """Which of the two steps is next."""
    volume = _volume(place, offence.resource_id)
    if volume["State"] != "available" or volume.get("Attachments"):
        raise Kept(f"It is {volume['State']}.")
    state = {"volume": _described(volume), "snapshot_id": None}
    snapshots = [one for one in _snapshots(place, offence.resource_id) if place.now - one["StartTime"] < FRESH]
    for outcome, wanted in (("deleted", "completed"), ("snapshot_pending", "pending")):
        for snapshot in snapshots:
            if snapshot["State"] == wanted and not _written_since(place, offence.resource_id, snapshot["StartTime"]):
                return Step(outcome=outcome, state=state | {"snapshot_id": snapshot["SnapshotId"]})
    return Step(outcome="snapshot_started", state=state)


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """EC2 itself refuses to delete what is attached."""
    if step.outcome == "deleted":
        place.ec2.delete_volume(VolumeId=resource_id)
    if step.outcome != "snapshot_started":
        return step.state
    tags = dict(list(step.state["volume"]["Tags"].items())[:TAGS]) | {ORIGIN: resource_id, JOB: place.job_id}
    snapshot = place.ec2.create_snapshot(
        VolumeId=resource_id,
        Description=f"Of {resource_id}, before it is deleted",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": tag_list(tags)}],
    )
    return step.state | {"snapshot_id": snapshot["SnapshotId"]}


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """A snapshot that says so is this run's; a volume whose snapshot was complete was there when the plan was made."""
    if step.outcome == "snapshot_started":
        own = [one for one in _snapshots(place, resource_id) if tag_map(one["Tags"]).get(JOB) == place.job_id]
        return step.state | {"snapshot_id": own[0]["SnapshotId"]} if own else None
    try:
        _volume(place, resource_id)
    except Gone:
        return step.state if step.outcome == "deleted" else None
    return None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Takes it out of the Recycle Bin, or makes it again, once: what was made is known by its tag."""
    if is_there(lambda: _volume(place, resource_id)):
        return "already_restored", state
    named = [{"Name": f"tag:{RESTORED}", "Values": [resource_id]}]
    if made := place.ec2.describe_volumes(Filters=named)["Volumes"]:
        return "already_restored", state | {"volume_id": made[0]["VolumeId"]}
    if is_there(lambda: _binned(place, resource_id)):
        if not dry_run:
            place.ec2.restore_volume_from_recycle_bin(VolumeId=resource_id)
        return "restored", state
    if not is_there(lambda: _snapshot(place, state["snapshot_id"])):
        return "not_restorable", state
    if dry_run:
        return "restored", state
    described = state["volume"]
    settings = {name: described[name] for name in _SETTINGS if name in described}
    if described.get("Encrypted"):
        settings |= {"Encrypted": True} | ({"KmsKeyId": described["KmsKeyId"]} if "KmsKeyId" in described else {})
    tags = described["Tags"] | {RESTORED: resource_id}
    volume = place.ec2.create_volume(
        SnapshotId=state["snapshot_id"],
        TagSpecifications=[{"ResourceType": "volume", "Tags": tag_list(tags)}],
        ClientToken=hashlib.sha256(f"{state['snapshot_id']} {resource_id}".encode()).hexdigest(),
        **settings,
    )
    return "restored", state | {"volume_id": volume["VolumeId"]}


def _volume(place: Place, resource_id: str) -> dict[str, Any]:
    with absence_as_gone():
        volume = dict(place.ec2.describe_volumes(VolumeIds=[resource_id])["Volumes"][0])
    if volume["State"] in {"deleting", "deleted"}:  # for some minutes (DeleteVolume)
        raise Gone
    return volume


def _binned(place: Place, resource_id: str) -> list[Any]:
    with absence_as_gone():
        return list(place.ec2.list_volumes_in_recycle_bin(VolumeIds=[resource_id])["Volumes"])


def _described(volume: dict[str, Any]) -> dict[str, Any]:
    """What it takes to make the volume again."""
    type_ = volume["VolumeType"]
    settings = {name: volume[name] for name in _SETTINGS if volume.get(name) is not None}
    settings = {name: value for name, value in settings.items() if type_ in _TAKES.get(name, {type_})}
    own = {key: value for key, value in tag_map(volume.get("Tags")).items() if not key.startswith(("aws:", PREFIX))}
    key = {"KmsKeyId": volume["KmsKeyId"]} if volume.get("KmsKeyId") else {}
    return settings | {"Encrypted": volume["Encrypted"], "Tags": own} | key


def _snapshots(place: Place, resource_id: str) -> list[dict[str, Any]]:
    """Those that an earlier run of this action took of the volume."""
    named = [{"Name": f"tag:{ORIGIN}", "Values": [resource_id]}, {"Name": "volume-id", "Values": [resource_id]}]
    pages = place.ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=named)
    return [snapshot for page in pages for snapshot in page["Snapshots"]]


def _written_since(place: Place, resource_id: str, moment: datetime) -> bool:
    """Whether a volume has been written to: it may have been attached, and detached again, between two scans.

    It is told only while it is attached (EBS, "Amazon CloudWatch metrics for Amazon EBS"), and some minutes later.
    """
    dimensions = [{"Name": "VolumeId", "Value": resource_id}]
    writes = {"Namespace": "AWS/EBS", "MetricName": "VolumeWriteOps", "Dimensions": dimensions}
    query = {"Id": "writes", "MetricStat": {"Metric": writes, "Period": 300, "Stat": "Sum"}}
    answer = place.clients("cloudwatch").get_metric_data(
        MetricDataQueries=[query], StartTime=moment - timedelta(minutes=5), EndTime=place.now
    )
    (result,) = answer["MetricDataResults"]
    if not any(result["Values"]) and result.get("StatusCode", "Complete") != "Complete":
        raise Kept("CloudWatch does not tell whether it was written to since its snapshot.")
    return any(result["Values"])


def _snapshot(place: Place, snapshot_id: str) -> list[Any]:
    with absence_as_gone():
        return list(place.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"])


action = Action(id="snapshot_and_delete", look=look, act=act, found=found, undo=undo, undone="deleted")
