"""The routes for operators and programs: run jobs, look at them, cancel, retry, redrive and undo; schedules."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from aws_lambda_powertools.event_handler.router import APIGatewayHttpRouter
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from lamplighter import catalogue, rules
from lamplighter.jobs import schedules as switching
from lamplighter.jobs.http.listing import Cursor, Filters, page
from lamplighter.jobs.http.problems import conflict, documented, invalid, not_found
from lamplighter.jobs.http.requests import (
    MADE,
    RUNS,
    Body,
    IdempotencyKey,
    JobIdInPath,
    accepted,
    demand_known_query,
    submitted,
)
from lamplighter.jobs.shown import Answer, Brief, JobId, Whole
from lamplighter.kernel import settings
from lamplighter.kernel.errors import LostLease, Permanent
from lamplighter.kernel.events import shown
from lamplighter.kernel.job import InvalidParams, JobType
from lamplighter.kernel.ledger.ledger import Ledger, UnknownJob, utc_now
from lamplighter.kernel.ledger.row import Job, Status, Trigger
from lamplighter.kernel.no_database import NoDatabase, has_database
from lamplighter.kernel.schedules import UnknownSchedule, schedules

if TYPE_CHECKING:
    from lamplighter.kernel.retention import Candidates

router = APIGatewayHttpRouter()  # type: ignore[no-untyped-call]

COUNTING_TIMEOUT: Final = timedelta(seconds=11)
"""For each of two counts: the HTTP API waits for 30 s in all."""

JOBS: Final = ["Jobs"]
SCHEDULES: Final = ["Schedules"]
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _rfc_3339(value: Any) -> Any:
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise ValueError("takes a time with its offset, such as 2026-11-22T03:00:00Z")
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(_YEARS) from None
    if not 1970 <= moment.year <= 9998:
        raise ValueError(_YEARS)
    return moment


_YEARS: Final = "takes a time from 1970 on and before 9999"
Time = Annotated[AwareDatetime, BeforeValidator(_rfc_3339), AfterValidator(_in_utc)]
"""In UTC, and far enough from the ends of the calendar to reckon with."""
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs on a page, at most.")]


class Order(Body):
    """A job to run."""

    job_type: str = Field(json_schema_extra={"enum": list(catalogue.NAMES)}, examples=["orphan_cleanup"])
    params: dict[str, Any] = Field({}, examples=[{"dry_run": True, "base_path": "uploads/"}])
    """The job's own parameters; what is not given comes from the settings."""


class Wanted(Body):
    """How the job of the path is to run."""

    params: dict[str, Any] = Field({}, examples=[{"dry_run": True}])
    """The job's own parameters; what is not given comes from the settings."""


class Undo(Body):
    """A run to undo."""

    job_id: JobId
    dry_run: bool = True
    """Only say what would be restored."""


class Wish(Body):
    """A retention rule, and how long it would keep rows."""

    rule: str = Field(examples=["system_logs"])
    """A default rule, or one of the settings."""
    keep_days: float = Field(ge=0, le=36_500, examples=[30])


class Due(Answer):
    """Rows that are too old if they are kept so long."""

    keep_days: float
    rows: int
    bytes: int
    oldest: datetime | None
    """The first moment among them from which a row ages."""
    newest: datetime | None


class Simulated(Answer):
    """What a retention rule would change now, and what it would if it kept rows otherwise."""

    rule: str
    current: Due
    proposed: Due


class Listed(Answer):
    """A page of jobs."""

    jobs: list[Brief]
    next: str | None = None
    """The cursor of the next page; null after the last. A page may hold fewer jobs than asked for and have a next."""


class Schedule(Answer):
    """A schedule of the stack."""

    name: str
    enabled: bool
    expression: str = Field(examples=["rate(24 hours)"])


class Schedules(Answer):
    """All schedules of the stack."""

    schedules: list[Schedule]


class Switched(Answer):
    """A schedule as it is now."""

    name: str
    enabled: bool
    changed: bool
    """Whether anything had to change: doing it twice is the same as once."""


_ORDERED: Final = documented(MADE, 409, body=True)


