"""Schedule watch: a dead-man switch for every schedule of the stack.

A schedule that had no completed run by its next time after the last one, plus a grace, raises an alert, once, and a
notice when it runs again. The watch itself and the timeout checker, which are no ledger jobs, are watched from outside
by alarms on their heartbeat metrics (REQUIREMENTS K12).
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from lamplighter.kernel import settings
from lamplighter.kernel.aws import client
from lamplighter.kernel.events import json_object
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import from_text
from lamplighter.kernel.notify import alert, flat, resolve
from lamplighter.kernel.schedules import Schedule, schedules

logger = Logger()

WATCHED_BY_ALARM: Final = frozenset({"timeout-checker", "schedule-watch"})


def overdue(schedule: Schedule, last_completed: datetime | None, *, now: datetime, grace: timedelta) -> str | None:
    """A sentence that says how long the schedule has been silent, or None if it runs as it should, or is off."""
    since = max(filter(None, (last_completed, schedule.changed_at)))
    due = schedule.due_after(since)
    if not schedule.enabled or due is None or now - due <= grace:
        return None
    ran = f"its last completed run was at {last_completed:%Y-%m-%d %H:%M} UTC" if last_completed else "it never ran"
    return f"{flat(schedule.name)} is due at {schedule.expression}, but {ran}."


def last_completed_runs(names: list[str]) -> dict[str, datetime]:
    """When each schedule last had a completed run, by name; without those that never had one."""
    dynamodb, table = client("dynamodb"), os.environ["JOBS_TABLE"]
    found: dict[str, datetime] = {}
    wanted = [{"pk": {"S": f"SCHEDULE#{name}"}} for name in names]
    while wanted:
        answer = dynamodb.batch_get_item(RequestItems={table: {"Keys": wanted[:100], "ConsistentRead": True}})
        for item in answer["Responses"][table]:
            found[item["pk"]["S"].removeprefix("SCHEDULE#")] = from_text(item["last_completed_at"]["S"])
        wanted = answer["UnprocessedKeys"].get(table, {}).get("Keys", []) + wanted[100:]
    return found


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Look at every schedule once; answers which are overdue, and which cannot be watched.

    Raises:
        Permanent: the event holds something else than a tick.
    """
    json_object(event, "nothing, or a tick", {"schedule", "scheduled_time"})
    now = utc_now()
    grace = timedelta(minutes=settings.load().jobs.schedule_grace_minutes)
    watched = [schedule for schedule in schedules() if schedule.name not in WATCHED_BY_ALARM]
    completed = last_completed_runs([schedule.name for schedule in watched])
    late: list[str] = []
    for schedule in watched:
        problem = overdue(schedule, completed.get(schedule.name), now=now, grace=grace)
        key = f"schedule#{schedule.name}"
        if problem:
            late.append(schedule.name)
            alert(key, subject=f"Schedule {flat(schedule.name)} does not run", message=problem)
        elif resolve(key):
            logger.info("the schedule runs again", extra={"recovered": schedule.name})
    unwatched = [schedule.name for schedule in watched if schedule.due_after(now) is None]
    if unwatched:
        logger.warning("schedules that nobody can say when they are due", extra={"unwatched": unwatched})
    metrics = Metrics()
    metrics.add_metric(name="ScheduleWatchHeartbeat", unit=MetricUnit.Count, value=1)
    if late:
        metrics.add_metric(name="SchedulesOverdue", unit=MetricUnit.Count, value=len(late))
    metrics.flush_metrics()
    return {"watched": len(watched), "overdue": late, "unwatched": unwatched}
