"""The history of finished jobs: `job_history` in Postgres takes them over from the ledger when their retention ends.

A job is copied, read back and compared, and only then removed from the ledger, on condition that its row still is what
was copied (REQUIREMENTS B3, D4). Being killed anywhere between leaves it in both, and the next run ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools import Logger

from lamplighter.kernel.ledger.row import Job, decode, encode
from lamplighter.kernel.ledger.store import Outcome, Store

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = Logger(child=True)


class Fate(StrEnum):
    """What became of a job that was to move."""

    MOVED = "moved"
    """It left the ledger: for the history, or for good where there is no database."""
    CHANGED = "changed"
    """Its row was changed meanwhile, by a redrive; it stays until the next run has copied it as it is now."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A job and what became of it; `error` is a sentence where its fate is to have failed."""

    job: Job
    fate: Fate
    error: str | None = None


def move(jobs: Sequence[Job], *, store: Store, engine: Engine, now: datetime) -> list[Move]:
    """Copies finished jobs to the history, and removes from the ledger those that are found there as they are.

    One job's trouble is not the others'. A job that the history has already is not written again; an older copy that
    differs gives way.

    Args:
        jobs: whole rows, at most some hundred: they are written in one statement.
        store: the ledger's.
        engine: of the database that has `job_history`.
        now: when the copies' own retention begins.

    Raises:
        DatabaseUnavailable: nothing was removed.
        ValueError: a job is not finished.
    """
    rows = {job.job_id: row_of(job, now) for job in jobs}
    errors = _copy(engine, list(rows.values()))
    found = _documents(engine, rows)
    for job_id, row in rows.items():
        if job_id not in errors and found.get(job_id) != row["job"]:
            errors[job_id] = "Read back from job_history it is not what was written."
    safe = [job for job in jobs if job.job_id not in errors]
    outcomes = dict(zip((job.job_id for job in safe), store.remove_many(safe), strict=True))
    return [_told(job, outcomes.get(job.job_id), errors.get(job.job_id)) for job in jobs]


def remove(jobs: Sequence[Job], *, store: Store) -> list[Move]:
    """Removes finished jobs from the ledger where there is no database, so no history takes them over (P5).

    Raises:
        ValueError: a job is not finished.
    """
    if unfinished := [job.job_id for job in jobs if job.finished_at is None]:
        raise ValueError(f"Only finished jobs are removed: {', '.join(unfinished)} are not.")
    return [_told(job, outcome, None) for job, outcome in zip(jobs, store.remove_many(jobs), strict=True)]


def recall(engine: Engine, job_id: str) -> Job | None:
    """The job as it left the ledger, or None if the history has no such job.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    document = _documents(engine, [job_id]).get(job_id)
    return decode(document) if document else None


def row_of(job: Job, now: datetime) -> dict[str, Any]:
    """The `job_history` row of a finished job; `job` has the whole ledger row, spelled as `encode` does but for the
    shard in its type.

    Raises:
        ValueError: the job is not finished.
    """
    if job.finished_at is None:
        raise ValueError(f"Job {job.job_id} is {job.status}: only finished jobs have a history.")
    return {
        "job_id": job.job_id,
        "job_type": job.job_type,
        "status": str(job.status),
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "copied_at": now,
        "job": without_nul(encode(job) | {"job_type": job.job_type}),
    }


def without_nul(value: Any) -> Any:
    """A JSON value as Postgres's jsonb can hold it: it takes every character but this one."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {without_nul(key): without_nul(item) for key, item in value.items()}
    return [without_nul(item) for item in value] if isinstance(value, list) else value


def _copy(engine: Engine, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Writes the rows, together if that can be; why those that could not be written could not, by job_id."""
    from sqlalchemy.exc import DBAPIError

    if not rows:
        return {}
    with suppress(DBAPIError):  # one of them, most likely; a lost database is another error
        _write(engine, rows)
        return {}
    errors = {}
    for row in rows:
        try:
            _write(engine, [row])
        except DBAPIError as error:
            logger.exception("a job could not be copied", extra={"job_id": row["job_id"]})
            errors[row["job_id"]] = f"It could not be copied to job_history: {_reason(error)}"
    return errors


def _write(engine: Engine, rows: Sequence[dict[str, Any]]) -> None:
    from sqlalchemy.dialects.postgresql import insert

    from lamplighter.kernel.database import job_history

    statement = insert(job_history).values(rows)
    new = {column.name: statement.excluded[column.name] for column in job_history.columns if not column.primary_key}
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id"], set_=new, where=job_history.c.job.is_distinct_from(statement.excluded.job)
            )
        )


def _documents(engine: Engine, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the history has of these jobs, in a transaction after that which wrote it."""
    from sqlalchemy import select

    from lamplighter.kernel.database import job_history

    chosen = select(job_history.c.job_id, job_history.c.job).where(job_history.c.job_id.in_(list(job_ids)))
    with engine.connect() as connection:
        return {row.job_id: row.job for row in connection.execute(chosen)}


def _told(job: Job, outcome: Outcome | None, error: str | None) -> Move:
    match outcome:
        case Outcome.WRITTEN:
            return Move(job=job, fate=Fate.MOVED)
        case Outcome.LOST:
            return Move(job=job, fate=Fate.CHANGED)
    return Move(job=job, fate=Fate.FAILED, error=error or "It could not be removed from the ledger.")


def _reason(error: Any) -> str:
    facts = error.orig.args[0] if error.orig and error.orig.args else None
    return str(facts["M"]) if isinstance(facts, dict) and "M" in facts else type(error).__name__
