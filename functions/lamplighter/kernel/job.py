"""`@job`: the contract around each job's Lambda.

It validates the parameters, makes the ledger row (the same scheduled tick twice makes one) or claims the attempt the
dispatcher started, sends heartbeats while the body works, stops it before the function's timeout, and records how it
ended: completed, cancelled, to be continued from a checkpoint, or failed, with retries left to the ledger alone.

    @job("orphan_cleanup", params=Params, timeout=timedelta(minutes=15))
    def handler(run: Run, params: Params) -> Report | Unfinished: ...

`handler` takes a Lambda event: the parameters by hand, `schedule` and `scheduled_time` beside them from EventBridge
Scheduler, or `job_id`, `attempt` and `continuation` from the dispatcher. `handler.body` is the function itself.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, Literal, Protocol, Self

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from pydantic import BaseModel, ConfigDict, ValidationError

from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent, unreadable
from lamplighter.kernel.events import demand_storable, json_object, moment, problems, sentences, shown, turn
from lamplighter.kernel.ledger.ledger import Clock, Ledger, utc_now
from lamplighter.kernel.ledger.row import PAYLOAD_LIMIT, Job, Policy, Trigger, derived_job_id
from lamplighter.kernel.ledger.store import DuplicateJob
from lamplighter.kernel.policies import under
from lamplighter.kernel.settings import Settings

GRACE: Final = timedelta(minutes=1)
"""How long after the function's own hard timeout the ledger calls the attempt dead: never before it is."""

STOP_MARGIN: Final = timedelta(seconds=20)
"""How long before the function's timeout a body is asked to stop: time for one batch and the checkpoint."""

BEAT: Final = timedelta(seconds=10)
"""How often the background sends a heartbeat."""

RESULT_LIMIT: Final = 200_000
"""Characters of a report that the row keeps; a DynamoDB item holds 400 KB in all."""

_SCHEDULE: Final = re.compile(r"[0-9A-Za-z_.-]{1,64}")
"""Names of schedules (Amazon EventBridge Scheduler, "CreateSchedule")."""

FRESH: Final = timedelta(seconds=2)
"""How old the last heartbeat may be when a batch asks whether to go on (cancellation within one batch, K7)."""


class InvalidParams(Permanent):
    """Parameters that a job does not take; `problems` has the name of each, empty for all together, and a sentence."""

    traced = False

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__(sentences(problems))
        self.problems = problems


class Params(BaseModel):
    """Parameters of a job; an unknown one is an error, so a misspelt `dry_run` never deletes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def resolved(self, settings: Settings) -> Self:  # noqa: ARG002 - for those that have defaults among the settings
        """These parameters, what was not given taken from the settings in force as the run begins."""
        return self


class Report(BaseModel):
    """What a job answers. Per-item failures live in here, and `status` says whether there were any (K11)."""

    status: Literal["completed", "completed_with_errors", "refused", "failed"] = "completed"

    def counts(self) -> tuple[int, int]:
        """Items and bytes the run dealt with, for the metrics (K9)."""
        return 0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Returned by a body that ran out of time: `checkpoint` (JSON-able) is where the next continuation goes on."""

    checkpoint: dict[str, Any]
    report: Report


class Context(Protocol):
    """What is used of Lambda's context object."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function is killed."""
        ...


class Run:
    """One attempt at work: what a body is given beside its parameters."""

    def __init__(
        self,
        job: Job,
        *,
        settings: Settings,
        stop_at: datetime,
        ledger: Ledger | None = None,
        clock: Clock = utc_now,
        logger: Logger | None = None,
    ) -> None:
        """`ledger=None` runs a body detached: no heartbeats are written, nobody can cancel."""
        self.job = job
        self.settings = settings
        self.logger = logger or Logger()
        self._stop_at = stop_at
        self._ledger = ledger
        self._clock = clock
        self._progress = (job.progress, job.message)
        self._beaten_at = clock()
        self._lost: LostLease | None = None
        self.cancelled = False
        """Whether the body was told to stop because of a cancellation."""
        self._writing = threading.Lock()

    @property
    def job_id(self) -> str:
        """The job's ULID."""
        return self.job.job_id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.job.attempt

    @property
    def continuation(self) -> int:
        """How often the job went on from a checkpoint, from 0."""
        return self.job.continuation

    @property
    def trigger(self) -> str:
        """What made the job: `schedule`, `api`, `cli`, `event` or `retry`."""
        return self.job.trigger.value

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """What the previous continuation left, or None at the start."""
        return self.job.checkpoint

    def now(self) -> datetime:
        """The current moment, aware UTC."""
        return self._clock()

    def progress(self, percent: int, message: str) -> None:
        """Say how far the run is, which never goes back; the next heartbeat carries it."""
        self._progress = (max(percent, self._progress[0]), message)

    def stop(self) -> Literal["cancelled", "out_of_time"] | None:
        """Whether the body should stop now; ask between batches.

        Raises:
            LostLease: the attempt was declared dead; do nothing more.
        """
        if self._clock() - self._beaten_at >= FRESH:
            self.beat()
        if self._lost:
            raise self._lost
        if self.job.cancel_requested:
            self.cancelled = True
            return "cancelled"
        return "out_of_time" if self._clock() >= self._stop_at else None

    def beat(self) -> None:
        """Send a heartbeat with the progress, and learn whether to stop; a lost lease is remembered for `stop`."""
        if self._ledger is None:
            return
        with self._writing:
            if self._lost:
                return
            percent, message = self._progress
            try:
                self.job = self._ledger.heartbeat(self.job, progress=percent, message=message)
            except LostLease as lost:
                self._lost = lost
            self._beaten_at = self._clock()


