"""docs/member-account-role.yaml in a member account: whom it lets in, and to what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.model import OperationModel
from samcli.yamlhelper import yaml_parse

from lamplighter.cloud import access, checks, health, reader
from lamplighter.cloud.check import wanted
from lamplighter.kernel.cloud import Limits
from local.cloud import MEMBER
from local.stack import ROOT, LocalAws
from tests.inventories import NOW

TEMPLATE = (ROOT / "docs" / "member-account-role.yaml").read_text()
EXTERNAL_ID = "correct-horse-battery"

type Client = Callable[..., Any]


@pytest.fixture
def client(aws_endpoint: str) -> Client:
    """Clients of MiniStack, of an account's root or with a role's credentials."""

    def client(service: str, account: str = "", **credentials: str) -> Any:
        keys = credentials or {"aws_access_key_id": account, "aws_secret_access_key": "test"}
        return boto3.client(service, endpoint_url=aws_endpoint, region_name="us-east-1", **keys)

    return client


@pytest.fixture
def accounts() -> tuple[str, str]:
    """The one that Lamplighter is in, and a member."""
    return (f"{uuid4().int % 10**12:012d}", f"{uuid4().int % 10**12:012d}")


def assumed(sts: Any, arn: str, **external_id: str) -> dict[str, str]:
    credentials = sts.assume_role(RoleArn=arn, RoleSessionName="scan", **external_id)["Credentials"]
    return {
        "aws_access_key_id": credentials["AccessKeyId"],
        "aws_secret_access_key": credentials["SecretAccessKey"],
        "aws_session_token": credentials["SessionToken"],
    }


def function_of(stack: str, account: str, client: Client) -> dict[str, str]:
    """The credentials of a function of a stack."""
    iam = client("iam", account)
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{account}:root"}, "Action": "sts:AssumeRole"}
    may = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}
    name = f"{stack}-CloudRegionFunctionRole"
    role = iam.create_role(
        RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    iam.put_role_policy(
        RoleName=name, PolicyName="may", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [may]})
    )
    return assumed(client("sts", account), role["Role"]["Arn"])


def deploy(home: str, member: str, client: Client, **parameters: str) -> str:
    """The role's ARN."""
    values = {"LamplighterAccount": home, "ExternalId": EXTERNAL_ID, **parameters}
    cloudformation = client("cloudformation", member)
    cloudformation.create_stack(
        StackName="lamplighter-scan",
        TemplateBody=TEMPLATE,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    cloudformation.get_waiter("stack_create_complete").wait(StackName="lamplighter-scan", WaiterConfig={"Delay": 1})
    (stack,) = cloudformation.describe_stacks(StackName="lamplighter-scan")["Stacks"]
    return str(stack["Outputs"][0]["OutputValue"])


def test_the_stack_gets_in_with_the_external_id(accounts: tuple[str, str], client: Client) -> None:
    home, member = accounts
    role = deploy(home, member, client)
    sts = client("sts", **function_of("lamplighter", home, client))
    inside = client("sts", **assumed(sts, role, ExternalId=EXTERNAL_ID))
    assert inside.get_caller_identity()["Account"] == member
    for wrong in ({}, {"ExternalId": "incorrect-horse-battery"}):
        with pytest.raises(ClientError, match="AccessDenied"):
            assumed(sts, role, **wrong)


def test_nothing_else_gets_in(accounts: tuple[str, str], client: Client) -> None:
    home, member = accounts
    role = deploy(home, member, client)
    stranger = f"{uuid4().int % 10**12:012d}"
    for account, stack in ((home, "payroll"), (stranger, "lamplighter")):
        sts = client("sts", **function_of(stack, account, client))
        with pytest.raises(ClientError, match="AccessDenied"):
            assumed(sts, role, ExternalId=EXTERNAL_ID)


SERVICES = {"monitoring": "cloudwatch"}
"""Where IAM calls a service by another name than its endpoint."""


def test_it_may_read_what_the_jobs_read_and_nothing_else(
    local_aws: LocalAws, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a demo account, which has something of everything."""
    home = f"{uuid4().int % 10**12:012d}"
    name = "lamplighter-reads"
    role = deploy(home, MEMBER, client, RoleName=name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", local_aws.endpoint_url)
    for key, value in function_of("lamplighter", home, client).items():
        monkeypatch.setenv(key.upper(), value)
    clients = access.clients("us-east-1", role_arn=role, external_id=EXTERNAL_ID, session_name="scan")
    called = set[str]()

    def note(model: OperationModel, **_: Any) -> None:
        service = model.service_model.signing_name
        called.add(f"{SERVICES.get(service, service)}:{model.name}")

    for service in ("ec2", "elbv2", "cloudwatch", "logs"):
        clients(service).meta.events.register("before-call", note)
    needs = wanted(checks.BY_ID.values())
    inventory = reader.read(clients, account=MEMBER, region="us-east-1", now=NOW, limits=Limits(), needs=needs)
    health.statuses(clients("ec2"))

    assert not inventory.gaps
    assert inventory.instances
    read, _ = yaml_parse(TEMPLATE)["Resources"]["Role"]["Properties"]["Policies"]
    statements = read["PolicyDocument"]["Statement"]
    granted = [one["Action"] if isinstance(one["Action"], list) else [one["Action"]] for one in statements]
    assert called == {action for actions in granted for action in actions}


@pytest.mark.parametrize(("allowed", "decision"), [("false", "implicitDeny"), ("true", "allowed")])
def test_it_may_act_only_where_that_is_allowed(
    allowed: str, decision: str, accounts: tuple[str, str], client: Client
) -> None:
    home, member = accounts
    role = deploy(home, member, client, AllowActions=allowed)
    answers = client("iam", member).simulate_principal_policy(
        PolicySourceArn=role,
        ActionNames=["ec2:DescribeInstances", "ec2:CreateTags", "ec2:TerminateInstances"],
        ResourceArns=[f"arn:aws:ec2:us-east-1:{member}:instance/i-1"],
    )["EvaluationResults"]
    assert [answer["EvalDecision"] for answer in answers] == ["allowed", decision, "implicitDeny"]


def test_what_is_not_marked_or_is_to_be_kept_is_never_touched(accounts: tuple[str, str], client: Client) -> None:
    """FAILURES 14: IAM itself refuses."""
    home, member = accounts
    role = deploy(home, member, client, AllowActions="true")
    ec2 = client("ec2", member)
    made = ec2.run_instances(ImageId="ami-0123456789abcdef0", MinCount=3, MaxCount=3)["Instances"]
    marked, kept, other = (instance["InstanceId"] for instance in made)
    mark = {"Key": "lamplighter:idle_cpu", "Value": "stop after 2026-11-22T06:10Z"}
    ec2.create_tags(Resources=[marked, kept], Tags=[mark])
    ec2.create_tags(Resources=[kept], Tags=[{"Key": "lamplighter:keep", "Value": ""}])
    sts = client("sts", **function_of("lamplighter", home, client))
    acting = client("ec2", **assumed(sts, role, ExternalId=EXTERNAL_ID))
    acting.stop_instances(InstanceIds=[marked])
    for refused in (kept, other):
        with pytest.raises(ClientError, match="UnauthorizedOperation"):
            acting.stop_instances(InstanceIds=[refused])
