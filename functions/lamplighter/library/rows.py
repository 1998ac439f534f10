"""Rows: applies a rule of `lamplighter.rules` as a phase of the cleanup (REQUIREMENTS B4, C16, E1).

The first runs over the owner's rows change a few of them (S3, `lamplighter.deletion.ramp`). All attempts of a run share
one allowance: it is reserved before the rows are changed, and what is left of it is returned.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from lamplighter import rules
from lamplighter.deletion import ramp
from lamplighter.kernel import retention
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished
from lamplighter.kernel.settings import Settings

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
    """Rows left for the next run: somebody held them, or they stood among too many that are refused."""
    held_by_ramp: int | None = 0
    """Rows that are due and left because the first runs change only a few, or because of `max_rows`; None where
    counting them takes too long."""

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
        Permanent: rule and table do not fit, or the settings are wrong.
    """
    from lamplighter.kernel.database import engine

    rule, now = rules.in_force(run.settings)[name], run.now()
    kept = rule.keep
    limits = ramp_of(rule, run.settings)
    if rules.previews(name, run.job, run.settings):
        found = retention.preview(engine(), rule, now=now, keep=kept)
        return Report(
            dry_run=True,
            rows=found.rows,
            bytes=found.bytes,
            oldest=found.oldest,
            newest=found.newest,
            held_by_ramp=ramp.held_back(found.rows, ramp.look(now=now, **limits)) if limits else 0,
        )
    place = Place.model_validate(run.checkpoint or {})
    with engine().connect():
        pass  # a database that is down uses up no allowance
    began = ramp.began(run.job_id, now)
    allowance = ramp.open(run=run.job_id, now=began, **limits) if limits else None
    reserved = allowance.reserve_all() if allowance else None
    counted = 0

    def count(rows: int) -> None:
        nonlocal counted
        counted += rows

    try:
        done = retention.apply(
            engine(), rule, now=now, keep=kept, stop=run.stop, progress=run.progress, ceiling=reserved, counted=count
        )
    finally:
        if allowance and reserved is not None:
            allowance.give_back(reserved - counted)
    held = _held(rule, now, kept, done) if done.stopped == "ceiling" else 0
    if done.failures:
        run.logger.error("rows were refused", extra={"rule": name, "failures": done.failures})
    report = Report(
        status="completed_with_errors" if done.failed else "completed",
        dry_run=False,
        rows=place.rows + done.rows,
        failed=done.failed,
        failures=list(done.failures[:NAMED]),
        skipped=done.skipped,
        held_by_ramp=held,
    )
    if allowance and done.stopped in (None, "ceiling"):
        allowance.acted(report.rows)
    if done.stopped == "out_of_time":
        return Unfinished(checkpoint=Place(rows=report.rows).model_dump(), report=report)
    return report


def ramp_of(rule: retention.Rule, settings: Settings) -> dict[str, Any]:
    """What the ramp takes for the owner's rows; nothing for Lamplighter's own, which are not limited."""
    if rule.name in rules.OWN:
        return {}
    return ramp.of_rows(rule.name, definition(rule), settings.rule(rule.name))


def definition(rule: retention.Rule) -> dict[str, Any]:
    """What a rule means to the ramp: a change starts it again (REQUIREMENTS S3).

    What earlier versions did not have is left out where the rule does without it, so that trust outlives an upgrade.
    """
    facts: dict[str, Any] = {
        "table": rule.table,
        "clock": rule.clock,
        "where": rule.where,
        "action": repr(rule.action),
    }
    if rule.key != "id":
        facts["key"] = rule.key
    if rule.clock_unit != "timestamp":
        facts["clock_unit"] = rule.clock_unit
    if rule.orphan_of:
        facts["orphan_of"] = repr(rule.orphan_of)
    return facts


def _held(rule: retention.Rule, now: datetime, kept: timedelta, done: retention.Applied) -> int | None:
    """How many rows are still due, without those that the run found refused or held."""
    from lamplighter.kernel.database import engine

    try:
        found = retention.preview(engine(), rule, now=now, keep=kept)
        return max(0, found.rows - done.failed - done.skipped)
    except Permanent:  # it takes too long
        return None
