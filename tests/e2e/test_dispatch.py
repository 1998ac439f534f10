"""What is due is started where its policy says, once, whatever the stream repeats (REQUIREMENTS B1, B2, K2, K10)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Job, Status
from tests.e2e.deployed import LONG_AGO, Deployed, FunctionFailed, Mailbox, Shelf, eventually

# -- a Lambda --------------------------------------------------------------------------------------------------------


def test_a_record_that_comes_again_starts_nothing_again(stack: Deployed, shelf: Shelf) -> None:
    """K2: the claim lets one delivery in; the others are told so, and are no failures."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    job = stack.seed("orphan_cleanup", target="lambda:orphan-cleanup", payload=shelf.params)
    done = stack.becomes(job.job_id, "completed", "failed")
    assert done.result is not None and done.result["deleted_files"] == 1
    inserted = [record for record in stack.records(job.job_id) if record["eventName"] == "INSERT"]
    assert len(inserted) == 1
    for _ in range(2):
        assert stack.invoke("dispatcher", {"Records": inserted}) == {"batchItemFailures": []}
    eventually(lambda: len(_told(stack, job, "duplicate delivery of an attempt")) == 2)
    assert len(_told(stack, job, "started")) == 1
    assert stack.ledger.get(job.job_id) == done
    assert [log.message for log in stack.history(job.job_id, rows=2)] == ["started, attempt 1 of 3", "completed"]


def test_a_final_failure_alerts_once(stack: Deployed, alerts: Mailbox) -> None:
    """K9: whatever the stream delivers again."""
    unknown = {"references": [{"table": "there_is_none", "column": "key"}]}
    job = stack.seed("orphan_cleanup", target="lambda:orphan-cleanup", critical=True, payload=unknown)
    failed = stack.becomes(job.job_id, "completed", "failed")
    assert (failed.status, failed.dead_letter, failed.attempt) == (Status.FAILED, "permanent", 1)
    assert failed.errors[0].message == "references: there is no table there_is_none in the database."
    eventually(lambda: alerts.about(job.job_id))
    stack.invoke("dispatcher", {"Records": stack.records(job.job_id)})
    (alert,) = alerts.about(job.job_id)
    assert json.loads(alert)["Subject"] == f"[{stack.name}] orphan_cleanup failed"
    assert failed.errors[0].message in json.loads(alert)["Message"]


def test_a_record_that_nobody_understands_does_not_stop_the_others(stack: Deployed, job_type: str) -> None:
    """Partial batch failure: only what failed comes again."""
    job = stack.seed(job_type)
    (good,) = eventually(lambda: stack.records(job.job_id))
    bad = json.loads(json.dumps(good))
    bad["dynamodb"]["SequenceNumber"] = "1"
    del bad["dynamodb"]["NewImage"]["policy"]
    answer = stack.invoke("dispatcher", {"Records": [good, bad]})
    assert answer == {"batchItemFailures": [{"itemIdentifier": "1"}]}


def _told(stack: Deployed, job: Job, message: str) -> list[dict[str, Any]]:
    return [line for line in stack.logs("orphan-cleanup", job.job_id) if line["message"] == message]


# -- a state machine -------------------------------------------------------------------------------------------------

MACHINES = {
    "works": {"Type": "Wait", "Seconds": 600, "End": True},
    "succeeds": {"Type": "Succeed"},
    "fails": {"Type": "Fail", "Error": "Broken", "Cause": "It always does."},
}


@pytest.fixture(scope="module")
def machines(stack: Deployed) -> Iterator[dict[str, str]]:
    """The ARN of each of `MACHINES`, in the account as an owner's own would be."""
    states, iam = stack.client("stepfunctions"), stack.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "states.amazonaws.com"}, "Action": "sts:AssumeRole"}
    role = f"e2e-{uuid4().hex[:8]}"
    role_arn = iam.create_role(
        RoleName=role, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )["Role"]["Arn"]
    arns = {
        name: states.create_state_machine(
            name=f"{stack.name}-e2e-{name}",
            definition=json.dumps({"StartAt": "Only", "States": {"Only": state}}),
            roleArn=role_arn,
        )["stateMachineArn"]
        for name, state in MACHINES.items()
    }
    yield arns
    for arn in arns.values():
        states.delete_state_machine(stateMachineArn=arn)
    iam.delete_role(RoleName=role)


def _executions(stack: Deployed, machine: str, job: Job) -> list[dict[str, Any]]:
    pages = stack.client("stepfunctions").get_paginator("list_executions").paginate(stateMachineArn=machine)
    return [one for page in pages for one in page["executions"] if one["name"].startswith(job.job_id)]


