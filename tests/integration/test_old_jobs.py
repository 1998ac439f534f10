"""Finished jobs move from the ledger to the history: the move itself, and the cleanup's phase that looks for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text

from lamplighter.kernel import database, history
from lamplighter.kernel.database import job_history
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.history import Fate, move
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.dynamo import DynamoStore
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status, decode
from lamplighter.kernel.ledger.store import Outcome
from lamplighter.kernel.settings import JobsSettings, Settings
from lamplighter.library import old_jobs
from tests.integration.media_world import ScriptedRun, Stop
from tests.memory_store import MemoryStore

START = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)
POLICY = Policy(timeout=timedelta(minutes=30))


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger(store, clock=clock)
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    return ledger


def finished(ledger: Ledger, status: Status = Status.COMPLETED, job_type: str = "sync", **values: Any) -> Job:
    job = ledger.start(ledger.new_job(job_type, POLICY, **values))
    match status:
        case Status.COMPLETED:
            return ledger.complete(job, {"synced": 3})
        case Status.FAILED:
            return ledger.fail(job, Permanent("the disk is full"))
    return ledger.finish_cancelled(job, None)


def kept(engine: Engine) -> dict[str, Job]:
    """What the history holds."""
    with engine.connect() as connection:
        return {row.job_id: decode(row.job) for row in connection.execute(select(job_history))}


def clean(
    now: datetime,
    settings: Settings | None = None,
    *,
    dry_run: bool = False,
    stops: dict[int, Stop] | None = None,
    checkpoint: dict[str, Any] | None = None,
) -> old_jobs.Report | Unfinished:
    """One stretch of the phase."""
    job = Job(
        job_id="01RUN",
        job_type="cleanup",
        status=Status.RUNNING,
        policy=POLICY,
        created_at=now,
        run_at=now,
        dry_run=dry_run,
        checkpoint=checkpoint,
    )
    return old_jobs.body(ScriptedRun(job, settings=settings or Settings(), now=now, stops=stops or {}))


# -- the move --------------------------------------------------------------------------------------------------------


def test_a_job_moves_whole(engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock) -> None:
    jobs = [finished(ledger, status, payload={"ü": [1, 2.5, None]}, input_keys=("a",)) for status in list(Status)[2:]]
    moves = move(jobs, store=store, engine=engine, now=clock.now)
    assert [moved.fate for moved in moves] == [Fate.MOVED] * 3
    assert kept(engine) == {job.job_id: job for job in jobs}
    assert not store.items
    with engine.connect() as connection:
        rows = {row.job_id: row for row in connection.execute(select(job_history))}
    for job in jobs:
        row = rows[job.job_id]
        assert (row.job_type, row.status, row.created_at, row.finished_at, row.copied_at) == (
            job.job_type,
            job.status,
            job.created_at,
            job.finished_at,
            clock.now,
        )


def test_what_operators_need_of_a_failed_job_stands_in_the_history(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    """FAILURES 18: operators had less than a day to look at failed jobs."""
    failed = finished(ledger, Status.FAILED, payload={"library": 7})
    clean(clock.now + timedelta(days=29))
    assert ledger.get(failed.job_id).dead_letter == "permanent"  # for a month it can be redriven
    clean(clock.now + timedelta(days=30))
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT job->'errors'->0 AS error, (job->>'payload')::jsonb AS payload FROM lamplighter.job_history")
        ).one()
    assert row.error["message"] == "the disk is full"
    assert row.error["stack_trace"].endswith("Permanent: the disk is full\n")
    assert row.payload == {"library": 7}


@pytest.mark.parametrize("after", ["copy", "read back"])
def test_one_that_is_killed_before_the_removal_leaves_the_job_in_both_and_the_next_ends_it(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    jobs = [finished(ledger) for _ in range(5)]

    def die(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(*((history, "_documents", die) if after == "copy" else (store, "remove_many", die)))
        move(jobs, store=store, engine=engine, now=clock.now)
    assert len(store.items) == len(kept(engine)) == 5

    moves = move(jobs, store=store, engine=engine, now=clock.now + timedelta(hours=1))

    assert [moved.fate for moved in moves] == [Fate.MOVED] * 5
    assert kept(engine) == {job.job_id: job for job in jobs}
    with engine.connect() as connection:  # the copy was not written again
        assert connection.execute(select(func.max(job_history.c.copied_at))).scalar_one() == clock.now


def test_one_that_is_killed_after_the_removal_does_no_harm_when_it_is_done_again(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    jobs = [finished(ledger)]
    move(jobs, store=store, engine=engine, now=clock.now)
    assert [moved.fate for moved in move(jobs, store=store, engine=engine, now=clock.now)] == [Fate.MOVED]
    assert kept(engine) == {jobs[0].job_id: jobs[0]}


def test_a_job_that_is_redriven_between_copy_and_removal_stays_and_is_copied_anew(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    seen = finished(ledger, Status.FAILED)
    ledger.redrive(seen.job_id)
    (moved,) = move([seen], store=store, engine=engine, now=clock.now)
    assert moved.fate is Fate.CHANGED
    marked = ledger.get(seen.job_id)
    assert kept(engine)[seen.job_id].redriven_as is None  # an older copy

    later = clock.now + timedelta(hours=1)
    (moved,) = move([marked], store=store, engine=engine, now=later)

    assert moved.fate is Fate.MOVED
    assert kept(engine)[seen.job_id] == marked
    assert store.get(seen.job_id) is None


def test_what_reads_back_otherwise_is_not_removed(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    """A trigger stands for whatever else writes to the table."""
    bad, good = finished(ledger, job_type="import"), finished(ledger)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " NEW.job := NEW.job || '{\"progress\": 1}'; RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER spoil BEFORE INSERT ON lamplighter.job_history FOR EACH ROW"
                " WHEN (NEW.job_type = 'import') EXECUTE FUNCTION spoil()"
            )
        )
    moves = move([bad, good], store=store, engine=engine, now=clock.now)
    assert [(moved.fate, moved.error) for moved in moves] == [
        (Fate.FAILED, "Read back from job_history it is not what was written."),
        (Fate.MOVED, None),
    ]
    assert store.get(bad.job_id) == bad
    assert store.get(good.job_id) is None


def test_one_jobs_trouble_is_not_the_others(engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE lamplighter.job_history ADD CHECK (job_type <> 'import')"))
    jobs = [finished(ledger, job_type="import" if number == 3 else "sync") for number in range(7)]
    moves = move(jobs, store=store, engine=engine, now=clock.now)
    assert [moved.fate for moved in moves] == [Fate.FAILED if number == 3 else Fate.MOVED for number in range(7)]
    assert "could not be copied" in str(moves[3].error)
    assert "violates check constraint" in str(moves[3].error)
    assert list(store.items) == [f"JOB#{jobs[3].job_id}"]


def test_a_character_that_postgres_cannot_hold_keeps_no_job_in_the_ledger(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    job = ledger.start(ledger.new_job("sync", POLICY, payload={"a\0": "b\0"}))
    job = ledger.fail(job, Permanent("c\0d"))
    (moved,) = move([job], store=store, engine=engine, now=clock.now)
    assert moved.fate is Fate.MOVED
    copy = kept(engine)[job.job_id]
    assert copy.payload == {"a\0": "b\0"}  # text of JSON, which spells it
    assert copy.errors[0].message == "c\ufffdd"


def test_a_database_that_is_down_removes_nothing(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS B10; FAILURES 8."""
    finished(ledger)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nowhere")
    database.engine.cache_clear()
    with pytest.raises(Retryable, match="cannot be reached"):
        clean(clock.now + timedelta(days=40))
    assert len(store.items) == 1


