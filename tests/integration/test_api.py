"""The jobs API's view of jobs that have left the ledger (REQUIREMENTS B3)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from lamplighter.jobs.shown import Whole
from lamplighter.kernel import database
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.history import move
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy
from tests.api_requests import NOBODY, get, post, problem
from tests.memory_store import MemoryStore


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger that the API finds; its rows are in memory."""
    for name, value in {"STACK_NAME": "lamplighter", "POWERTOOLS_SERVICE_NAME": "lamplighter"}.items():
        monkeypatch.setenv(name, value)
    ledger = Ledger(MemoryStore())
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    return ledger


@pytest.fixture
def gone(engine: Engine, ledger: Ledger) -> Job:
    """A job that has moved to the history."""
    policy = Policy(timeout=timedelta(minutes=30), target="bus")
    started = ledger.start(ledger.new_job("sync", policy, payload={"library": 7}))
    failed = ledger.fail(started, Permanent("gone"), result={"done": 3})
    move([failed], store=ledger.store, engine=engine, now=ledger.clock())
    assert ledger.store.get(failed.job_id) is None
    return failed


def test_a_job_that_left_the_ledger_is_shown_as_it_was(gone: Job) -> None:
    answer = get(f"/api/jobs/{gone.job_id}")
    assert answer.status == 200
    assert answer.body == Whole.of(gone).model_dump(mode="json")


def test_it_can_be_looked_at_but_changes_no_more(gone: Job) -> None:
    for what in ("cancel", "retry", "redrive"):
        status, _, detail = problem(post(f"/api/jobs/{gone.job_id}/{what}"))
        assert (status, "job_history" in detail) == (404, True)


def test_a_job_that_never_was_is_in_neither(engine: Engine, ledger: Ledger) -> None:
    assert problem(get(f"/api/jobs/{NOBODY}"))[0] == 404


def test_without_the_database_nobody_knows_whether_the_job_ever_was(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    database.engine.cache_clear()
    answer = get(f"/api/jobs/{NOBODY}")
    assert problem(answer)[:2] == (503, "unavailable")
    assert answer.headers["retry-after"]


def test_a_stack_without_a_database_has_the_ledger_alone(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    database.engine.cache_clear()
    assert problem(get(f"/api/jobs/{NOBODY}"))[0] == 404
