"""Timeout checker: finds jobs that are past their deadline, and jobs whose time has come.

An expired job is judged on evidence: its deadline, its heartbeat, and for Step Functions the execution's own status.
It is then retried, failed or, where the execution in fact succeeded, completed; a waiting job that is due is released
to the dispatcher. The sparse indexes hold only such jobs, so a pass costs in proportion to what it finds. It stops
in time and says where (`cursors`), and the state machine around it goes on from there (REQUIREMENTS A13, B1, B2, K10).

A schedule starts a pass once a minute. Each pass looks two minutes ahead; if a moment comes within them, an execution
waits for it and makes the next pass (`waits`, K15). After the scheduled pass, changed settings take effect
(`settings_document`).

It is the ledger's machinery and no ledger job itself: watched from outside by an alarm on `CheckerHeartbeat`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from lamplighter.jobs.settings_document import apply_settings
from lamplighter.kernel.errors import LostLease, Permanent
from lamplighter.kernel.events import json_object, shown
from lamplighter.kernel.ledger import transitions, waits
from lamplighter.kernel.ledger.judgement import Execution, execute, execution_status, judge
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, to_text
from lamplighter.kernel.ledger.store import Change, Cursor, Outcome, Page, shards

logger = Logger()

PAGE: Final = 250
"""Jobs read and written before the time is looked at again: about 12 requests, a second at the worst."""

STOP_MARGIN: Final = timedelta(seconds=5)
"""How long before the function's timeout no new page is begun."""


SETTINGS_TIME: Final = timedelta(seconds=10)
"""How long a pass waits for the settings at most; it is over by then."""

KINDS: Final = ("due", "expired")
"""What lanes look for: each of them in each shard."""

TAKES: Final = frozenset({"waited", "cursors", "schedule", "scheduled_time", "half"})
"""Fields of the event: none manually (`run_once`), whether a wait made the pass, and the cursors of the pass that this
one continues. `half` comes from an execution that began before an upgrade, and says nothing any more."""


@dataclass(slots=True)
class Pass:
    """What one lane (an index's shard) found and did."""

    counts: Counter[str] = field(default_factory=Counter)
    oldest_overdue: timedelta = timedelta()
    cursor: Cursor | Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Look:
    """What a lane holds: whether jobs are due, and when the next one is, within `waits.AHEAD`."""

    due: bool
    next_moment: datetime | None