@router.post(
    "/api/jobs/run",
    summary="Run a job",
    description="A singleton that runs already answers 409 and names the run that holds its lock.",
    operation_id="run",
    tags=JOBS,
    responses=_ORDERED,
)
def run(order: Order, idempotency_key: IdempotencyKey = None) -> Response[Whole]:
    """REQUIREMENTS B7."""
    return _ordered(order.job_type, order.params, idempotency_key)


JobTypeInPath = Annotated[str, Path(json_schema_extra={"enum": list(catalogue.NAMES)})]


@router.post(
    "/api/jobs/run/<job_type>",
    summary="Run a job of this type",
    description="As `POST /api/jobs/run`, with a path for each type: a policy can allow one and not another.",
    operation_id="run_type",
    tags=JOBS,
    responses=documented(MADE, 404, 409, body=True),
)
def run_type(
    job_type: JobTypeInPath, wanted: Wanted | None = None, idempotency_key: IdempotencyKey = None
) -> Response[Whole]:
    """REQUIREMENTS S2."""
    if job_type not in catalogue.NAMES:
        raise not_found(f"job_type: takes one of {', '.join(catalogue.NAMES)}.")
    return _ordered(job_type, wanted.params if wanted else {}, idempotency_key)


@router.post(
    "/api/jobs/preview",
    summary="Run a job that only says what it would do",
    operation_id="preview",
    tags=JOBS,
    responses=_ORDERED,
)
def preview(order: Order, idempotency_key: IdempotencyKey = None) -> Response[Whole]:
    """REQUIREMENTS K11: the same, with `dry_run`."""
    kind = _job_type(order.job_type)
    if "dry_run" not in kind.params.model_fields:
        raise invalid([("body.job_type", f"body.job_type: {order.job_type} has no preview.")])
    if order.params.get("dry_run", True) is not True:
        raise invalid([("body.params.dry_run", "body.params.dry_run: a preview takes true, or nothing.")])
    return _ordered(order.job_type, order.params | {"dry_run": True}, idempotency_key)


@router.get(
    "/api/jobs",
    summary="List jobs, newest first",
    description="Without `job_type`, of Lamplighter's own types and those in the setting `jobs.timeout_minutes`.",
    operation_id="list",
    tags=JOBS,
    responses=documented({200: {"description": "A page of jobs"}}),
    middlewares=[demand_known_query],
)
def list_jobs(
    *,
    job_type: Annotated[str | None, Query(pattern="^[a-z][a-z0-9_]{0,63}$")] = None,
    status: Annotated[Status | None, Query()] = None,
    trigger: Annotated[Trigger | None, Query()] = None,
    created_since: Annotated[Time | None, Query(description="Created then or later.")] = None,
    created_until: Annotated[Time | None, Query(description="Created then or earlier.")] = None,
    limit: Limit = 25,
    cursor: Annotated[str | None, Query(max_length=4096, description="`next` of the page before.")] = None,
) -> Listed:
    """A page; the filters of the pages of one list must be the same."""
    try:
        place = Cursor.parse(cursor) if cursor is not None else None
    except ValueError as error:
        raise invalid([("query.cursor", f"query.cursor: {error}.")]) from None
    types = [job_type] if job_type else _known_types()
    filters = Filters(status=status, trigger=trigger, since=created_since, until=created_until)
    found, end = page(Ledger.from_environment().store, types, filters, limit=limit, cursor=place)
    return Listed(jobs=[Brief.of(job) for job in found], next=str(end) if end else None)


@router.get(
    "/api/dead-letters",
    summary="List the jobs that failed for good and were not redriven, oldest first",
    operation_id="dead_letters",
    tags=JOBS,
    responses=documented({200: {"description": "Dead letters"}}),
    middlewares=[demand_known_query],
)
def dead_letters(limit: Limit = 25) -> Listed:
    """REQUIREMENTS K10."""
    return Listed(jobs=[Brief.of(job) for job in Ledger.from_environment().dead_letters(limit=limit)])


