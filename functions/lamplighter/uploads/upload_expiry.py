"""Expiry of uploads, the phase of the hourly job `upload_cleanup` (REQUIREMENTS D4, D5).

Looked at are all rows of uploads and all objects of the bucket:

    job finished longer ago than its status's TTL   its files are removed; then its record moves to the history
    input of a job that is final                    removed at once: its own deletion failed, or it was killed
    input that no job knows, some minutes old       its event was lost: it gets its job now
    output that no job knows, older than any TTL    removed: what a crash has left

Without a database there is no history: a record then stays as long as those of other jobs, and is deleted (P5).

What belongs to an active job is never touched. A deletion that fails is told of and tried again by the next run, until
when the record stays; it stops nothing else. Terminal rows do not change, so all this may be done twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import batched
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from pydantic import BaseModel

from lamplighter.kernel import history, phases
from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import DatabaseUnavailable
from lamplighter.kernel.job import Context, Run, Unfinished
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.ledger.by_type import partitions, read_partition
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.ledger.store import DuplicateJob
from lamplighter.kernel.no_database import has_database
from lamplighter.kernel.settings import Settings
from lamplighter.uploads import objects
from lamplighter.uploads.jobs import new_job
from lamplighter.uploads.objects import INPUTS, OUTPUTS, Found
from lamplighter.uploads.upload_processing import handler as processing

PAGE: Final = 100
"""Jobs that are read, expired and moved before the run is asked whether to stop."""

EVENT_IS_LOST: Final = timedelta(minutes=15)
"""How old an input without a job is when its event is given up; EventBridge takes seconds."""

NAMED: Final = 100
"""Items, and errors, that the report lists; the log has all."""

MEGABYTE: Final = 1_000_000


class Item(BaseModel):
    """A thing that was looked at, and what became of it (K11)."""

    kind: Literal["job", "input", "output"]
    name: str
    """A job's id, an object's key."""
    outcome: str
    bytes: int = 0


class Report(JobReport):
    """What a run found and did."""

    jobs_cleaned: int = 0
    """Jobs whose files are gone and whose records left the ledger; a preview counts what a run would do."""
    inputs_deleted: int = 0
    """Left behind by jobs that are final."""
    outputs_deleted: int = 0
    """Of jobs whose TTL is over, or that no job knew."""
    uploads_found: int = 0
    """Inputs whose event was lost: their jobs were made."""
    freed_bytes: int = 0
    active_jobs: int = 0
    timeouts: int = 0
    """Of the jobs cleaned, those of which an attempt had timed out."""
    completed: int = 0
    """Of the jobs cleaned, those that had completed."""
    mean_duration_seconds: float = 0
    """Of these."""
    duration_ms: int = 0
    """Of the run."""
    items: list[Item] = []
    """The first `NAMED`."""
    errors: list[str] = []
    dry_run: bool

    def counts(self) -> tuple[int, int]:
        """Jobs cleaned and bytes freed."""
        return self.jobs_cleaned, self.freed_bytes


@dataclass(slots=True, kw_only=True)
class Census:
    """What the ledger says of all uploads."""

    job_ids: set[str] = field(default_factory=set)
    live: set[tuple[str, str | None]] = field(default_factory=set)
    """Key and ETag of the inputs of active jobs."""
    final: dict[tuple[str, str | None], datetime] = field(default_factory=dict)
    """Those of jobs that are done with theirs, and when the newest was made; a preview is not at its input at all."""
    active: int = 0

    def take(self, job: Job) -> None:
        """Count a job in."""
        self.job_ids.add(job.job_id)
        if not job.status.terminal:
            self.active += 1
            self.live.add(_input_of(job))
        elif not job.dry_run:
            made = self.final.get(_input_of(job), job.created_at)
            self.final[_input_of(job)] = max(made, job.created_at)


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Serve the phase `uploads`. Raises as `phases.take`."""
    return phases.take(event, context, {"uploads": body})


def body(run: Run) -> Report | Unfinished:
    """Expire what is due; stopped and continued, it looks anew, and what it has removed is not there any more.

    Raises:
        DatabaseUnavailable: records could not be moved to the history; their files, and all the rest, were dealt with.
    """
    began = run.now()
    expiry = _Expiry(run)
    reason = expiry.work()
    report = expiry.report
    report.status = "completed_with_errors" if report.errors else "completed"
    report.duration_ms += round((run.now() - began) / timedelta(milliseconds=1))
    if reason == "out_of_time" and not run.job.dry_run:
        return Unfinished(checkpoint=report.model_dump(mode="json"), report=report)
    _tell(report, run.logger)
    if expiry.database_lost:
        raise expiry.database_lost
    return report


