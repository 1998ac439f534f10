"""What a deployment asks of the stack: the schema by way of `migrate`, and the protection of the job table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from lamplighter.jobs import deployment
from lamplighter.kernel.errors import Permanent
from tests.unit.test_custom_resource import Receiver, receiver, request  # noqa: F401 - a fixture


class Lambda:
    """Answers as `migrate` does."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {"revision": "0003", "applied": []}
        self.failed = False
        self.calls: list[dict[str, Any]] = []

    def invoke(self, **call: Any) -> dict[str, Any]:
        self.calls.append(call)
        body = {"Payload": io.BytesIO(json.dumps(self.answer).encode())}
        return body | ({"FunctionError": "Unhandled"} if self.failed else {})


class Stack:
    """The job table's protection, and the stack's status."""

    def __init__(self) -> None:
        self.protected = False
        self.status = "CREATE_IN_PROGRESS"
        self.updates = 0

    def describe_table(self, TableName: str) -> dict[str, Any]:
        assert TableName == "jobs"
        return {"Table": {"DeletionProtectionEnabled": self.protected}}

    def update_table(self, TableName: str, *, DeletionProtectionEnabled: bool) -> None:
        assert TableName == "jobs"
        assert self.protected != DeletionProtectionEnabled, "DynamoDB refuses a change that changes nothing"
        self.protected, self.updates = DeletionProtectionEnabled, self.updates + 1

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        assert StackName == "stack"
        return {"Stacks": [{"StackStatus": self.status}]}


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    found = Stack()
    monkeypatch.setenv("JOBS_TABLE", "jobs")
    monkeypatch.setattr(deployment, "client", lambda _: found)
    yield found


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> Lambda:
    found = Lambda()
    monkeypatch.setenv("STACK_NAME", "lamplighter")
    monkeypatch.setattr(boto3, "client", lambda *_, **__: found)
    return found


def protection(url: str, kind: str, enabled: str = "true") -> dict[str, Any]:
    properties = {"Enabled": enabled, "Table": "jobs"}
    return request(url, kind, ResourceType="Custom::Protection", ResourceProperties=properties)


def test_the_schema_is_brought_up_to_date_by_migrate(receiver: Receiver, functions: Lambda) -> None:  # noqa: F811
    answer = deployment.handler(request(receiver.url, ResourceType="Custom::Schema"), None)
    assert (answer["Status"], answer["Data"]) == ("SUCCESS", {"revision": "0003", "applied": []})
    assert [call["FunctionName"] for call in functions.calls] == ["lamplighter-migrate"]
    assert receiver.answers == [answer]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("there is no schema lamplighter", "Permanent: migrate: there is no schema lamplighter"),
        ("2026-12-01T00:00:00Z 1 Task timed out after 300.00 seconds", "Do the security groups and subnets let"),
    ],
)
def test_a_migration_that_fails_fails_the_deployment(
    receiver: Receiver,  # noqa: F811
    functions: Lambda,
    said: str,
    told: str,
) -> None:
    functions.failed, functions.answer = True, {"errorType": "Permanent", "errorMessage": said}
    answer = deployment.handler(request(receiver.url, ResourceType="Custom::Schema"), None)
    assert answer["Status"] == "FAILED"
    assert said in answer["Reason"]
    assert told in answer["Reason"]


def test_the_rollback_of_a_failed_migration_is_answered_without_it(receiver: Receiver, functions: Lambda) -> None:  # noqa: F811
    """CloudFormation deletes what it could not create, and waits for the answer."""
    answer = deployment.handler(request(receiver.url, "Delete", ResourceType="Custom::Schema"), None)
    assert (answer["Status"], functions.calls) == ("SUCCESS", [])


def test_the_table_is_protected_once_it_is_deployed(receiver: Receiver, stack: Stack) -> None:  # noqa: F811
    for kind in ("Create", "Update", "Update"):
        assert deployment.handler(protection(receiver.url, kind), None)["Status"] == "SUCCESS"
    assert (stack.protected, stack.updates) == (True, 1)
    assert deployment.handler({}, None) == {"protected": True}
    assert deployment.handler(protection(receiver.url, "Update", "false"), None)["Status"] == "SUCCESS"
    assert not stack.protected


@pytest.mark.parametrize(
    ("status", "stays"),
    [
        ("ROLLBACK_IN_PROGRESS", False),
        ("ROLLBACK_FAILED", False),
        ("DELETE_IN_PROGRESS", True),
        ("UPDATE_ROLLBACK_IN_PROGRESS", True),
        ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", True),
    ],
)
def test_only_a_first_deployment_that_failed_takes_the_protection_away(
    receiver: Receiver,  # noqa: F811
    stack: Stack,
    status: str,
    stays: bool,
) -> None:
    """Nothing else deletes the table: a stack that is deleted leaves it."""
    deployment.handler(protection(receiver.url, "Create"), None)
    stack.status = status
    assert deployment.handler(protection(receiver.url, "Delete"), None)["Status"] == "SUCCESS"
    assert stack.protected is stays


def test_bad_input_is_one_sentence(receiver: Receiver, stack: Stack) -> None:  # noqa: F811
    answer = deployment.handler(protection(receiver.url, "Create", "yes"), None)
    assert answer["Reason"] == "Permanent: Enabled: takes true or false, got 'yes'."
    assert not stack.protected
    with pytest.raises(Permanent, match="takes no fields"):
        deployment.handler({"protect": True}, None)
