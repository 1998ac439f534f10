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
    ("expression", "interval"),
    [
        ("rate(1 minute)", timedelta(minutes=1)),
        ("rate(6 hours)", timedelta(hours=6)),
        ("rate(2 days)", timedelta(days=2)),
        ("cron(0 3 * * ? *)", None),
    ],
)
def test_the_interval_of_a_schedule(expression: str, interval: timedelta | None) -> None:
    assert schedule(expression).interval == interval


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
