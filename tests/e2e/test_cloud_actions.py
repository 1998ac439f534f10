"""Findings acted upon in the deployed stack, in its own account and by a member's role: marked, told of, mended, taken
back (REQUIREMENTS C13, K9, K11)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from lamplighter.kernel.ledger.ledger import utc_now
from local.cloud import BORN, EXTERNAL_ID, HOME, MEMBER, REGIONS, ROLE
from local.signed import Api
from tests.e2e.deployed import Deployed, Machine, Mailbox, eventually
from tests.e2e.test_permissions import as_function

PORTS = "lamplighter:open_ports"
EVERYBODY = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
OFFICE = EVERYBODY | {"IpRanges": [{"CidrIp": "203.0.113.0/24"}]}
PLACES = ((HOME, REGIONS[0]), (MEMBER, REGIONS[1]))
WASTE = {"idle_cpu": "stop", "unattached_volumes": "snapshot_and_delete", "old_snapshots": "delete_snapshot"}
"""Actions by check."""
TARGETS = [
    {"accounts": [HOME], "regions": [REGIONS[0]]},
    {"accounts": [MEMBER], "regions": [REGIONS[1]], "role": ROLE, "external_id": EXTERNAL_ID},
]


def owner(stack: Deployed, place: tuple[str, str], service: str) -> Any:
    """A client as an account's owner has it."""
    account, region = place
    keys = {"aws_access_key_id": account, "aws_secret_access_key": "test"}
    return boto3.client(service, region_name=region, endpoint_url=stack.aws.endpoint_url, **keys)


def ec2(stack: Deployed, place: tuple[str, str]) -> Any:
    """EC2 as an account's owner has it."""
    return owner(stack, place, "ec2")


def tag(stack: Deployed, place: tuple[str, str], resource: str, **tags: str) -> None:
    """Write tags, as an owner does."""
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    ec2(stack, place).create_tags(Resources=[resource], Tags=listed)


def ingress(stack: Deployed, place: tuple[str, str], group: str) -> set[str]:
    """The ranges that a group lets in."""
    rules = ec2(stack, place).describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    return {rule["CidrIpv4"] for rule in rules["SecurityGroupRules"] if not rule["IsEgress"]}


def tags(stack: Deployed, place: tuple[str, str], resource: str) -> dict[str, str]:
    """Of a resource."""
    found = ec2(stack, place).describe_tags(Filters=[{"Name": "resource-id", "Values": [resource]}])["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


@pytest.fixture
def groups(stack: Deployed) -> Iterator[dict[tuple[str, str], str]]:
    """A security group in each account that lets in everybody, and the office."""
    made = {}
    for place in PLACES:
        client = ec2(stack, place)
        group = client.create_security_group(GroupName="e2e-actions", Description="test")["GroupId"]
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=[EVERYBODY, OFFICE])
        made[place] = group
    yield made
    for place, group in made.items():
        ec2(stack, place).delete_security_group(GroupId=group)


@pytest.fixture
def machine(stack: Deployed) -> Machine:
    """The state machine, whose findings are forgotten."""
    tables = ("findings", "judged_checks", "unjudged", "unattached_volumes", "cloud_reports")
    stack.sql(f"TRUNCATE {', '.join(f'lamplighter.{table}' for table in tables)}")
    return Machine(stack, "cloud", ["security_enforcement"])


@contextmanager
def remedied(stack: Deployed, **remedies: Any) -> Iterator[None]:
    """The functions of the scans have these remedies."""
    told = {"LAMPLIGHTER_CLOUD_TARGETS": json.dumps(TARGETS), "LAMPLIGHTER_CLOUD_REMEDIES": json.dumps(remedies)}
    with ExitStack() as overridden:
        for function in ("cloud-scan", "cloud-region", "cloud-actions", "cloud-undo"):
            overridden.enter_context(stack.overriding(function, **told))
        yield


def outcomes(stack: Deployed, output: Any) -> dict[str, str]:
    """What a run made of each resource."""
    told = stack.outcomes(output["phases"]["actions"]["manifest"])
    return {key.split("/", 3)[3]: entry.outcome for key, entry in told.items()}


