"""Least privilege: every function has a role of its own, no action is a wildcard, resources are named."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from lamplighter.cloud.marks import KEEP, STACK_TAG
from tests.template.project import Function, Project
from tests.template.test_jobs import JOBS

PROJECT = Project()
STATEMENTS = PROJECT.statements
EACH_STATEMENT = pytest.mark.parametrize(
    ("where", "statement"), STATEMENTS, ids=[f"{where}-{statement['Sid']}" for where, statement in STATEMENTS]
)
ACTIONS: dict[str, Any] = json.loads((files("cfnlint.data") / "AdditionalSpecs/Policies.json").read_text())

METRICS = {"cloudwatch:ListMetrics", "cloudwatch:GetMetricData"}
"""What AWS services measure is in no dataset, the one resource that these can be granted on."""


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_there_are_statements() -> None:
    assert len(STATEMENTS) > 20


@EACH_STATEMENT
def test_no_action_is_a_wildcard(where: str, statement: dict[str, Any]) -> None:
    assert not [action for action in as_list(statement["Action"]) if "*" in action], (
        f"{where}: name the actions of {statement['Sid']}."
    )


@EACH_STATEMENT
def test_every_resource_that_can_be_named_is(where: str, statement: dict[str, Any]) -> None:
    if "*" not in as_list(statement["Resource"]):
        return
    for action in set(as_list(statement["Action"])) - METRICS:
        service, _, operation = action.partition(":")
        nameable = ACTIONS[service]["Actions"][operation.lower()].get("Resources")
        assert not nameable, f"{where}: {action} can be granted on a {nameable[0]}: name it in {statement['Sid']}."


def test_every_function_has_a_role_of_its_own() -> None:
    for function in PROJECT.functions:
        assert "Role" not in function.properties, (
            f"{function.job}: leave Role out, and SAM makes one from its Policies."
        )


def test_permissions_that_are_shared_are_used() -> None:
    text = (PROJECT.root / "template.yaml").read_text()
    for policy in PROJECT.of_type("AWS::IAM::ManagedPolicy"):
        assert f"!Ref {policy}" in text, f"Nothing has the permissions of {policy}."


def granted(where: str, sid: str) -> list[Any]:
    return next(
        as_list(statement["Resource"]) for place, statement in STATEMENTS if (place, statement["Sid"]) == (where, sid)
    )


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.job)
def test_the_dispatcher_may_start_every_job(function: Function) -> None:
    arn = {"Fn::GetAtt": [function.logical_id, "Arn"]}
    assert arn in granted("DispatcherFunction", "StartFunctions"), (
        f"The dispatcher cannot start {function.job}: add !GetAtt {function.logical_id}.Arn to its StartFunctions."
    )


def test_the_dispatcher_may_start_nothing_else() -> None:
    assert len(granted("DispatcherFunction", "StartFunctions")) == len(JOBS)


def test_the_schedules_may_start_what_they_start_and_nothing_else() -> None:
    functions = {
        name for name, _ in PROJECT.schedules if PROJECT.resources[name]["Type"] == "AWS::Serverless::Function"
    }
    machines = {name for name, _ in PROJECT.schedules} - functions
    assert {arn["Fn::GetAtt"][0] for arn in granted("ScheduleRole", "StartFunctions")} == functions
    by_name = {name: f"stateMachine:{PROJECT.resources[name]['Properties']['Name']['Fn::Sub']}" for name in machines}
    started = [arn.get("Ref") or arn["Fn::Sub"] for arn in granted("ScheduleRole", "StartStateMachines")]
    for name in machines:
        assert sum(one == name or one.endswith(by_name[name]) for one in started) == 1
    assert len(started) == len(machines)


@pytest.mark.parametrize("type_", ["AWS::S3::Bucket"])
def test_buckets_are_private_encrypted_and_tls_only(type_: str) -> None:
    policies = {policy["Bucket"]["Ref"]: policy for policy in PROJECT.of_type("AWS::S3::BucketPolicy").values()}
    for name, bucket in PROJECT.of_type(type_).items():
        assert all(bucket["PublicAccessBlockConfiguration"].values()), f"{name} must block public access."
        assert bucket["BucketEncryption"], f"{name} must be encrypted."
        (deny,) = policies[name]["PolicyDocument"]["Statement"]
        assert (deny["Effect"], deny["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}}), (
            f"{name} must demand TLS."
        )


def test_what_is_kept_outlives_the_stack() -> None:
    for name, raw in PROJECT.resources.items():
        if raw["Type"] in ("AWS::DynamoDB::Table", "AWS::S3::Bucket"):
            assert (raw["DeletionPolicy"], raw["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain"), (
                f"{name} holds data."
            )


def test_the_actions_on_findings_are_denied_on_what_is_to_be_kept_and_on_the_stack_itself() -> None:
    """FAILURES 14: the cleanup stack deleted itself. CreateSnapshot changes nothing of what it is of."""
    (function,) = [function for function in PROJECT.functions if function.job == "cloud-actions"]
    statements = [one for policy in function.properties["Policies"] for one in policy.get("Statement", ())]
    changing = {
        action
        for statement in statements
        for action in as_list(statement["Action"])
        if statement["Effect"] == "Allow" and action.startswith(("ec2:", "elasticloadbalancing:"))
        if not action.partition(":")[2].startswith(("Describe", "List", "CreateSnapshot"))
    }
    denied = {json.dumps(one["Condition"]): one for one in statements if one["Effect"] == "Deny"}
    assert denied.keys() == {
        json.dumps({"Null": {f"aws:ResourceTag/{KEEP}": "false"}}),
        json.dumps({"StringEquals": {f"aws:ResourceTag/{STACK_TAG}": {"Ref": "AWS::StackName"}}}),
    }
    for statement in denied.values():
        assert (set(statement["Action"]), statement["Resource"]) == (changing, "*")