def is_due(job: Job, settings: Settings, now: datetime) -> bool:
    """Whether a job's TTL is over: the one predicate of preview and action (K11)."""
    if job.finished_at is None:
        return False
    completed = job.status is Status.COMPLETED
    hours = settings.uploads.ttl_completed_hours if completed else settings.uploads.ttl_failed_hours
    return job.finished_at + timedelta(hours=hours) <= now


def is_outlived(job: Job, settings: Settings, now: datetime) -> bool:
    """Whether a finished job's record is deleted where no history keeps it: not before other jobs' records are (P5)."""
    return job.finished_at is not None and job.finished_at + settings.job_retention(job.job_type, job.status) <= now


class _Stopped(Exception):
    """The run is to stop."""


class _Expiry:
    """One stretch of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._s3 = client("s3")
        self._bucket = os.environ["UPLOADS_BUCKET"]
        self._ledger = Ledger.from_environment()
        self._now = run.now()
        self.report = Report.model_validate((run.checkpoint or {}) | {"dry_run": run.job.dry_run})
        self._undeleted: set[tuple[str, str | None]] = set()
        self.database_lost: DatabaseUnavailable | None = None

    def work(self) -> str | None:
        """Do all of it; why it stopped before, or None."""
        inputs = list(objects.listed(self._s3, self._bucket, INPUTS))  # before the census: none is newer than its job
        outputs: dict[str, list[Found]] = {}
        for found in objects.listed(self._s3, self._bucket, OUTPUTS):
            outputs.setdefault(found.key.split("/")[1], []).append(found)
        try:
            census = self._census()
            self._settle_inputs(inputs, census)
            self._expire_jobs(outputs)
            self._remove_orphans(outputs, census)
        except _Stopped as stopped:
            return str(stopped)
        return None

    def _go_on(self, percent: int) -> None:
        self._run.progress(percent, f"{self.report.jobs_cleaned} uploads expired")
        if reason := self._run.stop():
            raise _Stopped(reason)

    def _pages(self, until: datetime | None = None) -> Iterator[tuple[Job, ...]]:
        for partition in partitions(processing.job_type):
            jobs = read_partition(self._ledger.store, partition, limit=PAGE, until=until)
            yield from batched(jobs, PAGE, strict=False)

    def _census(self) -> Census:
        census = Census()
        for jobs in self._pages():
            for job in jobs:
                census.take(job)
            self._go_on(10)
        self.report.active_jobs = census.active
        return census

    def _settle_inputs(self, inputs: list[Found], census: Census) -> None:
        for found in inputs:
            self._go_on(30)
            content = (found.key, found.etag)
            if {content, (found.key, None)} & census.live:
                continue
            made = census.final.get(content)
            if made and found.last_modified <= made:  # younger, it is the same file put there once more
                self._delete(found, "input")
            elif found.last_modified <= self._now - EVENT_IS_LOST:
                self._make_job(found)

    def _make_job(self, found: Found) -> None:
        """Of an upload whose event was lost; the same one if it is found again."""
        from botocore.exceptions import BotoCoreError, ClientError

        outcome = "would get its job"
        if not self._run.job.dry_run:
            seed = (self._bucket, found.key, found.etag, "lost event")
            job = new_job(
                self._ledger, self._run.settings, key=found.key, etag=found.etag, at=found.last_modified, seed=seed
            )
            try:
                self._ledger.submit(job)
            except DuplicateJob:
                return
            except (BotoCoreError, ClientError) as error:
                self._fail(f"{found.key}: its job could not be made: {error}")
                return
            outcome = f"got its job {job.job_id}"
            self._run.logger.warning("an upload without a job", extra={"key": found.key, "made": job.job_id})
        self.report.uploads_found += 1
        self._list(Item(kind="input", name=found.key, outcome=outcome, bytes=found.size))

    def _expire_jobs(self, outputs: Mapping[str, list[Found]]) -> None:
        shortest = min(self._run.settings.uploads.ttl_completed_hours, self._run.settings.uploads.ttl_failed_hours)
        for jobs in self._pages(until=self._now - timedelta(hours=shortest)):
            clean = []
            for job in jobs:
                if not is_due(job, self._run.settings, self._now):
                    continue
                self._go_on(60)
                gone = [self._delete(found, "output") for found in outputs.get(job.job_id, ())]
                if all(gone) and _input_of(job) not in self._undeleted:
                    clean.append(job)
            self._move(clean)

    def _move(self, jobs: list[Job]) -> None:
        """Records to the history, those of which nothing is left."""
        kept = has_database()
        if not kept:
            jobs = [job for job in jobs if is_outlived(job, self._run.settings, self._now)]
        if self._run.job.dry_run:
            for job in jobs:
                self._cleaned(job, "would move to the history" if kept else "its record would be deleted")
            return
        if self.database_lost or not jobs:
            return
        try:
            moves = self._left(jobs, kept=kept)
        except DatabaseUnavailable as error:
            self.database_lost = error
            return
        for move in moves:
            if move.fate is history.Fate.MOVED:
                self._cleaned(move.job, "moved to the history" if kept else "its record was deleted")
            elif move.error:
                self._fail(f"{move.job.job_id}: {move.error}")

    def _left(self, jobs: list[Job], *, kept: bool) -> list[history.Move]:
        """Let records leave the ledger."""
        if not kept:
            return history.remove(jobs, store=self._ledger.store)
        from lamplighter.kernel.database import engine

        return history.move(jobs, store=self._ledger.store, engine=engine(), now=self._run.now())

    def _cleaned(self, job: Job, outcome: str) -> None:
        self.report.jobs_cleaned += 1
        self.report.timeouts += any(error.type == "TimedOut" for error in job.errors)
        if job.status is Status.COMPLETED and job.started_at and job.finished_at:
            self.report.completed += 1
            seconds = (job.finished_at - job.started_at).total_seconds()
            self.report.mean_duration_seconds += (seconds - self.report.mean_duration_seconds) / self.report.completed
        self._list(Item(kind="job", name=job.job_id, outcome=f"{job.status}, {outcome}"))

    def _remove_orphans(self, outputs: Mapping[str, list[Found]], census: Census) -> None:
        longest = max(self._run.settings.uploads.ttl_completed_hours, self._run.settings.uploads.ttl_failed_hours)
        old = self._now - timedelta(hours=longest)
        for job_id in sorted(outputs.keys() - census.job_ids):
            self._go_on(90)
            if any(found.last_modified > old for found in outputs[job_id]):
                continue
            if self._ledger.store.get(job_id) is None:  # an index may lag behind; this does not
                for found in outputs[job_id]:
                    self._delete(found, "output")

    def _delete(self, found: Found, kind: Literal["input", "output"]) -> bool:
        """Whether the object is gone, or would be."""
        outcome = "would be deleted"
        if not self._run.job.dry_run:
            outcome = objects.delete(self._s3, self._bucket, found.key, found.etag)
        self._list(Item(kind=kind, name=found.key, outcome=outcome, bytes=found.size))
        if outcome.startswith("failed"):
            self._undeleted.add((found.key, found.etag))
            self._fail(f"{found.key}: {outcome}")
            return False
        if outcome.endswith("deleted"):
            self.report.freed_bytes += found.size
            self.report.inputs_deleted += kind == "input"
            self.report.outputs_deleted += kind == "output"
        return True

    def _list(self, item: Item) -> None:
        self._run.logger.info("expiry", extra={"item": item.model_dump()})
        if len(self.report.items) < NAMED:
            self.report.items.append(item)

    def _fail(self, sentence: str) -> None:
        if len(self.report.errors) < NAMED:
            self.report.errors.append(sentence)


def _input_of(job: Job) -> tuple[str, str | None]:
    return job.payload.get("key", ""), job.payload.get("etag")


def _tell(report: Report, logger: Logger) -> None:
    """The log line and the metrics of D5; CloudWatch sums them up by the hour."""
    freed = report.freed_bytes / MEGABYTE
    told = {"jobs_cleaned": report.jobs_cleaned, "disk_freed_mb": round(freed, 3), "duration_ms": report.duration_ms}
    logger.info("uploads expired", extra=told | {"dry_run": report.dry_run})
    if report.dry_run:
        return
    metrics = Metrics()
    metrics.add_dimension(name="job", value=processing.job_type)
    counted = {"JobsCleaned": report.jobs_cleaned, "Timeouts": report.timeouts, "ActiveJobs": report.active_jobs}
    for name, value in counted.items():
        if value:  # a metric that is written every hour costs thirty cents a month
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
    if freed:
        metrics.add_metric(name="SpaceFreed", unit=MetricUnit.Megabytes, value=freed)
    if report.completed:
        metrics.add_metric(name="MeanDuration", unit=MetricUnit.Seconds, value=report.mean_duration_seconds)
    if any(counted.values()) or freed or report.completed:
        metrics.flush_metrics()
