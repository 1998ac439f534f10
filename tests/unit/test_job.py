"""`@job`: what it does around a body, over the in-memory ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy.exc import ProgrammingError

from lamplighter.jobs.shown import Brief
from lamplighter.kernel.deletion import Refused
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent, Retryable, Unreadable
from lamplighter.kernel.job import FRESH, GRACE, RESULT_LIMIT, JobHandler, Params, Report, Run, Unfinished, job
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status, Trigger
from lamplighter.kernel.settings import Settings
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext

TICK = {"schedule": "sweep", "scheduled_time": "2026-01-31T03:00:00Z"}


class SweepParams(Params):
    size: int = 1
    dry_run: bool | None = None

    def resolved(self, settings: Settings) -> SweepParams:
        dry_run = not settings.media.apply if self.dry_run is None else self.dry_run
        return self.model_copy(update={"dry_run": dry_run})


class SweepReport(Report):
    swept: int = 0
    names: list[str] = []

    def counts(self) -> tuple[int, int]:
        return self.swept, 10 * self.swept


Body = Callable[[Run, SweepParams], Report | Unfinished]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> Callable[..., JobHandler[SweepParams]]:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)

    def _make(body: Body, **options: Any) -> JobHandler[SweepParams]:
        return job("sweep", params=SweepParams, timeout=timedelta(minutes=15), **options)(body)

    return _make


def only_row(store: MemoryStore, ledger: Ledger) -> Job:
    (key,) = store.items
    return ledger.get(key.removeprefix("JOB#"))


def emf(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert len(lines) == 1
    found: dict[str, Any] = lines[0]
    return found


def test_by_hand_it_runs_and_returns_its_report(make: Any, store: MemoryStore, ledger: Ledger, capsys: Any) -> None:
    handler = make(lambda run, params: SweepReport(swept=params.size))
    answer = handler({"size": 7}, FakeContext())
    row = only_row(store, ledger)
    assert answer == {
        "job_id": row.job_id,
        "finished": True,
        "status": "completed",
        "swept": 7,
        "names": [],
    }
    assert (row.status, row.trigger, row.payload) == (Status.COMPLETED, Trigger.CLI, {"size": 7})
    assert row.result == {"status": "completed", "swept": 7, "names": []}
    measured = emf(capsys)
    assert (measured["job"], measured["Runs"], measured["Items"], measured["Bytes"]) == ("sweep", [1], [7], [70])
    assert "Failures" not in measured


def test_a_misspelt_parameter_is_refused_and_nothing_is_recorded(make: Any, store: MemoryStore) -> None:
    handler = make(lambda run, params: SweepReport())
    with pytest.raises(Permanent, match=r"dry-run is not a parameter of sweep \(it takes size, dry_run\)"):
        handler({"dry-run": True}, FakeContext())
    with pytest.raises(Permanent, match=r"size: .*valid integer.*got 'many'"):
        handler({"size": "many"}, FakeContext())
    with pytest.raises(Permanent, match=r"scheduled_time: takes an ISO-8601 time"):
        handler({"schedule": "sweep", "scheduled_time": "soon"}, FakeContext())
    assert store.items == {}


def test_a_parameter_may_be_called_job_id(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """As undo's is: by hand it is a parameter and not the dispatcher's."""

    class OfAnother(Params):
        job_id: str

    seen: list[str] = []
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    handler = job("sweep", params=OfAnother, timeout=timedelta(minutes=15))(
        lambda run, params: seen.append(params.job_id) or Report()
    )
    answer = handler({"job_id": "another"}, FakeContext())
    assert (answer["status"], seen) == ("completed", ["another"])


def test_the_same_tick_runs_once(make: Any, store: MemoryStore) -> None:
    """REQUIREMENTS K6."""
    runs = []
    handler = make(lambda run, params: runs.append(run.trigger) or SweepReport())
    first, again = handler(TICK, FakeContext()), handler(TICK, FakeContext())
    assert runs == ["schedule"]
    assert (again["status"], again["job_id"]) == ("duplicate", first["job_id"])
    handler(TICK | {"scheduled_time": "2026-01-31T04:00:00Z"}, FakeContext())
    assert len(runs) == 2


def test_two_schedules_that_tick_together_both_run(make: Any, store: MemoryStore) -> None:
    """REQUIREMENTS K6: a tick is one schedule's, at one moment."""
    runs = []
    handler = make(lambda run, params: runs.append(run.job_id) or SweepReport())
    for schedule in ("sweep", "sweep-again"):
        handler(TICK | {"schedule": schedule}, FakeContext())
    assert len(set(runs)) == len(store.items) == 2


