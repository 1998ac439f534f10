"""The ramp over the owner's rows (REQUIREMENTS S3): rules and stuck plans."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, text

from lamplighter import rules
from lamplighter.deletion import ramp
from lamplighter.kernel import database, retention
from lamplighter.kernel.database import DatabaseUnavailable
from lamplighter.kernel.job import Run
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.retention import batches
from lamplighter.kernel.settings import parse
from lamplighter.library import plans, rows
from tests.integration.media_world import ScriptedRun
from tests.memory_store import MemoryStore
from tests.memory_trust import MemoryTable

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
DAY = timedelta(days=1)

type Kind = Literal["downloads", "plans", "system_logs"]


@pytest.fixture(autouse=True)
def any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_SKEW", timedelta.max)


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ledger(MemoryStore())
    monkeypatch.setattr(Ledger, "from_environment", classmethod(lambda cls: made))


@pytest.fixture(params=["downloads", "plans"])
def kind(request: pytest.FixtureRequest, engine: Engine) -> Kind:
    """One of them, with 2 500 due rows."""
    fill(engine, request.param, 2_500)
    return request.param  # type: ignore[no-any-return]


def fill(engine: Engine, kind: Kind, count: int) -> None:
    statement = {
        "downloads": "INSERT INTO handled_downloads (timestamp)"
        " SELECT CAST(:at AS timestamptz) - n * interval '1 hour' FROM generate_series(1, :n) AS n",
        "plans": "INSERT INTO analysis_plans (status, updated_at) SELECT 'PENDING', :at FROM generate_series(1, :n)",
        "system_logs": "INSERT INTO lamplighter.system_logs (id, job_id, job_type, level, message, created_at)"
        " SELECT gen_random_uuid(), 'j', 't', 'info', 'm', :at FROM generate_series(1, :n)",
    }[kind]
    with engine.begin() as connection:
        connection.execute(text(statement), {"at": NOW - 400 * DAY, "n": count})


def left(engine: Engine, kind: Kind) -> int:
    table = {
        "downloads": "handled_downloads",
        "plans": "analysis_plans WHERE status = 'PENDING'",
        "system_logs": "lamplighter.system_logs",
    }[kind]
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def work(kind: Kind, run: Run) -> Any:
    return plans.body(run) if kind == "plans" else rows.body(kind, run)


def run_of(
    kind: Kind,
    job_id: str,
    *,
    day: float = 0,
    dry_run: bool = False,
    stops: Any = None,
    checkpoint: Any = None,
    **given: Any,
) -> ScriptedRun:
    now = NOW + day * DAY
    job = Job(
        job_id=job_id,
        job_type="cleanup",
        status=Status.RUNNING,
        policy=Policy(timeout=timedelta(minutes=5)),
        created_at=now,
        run_at=now,
        dry_run=dry_run,
        checkpoint=checkpoint,
    )
    settings = parse({"retention": {"rules": {kind: {"apply": True} | given}}}, source="a test")
    return ScriptedRun(job, settings=settings, now=now, stops=stops or {})


def changed(report: Any) -> int:
    return int(report.plans if isinstance(report, plans.Report) else report.rows)


def test_the_first_run_changes_a_thousand_rows_and_the_next_days_run_ten_times_as_many(
    engine: Engine, kind: Kind, trust: MemoryTable
) -> None:
    preview = work(kind, run_of(kind, "preview", dry_run=True))
    assert (changed(preview), preview.held_by_ramp, trust.items) == (2_500, 1_500, {})

    first = work(kind, run_of(kind, "a"))
    assert (changed(first), first.held_by_ramp, first.status, left(engine, kind)) == (1_000, 1_500, "completed", 1_500)
    same_day = work(kind, run_of(kind, "b", day=0.5))
    assert (changed(same_day), same_day.held_by_ramp) == (1_000, 500)
    fill(engine, kind, 5_000)
    assert work(kind, run_of(kind, "preview", day=1, dry_run=True)).held_by_ramp == 0
    next_day = work(kind, run_of(kind, "c", day=1))
    assert (changed(next_day), next_day.held_by_ramp, left(engine, kind)) == (5_500, 0, 0)


def test_a_run_that_is_tried_again_has_one_allowance(engine: Engine, kind: Kind) -> None:
    for attempt in range(3):
        report = work(kind, run_of(kind, "a", day=attempt))
    assert (changed(report), report.held_by_ramp) == (0, 1_500)
    assert left(engine, kind) == 1_500


def test_a_run_that_is_continued_has_one_allowance_and_counts_all_of_its_rows(
    engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "START_BLOCKS", 1)
    monkeypatch.setattr(batches, "START_COST", 1)
    checkpoint, stretches = None, 0
    while stretches == 0 or checkpoint is not None:
        outcome = work(
            kind, run_of(kind, "a", stops={2 if kind == "plans" else 3: "out_of_time"}, checkpoint=checkpoint)
        )
        checkpoint = getattr(outcome, "checkpoint", None)
        stretches += 1
        assert stretches < 20

    assert stretches >= 2
    assert (changed(outcome), left(engine, kind)) == (1_000, 1_500)


def test_the_setting_lifts_the_ramp_and_max_rows_holds(engine: Engine, kind: Kind, trust: MemoryTable) -> None:
    limited = work(kind, run_of(kind, "a", ramp=False, max_rows=1_200))
    assert (changed(limited), limited.held_by_ramp) == (1_200, 1_300)
    assert (changed(work(kind, run_of(kind, "b", ramp=False))), left(engine, kind)) == (1_300, 0)
    assert not trust.items


def test_a_rule_that_means_something_else_starts_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(2):
        fill(engine, "downloads", 1_500)
        work("downloads", run_of("downloads", f"r{day}", day=day))
    fill(engine, "downloads", 1_500)
    other = replace(rules.RULES["downloads"], where="id > 0")
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "downloads": other})

    assert changed(work("downloads", run_of("downloads", "c", day=2))) == 1_000


def test_lamplighters_own_rows_are_not_limited(engine: Engine, trust: MemoryTable) -> None:
    fill(engine, "system_logs", 2_500)

    report = work("system_logs", run_of("downloads", "a"))

    assert (report.rows, report.held_by_ramp, left(engine, "system_logs"), trust.items) == (2_500, 0, 0, {})


def test_a_run_that_failed_raises_nothing_and_what_it_did_counts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, trust: MemoryTable
) -> None:
    """The database goes away in the middle: what may have been done is used up, the rest is not."""
    fill(engine, "downloads", 2_500)
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise DatabaseUnavailable("gone")

    run = run_of("downloads", "a")
    run.stop = stop  # type: ignore[method-assign]
    with pytest.raises(DatabaseUnavailable):
        work("downloads", run)
    done = 2_500 - left(engine, "downloads")

    again = work("downloads", run_of("downloads", "a"))
    assert (done + again.rows, left(engine, "downloads")) == (1_000, 1_500)
    stored = trust.read(ramp.of_rule("downloads")).trust
    assert stored


def test_a_database_that_is_down_uses_up_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, trust: MemoryTable
) -> None:
    fill(engine, "downloads", 10)

    def down() -> None:
        raise DatabaseUnavailable("down")

    with monkeypatch.context() as patched:
        patched.setattr(database, "engine", down)
        with pytest.raises(DatabaseUnavailable):
            work("downloads", run_of("downloads", "a"))

    assert work("downloads", run_of("downloads", "a")).rows == 10


def test_rows_that_are_refused_are_not_held_by_the_ramp(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each due row is counted once: it went, it was refused, or it waits."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE SCHEMA shop; CREATE TABLE shop.things (id bigint PRIMARY KEY, at timestamptz, parent bigint);"
            f"INSERT INTO shop.things SELECT n, '{NOW - 400 * DAY}' FROM generate_series(1, 1900) AS n;"
            "CREATE TABLE shop.parts (thing bigint REFERENCES shop.things);"
            "INSERT INTO shop.parts SELECT n FROM generate_series(1, 900) AS n; CREATE INDEX ON shop.parts (thing)"
        )
    rule = replace(rules.RULES["downloads"], table="shop.things", clock="at", where="true", key="id")
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "downloads": rule})

    first = work("downloads", run_of("downloads", "a", max_rows=400, ramp=False))
    assert (first.rows, first.rows + first.failed + first.skipped + first.held_by_ramp) == (400, 1_900)

    rest = work("downloads", run_of("downloads", "b", ramp=False))
    assert (rest.rows, rest.failed, rest.held_by_ramp, rest.status) == (600, 900, 0, "completed_with_errors")