class JobType[P: Params]:
    """A type of job: what it is called, what it takes, and how it is timed, retried and started.

    Whoever makes a row of it asks here, so that a tick, a call by hand and the API make the same one.
    """

    def __init__(self, job_type: str, *, params: type[P], policy: Policy, enabled_by: str | None = None) -> None:
        """`enabled_by` names the boolean setting (`media.enabled`) that switches its scheduled runs (A6)."""
        self.job_type = job_type
        self.params = params
        self.policy = policy
        self.enabled_by = enabled_by

    def validated(self, payload: Mapping[str, Any]) -> P:
        """The parameters that a payload gives.

        Raises:
            InvalidParams: one is unknown or invalid; the message names it and what it takes.
        """
        try:
            return self.params.model_validate(payload)
        except ValidationError as error:
            raise InvalidParams(_explain(self.job_type, self.params, error)) from None

    def new_job(self, ledger: Ledger, settings: Settings, payload: Mapping[str, Any], **values: Any) -> Job:
        """A row for this payload under these settings, not written yet; `values` are further fields of the row.

        Raises:
            InvalidParams: as `validated`.
        """
        params = self.validated(payload)
        kept = params.model_dump(mode="json", exclude_unset=True)
        if len(json.dumps(kept)) > PAYLOAD_LIMIT:
            raise InvalidParams([("", f"{self.job_type} takes {PAYLOAD_LIMIT} characters of parameters at most")])
        return ledger.new_job(
            self.job_type,
            under(settings, self.policy),
            payload=kept,
            dry_run=self.previews(params, settings),
            **values,
        )

    def previews(self, params: P, settings: Settings) -> bool:
        """Whether a run with these parameters changes nothing.

        Raises:
            InvalidParams: it asks for more than the settings have applied.
        """
        return bool(getattr(params.resolved(settings), "dry_run", False))


def tick(schedule: object, scheduled_time: object, *, now: datetime) -> dict[str, Any]:
    """The fields that a schedule's tick gives its row: the same tick makes the same `job_id` (REQUIREMENTS K6).

    Raises:
        Permanent: `schedule` is no name, or `scheduled_time` is no ISO-8601 time or too far from now.
    """
    if not isinstance(schedule, str) or not _SCHEDULE.fullmatch(schedule):
        raise Permanent(f"schedule: takes the short name of a schedule, such as orphan-cleanup, got {shown(schedule)}.")
    at = moment("scheduled_time", scheduled_time, now=now)
    job_id = derived_job_id(at, "tick", schedule, at.isoformat())
    return {"job_id": job_id, "schedule": schedule, "trigger": Trigger.SCHEDULE}


def is_tick(payload: Mapping[str, Any]) -> bool:
    """Whether a schedule made the event."""
    return "schedule" in payload or "scheduled_time" in payload


