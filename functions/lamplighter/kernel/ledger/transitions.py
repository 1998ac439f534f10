"""Every way a job row may change, as pure functions: the old row and `now` in, the new row out.

    pending -> running -> completed | failed | cancelled
       ^          |
       +----------+  a failed or expired attempt with attempts left (attempt + 1, `run_at` in the future),
                     or a checkpoint (continuation + 1, at once)

A function that is given a row it cannot change raises `LostLease`; so does the store when the row has moved on in
the meantime. Randomness is given, never drawn, so each function is a function (REQUIREMENTS K1, K2, K5, K8, K10).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.row import AttemptError, Job, Policy, Status

MESSAGE_LIMIT: Final = 1_000
STACK_TRACE_LIMIT: Final = 8_000
"""Characters kept of an error, so that three of them stay far below the 400 KB of a DynamoDB item."""

MILLISECOND: Final = timedelta(milliseconds=1)

EXTENSIONS: Final = 2
"""A run whose execution proves to be alive may take this many times its timeout before it is stopped."""


def backoff(policy: Policy, failed_attempt: int, jitter: float) -> timedelta:
    """How long to wait after `failed_attempt` (1-based): exponential, capped, full jitter (REQUIREMENTS K5); in whole
    milliseconds, as the row keeps time.

    `jitter` is uniform in [0, 1]. Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """
    doublings = min(failed_attempt - 1, 32)  # far above any cap; keeps the product finite
    wait = min(policy.backoff_cap, policy.backoff_base * (1 << doublings)) * jitter
    return wait // MILLISECOND * MILLISECOND


def claim(
    job: Job,
    *,
    attempt: int,
    continuation: int,
    now: datetime,
    execution_arn: str | None = None,
    lease: str | None = None,
) -> Job:
    """Start the attempt: only the expected one, only once. `lease` is the digest of its token, if it has one (K13).

    Raises:
        LostLease: the job is not waiting for this attempt and continuation (a duplicate or late delivery).
    """
    if (job.status, job.attempt, job.continuation) != (Status.PENDING, attempt, continuation):
        raise LostLease(
            f"Job {job.job_id} is {job.status} at attempt {job.attempt}.{job.continuation}: "
            f"attempt {attempt}.{continuation} may not start it."
        )
    return replace(
        job,
        status=Status.RUNNING,
        released=True,
        started_at=now,
        heartbeat_at=now,
        deadline_at=now + job.policy.timeout,
        execution_arn=execution_arn or job.execution_arn,
        lease=lease,
    )


def heartbeat(job: Job, *, now: datetime, progress: int, message: str, checkpoint: dict[str, Any] | None = None) -> Job:
    """Say that the attempt lives, how far it is, and perhaps from where another one could go on. Progress never runs
    backwards."""
    _demand(job, Status.RUNNING)
    return replace(
        job,
        heartbeat_at=now,
        progress=max(job.progress, min(100, progress)),
        message=message[:MESSAGE_LIMIT],
        checkpoint=job.checkpoint if checkpoint is None else checkpoint,
    )


def complete(job: Job, *, now: datetime, result: dict[str, Any] | None) -> Job:
    """The attempt succeeded."""
    _demand(job, Status.RUNNING)
    return _finish(replace(job, result=result, progress=100), Status.COMPLETED, now)


def finish_cancelled(job: Job, *, now: datetime, result: dict[str, Any] | None) -> Job:
    """The attempt stopped because it was asked to; `result` says what it had already done (REQUIREMENTS K7)."""
    _demand(job, Status.RUNNING)
    return _finish(replace(job, result=result), Status.CANCELLED, now)


def continue_later(job: Job, *, now: datetime, checkpoint: dict[str, Any], result: dict[str, Any] | None) -> Job:
    """The attempt ran out of its function's time: go on from `checkpoint`, at once (REQUIREMENTS K8)."""
    _demand(job, Status.RUNNING)
    job = replace(job, checkpoint=checkpoint, result=result)
    if job.cancel_requested:
        return _finish(job, Status.CANCELLED, now)
    if job.continuation >= job.policy.max_continuations:
        message = f"Still unfinished after {job.continuation} continuations."
        error = AttemptError(type="Permanent", message=message, attempt=job.attempt, at=now, reason="continuations")
        return _dead(job, error, "exhausted", now)
    return replace(
        job,
        status=Status.PENDING,
        continuation=job.continuation + 1,
        lease=None,
        released=True,
        run_at=now,
        deadline_at=now + job.policy.pickup,
    )


