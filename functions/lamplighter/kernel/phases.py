"""Jobs made of phases: what the steps of their state machine do (REQUIREMENTS B6, B8-B10, K3, K7, K8).

    Begin -> Phase -> Phase -> ... -> Finish

`begin` makes the ledger row, or claims it; `take` works at a phase, in whichever function serves it, again and again
while the phase is unfinished; `pass_over` records a phase that failed, so that the others run; `finish` ends the row,
or hands over to the next execution before the time of this one is up. A `State` travels from step to step. The row
keeps it too, so the next attempt after an execution that died goes on from there. A phase that is the same work on many
items is done by `kernel.fan_out`, several items at a time.

A function serves its phases with

    def handler(event, context):
        return phases.take(event, context, {"audit_log": body})

where a body is as that of a `@job`, without parameters: `body(run: PhaseRun) -> Report | Unfinished`. `run.job.dry_run`
says whether it is a preview, `run.checkpoint` is what its own last stretch left, reports are cumulative.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.errors import AlreadyRunning, DatabaseUnavailable, LostLease, Permanent
from lamplighter.kernel.job import (
    STOP_MARGIN,
    Context,
    JobType,
    Params,
    Report,
    Run,
    Unfinished,
    heartbeats,
    logged_as,
    measure_work,
    scheduled_at,
    storable,
    tick,
)
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy, Status, derived_job_id, new_job_id
from lamplighter.kernel.ledger.store import DuplicateJob
from lamplighter.kernel.settings import Settings

logger = Logger()

EXECUTION: Final = timedelta(minutes=5)
"""How long one execution may take, in the state machine and in the ledger, where its type does not say otherwise
(REQUIREMENTS B1, B6)."""

MARGIN: Final = timedelta(seconds=30)
"""How long before that no phase works on: time for the batch in hand, and to hand over."""

REPORT_LIMIT: Final = 25_000
"""Characters of one phase's report that travel; Step Functions takes 256 KiB in all ("Quotas"), and most reports are
short."""

SENTENCE_LIMIT: Final = 500
"""Characters of an error in the result; its stack trace is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a job. `function` serves it, a name below the stack's; `check` raises Permanent if the settings do not
    let it run, before any phase of the run has begun. One with a `division` is divided into items."""

    function: str
    check: Callable[[Settings], object] | None = None
    division: Division | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a phase is divided into items, each a call of its function: JSON objects that tell one from another."""

    items: Callable[[Settings], Sequence[dict[str, Any]]]
    """What is to be done; some hundred at most, since what becomes of them travels too."""
    concurrency: Callable[[Settings], int]
    """How many are worked at together."""
    gather: Callable[[Sequence[Done]], Report]
    """The phase's report, from what has become of the items so far."""


class PhaseParams(Params):
    """What a run of phases takes."""

    phases: tuple[str, ...] | None = Field(None, min_length=1)
    """Only these, in the catalogue's order; by default those of the job type."""
    dry_run: bool = False


class Turn(BaseModel):
    """One phase of a run: which function serves it, and the part of the progress bar that is its own."""

    name: str
    function: str
    span: tuple[int, int]
    divided: bool = False


class Outcome(BaseModel):
    """What a phase did so far."""

    items: int
    bytes: int
    report: dict[str, Any]


class Item(BaseModel):
    """One item of a phase, and the progress that the run has made when it is begun."""

    value: dict[str, Any]
    progress: int


class Done(BaseModel):
    """What has become of an item: an outcome, an error, or nothing where it was `left` because the run had to stop."""

    item: dict[str, Any]
    outcome: Outcome | None = None
    error: str | None = None
    left: bool = False


class Caught(BaseModel):
    """An error as Step Functions hands it to the state after it."""

    Error: str
    Cause: str = ""

    @property
    def sentence(self) -> str:
        """`Error: what it says`, from the JSON in which Lambda wraps an exception."""
        text = self.Cause
        with suppress(ValueError, TypeError, KeyError):
            text = json.loads(self.Cause)["errorMessage"]
        first = text.strip().partition("\n")[0]
        return f"{self.Error}: {first}"[:SENTENCE_LIMIT] if first else self.Error


