"""Phases that are the same work on many items, several at a time: what the steps of a state machine's Map do (C17).

    divide -> Map: item, item, item ... -> gather

`divide` says what the items are; the Map calls the phase's function for each, which does `work` at one; an item whose
call comes to nothing is `lost`, and the others are not; `gather` makes one outcome of all, with which the run goes on
as after any phase. The function serves its items with

    def handler(event, context):
        return fan_out.work(event, context, body)

where `body(run: Run, item: dict) -> Report` does one item whole or not at all, and asks `ask(run)` at every step that
can wait. An item may be delivered twice, and is done again when the execution died before `gather`: a body can bear
that.

No item is begun that could outlast the execution. Those that are left then are the next execution's (REQUIREMENTS K8),
as those of a run that was cancelled are nobody's (K7).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from textwrap import shorten
from typing import Any, Final

from aws_lambda_powertools import Logger
from pydantic import BaseModel, ConfigDict

from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.errors import AllItemsFailed, LostLease, Permanent, Retryable, unreadable
from lamplighter.kernel.events import json_object, parsed, shown
from lamplighter.kernel.job import STOP_MARGIN, Context, Report, Run, Unfinished, logged_as
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.ledger.transitions import MESSAGE_LIMIT
from lamplighter.kernel.phased_job import Caught, Division, Done, Item, Outcome, PhasedJob, State
from lamplighter.kernel.phases import first, give_up, held, kind_of, logged, measure, note, over_at, state_of, then

logger = Logger()

SENTENCE: Final = 200
"""Characters of an item's error that travel."""
REMARK: Final = 100
"""Characters of what an item has to remark, which travels beside its numbers."""

REPORT_LIMIT: Final = 170_000
"""Characters of the phase's report that travel: 340 for each of five hundred items. Step Functions takes 256 KiB in all
("Quotas"), so while the items' own answers travel, the report's lists do not."""

Body = Callable[[Run, dict[str, Any]], Report]


class Stopped(Exception):
    """The body is to end now: the run was cancelled, or the item takes longer than a function may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The item was stopped: {reason.replace('_', ' ')}.")
        self.reason = reason


def ask(run: Run) -> None:
    """Ask whether to go on; cheap, from any thread.

    Raises:
        Stopped: no.
        LostLease: the attempt was declared dead; do nothing more.
    """
    if reason := run.stop():
        raise Stopped(reason)


class Share(BaseModel):
    """One item of a run, as the Map gives it to the phase's function."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    attempt: int
    continuation: int
    job_type: str
    phase: str
    function: str
    item: Item
    error: Caught | None = None
    """Put here by the state machine's Catch."""

    @property
    def state(self) -> State:
        """As much of the run's state as an item knows."""
        return State(
            job_id=self.job_id, attempt=self.attempt, continuation=self.continuation, job_type=self.job_type, left=[]
        )