def test_what_is_previewed_is_marked_then_mended_and_can_be_undone(
    stack: Deployed, machine: Machine, groups: dict[tuple[str, str], str], alerts: Mailbox
) -> None:
    revoke: dict[str, Any] = {"action": "revoke", "after_days": 0, "max_share": 1, "ramp": False}
    both, office = {"0.0.0.0/0", "203.0.113.0/24"}, {"203.0.113.0/24"}
    with remedied(stack, open_ports=revoke):
        previewed = machine.run()
        found = outcomes(stack, previewed)
        assert {found[group] for group in groups.values()} == {"would_be_marked"}
        assert all(PORTS not in tags(stack, *one) for one in groups.items())
    with remedied(stack, open_ports=revoke | {"apply": True}):
        marked = machine.run()
        assert marked["status"] == "completed"
        assert set(outcomes(stack, marked)) == set(found)
        for place, group in groups.items():
            assert tags(stack, place, group)[PORTS].startswith("revoke after 20")
            assert ingress(stack, place, group) == both
        (told,) = eventually(lambda: alerts.about(groups[PLACES[0]]))
        assert groups[PLACES[1]] in told

        kept = groups[PLACES[0]]
        ec2(stack, PLACES[0]).create_tags(Resources=[kept], Tags=[{"Key": "lamplighter:keep", "Value": ""}])
        mended = machine.run()
        assert outcomes(stack, mended) == dict.fromkeys(found, "revoked") | {kept: "kept"}
        assert ingress(stack, PLACES[0], kept) == both
        assert ingress(stack, PLACES[1], groups[PLACES[1]]) == office

        job = {"job_id": mended["job_id"]}
        assert stack.invoke("cloud-undo", job)["outcomes"] == {"would_be_restored": len(found) - 1}
        assert ingress(stack, PLACES[1], groups[PLACES[1]]) == office
        ordered = Api(stack.api_url).post("/api/undo", job | {"dry_run": False})
        assert ordered.status_code == 202, ordered.text
        undone = stack.becomes(ordered.json()["job_id"], "completed").result or {}
        assert (undone["status"], undone["outcomes"]) == ("completed", {"restored": len(found) - 1})
        assert ingress(stack, PLACES[1], groups[PLACES[1]]) == both
        assert PORTS not in tags(stack, PLACES[1], groups[PLACES[1]])
        again = stack.invoke("cloud-undo", job | {"dry_run": False})
        assert again["outcomes"] == {"already_restored": len(found) - 1}


