"""The dead-man watch's judgement of a schedule (REQUIREMENTS K12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lamplighter.jobs.schedule_watch import overdue
from lamplighter.kernel.schedules import Schedule

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
GRACE = timedelta(minutes=15)


def schedule(expression: str = "rate(6 hours)", *, enabled: bool = True, changed: float = 100) -> Schedule:
    changed_at = NOW - timedelta(hours=changed)
    return Schedule(name="sweep", enabled=enabled, expression=expression, changed_at=changed_at)


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("rate(1 minute)", "2026-01-31T12:01"),
        ("rate(6 hours)", "2026-01-31T18:00"),
        ("rate(2 days)", "2026-02-02T12:00"),
        ("cron(0 3 * * ? *)", "2026-02-01T03:00"),
        ("cron(10/30 * * * ? *)", "2026-01-31T12:10"),
        ("cron(25 0/6 * * ? *)", "2026-01-31T12:25"),
        ("cron(0 12 31 * ? *)", "2026-03-31T12:00"),
        ("cron(0 2 ? * 1 *)", "2026-02-01T02:00"),
        ("cron(0 2 ? * MON-FRI *)", "2026-02-02T02:00"),
        ("cron(0 2 ? * 2-6 *)", "2026-02-02T02:00"),
        ("cron(0 2 ? * 3#2 *)", "2026-02-10T02:00"),
        ("cron(0 2 ? * 6L *)", "2026-02-27T02:00"),
        ("cron(0 9 L * ? *)", "2026-02-28T09:00"),
        ("cron(30 4 1 JAN,JUL ? *)", "2026-07-01T04:30"),
    ],
)
def test_when_a_schedule_is_due_again(expression: str, due: str) -> None:
    """NOW is a Saturday; AWS counts the days of the week from Sunday, which is 1."""
    assert schedule(expression).due_after(NOW) == datetime.fromisoformat(due + "Z")


@pytest.mark.parametrize(
    "expression",
    ["at(2026-02-01T03:00:00)", "cron(0 3 * * ? 2027)", "cron(0 3 * * *)", "cron(0 3 15W * ? *)", "cron(99 3 * * ? *)"],
)
def test_a_schedule_that_nobody_can_tell_the_time_of_is_not_watched(expression: str) -> None:
    assert schedule(expression).due_after(NOW) is None
    assert overdue(schedule(expression), None, now=NOW, grace=GRACE) is None


def test_a_schedule_that_ran_within_its_interval_and_grace_is_fine() -> None:
    assert overdue(schedule(), NOW - timedelta(hours=6, minutes=15), now=NOW, grace=GRACE) is None


def test_a_silent_schedule_is_named_with_its_last_run() -> None:
    sentence = overdue(schedule(), NOW - timedelta(hours=6, minutes=16), now=NOW, grace=GRACE)
    assert sentence == "sweep is due at rate(6 hours), but its last completed run was at 2026-01-31 05:44 UTC."


def test_a_schedule_that_never_ran_is_overdue_only_after_its_first_interval() -> None:
    assert overdue(schedule(changed=6), None, now=NOW, grace=GRACE) is None
    assert overdue(schedule(changed=7), None, now=NOW, grace=GRACE) == (
        "sweep is due at rate(6 hours), but it never ran."
    )


def test_a_schedule_that_was_just_switched_on_again_is_given_its_interval() -> None:
    assert overdue(schedule(changed=1), NOW - timedelta(days=30), now=NOW, grace=GRACE) is None


def test_a_schedule_that_is_off_is_not_overdue() -> None:
    assert overdue(schedule(enabled=False), None, now=NOW, grace=GRACE) is None


def test_a_daily_schedule_is_overdue_when_its_time_and_the_grace_have_passed() -> None:
    """NOW is noon: yesterday's run is enough until 13:00, and a run that began late quiets it until the next day."""
    daily = schedule("cron(0 13 * * ? *)")
    ran = NOW - timedelta(hours=22, minutes=50)
    assert overdue(daily, ran, now=NOW, grace=GRACE) is None
    assert overdue(daily, ran, now=NOW + timedelta(minutes=75), grace=GRACE) is None
    assert overdue(daily, ran, now=NOW + timedelta(minutes=76), grace=GRACE) == (
        "sweep is due at cron(0 13 * * ? *), but its last completed run was at 2026-01-30 13:10 UTC."
    )


def test_a_monthly_schedule_that_never_ran_is_overdue_only_after_its_first_time() -> None:
    monthly = schedule("cron(30 4 1 * ? *)")
    assert overdue(monthly, None, now=NOW, grace=GRACE) is None
    assert overdue(monthly, None, now=NOW + timedelta(hours=17), grace=GRACE) is not None
