"""History: follows the ledger's stream and writes each job's start and end to `system_logs` in Postgres.

A function of its own, so that a database that is down delays the history and never a job. The row's id is derived
from what happened, so a record that comes again is written once (REQUIREMENTS K9, E8).
"""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from aws_lambda_powertools import Logger

from lamplighter.kernel.history import without_nul
from lamplighter.kernel.ledger.row import Job, Status, to_text
from lamplighter.kernel.ledger.stream import change_of, records_of

logger = Logger()
_NAMESPACE: Final = uuid.UUID("6f1d0b4e-5d0a-4c39-9a0c-2f6f3c7f7a51")


def entry(old: Job | None, new: Job | None) -> dict[str, Any] | None:
    """The `system_logs` row that a change of a job calls for, or None: starts, ends, retries and continuations."""
    if new is None:
        return None
    turn = (new.status, new.attempt, new.continuation)
    if old is not None and (old.status, old.attempt, old.continuation) == turn:
        return None
    told = _told(old, new)
    if told is None:
        return None
    at, level, message = told
    return {
        "id": uuid.uuid5(_NAMESPACE, "/".join(map(str, (new.job_id, *turn)))),
        "job_id": new.job_id,
        "job_type": new.job_type,
        "level": level,
        "message": message,
        "details": without_nul(_details(new)),
        "created_at": at,
    }


def _told(old: Job | None, new: Job) -> tuple[datetime, str, str] | None:
    if new.status is Status.RUNNING and new.started_at:
        return new.started_at, "INFO", f"started, attempt {new.attempt} of {new.max_attempts}"
    if new.finished_at:
        level = "ERROR" if new.status is Status.FAILED else "INFO"
        return new.finished_at, level, str(new.status)
    if old is not None and new.attempt > old.attempt:
        error = new.errors[-1]
        return error.at, "WARNING", f"attempt {error.attempt} failed, the next is due at {to_text(new.run_at)}"
    if old is not None and new.continuation > old.continuation:
        return new.run_at, "INFO", f"stopped in time, goes on from its checkpoint ({new.continuation})"
    return None


def _details(job: Job) -> dict[str, Any]:
    details: dict[str, Any] = {
        "attempt": job.attempt,
        "continuation": job.continuation,
        "trigger": job.trigger,
        "dry_run": job.dry_run,
        "progress": job.progress,
        "result": job.result,
    }
    if job.started_at and job.finished_at:
        details["duration_seconds"] = (job.finished_at - job.started_at).total_seconds()
    if job.errors:
        details["errors"] = [asdict(error) | {"at": to_text(error.at)} for error in job.errors]
    return details


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Write a batch in one transaction; if the database is down the whole batch comes again.

    Raises:
        Permanent: the event is no batch of the stream.
        DatabaseUnavailable: nothing was written.
    """
    records = records_of(event)
    rows = [row for record in records if (row := entry(*change_of(record)))]
    if rows:
        from sqlalchemy.dialects.postgresql import insert

        from lamplighter.kernel.database import engine, system_logs

        with engine().begin() as connection:
            connection.execute(insert(system_logs).on_conflict_do_nothing(index_elements=["id"]), rows)
    logger.info("history written", extra={"records": len(records), "rows": len(rows)})
    return {"batchItemFailures": []}
