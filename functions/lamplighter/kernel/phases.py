"""Jobs made of phases: what the steps of their state machine do (REQUIREMENTS B6, B8-B10, K3, K7, K8).

    Begin -> Phase -> Phase -> ... -> Finish

`begin` makes the ledger row, or claims it; `take` works at a phase, in whichever function serves it, again and again
while the phase is unfinished; `pass_over` records a phase that failed, so that the others run; `finish` ends the row,
or hands over to the next execution before the time of this one is up. What travels from step to step is a `State`
(`kernel.phased_job`). A phase that is the same work on many items is done by `kernel.fan_out`, several items at a time.

A function serves its phases with

    def handler(event, context):
        return phases.take(event, context, {"audit_log": body})

where a body is as that of a `@job`, without parameters: `body(run: PhaseRun) -> Report | Unfinished`. `run.job.dry_run`
says whether it is a preview, `run.checkpoint` is what its own last stretch left, reports are cumulative.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from pydantic import BaseModel, ConfigDict, Field

from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.errors import AlreadyRunning, DatabaseUnavailable, LostLease, Permanent, unreadable
from lamplighter.kernel.events import demand_storable, json_object, moment, parsed, short, shown
from lamplighter.kernel.events import turn as turn_of
from lamplighter.kernel.job import (
    STOP_MARGIN,
    Context,
    Report,
    Unfinished,
    heartbeats,
    is_tick,
    logged_as,
    measure_work,
    storable,
    tick,
)
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy, Status, derived_job_id, new_job_id
from lamplighter.kernel.ledger.store import DuplicateJob
from lamplighter.kernel.phased_job import EXECUTION, Body, Caught, Outcome, PhasedJob, PhaseRun, State, Turn
from lamplighter.kernel.settings import Settings

logger = Logger()

MARGIN: Final = timedelta(seconds=30)
"""How long before the end of its execution no phase works on: time for the batch in hand, and to hand over."""

REPORT_LIMIT: Final = 25_000
"""Characters of one phase's report that travel, at most; Step Functions takes 256 KiB in all ("Quotas")."""
REPORTS_LIMIT: Final = 100_000
"""Characters of the reports of all phases. Their errors come to some 50 000 more where each of 100 phases fails."""
RESULT_LIMIT: Final = 240_000
"""Characters of a run's result, which repeats the reports' failures as errors."""
CAUSE_LIMIT: Final = 10_000
"""Characters of the error with which an execution ends; Step Functions takes 32 768."""
ROW_LIMIT: Final = 380_000
"""Characters of a result and of the state that the row keeps; DynamoDB takes 400 KB in all ("Constraints")."""


class AllPhasesFailed(Exception):
    """No phase of the run worked: the attempt failed."""


class Begin(BaseModel):
    """What `begin` is told: the execution's input, its ARN and when it started."""

    model_config = ConfigDict(extra="forbid")

    step: Literal["begin"]
    input: Any
    execution: str = Field(max_length=2048)
    started: str


def step_of(event: object) -> str | None:
    """Which step of a state machine the event asks for; None for a phase.

    Raises:
        Permanent: it is no JSON object.
    """
    step = json_object(event, "a step or the state of a run, or a preview of one phase").get("step")
    if step is not None and not isinstance(step, str):
        raise Permanent(f"step: takes the name of a step, got {shown(step)}.")
    return step


def begin(event: Mapping[str, Any], types: Mapping[str, PhasedJob]) -> dict[str, Any]:
    """Make the row of a run, or claim it; answers the state, or `{"next": "stop"}` with the reason as its result.

    The execution's input is `{"job_type", "phases", "dry_run"}` by hand, `schedule` and `scheduled_time` beside them
    from EventBridge Scheduler, or `job_id`, `attempt`, `continuation` and `job_type` from the dispatcher. Tried again
    by the state machine, it goes on with the row that the same execution has made.

    Raises:
        Permanent: the input is invalid, and there is no row; or the settings are, and the job has failed.
        AlreadyRunning: by hand, another run holds the lock.
    """
    told = parsed(Begin, event)
    if not isinstance(told.input, dict):
        raise Permanent(f"input: takes a JSON object with a job_type, got {shown(told.input)}.")
    demand_storable(told.input)
    given = dict(told.input)
    name = given.pop("job_type", None)
    if not isinstance(name, str) or name not in types:
        raise Permanent(f"job_type: takes one of {', '.join(types)}, got {shown(name)}.")
    kind, settings, ledger = types[name], settings_module.load(), Ledger.from_environment()
    with logged_as(logger, job=name, execution=told.execution):
        dispatched = given.keys() == {"job_id", "attempt", "continuation"}
        job = _claimed(given, kind, told, ledger) if dispatched else _made(given, kind, told, settings, ledger)
        if not isinstance(job, Job):
            return {"next": "stop", "result": job}
        with logged_as(logger, job_id=job.job_id, attempt=job.attempt, continuation=job.continuation):
            try:
                params = kind.validated(job.payload)
                kind.previews(params, settings)  # a retry may find that the settings apply less than its order asks
                left = kind.turns(params, settings)
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


