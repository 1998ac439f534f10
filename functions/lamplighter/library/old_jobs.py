"""Old jobs: moves finished jobs whose retention is over from the ledger to the history (REQUIREMENTS B3).

A phase of the cleanup. Without a database there is no history: the phase deletes the jobs (P5). How long a job stays
depends on its type and status (`jobs.retention_hours`); jobs of the upload processing are left to the phase that also
removes their files.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from lamplighter.kernel import history
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.ledger.store import Cursor, Store, shards
from lamplighter.kernel.no_database import has_database
from lamplighter.kernel.settings import Settings

PAGE: Final = 100
"""Jobs that are read, copied and removed before the run is asked whether to stop."""

NAMED: Final = 100
"""Failures that the report spells out; the log has all."""

ELSEWHERE: Final = frozenset({"upload_processing"})
"""Job types whose records another phase moves."""


class Report(JobReport):
    """What a run found and moved."""

    found: int = 0
    """Jobs whose retention is over."""
    removed: int = 0
    """Of these, moved to the history; without a database, deleted."""
    changed: int = 0
    """Of these, left for the next run because their rows were changed meanwhile."""
    failed: int = 0
    failures: list[str] = []
    """A sentence for each of the first that failed."""
    by_kind: dict[str, int] = {}
    """How many were found, by `<type>/<status>`."""
    dry_run: bool

    def counts(self) -> tuple[int, int]:
        """Jobs moved, in a preview those that would be; their size does not matter here."""
        return self.found if self.dry_run else self.removed, 0


class Place(BaseModel):
    """How far a run has come: the lane (a status's shard) it is in, where in it, and what it has done."""

    lane: int = 0
    cursor: Cursor | None = None
    counts: dict[str, int] = {}
    by_kind: dict[str, int] = {}
    failures: list[str] = []


LANES: Final = tuple((status, shard) for status in Status if status.terminal for shard in shards())


def body(run: Run) -> Report | Unfinished:
    """Move what is due, a page at a time; a preview counts it.

    Raises:
        DatabaseUnavailable: the history cannot be written, so nothing more was removed.
    """
    place = Place.model_validate(run.checkpoint or {})
    store = Ledger.from_environment().store
    now = run.now()
    while place.lane < len(LANES):
        reason = run.stop()
        if reason:
            report = _report(place, run)
            return report if reason == "cancelled" else Unfinished(checkpoint=place.model_dump(), report=report)
        status, shard = LANES[place.lane]
        before = now - shortest_retention(status, run.settings)
        page = store.finished(status, shard, before, limit=PAGE, cursor=place.cursor)
        _settle([job for job in page.jobs if is_due(job, run.settings, now)], place, run, store)
        place.cursor = page.next
        place.lane += page.next is None
        run.progress(100 * place.lane // len(LANES), f"{place.counts.get('found', 0)} old jobs")
    return _report(place, run)


def is_due(job: Job, settings: Settings, now: datetime) -> bool:
    """Whether a finished job's retention is over: the one predicate of preview and action (K11)."""
    if job.finished_at is None or job.job_type in ELSEWHERE:
        return False
    return job.finished_at + settings.job_retention(job.job_type, job.status) <= now


def shortest_retention(status: Status, settings: Settings) -> timedelta:
    """The age from which on jobs of a status may be due, whatever their type."""
    names = {name.partition("/")[0] for name in settings.jobs.retention_hours} | {"default"}
    return min(settings.job_retention(name, status) for name in names - ELSEWHERE)


def _settle(jobs: list[Job], place: Place, run: Run, store: Store) -> None:
    counts, by_kind = Counter(place.counts), Counter(place.by_kind)
    counts["found"] += len(jobs)
    by_kind.update(f"{job.job_type}/{job.status}" for job in jobs)
    if jobs and not run.job.dry_run:
        for moved in _moved(jobs, run, store):
            counts[moved.fate] += 1
            if moved.error:
                run.logger.error("a job could not be moved", extra={"moved": moved.job.job_id, "error": moved.error})
                place.failures = [*place.failures, f"{moved.job.job_id}: {moved.error}"][:NAMED]
    place.counts, place.by_kind = dict(counts), dict(by_kind)


def _moved(jobs: list[Job], run: Run, store: Store) -> list[history.Move]:
    if not has_database():
        return history.remove(jobs, store=store)
    from lamplighter.kernel.database import engine

    return history.move(jobs, store=store, engine=engine(), now=run.now())


def _report(place: Place, run: Run) -> Report:
    counts: Any = Counter(place.counts)
    return Report(
        status="completed_with_errors" if counts[history.Fate.FAILED] else "completed",
        found=counts["found"],
        removed=counts[history.Fate.MOVED],
        changed=counts[history.Fate.CHANGED],
        failed=counts[history.Fate.FAILED],
        failures=place.failures,
        by_kind=place.by_kind,
        dry_run=run.job.dry_run,
    )
