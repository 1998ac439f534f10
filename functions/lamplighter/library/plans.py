"""Plans: puts plans in PENDING back to DRAFT when the job behind them lives no more (REQUIREMENTS B5).

A phase of the cleanup. The jobs are in the ledger and the plans in Postgres, so a plan is changed only if it still is
as it was read before its job was looked up; one that was touched a moment ago may be waiting for its job to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from lamplighter import rules
from lamplighter.deletion import ramp
from lamplighter.kernel.errors import NoTable, Permanent, unfit
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished
from lamplighter.kernel.ledger.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

BATCH: Final = 500
"""Plans that are looked at before the run is asked whether to stop; each batch is a transaction."""

DEFINITION: Final = {"table": "analysis_plans", "where": "status = 'PENDING'"}
"""What the ramp knows of it (REQUIREMENTS S3)."""

GRACE: Final = timedelta(minutes=5)
"""Plans touched within this are left alone."""


class Report(JobReport):
    """How many plans were put back; in a preview, how many would be."""

    dry_run: bool
    plans: int = 0
    held_by_ramp: int = 0
    """Stuck plans that are left because the first runs change only a few, or because of `max_rows`."""

    def counts(self) -> tuple[int, int]:
        """Plans put back; their size does not matter here."""
        return self.plans, 0


class Place(BaseModel):
    """How far a run has come: the last plan it looked at, and how many it put back."""

    after: int | str | None = None
    plans: int = 0
    held: int = 0


def body(run: Run) -> Report | Unfinished:
    """Put stuck plans back, a batch at a time.

    Raises:
        DatabaseUnavailable: the database is down.
        Permanent: the table is not as it should be, or somebody has locked it as a whole.
    """
    from sqlalchemy.exc import DBAPIError

    from lamplighter.kernel.database import reason

    try:
        return _work(run)
    except DBAPIError as error:
        found = unfit(error)
        excused = isinstance(found, NoTable) or not rules.applied("plans", run.settings)
        kind = type(found) if found and excused else Permanent
        raise kind(f"analysis_plans: {reason(error.orig or error)}.") from error


def _work(run: Run) -> Report | Unfinished:
    place = Place.model_validate(run.checkpoint or {})
    ledger, before = Ledger.from_environment(), run.now() - GRACE
    dry_run = rules.previews("plans", run.job, run.settings)
    limits = ramp.of_rows("plans", DEFINITION, run.settings.rule("plans"))
    began = ramp.began(run.job_id, run.now())
    allowance = None if dry_run else ramp.open(run=run.job_id, now=began, **limits)
    limit = ramp.look(now=began, **limits) if dry_run else None
    while True:
        report = Report(dry_run=dry_run, plans=place.plans, held_by_ramp=place.held)
        if dry_run:
            report.held_by_ramp = ramp.held_back(place.plans, limit)
        if why := run.stop():
            done = Unfinished(checkpoint=place.model_dump(mode="json"), report=report)
            return report if why == "cancelled" else done
        pending = _pending(before, place.after)
        if not pending:
            if allowance:
                allowance.acted(place.plans)
            return report
        statuses = ledger.store.statuses({plan.job_id for plan in pending if plan.job_id})
        stuck = [plan for plan in pending if plan.job_id not in statuses or statuses[plan.job_id].terminal]
        if allowance:
            reserved = allowance.reserve(len(stuck))
            changed = _put_back(stuck[:reserved])
            allowance.give_back(reserved - changed)
            place.plans, place.held = place.plans + changed, place.held + len(stuck) - reserved
        else:
            place.plans += len(stuck)
        place.after = pending[-1].id
        run.progress(50, f"{place.plans} plans put back")


def _pending(before: datetime, after: int | str | None) -> Sequence[Any]:
    """The next plans in PENDING, not touched since `before`, in the order of their ids: `id, job_id, updated_at`."""
    from lamplighter.kernel.database import engine, whole_view

    with engine().connect() as connection:
        whole_view(connection, max_lag=GRACE)
        return connection.execute(_chosen(before, after).limit(BATCH)).all()


def _chosen(before: datetime, after: int | str | None) -> Select[Any]:
    from lamplighter.kernel.database import analysis_plans as plans

    chosen = plans.select().where(plans.c.status == "PENDING", plans.c.updated_at < before)
    if after is not None:
        chosen = chosen.where(plans.c.id > after)
    return chosen.order_by(plans.c.id)


def _put_back(stuck: Sequence[Any]) -> int:
    """Put those back that are as they were read; how many. One that somebody holds is left for the next run."""
    from sqlalchemy import func

    from lamplighter.kernel.database import analysis_plans as plans
    from lamplighter.kernel.database import engine

    if not stuck:
        return 0
    read = [(plan.id, plan.updated_at, plan.job_id or "") for plan in stuck]
    with engine().begin() as connection:
        ours = connection.execute(_unchanged(read).with_for_update(skip_locked=True)).scalars().all()
        changed = plans.update().where(plans.c.id.in_(ours)).values(status="DRAFT", updated_at=func.now())
        return connection.execute(changed).rowcount if ours else 0


def _unchanged(read: Sequence[tuple[int, datetime, str]]) -> Select[Any]:
    """The ids of the plans that still are in PENDING, with the moment and the job that were read."""
    from sqlalchemy import func, select, tuple_

    from lamplighter.kernel.database import analysis_plans as plans

    found = tuple_(plans.c.id, plans.c.updated_at, func.coalesce(plans.c.job_id, ""))
    return select(plans.c.id).where(found.in_(read), plans.c.status == "PENDING")


def demand_fitting(connection: Connection, now: datetime) -> None:
    """Plan the statements of the phase, which reads no row.

    Raises:
        sqlalchemy.exc.DBAPIError: a column is of a type that they do not take, or the user has no right to it.
    """
    for statement in (_chosen(now, 0), _unchanged([(0, now, "")])):
        connection.execute(statement.limit(0))
