"""Schedules: start or stop one by hand, without a deployment; doing it twice is the same as once (REQUIREMENTS A6)."""

from __future__ import annotations

from typing import Any, Final, Literal

from aws_lambda_powertools import Logger
from pydantic import BaseModel, ConfigDict, Field

from lamplighter.kernel import settings
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import parsed
from lamplighter.kernel.schedules import switch

logger = Logger()

_SWITCHES: Final = {"orphan-cleanup": "orphan_cleanup_enabled"}
"""The setting that switches a schedule's ticks."""

_INTERVALS: Final = {
    "orphan-cleanup": ("orphan_cleanup_scan_interval_hours", "hours"),
    "upload-cleanup": ("upload_cleanup_interval_minutes", "minutes"),
}
"""The setting that gives a schedule's interval, and its unit."""


class Event(BaseModel):
    """What to do with which schedule (its short name, such as `orphan-cleanup`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str = Field(pattern="^[a-z][a-z0-9-]{0,63}$")
    action: Literal["start", "stop"]


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Switch the schedule and say whether anything changed.

    Raises:
        Permanent: the event is not as `Event`, there is no such schedule, or its setting is off.
    """
    told = parsed(Event, event)
    changed = start(told.schedule) if told.action == "start" else stop(told.schedule)
    return {"schedule": told.schedule, "enabled": told.action == "start", "changed": changed}


def start(schedule: str) -> bool:
    """Switch a schedule on, at the interval that its setting says, if it has one; whether anything had to change.

    Raises:
        UnknownSchedule: there is no such schedule.
        Permanent: its setting is off.
    """
    in_force, expression = settings.load(), None
    if (switched_by := _SWITCHES.get(schedule)) and not getattr(in_force, switched_by):
        raise Permanent(f"schedule: {schedule} would skip every tick while the setting {switched_by} is false.")
    if schedule in _INTERVALS:
        setting, unit = _INTERVALS[schedule]
        expression = f"rate({getattr(in_force, setting)} {unit})"
    changed = switch(schedule, on=True, expression=expression)
    logger.info("schedule started", extra={"switched": schedule, "changed": changed})
    return changed


def stop(schedule: str) -> bool:
    """Switch a schedule off; whether anything had to change. Raises UnknownSchedule."""
    changed = switch(schedule, on=False)
    logger.info("schedule stopped", extra={"switched": schedule, "changed": changed})
    return changed
