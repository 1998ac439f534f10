"""Waits for the moments at which jobs fall due (REQUIREMENTS K15).

One row of the table says when the next wait ends. Every pass looks `AHEAD`, so a wait covers all moments after its
end: its pass begins the next wait. A change whose moment comes before that end begins a wait of its own. So about one
wait ends in a second however many jobs fall due, and an idle ledger has none (docs/adr/0022).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from lamplighter.kernel.aws import client
from lamplighter.kernel.ledger.row import Job, Status, to_text
from lamplighter.kernel.ledger.store import Store

AHEAD: Final = timedelta(minutes=2)
"""How far a pass looks ahead. The scheduler starts one anywhere within its minute, so two may be this far apart."""

SETTLE: Final = timedelta(milliseconds=250)
"""The table's indexes follow a write within this time; a pass that begins sooner may not see it."""

SECOND: Final = timedelta(seconds=1)

Start = Callable[[datetime], None]
"""Starts an execution that waits until a moment."""


def moment_of(job: Job) -> datetime | None:
    """When the checker has to act on the job; None if it has finished."""
    waiting = job.status is Status.PENDING and not job.released
    return job.run_at if waiting else job.expires_at


def moment_to_wait_for(old: Job | None, new: Job | None, now: datetime) -> datetime | None:
    """The moment that a change calls for a wait for, None if it calls for none.

    A moment that moves later needs no new wait: the pass at the earlier one looks ahead and finds it. So heartbeats
    begin no waits.
    """
    moment = moment_of(new) if new else None
    if moment is None or moment > now + AHEAD:
        return None
    before = moment_of(old) if old else None
    return None if before is not None and now + SETTLE < before <= moment else moment


def begin_wait(store: Store, moment: datetime, now: datetime, start: Start, *, settle: timedelta = SETTLE) -> bool:
    """Begin a wait for `moment`, unless another one ends before it; whether it was begun.

    A wait ends with a whole second, since Step Functions truncates a timestamp to seconds ("Wait workflow state").

    Args:
        settle: how soon a pass may begin that is to see the moment; nothing if an index has shown it.

    Raises:
        Exception: what `start` raises; then the moment is as free as before.
    """
    until = _whole_second(max(moment, now + settle))
    if not store.reserve_wait(until, earliest=now + settle):
        return False
    try:
        start(until)
    except Exception:
        store.free_wait(until)
        raise
    return True


def start_waiting(until: datetime) -> None:
    """Start an execution of the checker's state machine that waits, then makes one pass."""
    client("stepfunctions").start_execution(
        stateMachineArn=f"{os.environ['STATE_MACHINE_ARN_PREFIX']}{os.environ['STACK_NAME']}-timeout-checker",
        input=json.dumps({"until": to_text(until)}),
    )


def _whole_second(moment: datetime) -> datetime:
    floor = moment.replace(microsecond=0)
    return floor if floor == moment else floor + SECOND