class Waste:
    """Resources of a test's own that have long been idle, unattached or unused, and what becomes of them."""

    def __init__(self, stack: Deployed) -> None:
        self._stack = stack
        self.ids = set[str]()

    def instance(self, place: tuple[str, str]) -> str:
        """One that runs and has nothing to do."""
        client = ec2(self._stack, place)
        image = client.describe_images(Owners=["self"])["Images"][0]["ImageId"]
        [made] = client.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="t3.micro")["Instances"]
        idle = {"MetricName": "CPUUtilization", "Dimensions": [{"Name": "InstanceId", "Value": made["InstanceId"]}]}
        data = [idle | {"Timestamp": utc_now() - timedelta(hours=6 * part), "Value": 1.0} for part in range(30)]
        owner(self._stack, place, "cloudwatch").put_metric_data(Namespace="AWS/EC2", MetricData=data)
        return self._old(place, made["InstanceId"])

    def volume(self, place: tuple[str, str], **tags: str) -> str:
        """One that scans have seen unattached for a month."""
        settings = {"AvailabilityZone": f"{place[1]}a", "Size": 7, "VolumeType": "gp3", "Encrypted": True}
        made = self._old(place, ec2(self._stack, place).create_volume(**settings)["VolumeId"], **tags)
        self._stack.sql(
            "INSERT INTO lamplighter.unattached_volumes"
            " VALUES (:account, :region, :id, now() - interval '30 days', now())",
            account=place[0],
            region=place[1],
            id=made,
        )
        return made

    def snapshot(self, place: tuple[str, str], **tags: str) -> str:
        """One that nothing uses."""
        client = ec2(self._stack, place)
        volume = client.create_volume(AvailabilityZone=f"{place[1]}a", Size=1)["VolumeId"]
        made = client.create_snapshot(VolumeId=volume)["SnapshotId"]
        client.delete_volume(VolumeId=volume)
        return self._old(place, made, **tags)

    def there(self) -> dict[str, str]:
        """The states of those that there are."""
        found = (one for place in PLACES for one in self._found(place))
        return {id_: state for id_, state, _ in found if id_ in self.ids}

    def made_from(self, volume: str, place: tuple[str, str]) -> list[Any]:
        """What undo made of a volume that was deleted."""
        named = [{"Name": "tag:lamplighter:restored-from", "Values": [volume]}]
        return list(ec2(self._stack, place).describe_volumes(Filters=named)["Volumes"])

    def clear(self) -> None:
        """Remove all of it, and what has come of it."""
        for place in PLACES:
            client = ec2(self._stack, place)
            for id_, _, tagged in self._found(place):
                if id_ not in self.ids and not self.ids & set(tagged.values()):
                    continue
                if id_.startswith("i-"):
                    client.terminate_instances(InstanceIds=[id_])
                elif id_.startswith("snap-"):
                    client.delete_snapshot(SnapshotId=id_)
                else:
                    for attachment in client.describe_volumes(VolumeIds=[id_])["Volumes"][0]["Attachments"]:
                        client.detach_volume(VolumeId=id_, InstanceId=attachment["InstanceId"])
                    client.delete_volume(VolumeId=id_)

    def _old(self, place: tuple[str, str], made: str, **tags: str) -> str:
        said = {BORN: (utc_now() - timedelta(days=200)).isoformat()} | tags
        tag(self._stack, place, made, **said)
        self.ids.add(made)
        return made

    def _found(self, place: tuple[str, str]) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Everything of these kinds: its id, state and tags; volumes before the instances that they are attached to."""
        client = ec2(self._stack, place)
        instances = [one for each in client.describe_instances()["Reservations"] for one in each["Instances"]]
        for kind, found in (
            ("Volume", client.describe_volumes()["Volumes"]),
            ("Instance", [one | {"State": one["State"]["Name"]} for one in instances]),
            ("Snapshot", client.describe_snapshots(OwnerIds=["self"])["Snapshots"]),
        ):
            for one in found:
                yield one[f"{kind}Id"], one["State"], {each["Key"]: each["Value"] for each in one.get("Tags", ())}


@pytest.fixture
def waste(stack: Deployed, machine: Machine) -> Iterator[Waste]:
    """Nothing yet. What the demo accounts hold is excepted: other tests look for it. A snapshot that is tagged `binned`
    goes into the Recycle Bin when it is deleted."""
    found = {(check, one.resource_id) for one in stack.aws.planted() for check in one.found if check in WASTE}
    said = {"reason": "The demo's", "owner": "ada", "expires": "2999-12-31"}
    exceptions = [{"check": check, "resource": resource} | said for check, resource in sorted(found)]
    document = {"Bucket": stack.archive, "Key": "cloud/exceptions.json"}
    stack.client("s3").put_object(**document, Body=json.dumps({"exceptions": exceptions}))
    bins = [owner(stack, place, "rbin") for place in PLACES]
    rule = {
        "ResourceType": "EBS_SNAPSHOT",
        "ResourceTags": [{"ResourceTagKey": "binned", "ResourceTagValue": "yes"}],
        "RetentionPeriod": {"RetentionPeriodValue": 7, "RetentionPeriodUnit": "DAYS"},
    }
    rules = [(bin_, bin_.create_rule(**rule)["Identifier"]) for bin_ in bins]
    waste = Waste(stack)
    yield waste
    waste.clear()
    for bin_, id_ in rules:
        bin_.delete_rule(Identifier=id_)
    stack.client("s3").delete_object(**document)


def test_waste_is_stopped_and_deleted_after_its_days_and_brought_back(
    stack: Deployed, machine: Machine, waste: Waste, alerts: Mailbox
) -> None:
    """C13, K9, K11, FAILURES 14: in the own account and by a member's role."""
    home, member = PLACES
    instances = {waste.instance(place): place for place in PLACES}
    volumes = {waste.volume(place): place for place in PLACES}
    snapshots = {waste.snapshot(place, binned="yes"): place for place in PLACES}
    attached, used, unprotected = waste.volume(home), waste.snapshot(member, binned="yes"), waste.snapshot(home)
    offending = {**instances, **volumes, **snapshots, attached: home, used: member, unprotected: home}
    keep, own = {"lamplighter:keep": ""}, {"aws:cloudformation:stack-name": stack.name}
    kept = {waste.volume(home, **keep), waste.volume(home, **own), waste.snapshot(member, binned="yes", **keep)}
    at_first = waste.there()

    def told(output: Any) -> dict[str, str]:
        """What becomes of all that is not kept; what the demo accounts hold is."""
        found = outcomes(stack, output)
        assert kept <= found.keys()
        return {id_: outcome for id_, outcome in found.items() if outcome != "kept"}

    def foreseen() -> dict[str, str]:
        report = stack.invoke("cloud-actions", {"phase": "actions", "dry_run": True})
        return {id_: one.removeprefix("would_be_") for id_, one in told({"phases": {"actions": report}}).items()}

    def act() -> tuple[str, dict[str, str]]:
        output = machine.run(job_type="waste_scan", phases=["actions"])
        return output["job_id"], told(output)

    def marks(id_: str) -> dict[str, str]:
        there = tags(stack, offending[id_], id_)
        return {key: value for key, value in there.items() if key.removeprefix("lamplighter:") in WASTE}

    def undo(job_id: str) -> dict[str, int]:
        assert stack.invoke("cloud-undo", {"job_id": job_id})["outcomes"].keys() == {"would_be_restored"}
        ordered = Api(stack.api_url).post("/api/undo", {"job_id": job_id, "dry_run": False})
        result = stack.becomes(ordered.json()["job_id"], "completed").result or {}
        return dict(result["outcomes"])

    remedies = {
        check: {"action": action, "max_share": 1, "apply": True, "ramp": False} for check, action in WASTE.items()
    }
    with remedied(stack, **remedies):
        machine.run(job_type="waste_scan", phases=["regions"])
        assert foreseen() == dict.fromkeys(offending, "marked")
        assert not any(map(marks, offending))
        assert act()[1] == dict.fromkeys(offending, "marked")
        [message] = eventually(lambda: alerts.about(unprotected))
        assert all(id_ in message for id_ in offending)

        for id_, place in offending.items():  # who may write tags may write a mark that is due: our records may not be
            [(key, written)] = marks(id_).items()
            tag(stack, place, id_, **{key: f"{written.split()[0]} after 2020-01-01T00:00Z"})
        assert foreseen() == dict.fromkeys(offending, "waiting")

        stack.sql("UPDATE lamplighter.findings SET first_seen_at = first_seen_at - interval '8 days'")
        ec2(stack, home).attach_volume(VolumeId=attached, InstanceId=next(iter(instances)), Device="/dev/sdz")
        devices = [{"DeviceName": "/dev/sdz", "Ebs": {"SnapshotId": used}}]
        template = {"LaunchTemplateName": "e2e-actions", "LaunchTemplateData": {"BlockDeviceMappings": devices}}
        ec2(stack, member).create_launch_template(**template)
        now = {
            **dict.fromkeys(instances, "stopped"),
            **dict.fromkeys(volumes, "snapshot_started"),
            **dict.fromkeys(snapshots, "deleted"),
            **dict.fromkeys([attached, used], "unmarked"),
        }
        try:
            assert foreseen() == now
            assert waste.there() == at_first | {attached: "in-use"}
            first, acted = act()
            assert acted == now
            second, acted = act()
            assert acted == dict.fromkeys(volumes, "deleted") | dict.fromkeys(instances, "unmarked")
        finally:
            ec2(stack, member).delete_launch_template(LaunchTemplateName="e2e-actions")
        left = {id_: state for id_, state in at_first.items() if id_ not in volumes} | {attached: "in-use"}
        stopped = {id_: state for id_, state in left.items() if id_ not in snapshots} | dict.fromkeys(
            instances, "stopped"
        )
        assert waste.there() == stopped

        assert undo(second) == {"restored": len(volumes)}
        assert undo(first) == {"restored": len(instances) + len(snapshots)}
    assert waste.there() == left
    for volume, place in volumes.items():
        [again] = waste.made_from(volume, place)
        assert (again["Size"], again["VolumeType"], again["Encrypted"]) == (7, "gp3", True)
        assert again["SnapshotId"]
    assert not any(map(marks, [*instances, *snapshots, attached, used]))


