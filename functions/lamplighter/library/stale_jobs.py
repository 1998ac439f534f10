"""Stale jobs: settles jobs that are past their expiry, running or pending (REQUIREMENTS B2).

A phase of the cleanup, and the second line behind the timeout checker, with the same judgement: an execution that lives
gets more time, one that succeeded completes its job, all else is retried or fails. A preview writes nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import BaseModel

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished
from lamplighter.kernel.ledger.judgement import Execution, Verdict, execute, execution_status, judge
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.ledger.store import Cursor, Outcome, Page, shards

PAGE: Final = 100
"""Jobs that are judged and written before the run is asked whether to stop."""

LISTED: Final = 100
"""Jobs that the report lists; the others are counted."""

NAMED: Final = 20
"""Failures that the report spells out, in `SENTENCE` characters each; the log has all."""

SENTENCE: Final = 250


class Item(BaseModel):
    """A job that was settled (REQUIREMENTS B9)."""

    job_id: str
    job_type: str
    status: str
    """What became of it: `retried`, `failed`, `completed` or `cancelled`."""
    timeout_minutes: float
    """How long it was allowed to take: to run, or to be picked up."""
    elapsed_minutes: float


class Report(JobReport):
    """What a run found and did; in a preview, what it would do."""

    dry_run: bool = False
    """Whether this was a preview."""
    cleaned_jobs: int = 0
    cleaned_job_details: list[Item] = []
    """The first `LISTED` of them."""
    extended: int = 0
    """Jobs whose execution lives and was given more time."""
    failed: int = 0
    """Jobs that could not be judged or written: the next run, or the checker, tries again."""
    failures: list[str] = []

    def counts(self) -> tuple[int, int]:
        """Jobs settled; their size does not matter here."""
        return self.cleaned_jobs, 0


class Place(BaseModel):
    """How far a run has come: the shard it is in, where in it, and what it has done."""

    shard: int = 0
    cursor: Cursor | None = None
    report: Report = Report()


def body(run: Run, *, execution: Execution = execution_status) -> Report | Unfinished:
    """Settle what is stale, a page at a time; `execution` tells the status of the execution behind a job."""
    place = Place.model_validate(run.checkpoint or {})
    ledger, report, now = Ledger.from_environment(), place.report, run.now()
    report.dry_run = run.job.dry_run
    while place.shard < len(shards()):
        reason = run.stop()
        if reason:
            done = Unfinished(checkpoint=place.model_dump(mode="json"), report=report)
            return report if reason == "cancelled" else done
        page = ledger.store.expired(place.shard, now, limit=PAGE, cursor=place.cursor)
        _settle(page, run, ledger, execution, report)
        place.cursor = page.next
        place.shard += page.next is None
        run.progress(100 * place.shard // len(shards()), f"{report.cleaned_jobs} stale jobs")
    return report


def _settle(page: Page, run: Run, ledger: Ledger, execution: Execution, report: Report) -> None:
    verdicts = []
    for job in page.jobs:
        if job.job_id == run.job_id:
            continue  # a run that takes longer than it should is not its own to judge
        try:
            verdicts.append(judge(ledger, job, execution))
        except LostLease:
            continue  # the index was behind the row
        except Exception as error:
            run.logger.exception("a job could not be judged", extra={"judged": job.job_id})
            _fail(report, f"{job.job_id}: {type(error).__name__}: {error}")
    outcomes = [Outcome.WRITTEN] * len(verdicts) if run.job.dry_run else execute(ledger, verdicts)
    for verdict, outcome in zip(verdicts, outcomes, strict=True):
        if outcome is Outcome.WRITTEN:
            _count(report, verdict, run.now())
        elif outcome is Outcome.ERROR:
            _fail(report, f"{verdict.change.old.job_id}: it could not be written.")


def _count(report: Report, verdict: Verdict, now: datetime) -> None:
    if verdict.label == "extended":
        report.extended += 1
        return
    report.cleaned_jobs += 1
    if len(report.cleaned_job_details) < LISTED:
        report.cleaned_job_details.append(_item(verdict.change.old, verdict.label, now))


def _fail(report: Report, sentence: str) -> None:
    report.status = "completed_with_errors"
    report.failed += 1
    if len(report.failures) < NAMED:
        report.failures.append(sentence[:SENTENCE])


def _item(job: Job, label: str, now: datetime) -> Item:
    if job.status is Status.RUNNING:
        allowed, began = job.policy.timeout, job.started_at or job.created_at
    else:
        allowed = job.policy.pickup
        began = (job.deadline_at or now) - allowed
    return Item(
        job_id=job.job_id,
        job_type=job.job_type,
        status=label,
        timeout_minutes=round(allowed.total_seconds() / 60, 1),
        elapsed_minutes=round((now - began).total_seconds() / 60, 1),
    )
