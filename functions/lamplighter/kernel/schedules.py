"""The stack's schedules in EventBridge Scheduler: what there is, how often it runs, switching it on and off."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent

_RATE: Final = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_CRON: Final = re.compile(r"cron\((.+)\)")
_UPDATABLE: Final = (
    "Name",
    "GroupName",
    "Description",
    "ScheduleExpression",
    "ScheduleExpressionTimezone",
    "StartDate",
    "EndDate",
    "State",
    "KmsKeyArn",
    "FlexibleTimeWindow",
    "Target",
    "ActionAfterCompletion",
)
"""UpdateSchedule replaces the whole schedule, so all of what GetSchedule told is given back."""


class UnknownSchedule(Permanent):
    """The stack has no schedule of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule; `name` is the short one, without the stack's."""

    name: str
    enabled: bool
    expression: str
    changed_at: datetime
    """When it was made or last changed: before that nothing was due."""

    def due_after(self, moment: datetime) -> datetime | None:
        """When it has to run again after a run at `moment` (aware): a `rate` its interval later, a `cron` at its next
        time in UTC; None where that cannot be told (`at`, and what `_unix` does not take)."""
        if rate := _RATE.fullmatch(self.expression):
            return moment + timedelta(**{f"{rate[2]}s": int(rate[1])})
        if cron := _CRON.fullmatch(self.expression):
            return _next(cron[1], moment)
        return None


def _next(cron: str, moment: datetime) -> datetime | None:
    """The first time after `moment` that fits an expression of EventBridge Scheduler."""
    from cronsim import CronSim, CronSimError

    try:
        return next(CronSim(_unix(cron), moment.astimezone(UTC)), None)
    except (CronSimError, ValueError):
        return None


def _unix(cron: str) -> str:
    """The five fields of Unix for the six of AWS, where `?` says any and Sunday is 1 (Amazon EventBridge Scheduler,
    "Schedule types").

    Raises:
        ValueError: it has not six fields, or names certain years.
    """
    minute, hour, day, month, weekday, year = cron.split()
    if year != "*":
        raise ValueError(year)
    renumbered = re.sub(r"(?<![#/\d])\d+", lambda number: str(int(number[0]) - 1), weekday)
    return " ".join((minute, hour, day, month, renumbered)).replace("?", "*")


def schedules() -> list[Schedule]:
    """All schedules of the stack's group that tell their short name in their input."""
    group, scheduler = os.environ["SCHEDULE_GROUP"], client("scheduler")
    pages = scheduler.get_paginator("list_schedules").paginate(GroupName=group)
    found = (
        scheduler.get_schedule(GroupName=group, Name=listed["Name"]) for page in pages for listed in page["Schedules"]
    )
    return [_schedule(raw) for raw in found if "schedule" in json.loads(raw["Target"].get("Input") or "{}")]


def switch(name: str, *, on: bool | None, expression: str | None = None) -> bool:
    """Enable or disable a schedule, and give it `expression` if one is given; whether anything had to change.

    None leaves its state as it is.

    Doing it twice is the same as once (REQUIREMENTS A6).

    Raises:
        UnknownSchedule: there is no such schedule.
    """
    group, scheduler = os.environ["SCHEDULE_GROUP"], client("scheduler")
    try:
        raw = scheduler.get_schedule(GroupName=group, Name=f"{os.environ['STACK_NAME']}-{name}")
    except scheduler.exceptions.ResourceNotFoundException:
        raise UnknownSchedule(f"schedule: there is no schedule {name!r} in this stack.") from None
    state = raw["State"] if on is None else "ENABLED" if on else "DISABLED"
    wanted = {"State": state, "ScheduleExpression": expression or raw["ScheduleExpression"]}
    if all(raw[key] == value for key, value in wanted.items()):
        return False
    scheduler.update_schedule(**{key: raw[key] for key in _UPDATABLE if key in raw} | wanted)
    return True


def _schedule(raw: dict[str, Any]) -> Schedule:
    return Schedule(
        name=json.loads(raw["Target"]["Input"])["schedule"],
        enabled=raw["State"] == "ENABLED",
        expression=raw["ScheduleExpression"],
        changed_at=raw.get("LastModificationDate") or raw["CreationDate"],
    )