class Checker:
    """One pass over all lanes, in parallel, until `stop_at`. It begins the wait for what falls due next before it acts,
    so that the next pass is in time however long this one takes."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        stop_at: datetime,
        execution: Execution,
        begin_wait: Callable[[datetime], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._stop_at = stop_at
        self._execution = execution
        self._begin_wait = begin_wait

    def run(self, cursors: Mapping[str, Cursor | Literal["done"]]) -> dict[str, Any]:
        """The report of a pass that begins where `cursors` say. A lane that fails does not stop the others."""
        lanes = {f"{kind}/{shard}": (kind, shard) for kind in KINDS for shard in shards()}
        passes = {name: Pass() for name in lanes}
        now = self._ledger.clock()
        next_moment: datetime | None = None
        with ThreadPoolExecutor(max_workers=len(lanes)) as executor:
            if cursors:
                failed = set[str]()
                open_lanes = [name for name in lanes if cursors.get(name) != "done"]
            else:
                looks, failed = _done({name: executor.submit(self._look, *lane, now) for name, lane in lanes.items()})
                open_lanes = [name for name, look in looks.items() if look.due]
                next_moment = min((look.next_moment for look in looks.values() if look.next_moment), default=None)
            if next_moment:
                self._begin_wait(next_moment)
            _, failed_later = _done(
                {
                    name: executor.submit(self._drain, *lanes[name], now, cursors.get(name), passes[name])
                    for name in open_lanes
                }
            )
        return _report(passes, failed_lanes=len(failed | failed_later), next_moment=next_moment)

    def _look(self, kind: str, shard: int, now: datetime) -> Look:
        """What is due in a lane. One query for its first job is all that an idle lane costs."""
        ahead = partial(self._read(kind), shard, now + waits.AHEAD, limit=1)
        moment = _first_moment(ahead())
        if moment is None or moment > now:
            return Look(due=False, next_moment=moment)
        return Look(due=True, next_moment=_first_moment(ahead(since=now + transitions.MILLISECOND)))

    def _read(self, kind: str) -> Callable[..., Page]:
        return self._ledger.store.due if kind == "due" else self._ledger.store.expired

    def _drain(
        self, kind: str, shard: int, now: datetime, cursor: Cursor | Literal["done"] | None, result: Pass
    ) -> None:
        at = cursor if isinstance(cursor, dict) else None
        while True:
            page = self._read(kind)(shard, now, limit=PAGE, cursor=at)
            self._settle(kind, page, now, result)
            at = page.next
            if at is None:
                return
            if self._ledger.clock() >= self._stop_at:
                result.cursor = at
                return

    def _settle(self, kind: str, page: Page, now: datetime, result: Pass) -> None:
        for job in page.jobs:
            result.oldest_overdue = max(result.oldest_overdue, now - (waits.moment_of(job) or now))
        if kind == "due":
            self._release(page.jobs, result)
        else:
            self._expire(page.jobs, result)

    def _release(self, jobs: Sequence[Job], result: Pass) -> None:
        changes = []
        for job in jobs:
            try:
                changes.append(Change(old=job, new=transitions.release(job, now=self._ledger.clock())))
            except LostLease:
                result.counts["lost"] += 1  # the index was behind the row
        for outcome in self._ledger.store.apply_many(changes):
            result.counts["released" if outcome is Outcome.WRITTEN else outcome.value] += 1

    def _expire(self, jobs: Sequence[Job], result: Pass) -> None:
        verdicts = []
        for job in jobs:
            try:
                verdicts.append(judge(self._ledger, job, self._execution))
            except LostLease:
                result.counts["lost"] += 1
            except Exception:
                result.counts["errors"] += 1  # one job's trouble is not the others'
                logger.exception("a job could not be judged", extra={"job_id": job.job_id})
        told = []
        for verdict, outcome in zip(verdicts, execute(self._ledger, verdicts), strict=True):
            job = verdict.change.old
            result.counts[verdict.label if outcome is Outcome.WRITTEN else outcome.value] += 1
            if outcome is Outcome.WRITTEN:
                told.append(f"{job.job_type} {job.job_id} attempt {job.attempt}: {verdict.label}")
        if told:
            logger.warning("jobs expired", extra={"jobs": told})


def _first_moment(page: Page) -> datetime | None:
    return waits.moment_of(page.jobs[0]) if page.jobs else None


def _done[T](futures: Mapping[str, Future[T]]) -> tuple[dict[str, T], set[str]]:
    """The results by lane, and the lanes that failed."""
    results, failed = {}, set()
    for name, future in futures.items():
        try:
            results[name] = future.result()
        except Exception:
            failed.add(name)
            logger.exception("a lane failed", extra={"lane": name})
    return results, failed


def _report(passes: Mapping[str, Pass], *, failed_lanes: int, next_moment: datetime | None) -> dict[str, Any]:
    counts: Counter[str] = sum((lane.counts for lane in passes.values()), Counter())
    names = ("retried", "failed", "completed", "cancelled", "extended", "released", "lost", "errors")
    finished = all(lane.cursor == "done" for lane in passes.values())
    return {
        "finished": finished,
        "expired": sum(counts[name] for name in ("retried", "failed", "completed", "cancelled", "extended")),
        **{name: counts[name] for name in names},
        "oldest_overdue_seconds": max(lane.oldest_overdue for lane in passes.values()).total_seconds(),
        "failed_lanes": failed_lanes,
        "next_moment": to_text(next_moment) if next_moment else None,
        "cursors": {} if finished else {name: lane.cursor for name, lane in passes.items()},
    }


def cursors_of(given: object) -> dict[str, Cursor | Literal["done"]]:
    """Where the lanes of another pass ended.

    Raises:
        Permanent: it is not as a report has it.
    """
    lanes = {f"{kind}/{shard}" for kind in KINDS for shard in shards()}
    cursors = json_object(given, "cursors as the report of another pass has them", lanes)
    for lane, cursor in cursors.items():
        if cursor != "done" and not _is_cursor(cursor):
            raise Permanent(f"cursors.{lane}: takes done, or the cursor of another pass, got {shown(cursor)}.")
    return cursors


def _is_cursor(cursor: object) -> bool:
    return isinstance(cursor, dict) and all(
        isinstance(key, dict) and key.keys() == {"S"} and isinstance(key["S"], str) for key in cursor.values()
    )


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:
    """One pass; answers its report, with `finished` false and `cursors` when time ran out.

    Raises:
        Permanent: the event has a field that is not in `TAKES`, or a wrong value. Checked here, since pydantic costs
            half the start.
    """
    given = json_object(event, "nothing, or the cursors of another pass", TAKES)
    cursors = cursors_of(given.get("cursors", {}))
    waited = given.get("waited", False)
    if not isinstance(waited, bool):
        raise Permanent(f"waited: takes true or false, got {shown(waited)}.")
    ledger = Ledger.from_environment()
    left = timedelta(milliseconds=context.get_remaining_time_in_millis())
    stop_at = ledger.clock() + left - STOP_MARGIN
    begin_wait = partial(_begin_wait, ledger)
    report = Checker(ledger, stop_at=stop_at, execution=execution_status, begin_wait=begin_wait).run(cursors)
    _measure(report, heartbeat=not waited)
    logger.info("pass done", extra=report)
    if not waited and not cursors:
        left = timedelta(milliseconds=context.get_remaining_time_in_millis())
        apply_settings_within(min(SETTINGS_TIME, left - STOP_MARGIN / 2))
    return report


def _begin_wait(ledger: Ledger, moment: datetime) -> None:
    """Wait for `moment`. If that fails, the next scheduled pass acts on it."""
    try:
        # The index shows the moment already, so nothing has to settle.
        waits.begin_wait(ledger.store, moment, ledger.clock(), waits.start_waiting, settle=timedelta())
    except Exception:
        logger.exception("a wait could not be started", extra={"moment": to_text(moment)})


def apply_settings_within(limit: timedelta) -> None:
    """Have changed settings take effect, once a minute (P2). The pass is done: whatever fails here, or takes too long,
    is logged, and the next minute tries again."""

    def run() -> None:
        try:
            apply_settings()
        except Exception:
            logger.exception("the settings could not be applied")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(limit, timedelta()).total_seconds())
    if thread.is_alive():
        logger.error("applying the settings takes too long; the pass does not wait for it")


def _measure(report: Mapping[str, Any], *, heartbeat: bool) -> None:
    metrics = Metrics()
    # The alarm watches the schedule, so a pass after a wait is no heartbeat: waits go on for a while without it.
    if heartbeat and not report["failed_lanes"]:
        metrics.add_metric(name="CheckerHeartbeat", unit=MetricUnit.Count, value=1)
    # The others only where there is something to tell: a metric of zeros costs thirty cents a month, too.
    if late := report["oldest_overdue_seconds"]:
        metrics.add_metric(name="OldestOverdueSeconds", unit=MetricUnit.Seconds, value=late)
    for name, metric in (("expired", "JobsExpired"), ("released", "JobsReleased"), ("failed", "JobsFailed")):
        if report[name]:
            metrics.add_metric(name=metric, unit=MetricUnit.Count, value=report[name])
    if metrics.metric_set:
        metrics.flush_metrics()