def test_a_singleton_that_runs_refuses_the_second_and_names_the_first(make: Any, ledger: Ledger) -> None:
    """REQUIREMENTS K3."""
    nested: list[Any] = []

    def body(run: Run, params: SweepParams) -> SweepReport:
        with pytest.raises(AlreadyRunning, match=run.job_id):
            handler({}, FakeContext())
        nested.append(handler(TICK, FakeContext()))  # a tick is refused without an error
        return SweepReport()

    handler = make(body, singleton=True)
    answer = handler({}, FakeContext())
    assert nested[0]["status"] == "already_running"
    assert answer["job_id"] in nested[0]["reason"]


def test_a_dead_holder_frees_the_lock_by_its_deadline(make: Any, ledger: Ledger, clock: FakeClock) -> None:
    """REQUIREMENTS K3; FAILURES 3: the rescue job itself stalled, holding its lock."""
    handler = make(lambda run, params: SweepReport(), singleton=True)
    dead = ledger.start(ledger.new_job("sweep", handler.policy, attempt=1))
    clock.tick(minutes=15)
    with pytest.raises(AlreadyRunning, match=dead.job_id):
        handler({}, FakeContext())
    assert ledger.get(dead.job_id) == dead, "who is refused does not expire the holder"
    clock.tick(seconds=GRACE.total_seconds())
    with pytest.raises(AlreadyRunning, match="attempt 2 of 3"):  # now it waits for its retry, which comes first
        handler({}, FakeContext())
    ledger.cancel(dead.job_id)
    assert handler({}, FakeContext())["status"] == "completed"