class State(BaseModel):
    """What travels from step to step of an execution."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    attempt: int
    continuation: int
    job_type: str
    left: list[Turn]
    """The phases still to be done; the first is under way."""
    checkpoint: dict[str, Any] | None = None
    """Where the phase under way goes on."""
    outcomes: dict[str, Outcome] = {}
    errors: dict[str, str] = {}
    """Why a phase failed, by its name."""
    parts: list[Item] = []
    """What the phase under way is divided into, `concurrency` of them at a time."""
    concurrency: int = 1
    results: list[Done] = []
    """Put here by the state machine's Map: what became of each."""
    next: Literal["phase", "divide", "items", "finish"] = "phase"
    error: Caught | None = None
    """Put here by the state machine's Catch."""

    def kept(self) -> dict[str, Any]:
        """What the row keeps, to go on from."""
        return self.model_dump(mode="json", include={"left", "checkpoint", "outcomes", "errors"})

    @property
    def status(self) -> Literal["completed", "completed_with_errors", "failed"]:
        """How the run as a whole stands: one phase's failure is not that of the others (REQUIREMENTS B10, K11)."""
        if self.errors and self.outcomes.keys() <= self.errors.keys():
            return "failed"
        whole = all(outcome.report["status"] == "completed" for outcome in self.outcomes.values())
        return "completed" if whole and not self.errors else "completed_with_errors"

    @property
    def sentences(self) -> list[str]:
        """What went wrong: why phases failed, and the failures of single items that they report."""
        found = [f"{phase}: {error}" for phase, error in self.errors.items()]
        for phase, outcome in self.outcomes.items():
            failures = outcome.report.get("failures") or outcome.report.get("errors") or []
            shown = failures if isinstance(failures, list) else [f"{failures} failures, which the log has"]
            found += [f"{phase}: {failure}" for failure in shown]
        return found

    def items(self, phase: str) -> int:
        """How many items a phase dealt with; none if it did not run."""
        return self.outcomes[phase].items if phase in self.outcomes else 0


