"""The routes for workers outside Lambda: submit a job, claim its attempt, send heartbeats, complete or fail it.

A claim answers a lease token, once. Each later call names the attempt and continuation and gives their lease. The
answer is 409, and nothing changes, if the attempt was timed out or another worker holds it (REQUIREMENTS K2, K13).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Final

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.router import APIGatewayHttpRouter
from pydantic import AfterValidator, Field

from lamplighter.catalogue import NAMES
from lamplighter.jobs.http.problems import conflict, documented, invalid
from lamplighter.jobs.http.requests import MADE, Body, IdempotencyKey, JobIdInPath, submitted
from lamplighter.jobs.shown import JobTypeName, Whole
from lamplighter.kernel import settings
from lamplighter.kernel.job import RESULT_LIMIT
from lamplighter.kernel.ledger.ledger import Ledger, demand_lease
from lamplighter.kernel.ledger.row import PAYLOAD_LIMIT, Job, Status, Trigger
from lamplighter.kernel.ledger.transitions import MESSAGE_LIMIT, STACK_TRACE_LIMIT
from lamplighter.kernel.policies import outside

router = APIGatewayHttpRouter()  # type: ignore[no-untyped-call]

TAGS: Final = ["Workers outside Lambda"]
_LEASE: Final = "q7Jm0Xn2cV4bZ6sD8fG1hK3lP5oI9uY7tR5eW3qA1zE"
"""An example."""


def _at_most(limit: int) -> AfterValidator:
    def check(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and len(json.dumps(value)) > limit:
            raise ValueError(f"takes {limit} characters of JSON at most: put the rest into S3")
        return value

    return AfterValidator(check)


class Submission(Body):
    """A job for a worker outside Lambda."""

    job_type: JobTypeName
    payload: Annotated[dict[str, Any], _at_most(PAYLOAD_LIMIT)] = Field({}, examples=[{"library": 7}])


class Turn(Body):
    """The attempt that the worker speaks for."""

    attempt: int = Field(ge=1, le=1000, examples=[1])
    continuation: int = Field(ge=0, le=1000, examples=[0])


class LeasedTurn(Turn):
    """The attempt that the worker holds."""

    lease: str | None = Field(None, pattern="^[A-Za-z0-9_-]{43}$", examples=[_LEASE])
    """The token that the claim of the attempt answered. Only attempts claimed before leases existed have none."""


class Claimed(Whole):
    """The job whose attempt has started, and the lease of the attempt."""

    lease: str = Field(examples=[_LEASE])
    """The token that heartbeat, complete and fail need. It is answered once: keep it until the attempt ends."""


class Beat(LeasedTurn):
    """A sign of life."""

    progress: int = Field(ge=0, le=100, examples=[40])
    message: str = Field("", max_length=MESSAGE_LIMIT, examples=["4 of 10 parts"])


class Completion(LeasedTurn):
    """The work is done, or was stopped because a cancellation was asked for."""

    result: Annotated[dict[str, Any] | None, _at_most(RESULT_LIMIT)] = Field(None, examples=[{"analysed": 1200}])
    cancelled: bool = False
    """Whether the worker stopped because of `cancel_requested`; `result` says what it had done by then."""


class Failure(LeasedTurn):
    """The attempt failed."""

    type: str = Field("Error", min_length=1, max_length=200, examples=["TimeoutError"])
    message: str = Field(min_length=1, max_length=MESSAGE_LIMIT, examples=["the library does not answer"])
    stack_trace: str = Field("", max_length=STACK_TRACE_LIMIT)
    retry: bool = True
    """False: trying again cannot help, fail for good."""


@router.post(
    "/api/jobs",
    summary="Submit a job for a worker outside Lambda",
    description="Its release is told on the stack's event bus (`Job released`); it has its type's timeout to be picked "
    "up and to run. Lamplighter's own job types are run with `POST /api/jobs/run`.",
    operation_id="submit",
    tags=TAGS,
    responses=documented(MADE, 409, body=True),
)
def submit(submission: Submission, idempotency_key: IdempotencyKey = None) -> Response[Whole]:
    """A row that waits for its worker."""
    if submission.job_type in NAMES:
        sentence = f"body.job_type: {submission.job_type} is run by Lamplighter itself: POST /api/jobs/run."
        raise invalid([("body.job_type", sentence)])
    ledger = Ledger.from_environment()
    policy = outside(submission.job_type, settings.load())
    new = ledger.new_job(submission.job_type, policy, payload=submission.payload, trigger=Trigger.API)
    return submitted(ledger, new, idempotency_key, router.current_event.raw_event)


def _documented() -> Any:
    return documented({200: {"description": "The job as it is now"}}, 404, 409, body=True)


@router.post(
    "/api/jobs/<job_id>/claim",
    summary="Start an attempt",
    description="The attempt and continuation are those of the event, or of the job. Exactly one claim wins; 409 for "
    "the others, and while the job waits to be tried again. `lease` in the answer is a token that the attempt's other "
    "calls need; only this answer has it. If the answer is lost, the attempt times out and the job is retried.",
    operation_id="claim",
    tags=TAGS,
    responses=_documented(),
)
def claim(job_id: JobIdInPath, turn: Turn) -> Claimed:
    """Pending to running, for the expected attempt only."""
    ledger = Ledger.from_environment()
    job = ledger.get(job_id)
    _demand_outside(job)
    if job.status is Status.PENDING and not job.released:
        raise conflict(
            "not-due", f"Job {job_id} waits until {job.run_at:%Y-%m-%d %H:%M:%S} UTC before it is tried again."
        )
    lease = ledger.new_lease()
    claimed = ledger.claim(job_id, attempt=turn.attempt, continuation=turn.continuation, lease=lease)
    return Claimed.of(replace(claimed, lease=lease))


@router.post(
    "/api/jobs/<job_id>/heartbeat",
    summary="Say that the attempt lives, and how far it is",
    description="`cancel_requested` in the answer says whether to stop. A worker that has sent heartbeats and falls "
    "silent for 5 minutes is taken for dead.",
    operation_id="heartbeat",
    tags=TAGS,
    responses=_documented(),
)
def heartbeat(job_id: JobIdInPath, beat: Beat) -> Whole:
    """A heartbeat with progress."""
    ledger, job = _leased(job_id, beat)
    return Whole.of(ledger.heartbeat(job, progress=beat.progress, message=beat.message))


@router.post(
    "/api/jobs/<job_id>/complete",
    summary="Record that the work is done, or was cancelled",
    operation_id="complete",
    tags=TAGS,
    responses=_documented(),
)
def complete(job_id: JobIdInPath, completion: Completion) -> Whole:
    """The attempt's end, well or by cancellation."""
    ledger, job = _leased(job_id, completion)
    if not completion.cancelled:
        return Whole.of(ledger.complete(job, completion.result))
    if not job.cancel_requested:
        raise conflict("not-cancelled", f"Nobody asked job {job_id} to stop: it cannot end as cancelled.")
    return Whole.of(ledger.finish_cancelled(job, completion.result))


