"""What is to become of a job that is past its expiry, on evidence and not by guess (REQUIREMENTS A13, B2).

Its deadline, its heartbeats and, for Step Functions, the execution's own status say whether it is retried, failed,
completed or given more time. The timeout checker and the cleanup's phase `stale_jobs` judge alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.ledger.store import Change, Outcome

logger = Logger(child=True)

Execution = Callable[[Job], str | None]
"""Gives the status of the Step Functions execution behind a job, None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of a job: the change of its row, and whether its execution is to be stopped first."""

    change: Change
    stops_execution: bool = False

    @property
    def label(self) -> str:
        """In a word: `retried`, `failed`, `completed`, `cancelled` or `extended`."""
        status = self.change.new.status
        return {Status.PENDING: "retried", Status.RUNNING: "extended"}.get(status, status.value)


def judge(ledger: Ledger, job: Job, execution: Execution) -> Verdict:
    """The verdict on a job past its expiry; nothing is written.

    Raises:
        LostLease: the job is no longer as the index had it.
        Exception: what `execution` raises.
    """
    status = execution(job) if job.execution_arn and job.status is Status.RUNNING else None
    now = ledger.clock()
    if status == "SUCCEEDED":
        done = {"note": "The execution succeeded, but its end was not reported."}
        new = transitions.complete(job, now=now, result=done)
        return Verdict(change=Change(old=job, new=new, unchanged=("expires_at",)))
    if status == "RUNNING":
        try:
            new = transitions.extend(job, now=now)
            return Verdict(change=Change(old=job, new=new, unchanged=("expires_at",)))
        except LostLease:
            return Verdict(change=ledger.expiry(job), stops_execution=True)
    if status in ("FAILED", "TIMED_OUT", "ABORTED"):
        return Verdict(change=ledger.expiry(job, reason="execution", message=f"Its execution is {status}."))
    return Verdict(change=ledger.expiry(job))


def execute(ledger: Ledger, verdicts: Sequence[Verdict]) -> list[Outcome]:
    """Stop the executions that are to be stopped and write the rows; what became of each, in their order."""
    stopped = [not verdict.stops_execution or _stop(verdict.change.old) for verdict in verdicts]
    changes = [verdict.change for verdict, done in zip(verdicts, stopped, strict=True) if done]
    outcomes = iter(ledger.store.apply_many(changes))
    return [next(outcomes) if done else Outcome.ERROR for done in stopped]


def execution_status(job: Job) -> str | None:
    """What Step Functions says of the execution behind a job; None if it knows of none."""
    states = client("stepfunctions")
    try:
        return str(states.describe_execution(executionArn=job.execution_arn)["status"])
    except states.exceptions.ExecutionDoesNotExist:
        return None


def _stop(job: Job) -> bool:
    states = client("stepfunctions")
    try:
        states.stop_execution(executionArn=job.execution_arn, error="TimedOut", cause="Ran past its extended deadline.")
    except states.exceptions.ClientError:
        logger.exception("an execution could not be stopped", extra={"job_id": job.job_id})
        return False
    return True
