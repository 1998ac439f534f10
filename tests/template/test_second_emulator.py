"""The template in moto's CloudFormation, which reads it by other code than the local AWS (REQUIREMENTS P4).

This also shows what an ARN of the template becomes in other partitions than `aws`. moto makes the table, the
buckets, the functions, their roles and permissions, the state machines, the queue and the topic. It knows no custom
resource without Docker, no schedule, no alarm and no HTTP API: those are read, and left out.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from warnings import catch_warnings, filterwarnings

import boto3
import pytest
from moto import mock_aws
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

from lamplighter.kernel import aws
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.dynamo import DynamoStore
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import SHARDS, Policy, Status
from tests.template.project import ROOT, Project

PLACES = [("us-east-1", "aws", True), ("cn-north-1", "aws-cn", True), ("us-gov-west-1", "aws-us-gov", False)]
"""A region, its partition, and whether the stack there has a database."""
STACK = "lamplighter"
CODE = "s3://code/code.zip"
SECRET = "arn:{partition}:secretsmanager:{region}:123456789012:secret:database-AbCdEf"
UNMADE = {"ScheduleGroup", "Api"}
"""Resources that moto cannot make, which names remain of."""


class _NoPolicies:
    """In place of the list of AWS's managed policies, which is on a server of AWS."""

    def load(self) -> dict[str, str]:
        return {}


def translated(partition: str) -> str:
    """The template as CloudFormation gets it, without what moto cannot make or read; JSON."""
    template = Project().template
    definitions = {}
    for name, raw in template["Resources"].items():
        match raw["Type"]:
            case "AWS::Serverless::LayerVersion":
                raw["Properties"]["ContentUri"] = CODE
            case "AWS::Serverless::StateMachine":
                definitions[name] = json.dumps(yaml_parse((ROOT / raw["Properties"]["DefinitionUri"]).read_text()))
                raw["Properties"]["DefinitionUri"] = CODE
    template["Globals"]["Function"]["CodeUri"] = CODE
    made: dict[str, Any] = transform(template, {}, _NoPolicies())
    resources = {name: raw for name, raw in made["Resources"].items() if not raw["Type"].startswith("Custom::")}
    for name, definition in definitions.items():  # moto reads no substitutions
        properties = resources[name]["Properties"]
        del properties["DefinitionS3Location"]
        properties["DefinitionString"] = {"Fn::Sub": [definition, properties.pop("DefinitionSubstitutions")]}
    text = json.dumps(made | {"Resources": resources})
    for reference, value in (  # what moto has one value for, and an object in place of a name
        ('{"Ref": "AWS::Partition"}', f'"{partition}"'),
        ("${AWS::Partition}", partition),
        ('{"Ref": "EventBus"}', '{"Ref": "AWS::StackName"}'),
    ):
        assert reference in text
        text = text.replace(reference, value)
    return text


class Stack:
    """A stack in one region of moto."""

    def __init__(self, region: str) -> None:
        self.session = boto3.Session(region_name=region, aws_access_key_id="testing", aws_secret_access_key="testing")

    def deploy(self, template: str, **parameters: str) -> None:
        s3 = self.session.client("s3")
        region = self.session.region_name
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket="code", **place)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("lamplighter.py", "")
        s3.put_object(Bucket="code", Key="code.zip", Body=packed.getvalue())
        s3.put_object(Bucket="code", Key="template.json", Body=template.encode())
        self.session.client("cloudformation").create_stack(
            StackName=STACK,
            TemplateURL="https://code.s3.amazonaws.com/template.json",
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        )

    @property
    def functions(self) -> list[dict[str, Any]]:
        pages = self.session.client("lambda").get_paginator("list_functions").paginate()
        return [function for page in pages for function in page["Functions"]]

    @property
    def documents(self) -> Iterator[Any]:
        """Every document of permissions, and of who may take a role."""
        iam = self.session.client("iam")
        for role in (role for page in iam.get_paginator("list_roles").paginate() for role in page["Roles"]):
            yield role["AssumeRolePolicyDocument"]
            for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
                yield iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
        for policy in iam.list_policies(Scope="Local")["Policies"]:
            version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
            yield version["PolicyVersion"]["Document"]

    @property
    def definitions(self) -> Iterator[str]:
        steps = self.session.client("stepfunctions")
        for machine in steps.list_state_machines()["stateMachines"]:
            yield steps.describe_state_machine(stateMachineArn=machine["stateMachineArn"])["definition"]


@pytest.fixture(scope="module", params=PLACES, ids=str)
def deployed(request: pytest.FixtureRequest) -> Iterator[tuple[Stack, str, bool]]:
    """The stack, its partition, and whether it has a database."""
    region, partition, database = request.param
    with mock_aws(), pytest.MonkeyPatch.context() as patch, catch_warnings():
        filterwarnings("ignore", category=UserWarning)  # one for each type that moto cannot make
        for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):  # the translation depends on it, too
            patch.setenv(name, region)
        patch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep the region of another test
        stack = Stack(region)
        stack.deploy(
            translated(partition),
            DatabaseSecretArn=SECRET.format(partition=partition, region=region) if database else "",
        )
        aws._client.cache_clear()  # those of the region before
        yield stack, partition, database
        aws._client.cache_clear()


def test_what_is_made_is_of_its_own_partition(deployed: tuple[Stack, str, bool]) -> None:
    stack, partition, database = deployed
    functions = {function["FunctionName"]: function for function in stack.functions}
    assert set(functions) == {f"{STACK}-{function.job}" for function in Project().functions}
    said = [json.dumps(document) for document in (*stack.documents, *functions.values())] + [*stack.definitions]
    arns = {arn for text in said for arn in re.findall(r"\barn:[\w:/*.$&{}-]*", text)}
    assert len(arns) > 40
    assert {arn for arn in arns if not arn.startswith(f"arn:{partition}:")} == set()
    left = {name for text in said for name in re.findall(r"\$\{([A-Z][\w.:]*)\}", text)}
    assert left <= UNMADE, "a value is not filled in"

    called = {arn.partition(":function:")[2].partition(":")[0] for arn in arns if ":function:" in arn}
    assert called and called - {"*"} <= set(functions), "a state machine or a permission names no function"
    secrets = {function["Environment"]["Variables"]["DATABASE_SECRET_ARN"] for function in functions.values()}
    assert secrets == {SECRET.format(partition=partition, region=stack.session.region_name) if database else ""}


def test_the_ledger_works_over_the_table_and_its_indexes(deployed: tuple[Stack, str, bool]) -> None:
    stack, partition, _ = deployed
    (name,) = stack.session.client("dynamodb").list_tables()["TableNames"]
    table = stack.session.client("dynamodb").describe_table(TableName=name)["Table"]
    assert table["LatestStreamArn"].startswith(f"arn:{partition}:dynamodb:")
    mappings = stack.session.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert {one["EventSourceArn"] for one in mappings} == {table["LatestStreamArn"]}
    assert {function["Environment"]["Variables"]["JOBS_TABLE"] for function in stack.functions} == {name}

    ledger = Ledger(DynamoStore(name))
    job = ledger.start(ledger.new_job("cleanup", Policy(timeout=timedelta(hours=1))))
    overdue = [ledger.store.expired(shard, job.created_at + timedelta(hours=9), limit=9) for shard in range(SHARDS)]
    assert [row.job_id for page in overdue for row in page.jobs] == [job.job_id]
    ledger.complete(job, {"n": 1})
    assert [row.status for row in newest(ledger.store, "cleanup", limit=9)] == [Status.COMPLETED]
