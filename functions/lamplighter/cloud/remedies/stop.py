"""Stops an instance that is idle. Undo starts it again."""

from __future__ import annotations

from typing import Any, Final

from lamplighter.cloud.remedies.action import Action, Gone, Kept, Offence, Place, Step, absence_as_gone, tag_map

_GROUP: Final = "aws:autoscaling:groupName"


def look(place: Place, offence: Offence) -> Step:
    """Only what runs, and what stays stopped once it is."""
    instance = _instance(place, offence.resource_id)
    state = instance["State"]["Name"]
    if state == "terminated":
        raise Gone
    if state != "running":
        raise Kept(f"It is {state}.")
    if group := tag_map(instance.get("Tags")).get(_GROUP):
        raise Kept(f"The Auto Scaling group {group} would replace it.")
    if instance.get("InstanceLifecycle") == "spot":
        raise Kept("It is a spot instance: whether it runs is up to its request.")
    if _has_disks(place, instance["InstanceType"]):
        raise Kept(f"Its type, {instance['InstanceType']}, has an instance store, whose data does not outlive a stop.")
    return Step(outcome="stopped", state={"launched_at": instance["LaunchTime"].isoformat()})


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """To stop what stops is no error (StopInstances)."""
    place.ec2.stop_instances(InstanceIds=[resource_id])
    return step.state


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """It ran when the plan was made, and has not been started since."""
    instance = _instance(place, resource_id)
    stopped = instance["State"]["Name"] in {"stopping", "stopped"}
    return step.state if stopped and _not_started_since(instance, step.state) else None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Starts it, unless somebody has since."""
    try:
        instance = _instance(place, resource_id)
    except Gone:
        return "not_restorable", state
    now = instance["State"]["Name"]
    if now in {"terminated", "shutting-down"}:
        return "not_restorable", state
    if now in {"running", "pending"}:
        return "already_restored", state
    if not _not_started_since(instance, state):
        return "changed_since", state
    if not dry_run:
        place.ec2.start_instances(InstanceIds=[resource_id])
    return "restored", state


def _instance(place: Place, resource_id: str) -> dict[str, Any]:
    with absence_as_gone():
        reservations = place.ec2.describe_instances(InstanceIds=[resource_id])["Reservations"]
    return dict(reservations[0]["Instances"][0])


def _has_disks(place: Place, type_: str) -> bool:
    """Whether instances of a type come with an instance store (EC2, "Instance store temporary block storage")."""
    known: dict[str, bool] = place.seen.setdefault("disks", {})
    if type_ not in known:
        (described,) = place.ec2.describe_instance_types(InstanceTypes=[type_])["InstanceTypes"]
        known[type_] = described["InstanceStorageSupported"]
    return known[type_]


def _not_started_since(instance: dict[str, Any], state: dict[str, Any]) -> bool:
    return bool(instance["LaunchTime"].isoformat() == state["launched_at"])


action = Action(id="stop", look=look, act=act, found=found, undo=undo, undone="stopped")
