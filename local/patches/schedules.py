"""EventBridge Scheduler: planned times to the second that do not drift, and the `<aws.scheduler.*>` placeholders.

MiniStack sweeps every 10 s, counts an interval from the moment it noticed, and passes the placeholders through. Jobs
here derive their identity from the scheduled time, so it has to be the planned one.
"""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, datetime
from typing import Any

from ministack.core.responses import get_account_id, get_region, new_uuid, set_request_account_id, set_request_region
from ministack.services import eventbridge, scheduler

_log = logging.getLogger("schedules")


def apply() -> None:
    fire_planned_occurrences()


def fire_planned_occurrences() -> None:
    assert hasattr(scheduler, "_tick_schedules"), "MiniStack's scheduler has moved"
    scheduler._SCHEDULE_TICK_INTERVAL = 1
    scheduler._tick_schedules = _tick


def _tick() -> None:
    now = time.time()
    account_before, region_before = get_account_id(), get_region()
    try:
        for key, schedule in list(scheduler._schedules._data.items()):
            last = scheduler._schedule_last_fired.setdefault(key, schedule.get("CreationDate", now))
            if schedule.get("State") != "ENABLED":
                scheduler._schedule_last_fired[key] = now  # what a disabled schedule misses is not caught up
                continue
            planned = _latest_occurrence(schedule, last, now)
            if planned is None:
                continue
            scheduler._schedule_last_fired[key] = planned
            set_request_account_id(key[0])
            set_request_region(key[1])
            _fire(schedule, planned)
            if schedule["ScheduleExpression"].startswith("at(") and schedule.get("ActionAfterCompletion") == "DELETE":
                scheduler._schedules._data.pop(key, None)
    finally:
        set_request_account_id(account_before)
        set_request_region(region_before)


def _latest_occurrence(schedule: dict[str, Any], after: float, now: float) -> float | None:
    """The newest occurrence in (after, now], in epoch seconds; older ones are not caught up."""
    expression = schedule.get("ScheduleExpression", "")
    start, end = (scheduler._to_epoch(schedule.get(name)) for name in ("StartDate", "EndDate"))
    if (start is not None and now < start) or (end is not None and now > end):
        return None
    if (moment := scheduler._at_time_epoch(expression)) is not None:
        return float(moment) if after < moment <= now else None
    if (interval := eventbridge._parse_rate_seconds(expression)) is not None:
        anchor = start if start is not None else schedule.get("CreationDate", now)
        planned: float = anchor + (now - anchor) // interval * interval
        return planned if planned > after else None
    fields = eventbridge._parse_cron_fields(expression)
    if fields is None:
        return None
    latest = None
    following = eventbridge._cron_next_fire(fields, datetime.fromtimestamp(after, UTC))
    while following is not None and following.timestamp() <= now:
        latest = following.timestamp()
        following = eventbridge._cron_next_fire(fields, following)
    return latest


def _fire(schedule: dict[str, Any], planned: float) -> None:
    event_id = new_uuid()
    values = {
        "scheduled-time": datetime.fromtimestamp(planned, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "schedule-arn": schedule.get("Arn", ""),
        "execution-id": event_id,
        "attempt-number": "1",
    }
    target = dict(schedule.get("Target") or {})
    if "Input" in target:
        target["Input"] = re.sub(
            r"<aws\.scheduler\.([a-z-]+)>", lambda match: values.get(match[1], match[0]), target["Input"]
        )
    event = {
        "EventId": event_id,
        "Source": "aws.scheduler",
        "DetailType": "Scheduled Event",
        "Detail": "{}",
        "Time": planned,
        "Resources": [schedule.get("Arn", "")],
        "Account": get_account_id(),
        "Region": get_region(),
    }
    try:
        eventbridge._invoke_target(target, event, schedule)
    except Exception:  # noqa: BLE001 - one target must not end the schedule of the others
        _log.exception("schedule %s", schedule.get("Arn"))
