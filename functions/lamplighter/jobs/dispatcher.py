"""Dispatcher: follows the ledger's stream and does what a change of a job row calls for.

A released job is started, a critical job's final failure raises an alert, a schedule's completed run is noted for the
dead-man watch. If a job falls due within two minutes, a wait for that moment begins (`waits`). Each is safe to do
twice, because a stream record may come again: the attempt's claim lets only one delivery start, an execution's name
starts it once, an alert has a key, a schedule's time only moves forward, and a second wait finds nothing to do.
Records fail one by one; those that keep failing go to a dead-letter queue, and the pick-up deadline of a job that
could not be started brings it back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.ledger import waits
from lamplighter.kernel.ledger.dynamo import DynamoStore
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Job, Status, to_text
from lamplighter.kernel.ledger.stream import change_of, records_of
from lamplighter.kernel.notify import alert, flat

logger = Logger()


@dataclass(frozen=True, slots=True)
class Start:
    """Start the attempt that the row waits for."""

    job: Job


@dataclass(frozen=True, slots=True)
class Alert:
    """Tell people that a critical job failed for good."""

    job: Job


@dataclass(frozen=True, slots=True)
class Note:
    """Note that a schedule had a completed run."""

    schedule: str
    at: str


Action = Start | Alert | Note


def actions(old: Job | None, new: Job | None) -> list[Action]:
    """What a change from `old` to `new` calls for (None: the row did not exist, or was removed)."""
    if new is None:
        return []
    if new.status is Status.PENDING and new.released:
        return [] if old is not None and _turn(old) == _turn(new) else [Start(new)]
    if old is not None and old.status is new.status:
        return []
    if new.status is Status.FAILED and new.policy.critical:
        return [Alert(new)]
    if new.status is Status.COMPLETED and new.schedule and new.finished_at:
        return [Note(new.schedule, to_text(new.finished_at))]
    return []


def _turn(job: Job) -> tuple[Status, bool, int, int]:
    return job.status, job.released, job.attempt, job.continuation


def start(job: Job) -> None:
    """Start a released job where its policy says: a Lambda, a state machine, or a worker that listens on the bus."""
    kind, _, name = job.policy.target.partition(":")
    turn = {"job_id": job.job_id, "attempt": job.attempt, "continuation": job.continuation}
    stack = os.environ["STACK_NAME"]
    if kind == "lambda":
        client("lambda").invoke(FunctionName=f"{stack}-{name}", InvocationType="Event", Payload=json.dumps(turn))
    elif kind == "states":
        states = client("stepfunctions")
        try:
            states.start_execution(
                stateMachineArn=f"{os.environ['STATE_MACHINE_ARN_PREFIX']}{stack}-{name}",
                name=f"{job.job_id}-{job.attempt}-{job.continuation}",
                input=json.dumps(turn | {"job_type": job.job_type}),
            )
        except states.exceptions.ExecutionAlreadyExists:
            logger.info("execution exists already", extra=turn)
    elif kind == "bus":
        entry = {
            "EventBusName": os.environ["EVENT_BUS"],
            "Source": "lamplighter",
            "DetailType": "Job released",
            "Detail": json.dumps(turn | {"job_type": job.job_type, "payload": job.payload}),
        }
        answer = client("events").put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            raise RuntimeError(f"The event of job {job.job_id} was not taken: {answer['Entries']}")
    else:
        return  # a worker polls for it
    logger.info("started", extra=turn | {"target": job.policy.target, "job": job.job_type})


def note(schedule: str, at: str) -> None:
    """Move the schedule's last completed run forward to `at` (REQUIREMENTS K12)."""
    dynamodb = client("dynamodb")
    try:
        dynamodb.update_item(
            TableName=os.environ["JOBS_TABLE"],
            Key={"pk": {"S": f"SCHEDULE#{schedule}"}},
            UpdateExpression="SET last_completed_at = :at",
            ConditionExpression="attribute_not_exists(last_completed_at) OR last_completed_at < :at",
            ExpressionAttributeValues={":at": {"S": at}},
        )
    except dynamodb.exceptions.ConditionalCheckFailedException:
        logger.debug("a later run was noted already", extra={"schedule": schedule})


def announce(job: Job) -> None:
    """Raise the alert of a critical job's final failure (REQUIREMENTS K9); a permanent error's sentence says enough."""
    error = job.errors[-1]
    trace = [] if job.dead_letter == "permanent" else ["", *(f"  {line}" for line in error.stack_trace.splitlines())]
    alert(
        f"job#{job.job_id}",
        subject=f"{job.job_type} failed",
        message=[
            f"Job {job.job_id} ({flat(job.job_type)}) failed permanently after attempt {job.attempt} of "
            f"{job.max_attempts} ({job.dead_letter}): {flat(error.type)}: {error.message}",
            *trace,
        ],
    )


def handle(old: Job | None, new: Job | None) -> None:
    """Do what one change calls for."""
    for action in actions(old, new):
        match action:
            case Start(job):
                start(job)
            case Alert(job):
                announce(job)
            case Note(schedule, at):
                note(schedule, at)


def begin_wait(moments: Collection[datetime], now: datetime) -> None:
    """Wait for the first of a batch's moments; its pass finds the others. If that fails, the next scheduled pass acts
    on them: the records are not repeated for it, since that would hold up the starts behind them."""
    if not moments:
        return
    try:
        waits.begin_wait(DynamoStore(os.environ["JOBS_TABLE"]), min(moments), now, waits.start_waiting)
    except Exception:
        logger.exception("a wait could not be started", extra={"moment": to_text(min(moments))})


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """The Lambda behind the stream: reports the records that failed, so that only they come again.

    Without Powertools' batch processor, which would double the time of a cold start.

    Raises:
        Permanent: the event is no batch of the stream.
    """
    failures, moments, now = [], [], utc_now()
    for record in records_of(event):
        try:
            old, new = change_of(record)
            if moment := waits.moment_to_wait_for(old, new, now):
                moments.append(moment)
            handle(old, new)
        except Exception:
            logger.exception("a record failed", extra={"event_id": record["eventID"]})
            failures.append({"itemIdentifier": record["dynamodb"]["SequenceNumber"]})
    begin_wait(moments, now)
    return {"batchItemFailures": failures}