def test_a_switched_off_schedule_skips_its_ticks_but_not_calls_by_hand(
    make: Any, store: MemoryStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_ENABLED", "false")
    handler = make(lambda run, params: SweepReport(swept=1), enabled_by="media.enabled")
    answer = handler(TICK, FakeContext())
    assert (answer["status"], answer["reason"]) == ("skipped", "The setting media.enabled is false.")
    assert only_row(store, ledger).status is Status.COMPLETED  # so the dead-man watch sees that the schedule lives
    assert handler({}, FakeContext())["swept"] == 1


def test_a_schedule_that_is_switched_off_ends_the_runs_that_it_has_begun(
    make: Any, store: MemoryStore, ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry, a redrive and a continuation do nothing more; what was done before stays in the result (A6)."""
    begun: list[int] = []

    def body(run: Run, params: SweepParams) -> Unfinished:
        begun.append(run.continuation)
        return Unfinished(checkpoint={"after": 1}, report=SweepReport(swept=5))

    handler = make(body, enabled_by="media.enabled", singleton=True)
    handler(TICK, FakeContext())
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_ENABLED", "false")
    row = ledger.get(next(key for key in store.items if key.startswith("JOB#")).removeprefix("JOB#"))
    answer = handler({"job_id": row.job_id, "attempt": row.attempt, "continuation": row.continuation}, FakeContext())
    row = ledger.get(row.job_id)
    assert (answer["status"], row.status, begun) == ("skipped", Status.COMPLETED, [0])
    assert row.result == {"swept": 5, "names": []} | {key: answer[key] for key in ("status", "reason")}
    assert handler({}, FakeContext())["swept"] == 5  # by hand it runs, and the lock is free


def test_a_refused_job_shows_its_refusal_and_not_its_last_progress(
    make: Any, store: MemoryStore, ledger: Ledger
) -> None:
    """K7, K14."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        run.progress(50, "7 candidates looked at")
        run.beat()
        raise Refused(["There are no references at all.", "Nothing was deleted."], SweepReport(status="refused"))

    with pytest.raises(Refused):
        make(body)({}, FakeContext())
    row = only_row(store, ledger)
    assert (row.status, row.progress) == (Status.FAILED, 50)
    assert row.message == Brief.of(row).message == "There are no references at all. Nothing was deleted."


@pytest.mark.parametrize(
    ("raised", "status", "reason"),
    [
        (Retryable("later"), Status.PENDING, "error"),
        (ValueError("a bug"), Status.PENDING, "error"),
        (Permanent("bad bucket"), Status.FAILED, "permanent"),
    ],
)
def test_a_failure_is_recorded_with_its_stack_trace_and_raised(
    make: Any, store: MemoryStore, ledger: Ledger, capsys: Any, raised: Exception, status: Status, reason: str
) -> None:
    def body(run: Run, params: SweepParams) -> SweepReport:
        raise raised

    with pytest.raises(type(raised)):
        make(body)({}, FakeContext())
    row = only_row(store, ledger)
    (error,) = row.errors
    assert (row.status, error.type, error.message, error.reason) == (status, type(raised).__name__, str(raised), reason)
    assert "in body" in error.stack_trace
    assert emf(capsys)["Failures"] == [1]


def test_a_failure_of_a_tick_is_answered_and_left_to_the_ledger(make: Any, store: MemoryStore, ledger: Ledger) -> None:
    """REQUIREMENTS K5: one owner of retries. Raised, each attempt would be a failed invocation, and an alarm."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        raise Retryable("the database is down")

    answer = make(body)(TICK, FakeContext())
    row = only_row(store, ledger)
    assert answer == {
        "job_id": row.job_id,
        "finished": False,
        "status": "failed",
        "error": "Retryable: the database is down",
        "retried": True,
    }
    assert (row.status, row.attempt) == (Status.PENDING, 2)


def test_a_refusal_keeps_its_report(make: Any, store: MemoryStore, ledger: Ledger) -> None:
    def body(run: Run, params: SweepParams) -> SweepReport:
        raise Refused(["Too many."], SweepReport(status="refused", swept=9))

    with pytest.raises(Refused):
        make(body)({}, FakeContext())
    row = only_row(store, ledger)
    assert row.status is Status.FAILED
    assert row.result is not None
    assert row.result["swept"] == 9


def test_out_of_time_it_checkpoints_and_the_next_continuation_goes_on(
    make: Any, store: MemoryStore, ledger: Ledger, clock: FakeClock
) -> None:
    """REQUIREMENTS K8."""
    stops: list[object] = []

    def body(run: Run, params: SweepParams) -> SweepReport | Unfinished:
        done = run.checkpoint["done"] if run.checkpoint else 0
        while done < 10:
            stops.append(run.stop())
            if stops[-1] == "out_of_time":
                return Unfinished(checkpoint={"done": done}, report=SweepReport(swept=done))
            clock.tick(seconds=10)
            done += 1
        return SweepReport(swept=done)

    handler = make(body)
    answer = handler({"size": 3}, FakeContext(timedelta(seconds=60)))
    row = only_row(store, ledger)
    assert (answer["finished"], answer["swept"]) == (False, 4)  # 20 s before the end of its 60
    assert (row.status, row.continuation, row.checkpoint) == (Status.PENDING, 1, {"done": 4})
    turn = {"job_id": row.job_id, "attempt": 1, "continuation": 1}
    answer = handler(turn, FakeContext(timedelta(minutes=10)))
    assert (answer["finished"], answer["swept"]) == (True, 10)
    again = handler(turn, FakeContext())  # the dispatcher's delivery, once more
    assert (again["status"], again["job_id"]) == ("duplicate", row.job_id)


def test_a_cancelled_run_stops_within_a_batch_and_says_what_it_did(
    make: Any, store: MemoryStore, ledger: Ledger, clock: FakeClock
) -> None:
    """REQUIREMENTS K7."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        swept = 0
        while run.stop() is None:
            swept += 1
            run.progress(swept, f"{swept} swept")
            clock.now += FRESH  # the row is read again for each batch
            if swept == 3:
                ledger.cancel(run.job_id)
        return SweepReport(swept=swept)

    answer = make(body)({}, FakeContext())
    row = only_row(store, ledger)
    assert (answer["status"], answer["swept"]) == ("cancelled", 3)
    assert (row.status, row.progress, row.message) == (Status.CANCELLED, 3, "3 swept")
    assert row.result is not None
    assert row.result["swept"] == 3


def test_a_zombie_changes_nothing(make: Any, store: MemoryStore, ledger: Ledger, clock: FakeClock) -> None:
    """REQUIREMENTS K2; FAILURES 1."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        clock.tick(hours=1)
        ledger.expire(run.job)
        return SweepReport(swept=1)

    with pytest.raises(LostLease):
        make(body)({}, FakeContext())
    row = only_row(store, ledger)
    assert (row.status, row.attempt, row.result) == (Status.PENDING, 2, None)


def test_a_body_that_asks_learns_that_its_lease_is_lost(make: Any, ledger: Ledger, clock: FakeClock) -> None:
    reached = []

    def body(run: Run, params: SweepParams) -> SweepReport:
        clock.tick(hours=1)
        ledger.expire(run.job)
        run.stop()
        reached.append("beyond")
        return SweepReport()

    with pytest.raises(LostLease):
        make(body)({}, FakeContext())
    assert reached == []


def test_a_bad_payload_on_the_row_fails_the_attempt_for_good(make: Any, ledger: Ledger) -> None:
    handler = make(lambda run, params: SweepReport())
    row = ledger.submit(ledger.new_job("sweep", handler.policy, payload={"nonsense": 1}))
    answer = handler({"job_id": row.job_id, "attempt": 1, "continuation": 0}, FakeContext())
    assert "nonsense is not a parameter" in answer["error"]
    assert ledger.get(row.job_id).status is Status.FAILED


def test_a_report_too_long_for_the_row_is_shortened_there_and_whole_in_the_answer(
    make: Any, store: MemoryStore, ledger: Ledger
) -> None:
    names = ["x" * 100] * (RESULT_LIMIT // 100)
    answer = make(lambda run, params: SweepReport(names=names))({}, FakeContext())
    assert answer["names"] == names
    assert only_row(store, ledger).result == {
        "status": "completed",
        "swept": 0,
        "names": len(names),
        "shortened": ["names"],
    }


def test_what_is_not_given_comes_from_the_settings_in_force_when_it_runs(
    make: Any, store: MemoryStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    handler = make(lambda run, params: seen.append(params.dry_run) or SweepReport())
    handler({}, FakeContext())
    assert only_row(store, ledger).dry_run is True
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_DRY_RUN", "false")
    handler({}, FakeContext())
    assert seen == [True, False]


def test_the_ledger_never_calls_an_attempt_dead_before_lambda_killed_it(make: Any) -> None:
    """FAILURES 1: a deadline shorter than the job's own timeout."""
    assert make(lambda run, params: SweepReport()).policy.timeout > timedelta(minutes=15)


def test_a_permanent_error_is_final_at_once_and_frees_the_lock(make: Any, store: MemoryStore, ledger: Ledger) -> None:
    """REQUIREMENTS K14, K3: in a tick and after the dispatcher's start, too."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        raise Permanent("bucket: there is no bucket 'x'.")

    handler = make(body, singleton=True)
    answer = handler(TICK, FakeContext())
    assert (answer["retried"], answer["error"]) == (False, "Permanent: bucket: there is no bucket 'x'.")
    waiting = ledger.submit(handler.new_job(ledger, Settings(), {}))
    turn = {"job_id": waiting.job_id, "attempt": 1, "continuation": 0}
    assert handler(turn, FakeContext())["retried"] is False
    rows = [ledger.get(key.removeprefix("JOB#")) for key in store.items]
    assert [(row.status, row.attempt, row.dead_letter) for row in rows] == [(Status.FAILED, 1, "permanent")] * 2
    assert store.locks == {}


def denied(code: str = "AccessDenied", message: str = "User: arn:aws:iam::1:role/x may not.") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "ListObjectsV2")


def undefined() -> ProgrammingError:
    facts = {"C": "42P01", "M": 'relation "media" does not exist', "D": "secret"}
    return ProgrammingError("SELECT 1", {}, Exception(facts))


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (
            denied(),
            "Unreadable",
            "AWS refuses ListObjectsV2 (AccessDenied): User: arn:aws:iam::1:role/x may not.",
        ),
        (denied("NoSuchBucket", "no\nbucket"), "Unreadable", "AWS refuses ListObjectsV2 (NoSuchBucket): no bucket."),
        (denied("403", ""), "Unreadable", "AWS refuses ListObjectsV2 (403): no reason given."),
        (undefined(), "NoTable", 'The database refuses a statement (42P01): relation "media" does not exist.'),
    ],
)
def test_what_may_not_be_read_is_one_sentence_and_final(
    make: Any, store: MemoryStore, ledger: Ledger, raised: Exception, kind: str, sentence: str
) -> None:
    """REQUIREMENTS K14."""

    def body(run: Run, params: SweepParams) -> SweepReport:
        raise raised

    with pytest.raises(Unreadable):
        make(body, singleton=True)({}, FakeContext())
    row = only_row(store, ledger)
    (error,) = row.errors
    assert (row.status, error.type, error.message, error.stack_trace) == (Status.FAILED, kind, sentence, "")
    assert store.locks == {}


@pytest.mark.parametrize("raised", [denied("SlowDown"), denied("RequestTimeout"), denied("ExpiredToken")])
def test_what_passes_is_retried(make: Any, store: MemoryStore, ledger: Ledger, raised: Exception) -> None:
    def body(run: Run, params: SweepParams) -> SweepReport:
        raise raised

    assert make(body)(TICK, FakeContext())["retried"] is True
    assert only_row(store, ledger).status is Status.PENDING