def _claimed_execution(stack: Deployed, machine: str, job: Job, *, status: str) -> Job:
    """The job once its execution has that status; claimed, as the machine's first step would."""
    (one,) = eventually(lambda: [e for e in _executions(stack, machine, job) if e["status"] == status])
    assert one["name"] == f"{job.job_id}-{job.attempt}-{job.continuation}"
    return stack.ledger.claim(
        job.job_id, attempt=job.attempt, continuation=job.continuation, execution_arn=one["executionArn"]
    )


def test_an_execution_that_works_is_not_run_twice(stack: Deployed, machines: dict[str, str], job_type: str) -> None:
    """B2; FAILURES 1: past its deadline, but alive: it gets more time. The same stream record starts nothing again."""
    job = _claimed_execution(
        stack, machines["works"], stack.seed(job_type, target="states:e2e-works"), status="RUNNING"
    )
    inserted = [record for record in stack.records(job.job_id) if record["eventName"] == "INSERT"]
    for _ in range(2):
        assert stack.invoke("dispatcher", {"Records": inserted}) == {"batchItemFailures": []}
    stack.backdate(job.job_id)
    row = stack.settled(job.job_id)
    assert (row.status, row.attempt, row.errors, row.rescues) == (Status.RUNNING, 1, (), ())
    assert row.deadline_at is not None and row.deadline_at > utc_now()
    assert len(_executions(stack, machines["works"], job)) == 1


def test_an_execution_past_all_its_extensions_is_stopped(
    stack: Deployed, machines: dict[str, str], job_type: str
) -> None:
    """B2: alive for ever is not alive."""
    job = _claimed_execution(
        stack, machines["works"], stack.seed(job_type, target="states:e2e-works", max_attempts=1), status="RUNNING"
    )
    stack.backdate(job.job_id, expires_at=LONG_AGO, deadline_at=LONG_AGO, started_at=LONG_AGO)
    row = stack.settled(job.job_id)
    assert (row.status, row.dead_letter, row.errors[0].reason) == (Status.FAILED, "exhausted", "deadline")
    (one,) = _executions(stack, machines["works"], job)
    assert one["status"] == "ABORTED"


def test_an_execution_that_succeeded_completes_its_job(
    stack: Deployed, machines: dict[str, str], job_type: str
) -> None:
    """B2; FAILURES 4: its end was not reported, and it succeeded all the same."""
    job = _claimed_execution(
        stack, machines["succeeds"], stack.seed(job_type, target="states:e2e-succeeds"), status="SUCCEEDED"
    )
    stack.backdate(job.job_id)
    row = stack.settled(job.job_id)
    assert (row.status, row.attempt, row.errors) == (Status.COMPLETED, 1, ())
    assert row.result == {"note": "The execution succeeded, but its end was not reported."}


def test_an_execution_that_failed_is_retried_as_another(
    stack: Deployed, machines: dict[str, str], job_type: str
) -> None:
    """B2, K5."""
    job = _claimed_execution(stack, machines["fails"], stack.seed(job_type, target="states:e2e-fails"), status="FAILED")
    stack.backdate(job.job_id)

    def retried() -> bool:
        stack.check()
        return len(_executions(stack, machines["fails"], job)) == 2

    eventually(retried)
    row = stack.ledger.get(job.job_id)
    assert (row.attempt, row.errors[0].reason, row.errors[0].message) == (2, "execution", "Its execution is FAILED.")
    names = {one["name"] for one in _executions(stack, machines["fails"], job)}
    assert names == {f"{job.job_id}-1-0", f"{job.job_id}-2-0"}


# -- a worker outside Lambda -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls(stack: Deployed) -> Iterator[Mailbox]:
    """A queue to which a rule brings the calls for outside workers."""
    mailbox = Mailbox(stack, "e2e-calls")
    events = stack.client("events")
    pattern = {"source": ["lamplighter"], "detail-type": ["Job released"]}
    events.put_rule(Name="e2e-calls", EventBusName=stack.bus, EventPattern=json.dumps(pattern))
    events.put_targets(Rule="e2e-calls", EventBusName=stack.bus, Targets=[{"Id": "queue", "Arn": mailbox.arn}])
    yield mailbox
    events.remove_targets(Rule="e2e-calls", EventBusName=stack.bus, Ids=["queue"])
    events.delete_rule(Name="e2e-calls", EventBusName=stack.bus)


