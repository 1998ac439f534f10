"""The steps of a phased job's state machine, over the in-memory ledger (REQUIREMENTS B6, B8-B10, K3, K6-K8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lamplighter.kernel import phases
from lamplighter.kernel.errors import AlreadyRunning, DatabaseUnavailable, LostLease, Permanent
from lamplighter.kernel.job import Report, Run, Unfinished
from lamplighter.kernel.ledger.ledger import Ledger, UnknownJob
from lamplighter.kernel.ledger.row import Job, Status, Trigger
from lamplighter.kernel.phased_job import Body, Phase, PhasedJob
from lamplighter.kernel.settings import Settings
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext

TICK = {"job_type": "sweep", "schedule": "sweep", "scheduled_time": "2026-01-31T03:00:00Z"}


class Swept(Report):
    rows: int = 0
    failures: list[str] = []

    def counts(self) -> tuple[int, int]:
        return self.rows, 10 * self.rows


def refused(settings: Settings) -> None:
    if settings.jobs.retry_max_attempts == 9:
        raise Permanent("retention_days: attic is kept for at least 7 days.")


CATALOGUE = {
    "cellar": Phase(function="sweep"),
    "kitchen": Phase(function="sweep"),
    "attic": Phase(function="sweep-attic", check=refused),
}
TYPES = {
    "sweep": PhasedJob(
        "sweep", catalogue=CATALOGUE, spans={"cellar": (20, 90), "kitchen": (90, 100)}, target="states:sweep"
    )
}


class Machine:
    """What the state machine does, a step at a time."""

    def __init__(self, clock: FakeClock, left: timedelta = timedelta(minutes=4)) -> None:
        self.clock = clock
        self.context = FakeContext(left)
        self.executions = 0

    def begin(self, execution: str | None = None, **given: Any) -> dict[str, Any]:
        self.executions += 1
        told = {"job_type": "sweep"} | given
        execution = execution or f"arn:{self.executions}"
        event = {"step": "begin", "input": told, "execution": execution, "started": self.clock().isoformat()}
        return phases.begin(event, TYPES)

    def take(self, state: dict[str, Any], **bodies: Body) -> dict[str, Any]:
        return phases.take(json.loads(json.dumps(state)), self.context, bodies)

    def finish(self, state: dict[str, Any]) -> dict[str, Any]:
        return phases.finish({"step": "finish", "state": state}, TYPES)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, clock: FakeClock) -> Machine:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    return Machine(clock)


def sweeps(rows: int, **values: Any) -> Body:
    return lambda run: Swept(rows=rows, **values)


def raises(error: BaseException) -> Body:
    def body(run: Run) -> Report:
        raise error

    return body


@pytest.fixture
def row(store: MemoryStore, ledger: Ledger) -> Callable[[], Job]:
    def _row() -> Job:
        (key,) = store.items
        return ledger.get(key.removeprefix("JOB#"))

    return _row


def measured(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    return dict(told)


def names(state: dict[str, Any]) -> list[str]:
    return [turn["name"] for turn in state["left"]]


def test_it_does_its_phases_in_order_and_ends_with_their_reports(
    machine: Machine, row: Callable[[], Job], store: MemoryStore, capsys: Any
) -> None:
    state = machine.begin()
    assert (row().status, row().trigger, row().execution_arn) == (Status.RUNNING, Trigger.CLI, "arn:1")
    assert (names(state), state["next"]) == (["cellar", "kitchen"], "phase")
    state = machine.take(state, cellar=sweeps(3))
    assert (names(state), state["next"]) == (["kitchen"], "phase")
    state = machine.take(state, kitchen=sweeps(4))
    assert (names(state), state["next"]) == ([], "finish")
    answer = machine.finish(state)["result"]
    reports = {name: {"status": "completed", "rows": n, "failures": []} for name, n in (("cellar", 3), ("kitchen", 4))}
    assert answer == {
        "job_id": row().job_id,
        "finished": True,
        "status": "completed",
        "phases": reports,
        "errors": [],
    }
    assert (row().status, row().progress, store.locks) == (Status.COMPLETED, 100, {})
    told = measured(capsys)
    assert (told["job"], told["Runs"], told["Items"], told["Bytes"]) == ("sweep", [1], [7], [70])


def test_phases_can_be_selected_and_come_in_the_catalogues_order(machine: Machine, row: Callable[[], Job]) -> None:
    state = machine.begin(phases=["attic", "cellar"], dry_run=True)
    assert [(turn["name"], turn["function"], turn["span"]) for turn in state["left"]] == [
        ("cellar", "sweep", [0, 50]),
        ("attic", "sweep-attic", [50, 100]),
    ]
    assert row().dry_run


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"phases": ["garage"]}, r"phases: garage is no phase of sweep \(it takes cellar, kitchen, attic\)\."),
        ({"phases": []}, r"phases: .*at least 1 item"),
        ({"dry-run": True}, r"dry-run is not a parameter of sweep \(it takes phases, dry_run\)\."),
        ({"attempt": 1}, r"attempt is not a parameter of sweep"),
        ({"job_type": "sweeep"}, r"job_type: takes one of sweep, got 'sweeep'\."),
        ({"schedule": "sweep", "scheduled_time": "soon"}, r"scheduled_time: takes an ISO-8601 time"),
    ],
)
def test_bad_input_is_one_sentence_and_no_row(
    machine: Machine, store: MemoryStore, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Permanent, match=sentence):
        machine.begin(**given)
    assert (store.items, store.locks) == ({}, {})


def test_settings_that_forbid_a_phase_fail_the_run_for_good_before_anything_is_touched(
    machine: Machine, row: Callable[[], Job], store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_RETRY_MAX_ATTEMPTS", "9")
    with pytest.raises(Permanent, match="kept for at least 7 days"):
        machine.begin(phases=["cellar", "attic"])
    assert (row().status, row().dead_letter, store.locks) == (Status.FAILED, "permanent", {})


def test_a_retry_asks_again_whether_the_settings_apply_what_its_order_demands(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger, clock: FakeClock, store: MemoryStore
) -> None:
    """`dry_run: false` demands that every phase acts (S2): when one no longer may, it is refused and not previewed."""
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    catalogue = {"cellar": Phase(function="sweep", applied=lambda settings: settings.media.apply)}
    kind = PhasedJob("sweep", catalogue=catalogue, spans={"cellar": (0, 100)}, target="states:sweep")
    applies = Settings.model_validate({"media": {"apply": True}})
    job = ledger.submit(kind.new_job(ledger, applies, {"dry_run": False}))
    turn = {"job_id": job.job_id, "attempt": 1, "continuation": 0, "job_type": "sweep"}
    event = {"step": "begin", "input": turn, "execution": "arn:1", "started": clock().isoformat()}
    with pytest.raises(Permanent, match="dry_run: false is refused, because the settings do not apply cellar"):
        phases.begin(event, {"sweep": kind})
    assert (ledger.get(job.job_id).status, store.locks) == (Status.FAILED, {})


def test_the_same_tick_twice_is_one_run(machine: Machine, row: Callable[[], Job]) -> None:
    """REQUIREMENTS K6."""
    assert machine.begin(**TICK)["next"] == "phase"
    again = machine.begin(**TICK)
    assert (again["next"], again["result"]["status"], again["result"]["job_id"]) == ("stop", "duplicate", row().job_id)
    assert (row().schedule, row().trigger) == ("sweep", Trigger.SCHEDULE)


@pytest.mark.parametrize("given", [TICK, {}])
def test_a_begin_that_is_tried_again_goes_on_with_its_own_row(
    machine: Machine, row: Callable[[], Job], given: dict[str, Any]
) -> None:
    """Its first answer was lost on the way to the state machine."""
    first = machine.begin("arn:same", **given)
    assert machine.begin("arn:same", **given) == first
    assert row().attempt == 1


def test_a_tick_past_its_misfire_grace_is_skipped_and_recorded(
    machine: Machine, row: Callable[[], Job], clock: FakeClock, store: MemoryStore
) -> None:
    """REQUIREMENTS B6; as a cancelled run it never quiets the dead-man watch (K12)."""
    clock.tick(minutes=5, seconds=1)
    answer = machine.begin(**TICK)
    assert answer["next"] == "stop"
    assert answer["result"]["reason"] == "The tick came 5 min late; its misfire grace is 5 min."
    assert (row().status, row().result) == (
        Status.CANCELLED,
        {"status": "skipped", "reason": answer["result"]["reason"]},
    )
    assert store.locks == {}
    assert machine.begin(**TICK)["result"]["status"] == "duplicate"


def test_the_reason_of_a_skipped_tick_names_the_whole_grace(
    machine: Machine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_JOBS_MISFIRE_GRACE_MINUTES", "1440")
    clock.tick(days=1, minutes=2)
    reason = machine.begin(**TICK)["result"]["reason"]
    assert reason == "The tick came 1442 min late; its misfire grace is 1440 min."


def test_a_tick_within_its_misfire_grace_runs(machine: Machine, clock: FakeClock) -> None:
    clock.tick(minutes=5)
    assert machine.begin(**TICK)["next"] == "phase"


def test_a_second_run_is_refused_with_the_holders_name(machine: Machine, row: Callable[[], Job]) -> None:
    """REQUIREMENTS K3: by hand it is an error, for a tick an answer."""
    machine.begin()
    with pytest.raises(AlreadyRunning, match=rf"sweep is already running: job {row().job_id} .* holds its lock"):
        machine.begin()
    answer = machine.begin(**TICK)
    assert (answer["next"], answer["result"]["status"]) == ("stop", "already_running")
    assert row().job_id in answer["result"]["reason"]


def test_a_holder_whose_execution_may_live_keeps_its_lock(
    machine: Machine, row: Callable[[], Job], clock: FakeClock, store: MemoryStore
) -> None:
    """Past its deadline, too: only the checker asks Step Functions, and stops the execution first."""
    machine.begin()
    holder = row()
    clock.tick(hours=1)
    with pytest.raises(AlreadyRunning, match=holder.job_id):
        machine.begin()
    assert (row(), store.locks) == (holder, {"sweep": holder.job_id})


def test_a_phase_out_of_time_is_called_again_with_its_checkpoint(
    machine: Machine, row: Callable[[], Job], clock: FakeClock
) -> None:
    """REQUIREMENTS K8."""
    seen: list[Any] = []

    def body(run: Run) -> Report | Unfinished:
        seen.append(run.checkpoint)
        if len(seen) < 3:
            assert run.stop() is None
            clock.tick(seconds=70)
            assert run.stop() == "out_of_time"
            return Unfinished(checkpoint={"at": len(seen)}, report=Swept(rows=len(seen)))
        return Swept(rows=3)

    machine.context = FakeContext(timedelta(seconds=80))
    state = machine.begin(phases=["cellar"])
    for _ in range(3):
        assert state["next"] == "phase"
        state = machine.take(state, cellar=body)
    assert seen == [None, {"at": 1}, {"at": 2}]
    assert machine.finish(state)["result"]["phases"]["cellar"]["rows"] == 3


def test_when_the_executions_time_is_nearly_over_the_next_one_goes_on(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock, store: MemoryStore
) -> None:
    """REQUIREMENTS K8, B6: five minutes each, and nothing is done twice."""

    def slow(run: Run) -> Report | Unfinished:
        clock.tick(minutes=4, seconds=30)
        assert run.stop() == "out_of_time"
        return Unfinished(checkpoint={"at": 7}, report=Swept(rows=7))

    state = machine.take(machine.begin(), cellar=sweeps(1))
    machine.context = FakeContext(timedelta(minutes=15))
    state = machine.take(state, kitchen=slow)
    assert state["next"] == "finish"
    answer = machine.finish(state)["result"]
    assert (answer["finished"], row().status, row().continuation) == (False, Status.PENDING, 1)
    assert store.locks == {"sweep": row().job_id}

    turn = {"job_id": row().job_id, "attempt": 1, "continuation": 1}
    state = machine.begin("arn:second", **turn)
    assert (names(state), state["checkpoint"], row().execution_arn) == (["kitchen"], {"at": 7}, "arn:second")
    assert machine.begin("arn:third", **turn)["result"]["status"] == "duplicate"
    assert machine.begin("arn:second", **turn)["next"] == "phase"
    state = machine.take(state, kitchen=lambda run: Swept(rows=run.checkpoint["at"] + 1 if run.checkpoint else 0))
    result = machine.finish(state)["result"]["phases"]
    assert (result["cellar"]["rows"], result["kitchen"]["rows"]) == (1, 8)


def test_one_phases_failure_is_recorded_and_the_others_run(machine: Machine, row: Callable[[], Job]) -> None:
    """REQUIREMENTS B10."""
    state = machine.begin()
    with pytest.raises(ValueError, match="no such column"):
        machine.take(state, cellar=raises(ValueError("no such column\n[SQL: ...]")))
    cause = json.dumps({"errorType": "ValueError", "errorMessage": "no such column\n[SQL: ...]", "stackTrace": []})
    state = phases.pass_over({"step": "pass_over", "state": state | {"error": {"Error": "ValueError", "Cause": cause}}})
    assert (names(state), state["next"]) == (["kitchen"], "phase")
    state = machine.take(state, kitchen=sweeps(2, status="completed_with_errors", failures=["row 7: odd"]))
    result = machine.finish(state)["result"]
    assert result["status"] == "completed_with_errors"
    assert result["errors"] == ["cellar: ValueError: no such column", "kitchen: row 7: odd"]
    assert row().status is Status.COMPLETED


def test_a_run_of_which_every_phase_failed_has_failed_and_is_tried_again_whole(
    machine: Machine, row: Callable[[], Job], ledger: Ledger
) -> None:
    state = machine.begin()
    for _ in range(2):
        state = phases.pass_over({"state": state | {"error": {"Error": "States.Timeout", "Cause": ""}}})
    with pytest.raises(phases.AllPhasesFailed, match=r"cellar: States\.Timeout; kitchen: States\.Timeout"):
        machine.finish(state)
    assert (row().status, row().attempt, row().errors[0].type) == (Status.PENDING, 2, "AllPhasesFailed")
    assert row().result is not None and row().result["status"] == "failed"  # type: ignore[index]
    state = machine.begin("arn:2nd", job_id=row().job_id, attempt=2, continuation=0)
    assert (names(state), state["errors"]) == (["cellar", "kitchen"], {})


def test_a_database_that_is_down_fails_the_attempt_and_the_next_one_goes_on(
    machine: Machine, row: Callable[[], Job], capsys: Any
) -> None:
    """REQUIREMENTS B10, K5: the ledger alone retries."""
    state = machine.take(machine.begin(), cellar=sweeps(3))
    with pytest.raises(DatabaseUnavailable):
        machine.take(state, kitchen=raises(DatabaseUnavailable("The database went away.")))
    failed = row()
    assert (failed.status, failed.attempt, failed.errors[0].type) == (Status.PENDING, 2, "DatabaseUnavailable")
    assert "Traceback" in failed.errors[0].stack_trace
    assert measured(capsys)["Failures"] == [1]
    state = machine.begin("arn:2nd", job_id=failed.job_id, attempt=2, continuation=0)
    state = machine.take(state, kitchen=sweeps(1))
    result = machine.finish(state)["result"]
    assert (result["status"], result["phases"]["cellar"]["rows"]) == ("completed", 3)


def test_after_an_execution_that_died_the_next_attempt_goes_on_from_the_phase_it_was_at(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock
) -> None:
    state = machine.take(machine.begin(), cellar=sweeps(3))
    with pytest.raises(KeyboardInterrupt):
        machine.take(state, kitchen=raises(KeyboardInterrupt()))
    clock.tick(minutes=5)
    ledger.expire(row())
    state = machine.begin("arn:2nd", job_id=row().job_id, attempt=2, continuation=0)
    assert (names(state), state["outcomes"]["cellar"]["items"]) == (["kitchen"], 3)


def test_after_an_execution_that_died_before_its_end_the_next_attempt_only_ends_it(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock
) -> None:
    """Its last function may even work on after the execution was aborted."""
    state = machine.take(machine.begin(phases=["cellar"]), cellar=sweeps(3))
    clock.tick(minutes=5)
    ledger.expire(row())
    state = machine.begin("arn:2nd", job_id=row().job_id, attempt=2, continuation=0)
    assert (names(state), state["next"]) == ([], "finish")
    assert machine.finish(state)["result"]["phases"]["cellar"]["rows"] == 3


def test_a_cancelled_run_stops_between_phases_and_within_one_and_says_what_it_did(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock, store: MemoryStore
) -> None:
    """REQUIREMENTS K7."""

    def body(run: Run) -> Report:
        ledger.cancel(run.job_id)
        clock.tick(seconds=3)
        assert run.stop() == "cancelled"
        return Swept(rows=5)

    state = machine.take(machine.begin(), cellar=body)
    assert (names(state), state["next"]) == (["cellar", "kitchen"], "finish")
    answer = machine.finish(state)["result"]
    assert (answer["status"], answer["finished"], answer["phases"]["cellar"]["rows"]) == ("cancelled", True, 5)
    assert (row().status, store.locks) == (Status.CANCELLED, {})


def test_a_run_cancelled_between_two_phases_begins_no_other(
    machine: Machine, row: Callable[[], Job], ledger: Ledger
) -> None:
    state = machine.take(machine.begin(), cellar=sweeps(3))
    ledger.cancel(row().job_id)
    state = machine.take(state, kitchen=raises(AssertionError("it was begun")))
    assert machine.finish(state)["result"]["status"] == "cancelled"
    assert row().result is not None and "kitchen" not in row().result["phases"]  # type: ignore[index]


def test_a_zombie_changes_nothing(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock, store: MemoryStore
) -> None:
    """REQUIREMENTS K2; FAILURES 1: its execution was given up, and the next attempt is under way."""
    state = machine.begin()
    clock.tick(minutes=5)
    ledger.expire(row())
    before = row()
    with pytest.raises(LostLease):
        machine.take(state, cellar=raises(AssertionError("it was begun")))
    with pytest.raises(LostLease):
        phases.pass_over({"state": state | {"error": {"Error": "E", "Cause": ""}}})
    with pytest.raises(LostLease):
        machine.finish(state | {"left": []})
    assert row() == before


def test_progress_runs_within_the_phases_part_of_the_bar(
    machine: Machine, row: Callable[[], Job], clock: FakeClock
) -> None:
    """REQUIREMENTS B8."""
    seen = []

    def body(run: Run) -> Report:
        seen.append((row().progress, row().message))
        for percent in (50, 100):
            run.progress(percent, f"{percent} swept")
            run.beat()
            seen.append((row().progress, row().message))
        return Swept()

    state = machine.take(machine.begin(), cellar=body)
    machine.take(state, kitchen=body)
    assert seen == [
        (20, "cellar"),
        (55, "50 swept"),
        (90, "100 swept"),
        (90, "kitchen"),
        (95, "50 swept"),
        (100, "100 swept"),
    ]


def test_a_phase_can_be_previewed_straight_and_leaves_no_row(machine: Machine, store: MemoryStore) -> None:
    def body(run: Run) -> Report:
        assert run.job.dry_run and run.checkpoint is None
        assert run.stop() is None
        return Swept(rows=9)

    answer = phases.take({"phase": "cellar", "dry_run": True}, machine.context, {"cellar": body})
    assert (answer["phase"], answer["dry_run"], answer["rows"]) == ("cellar", True, 9)
    for bad in ({"phase": "cellar", "dry_run": False}, {"phase": "cellar"}, {}):
        with pytest.raises(Permanent, match="takes the state of a run"):
            phases.take(bad, machine.context, {"cellar": body})
    with pytest.raises(Permanent, match=r"phase: attic is not served here \(here are cellar\)"):
        phases.take({"phase": "attic", "dry_run": True}, machine.context, {"cellar": body})
    assert store.items == {}


def test_a_long_report_travels_shortened(machine: Machine) -> None:
    state = machine.take(machine.begin(), cellar=sweeps(1, failures=["x" * 100] * 5000))
    assert len(json.dumps(state)) < 60_000
    machine.context = FakeContext()
    result = machine.finish(machine.take(state, kitchen=sweeps(1)))["result"]
    assert result["errors"] == ["cellar: 5000 failures, which the log has"]


def test_a_result_leaves_the_row_room_for_what_it_keeps(machine: Machine, row: Callable[[], Job]) -> None:
    """Each has less than its own limit, and both together more than a row of DynamoDB takes."""
    state = machine.take(machine.begin(phases=["cellar", "kitchen"]), cellar=sweeps(1), kitchen=sweeps(1))
    state["errors"] = {"kitchen": "x" * 200_000}
    machine.finish(state)
    result = row().result or {}
    assert (result["errors"], result["shortened"]) == (1, ["errors"])


# -- what another attempt would fail, too ------------------------------------------------------------------------------


DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListBuckets")


def test_a_phase_that_may_not_read_fails_permanently(machine: Machine, row: Callable[[], Job]) -> None:
    state = machine.take(machine.begin(phases=["cellar"]), cellar=raises(DENIED))
    with pytest.raises(phases.AllPhasesFailed):
        machine.finish(state)
    (error,) = row().errors
    assert (row().status, error.message) == (
        Status.FAILED,
        "cellar: Unreadable: AWS refuses ListBuckets (AccessDenied): no.",
    )


@pytest.mark.parametrize("failing", [["cellar"], ["cellar", "kitchen"]])
def test_a_run_whose_phases_fail_permanently_is_final_and_frees_its_lock(
    machine: Machine, row: Callable[[], Job], store: MemoryStore, failing: list[str]
) -> None:
    """REQUIREMENTS K14: one sentence and no retry."""
    state = machine.begin(phases=failing)
    for phase in failing:
        state = machine.take(state, **{phase: raises(UnknownJob("job_id: there is none."))})
    assert (names(state), state["next"]) == ([], "finish")
    with pytest.raises(phases.AllPhasesFailed):
        machine.finish(state)
    (error,) = row().errors
    assert (row().status, row().attempt, row().dead_letter, store.locks) == (Status.FAILED, 1, "permanent", {})
    assert error.message == "; ".join(f"{phase}: UnknownJob: job_id: there is none." for phase in failing)


def test_a_run_of_which_one_phase_might_do_better_is_retried(machine: Machine, row: Callable[[], Job]) -> None:
    state = machine.take(machine.begin(), cellar=raises(Permanent("no")))
    with pytest.raises(ValueError, match="later"):
        machine.take(state, kitchen=raises(ValueError("later")))
    state = phases.pass_over({"state": state | {"error": {"Error": "ValueError", "Cause": "later"}}})
    with pytest.raises(phases.AllPhasesFailed):
        machine.finish(state)
    assert (row().status, row().attempt) == (Status.PENDING, 2)
    state = machine.begin("arn:2nd", job_id=row().job_id, attempt=2, continuation=0)
    assert (names(state), state["errors"], state["final"]) == (["cellar", "kitchen"], {}, [])


def test_a_permanent_failure_of_one_phase_leaves_the_others_to_run(machine: Machine, row: Callable[[], Job]) -> None:
    state = machine.take(machine.begin(), cellar=raises(Permanent("no")))
    assert (names(state), state["next"], row().progress) == (["kitchen"], "phase", 90)
    result = machine.finish(machine.take(state, kitchen=sweeps(2)))["result"]
    assert (result["status"], result["errors"]) == ("completed_with_errors", ["cellar: Permanent: no"])


def test_a_permanent_failure_survives_a_continuation(
    machine: Machine, row: Callable[[], Job], clock: FakeClock
) -> None:
    state = machine.take(machine.begin(), cellar=raises(Permanent("no")))
    clock.tick(minutes=4, seconds=31)
    machine.finish(state)
    again = machine.begin("arn:2nd", job_id=row().job_id, attempt=1, continuation=1)
    assert (names(again), again["final"]) == (["kitchen"], ["cellar"])


def test_a_zombies_permanent_failure_changes_nothing(
    machine: Machine, row: Callable[[], Job], ledger: Ledger, clock: FakeClock
) -> None:
    """REQUIREMENTS K2: a second attempt runs meanwhile."""

    def body(run: Run) -> Report:
        clock.tick(minutes=5)
        expired = ledger.expire(row())
        ledger.store.apply_many(ledger.releases([expired]))
        ledger.claim(expired.job_id, attempt=2, continuation=0)
        before.append(row())
        raise Permanent("no")

    before: list[Job] = []
    with pytest.raises(LostLease):
        machine.take(machine.begin(), cellar=body)
    assert [row()] == before
    assert row().attempt == 2
