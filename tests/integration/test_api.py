"""What the jobs API asks Postgres: jobs that have left the ledger, and simulated retention (REQUIREMENTS B3, B11)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from lamplighter.jobs.http import operators
from lamplighter.jobs.shown import Whole
from lamplighter.kernel import database
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.history import move
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy
from tests.api_requests import NOBODY, Answer, get, post, problem
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


# -- retention ---------------------------------------------------------------------------------------------------------


def simulate(rule: str, keep_days: object) -> Answer:
    return post("/api/retention/simulate", {"rule": rule, "keep_days": keep_days})


def test_a_simulation_counts_what_goes_now_and_what_would(engine: Engine, ledger: Ledger) -> None:
    with engine.begin() as connection:
        for days in (1, 20, 40, 100, 200):
            connection.execute(
                text("INSERT INTO handled_downloads (timestamp) VALUES (:at)"),
                {"at": utc_now() - timedelta(days=days)},
            )
    body = simulate("downloads", 50).body
    assert (body["current"]["keep_days"], body["proposed"]["keep_days"]) == (14, 50)
    assert (body["current"]["rows"], body["proposed"]["rows"]) == (4, 2)
    assert body["current"]["bytes"] > body["proposed"]["bytes"] > 0
    assert body["current"]["oldest"] == body["proposed"]["oldest"] < body["proposed"]["newest"]
    none = simulate("downloads", 3650).body["proposed"]
    assert (none["rows"], none["bytes"], none["oldest"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("rule", "keep_days", "said"),
    [
        ("nonesuch", 30, "body.rule: there is no 'nonesuch' (known: "),
        ("downloads", 0.5, "body.keep_days: downloads takes at least 1."),
        ("downloads", -1, "body.keep_days: input should be greater than or equal to 0"),
        ("downloads", "30", "body.keep_days: input should be a valid number"),
        ("deleted_accounts", 30, "body.rule: the rows of deleted_accounts do not age."),
    ],
)
def test_a_wish_that_cannot_be_is_named(
    engine: Engine, ledger: Ledger, rule: str, keep_days: object, said: str
) -> None:
    status, _, detail = problem(simulate(rule, keep_days))
    assert (status, detail.startswith(said)) == (422, True)


def test_what_cannot_be_counted_is_told_so(engine: Engine, ledger: Ledger) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE handled_downloads"))
    assert problem(simulate("downloads", 30))[:2] == (409, "not-countable")


def test_a_table_that_is_locked_is_asked_for_again(engine: Engine, ledger: Ledger) -> None:
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE handled_downloads IN ACCESS EXCLUSIVE MODE"))
        assert problem(simulate("downloads", 30))[:2] == (503, "unavailable")


def test_a_count_that_takes_too_long_is_given_up(
    engine: Engine, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "COUNTING_TIMEOUT", timedelta(milliseconds=1))
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO handled_downloads (timestamp) SELECT now() - '9 y'::interval FROM generate_series(1, :n)"
            ),
            {"n": 200_000},
        )
    status, kind, detail = problem(simulate("downloads", 30))
    assert (status, kind, "counting takes more than" in detail) == (409, "not-countable", True)
