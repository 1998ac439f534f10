"""What the dispatcher and the history make of a change of a row; both must bear the same record twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.jobs.dispatcher import Alert, Note, Start, actions
from lamplighter.jobs.history import entry
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Trigger
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock

POLICY = Policy(timeout=timedelta(minutes=5), target="lambda:sweep")
Changes = list[tuple[Job | None, Job | None]]


@pytest.fixture
def changes() -> Changes:
    return []


@pytest.fixture
def store(changes: Changes) -> MemoryStore:
    return MemoryStore(lambda old, new: changes.append((old, new)))


def submit(ledger: Ledger, policy: Policy = POLICY, **values: Any) -> Job:
    return ledger.submit(ledger.new_job("sweep", policy, **values))


def claim(ledger: Ledger, job: Job) -> Job:
    return ledger.claim(job.job_id, attempt=job.attempt, continuation=job.continuation)


def starts(changes: Changes) -> list[tuple[int, int]]:
    found = [action for change in changes for action in actions(*change)]
    return [(action.job.attempt, action.job.continuation) for action in found if isinstance(action, Start)]


def test_a_job_is_started_once_for_each_turn_it_is_released_for(
    ledger: Ledger, clock: FakeClock, changes: Changes
) -> None:
    job = claim(ledger, submit(ledger))
    assert starts(changes) == [(1, 0)]
    job = ledger.heartbeat(job, progress=10, message="working")
    job = claim(ledger, ledger.continue_later(job, checkpoint={}, result=None))
    assert starts(changes) == [(1, 0), (1, 1)]
    waiting = ledger.fail(job, ValueError("boom"))
    assert starts(changes) == [(1, 0), (1, 1)]  # it waits for its backoff
    clock.now = waiting.run_at
    ledger.store.apply_many(ledger.releases([waiting]))
    assert starts(changes) == [(1, 0), (1, 1), (2, 1)]
    ledger.complete(claim(ledger, ledger.get(job.job_id)), None)
    assert starts(changes) == [(1, 0), (1, 1), (2, 1)]


def test_a_job_for_later_is_not_started_when_it_is_made(ledger: Ledger, clock: FakeClock, changes: Changes) -> None:
    submit(ledger, run_at=clock() + timedelta(minutes=1))
    assert starts(changes) == []


def test_a_run_that_began_by_itself_is_not_started_again(ledger: Ledger, changes: Changes) -> None:
    ledger.start(ledger.new_job("sweep", POLICY))
    assert starts(changes) == []


@pytest.mark.parametrize("critical", [True, False])
def test_only_the_final_failure_of_a_critical_job_raises_an_alert(
    ledger: Ledger, changes: Changes, critical: bool
) -> None:
    job = claim(ledger, submit(ledger, replace(POLICY, critical=critical, max_attempts=2)))
    ledger.fail(job, ValueError("boom"))
    alerts = [action for change in changes for action in actions(*change) if isinstance(action, Alert)]
    assert alerts == []
    job = submit(ledger, replace(POLICY, critical=critical))
    ledger.fail(claim(ledger, job), Permanent("no"))
    alerts = [action for change in changes for action in actions(*change) if isinstance(action, Alert)]
    assert len(alerts) == critical


def test_a_completed_tick_is_noted_for_the_dead_man_watch(ledger: Ledger, changes: Changes) -> None:
    tick = ledger.start(ledger.new_job("sweep", POLICY, schedule="sweep", trigger=Trigger.SCHEDULE))
    ledger.complete(tick, None)
    by_hand = ledger.start(ledger.new_job("sweep", POLICY))
    ledger.complete(by_hand, None)
    notes = [action for change in changes for action in actions(*change) if isinstance(action, Note)]
    assert notes == [Note("sweep", "2026-01-31T03:00:00.000Z")]


def test_a_removed_row_calls_for_nothing(ledger: Ledger) -> None:
    job = submit(ledger)
    assert actions(job, None) == []
    assert entry(job, None) is None


def test_the_history_tells_starts_retries_continuations_and_ends_once_each(
    ledger: Ledger, clock: FakeClock, changes: Changes
) -> None:
    """REQUIREMENTS K9."""
    job = claim(ledger, submit(ledger))
    ledger.heartbeat(job, progress=10, message="working")
    job = claim(ledger, ledger.continue_later(job, checkpoint={}, result=None))
    waiting = ledger.fail(job, ValueError("boom"))
    clock.now = waiting.run_at
    ledger.store.apply_many(ledger.releases([waiting]))
    job = claim(ledger, ledger.get(job.job_id))
    clock.tick(seconds=90)
    ledger.complete(job, {"swept": 3})
    rows = [row for change in changes if (row := entry(*change))]
    assert [(row["level"], row["message"].split(",")[0]) for row in rows] == [
        ("INFO", "started"),
        ("INFO", "stopped in time"),
        ("INFO", "started"),
        ("WARNING", "attempt 1 failed"),
        ("INFO", "started"),
        ("INFO", "completed"),
    ]
    assert rows[-1]["details"]["result"] == {"swept": 3}
    assert rows[-1]["details"]["duration_seconds"] == 90
    assert rows[3]["details"]["errors"][0]["type"] == "ValueError"
    assert len({row["id"] for row in rows}) == len(rows)
    again = [row for change in changes if (row := entry(*change))]
    assert [row["id"] for row in again] == [row["id"] for row in rows]  # so a redelivered record is written once