def _call(calls: Mailbox, job: Job, attempt: int = 1) -> dict[str, Any]:
    """What the worker is told of an attempt."""

    def found() -> dict[str, Any] | None:
        details = [json.loads(body)["detail"] for body in calls.about(job.job_id)]
        return next((detail for detail in details if detail["attempt"] == attempt), None)

    return eventually(found)


def _claim(stack: Deployed, call: dict[str, Any]) -> Job:
    return stack.ledger.claim(call["job_id"], attempt=call["attempt"], continuation=call["continuation"])


def test_an_outside_worker_is_called_claims_and_reports(stack: Deployed, calls: Mailbox, job_type: str) -> None:
    """K1, K2, K7: of two workers that hear the call, one works."""
    job = stack.seed(job_type, target="bus", payload={"scene": 7})
    call = _call(calls, job)
    assert (call["job_type"], call["payload"]) == (job_type, {"scene": 7})
    claimed = _claim(stack, call)
    with pytest.raises(LostLease, match=r"is running at attempt 1\.0: attempt 1\.0 may not start it"):
        _claim(stack, call)
    beaten = stack.ledger.heartbeat(claimed, progress=40, message="at 40 %")
    assert (stack.ledger.get(job.job_id).progress, stack.ledger.get(job.job_id).message) == (40, "at 40 %")
    stack.ledger.complete(beaten, {"scenes": 1})
    row = stack.ledger.get(job.job_id)
    assert (row.status, row.progress, row.result) == (Status.COMPLETED, 100, {"scenes": 1})


def test_a_worker_that_wakes_after_its_timeout_changes_nothing(stack: Deployed, calls: Mailbox, job_type: str) -> None:
    """K2; FAILURES 15: the zombie's result is not the retry's."""
    job = stack.seed(job_type, target="bus")
    zombie = _claim(stack, _call(calls, job))
    stack.backdate(job.job_id)

    def call() -> dict[str, Any] | None:
        stack.check()
        return next((json.loads(body)["detail"] for body in calls.about(job.job_id) if '"attempt": 2' in body), None)

    second = _claim(stack, eventually(call))
    for wake in (
        lambda: stack.ledger.heartbeat(zombie, progress=99, message="still here"),
        lambda: stack.ledger.complete(zombie, {"by": "zombie"}),
        lambda: stack.ledger.fail(zombie, RuntimeError("late")),
    ):
        with pytest.raises(LostLease):
            wake()
    assert stack.ledger.get(job.job_id) == second
    stack.ledger.complete(second, {"by": "second"})
    assert stack.ledger.get(job.job_id).result == {"by": "second"}


def test_a_job_rescued_three_times_is_poison_until_it_is_redriven(
    stack: Deployed, calls: Mailbox, job_type: str, background: Callable[..., Future[Any]]
) -> None:
    """K10; FAILURES 18: it stays on the list until an operator has looked at it, and is redriven once."""
    job = stack.seed(job_type, target="bus", max_attempts=5, payload={"n": 1})
    for attempt in (1, 2, 3):

        def call(attempt: int = attempt) -> dict[str, Any] | None:
            stack.check()
            details = [json.loads(body)["detail"] for body in calls.about(job.job_id)]
            return next((detail for detail in details if detail["attempt"] == attempt), None)

        _claim(stack, eventually(call))  # the worker that this job kills
        stack.backdate(job.job_id)
    stack.check()
    row = stack.becomes(job.job_id, "failed")
    assert (row.dead_letter, row.attempt, len(row.rescues)) == ("poison", 3, 3)
    assert job.job_id in _dead_letters(stack)

    attempts = [background(stack.invoke, "job-control", {"action": "redrive", "job_id": job.job_id}) for _ in range(3)]
    (again,) = {attempt.result(30)["job_id"] for attempt in attempts}
    assert job.job_id not in _dead_letters(stack)
    redriven = stack.ledger.get(again)
    assert (redriven.redrive_of, redriven.payload, redriven.rescues) == (job.job_id, {"n": 1}, ())
    call = _call(calls, redriven)
    stack.ledger.complete(_claim(stack, call), None)
    assert stack.ledger.get(again).status is Status.COMPLETED
    with pytest.raises(FunctionFailed, match="is completed and not on the dead-letter list"):
        stack.invoke("job-control", {"action": "redrive", "job_id": again})


def _dead_letters(stack: Deployed) -> set[str]:
    return {job["job_id"] for job in stack.invoke("job-control", {"action": "dead_letters", "limit": 100})["jobs"]}