@router.get(
    "/api/jobs/<job_id>",
    summary="Show a job",
    description="From the ledger, or from the history in Postgres once its retention there is over.",
    operation_id="show",
    tags=JOBS,
    responses=documented({200: {"description": "The job"}}, 404),
)
def show(job_id: JobIdInPath) -> Whole:
    """REQUIREMENTS K7, B3."""
    try:
        return Whole.of(Ledger.from_environment().get(job_id))
    except UnknownJob:
        if job := _recalled(job_id):
            return Whole.of(job)
        raise not_found(f"job_id: there is no job {job_id}, neither in the ledger nor in the history.") from None


def _recalled(job_id: str) -> Job | None:
    from lamplighter.kernel.history import recall

    if not has_database():
        return None
    from lamplighter.kernel.database import engine

    return recall(engine(), job_id)


@router.post(
    "/api/jobs/<job_id>/cancel",
    summary="Cancel a job",
    description="One that waits is cancelled at once; one that runs is asked to stop, and does within a batch. "
    "Doing it twice is the same as once.",
    operation_id="cancel",
    tags=JOBS,
    responses=documented({200: {"description": "The job as it is now"}}, 404, 409),
)
def cancel(job_id: JobIdInPath) -> Whole:
    """REQUIREMENTS K7."""
    ledger = Ledger.from_environment()
    try:
        return Whole.of(ledger.cancel(job_id))
    except LostLease:
        job = ledger.get(job_id)
        if job.status is Status.CANCELLED:
            return Whole.of(job)
        raise conflict("ended", f"Job {job_id} is {job.status}: there is nothing to cancel.") from None


@router.post(
    "/api/jobs/<job_id>/retry",
    summary="Run a failed or cancelled job again, as a new job; or a waiting one now",
    description="Doing it twice gives the same new job.",
    operation_id="retry",
    tags=JOBS,
    responses=documented(RUNS, 404, 409),
)
def retry(job_id: JobIdInPath) -> Response[Whole]:
    """REQUIREMENTS K5."""
    try:
        return accepted(Ledger.from_environment().retry(job_id))
    except UnknownJob:
        raise
    except Permanent as refusal:
        raise conflict("not-retriable", str(refusal)) from None


@router.post(
    "/api/jobs/<job_id>/redrive",
    summary="Run a dead letter again, as a new job",
    description="Doing it twice gives the same new job.",
    operation_id="redrive",
    tags=JOBS,
    responses=documented(RUNS, 404, 409),
)
def redrive(job_id: JobIdInPath) -> Response[Whole]:
    """REQUIREMENTS K10."""
    try:
        return accepted(Ledger.from_environment().redrive(job_id))
    except UnknownJob:
        raise
    except Permanent as refusal:
        raise conflict("no-dead-letter", str(refusal)) from None


@router.post(
    "/api/undo",
    summary="Undo an orphan cleanup, or what a cloud scan did about findings",
    description="A preview unless `dry_run` is false. 409 when nothing undoes jobs of the type.",
    operation_id="undo",
    tags=JOBS,
    responses=documented(MADE, 404, 409, body=True),
)
def undo(told: Undo, idempotency_key: IdempotencyKey = None) -> Response[Whole]:
    """REQUIREMENTS A7, C13."""
    done = Ledger.from_environment().get(told.job_id)
    if done.job_type not in catalogue.UNDONE_BY:
        undone = ", ".join(catalogue.UNDONE_BY)
        raise conflict("not-undoable", f"Job {told.job_id} is a {done.job_type}; what can be undone is {undone}.")
    return _ordered(catalogue.UNDONE_BY[done.job_type], told.model_dump(), idempotency_key)


@router.post(
    "/api/retention/simulate",
    summary="Count what a retention rule would change if it kept rows for so long",
    description="Beside what it would change now, in one snapshot. Nothing is changed. 409 when it cannot be counted: "
    "no database is configured, it lacks the table, or counting takes too long.",
    operation_id="simulate",
    tags=["Retention"],
    responses=documented({200: {"description": "What is due under each"}}, 409, body=True),
)
def simulate(wish: Wish) -> Simulated:
    """REQUIREMENTS B11."""
    in_force = rules.in_force(settings.load())
    if wish.rule not in in_force:
        known = ", ".join(in_force)
        raise invalid([("body.rule", f"body.rule: there is no {shown(wish.rule)} (known: {known}).")])
    rule, proposed = in_force[wish.rule], timedelta(days=wish.keep_days)
    if rule.clock is None:
        raise invalid([("body.rule", f"body.rule: the rows of {wish.rule} do not age.")])
    if proposed < rule.floor:
        floor = rule.floor / timedelta(days=1)
        raise invalid([("body.keep_days", f"body.keep_days: {wish.rule} takes at least {floor:.4g}.")])
    from lamplighter.kernel import retention
    from lamplighter.kernel.database import engine

    try:
        found = retention.simulate(engine(), rule, now=utc_now(), keep=proposed, timeout=COUNTING_TIMEOUT)
    except NoDatabase:
        raise
    except Permanent as refusal:
        raise conflict("not-countable", str(refusal)) from None
    return Simulated(rule=wish.rule, current=_due(rule.keep, found.current), proposed=_due(proposed, found.proposed))


