"""Findings acted upon in the deployed stack, in its own account and by a member's role: marked, told of, mended, taken
back (REQUIREMENTS C13, K9, K11)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from local.cloud import EXTERNAL_ID, HOME, MEMBER, REGIONS, ROLE
from local.signed import Api
from tests.e2e.deployed import Deployed, Machine, Mailbox, eventually
from tests.e2e.test_permissions import as_function

PORTS = "lamplighter:open_ports"
EVERYBODY = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
OFFICE = EVERYBODY | {"IpRanges": [{"CidrIp": "203.0.113.0/24"}]}
PLACES = ((HOME, REGIONS[0]), (MEMBER, REGIONS[1]))
TARGETS = [
    {"accounts": [HOME], "regions": [REGIONS[0]]},
    {"accounts": [MEMBER], "regions": [REGIONS[1]], "role": ROLE, "external_id": EXTERNAL_ID},
]


def ec2(stack: Deployed, place: tuple[str, str]) -> Any:
    """EC2 as an account's owner has it."""
    account, region = place
    keys = {"aws_access_key_id": account, "aws_secret_access_key": "test"}
    return boto3.client("ec2", region_name=region, endpoint_url=stack.aws.endpoint_url, **keys)


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
    stack.sql("TRUNCATE findings, judged_checks, unjudged, unattached_volumes, cloud_reports")
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
    revoke: dict[str, Any] = {"action": "revoke", "after_days": 0, "max_share": 1}
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


def test_missing_tags_are_added_and_taken_away_again(stack: Deployed, machine: Machine) -> None:
    """C12, C13, in the own account and by a member's role."""
    values = {"Owner": "nobody", "Environment": "unknown", "CostCenter": "none"}
    remedy = {"action": "add_tags", "after_days": 0, "max_share": 1, "apply": True, "values": values}
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
    assert "cloud_remedies.open_ports.action: takes tag or revoke, not stop." in ended.cause
    assert stack.sql("SELECT count(*) FROM findings") == [(0,)]


def test_iam_itself_lets_nothing_be_done_to_what_is_not_marked_or_is_to_be_kept(
    stack: Deployed, groups: dict[tuple[str, str], str]
) -> None:
    """FAILURES 14: what the code forgets, the role refuses."""
    group, owner = groups[PLACES[0]], ec2(stack, PLACES[0])
    own = as_function(stack, "cloud-actions").client("ec2", endpoint_url=stack.aws.endpoint_url)

    def revoke() -> None:
        own.revoke_security_group_ingress(GroupId=group, IpPermissions=[EVERYBODY])

    def tag(key: str, value: str = "") -> None:
        owner.create_tags(Resources=[group], Tags=[{"Key": key, "Value": value}])

    def refused() -> None:
        with pytest.raises(ClientError, match="UnauthorizedOperation"):
            revoke()

    refused()
    tag(PORTS, "revoke after 2020-01-01T00:00Z")
    for key, value in (("lamplighter:keep", ""), ("aws:cloudformation:stack-name", stack.name)):
        tag(key, value)
        refused()
        owner.delete_tags(Resources=[group], Tags=[{"Key": key}])
    revoke()
    assert ingress(stack, PLACES[0], group) == {"203.0.113.0/24"}