class JobHandler[P: Params](JobType[P]):
    """A Lambda handler that runs `body` as a ledger job."""

    def __init__(
        self,
        body: Callable[[Run, P], Report | Unfinished],
        *,
        job_type: str,
        params: type[P],
        policy: Policy,
        enabled_by: str | None,
    ) -> None:
        super().__init__(job_type, params=params, policy=policy, enabled_by=enabled_by)
        self.body = body
        self.__doc__ = body.__doc__

    def __call__(self, event: object, context: Context) -> dict[str, Any]:
        """Run one attempt and return its report as JSON.

        A failure that the ledger has recorded is raised to a caller by hand only: a scheduled or dispatched run answers
        with it, because the ledger alone retries and nothing is left to do for Lambda.

        Raises:
            Permanent: an event that no job can be made of; nothing was recorded.
            AlreadyRunning: a call by hand of a singleton that runs.
            LostLease: the attempt was declared dead while it ran.
            Exception: by hand, what the body raised.
        """
        given = json_object(event, f"the parameters of {self.job_type}")
        settings = settings_module.load()
        ledger = Ledger.from_environment()
        logger = Logger(service=os.environ.get("POWERTOOLS_SERVICE_NAME", "lamplighter"))
        with logged_as(logger, job=self.job_type):
            dispatched = "attempt" in given  # a job_id alone may be a parameter: undo's is
            demand_storable(given)
            begin = self._claim if dispatched else self._begin
            job = begin(given, settings, ledger, logger)
            if not isinstance(job, Job):
                return job
            if job.schedule and self.enabled_by and not attrgetter(self.enabled_by)(settings):
                return self._skip(job, ledger, logger)
            with logged_as(logger, job_id=job.job_id, attempt=job.attempt, continuation=job.continuation):
                left = timedelta(milliseconds=context.get_remaining_time_in_millis())
                stop_at = ledger.clock() + max(left - STOP_MARGIN, left / 2)
                run = Run(job, settings=settings, stop_at=stop_at, ledger=ledger, clock=ledger.clock, logger=logger)
                return self._attempt(run, ledger, by_hand=not dispatched and job.trigger is Trigger.CLI)

    def _claim(
        self, event: Mapping[str, Any], _settings: Settings, ledger: Ledger, logger: Logger
    ) -> Job | dict[str, Any]:
        """Claim the attempt that the dispatcher started; or the answer that says who was first."""
        asked = turn(event)
        try:
            return ledger.claim(
                asked.job_id, attempt=asked.attempt, continuation=asked.continuation, job_type=self.job_type
            )
        except LostLease as lost:
            logger.info("duplicate delivery of an attempt", extra={"reason": str(lost)})
            return {"status": "duplicate", "job_id": asked.job_id, "reason": str(lost)}

    def _begin(
        self, event: Mapping[str, Any], settings: Settings, ledger: Ledger, logger: Logger
    ) -> Job | dict[str, Any]:
        """Make the row of a new job, already running; or the answer that says why there is none."""
        payload, ticked = dict(event), is_tick(event)
        schedule, scheduled_time = payload.pop("schedule", None), payload.pop("scheduled_time", None)
        fields = tick(schedule, scheduled_time, now=ledger.clock()) if ticked else {}
        new = self.new_job(ledger, settings, payload, **fields)
        try:
            started = ledger.start(new)
        except DuplicateJob:
            ran = ledger.get(new.job_id)
            logger.info("duplicate delivery of a tick", extra={"job_id": ran.job_id, "found": ran.status})
            return {"status": "duplicate", "job_id": ran.job_id, "reason": f"This tick is {ran.status} already."}
        except AlreadyRunning as refusal:
            if not ticked:
                raise
            logger.warning("tick refused", extra={"reason": str(refusal)})
            return {"status": "already_running", "reason": str(refusal)}
        return started

    def _skip(self, job: Job, ledger: Ledger, logger: Logger) -> dict[str, Any]:
        """End a scheduled run whose schedule is switched off: a tick, and what is left of one that began before.

        It keeps its row: the history shows the tick, and the dead-man watch sees that the schedule lives. What it had
        done before stays in its result.
        """
        answer = {"status": "skipped", "reason": f"The setting {self.enabled_by} is false."}
        ledger.complete(job, (job.result or {}) | answer)
        logger.info("skipped", extra={"job_id": job.job_id, "reason": answer["reason"]})
        return answer | {"job_id": job.job_id}

    def _attempt(self, run: Run, ledger: Ledger, *, by_hand: bool) -> dict[str, Any]:
        run.logger.info("started", extra={"trigger": run.trigger})
        with _measured(run, self.job_type) as metrics:
            try:
                with heartbeats(run):
                    params = self.validated(run.job.payload).resolved(run.settings)
                    outcome = self.body(run, params)
                return _record(run, ledger, outcome, metrics)
            except LostLease as lost:
                run.logger.warning("the attempt was declared dead: it changes nothing more", extra={"lost": str(lost)})
                raise
            except Exception as raised:
                error = unreadable(raised) or raised
                recorded = _record_failure(run, ledger, error, metrics)
                if recorded and not by_hand:
                    return recorded
                if error is raised:
                    raise
                raise error from raised


def job[P: Params](
    job_type: str,
    *,
    params: type[P],
    timeout: timedelta,
    singleton: bool = False,
    critical: bool = False,
    enabled_by: str | None = None,
) -> Callable[[Callable[[Run, P], Report | Unfinished]], JobHandler[P]]:
    """Make a body the Lambda handler of a job.

    Args:
        job_type: its name in the ledger; with dashes for underscores, its function's name below the stack's.
        params: what events it takes.
        timeout: the function's timeout in the template; the ledger's deadline is `GRACE` later.
        singleton: whether two runs may never overlap (REQUIREMENTS K3).
        critical: whether its final failure raises an alert (REQUIREMENTS K9).
        enabled_by: the boolean setting that switches its scheduled runs (REQUIREMENTS A6).
    """

    def decorate(body: Callable[[Run, P], Report | Unfinished]) -> JobHandler[P]:
        policy = Policy(
            timeout=timeout + GRACE,
            target=f"lambda:{job_type.replace('_', '-')}",
            singleton=singleton,
            critical=critical,
        )
        return JobHandler(body, job_type=job_type, params=params, policy=policy, enabled_by=enabled_by)

    return decorate