@router.post(
    "/api/jobs/<job_id>/fail",
    summary="Record that the attempt failed",
    description="It is tried again after a growing random wait while attempts are left, unless `retry` is false.",
    operation_id="fail",
    tags=TAGS,
    responses=_documented(),
)
def fail(job_id: JobIdInPath, failure: Failure) -> Whole:
    """The attempt's end, badly."""
    ledger, job = _leased(job_id, failure)
    failed = ledger.fail_as(job, failure.type, failure.message, stack_trace=failure.stack_trace, retry=failure.retry)
    return Whole.of(failed)


def _leased(job_id: str, turn: LeasedTurn) -> tuple[Ledger, Job]:
    """The job, as the attempt that holds it may change it.

    Raises:
        UnknownJob: there is no such job.
        Problem: it is no job for a worker outside.
        LostLease: it is not running at this attempt and continuation, or the lease is not theirs.
    """
    ledger = Ledger.from_environment()
    job = ledger.get(job_id)
    _demand_outside(job)
    demand_lease(job, attempt=turn.attempt, continuation=turn.continuation, lease=turn.lease)
    return ledger, job


def _demand_outside(job: Job) -> None:
    """Raises Problem if a worker outside may not touch the job: its function does."""
    if not job.outside:
        raise conflict("not-for-workers", f"Job {job.job_id} ({job.job_type}) is run by Lamplighter itself.")