def _due(keep: timedelta, found: Candidates) -> Due:
    return Due(
        keep_days=keep / timedelta(days=1),
        rows=found.rows,
        bytes=found.bytes,
        oldest=found.oldest,
        newest=found.newest,
    )


@router.get(
    "/api/schedules",
    summary="List the schedules",
    operation_id="schedules",
    tags=SCHEDULES,
    responses=documented({200: {"description": "All schedules of the stack"}}),
)
def list_schedules() -> Schedules:
    """REQUIREMENTS A6."""
    found = sorted(schedules(), key=lambda schedule: schedule.name)
    return Schedules(
        schedules=[Schedule(name=one.name, enabled=one.enabled, expression=one.expression) for one in found]
    )


ScheduleName = Annotated[str, Path(pattern="^[a-z][a-z0-9-]{0,63}$", description="Its short name.")]
_SWITCHED: Final = documented({200: {"description": "The schedule as it is now"}}, 404, 409)


@router.post(
    "/api/schedules/<name>/start",
    summary="Start a schedule, at the interval in force",
    description="Doing it twice is the same as once. 409 while its setting is off.",
    operation_id="start_schedule",
    tags=SCHEDULES,
    responses=_SWITCHED,
)
def start_schedule(name: ScheduleName) -> Switched:
    """REQUIREMENTS A6."""
    try:
        return Switched(name=name, enabled=True, changed=switching.start(name))
    except UnknownSchedule as unknown:
        raise not_found(str(unknown)) from None
    except (settings.SettingsError, NoDatabase):
        raise
    except Permanent as refusal:
        raise conflict("switched-off", str(refusal)) from None


@router.post(
    "/api/schedules/<name>/stop",
    summary="Stop a schedule",
    description="Doing it twice is the same as once. It stays stopped until the settings change or it is started.",
    operation_id="stop_schedule",
    tags=SCHEDULES,
    responses=_SWITCHED,
)
def stop_schedule(name: ScheduleName) -> Switched:
    """REQUIREMENTS A6."""
    try:
        return Switched(name=name, enabled=False, changed=switching.stop(name))
    except UnknownSchedule as unknown:
        raise not_found(str(unknown)) from None


def _job_type(name: str) -> JobType[Any]:
    try:
        return catalogue.job_type(name)
    except Permanent as unknown:
        raise invalid([("body.job_type", f"body.{unknown}")]) from None


def _ordered(name: str, params: dict[str, Any], key: str | None) -> Response[Whole]:
    """A row of one of our own job types, which the dispatcher starts.

    Raises:
        Problem: 422, a parameter is unknown or invalid.
        AlreadyRunning: the type is a singleton that runs.
    """
    ledger = Ledger.from_environment()
    try:
        new = _job_type(name).new_job(ledger, settings.load(), params, trigger=Trigger.API)
    except InvalidParams as error:
        raise invalid(
            (f"body.params.{field}", f"body.params.{sentence}.")
            if field
            else ("body.params", f"body.params: {sentence}.")
            for field, sentence in error.problems
        ) from None
    except (settings.SettingsError, NoDatabase):
        raise
    except Permanent as refusal:
        raise invalid([("body.params", f"body.params: {refusal}")]) from None
    return submitted(ledger, new, key, router.current_event.raw_event)


def _known_types() -> list[str]:
    return sorted({*catalogue.NAMES, *settings.load().jobs.timeout_minutes} - {"default"})
