"""The stack's schedules in EventBridge Scheduler: what there is, how often it runs, switching it on and off."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent

_RATE: Final = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
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

    @property
    def interval(self) -> timedelta | None:
        """The time between two ticks; None where the expression is no `rate(...)`."""
        rate = _RATE.fullmatch(self.expression)
        return timedelta(**{f"{rate[2]}s": int(rate[1])}) if rate else None


def schedules() -> list[Schedule]:
    """All schedules of the stack's group that tell their short name in their input."""
    group, scheduler = os.environ["SCHEDULE_GROUP"], client("scheduler")
    pages = scheduler.get_paginator("list_schedules").paginate(GroupName=group)
    found = (
        scheduler.get_schedule(GroupName=group, Name=listed["Name"]) for page in pages for listed in page["Schedules"]
    )
    return [_schedule(raw) for raw in found if "schedule" in json.loads(raw["Target"].get("Input") or "{}")]


def switch(name: str, *, on: bool, expression: str | None = None) -> bool:
    """Enable or disable a schedule, and give it `expression` if one is given; whether anything had to change.

    Doing it twice is the same as once (REQUIREMENTS A6).

    Raises:
        UnknownSchedule: there is no such schedule.
    """
    group, scheduler = os.environ["SCHEDULE_GROUP"], client("scheduler")
    try:
        raw = scheduler.get_schedule(GroupName=group, Name=f"{os.environ['STACK_NAME']}-{name}")
    except scheduler.exceptions.ResourceNotFoundException:
        raise UnknownSchedule(f"schedule: there is no schedule {name!r} in this stack.") from None
    wanted = {"State": "ENABLED" if on else "DISABLED", "ScheduleExpression": expression or raw["ScheduleExpression"]}
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