def test_a_live_job_has_no_history(engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock) -> None:
    job = ledger.start(ledger.new_job("sync", POLICY))
    with pytest.raises(ValueError, match="only finished jobs"):
        move([job], store=store, engine=engine, now=clock.now)
    assert kept(engine) == {}


# -- the phase -------------------------------------------------------------------------------------------------------


def test_jobs_leave_when_their_own_retention_is_over(engine: Engine, ledger: Ledger, clock: Clock) -> None:
    """REQUIREMENTS B3: to the millisecond, per type and status."""
    settings = Settings(jobs=JobsSettings(retention_hours={"export": 24, "export/failed": 48, "analysis": 1920}))
    jobs = {
        (kind, status): finished(ledger, status, kind).job_id
        for kind in ("sync", "export", "analysis")
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    }
    live = ledger.start(ledger.new_job("export", POLICY))
    gone: set[str] = set()
    for hours, leaving in (
        (24, {("export", Status.COMPLETED), ("export", Status.CANCELLED)}),
        (48, {("export", Status.FAILED)}),
        (720, {("sync", Status.COMPLETED), ("sync", Status.FAILED), ("sync", Status.CANCELLED)}),
        (1920, {("analysis", Status.COMPLETED), ("analysis", Status.FAILED), ("analysis", Status.CANCELLED)}),
    ):
        due = clock.now + timedelta(hours=hours)
        clean(due - timedelta(milliseconds=1), settings)
        assert set(kept(engine)) == gone
        report = clean(due, settings)
        assert isinstance(report, old_jobs.Report)
        assert report.removed == report.found == len(leaving)
        assert report.by_kind == {f"{kind}/{status}": 1 for kind, status in leaving}
        gone |= {jobs[each] for each in leaving}
        assert set(kept(engine)) == gone
    assert ledger.get(live.job_id) == live