def test_missing_tags_are_added_and_taken_away_again(stack: Deployed, machine: Machine) -> None:
    """C12, C13, in the own account and by a member's role."""
    values = {"Owner": "nobody", "Environment": "unknown", "CostCenter": "none"}
    act_at_once = {"after_days": 0, "max_share": 1, "apply": True, "ramp": False}
    remedy = {"action": "add_tags", "values": values} | act_at_once
    owned = [{"ResourceType": "volume", "Tags": [{"Key": "Owner", "Value": "ada"}]}]
    made = {}
    for place in PLACES:
        settings = {"AvailabilityZone": f"{place[1]}a", "Size": 1, "Encrypted": True, "TagSpecifications": owned}
        made[place] = ec2(stack, place).create_volume(**settings)["VolumeId"]
    try:
        with remedied(stack, missing_tags=remedy):
            marked = outcomes(stack, machine.run())
            assert {marked[volume] for volume in made.values()} == {"marked"}
            tagged = machine.run()
            assert {outcomes(stack, tagged)[volume] for volume in made.values()} == {"tags_added"}
            for place, volume in made.items():
                there = tags(stack, place, volume)
                assert {name: there[name] for name in values} == values | {"Owner": "ada"}
            undone = stack.invoke("cloud-undo", {"job_id": tagged["job_id"], "dry_run": False})
            assert undone["outcomes"].keys() == {"restored"}
            assert all(tags(stack, *one) == {"Owner": "ada"} for one in made.items())
    finally:
        for place, volume in made.items():
            ec2(stack, place).delete_volume(VolumeId=volume)


