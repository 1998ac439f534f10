"""What can be done about findings: which action fits, what the Recycle Bin keeps, when the governor refuses (C13)."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.checks.old_snapshots import PLANNED_TAGS
from lamplighter.cloud.cloud_actions import FEW, refusal
from lamplighter.cloud.remedies import ACTIONS, FITTING, add_tags, delete_snapshot, snapshot_and_delete, stop, tags
from lamplighter.cloud.remedies.action import Kept, Offence, Place
from lamplighter.cloud.remedies.recycle_bin import Rule, covering, unchanged
from lamplighter.kernel.cloud import Limits, Remedy
from lamplighter.kernel.deletion import Entry, _pack, _unpack


def test_every_check_has_its_actions_but_the_one_whose_tags_nobody_reads() -> None:
    assert FITTING.keys() == BY_ID.keys() - {"log_groups_without_retention"}
    assert {action for actions in FITTING.values() for action in actions} == {"tag", *ACTIONS}


def tag(key: str, value: str | None = None) -> dict[str, str]:
    return {"ResourceTagKey": key} | ({} if value is None else {"ResourceTagValue": value})


@pytest.mark.parametrize(
    ("rule", "tags", "covers"),
    [
        ({}, {}, True),
        ({"ExcludeResourceTags": [tag("Temporary")]}, {"Temporary": "yes"}, False),
        ({"ExcludeResourceTags": [tag("Temporary", "yes")]}, {"Temporary": "no"}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Stage": "live"}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Keep": ""}, True),
        ({"ResourceTags": [tag("Keep"), tag("Stage", "live")]}, {"Stage": "test"}, False),
        ({"ResourceTags": [tag("Keep")]}, {}, False),
        ({"ResourceTags": [tag("Keep")]}, {"Keep": "yes"}, False),
    ],
)
def test_a_rule_of_the_recycle_bin_covers_what_aws_says(
    rule: dict[str, Any], tags: dict[str, str], covers: bool
) -> None:
    """Recycle Bin, "How Recycle Bin works": a rule is for some tags, or for the region but some tags.

    What a tag without a value matches AWS does not say: surely an empty one, and then no other is certain to be kept.
    """
    given = {"Identifier": "r", "RetentionPeriod": {"RetentionPeriodValue": 7, "RetentionPeriodUnit": "DAYS"}}
    assert Rule.parse(given | rule).covers(tags) is covers


@pytest.mark.parametrize(
    ("offending", "looked_at", "refused"),
    [(0, 0, False), (FEW, FEW, False), (FEW + 1, FEW + 1, True), (50, 100, False), (51, 100, True)],
)
def test_too_large_a_share_is_refused_but_a_few_are_not(offending: int, looked_at: int, refused: bool) -> None:
    sentence = refusal("open_ports", Remedy(action="revoke"), offending, looked_at)
    assert bool(sentence) is refused
    if sentence:
        assert f"{offending} of {looked_at}" in sentence


def test_manifests_of_files_that_are_kept_already_can_still_be_read() -> None:
    before = {"key": "a.jpg", "size": 3, "etag": "e", "last_modified": "2026-01-01", "outcome": "deleted"}
    (entry,) = _unpack(gzip.compress(json.dumps(before).encode()))
    assert (entry.key, entry.size, entry.etag, entry.facts) == ("a.jpg", 3, "e", None)
    assert _unpack(_pack([entry])) == [entry]
    resource = Entry(key="1/r/open_ports/sg-1", facts={"state": {"rules": []}}, outcome="revoked")
    assert _unpack(_pack([resource])) == [resource]


NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def place(**services: Any) -> Place:
    """A region whose services are these."""
    return Place(account="1", region="r", clients=services.__getitem__, job_id="job", now=NOW)


class Answers:
    """A service that answers each operation the same, whatever it is asked, and remembers what it was."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def __getattr__(self, operation: str) -> Any:
        def call(**_: Any) -> Any:
            self.asked.append(operation)
            return self._answers[operation]

        return call

    def get_paginator(self, operation: str) -> Any:
        return SimpleNamespace(paginate=lambda **_: [self._answers[operation]])


RULE = {"Identifier": "r", "RetentionPeriod": {"RetentionPeriodValue": 7, "RetentionPeriodUnit": "DAYS"}}


@pytest.mark.parametrize(("status", "covers"), [("available", True), ("pending", False)])
def test_a_rule_that_is_not_in_force_covers_nothing(status: str, covers: bool) -> None:
    rbin = Answers(list_rules={"Rules": [{"Identifier": "r"}]}, get_rule=RULE | {"Status": status})
    there = place(rbin=rbin)
    assert bool(covering(there, {})) is covers
    assert unchanged(there, "r") is covers


