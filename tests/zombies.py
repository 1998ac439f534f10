"""Zombies: readers of a row that has moved on since, each by one field of the fence alone (REQUIREMENTS K2, S11;
FAILURES 32).

A test takes a zombie's write to a store and asserts that the store refuses it. `collide` asserts first that row and
reader really differ, and in that field only, so a store that leaves the field out of its condition fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import AttemptError, Job, Status
from lamplighter.kernel.ledger.store import FENCE, Outcome

Pair = tuple[Job, Job]
"""The row as the zombie read it, and as it is now."""


def _attempt(ledger: Ledger, running: Job) -> Pair:
    """The attempt was declared dead; the next one runs."""
    waiting = ledger.expire(running)
    assert ledger.store.apply_many(ledger.releases([waiting])) == [Outcome.WRITTEN]
    return running, ledger.claim(running.job_id, attempt=running.attempt + 1, continuation=running.continuation)


def _continuation(ledger: Ledger, running: Job) -> Pair:
    """The attempt handed over; its continuation runs."""
    ledger.continue_later(running, checkpoint={"at": 1}, result=None)
    return running, ledger.claim(running.job_id, attempt=running.attempt, continuation=running.continuation + 1)


def _status(ledger: Ledger, running: Job) -> Pair:
    """The same attempt has ended."""
    return running, ledger.complete(running, {"first": True})


def _released(ledger: Ledger, running: Job) -> Pair:
    """Another checker has released the waiting job."""
    waiting = ledger.expire(running)
    return waiting, ledger.retry(running.job_id)


MOVES: Final[Mapping[str, Callable[[Ledger, Job], Pair]]] = {
    "attempt": _attempt,
    "continuation": _continuation,
    "status": _status,
    "released": _released,
}
"""How a running job comes to differ from what its reader saw in this field of the fence, and in no other."""

OVERTAKEN: Final = ("attempt", "continuation")
"""The moves after which another one runs the job."""


def collide(ledger: Ledger, running: Job, field: str) -> Pair:
    """Let the row move on, and assert that this alone tells the reader's row from the present one."""
    seen, row = MOVES[field](ledger, running)
    names = {*FENCE, field}
    differing = {name for name in names if getattr(seen, name) != getattr(row, name)}
    assert differing == {field}, f"the row moved on by {differing}"
    return seen, row


def _error(job: Job, now: datetime) -> AttemptError:
    return AttemptError(type="Late", message="late", attempt=job.attempt, at=now, reason="error")


Write = Callable[[Job, datetime], Job]

WRITES: Final[Mapping[Status, Mapping[str, Write]]] = {
    Status.RUNNING: {
        "heartbeat": lambda job, now: transitions.heartbeat(job, now=now, progress=99, message="late"),
        "complete": lambda job, now: transitions.complete(job, now=now, result={"late": True}),
        "finish_cancelled": lambda job, now: transitions.finish_cancelled(job, now=now, result={"late": True}),
        "continue_later": lambda job, now: transitions.continue_later(job, now=now, checkpoint={}, result=None),
        "fail": lambda job, now: transitions.fail(job, now=now, error=_error(job, now), retry=True, jitter=0),
        "fail permanently": lambda job, now: transitions.fail(
            job, now=now, error=_error(job, now), retry=False, jitter=0
        ),
        "cancel": lambda job, now: transitions.request_cancel(job, now=now),
        "expire": lambda job, now: transitions.expire(job, now=now, jitter=0, reason="deadline", message="late"),
    },
    Status.PENDING: {
        "claim": lambda job, now: transitions.claim(
            job, attempt=job.attempt, continuation=job.continuation, now=now, execution_arn="late"
        ),
        "release": lambda job, now: transitions.release(job, now=now),
        "cancel": lambda job, now: transitions.request_cancel(job, now=now),
        "expire": lambda job, now: transitions.expire(job, now=now, jitter=0, reason="pickup", message="late"),
    },
}
"""Everything that may be written over a row in this status, by what it was when it was read."""