def _claimed(given: Mapping[str, Any], kind: PhasedJob, told: Begin, ledger: Ledger) -> Job | dict[str, Any]:
    """Claim the attempt that the dispatcher started; or the answer that says who was first."""
    asked = turn_of(given)
    try:
        return ledger.claim(
            asked.job_id,
            attempt=asked.attempt,
            continuation=asked.continuation,
            execution_arn=told.execution,
            job_type=kind.job_type,
        )
    except LostLease as lost:
        return _own(ledger.get(asked.job_id), told, reason=str(lost))


def _made(
    given: dict[str, Any], kind: PhasedJob, told: Begin, settings: Settings, ledger: Ledger
) -> Job | dict[str, Any]:
    """Make the row of a new run, already running; or the answer that says why there is none."""
    ticked, now = is_tick(given), ledger.clock()
    schedule, scheduled_time = given.pop("schedule", None), given.pop("scheduled_time", None)
    started = moment("started", told.started, now=now)
    own_id = {"job_id": derived_job_id(started, "execution", told.execution)}
    fields = tick(schedule, scheduled_time, now=now) if ticked else own_id
    new = kind.new_job(ledger, settings, given, execution_arn=told.execution, **fields)
    try:
        if not ticked:
            return ledger.start(new)
        planned = moment("scheduled_time", scheduled_time, now=now)
        late, grace = now - planned, settings.jobs.misfire_grace_minutes
        if late <= timedelta(minutes=grace):
            return ledger.start(new)
        reason = f"The tick came {late.total_seconds() / 60:.0f} min late; its misfire grace is {grace} min."
        answer = {"status": "skipped", "reason": reason}
        ledger.skip(new, answer)
        logger.warning("skipped", extra={"job_id": new.job_id, "reason": reason})
        return answer | {"job_id": new.job_id}
    except DuplicateJob:
        row = ledger.get(new.job_id)
        return _own(row, told, reason=f"This tick is {row.status} already.")
    except AlreadyRunning as refusal:
        if not ticked:
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


type Bodies = Mapping[str, Body] | Callable[[Settings], Mapping[str, Body]]
"""The phases that a function serves, by name; or which those are under the settings in force."""


def take(event: Mapping[str, Any], context: Context, bodies: Bodies) -> dict[str, Any]:
    """Work at the state's first phase, one of `bodies`, until it is done or time is up; answers the state after it.

    A `Preview` instead of a state answers the phase's report.

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
        DatabaseUnavailable: the ledger has recorded that the attempt failed (REQUIREMENTS B10): likewise.
        Permanent: the event is neither.
        Exception: what the body raised, unless that is permanent: the phase failed, the others are to run. After a
            permanent error, which the state records, they run at once.
    """
    given = json_object(event, "the state of a run, or a preview of one phase")
    settings, now = settings_module.load(), utc_now()
    served = bodies(settings) if callable(bodies) else bodies
    left = timedelta(milliseconds=context.get_remaining_time_in_millis())
    stop_in = max(left - STOP_MARGIN, left / 2)
    if "left" not in given:
        return _previewed(given, served, now, settings=settings, stop_at=now + stop_in)
    state, ledger = parsed(State, given), Ledger.from_environment()
    turn = first(state)
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
                outcome = _body_of(turn.name, served)(run)
        except DatabaseUnavailable as error:
            logger.exception("failed")
            ended = ledger.fail(run.job, error)  # the row has the state that the last stretch left
            logger.info("ended", extra={"status": ended.status, "next_attempt": ended.attempt})
            measure(job, ledger, failed=True)
            raise
        except Exception as error:
            logger.exception("a phase failed")
            final = error if isinstance(error, Permanent) else unreadable(error)
            if final is None:
                raise
            give_up(state, final)
            job = ledger.heartbeat(run.job, progress=high, message=run.job.message, checkpoint=state.kept())
            return then(state, job, ledger, over=job.cancel_requested)
        share = REPORTS_LIMIT // (len(state.left) + len(state.outcomes.keys() - {turn.name}))
        note(state, outcome, cancelled=run.cancelled, limit=min(REPORT_LIMIT, share))
        reached = run.job.progress if turn in state.left else high
        job = ledger.heartbeat(run.job, progress=reached, message=run.job.message, checkpoint=state.kept())
        logger.info("worked", extra={"report": state.outcomes[turn.name].report})
        return then(state, job, ledger, over=run.cancelled)


def note(state: State, outcome: Report | Unfinished, *, cancelled: bool, limit: int) -> None:
    """Bring what its first phase answered into the state; `limit` is how many characters of its report travel."""
    report = outcome.report if isinstance(outcome, Unfinished) else outcome
    items, size = report.counts()
    told = storable(report.model_dump(mode="json"), limit)
    state.outcomes[state.left[0].name] = Outcome(items=items, bytes=size, report=told)
    state.checkpoint = outcome.checkpoint if isinstance(outcome, Unfinished) else None
    if not (isinstance(outcome, Unfinished) or cancelled):
        state.left = state.left[1:]