@pytest.mark.parametrize(
    ("now", "kept"), [({}, True), ({"Status": "pending"}, False), ({"ResourceTags": [tag("Keep")]}, False)]
)
def test_a_rule_counts_only_as_it_was(now: dict[str, Any], kept: bool) -> None:
    rbin = Answers(list_rules={"Rules": [{"Identifier": "r"}]}, get_rule=RULE | {"Status": "available"})
    there = place(rbin=rbin)
    assert covering(there, {})
    rbin._answers["get_rule"] |= now
    assert unchanged(there, "r") is kept


def offence(resource_id: str) -> Offence:
    return Offence(
        resource_id=resource_id, tags={}, evidence={}, remedy=Remedy(action="delete_snapshot"), limits=Limits()
    )


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        ({"Tags": [{"Key": f"{PLANNED_TAGS[0]}x", "Value": ""}]}, "A backup plan manages it"),
        ({"State": "pending"}, "It is pending"),
        ({"State": "error"}, "It is error"),
    ],
)
def test_a_snapshot_of_a_backup_plan_is_kept(snapshot: dict[str, Any], said: str) -> None:
    """C18; and one that is not whole."""
    sound = {"State": "completed", "StartTime": NOW}
    ec2 = Answers(
        describe_snapshots={"Snapshots": [sound | snapshot]},
        describe_images={"Images": []},
        describe_launch_templates={"LaunchTemplates": []},
    )
    rbin = Answers(list_rules={"Rules": [{"Identifier": "r"}]}, get_rule=RULE | {"Status": "available"})
    with pytest.raises(Kept, match=said):
        delete_snapshot.look(place(ec2=ec2, rbin=rbin), offence("snap-1"))
    ec2._answers["describe_snapshots"] = {"Snapshots": [sound]}
    assert delete_snapshot.look(place(ec2=ec2, rbin=rbin), offence("snap-1")).outcome == "deleted"


def test_a_snapshot_that_an_image_names_is_kept_be_the_image_disabled_or_deprecated() -> None:
    """EC2 would refuse to delete it, or the image could not be launched again once it is enabled."""
    devices = [{"DeviceName": "/dev/sda1"}, {"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": "snap-1"}}]
    image = {"ImageId": "ami-1", "BlockDeviceMappings": devices}

    def images(**asked: Any) -> list[Any]:
        return [{"Images": [image] if asked.get("IncludeDeprecated") and asked.get("IncludeDisabled") else []}]

    ec2 = Answers(
        describe_snapshots={"Snapshots": [{"State": "completed", "StartTime": NOW}]},
        describe_launch_templates={"LaunchTemplates": []},
    )
    others = ec2.get_paginator
    pages = {"describe_images": SimpleNamespace(paginate=images)}
    ec2.get_paginator = lambda operation: pages.get(operation) or others(operation)  # type: ignore[method-assign]
    rbin = Answers(list_rules={"Rules": [{"Identifier": "r"}]}, get_rule=RULE | {"Status": "available"})
    with pytest.raises(Kept, match="The image ami-1 uses it"):
        delete_snapshot.look(place(ec2=ec2, rbin=rbin), offence("snap-1"))
    assert delete_snapshot.look(place(ec2=ec2, rbin=rbin), offence("snap-2")).outcome == "deleted"


@pytest.mark.parametrize(
    ("state", "launched_at", "outcome", "starts"),
    [
        ("stopped", NOW, "restored", True),
        ("stopped", NOW + timedelta(hours=1), "changed_since", False),
        ("running", NOW, "already_restored", False),
        ("terminated", NOW, "not_restorable", False),
    ],
)
def test_an_instance_that_was_stopped_again_since_is_left_alone(
    state: str, launched_at: datetime, outcome: str, starts: bool
) -> None:
    """C18: undo starts what we stopped, not what its owner has started and stopped since."""
    instance = {"State": {"Name": state}, "LaunchTime": launched_at}
    ec2 = Answers(describe_instances={"Reservations": [{"Instances": [instance]}]}, start_instances={})
    facts = {"launched_at": NOW.isoformat()}
    assert stop.undo(place(ec2=ec2), "i-1", facts, False)[0] == outcome
    assert ("start_instances" in ec2.asked) is starts
    ec2.asked.clear()
    assert stop.undo(place(ec2=ec2), "i-1", facts, True)[0] == outcome
    assert "start_instances" not in ec2.asked


