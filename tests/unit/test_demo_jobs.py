"""The demo's regard for schedules: whose runs it lets pass, lest they come in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lamplighter.kernel.schedules import Schedule
from local.demo_jobs import AHEAD, about_to_start

DUE = datetime(2026, 11, 22, 12, 40, tzinfo=UTC)


def cleanup(expression: str = "cron(10/30 * * * ? *)", *, enabled: bool = True) -> Schedule:
    return Schedule(name="cleanup", enabled=enabled, expression=expression, changed_at=DUE - timedelta(days=1))


@pytest.mark.parametrize("before", [AHEAD, timedelta(seconds=1)])
def test_what_is_due_within_the_time_that_the_chapters_take_is_let_pass(before: timedelta) -> None:
    hourly = Schedule(name="hourly", enabled=True, expression="cron(50 * * * ? *)", changed_at=DUE)
    assert about_to_start([cleanup(), hourly], DUE - before) == {"cleanup": DUE}


@pytest.mark.parametrize(
    ("schedule", "now"),
    [
        (cleanup(), DUE - AHEAD - timedelta(seconds=1)),
        (cleanup(), DUE),  # it has started: its lock is waited for
        (cleanup(enabled=False), DUE - timedelta(seconds=1)),
        (cleanup("at(2026-11-22T12:40:00)"), DUE - timedelta(seconds=1)),
    ],
)
def test_what_is_due_later_was_due_already_or_is_off_is_not_waited_for(schedule: Schedule, now: datetime) -> None:
    assert about_to_start([schedule], now) == {}
