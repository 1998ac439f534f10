"""Schedules: start or stop one by hand, without a deployment; doing it twice is the same as once (REQUIREMENTS A6)."""

from __future__ import annotations

from math import ceil
from operator import attrgetter
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger
from pydantic import BaseModel, ConfigDict, Field

from lamplighter.kernel import settings
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import parsed
from lamplighter.kernel.no_database import NoDatabase, has_database
from lamplighter.kernel.schedules import switch
from lamplighter.kernel.settings import Settings

logger = Logger()

_SWITCHES: Final = {"orphan-cleanup": "media.enabled"}
"""The setting that switches a schedule's ticks."""


def expressions(settings: Settings) -> dict[str, str]:
    """How often the schedules run whose interval is a setting, by their names."""
    minutes = ceil(settings.uploads.cleanup_interval_seconds / 60)
    return {
        "orphan-cleanup": f"rate({settings.media.scan_interval_hours} hours)",
        "upload-cleanup": f"rate({minutes} minutes)",
    }


NEED_DATABASE: Final = frozenset(
    {
        *("orphan-cleanup", "database-cleanup", "session-cleanup", "token-cleanup"),
        *("audit-archive", "instance-health"),
    }
)
"""Schedules that stay off without a database; the template makes them so (REQUIREMENTS P5)."""


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
        NoDatabase: its job needs a database, and none is configured.
        Permanent: its setting is off.
    """
    if schedule in NEED_DATABASE and not has_database():
        raise NoDatabase(f"the schedule {schedule}")
    in_force = settings.load()
    if (switched_by := _SWITCHES.get(schedule)) and not attrgetter(switched_by)(in_force):
        raise Permanent(f"schedule: {schedule} would skip every tick while the setting {switched_by} is false.")
    changed = switch(schedule, on=True, expression=expressions(in_force).get(schedule))
    logger.info("schedule started", extra={"switched": schedule, "changed": changed})
    return changed


def stop(schedule: str) -> bool:
    """Switch a schedule off; whether anything had to change. Raises UnknownSchedule."""
    changed = switch(schedule, on=False)
    logger.info("schedule stopped", extra={"switched": schedule, "changed": changed})
    return changed