def test_undo_removes_a_tag_only_as_it_was_added() -> None:
    """What somebody has written over since is theirs."""
    removed: list[dict[str, str]] = []
    ec2 = Answers(describe_tags={"Tags": [{"Key": "Owner", "Value": "ada"}, {"Key": "Stage", "Value": "live"}]})
    ec2._answers["delete_tags"] = {}
    with patch.object(tags, "remove", lambda place, resource_id, some: removed.append(dict(some))):
        added = {"Owner": "platform", "Stage": "live"}
        assert add_tags.undo(place(ec2=ec2), "vol-1", {"added": added}, False)[0] == "restored"
        assert add_tags.undo(place(ec2=ec2), "vol-1", {"added": {"Owner": "platform"}}, False)[0] == "changed_since"
        assert add_tags.undo(place(ec2=ec2), "vol-1", {"added": {"Gone": "x"}}, False)[0] == "already_restored"
    assert removed == [{"Stage": "live"}]


INSTANCE = {"InstanceType": "t3.micro", "State": {"Name": "running"}, "LaunchTime": NOW}


@pytest.mark.parametrize(
    ("instance", "disks", "said"),
    [
        ({}, False, None),
        ({"State": {"Name": "stopping"}}, False, "It is stopping"),
        ({"Tags": [{"Key": "aws:autoscaling:groupName", "Value": "web"}]}, False, "Auto Scaling group web"),
        ({"InstanceLifecycle": "spot"}, False, "spot instance"),
        ({"InstanceLifecycle": "scheduled"}, False, None),
        ({}, True, "instance store"),
    ],
)
def test_only_what_runs_and_can_be_started_again_is_stopped(
    instance: dict[str, Any], disks: bool, said: str | None
) -> None:
    """C18."""
    ec2 = Answers(
        describe_instances={"Reservations": [{"Instances": [INSTANCE | instance]}]},
        describe_instance_types={"InstanceTypes": [{"InstanceStorageSupported": disks}]},
    )
    if said is None:
        assert stop.look(place(ec2=ec2), offence("i-1")).outcome == "stopped"
    else:
        with pytest.raises(Kept, match=said):
            stop.look(place(ec2=ec2), offence("i-1"))


VOLUME = {
    "VolumeId": "vol-1",
    "State": "available",
    "Attachments": [],
    "VolumeType": "gp3",
    "Size": 1,
    "Encrypted": False,
    "AvailabilityZone": "r-a",
}
DAY = timedelta(days=1)


def step(*, snapshots: list[tuple[str, timedelta]], writes: list[float] | None = None, **volume: Any) -> str:
    """What is next for a volume with snapshots of these states and ages."""
    listed = [
        {"SnapshotId": f"snap-{number}", "State": state, "StartTime": NOW - age}
        for number, (state, age) in enumerate(snapshots)
    ]
    ec2 = Answers(describe_volumes={"Volumes": [VOLUME | volume]}, describe_snapshots={"Snapshots": listed})
    told = {"Values": writes or [], "StatusCode": "Complete"}
    cloudwatch = Answers(get_metric_data={"MetricDataResults": [told]})
    return snapshot_and_delete.look(place(ec2=ec2, cloudwatch=cloudwatch), offence("vol-1")).outcome


def test_a_volume_goes_only_for_a_snapshot_that_is_complete_fresh_and_of_all_that_was_written() -> None:
    assert step(snapshots=[("completed", DAY)]) == "deleted"
    assert step(snapshots=[("pending", DAY)]) == "snapshot_pending"
    assert step(snapshots=[("error", DAY)]) == "snapshot_started"
    assert step(snapshots=[]) == "snapshot_started"
    assert step(snapshots=[("completed", 2 * DAY)]) == "snapshot_started"
    assert step(snapshots=[("completed", 2 * DAY - timedelta(seconds=1))]) == "deleted"
    assert step(snapshots=[("completed", DAY)], writes=[0.0, 7.0]) == "snapshot_started"
    assert step(snapshots=[("pending", DAY)], writes=[7.0]) == "snapshot_started"
    assert step(snapshots=[("pending", DAY), ("completed", DAY)]) == "deleted"


@pytest.mark.parametrize("volume", [{"State": "in-use"}, {"Attachments": [{"State": "detaching"}]}])
def test_an_attached_volume_is_kept(volume: dict[str, Any]) -> None:
    with pytest.raises(Kept):
        step(snapshots=[("completed", DAY)], **volume)
