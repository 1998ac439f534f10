"""Rows: applies a rule of `lamplighter.rules` as a phase of the cleanup (REQUIREMENTS B4, C16, E1)."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import BaseModel

from lamplighter import rules
from lamplighter.kernel import retention
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished

NAMED: Final = 20
"""Refused rows that the report spells out; the log has all."""


class Report(JobReport):
    """What a rule did to its table; in a preview, what it would do."""

    dry_run: bool
    """Whether this was a preview."""
    rows: int = 0
    bytes: int = 0
    """Of the rows, in a preview only: counting them before each deletion would cost as much as the deletion."""
    oldest: datetime | None = None
    newest: datetime | None = None
    """When the first and the last of them began to age, in a preview."""
    failed: int = 0
    """Rows that the database refused to change."""
    failures: list[str] = []
    skipped: int = 0
    """Rows left for the next run, because somebody held them."""

    def counts(self) -> tuple[int, int]:
        """Rows and, in a preview, their bytes."""
        return self.rows, self.bytes


class Place(BaseModel):
    """What a run has done so far; what is due follows from the rows alone."""

    rows: int = 0


def body(name: str, run: Run) -> Report | Unfinished:
    """Apply the rule of this name.

    Raises:
        DatabaseUnavailable: the database is down.
        Permanent: rule and table do not fit, or the settings keep rows for less than the rule allows.
    """
    from lamplighter.kernel.database import engine

    rule, now = rules.RULES[name], run.now()
    kept = rules.keep(rule, run.settings)
    if rules.previews(name, run.job, run.settings):
        found = retention.preview(engine(), rule, now=now, keep=kept)
        return Report(dry_run=True, rows=found.rows, bytes=found.bytes, oldest=found.oldest, newest=found.newest)
    place = Place.model_validate(run.checkpoint or {})

    done = retention.apply(engine(), rule, now=now, keep=kept, stop=run.stop, progress=run.progress)
    if done.failures:
        run.logger.error("rows were refused", extra={"rule": name, "failures": done.failures})
    report = Report(
        status="completed_with_errors" if done.failed else "completed",
        dry_run=False,
        rows=place.rows + done.rows,
        failed=done.failed,
        failures=list(done.failures[:NAMED]),
        skipped=done.skipped,
    )
    if done.stopped in ("out_of_time", "ceiling"):
        return Unfinished(checkpoint=Place(rows=report.rows).model_dump(), report=report)
    return report