def fail(
    job: Job,
    *,
    now: datetime,
    error: AttemptError,
    retry: bool,
    jitter: float,
    result: dict[str, Any] | None = None,
) -> Job:
    """The attempt failed: back to pending with a backoff while attempts are left and `retry` makes sense."""
    _demand(job, Status.RUNNING)
    job = replace(job, result=result if result is not None else job.result)
    if not retry:
        return _dead(job, error, "permanent", now)
    return _retry_or_give_up(job, error, now, jitter)


def request_cancel(job: Job, *, now: datetime) -> Job:
    """Cancel a waiting job at once; ask a running one, which stops within a batch (REQUIREMENTS K7)."""
    if job.status is Status.PENDING:
        return _finish(replace(job, cancel_requested=True), Status.CANCELLED, now)
    _demand(job, Status.RUNNING)
    return replace(job, cancel_requested=True)


def release(job: Job, *, now: datetime) -> Job:
    """A waiting job is due: let the dispatcher start it."""
    _demand(job, Status.PENDING)
    if job.released:
        raise LostLease(f"Job {job.job_id} was released already.")
    return replace(job, released=True, deadline_at=now + job.policy.pickup)


def expire(job: Job, *, now: datetime, jitter: float, reason: str, message: str) -> Job:
    """The attempt is dead, or was never picked up: retry it, or fail it for good (REQUIREMENTS A13, K10)."""
    if job.status.terminal:
        raise LostLease(f"Job {job.job_id} is {job.status}: it cannot expire.")
    rescues = (*job.rescues, now)
    job = replace(job, rescues=rescues)
    error = AttemptError(type="TimedOut", message=message, attempt=job.attempt, at=now, reason=reason)
    recent = sum(now - moment <= job.policy.poison_window for moment in rescues)
    if recent >= job.policy.poison_rescues and not job.cancel_requested:
        return _dead(job, error, "poison", now)
    return _retry_or_give_up(job, error, now, jitter)


def extend(job: Job, *, now: datetime) -> Job:
    """The execution behind an expired run proved to be alive: look again later (REQUIREMENTS B2).

    Raises:
        LostLease: the run has had its extensions (`EXTENSIONS` times its timeout); stop and expire it.
    """
    _demand(job, Status.RUNNING)
    assert job.started_at is not None
    limit = job.started_at + EXTENSIONS * job.policy.timeout
    if now >= limit:
        raise LostLease(f"Job {job.job_id} has had its extensions.")
    # A proof of life counts as a heartbeat: else a type that must send them would be found again at once.
    return replace(job, heartbeat_at=now, deadline_at=min(limit, now + job.policy.timeout / 4))


def _demand(job: Job, status: Status) -> None:
    if job.status is not status:
        raise LostLease(f"Job {job.job_id} is {job.status}, not {status}: nothing was changed.")


def _finish(job: Job, status: Status, now: datetime) -> Job:
    return replace(job, status=status, finished_at=now, deadline_at=None, checkpoint=None, lease=None, released=True)


def _dead(job: Job, error: AttemptError, why: str, now: datetime) -> Job:
    """Failed permanently. Lists show the message, so it says why, and no longer how far the job was."""
    error = _trimmed(error)
    job = replace(job, errors=(*job.errors, error), message=error.message, dead_letter=why)
    return _finish(job, Status.FAILED, now)


def _retry_or_give_up(job: Job, error: AttemptError, now: datetime, jitter: float) -> Job:
    if job.cancel_requested:
        return _finish(replace(job, errors=(*job.errors, _trimmed(error))), Status.CANCELLED, now)
    if job.attempt >= job.max_attempts:
        return _dead(job, error, "exhausted", now)
    run_at = now + backoff(job.policy, job.attempt, jitter)
    return replace(
        job,
        status=Status.PENDING,
        attempt=job.attempt + 1,
        released=False,
        run_at=run_at,
        deadline_at=None,  # nobody is late before the job is released
        errors=(*job.errors, _trimmed(error)),
        execution_arn=None,
        lease=None,
    )


def _trimmed(error: AttemptError) -> AttemptError:
    return replace(error, message=error.message[:MESSAGE_LIMIT], stack_trace=error.stack_trace[-STACK_TRACE_LIMIT:])