def divide(event: Mapping[str, Any], types: Mapping[str, PhasedJob]) -> dict[str, Any]:
    """Say what the state's first phase is divided into: what an earlier execution left of it, or else all of it.

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
        Exception: the items cannot be told, and the error is not Permanent: the phase failed.
    """
    state, ledger, settings = state_of(event), Ledger.from_environment(), settings_module.load()
    turn, division = first(state), _division(state, types)
    with logged(state, phase=turn.name):
        low, high = turn.span
        job = ledger.heartbeat(held(ledger, state), progress=low, message=turn.name.replace("_", " "))
        answer = then(state, job, ledger, over=job.cancel_requested)
        if answer["next"] == "finish":
            return answer
        done = len(state.checkpoint["done"]) if state.checkpoint else 0
        try:
            left = state.checkpoint["left"] if state.checkpoint else division.items(settings)
        except Permanent as error:
            logger.exception("a phase failed")
            give_up(state, error)
            job = ledger.heartbeat(job, progress=high, message=job.message, checkpoint=state.kept())
            return then(state, job, ledger, over=job.cancel_requested)
        all_ = done + len(left)
        state.parts = [
            Item(value=item, progress=low + (high - low) * (done + n) // all_) for n, item in enumerate(left)
        ]
        state.concurrency, state.results, state.next = division.concurrency(settings), [], "items"
        logger.info("divided", extra={"items": len(left), "concurrency": state.concurrency})
        return state.model_dump(mode="json")


def work(event: Mapping[str, Any], context: Context, body: Body) -> dict[str, Any]:
    """Do one item; answers what has become of it.

    Raises:
        Retryable: a passing failure: the state machine calls again, a few times.
        LostLease: the attempt was declared dead: nothing was begun, or nothing more will be.
    """
    share, ledger, settings = parsed(Share, event), Ledger.from_environment(), settings_module.load()
    item, function_time = share.item.value, timedelta(milliseconds=context.get_remaining_time_in_millis())
    with logged(share.state, phase=share.phase), logged_as(logger, item=item):
        job = held(ledger, share.state)
        began = ledger.clock()
        if job.cancel_requested or began + function_time > over_at(job):
            return _told(Done(item=item, left=True))
        job = ledger.heartbeat(job, progress=share.item.progress, message=", ".join(map(str, item.values())))
        stop_at = began + max(function_time - STOP_MARGIN, function_time / 2)
        run = _ItemRun(share.state, job, ledger, settings=settings, stop_at=stop_at)
        try:
            report = body(run, item)
        except Stopped:
            if run.cancelled:
                return _told(Done(item=item, left=True))
            logger.exception("an item takes too long")
            minutes = function_time.total_seconds() / 60
            within = f"It was not done within the {minutes:.0f} min that a function may take"
            return _told(_failed(item, f"{within}; nothing of it is recorded."))
        except (Retryable, LostLease):
            raise
        except Exception as raised:
            logger.exception("an item failed")
            error = unreadable(raised) or raised
            return _told(_failed(item, f"{type(error).__name__}: {error}", final=isinstance(error, Permanent)))
        items, size = report.counts()
        logger.info("worked", extra={"report": report.model_dump(mode="json")})
        outcome = Outcome(items=items, bytes=size, report=report.model_dump(mode="json", exclude_defaults=True))
        return _told(Done(item=item, outcome=outcome))


def lost(event: Mapping[str, Any]) -> dict[str, Any]:
    """An item whose function was killed, or could not be called: its error, in a sentence that is short enough."""
    share = parsed(Share, json_object(event, "step and share").get("share"))
    with logged(share.state, phase=share.phase):
        told = (share.error or Caught(Error="Unknown")).sentence
        logger.error("an item is lost", extra={"item": share.item.value, "error": told})
        return _told(_failed(share.item.value, told))


def gather(event: Mapping[str, Any], types: Mapping[str, PhasedJob]) -> dict[str, Any]:
    """Make the items' answers the outcome of the phase; answers the state after it.

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
        AllItemsFailed: not one item came to anything; the ledger has recorded that the attempt failed: likewise.
    """
    state, ledger = state_of(event), Ledger.from_environment()
    turn, division = first(state), _division(state, types)
    with logged(state, phase=turn.name):
        job = held(ledger, state)
        before = [Done.model_validate(one) for one in (state.checkpoint or {}).get("done", ())]
        done = before + [one for one in state.results if not one.left]
        left = [one.item for one in state.results if one.left]
        state.parts, state.results = [], []
        report = division.gather(done)
        if left and not job.cancel_requested:
            here = {"done": [_told(one) for one in done], "left": left}
            note(state, Unfinished(checkpoint=here, report=report), cancelled=False, limit=0)
        else:
            note(state, report, cancelled=bool(left), limit=REPORT_LIMIT)
        if done and not left and all(one.error for one in done):
            error = AllItemsFailed("; ".join(state.sentences)[:MESSAGE_LIMIT])
            anew = ledger.heartbeat(job, progress=job.progress, message=job.message, checkpoint={})
            final = all(one.final for one in done)
            ended = ledger.fail(anew, error, result=kind_of(state, types).result(state), final=final)
            logger.error("ended", extra={"status": ended.status, "next_attempt": ended.attempt})
            measure(job, ledger, failed=True)
            raise error
        reached = job.progress if left else turn.span[1]
        job = ledger.heartbeat(job, progress=reached, message=job.message, checkpoint=state.kept())
        logger.info("gathered", extra={"report": report.model_dump(mode="json"), "left": len(left)})
        # What is left has no time in this execution: to divide it again at once would leave it again.
        return then(state, job, ledger, over=job.cancel_requested or bool(left))


def _division(state: State, types: Mapping[str, PhasedJob]) -> Division:
    phase = kind_of(state, types).catalogue.get(first(state).name)
    if phase is None or phase.division is None:
        raise Permanent(f"phase: {shown(first(state).name)} is not divided into items.")
    return phase.division


def _failed(item: dict[str, Any], sentence: str, *, final: bool = False) -> Done:
    return Done(item=item, error=short(sentence.strip().partition("\n")[0]), final=final)


def short(sentence: str, limit: int = SENTENCE) -> str:
    """As much of a sentence, in whole words, as may travel: `limit` counts the characters of it as JSON."""
    tried = (shorten(sentence, width, placeholder=" ...") for width in range(limit, 0, -5))
    return next(told for told in tried if len(json.dumps(told)) <= limit + len('""'))


def _told(done: Done) -> dict[str, Any]:
    return done.model_dump(mode="json", exclude_defaults=True)


class _ItemRun(Run):
    """A run as one of its items sees it: it reads the row, which is that of all items together, and never writes it."""

    def __init__(self, state: State, job: Job, ledger: Ledger, **options: Any) -> None:
        super().__init__(job, ledger=ledger, clock=ledger.clock, logger=logger, **options)
        self._state = state
        self._row = ledger

    def beat(self) -> None:
        """Learn whether the run was cancelled, or its attempt declared dead."""
        with self._writing:
            try:
                self.job = held(self._row, self._state)
            except LostLease as lease:
                self._lost = lease
            self._beaten_at = self._clock()
