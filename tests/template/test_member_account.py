"""docs/member-account-role.yaml: what owners of other accounts are asked to grant is no more than what is used."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
from samcli.yamlhelper import yaml_parse

from tests.template.project import ROOT, Project
from tests.template.test_permissions import ACTIONS, METRICS, as_list

TEMPLATE = ROOT / "docs" / "member-account-role.yaml"
PARSED = yaml_parse(TEMPLATE.read_text())
PARAMETERS, ROLE = PARSED["Parameters"], PARSED["Resources"]["Role"]["Properties"]
READ, (MAY_ACT, ACT, _NOTHING) = (ROLE["Policies"][0], ROLE["Policies"][1]["Fn::If"])


def statements(policy: dict[str, Any]) -> list[dict[str, Any]]:
    return list(policy["PolicyDocument"]["Statement"])


def allowed(policy: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each action that is granted, and on what."""
    for statement in statements(policy):
        if statement["Effect"] == "Allow":
            yield from ((action, as_list(statement["Resource"])) for action in as_list(statement["Action"]))


def deployed(*logical_ids: str) -> set[str]:
    """What functions and policies of the stack itself are granted of the services that are scanned."""
    return {
        action
        for where, statement in Project().statements
        if where in logical_ids
        for action in as_list(statement["Action"])
        if action.partition(":")[0] in {"ec2", "elasticloadbalancing", "cloudwatch", "logs", "rbin"}
    }


def test_it_grants_what_the_stack_grants_itself_in_its_own_account() -> None:
    read, act = ({action for action, _ in allowed(policy)} for policy in (READ, ACT))
    assert read == deployed("CloudReadPolicy", "CloudRegionFunction")
    assert act == deployed("CloudActionsFunction", "CloudUndoFunction") - read


def test_the_stack_may_assume_a_role_of_the_default_name() -> None:
    ((_, statement),) = [one for one in Project().statements if one[1]["Sid"] == "AssumeRoles"]
    pattern = statement["Resource"]["Fn::Sub"].replace("${AWS::StackName}", "lamplighter")
    assert fnmatch(f"arn:${{AWS::Partition}}:iam::111122223333:role/{PARAMETERS['RoleName']['Default']}", pattern)


def test_without_the_parameter_it_only_reads() -> None:
    assert MAY_ACT == "MayAct"
    verbs = ("Describe", "Get", "List")
    assert all(action.partition(":")[2].startswith(verbs) for action, _ in allowed(READ))


@pytest.mark.parametrize("policy", [READ, ACT], ids=["read", "act"])
def test_every_resource_that_can_be_named_is(policy: dict[str, Any]) -> None:
    for action, resources in allowed(policy):
        service, _, operation = action.partition(":")
        assert "*" not in operation
        nameable = ACTIONS[service]["Actions"][operation.lower()].get("Resources")
        assert "*" not in resources or not nameable or action in METRICS, f"{action} can be granted by name."


def test_what_is_to_be_kept_is_never_touched() -> None:
    """FAILURES 14: whatever the code does, IAM refuses what would destroy or mark something tagged so."""
    (deny,) = [statement for statement in statements(ACT) if statement["Effect"] == "Deny"]
    assert deny["Condition"] == {"Null": {"aws:ResourceTag/lamplighter:keep": "false"}}
    assert deny["Resource"] == "*"
    assert {"ec2:StopInstances", "ec2:DeleteVolume", "ec2:DeleteSnapshot", "ec2:RevokeSecurityGroupIngress"} < set(
        deny["Action"]
    )