def test_a_preview_finds_what_the_action_moves_and_moves_nothing(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    """REQUIREMENTS K11."""
    rng = random.Random(3)
    for number in range(40):
        finished(ledger, rng.choice(list(Status)[2:]), rng.choice(("sync", "export", "upload_processing")))
        clock.now += timedelta(hours=3 if number < 30 else 72)
    before = dict(store.items)
    now = START + timedelta(days=32)
    preview = clean(now, dry_run=True)
    assert store.items == before
    assert kept(engine) == {}
    report = clean(now)
    assert isinstance(preview, old_jobs.Report)
    assert isinstance(report, old_jobs.Report)
    assert preview.removed == 0
    assert preview.counts() == (11, 0)
    assert 5 < report.removed == report.found == preview.found < 40
    assert preview.by_kind == report.by_kind
    assert report.status == "completed"


@pytest.mark.usefixtures("no_database")
def test_without_a_database_jobs_are_deleted_when_their_retention_is_over_and_not_before(
    ledger: Ledger, store: MemoryStore, clock: Clock
) -> None:
    """B3, P5."""
    old, upload = finished(ledger), finished(ledger, job_type="upload_processing")
    live = ledger.start(ledger.new_job("sync", POLICY))
    clock.now += timedelta(days=1)
    young = finished(ledger, Status.FAILED)
    now = START + timedelta(days=30)
    preview = clean(now - timedelta(seconds=1), dry_run=True)
    assert isinstance(preview, old_jobs.Report)
    assert preview.found == 0
    assert clean(now, dry_run=True).counts() == (1, 0)  # type: ignore[union-attr]
    assert len(store.items) == 4
    report = clean(now)
    assert isinstance(report, old_jobs.Report)
    assert (report.found, report.removed, report.status) == (1, 1, "completed")
    assert store.get(old.job_id) is None
    assert all(store.get(job.job_id) for job in (upload, live, young))


def test_without_a_database_a_job_that_is_redriven_meanwhile_stays(ledger: Ledger, store: MemoryStore) -> None:
    dead = finished(ledger, Status.FAILED)
    ledger.redrive(dead.job_id)
    [left] = history.remove([dead], store=store)
    assert left.fate is Fate.CHANGED
    assert store.get(dead.job_id) is not None


def test_a_live_job_is_not_removed(ledger: Ledger, store: MemoryStore) -> None:
    live, done = ledger.start(ledger.new_job("sync", POLICY)), finished(ledger)
    with pytest.raises(ValueError, match="Only finished jobs are removed"):
        history.remove([done, live], store=store)
    assert store.get(done.job_id) is not None


def test_uploads_are_left_to_their_own_phase(engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock) -> None:
    """Whatever their own retention: it must not make this phase look further back, either."""
    finished(ledger, Status.FAILED, "upload_processing")
    settings = Settings(jobs=JobsSettings(retention_hours={"upload_processing": 1}))
    report = clean(clock.now + timedelta(days=89), settings)
    assert isinstance(report, old_jobs.Report)
    assert report.found == 0
    assert len(store.items) == 1
    assert old_jobs.shortest_retention(Status.FAILED, settings) == timedelta(days=30)


def test_a_run_that_is_out_of_time_goes_on_where_it_was(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K8: the report is of all stretches together."""
    monkeypatch.setattr(old_jobs, "PAGE", 3)
    jobs = [finished(ledger, list(Status)[2 + number % 3]) for number in range(50)]
    checkpoint, stretches = None, 0
    while True:
        outcome = clean(clock.now + timedelta(days=31), stops={4: "out_of_time"}, checkpoint=checkpoint)
        stretches += 1
        if isinstance(outcome, old_jobs.Report):
            break
        checkpoint = outcome.checkpoint
    assert stretches > 4
    assert (outcome.found, outcome.removed, sum(outcome.by_kind.values())) == (50, 50, 50)
    assert kept(engine).keys() == {job.job_id for job in jobs}
    assert not store.items


def test_a_cancelled_run_says_what_it_has_done(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K7."""
    monkeypatch.setattr(old_jobs, "PAGE", 3)
    for _ in range(30):
        finished(ledger)
    report = clean(clock.now + timedelta(days=31), stops={3: "cancelled"})
    assert isinstance(report, old_jobs.Report)
    assert 0 < report.removed < 30
    assert len(store.items) == 30 - report.removed


def test_failures_are_counted_named_and_do_not_stop_the_rest(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_jobs, "NAMED", 2)
    jobs = [finished(ledger) for _ in range(9)]
    stubborn = {job.job_id for job in jobs[:3]}
    remove = store.remove_many

    def remove_most(chosen: Sequence[Job]) -> list[Outcome]:
        removed = iter(remove([job for job in chosen if job.job_id not in stubborn]))
        return [Outcome.ERROR if job.job_id in stubborn else next(removed) for job in chosen]

    monkeypatch.setattr(store, "remove_many", remove_most)
    report = clean(clock.now + timedelta(days=31))
    assert isinstance(report, old_jobs.Report)
    assert (report.status, report.found, report.removed, report.failed) == ("completed_with_errors", 9, 6, 3)
    assert len(report.failures) == 2
    assert all("could not be removed from the ledger" in failure for failure in report.failures)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_no_job_is_lost_and_none_leaves_early(
    engine: Engine, ledger: Ledger, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Killed before or after any write, redriven and read too late at random: each job is in one place or both, the
    history has it as it was, and what is younger than its retention stays."""
    rng = random.Random(seed)
    monkeypatch.setattr(old_jobs, "PAGE", 4)
    ever: set[str] = set()
    for _ in range(25):
        ever.add(finished(ledger, rng.choice(list(Status)[2:])).job_id)
        clock.now += timedelta(days=rng.uniform(0, 4))

    def perhaps_die(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if rng.random() < 0.15:
                raise Killed
            if rng.random() < 0.3:
                dead = ledger.dead_letters(limit=50)
                if dead:
                    ever.add(ledger.redrive(rng.choice(dead).job_id).job_id)
            answer = call(*args)
            if rng.random() < 0.15:
                raise Killed
            return answer

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(history, "_write", perhaps_die(history._write))
        patched.setattr(history, "_documents", perhaps_die(history._documents))
        patched.setattr(store, "remove_many", perhaps_die(store.remove_many))
        for _ in range(12):
            with suppress(Killed):
                clean(clock.now)
            _invariants(ever, kept(engine), store, clock.now)
    clean(clock.now)
    clean(clock.now)
    _invariants(ever, kept(engine), store, clock.now)
    for job in map(decode, store.items.values()):
        assert not old_jobs.is_due(job, Settings(), clock.now)


def _invariants(ever: Iterable[str], copies: dict[str, Job], store: MemoryStore, now: datetime) -> None:
    rows = {job.job_id: job for job in map(decode, list(store.items.values()))}
    assert rows.keys() | copies.keys() == set(ever)
    for job_id, copy in copies.items():
        assert old_jobs.is_due(copy, Settings(), now)
        if job_id in rows:
            assert replace(rows[job_id], redriven_as=None) == replace(copy, redriven_as=None)


def test_the_deployed_tables_jobs_move(
    engine: Engine, jobs_table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same over DynamoDB: shards, pages whose last row is gone, conditional deletes."""
    monkeypatch.setattr(old_jobs, "PAGE", 7)
    ledger = Ledger(DynamoStore(jobs_table), clock=clock)
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    old = [finished(ledger, list(Status)[2 + number % 3], payload={"n": number}) for number in range(60)]
    clock.now += timedelta(days=30)
    young = [finished(ledger) for _ in range(5)]
    report = clean(clock.now)
    assert isinstance(report, old_jobs.Report)
    assert (report.found, report.removed) == (60, 60)
    assert kept(engine) == {job.job_id: job for job in old}
    assert [ledger.get(job.job_id) for job in young] == young
    again = clean(clock.now)
    assert isinstance(again, old_jobs.Report)
    assert again.found == 0
