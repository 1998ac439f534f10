"""Schedules fire by themselves, each tick runs once, and silence is noticed (REQUIREMENTS A6, A13, K6, K12)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from lamplighter.kernel.ledger.row import Status, Trigger, derived_job_id, to_text
from tests.e2e.deployed import Deployed, Shelf, eventually, later


def test_due_and_expired_jobs_are_handled_though_nobody_calls_the_checker(stack: Deployed, job_type: str) -> None:
    """A13, K15."""
    due = stack.seed(job_type, run_at=later(seconds=1))
    assert not due.released
    expired = stack.seed(job_type)
    stack.backdate(expired.job_id)
    eventually(lambda: stack.ledger.get(due.job_id).released)
    eventually(lambda: stack.ledger.get(expired.job_id).errors)


def test_the_checkers_heartbeat_quiets_its_alarm(stack: Deployed) -> None:
    """K12: the alarm takes silence for a breach, so it is calm only while the heartbeat comes."""
    name = f"{stack.name}-timeout-checker-silent"
    cloudwatch = stack.client("cloudwatch")

    def state() -> bool:
        (alarm,) = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"]
        assert alarm["TreatMissingData"] == "breaching"
        return bool(alarm["StateValue"] == "OK")

    eventually(state)


def test_a_tick_of_the_schedule_makes_one_row_and_is_noted(stack: Deployed) -> None:
    """A6, K6, K12; and S4: it previews where the settings do not apply it."""
    with stack.with_settings({"media": {"apply": False}}):
        row, _ = stack.ticked("orphan-cleanup")
    assert (row.trigger, row.schedule, row.dry_run) == (Trigger.SCHEDULE, "orphan-cleanup", True)
    assert row.status is Status.COMPLETED
    assert row.finished_at is not None
    assert [log.message for log in stack.history(row.job_id, rows=2)] == ["started, attempt 1 of 4", "completed"]
    assert eventually(lambda: stack.note("orphan-cleanup"))["last_completed_at"]["S"] >= to_text(row.finished_at)


def test_a_tick_that_is_delivered_five_times_runs_once(stack: Deployed, shelf: Shelf) -> None:
    """K6: at once or one after the other."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    at, schedule = later().replace(microsecond=0), f"e2e-{uuid4().hex[:8]}"
    tick = {"schedule": schedule, "scheduled_time": at.strftime("%Y-%m-%dT%H:%M:%SZ")} | shelf.params

    def deliver(_: int) -> dict[str, Any]:
        answer: dict[str, Any] = stack.invoke("orphan-cleanup", tick | {"quarantine_hours": 0})
        return answer

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(deliver, range(5)))
    assert sorted(answer["status"] for answer in answers) == ["completed", *["duplicate"] * 4]
    job_id = derived_job_id(at, "tick", schedule, at.isoformat())
    assert {answer["job_id"] for answer in answers} == {job_id}
    assert [job.job_id for job in shelf.jobs()] == [job_id]
    assert [log.message for log in stack.history(job_id, rows=2)] == ["started, attempt 1 of 4", "completed"]
    assert deliver(6)["status"] == "duplicate"


def test_starting_and_stopping_a_schedule_is_idempotent(stack: Deployed) -> None:
    """A6."""

    def state() -> str:
        schedule = stack.client("scheduler").get_schedule(GroupName=stack.group, Name=f"{stack.name}-orphan-cleanup")
        return f"{schedule['State']} {schedule['ScheduleExpression']}"

    assert state() == "DISABLED rate(24 hours)"
    stop, start = ({"schedule": "orphan-cleanup", "action": action} for action in ("stop", "start"))
    try:
        assert [stack.invoke("schedules", start)["changed"] for _ in range(2)] == [True, False]
        assert state() == "ENABLED rate(24 hours)"
    finally:
        assert [stack.invoke("schedules", stop)["changed"] for _ in range(2)] == [True, False]
    assert state() == "DISABLED rate(24 hours)"