class PhaseRun(Run):
    """A run as one of its phases sees it: with a checkpoint and a part of the progress bar of its own, and with what
    became of the phases before it."""

    def __init__(self, job: Job, state: State, **options: Any) -> None:
        super().__init__(job, **options)
        self.outcomes: Mapping[str, Outcome] = state.outcomes
        self.errors: Mapping[str, str] = state.errors
        """Why phases before this one failed, by their names."""
        self._span = state.left[0].span
        self._own_checkpoint = state.checkpoint

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """What the phase's previous stretch left, or None at its start."""
        return self._own_checkpoint

    def progress(self, percent: int, message: str) -> None:
        """Say how far the phase is."""
        low, high = self._span
        super().progress(low + (high - low) * min(percent, 100) // 100, message)


Body = Callable[[PhaseRun], Report | Unfinished]


class PhasedJob(JobType[PhaseParams]):
    """A job type whose runs are executions of a state machine. A singleton, and critical: its final failure alerts."""

    def __init__(
        self,
        job_type: str,
        *,
        catalogue: Mapping[str, Phase],
        spans: Mapping[str, tuple[int, int]],
        target: str,
        execution: timedelta = EXECUTION,
    ) -> None:
        """`catalogue` has all phases that a run may select, in order; `spans` the type's own, with their progress.

        `execution` is how long the state machine `target` lets one execution take.
        """
        policy = Policy(timeout=execution, target=target, singleton=True, critical=True)
        super().__init__(job_type, params=PhaseParams, policy=policy)
        self.catalogue = catalogue
        self.spans = spans

    def validated(self, payload: Mapping[str, Any]) -> PhaseParams:
        params = super().validated(payload)
        if unknown := set(params.phases or ()) - self.catalogue.keys():
            raise Permanent(
                f"phases: {', '.join(sorted(unknown))} is no phase of {self.job_type} (it takes "
                f"{', '.join(self.catalogue)})."
            )
        return params

    def turns(self, params: PhaseParams, settings: Settings) -> list[Turn]:
        """The phases of a run. Raises Permanent if the settings do not let one of them run."""
        selected = params.phases or tuple(self.spans)
        names = [name for name in self.catalogue if name in selected]
        spans = self.spans if self.spans.keys() >= set(names) else evenly(names)
        chosen = {name: self.catalogue[name] for name in names}
        for phase in chosen.values():
            if phase.check:
                phase.check(settings)
        return [
            Turn(name=name, function=phase.function, span=spans[name], divided=phase.division is not None)
            for name, phase in chosen.items()
        ]

    def result(self, state: State) -> dict[str, Any]:
        """What the row says of the run: each phase's own report, and what went wrong."""
        reports = {phase: outcome.report for phase, outcome in state.outcomes.items()}
        return {"status": state.status, "phases": reports, "errors": state.sentences}


def evenly(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The progress bar in equal parts."""
    return {name: (100 * n // len(names), 100 * (n + 1) // len(names)) for n, name in enumerate(names)}


class AllPhasesFailed(Exception):
    """No phase of the run worked: the attempt failed."""


class Begin(BaseModel):
    """What `begin` is told: the execution's input, its ARN and when it started."""

    model_config = ConfigDict(extra="forbid")

    step: Literal["begin"]
    input: Any
    execution: str
    started: datetime


def begin(event: Mapping[str, Any], types: Mapping[str, PhasedJob]) -> dict[str, Any]:
    """Make the row of a run, or claim it; answers the state, or `{"next": "stop"}` with the reason as its result.

    The execution's input is `{"job_type", "phases", "dry_run"}` by hand, `schedule` and `scheduled_time` beside them
    from EventBridge Scheduler, or `job_id`, `attempt`, `continuation` and `job_type` from the dispatcher. Tried again
    by the state machine, it goes on with the row that the same execution has made.

    Raises:
        Permanent: the input is invalid, and there is no row; or the settings are, and the job has failed.
        AlreadyRunning: by hand, another run holds the lock.
    """
    told = Begin.model_validate(event)
    if not isinstance(told.input, dict):
        raise Permanent("The input of an execution is a JSON object with a job_type.")
    given = dict(told.input)
    name = given.pop("job_type", None)
    if name not in types:
        raise Permanent(f"job_type: takes one of {', '.join(types)}, got {name!r}.")
    kind, settings, ledger = types[name], settings_module.load(), Ledger.from_environment()
    with logged_as(logger, job=name, execution=told.execution):
        dispatched = given.keys() == {"job_id", "attempt", "continuation"}
        job = _claimed(given, told, ledger) if dispatched else _made(given, kind, told, settings, ledger)
        if not isinstance(job, Job):
            return {"next": "stop", "result": job}
        with logged_as(logger, job_id=job.job_id, attempt=job.attempt, continuation=job.continuation):
            try:
                left = kind.turns(kind.validated(job.payload), settings)
            except Permanent as error:
                logger.exception("failed")
                ledger.fail(job, error)
                measure(job, ledger, failed=True)
                raise
            state = State(
                job_id=job.job_id,
                attempt=job.attempt,
                continuation=job.continuation,
                job_type=name,
                **job.checkpoint or {"left": left},
            )
            logger.info("started", extra={"trigger": job.trigger, "phases": [turn.name for turn in state.left]})
            return then(state, job, ledger, over=job.cancel_requested)


def _claimed(given: Mapping[str, Any], told: Begin, ledger: Ledger) -> Job | dict[str, Any]:
    """Claim the attempt that the dispatcher started; or the answer that says who was first."""
    job_id, attempt, continuation = given["job_id"], given["attempt"], given["continuation"]
    try:
        return ledger.claim(job_id, attempt=attempt, continuation=continuation, execution_arn=told.execution)
    except LostLease as lost:
        return _own(ledger.get(job_id), told, reason=str(lost))


def _made(
    given: dict[str, Any], kind: PhasedJob, told: Begin, settings: Settings, ledger: Ledger
) -> Job | dict[str, Any]:
    """Make the row of a new run, already running; or the answer that says why there is none."""
    schedule, scheduled_time = given.pop("schedule", None), given.pop("scheduled_time", None)
    own_id = {"job_id": derived_job_id(told.started, "execution", told.execution)}
    fields = own_id if schedule is None else tick(schedule, scheduled_time)
    new = kind.new_job(ledger, settings, given, execution_arn=told.execution, **fields)
    try:
        if schedule is None:
            return ledger.start(new)
        late, grace = ledger.clock() - scheduled_at(scheduled_time), timedelta(minutes=settings.misfire_grace_minutes)
        if late <= grace:
            return ledger.start(new)
        reason = (
            f"The tick came {late.total_seconds() / 60:.0f} min late; its misfire grace is {grace.seconds // 60} min."
        )
        answer = {"status": "skipped", "reason": reason}
        ledger.skip(new, answer)
        logger.warning("skipped", extra={"job_id": new.job_id, "reason": reason})
        return answer | {"job_id": new.job_id}
    except DuplicateJob:
        row = ledger.get(new.job_id)
        return _own(row, told, reason=f"This tick is {row.status} already.")
    except AlreadyRunning as refusal:
        if schedule is None:
            raise
        logger.warning("tick refused", extra={"reason": str(refusal)})
        return {"status": "already_running", "reason": str(refusal)}


def _own(row: Job, told: Begin, *, reason: str) -> Job | dict[str, Any]:
    """The row, if this very execution runs it, whose first answer was lost; or the answer that says who was first."""
    if row.status is Status.RUNNING and row.execution_arn == told.execution:
        return row
    logger.info("duplicate delivery", extra={"job_id": row.job_id, "reason": reason})
    return {"status": "duplicate", "job_id": row.job_id, "reason": reason}


class Preview(BaseModel):
    """By hand, straight to the function: one phase previewed; no row is made."""

    model_config = ConfigDict(extra="forbid")

    phase: str
    dry_run: Literal[True]


def take(event: Mapping[str, Any], context: Context, bodies: Mapping[str, Body]) -> dict[str, Any]:
    """Work at the state's first phase, one of `bodies`, until it is done or time is up; answers the state after it.

    A `Preview` instead of a state answers the phase's report.

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
        DatabaseUnavailable: the ledger has recorded that the attempt failed (REQUIREMENTS B10): likewise.
        Permanent: the event is neither, or the phase is not served here.
        Exception: what the body raised: the phase failed, the others are to run.
    """
    settings, now = settings_module.load(), utc_now()
    left = timedelta(milliseconds=context.get_remaining_time_in_millis())
    stop_in = max(left - STOP_MARGIN, left / 2)
    if "left" not in event:
        return _previewed(event, bodies, now, settings=settings, stop_at=now + stop_in)
    state, ledger = State.model_validate(event), Ledger.from_environment()
    turn = state.left[0]
    with logged(state, phase=turn.name):
        low, high = turn.span
        job = ledger.heartbeat(held(ledger, state), progress=low, message=turn.name.replace("_", " "))
        if job.cancel_requested:
            return then(state, job, ledger, over=True)
        stop_at = min(ledger.clock() + stop_in, over_at(job))
        options = {"settings": settings, "stop_at": stop_at, "ledger": ledger, "clock": ledger.clock, "logger": logger}
        run = PhaseRun(job, state, **options)
        try:
            with heartbeats(run):
                outcome = _body_of(turn.name, bodies)(run)
        except DatabaseUnavailable as error:
            logger.exception("failed")
            ended = ledger.fail(run.job, error)  # the row has the state that the last stretch left
            logger.info("ended", extra={"status": ended.status, "next_attempt": ended.attempt})
            measure(job, ledger, failed=True)
            raise
        except Exception:
            logger.exception("a phase failed")
            raise
        note(state, outcome, cancelled=run.cancelled)
        reached = run.job.progress if turn in state.left else high
        job = ledger.heartbeat(run.job, progress=reached, message=run.job.message, checkpoint=state.kept())
        logger.info("worked", extra={"report": state.outcomes[turn.name].report})
        return then(state, job, ledger, over=run.cancelled)


def note(state: State, outcome: Report | Unfinished, *, cancelled: bool, limit: int = REPORT_LIMIT) -> None:
    """Bring what its first phase answered into the state; `limit` is how many characters of its report travel."""
    report = outcome.report if isinstance(outcome, Unfinished) else outcome
    items, size = report.counts()
    told = storable(report.model_dump(mode="json"), limit)
    state.outcomes[state.left[0].name] = Outcome(items=items, bytes=size, report=told)
    state.checkpoint = outcome.checkpoint if isinstance(outcome, Unfinished) else None
    if not (isinstance(outcome, Unfinished) or cancelled):
        state.left = state.left[1:]


def _body_of(phase: str, bodies: Mapping[str, Body]) -> Body:
    if phase not in bodies:
        raise Permanent(f"phase: {phase} is not served here (here are {', '.join(bodies)}).")
    return bodies[phase]


def _previewed(event: Mapping[str, Any], bodies: Mapping[str, Body], now: datetime, **options: Any) -> dict[str, Any]:
    """A phase of a job that is in no ledger."""
    try:
        phase = Preview.model_validate(event).phase
    except ValidationError:
        raise Permanent('Takes the state of a run, or {"phase": "...", "dry_run": true} for a preview.') from None
    job = Job(
        job_id=new_job_id(now, bytes(10)),
        job_type="preview",
        status=Status.RUNNING,
        policy=Policy(timeout=EXECUTION),
        created_at=now,
        run_at=now,
        dry_run=True,
    )
    turn = Turn(name=phase, function="", span=(0, 100))
    state = State(job_id=job.job_id, attempt=1, continuation=0, job_type=job.job_type, left=[turn])
    outcome = _body_of(phase, bodies)(PhaseRun(job, state, **options))
    report = outcome.report if isinstance(outcome, Unfinished) else outcome
    return {"phase": phase, "dry_run": True} | report.model_dump(mode="json")


def pass_over(event: Mapping[str, Any]) -> dict[str, Any]:
    """Record that the state's first phase failed, and go on with the next one (REQUIREMENTS B10).

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
    """
    state, ledger = State.model_validate(event["state"]), Ledger.from_environment()
    failed, caught = state.left[0].name, state.error or Caught(Error="Unknown")
    with logged(state, phase=failed):
        job = held(ledger, state)
        state.errors[failed] = caught.sentence
        state.left, state.checkpoint, state.error = state.left[1:], None, None
        state.parts, state.results = [], []
        logger.error("a phase is passed over", extra={"error": caught.sentence})
        return then(state, job, ledger, over=job.cancel_requested)


def finish(event: Mapping[str, Any], types: Mapping[str, PhasedJob]) -> dict[str, Any]:
    """End the row: completed, cancelled, or to be continued by a next execution where phases are left (K7, K8).

    Raises:
        LostLease: the attempt was declared dead while it ran.
        AllPhasesFailed: the ledger has recorded that the attempt failed.
    """
    state, ledger = State.model_validate(event["state"]), Ledger.from_environment()
    with logged(state):
        job = held(ledger, state)
        result = types[state.job_type].result(state)
        failed = not state.left and state.status == "failed"
        error = AllPhasesFailed("; ".join(state.sentences))
        if state.left:
            ended = ledger.continue_later(job, checkpoint=state.kept(), result=result)
        elif failed:
            anew = ledger.heartbeat(job, progress=job.progress, message=job.message, checkpoint={})
            ended = ledger.fail(anew, error, result=result)
        else:
            ended = ledger.complete(job, result)
        measure(job, ledger, failed=failed, outcomes=state.outcomes.values() if ended.status.terminal else ())
        logger.info("ended", extra={"status": ended.status, "report": result})
        if failed:
            raise error
        answer = {"job_id": job.job_id, "finished": ended.status.terminal} | result
        return {"next": "stop", "result": answer | ({"status": "cancelled"} if ended.cancel_requested else {})}


@contextmanager
def logged(state: State, **keys: Any) -> Iterator[None]:
    """Each line that is logged inside says which attempt it is about."""
    turn = {"job_id": state.job_id, "attempt": state.attempt, "continuation": state.continuation}
    with logged_as(logger, job=state.job_type, **turn, **keys):
        yield


def held(ledger: Ledger, state: State) -> Job:
    """The row, if the state's attempt still runs it. Raises LostLease."""
    job = ledger.get(state.job_id)
    if (job.status, job.attempt, job.continuation) != (Status.RUNNING, state.attempt, state.continuation):
        raise LostLease(
            f"Job {job.job_id} is {job.status} at attempt {job.attempt}.{job.continuation}: attempt "
            f"{state.attempt}.{state.continuation} may do no more."
        )
    return job


def over_at(job: Job) -> datetime:
    """When the execution that runs the row has to hand over."""
    assert job.started_at is not None
    return job.started_at + job.policy.timeout - MARGIN


def then(state: State, job: Job, ledger: Ledger, *, over: bool) -> dict[str, Any]:
    """The state with what comes next: another phase, unless there is none, time is up, or it is `over`: cancelled."""
    if over or not state.left or ledger.clock() >= over_at(job):
        state.next = "finish"
    else:
        state.next = "divide" if state.left[0].divided else "phase"
    return state.model_dump(mode="json")


def measure(job: Job, ledger: Ledger, *, failed: bool = False, outcomes: Iterable[Outcome] = ()) -> None:
    """EMF metrics of an execution, as those of a `@job` (REQUIREMENTS K9)."""
    done = list(outcomes)
    metrics = Metrics()
    metrics.add_dimension(name="job", value=job.job_type)
    metrics.add_metric(name="Runs", unit=MetricUnit.Count, value=1)
    if failed:
        metrics.add_metric(name="Failures", unit=MetricUnit.Count, value=1)
    took = ledger.clock() - (job.started_at or job.created_at)
    metrics.add_metric(name="Duration", unit=MetricUnit.Seconds, value=took.total_seconds())
    measure_work(metrics, items=sum(outcome.items for outcome in done), size=sum(outcome.bytes for outcome in done))
    metrics.flush_metrics()
