"""The local cloud: accounts with a past behind MiniStack's gateway, each with its own credentials and permissions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from lamplighter.cloud import access, checks, reader
from lamplighter.cloud.check import Basis, judge, wanted
from lamplighter.cloud.prices import Prices
from lamplighter.kernel.cloud import Limits
from local.cloud import HOME, LASTS, MEMBER, REGIONS, STRANGER
from local.estate import Planted
from local.stack import LocalAws

VERSION = "2012-10-17"
ROLE = "test"
EXTERNAL_ID = "open sesame"


@pytest.fixture(scope="module")
def cloud(local_aws: LocalAws) -> Iterator[LocalAws]:
    """A local AWS whose member account has a role for the home account, with an external id."""
    iam = local_aws.client("iam", account=MEMBER)
    known = {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}}
    home = {"AWS": f"arn:aws:iam::{HOME}:root"}
    trust = {"Effect": "Allow", "Principal": home, "Action": "sts:AssumeRole", "Condition": known}
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps({"Version": VERSION, "Statement": [trust]}))
    allow(iam, {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"})
    yield local_aws
    iam.delete_role_policy(RoleName=ROLE, PolicyName=ROLE)
    iam.delete_role(RoleName=ROLE)


def allow(iam: Any, *statements: dict[str, Any]) -> None:
    """Let the role do this, and nothing else."""
    policy = json.dumps({"Version": VERSION, "Statement": statements})
    iam.put_role_policy(RoleName=ROLE, PolicyName=ROLE, PolicyDocument=policy)


@pytest.fixture(scope="module")
def planted(cloud: LocalAws) -> dict[str, Planted]:
    """What the member account has in Ireland, by name."""
    return {one.name: one for one in cloud.planted() if (one.account, one.region) == (MEMBER, "eu-west-1")}


def assumed(cloud: LocalAws, account: str, **said: str) -> Any:
    """The EC2 client of the role in that account."""
    role = f"arn:aws:iam::{account}:role/{ROLE}"
    given = cloud.client("sts").assume_role(RoleArn=role, RoleSessionName="test", **said)["Credentials"]
    keys = (given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    return boto3.Session(*keys, region_name="eu-west-1").client("ec2", endpoint_url=cloud.endpoint_url)


def test_an_assumed_role_sees_its_own_account(cloud: LocalAws, planted: dict[str, Planted]) -> None:
    pages = assumed(cloud, MEMBER, ExternalId=EXTERNAL_ID).get_paginator("describe_volumes").paginate()
    seen = {volume["VolumeId"] for page in pages for volume in page["Volumes"]}
    assert seen >= {one.resource_id for one in planted.values() if one.resource_id.startswith("vol-")}
    assert not seen & {one.resource_id for one in cloud.planted() if one.account == HOME}


@pytest.mark.parametrize(("account", "said"), [(STRANGER, {"ExternalId": EXTERNAL_ID}), (MEMBER, {})])
def test_no_role_is_assumed_that_is_not_there_or_wants_an_external_id(
    cloud: LocalAws, account: str, said: dict[str, str]
) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        assumed(cloud, account, **said)


def test_permissions_are_checked_by_what_ec2_calls_the_resource(cloud: LocalAws, planted: dict[str, Planted]) -> None:
    allow(
        cloud.client("iam", account=MEMBER),
        {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "arn:aws:ec2:*::snapshot/*"},
        {
            "Effect": "Allow",
            "Action": "ec2:DeleteVolume",
            "Resource": "arn:aws:ec2:*:*:volume/*",
            "Condition": {"StringEquals": {"aws:ResourceTag/Owner": "nobody"}},
        },
    )
    ec2, tags = assumed(cloud, MEMBER, ExternalId=EXTERNAL_ID), [{"Key": "seen", "Value": "yes"}]
    ec2.create_tags(Resources=[planted["snapshot-old"].resource_id], Tags=tags)
    volume = planted["unattached-long"].resource_id
    for refused in (
        lambda: ec2.create_tags(Resources=[volume], Tags=tags),
        lambda: ec2.delete_volume(VolumeId=volume),
        ec2.describe_volumes,
    ):
        with pytest.raises(ClientError, match="UnauthorizedOperation"):
            refused()
    allow(cloud.client("iam", account=MEMBER), {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"})


def test_resources_and_metrics_have_a_past(cloud: LocalAws, planted: dict[str, Planted]) -> None:
    ec2 = cloud.client("ec2", account=MEMBER, region="eu-west-1")

    def instance(name: str) -> Any:
        return ec2.describe_instances(InstanceIds=[planted[name].resource_id])["Reservations"][0]["Instances"][0]

    stopped, idle = instance("stopped-long"), instance("cpu-idle")
    assert "User initiated (20" in stopped["StateTransitionReason"]
    now = datetime.now(UTC)
    assert now - idle["LaunchTime"] > timedelta(days=59)

    metric = {"Namespace": "AWS/EC2", "MetricName": "CPUUtilization"}
    dimensions = [{"Name": "InstanceId", "Value": idle["InstanceId"]}]
    query = {"Metric": {**metric, "Dimensions": dimensions}, "Period": 6 * 3600, "Stat": "Maximum"}
    (result,) = cloud.client("cloudwatch", account=MEMBER, region="eu-west-1").get_metric_data(
        MetricDataQueries=[{"Id": "cpu", "MetricStat": query}], StartTime=idle["LaunchTime"], EndTime=now
    )["MetricDataResults"]
    assert len(result["Values"]) == 56  # two weeks of them, whenever that was planted
    assert max(result["Values"]) < 5


@pytest.mark.parametrize("later", [LASTS / 2, LASTS - timedelta(hours=1)])
def test_the_checks_say_of_it_what_they_have_to_for_as_long_as_it_lasts(
    cloud: LocalAws, planted: dict[str, Planted], later: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (cloud.environment | {"AWS_ACCESS_KEY_ID": MEMBER}).items():
        monkeypatch.setenv(name, value)
    now, region, every = datetime.now(UTC) + later, "eu-west-1", checks.BY_ID.values()
    clients = access.clients(region, session_name="test")
    inventory = reader.read(clients, account=MEMBER, region=region, now=now, limits=Limits(), needs=wanted(every))
    judged = judge(inventory, Basis(now=now, limits=Limits(), prices=Prices.from_file(region)), every)
    by_history = "unattached_volumes"  # since when is not in the account

    def pairs(said: Iterable[Any]) -> set[tuple[str, str]]:
        return {(one.check, one.resource_id) for one in said if one.check != by_history}

    ids = {one.resource_id for one in planted.values()}
    assert pairs(judged.findings) == {
        (check, one.resource_id) for one in planted.values() for check in one.found if check != by_history
    }
    assert {pair for pair in pairs(judged.unknown) if pair[1] in ids} == {
        (check, one.resource_id) for one in planted.values() for check in one.unknown
    }


def test_every_account_and_region_has_one_of_each_kind(cloud: LocalAws) -> None:
    names = {(one.account, one.region): set[str]() for one in cloud.planted()}
    for one in cloud.planted():
        names[one.account, one.region].add(one.name)
    assert set(names) == {(account, region) for account in (HOME, MEMBER) for region in REGIONS}
    assert len({frozenset(found) for found in names.values()}) == 1