def test_the_first_runs_of_a_check_act_upon_few_resources(stack: Deployed, machine: Machine) -> None:
    """S3: three in each account."""
    values = {"Owner": "nobody", "Environment": "unknown", "CostCenter": "none"}
    remedy = {"action": "add_tags", "after_days": 0, "max_share": 1, "apply": True, "values": values}
    client = ec2(stack, PLACES[0])
    made = [client.create_volume(AvailabilityZone=f"{REGIONS[0]}a", Size=1)["VolumeId"] for _ in range(5)]

    def act(*phases: str) -> tuple[dict[str, Any], dict[str, Counter[str]]]:
        output = machine.run(**({"phases": phases} if phases else {}))
        told = stack.outcomes(output["phases"]["actions"]["manifest"])
        found = {account: Counter[str]() for account, _ in PLACES}
        for key, entry in told.items():
            found[key.split("/")[0]][entry.outcome] += 1
        return output, found

    def undo(output: dict[str, Any]) -> set[str]:
        return set(stack.invoke("cloud-undo", {"job_id": output["job_id"], "dry_run": False})["outcomes"])

    try:
        with remedied(stack, missing_tags=remedy):
            _, marked = act()
            assert marked[HOME]["marked"] >= 5
            first, acted = act("actions")
            assert all(found["tags_added"] == min(3, marked[account]["marked"]) for account, found in acted.items())
            held = sum(found["waiting"] for found in acted.values())
            assert first["phases"]["actions"]["held_by_ramp"] == held >= 2
        with remedied(stack, missing_tags=remedy | {"ramp": False}):
            second, acted = act("actions")
            assert sum(found["tags_added"] for found in acted.values()) == held
            assert undo(second) == undo(first) == {"restored"}
    finally:
        for volume in made:
            client.delete_volume(VolumeId=volume)


def test_the_phase_can_be_previewed_by_hand(
    stack: Deployed, machine: Machine, groups: dict[tuple[str, str], str]
) -> None:
    with remedied(stack, open_ports={"action": "tag", "apply": True, "max_share": 1}):
        machine.run(phases=["regions"])
        told = stack.invoke("cloud-actions", {"phase": "actions", "dry_run": True})
        assert told["outcomes"].keys() == {"would_be_marked"}
    assert all(PORTS not in tags(stack, *one) for one in groups.items())


def test_a_remedy_that_does_not_fit_fails_the_run_before_it_begins(stack: Deployed, machine: Machine) -> None:
    with remedied(stack, open_ports={"action": "stop"}):
        ended = machine.end(machine.start())
    assert (ended.status, ended.error) == ("FAILED", "Permanent")
    assert "cloud.remedies.open_ports.action: takes tag or revoke, not stop." in ended.cause
    assert stack.sql("SELECT count(*) FROM lamplighter.findings") == [(0,)]


@pytest.mark.parametrize("place", PLACES, ids=["own", "member"])
def test_iam_itself_lets_nothing_be_done_to_what_is_not_marked_or_is_to_be_kept(
    stack: Deployed, groups: dict[tuple[str, str], str], place: tuple[str, str]
) -> None:
    """FAILURES 14: what the code forgets, the role refuses."""
    group, session = groups[place], as_function(stack, "cloud-actions")
    if place[0] == MEMBER:
        sts = session.client("sts", endpoint_url=stack.aws.endpoint_url)
        role = {"RoleArn": f"arn:aws:iam::{MEMBER}:role/{ROLE}", "RoleSessionName": "e2e", "ExternalId": EXTERNAL_ID}
        given = sts.assume_role(**role)["Credentials"]
        session = boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    own = session.client("ec2", region_name=place[1], endpoint_url=stack.aws.endpoint_url)

    def revoke() -> None:
        own.revoke_security_group_ingress(GroupId=group, IpPermissions=[EVERYBODY])

    def refused() -> None:
        with pytest.raises(ClientError, match="UnauthorizedOperation"):
            revoke()

    refused()
    tag(stack, place, group, **{PORTS: "revoke after 2020-01-01T00:00Z"})
    untouchable = {"lamplighter:keep": ""} | ({"aws:cloudformation:stack-name": stack.name} if place[0] == HOME else {})
    for key, value in untouchable.items():
        tag(stack, place, group, **{key: value})
        refused()
        ec2(stack, place).delete_tags(Resources=[group], Tags=[{"Key": key}])
    revoke()
    assert ingress(stack, place, group) == {"203.0.113.0/24"}