def give_up(state: State, error: Permanent) -> None:
    """Record that another attempt would fail in the phase under way, too, and go on with the next one.

    This is done where the error is: only the name of its class travels.
    """
    failed = state.left[0].name
    state.errors[failed] = Caught(Error=type(error).__name__, Cause=str(error)).sentence
    state.final.append(failed)
    state.left, state.checkpoint = state.left[1:], None


def _body_of(phase: str, bodies: Mapping[str, Body]) -> Body:
    if phase not in bodies:
        raise Permanent(f"phase: {short(phase)} is not served here (here are {', '.join(bodies)}).")
    return bodies[phase]


def _previewed(event: Mapping[str, Any], bodies: Mapping[str, Body], now: datetime, **options: Any) -> dict[str, Any]:
    """A phase of a job that is in no ledger."""
    try:
        phase = parsed(Preview, event).phase
    except Permanent as error:
        takes = 'takes the state of a run, or {"phase": "...", "dry_run": true} for a preview'
        problem = str(error).removesuffix(".").partition("; ")[0]
        raise Permanent(f"{problem}; {takes}.") from None
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
    state = State(
        job_id=job.job_id, attempt=job.attempt, continuation=job.continuation, job_type=job.job_type, left=[turn]
    )
    outcome = _body_of(phase, bodies)(PhaseRun(job, state, **options))
    report = outcome.report if isinstance(outcome, Unfinished) else outcome
    return {"phase": phase, "dry_run": True} | report.model_dump(mode="json")


def pass_over(event: Mapping[str, Any]) -> dict[str, Any]:
    """Record that the state's first phase failed, and go on with the next one (REQUIREMENTS B10).

    Raises:
        LostLease: the attempt was declared dead: the execution is to end.
    """
    state, ledger = state_of(event), Ledger.from_environment()
    failed, caught = first(state).name, state.error or Caught(Error="Unknown")
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
        AllPhasesFailed: the ledger has recorded that the attempt failed, and retries it unless all errors were final.
    """
    state, ledger = state_of(event), Ledger.from_environment()
    kind = kind_of(state, types)
    with logged(state):
        job = held(ledger, state)
        result = storable(kind.result(state), min(RESULT_LIMIT, ROW_LIMIT - len(json.dumps(state.kept()))))
        failed = not state.left and state.status == "failed"
        error = AllPhasesFailed("; ".join(state.sentences)[:CAUSE_LIMIT])
        if state.left:
            ended = ledger.continue_later(job, checkpoint=state.kept(), result=result)
        elif failed:
            anew = ledger.heartbeat(job, progress=job.progress, message=job.message, checkpoint={})
            ended = ledger.fail(anew, error, result=result, final=state.errors.keys() <= set(state.final))
        else:
            ended = ledger.complete(job, result)
        measure(job, ledger, failed=failed, outcomes=state.outcomes.values() if ended.status.terminal else ())
        logger.info("ended", extra={"status": ended.status, "report": result})
        if failed:
            raise error
        answer = {"job_id": job.job_id, "finished": ended.status.terminal} | result
        return {"next": "stop", "result": answer | ({"status": "cancelled"} if ended.cancel_requested else {})}


def state_of(event: object) -> State:
    """The state of a run that a step brings.

    Raises:
        Permanent: there is none.
    """
    return parsed(State, json_object(event, "step and state").get("state"))


def first(state: State) -> Turn:
    """The phase that is under way.

    Raises:
        Permanent: none is left.
    """
    if not state.left:
        raise Permanent("left: takes at least one phase, got [].")
    return state.left[0]


def kind_of(state: State, types: Mapping[str, PhasedJob]) -> PhasedJob:
    """The type of a run.

    Raises:
        Permanent: it is not of this state machine.
    """
    if state.job_type not in types:
        raise Permanent(f"job_type: takes one of {', '.join(types)}, got {shown(state.job_type)}.")
    return types[state.job_type]


@contextmanager
def logged(state: State, **keys: Any) -> Iterator[None]:
    """Each line that is logged inside says which attempt it is about."""
    turn = {"job_id": state.job_id, "attempt": state.attempt, "continuation": state.continuation}
    with logged_as(logger, job=state.job_type, **turn, **keys):
        yield


def held(ledger: Ledger, state: State) -> Job:
    """The row, if the state's attempt still runs it.

    Raises:
        LostLease: another attempt runs it, or none.
        Permanent: no state machine runs it, or the state is of another type: somebody made the state up.
    """
    job = ledger.get(state.job_id)
    if job.job_type != state.job_type or not job.policy.target.startswith("states:"):
        raise Permanent(
            f"job_id: job {job.job_id} is of type {job.job_type}; no state machine runs it as {short(state.job_type)}. "
            "Nothing was done."
        )
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
