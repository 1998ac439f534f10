"""Acting on findings: the marks, the actions, and that nothing else is touched (REQUIREMENTS C13, K7, K8, K11)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from unittest.mock import patch

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from lamplighter.cloud import cloud_actions, findings, reader
from lamplighter.cloud.cloud_actions import BATCH, FEW
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.marks import KEEP
from lamplighter.cloud.remedies import delete_snapshot
from lamplighter.cloud.remedies.outcomes import Report
from lamplighter.cloud.remedies.recycle_bin import Rule
from lamplighter.deletion import ramp
from lamplighter.kernel.cloud import Remedy
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.row import Policy
from tests.integration.actions_world import DAY, REGION, Account, Died, answering, repeating, ssh, writes
from tests.integration.media_world import ScriptedRun
from tests.memory_trust import MemoryTable

PORTS = "lamplighter:open_ports"
"""The mark."""


def test_an_open_port_is_marked_then_closed_and_opened_again(account: Account) -> None:
    group = account.open_group(Owner="ada")

    first = account.act("open_ports", "revoke")
    assert first.outcomes == {"marked": 1}
    assert account.tags(group)[PORTS] == f"revoke after {account.now:%Y-%m-%dT%H:%MZ}"
    assert account.ingress(group) == {("tcp", 22, 22, "0.0.0.0/0")}
    (told,) = account.mail()
    assert f"{group} ({account.account} {REGION}, owner ada)" in told
    assert "tag it lamplighter:keep" in told

    second = account.act("open_ports", "revoke")
    assert (second.outcomes, second.status) == ({"revoked": 1}, "completed")
    assert account.ingress(group) == set()
    assert account.mail() == []

    assert account.undo(second, dry_run=True).outcomes == {"would_be_restored": 1}
    assert account.ingress(group) == set()
    assert account.undo(second).outcomes == {"restored": 1}
    assert account.ingress(group) == {("tcp", 22, 22, "0.0.0.0/0")}
    assert PORTS not in account.tags(group)
    assert account.undo(second).outcomes == {"already_restored": 1}


def test_valid_rules_remain(account: Account) -> None:
    """FAILURES 14: a remediation removed valid rules (automated-security-response-on-aws #246).

    EC2 shows rules of the same protocol and ports as one permission; only the ranges at fault go.
    """
    lists = boto3.client("ec2").create_managed_prefix_list(
        PrefixListName="everybody", AddressFamily="IPv4", MaxEntries=1, Entries=[{"Cidr": "0.0.0.0/0"}]
    )
    everybody = lists["PrefixList"]["PrefixListId"]
    office = {"CidrIp": "203.0.113.0/24", "Description": "the office"}
    group = account.group(
        {**ssh("0.0.0.0/0", "::/0"), "IpRanges": [{"CidrIp": "0.0.0.0/0", "Description": "for now"}, office]},
        ssh("2001:db8::/32"),
        {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "tcp", "FromPort": 3000, "ToPort": 4000, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "PrefixListIds": [{"PrefixListId": everybody}]},
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]},
        {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
    )
    account.found("open_ports", group)
    before = account.ingress(group)
    valid = {
        ("tcp", 22, 22, "203.0.113.0/24"),
        ("tcp", 22, 22, "2001:db8::/32"),
        ("tcp", 443, 443, "0.0.0.0/0"),
        ("-1", -1, -1, "10.0.0.0/8"),
    }
    account.act("open_ports", "revoke")
    report = account.act("open_ports", "revoke")
    assert account.ingress(group) == valid
    assert len(account.outcomes(report)[group].facts["state"]["rules"]) == len(before) - len(valid)  # type: ignore[index]
    account.undo(report)
    assert account.ingress(group) == before
    rules = account.rules(group)
    assert "for now" in {rule.get("Description") for rule in rules}


def test_a_rule_comes_back_with_its_tags_but_those_of_aws(account: Account) -> None:
    """AWS lets nobody write tags of its own."""
    group = account.open_group()
    (rule,) = account.rules(group)
    account.tag(rule["SecurityGroupRuleId"], **{"Why": "for now", "aws:cloudformation:stack-name": "shop"})
    account.act("open_ports", "revoke")
    account.undo(account.act("open_ports", "revoke"))
    (again,) = account.rules(group)
    assert again["Tags"] == [{"Key": "Why", "Value": "for now"}]


def test_an_idle_instance_is_stopped_and_started_again(account: Account) -> None:
    idle = account.idle_instance()
    account.act("idle_cpu", "stop")
    assert account.state(idle) == "running"
    report = account.act("idle_cpu", "stop")
    assert report.outcomes == {"stopped": 1}
    assert account.state(idle) == "stopped"
    assert account.undo(report).outcomes == {"restored": 1}
    assert account.state(idle) == "running"
    assert account.undo(report).outcomes == {"already_restored": 1}


def test_an_unattached_volume_goes_once_its_snapshot_is_complete_and_comes_back_the_same(account: Account) -> None:
    volume = account.unattached_volume(Owner="ada")
    (before,) = account.volumes().values()
    assert account.act("unattached_volumes", "snapshot_and_delete").outcomes == {"marked": 1}
    started = account.act("unattached_volumes", "snapshot_and_delete")
    assert started.outcomes == {"snapshot_started": 1}
    (snapshot,) = account.snapshots().values()
    assert snapshot["VolumeId"] == volume
    tags = account.tags(snapshot["SnapshotId"])
    assert (tags["Owner"], tags["lamplighter:origin-volume"]) == ("ada", volume)

    deleted = account.act("unattached_volumes", "snapshot_and_delete")
    assert deleted.outcomes == {"deleted": 1}
    assert account.volumes() == {}

    undone = account.undo(deleted)
    ((new_id, new),) = account.volumes().items()
    assert (undone.outcomes, undone.items[0].detail) == ({"restored": 1}, new_id)
    same = ("AvailabilityZone", "Size", "VolumeType", "Iops", "Throughput", "Encrypted", "KmsKeyId")
    assert {name: new[name] for name in same} == {name: before[name] for name in same}
    assert new["SnapshotId"] == snapshot["SnapshotId"]
    assert account.tags(new_id) == {"Owner": "ada", "lamplighter:restored-from": volume}
    assert account.undo(deleted).outcomes == {"already_restored": 1}
    assert len(account.volumes()) == 1


def test_a_snapshot_is_deleted_only_into_the_recycle_bin_and_comes_back(account: Account) -> None:
    snapshot = account.old_snapshot()
    account.act("old_snapshots", "delete_snapshot")
    kept = account.act("old_snapshots", "delete_snapshot")
    assert kept.outcomes == {"kept": 1}
    assert "No Recycle Bin rule covers it" in account.outcomes(kept)[snapshot].facts["reason"]  # type: ignore[index]

    account.retain(ResourceTags=[{"ResourceTagKey": "Environment", "ResourceTagValue": "production"}])
    assert account.act("old_snapshots", "delete_snapshot").outcomes == {"kept": 1}
    account.retain()
    report = account.act("old_snapshots", "delete_snapshot")
    assert report.outcomes == {"deleted": 1}
    assert account.outcomes(report)[snapshot].facts["state"]["kept_days"] == 14  # type: ignore[index]
    assert account.snapshots() == {}

    assert account.undo(report).outcomes == {"restored": 1}
    assert set(account.snapshots()) == {snapshot}
    assert account.undo(report).outcomes == {"already_restored": 1}


def test_a_snapshot_is_kept_whose_recycle_bin_rule_goes_away_right_before(account: Account) -> None:
    """Without it the snapshot would be gone for good."""
    account.retain()
    snapshot = account.old_snapshot()
    account.act("old_snapshots", "delete_snapshot")
    covering, looks = delete_snapshot.covering, count(1)

    def covered(*looked: Any) -> Rule | None:
        found = covering(*looked)
        if next(looks) == 2:  # the plan's look was the first
            account.forget_rules()
        return found

    with patch.object(delete_snapshot, "covering", covered):
        report = account.act("old_snapshots", "delete_snapshot")
    assert report.outcomes == {"kept": 1}
    assert set(account.snapshots()) == {snapshot}


def test_a_snapshot_that_an_older_version_of_a_launch_template_names_is_kept(account: Account) -> None:
    account.retain()
    snapshot = account.old_snapshot()
    devices = [{"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": snapshot}}]
    template = {"LaunchTemplateName": "web"}
    account.ec2.create_launch_template(**template, LaunchTemplateData={"InstanceType": "t3.micro"})
    account.ec2.create_launch_template_version(**template, LaunchTemplateData={"BlockDeviceMappings": devices})
    account.ec2.create_launch_template_version(**template, LaunchTemplateData={"InstanceType": "t3.small"})
    account.act("old_snapshots", "delete_snapshot")
    report = account.act("old_snapshots", "delete_snapshot")
    assert "launch template" in account.outcomes(report)[snapshot].facts["reason"]  # type: ignore[index]
    assert set(account.snapshots()) == {snapshot}


def test_missing_tags_are_added_and_none_is_written_over(account: Account) -> None:
    volume = account.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1)["VolumeId"]
    account.tag(volume, Owner="ada", CostCenter="")
    account.found("missing_tags", volume)
    values = {"Owner": "platform", "Environment": "unknown", "CostCenter": "0"}
    account.act("missing_tags", "add_tags", values=values)
    report = account.act("missing_tags", "add_tags", values=values)
    assert report.outcomes == {"tags_added": 1}
    there = account.tags(volume)
    assert (there["Owner"], there["Environment"], there["CostCenter"]) == ("ada", "unknown", "")

    account.tag(volume, Environment="production")
    assert account.undo(report).outcomes == {"changed_since": 1}
    account.tag(volume, Environment="unknown")
    assert account.undo(report).outcomes == {"restored": 1}
    assert account.tags(volume) == {"Owner": "ada", "CostCenter": ""}


def test_tag_marks_and_does_no_more(account: Account) -> None:
    group = account.open_group()
    assert account.act("open_ports", "tag").outcomes == {"marked": 1}
    assert account.act("open_ports", "tag").outcomes == {"waiting": 1}
    assert account.tags(group) == {PORTS: f"found {account.now:%Y-%m-%dT%H:%MZ}"}
    account.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[ssh("0.0.0.0/0")])
    assert account.act("open_ports", "tag").outcomes == {"unmarked": 1}
    assert account.tags(group) == {}


def test_a_preview_says_what_would_be_done_and_changes_nothing(account: Account) -> None:
    group = account.open_group()
    with writes() as made:
        for report in (
            account.act("open_ports", "revoke", apply=False),
            account.act("open_ports", "revoke", job=account.job(dry_run=True)),
        ):
            assert report.outcomes == {"would_be_marked": 1}
            assert report.items[0].detail == f"revoke after {account.now:%Y-%m-%dT%H:%MZ}"
    assert set(made) == {"PutObject"}
    account.act("open_ports", "revoke")
    account.mail()
    with writes() as made:
        report = account.act("open_ports", "revoke", job=account.job(dry_run=True))
    assert report.outcomes == {"would_be_revoked": 1}
    (rule,) = account.outcomes(report)[group].facts["state"]["rules"]  # type: ignore[index]
    assert (rule["FromPort"], rule["CidrIpv4"]) == (22, "0.0.0.0/0")
    assert set(made) == {"PutObject"}
    assert account.ingress(group) == {("tcp", 22, 22, "0.0.0.0/0")}
    assert account.undo(report).outcomes == {}


def test_an_owner_has_the_last_word(account: Account) -> None:
    kept, rewritten, removed, postponed = (account.open_group() for _ in range(4))
    account.act("open_ports", "revoke")
    account.tag(kept, **{KEEP: ""})
    account.tag(rewritten, **{PORTS: "please do not"})
    account.ec2.delete_tags(Resources=[removed], Tags=[{"Key": PORTS}])
    account.tag(postponed, **{PORTS: "revoke after 2099-01-01T00:00Z"})
    report = account.act("open_ports", "revoke")
    outcomes = {id_: entry.outcome for id_, entry in account.outcomes(report).items()}
    assert outcomes == {kept: "kept", rewritten: "kept", removed: "marked", postponed: "waiting"}
    assert all(len(account.ingress(group)) == 1 for group in outcomes)
    assert account.tags(rewritten)[PORTS] == "please do not"


def test_the_stack_leaves_itself_alone(account: Account) -> None:
    """FAILURES 14: the cleanup stack deleted itself."""
    own = account.open_group(**{"aws:cloudformation:stack-name": "lamplighter"})
    other = account.open_group(**{"aws:cloudformation:stack-name": "shop"})
    account.act("open_ports", "revoke")
    report = account.act("open_ports", "revoke")
    outcomes = {id_: entry.outcome for id_, entry in account.outcomes(report).items()}
    assert outcomes == {own: "kept", other: "revoked"}
    assert set(account.tags(own)) == {"aws:cloudformation:stack-name"}


def test_what_is_not_to_be_stopped_is_kept_with_a_reason(account: Account) -> None:
    scaled = account.idle_instance(**{"aws:autoscaling:groupName": "web"})
    stopped = account.idle_instance()
    account.act("idle_cpu", "stop")
    account.ec2.stop_instances(InstanceIds=[stopped])
    report = account.act("idle_cpu", "stop")
    outcomes = account.outcomes(report)
    assert "Auto Scaling group web" in outcomes[scaled].facts["reason"]  # type: ignore[index]
    assert (outcomes[scaled].outcome, account.state(scaled)) == ("kept", "running")
    assert outcomes[stopped].outcome == "unmarked"


def test_an_instance_whose_type_has_disks_of_its_own_is_not_stopped(account: Account) -> None:
    """What is on an instance store does not outlive a stop, and no undo brings it back."""
    idle = account.idle_instance(type_="m5d.large")
    account.act("idle_cpu", "stop")
    report = account.act("idle_cpu", "stop")
    assert "m5d.large" in account.outcomes(report)[idle].facts["reason"]  # type: ignore[index]
    assert (report.outcomes, account.state(idle)) == ({"kept": 1}, "running")


def test_a_volume_that_is_attached_again_is_unmarked(account: Account) -> None:
    volume, instance = account.unattached_volume(), account.idle_instance()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.act("unattached_volumes", "snapshot_and_delete")
    account.ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdb")
    report = account.act("unattached_volumes", "snapshot_and_delete")
    assert report.outcomes == {"unmarked": 1}
    assert volume in account.volumes()


def test_an_old_snapshot_of_a_volume_does_not_do(account: Account) -> None:
    """In the meantime the volume may have been attached, written to and detached."""
    account.unattached_volume()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.act("unattached_volumes", "snapshot_and_delete")
    account.now += 3 * DAY
    account.sql("UPDATE lamplighter.unattached_volumes SET last_seen_at = :now", now=account.now)
    report = account.act("unattached_volumes", "snapshot_and_delete")
    assert report.outcomes == {"snapshot_started": 1}
    assert len(account.volumes()) == 1


def test_a_volume_that_was_written_to_since_its_snapshot_gets_another_one(account: Account) -> None:
    """It was attached for a while between two scans, which none of them saw."""
    volume = account.unattached_volume()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.act("unattached_volumes", "snapshot_and_delete")
    (first,) = account.snapshots()
    account.written_to(volume, account.snapshots()[first]["StartTime"])
    assert account.act("unattached_volumes", "snapshot_and_delete").outcomes == {"snapshot_started": 1}
    assert volume in account.volumes()


def test_a_volume_is_kept_while_nobody_knows_whether_it_was_written_to(account: Account) -> None:
    volume = account.unattached_volume()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.act("unattached_volumes", "snapshot_and_delete")
    with answering(
        "GetMetricData", {"MetricDataResults": [{"Id": "writes", "StatusCode": "InternalError", "Values": []}]}
    ):
        report = account.act("unattached_volumes", "snapshot_and_delete")
    assert (report.outcomes, list(account.volumes())) == ({"kept": 1}, [volume])


def test_writes_are_asked_for_up_to_the_very_moment(account: Account) -> None:
    """Not up to when the region was read, which may be a quarter of an hour ago."""
    volume = account.unattached_volume()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.act("unattached_volumes", "snapshot_and_delete")
    read = reader.read

    def read_slowly(*args: Any, **said: Any) -> Inventory:
        found = read(*args, **said)
        account.now += timedelta(minutes=10)
        account.written_to(volume, account.now - timedelta(minutes=2))
        return found

    with patch.object(reader, "read", read_slowly):
        report = account.act("unattached_volumes", "snapshot_and_delete")
    assert (report.outcomes, list(account.volumes())) == ({"snapshot_started": 1}, [volume])


def test_a_volume_that_the_recycle_bin_keeps_comes_back_itself(account: Account) -> None:
    """With what was written to it after its last snapshot, if anything was."""
    account.retain("EBS_VOLUME")
    volume = account.unattached_volume(Owner="ada")
    for _ in range(2):
        account.act("unattached_volumes", "snapshot_and_delete")
    report = account.act("unattached_volumes", "snapshot_and_delete")
    assert (report.outcomes, account.volumes()) == ({"deleted": 1}, {})
    assert account.undo(report, dry_run=True).outcomes == {"would_be_restored": 1}
    assert account.undo(report).outcomes == {"restored": 1}
    assert list(account.volumes()) == [volume]
    assert account.tags(volume) == {"Owner": "ada"}
    assert account.undo(report).outcomes == {"already_restored": 1}


def test_a_volume_that_no_scan_has_watched_of_late_is_not_deleted(account: Account) -> None:
    """C5: it may have been attached, and detached again; its time begins anew."""
    volume = account.unattached_volume()
    account.act("unattached_volumes", "snapshot_and_delete")
    account.sql("UPDATE lamplighter.unattached_volumes SET last_seen_at = :at", at=account.now - 3 * DAY)
    report = account.act("unattached_volumes", "snapshot_and_delete")
    assert (report.outcomes, list(account.volumes())) == ({"unmarked": 1}, [volume])


@pytest.mark.parametrize(
    ("check", "action", "operation"),
    [
        ("unattached_volumes", "snapshot_and_delete", "DeleteVolume"),
        ("old_snapshots", "delete_snapshot", "DeleteSnapshot"),
        ("open_ports", "revoke", "RevokeSecurityGroupIngress"),
    ],
)
def test_a_deed_whose_answer_was_lost_is_done_and_can_be_undone(
    account: Account, check: str, action: str, operation: str
) -> None:
    """botocore asks again, and is told that there is no such thing."""
    account.retain()
    make = {
        "unattached_volumes": account.unattached_volume,
        "old_snapshots": account.old_snapshot,
        "open_ports": account.open_group,
    }
    resource = make[check]()
    account.act(check, action)
    if check == "unattached_volumes":
        account.act(check, action)
    with repeating(operation):
        report = account.act(check, action)
    assert report.status == "completed"
    assert account.outcomes(report)[resource].outcome in {"deleted", "revoked"}
    assert account.undo(report).outcomes == {"restored": 1}


def test_nothing_is_acted_upon_without_a_stored_finding(account: Account) -> None:
    group = account.group(ssh("0.0.0.0/0"))
    account.found("open_ports", account.group(), status="resolved")
    report = account.act("open_ports", "revoke")
    assert report.outcomes == {"kept": 1}
    assert account.tags(group) == {}


def test_what_changes_between_the_plan_and_the_act_is_kept(account: Account) -> None:
    groups = [account.open_group() for _ in range(2)]
    account.act("open_ports", "revoke")
    job = account.job()
    revoke = {"open_ports": Remedy(action="revoke", after_days=0, apply=True)}
    first = account.attempt(job, revoke, stops={2: "out_of_time"})
    assert isinstance(first, Unfinished)
    account.ec2.authorize_security_group_ingress(GroupId=groups[0], IpPermissions=[ssh("::/0")])
    account.tag(groups[1], **{PORTS: "wait"})
    report = account.attempt(job, revoke)
    assert isinstance(report, Report)
    outcomes = {id_: (e.outcome, e.facts["reason"]) for id_, e in account.outcomes(report).items()}  # type: ignore
    assert outcomes[groups[0]] == ("kept", "It has changed since the plan was made.")
    assert outcomes[groups[1]][0] == "kept"
    assert [len(account.ingress(group)) for group in groups] == [2, 1]


@contextmanager
def right_before(operation: str, happens: Callable[[], None]) -> Iterator[None]:
    """Something happens once, right after AWS has answered the last reading call before an operation is due."""
    call: Callable[..., Any] = BaseClient._make_api_call  # type: ignore[attr-defined]
    asked = Counter[str]()

    def counted(client: Any, name: str, request: Any) -> Any:
        asked[name] += 1
        if asked[operation] == 1 and name == operation:
            happens()
        return call(client, name, request)

    with patch.object(BaseClient, "_make_api_call", counted):
        yield


@pytest.mark.parametrize(
    "written", [{KEEP: ""}, {"aws:cloudformation:stack-name": "lamplighter"}, {PORTS: "please wait"}]
)
def test_a_keep_tag_that_comes_right_before_the_act_is_heard(account: Account, written: dict[str, str]) -> None:
    """After the region was read once more: the tags are asked for at the very end."""
    group = account.open_group()
    account.act("open_ports", "revoke")
    job, revoke = account.job(), {"open_ports": Remedy(action="revoke", after_days=0, apply=True)}
    with right_before("DescribeTags", lambda: account.tag(group, **written)):
        report = account.attempt(job, revoke)
    assert isinstance(report, Report)
    assert (report.outcomes, account.ingress(group)) == ({"kept": 1}, {("tcp", 22, 22, "0.0.0.0/0")})


def test_a_finding_that_is_resolved_between_the_plan_and_the_act_protects(account: Account) -> None:
    """Its decision is then to keep it, and not that it is in order."""
    group = account.open_group()
    account.act("open_ports", "revoke")
    report = account.act(
        "open_ports", "revoke", once_planned=lambda: account.sql("UPDATE lamplighter.findings SET status = 'resolved'")
    )
    assert (report.outcomes, len(account.ingress(group))) == ({"kept": 1}, 1)


def test_rules_of_the_way_out_are_left_alone(account: Account) -> None:
    """One agrees with the finding in protocol, ports and range."""
    group = account.open_group()
    account.ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[ssh("0.0.0.0/0")])
    account.act("open_ports", "revoke")
    report = account.act("open_ports", "revoke")
    (rule,) = account.outcomes(report)[group].facts["state"]["rules"]  # type: ignore[index]
    there = account.ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    left = {one["SecurityGroupRuleId"]: one["IsEgress"] for one in there["SecurityGroupRules"]}
    assert report.outcomes == {"revoked": 1}
    assert rule["SecurityGroupRuleId"] not in left
    assert list(left.values()) == [True, True], "the way out that every group has, and the one for SSH"


def test_a_mark_that_is_rewritten_right_before_stays(account: Account) -> None:
    """Its owner wrote into it after the plan."""
    group = account.open_group(**{PORTS: "found 2026-01-01T00:00Z"})
    report = account.act("open_ports", "revoke", once_planned=lambda: account.tag(group, **{PORTS: "please wait"}))
    assert (report.outcomes, account.tags(group)) == ({"kept": 1}, {PORTS: "please wait"})


def test_a_volume_that_is_attached_between_the_plan_and_the_act_is_kept(account: Account) -> None:
    volume, instance = account.unattached_volume(), account.idle_instance()
    account.act("unattached_volumes", "snapshot_and_delete")

    def attach() -> None:
        account.ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdb")

    with right_before("DescribeTags", attach):
        report = account.act("unattached_volumes", "snapshot_and_delete")
    assert report.outcomes == {"kept": 1}
    assert volume not in {snapshot["VolumeId"] for snapshot in account.snapshots().values()}


@pytest.mark.parametrize("theirs", [{PORTS: "ours now"}, {KEEP: ""}])
def test_undo_leaves_a_mark_that_somebody_rewrote(account: Account, theirs: dict[str, str]) -> None:
    group = account.open_group()
    report = account.act("open_ports", "revoke")
    account.tag(group, **theirs)
    before = account.tags(group)
    assert account.undo(report).outcomes == {"changed_since": 1}
    assert account.tags(group) == before


def test_what_goes_away_before_it_is_marked_is_no_failure(account: Account) -> None:
    volume = account.unattached_volume()
    report = account.act(
        "unattached_volumes",
        "snapshot_and_delete",
        once_planned=lambda: account.ec2.delete_volume(VolumeId=volume),
    )
    assert (report.status, report.outcomes) == ("completed", {"already_gone": 1})


@pytest.mark.parametrize(
    "now_set",
    [{}, {"open_ports": Remedy(action="tag", apply=True)}, {"open_ports": Remedy(action="revoke", after_days=0)}],
    ids=["gone", "another", "preview"],
)
def test_a_remedy_that_is_taken_back_while_a_run_is_under_way_is_not_applied(
    account: Account, now_set: dict[str, Remedy]
) -> None:
    group = account.open_group()
    account.act("open_ports", "revoke")
    job = account.job()
    before = {"open_ports": Remedy(action="revoke", after_days=0, apply=True)}
    assert isinstance(account.attempt(job, before, stops={2: "out_of_time"}), Unfinished)
    report = account.attempt(job, {"missing_tags": Remedy(action="tag")} | now_set)
    assert isinstance(report, Report)
    assert set(report.outcomes) <= {"kept", "would_be_revoked"}
    assert len(account.ingress(group)) == 1


def test_an_exception_protects_and_a_bad_document_protects_everything(account: Account) -> None:
    excepted, other = account.open_group(), account.open_group()
    account.act("open_ports", "revoke")
    entry = {
        "check": "open_ports",
        "resource": excepted,
        "reason": "The bastion",
        "owner": "ada",
        "expires": "2099-01-01",
    }
    put = {"Bucket": account.archive, "Key": "cloud/exceptions.json"}
    account.s3.put_object(**put, Body=json.dumps({"exceptions": [entry | {"expires": "soon"}]}))
    with writes() as made:
        bad = account.act("open_ports", "revoke")
    assert (bad.status, bad.outcomes, made) == ("completed_with_errors", {}, [])
    assert "expires" in bad.errors[0]

    account.s3.put_object(**put, Body=json.dumps({"exceptions": [entry]}))
    report = account.act("open_ports", "revoke")
    outcomes = {id_: entry.outcome for id_, entry in account.outcomes(report).items()}
    assert outcomes == {excepted: "unmarked", other: "revoked"}


def test_an_exception_that_is_made_while_a_run_is_under_way_protects(account: Account) -> None:
    group = account.open_group()
    account.act("open_ports", "revoke")
    entry = {"check": "open_ports", "resource": group, "reason": "The bastion", "owner": "ada", "expires": "2099-01-01"}

    def excepted() -> None:
        body = json.dumps({"exceptions": [entry]})
        account.s3.put_object(Bucket=account.archive, Key="cloud/exceptions.json", Body=body)

    report = account.act("open_ports", "revoke", once_planned=excepted)
    assert (report.outcomes, len(account.ingress(group))) == ({"kept": 1}, 1)


def test_nothing_is_marked_that_nobody_can_be_told_of(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """C13: its owner would have learnt of it when it was gone."""
    group = account.open_group()
    monkeypatch.setenv("ALERTS_TOPIC_ARN", account.topic + "-gone")
    with pytest.raises(ClientError, match="NotFound"):
        account.act("open_ports", "revoke")
    assert account.tags(group) == {}


def test_what_is_kept_takes_nobodys_turn(account: Account) -> None:
    """The oldest marks come first: were they counted, those that are kept for ever would stop all others for ever."""
    scaled = [account.idle_instance(**{"aws:autoscaling:groupName": "web"}) for _ in range(2)]
    account.act("idle_cpu", "stop")
    account.now += timedelta(minutes=1)
    idle = account.idle_instance()
    account.act("idle_cpu", "stop", max_actions=1)
    report = account.act("idle_cpu", "stop", max_actions=1)
    assert report.outcomes == {"kept": 2, "stopped": 1}
    assert [account.state(one) for one in (*scaled, idle)] == ["running", "running", "stopped"]


def test_one_failure_stops_nothing_else(account: Account) -> None:
    """K11."""
    instances = [account.idle_instance() for _ in range(3)]
    account.act("idle_cpu", "stop")
    account.ec2.modify_instance_attribute(InstanceId=instances[1], DisableApiStop={"Value": True})
    report = account.act("idle_cpu", "stop")
    assert report.status == "completed_with_errors"
    assert report.outcomes == {"stopped": 2, "failed": 1}


def test_a_database_that_goes_away_fails_the_run_and_no_region(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B10: the ledger tries again; a failure of each resource would be the last word on it."""
    group = account.open_group()

    def gone(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable("The database went away.")

    account.act("open_ports", "revoke")
    looked = findings.open_since
    for answers in ([gone], [looked, gone]):
        monkeypatch.setattr(findings, "open_since", lambda *a, left=list(answers), **k: left.pop(0)(*a, **k))
        with pytest.raises(DatabaseUnavailable):
            account.act("open_ports", "revoke")
    assert len(account.ingress(group)) == 1


def test_findings_that_cannot_be_read_are_acted_upon_by_nobody(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: without a database the bucket has them, or what it has is broken."""
    group, key = account.open_group(), f"findings/regions/{account.account}/us-east-1.json.gz"
    monkeypatch.delenv("DATABASE_URL")
    account.act("open_ports", "revoke")
    assert len(account.ingress(group)) == 1, "the bucket knows of no finding"
    account.s3.put_object(Bucket=account.archive, Key=key, Body=b"broken")
    with pytest.raises(Permanent, match=f"{key} is not what Lamplighter wrote there"):
        account.act("open_ports", "revoke")
    assert len(account.ingress(group)) == 1


def test_a_run_that_finds_nothing_to_do_leaves_nothing_behind(account: Account) -> None:
    group = account.open_group()
    account.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[ssh("0.0.0.0/0")])
    with writes() as made:
        report = account.act("open_ports", "revoke")
    assert (report.status, report.outcomes, report.manifest, made) == ("completed", {}, None, [])


def test_too_many_at_once_are_refused(account: Account) -> None:
    groups = [account.open_group() for _ in range(FEW + 1)]
    report = account.act("open_ports", "revoke")
    assert report.status == "completed_with_errors"
    assert report.outcomes == {"refused": FEW + 1}
    assert "max_share" in report.errors[0]
    assert account.tags(groups[0]) == {}
    assert account.act("open_ports", "revoke", max_share=1).outcomes == {"marked": FEW + 1}


def test_a_run_acts_upon_no_more_than_it_may(account: Account) -> None:
    groups = [account.open_group() for _ in range(3)]
    account.act("open_ports", "revoke")
    report = account.act("open_ports", "revoke", max_actions=2)
    assert report.outcomes == {"revoked": 2, "waiting": 1}
    (waits,) = [entry for entry in account.outcomes(report).values() if entry.outcome == "waiting"]
    assert waits.facts["reason"].startswith("A run acts upon 2 and")  # type: ignore[index]
    assert sum(len(account.ingress(group)) for group in groups) == 1


def test_a_run_looks_at_no_more_than_it_may(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes some calls, also at what is kept then."""
    monkeypatch.setattr(cloud_actions, "LOOKS", 2)
    for _ in range(3):
        account.idle_instance(**{"aws:autoscaling:groupName": "web"})
    account.act("idle_cpu", "stop")
    assert account.act("idle_cpu", "stop").outcomes == {"kept": 2, "waiting": 1}


def test_the_notice_names_as_many_as_a_message_takes_and_counts_the_others(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {account.open_group() for _ in range(3)}
    account.act("open_ports", "tag")
    (whole,) = account.mail()
    assert all(group in whole for group in groups)
    assert "which the manifest names" not in whole

    monkeypatch.setattr(cloud_actions, "TOLD", 2)
    account.ec2.delete_tags(Resources=sorted(groups), Tags=[{"Key": PORTS}])
    account.act("open_ports", "tag")
    (shortened,) = account.mail()
    assert sum(group in shortened for group in groups) == 2
    assert "and 1 more, which the manifest names" in shortened


def test_a_region_that_cannot_be_read_is_told_of_and_the_others_go_on(account: Account) -> None:
    group = account.open_group()
    columns = "region, check_id, resource_id, resource_type, kind, title, severity, confidence, status, first_seen_at"
    account.sql(
        f"INSERT INTO lamplighter.findings (account_id, {columns}, last_seen_at, job_id)"
        f" SELECT '999999999999', {columns}, last_seen_at, job_id FROM lamplighter.findings"
    )
    targets = [
        {"accounts": [account.account], "regions": [REGION]},
        {"accounts": ["999999999999"], "regions": [REGION], "role": "nobody"},
    ]
    report = account.act("open_ports", "revoke", cloud_targets=targets)
    assert report.outcomes == {"marked": 1}
    assert account.tags(group)
    assert report.status == "completed_with_errors"
    assert "999999999999" in report.errors[0]


def test_findings_of_an_account_that_is_a_target_no_more_are_not_acted_upon_in_our_own(account: Account) -> None:
    """Its role is not named any more: the function's own would mark, and mend, what is ours."""
    group = account.open_group()
    account.sql("UPDATE lamplighter.findings SET account_id = '999999999999'")
    report = account.act("open_ports", "revoke")
    assert (report.outcomes, account.tags(group)) == ({}, {})


@pytest.mark.parametrize(
    ("check", "remedy", "sentence"),
    [
        ("idle_cpu", Remedy(action="revoke"), "cloud.remedies.idle_cpu.action: takes tag or stop, not revoke."),
        ("log_groups_without_retention", Remedy(action="tag"), "cloud.remedies.log_groups_without_retention: nothing"),
        ("missing_tags", Remedy(action="add_tags"), "cloud.remedies.missing_tags.values: takes what some of the"),
        ("missing_tags", Remedy(action="add_tags", values={"Team": "x"}), "cloud.remedies.missing_tags.values"),
        ("idle_cpu", Remedy(action="tag", values={"a": "b"}), "cloud.remedies.idle_cpu.values: only add_tags"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_touched(
    account: Account, check: str, remedy: Remedy, sentence: str
) -> None:
    group = account.open_group()
    with pytest.raises(Permanent, match=sentence):
        account.attempt(account.job(), {"open_ports": Remedy(action="tag", apply=True), check: remedy})
    assert account.tags(group) == {}


def test_a_scan_acts_upon_its_own_checks_only(account: Account) -> None:
    account.open_group()
    assert account.act("open_ports", "revoke", job=account.job(job_type="waste_scan")).outcomes == {}
    assert account.act("open_ports", "revoke", job=account.job(job_type="security_enforcement")).outcomes == {
        "marked": 1
    }


def test_a_cancelled_run_says_what_it_has_done(account: Account) -> None:
    """K7: within one batch."""
    groups = [account.open_group() for _ in range(BATCH + 5)]
    revoke = {"open_ports": Remedy(action="tag", apply=True, max_share=1)}
    report = account.attempt(account.job(), revoke, stops={3: "cancelled"})
    assert isinstance(report, Report)
    assert report.outcomes == {"marked": BATCH}
    assert sum(bool(account.tags(group)) for group in groups) == BATCH


def test_a_run_says_how_far_it_has_come(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """K7: the plan is the first half, and 100 is left to its end."""
    for _ in range(BATCH + 5):
        account.open_group()
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(ScriptedRun, "progress", lambda _, percent, message: told.append((percent, message)))
    account.act("open_ports", "tag", max_share=1)
    assert [percent for percent, _ in told] == [0, 74, 99]
    assert told[0][1] == f"reading {REGION} of {account.account}"


def test_a_run_that_is_out_of_time_goes_on_where_it_was(account: Account) -> None:
    """K8: while it plans, and while it acts."""
    for _ in range(BATCH + 5):
        account.open_group()
    mark, job = {"open_ports": Remedy(action="tag", apply=True, max_share=1)}, account.job()
    planning = account.attempt(job, mark, stops={1: "out_of_time"})
    assert isinstance(planning, Unfinished)
    job = account.job(job.job_id, checkpoint=planning.checkpoint)
    acting = account.attempt(job, mark, stops={3: "out_of_time"})
    assert isinstance(acting, Unfinished)
    with writes() as made:
        report = account.attempt(account.job(job.job_id, checkpoint=acting.checkpoint), mark)
    assert isinstance(report, Report)
    assert report.outcomes == {"marked": BATCH + 5}
    assert made.count("CreateTags") == 5
    assert len(account.outcomes(report)) == BATCH + 5


# -- the ramp --------------------------------------------------------------------------------------------------------


def marked_groups(account: Account, count: int, **said: Any) -> list[str]:
    groups = [account.open_group() for _ in range(count)]
    account.act("open_ports", "revoke", max_share=1, **said)
    return groups


def closed(account: Account, groups: list[str]) -> int:
    return sum(not account.ingress(group) for group in groups)


def test_the_first_run_acts_upon_three_resources_and_the_next_days_run_upon_more(account: Account) -> None:
    """S3, and what is held back is counted; marks are not limited."""
    groups = marked_groups(account, 6)
    preview = account.act("open_ports", "revoke", max_share=1, job=account.job(dry_run=True))
    assert (preview.outcomes, preview.held_by_ramp) == ({"would_be_revoked": 3, "waiting": 3}, 3)

    first = account.act("open_ports", "revoke", max_share=1)
    assert (first.outcomes, first.held_by_ramp) == ({"revoked": 3, "waiting": 3}, 3)
    held = [entry for entry in account.outcomes(first).values() if entry.outcome == "waiting"]
    assert all("first runs" in (entry.facts or {})["reason"] for entry in held)
    account.now += DAY / 2
    groups += [account.open_group() for _ in range(4)]
    same_day = account.act("open_ports", "revoke", max_share=1)
    assert (same_day.outcomes["revoked"], same_day.outcomes["marked"]) == (3, 4)
    account.now += DAY / 2
    next_day = account.act("open_ports", "revoke", max_share=1)
    assert (next_day.outcomes["revoked"], next_day.held_by_ramp) == (4, 0)
    assert closed(account, groups) == len(groups) == 10


def test_the_ramp_is_lifted_by_the_setting_and_max_actions_is_its_ceiling(account: Account) -> None:
    marked_groups(account, 6)

    report = account.act("open_ports", "revoke", max_share=1, ramp=False, max_actions=5)

    assert (report.outcomes, report.held_by_ramp) == ({"revoked": 5, "waiting": 1}, 0)


def test_an_undo_starts_the_ramp_again(account: Account) -> None:
    marked_groups(account, 4)
    first = account.act("open_ports", "revoke", max_share=1)
    assert account.undo(first, dry_run=True).outcomes == {"would_be_restored": 3}
    account.now += 2 * DAY
    again = account.act("open_ports", "revoke", max_share=1, job=account.job(dry_run=True))
    assert again.held_by_ramp == 0

    assert account.undo(first).outcomes == {"restored": 3}

    account.act("open_ports", "revoke", max_share=1)
    account.now += DAY
    assert account.act("open_ports", "revoke", max_share=1).outcomes["revoked"] == 3


def test_what_was_earned_with_another_action_does_not_count(account: Account, trust: MemoryTable) -> None:
    marked_groups(account, 4)
    other = ramp.Trust(definition="another action", limit=3_000, since=account.now)
    trust.write(ramp.of_check("open_ports", account.account), other, version=None)

    assert account.act("open_ports", "revoke", max_share=1).outcomes == {"revoked": 3, "waiting": 1}


def test_an_undo_by_job_takes_the_manifest_that_the_row_names_and_no_altered_one(account: Account) -> None:
    groups = marked_groups(account, 1)
    running = account.ledger.start(account.ledger.new_job("security_enforcement", Policy(timeout=DAY)))
    report = account.act("open_ports", "revoke", job=account.job(running.job_id, job_type="security_enforcement"))
    account.ledger.complete(running, {"phases": {"actions": report.model_dump(mode="json")}})
    assert account.undo(running.job_id, dry_run=True).outcomes == {"would_be_restored": 1}

    assert report.manifest
    account.s3.put_object(Bucket=account.archive, Key=report.manifest.key, Body=b"{}")
    with pytest.raises(Permanent, match=f"{report.manifest.key} is not what was written"):
        account.undo(running.job_id)
    assert closed(account, groups) == 1


@pytest.mark.parametrize("dry_run", [True, False], ids=["of one run", "by the settings"])
def test_a_preview_neither_earns_nor_loses_trust(account: Account, trust: MemoryTable, dry_run: bool) -> None:
    """What was earned with another action is lost only once the new one is applied."""
    marked_groups(account, 1)
    earned = ramp.Trust(definition="another action", limit=3_000, since=account.now, acted_at=account.now)
    scope = ramp.of_check("open_ports", account.account)
    trust.write(scope, earned, version=None)

    account.act("open_ports", "revoke", job=account.job(dry_run=dry_run), apply=dry_run)

    assert trust.read(scope).trust == earned


@pytest.mark.parametrize("dies_after", [1, 2, 3])
def test_a_run_that_died_and_is_tried_again_has_one_allowance(account: Account, dies_after: int) -> None:
    groups = marked_groups(account, 6)
    job = account.job()
    with writes(dies_after=dies_after), pytest.raises(Died):
        account.act("open_ports", "revoke", max_share=1, job=job)

    report = account.act("open_ports", "revoke", max_share=1, job=job)

    assert closed(account, groups) == report.outcomes["revoked"] == 3