def measure_work(metrics: Metrics, *, items: int, size: int) -> None:
    """Add the metrics of what a run dealt with (K9), unless that is nothing: a metric that is written every hour costs
    thirty cents a month."""
    if items:
        metrics.add_metric(name="Items", unit=MetricUnit.Count, value=items)
    if size:
        metrics.add_metric(name="Bytes", unit=MetricUnit.Bytes, value=size)


def _record(run: Run, ledger: Ledger, outcome: Report | Unfinished, metrics: Metrics) -> dict[str, Any]:
    report = outcome.report if isinstance(outcome, Unfinished) else outcome
    result = report.model_dump(mode="json")
    items, size = report.counts()
    measure_work(metrics, items=items, size=size)
    stored = storable(result)
    if isinstance(outcome, Unfinished):
        ended = ledger.continue_later(run.job, checkpoint=outcome.checkpoint, result=stored)
    elif run.cancelled:
        ended = ledger.finish_cancelled(run.job, stored)
    else:
        ended = ledger.complete(run.job, stored)
    run.logger.info("ended", extra={"status": ended.status, "report": stored})
    answer = {"job_id": run.job_id, "finished": ended.status.terminal} | result
    return answer if not run.cancelled else answer | {"status": "cancelled"}


def _record_failure(run: Run, ledger: Ledger, error: Exception, metrics: Metrics) -> dict[str, Any] | None:
    """Have the ledger retry or fail the job; the answer that says so, or None if the lease was lost before."""
    metrics.add_metric(name="Failures", unit=MetricUnit.Count, value=1)
    report = getattr(error, "report", None)
    result = storable(report.model_dump(mode="json")) if isinstance(report, Report) else None
    run.logger.exception("failed")
    try:
        ended = ledger.fail(run.job, error, result=result)
    except LostLease as lost:
        run.logger.warning("the failure came too late to be recorded", extra={"lost": str(lost)})
        return None
    run.logger.info("ended", extra={"status": ended.status, "next_attempt": ended.attempt})
    answer = {"job_id": run.job_id, "finished": ended.status.terminal, "status": "failed"}
    return answer | {"error": f"{type(error).__name__}: {error}", "retried": not ended.status.terminal}


def storable(result: dict[str, Any], limit: int = RESULT_LIMIT) -> dict[str, Any]:
    """The report as the row can hold it: long lists give way to their length, and the report says so."""
    if len(json.dumps(result)) <= limit:
        return result
    shortened = {name: len(value) if isinstance(value, list) else value for name, value in result.items()}
    return shortened | {"shortened": [name for name, value in result.items() if isinstance(value, list)]}


@contextmanager
def logged_as(logger: Logger, **keys: Any) -> Iterator[None]:
    """Puts `keys` on each line that is logged inside."""
    logger.append_keys(**keys)
    try:
        yield
    finally:
        logger.remove_keys(list(keys))


@contextmanager
def heartbeats(run: Run) -> Iterator[None]:
    """Beat in the background, however long one step of the body takes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT.total_seconds()):
            try:
                run.beat()
            except Exception:  # a beat that fails is followed by another; the deadline stands behind them
                run.logger.exception("a heartbeat could not be written")

    thread = threading.Thread(target=beat, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _measured(run: Run, job_type: str) -> Iterator[Metrics]:
    """EMF metrics of a run, flushed however it ends (REQUIREMENTS K9)."""
    metrics = Metrics()
    metrics.add_dimension(name="job", value=job_type)
    metrics.add_metric(name="Runs", unit=MetricUnit.Count, value=1)
    began = run.now()
    try:
        yield metrics
    finally:
        metrics.add_metric(name="Duration", unit=MetricUnit.Seconds, value=(run.now() - began).total_seconds())
        metrics.flush_metrics()


def _explain(job_type: str, params: type[Params], error: ValidationError) -> list[tuple[str, str]]:
    known = tuple(params.model_fields)
    explained = []
    for problem, (name, sentence) in zip(error.errors(), problems(error, known), strict=True):
        unknown = f"{name} is not a parameter of {job_type} (it takes {', '.join(known)})"
        explained.append((name, unknown if problem["type"] == "extra_forbidden" else sentence))
    return explained
