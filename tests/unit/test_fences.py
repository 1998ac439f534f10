"""Zombies against attempt 2, continuation 1 and an ended attempt, through the ledger, `@job`, phases, items and the
workers' API: each is refused and changes nothing (REQUIREMENTS K2, S11; FAILURES 1, 4, 32)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.kernel import fan_out, phases
from lamplighter.kernel import job as job_module
from lamplighter.kernel.errors import DatabaseUnavailable, LostLease, Permanent
from lamplighter.kernel.job import JobHandler, Params, Report, Run, Unfinished, job
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.ledger.store import FENCE, LEASE, Change, LockHeld, Outcome
from lamplighter.kernel.phased_job import Division, Phase, PhasedJob
from tests.api_requests import post, problem
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext
from tests.zombies import MOVES, OVERTAKEN, WRITES, collide

POLICY = Policy(timeout=timedelta(minutes=30), target="bus")
SINGLE = replace(POLICY, singleton=True)
LOST = [*OVERTAKEN, "status"]
"""The moves after which an attempt that ran runs no more."""


def start(ledger: Ledger, policy: Policy = POLICY, **values: Any) -> Job:
    return ledger.start(ledger.new_job("sync", policy, **values))


def only_row(ledger: Ledger) -> Job:
    assert isinstance(ledger.store, MemoryStore)
    (key,) = ledger.store.items
    return ledger.get(key.removeprefix("JOB#"))


@contextmanager
def refused(ledger: Ledger, row: Job, error: type[BaseException] = LostLease) -> Iterator[None]:
    """What is done inside raises, and the row stays as it is."""
    with pytest.raises(error):
        yield
    assert ledger.get(row.job_id) == row, "a zombie changed the row"


# --- the store and the ledger ----------------------------------------------------------------------------------------


def test_every_field_of_the_fence_has_a_zombie() -> None:
    assert set(MOVES) >= {*FENCE, LEASE}


@pytest.mark.parametrize("policy", [POLICY, SINGLE], ids=["plain", "singleton"])
@pytest.mark.parametrize("field", MOVES)
def test_no_write_of_a_zombie_passes_the_fence(
    ledger: Ledger, store: MemoryStore, clock: FakeClock, field: str, policy: Policy
) -> None:
    seen, row = collide(ledger, start(ledger, policy), field)
    for name, write in WRITES[seen.status].items():
        change = Change(old=seen, new=write(seen, clock.now))
        with refused(ledger, row):
            store.apply(change)
        assert store.apply_many([change]) == [Outcome.LOST], name
        assert ledger.get(row.job_id) == row, name
    if policy.singleton and not row.status.terminal:
        with pytest.raises(LockHeld):
            store.create(ledger.new_job("sync", SINGLE))


@pytest.mark.parametrize("field", LOST)
@pytest.mark.parametrize(
    "write",
    [
        lambda ledger, seen: ledger.heartbeat(seen, progress=99, message="late"),
        lambda ledger, seen: ledger.heartbeat(seen, progress=99, message="late", checkpoint={"late": True}),
        lambda ledger, seen: ledger.complete(seen, {"late": True}),
        lambda ledger, seen: ledger.finish_cancelled(seen, {"late": True}),
        lambda ledger, seen: ledger.continue_later(seen, checkpoint={"late": True}, result=None),
        lambda ledger, seen: ledger.fail(seen, RuntimeError("late")),
        lambda ledger, seen: ledger.fail_as(seen, "Late", "late", retry=False),
        lambda ledger, seen: ledger.expire(seen),
        lambda ledger, seen: ledger.claim(seen.job_id, attempt=seen.attempt, continuation=seen.continuation),
    ],
    ids=["heartbeat", "checkpoint", "complete", "cancelled", "continue", "fail", "fail_as", "expire", "claim"],
)
def test_the_ledger_refuses_a_zombie(ledger: Ledger, field: str, write: Callable[[Ledger, Job], Job]) -> None:
    seen, row = collide(ledger, start(ledger), field)
    with refused(ledger, row):
        write(ledger, seen)


@pytest.mark.parametrize(("attempt", "continuation"), [(1, 1), (2, 0), (3, 1), (2, 2)])
def test_a_claim_takes_the_expected_turn_and_no_other(ledger: Ledger, attempt: int, continuation: int) -> None:
    """The row waits as attempt 2, continuation 1: a delivery that is late or early in either starts nothing."""
    seen, running = collide(ledger, start(ledger), "continuation")
    waiting = ledger.expire(running)
    assert (waiting.status, waiting.attempt, waiting.continuation) == (Status.PENDING, 2, 1)
    with refused(ledger, waiting):
        ledger.claim(seen.job_id, attempt=attempt, continuation=continuation)
    assert ledger.claim(seen.job_id, attempt=2, continuation=1).status is Status.RUNNING


def test_of_two_who_read_a_waiting_job_the_second_claims_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transition lets both pass; the store has to tell them apart."""
    waiting = ledger.submit(ledger.new_job("sync", POLICY))
    row = ledger.claim(waiting.job_id, attempt=1, continuation=0, execution_arn="first")
    monkeypatch.setattr(ledger, "get", lambda job_id: waiting)
    with pytest.raises(LostLease, match="moved on"):
        ledger.claim(waiting.job_id, attempt=1, continuation=0, execution_arn="second")
    monkeypatch.undo()
    assert ledger.get(waiting.job_id) == row


# --- @job ------------------------------------------------------------------------------------------------------------


class Nothing(Params):
    """Takes nothing."""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> Callable[..., JobHandler[Nothing]]:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)

    def _make(body: Callable[[Run, Nothing], Report | Unfinished], **options: Any) -> JobHandler[Nothing]:
        return job("sync", params=Nothing, timeout=timedelta(minutes=15), **options)(body)

    return _make


ENDS: dict[str, Callable[[Run], Report | Unfinished]] = {
    "complete": lambda run: Report(),
    "continue_later": lambda run: Unfinished(checkpoint={"late": True}, report=Report()),
}


@pytest.mark.parametrize("singleton", [False, True], ids=["plain", "singleton"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("field", LOST)
def test_a_body_that_returns_too_late_changes_nothing(
    make: Any, ledger: Ledger, field: str, end: str, singleton: bool
) -> None:
    rows = []

    def body(run: Run, params: Nothing) -> Report | Unfinished:
        rows.append(collide(ledger, run.job, field)[1])
        return ENDS[end](run)

    with pytest.raises(LostLease):
        make(body, singleton=singleton)({}, FakeContext())
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_a_body_that_fails_too_late_changes_nothing(make: Any, ledger: Ledger, field: str) -> None:
    """By hand its own error is raised; there is nothing recorded that it could answer with."""
    rows = []

    def body(run: Run, params: Nothing) -> Report:
        rows.append(collide(ledger, run.job, field)[1])
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        make(body)({}, FakeContext())
    assert [only_row(ledger)] == rows


def test_a_cancelled_body_that_stops_too_late_changes_nothing(make: Any, ledger: Ledger, clock: FakeClock) -> None:
    """The checker has ended the row; what the body says it did comes too late."""
    rows = []

    def body(run: Run, params: Nothing) -> Report:
        ledger.cancel(run.job_id)
        clock.tick(seconds=3)
        assert run.stop() == "cancelled"
        rows.append(ledger.expire(run.job))
        return Report()

    with pytest.raises(LostLease):
        make(body)({}, FakeContext())
    assert [only_row(ledger)] == rows
    assert rows[0].status is Status.CANCELLED


@pytest.mark.parametrize("field", LOST)
def test_a_body_that_asks_is_stopped(make: Any, ledger: Ledger, clock: FakeClock, field: str) -> None:
    rows = []

    def body(run: Run, params: Nothing) -> Report:
        rows.append(collide(ledger, run.job, field)[1])
        clock.tick(seconds=3)
        with refused(ledger, rows[0]):
            run.stop()
        with refused(ledger, rows[0]):  # a lost lease is not forgotten, however short a while ago it was asked for
            run.stop()
        return Report()

    with pytest.raises(LostLease):
        make(body)({}, FakeContext())
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_the_heartbeat_thread_of_a_zombie_writes_nothing_and_tells_the_body(
    make: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """The clock stands still: only the thread can have learnt of it."""
    rows: list[Job] = []
    lost = threading.Event()
    heartbeat = ledger.heartbeat

    def watched(job: Job, **values: Any) -> Job:
        try:
            return heartbeat(job, **values)
        except LostLease:
            lost.set()
            raise

    def body(run: Run, params: Nothing) -> Report:
        with run._writing:  # no beat of the living attempt is under way
            rows.append(collide(ledger, run.job, field)[1])
        assert lost.wait(30), "no beat met the row that had moved on"
        with refused(ledger, rows[0]):
            run.stop()
        return Report()

    monkeypatch.setattr(ledger, "heartbeat", watched)
    monkeypatch.setattr(job_module, "BEAT", timedelta(milliseconds=1))
    with pytest.raises(LostLease):
        make(body)({}, FakeContext())
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_a_delivery_of_a_turn_that_is_over_starts_nothing(make: Any, ledger: Ledger, field: str) -> None:
    begun: list[str] = []
    handler = make(lambda run, params: begun.append(run.job_id) or Report())
    seen, row = collide(ledger, ledger.start(ledger.new_job("sync", handler.policy)), field)
    turn = {"job_id": seen.job_id, "attempt": seen.attempt, "continuation": seen.continuation}
    assert handler(turn, FakeContext())["status"] == "duplicate"
    assert (begun, ledger.get(row.job_id)) == ([], row)


@pytest.mark.parametrize("target", ["bus", "none", "lambda:undo", "states:sweep"])
def test_a_function_claims_no_attempt_of_another_type(make: Any, ledger: Ledger, target: str) -> None:
    """It would run with the parameters, under the lock and with the lease of another (FAILURES 33)."""
    handler = make(lambda run, params: untouched())
    row = ledger.submit(ledger.new_job("analysis", replace(POLICY, target=target)))
    with refused(ledger, row, Permanent):
        handler({"job_id": row.job_id, "attempt": 1, "continuation": 0}, FakeContext())


# --- phases and items ------------------------------------------------------------------------------------------------

ROOMS = [{"room": "1"}, {"room": "2"}]
CATALOGUE = {
    "cellar": Phase(function="sweep"),
    "rooms": Phase(
        function="room",
        division=Division(items=lambda settings: ROOMS, concurrency=lambda settings: 2, gather=lambda done: Report()),
    ),
}
TYPES = {
    "sweep": PhasedJob(
        "sweep", catalogue=CATALOGUE, spans={"cellar": (0, 50), "rooms": (50, 100)}, target="states:sweep"
    )
}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, clock: FakeClock) -> Callable[..., dict[str, Any]]:
    """An execution that has just begun: the state that it carries."""
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)

    def _begun(phase: str) -> dict[str, Any]:
        event = {"step": "begin", "input": {"job_type": "sweep", "phases": [phase]}}
        return phases.begin(event | {"execution": "arn:1", "started": clock().isoformat()}, TYPES)

    return _begun


def share(state: dict[str, Any], room: int = 0) -> dict[str, Any]:
    names = ("job_id", "attempt", "continuation", "job_type")
    item = {"value": ROOMS[room], "progress": 50}
    return {name: state[name] for name in names} | {"phase": "rooms", "function": "room", "item": item}


def untouched(*_: Any) -> Report:
    raise AssertionError("the work of a zombie was begun")


DONE = [{"item": room, "outcome": {"items": 1, "bytes": 0, "report": {"status": "completed"}}} for room in ROOMS]
FAILED = [{"item": room, "error": "late"} for room in ROOMS]
STEPS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "phase": ("cellar", lambda state: phases.take(state, FakeContext(), {"cellar": untouched})),
    "pass_over": ("cellar", lambda state: phases.pass_over({"state": state | {"error": {"Error": "E", "Cause": ""}}})),
    "finish": ("cellar", lambda state: phases.finish({"state": state | {"left": []}}, TYPES)),
    "finish, all failed": (
        "cellar",
        lambda state: phases.finish({"state": state | {"left": [], "errors": {"cellar": "late"}}}, TYPES),
    ),
    "hand over": ("cellar", lambda state: phases.finish({"state": state}, TYPES)),
    "divide": ("rooms", lambda state: fan_out.divide({"state": state}, TYPES)),
    "item": ("rooms", lambda state: fan_out.work(share(state), FakeContext(timedelta(minutes=1)), untouched)),
    "gather": ("rooms", lambda state: fan_out.gather({"state": state | {"results": DONE}}, TYPES)),
    "gather, all failed": ("rooms", lambda state: fan_out.gather({"state": state | {"results": FAILED}}, TYPES)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("field", LOST)
def test_no_step_of_an_execution_that_was_given_up_does_anything(
    begun: Any, ledger: Ledger, field: str, step: str
) -> None:
    phase, take = STEPS[step]
    state = begun(phase)
    _, row = collide(ledger, only_row(ledger), field)
    with refused(ledger, row):
        take(state)


STEP_BODIES: dict[str, Callable[[Run], Report | Unfinished]] = {
    "done": lambda run: Report(),
    "unfinished": lambda run: Unfinished(checkpoint={"late": True}, report=Report()),
}


@pytest.mark.parametrize("end", STEP_BODIES)
@pytest.mark.parametrize("field", LOST)
def test_a_phase_that_is_overtaken_in_the_middle_records_nothing(
    begun: Any, ledger: Ledger, field: str, end: str
) -> None:
    rows = []

    def body(run: Run) -> Report | Unfinished:
        rows.append(collide(ledger, run.job, field)[1])
        return STEP_BODIES[end](run)

    state = begun("cellar")
    with pytest.raises(LostLease):
        phases.take(state, FakeContext(), {"cellar": body})
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_a_phase_whose_database_goes_away_after_it_was_overtaken_fails_no_other_attempt(
    begun: Any, ledger: Ledger, field: str
) -> None:
    rows = []

    def body(run: Run) -> Report:
        rows.append(collide(ledger, run.job, field)[1])
        raise DatabaseUnavailable("The database went away.")

    state = begun("cellar")
    with pytest.raises(LostLease):
        phases.take(state, FakeContext(), {"cellar": body})
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_an_item_that_is_overtaken_in_the_middle_is_stopped(
    begun: Any, ledger: Ledger, clock: FakeClock, field: str
) -> None:
    rows = []

    def body(run: Run, item: dict[str, Any]) -> Report:
        rows.append(collide(ledger, run.job, field)[1])
        clock.tick(seconds=3)
        fan_out.ask(run)
        return untouched()

    state = begun("rooms")
    with pytest.raises(LostLease):
        fan_out.work(share(state), FakeContext(timedelta(minutes=1)), body)
    assert [only_row(ledger)] == rows


@pytest.mark.parametrize("field", LOST)
def test_an_execution_for_a_turn_that_is_over_stops_at_once(begun: Any, ledger: Ledger, field: str) -> None:
    begun("cellar")
    seen, row = collide(ledger, only_row(ledger), field)
    turn = {"job_id": seen.job_id, "attempt": seen.attempt, "continuation": seen.continuation, "job_type": "sweep"}
    event = {"step": "begin", "input": turn, "execution": "arn:2", "started": "2026-01-31T03:00:00Z"}
    answer = phases.begin(event, TYPES)
    assert (answer["next"], answer["result"]["status"]) == ("stop", "duplicate")
    assert ledger.get(row.job_id) == row


def test_an_execution_claims_no_attempt_of_another_type(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    row = ledger.submit(ledger.new_job("analysis", POLICY))
    turn = {"job_id": row.job_id, "attempt": 1, "continuation": 0, "job_type": "sweep"}
    event = {"step": "begin", "input": turn, "execution": "arn:2", "started": "2026-01-31T03:00:00Z"}
    with refused(ledger, row, Permanent):
        phases.begin(event, TYPES)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("of", "runs"), [("sync", "bus"), ("sync", "lambda:sync"), ("sweep", "bus")])
@pytest.mark.parametrize("told", ["sweep", "sync"])
def test_no_step_touches_an_attempt_that_no_state_machine_runs(
    begun: Any, ledger: Ledger, step: str, of: str, runs: str, told: str
) -> None:
    """A state that somebody made up: any attempt can be guessed, a worker's without its lease too (FAILURES 33)."""
    phase, take = STEPS[step]
    state = begun(phase)
    row = ledger.new_job(of, replace(POLICY, target=runs))
    row = ledger.claim(ledger.submit(row).job_id, attempt=1, continuation=0)
    with refused(ledger, row, Permanent):
        take(state | {"job_id": row.job_id, "job_type": told})


# --- the workers' API ------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "heartbeat": ("heartbeat", {"progress": 99, "message": "late"}),
    "complete": ("complete", {"result": {"late": True}}),
    "cancelled": ("complete", {"cancelled": True}),
    "fail": ("fail", {"message": "late"}),
    "fail permanently": ("fail", {"message": "late", "retry": False}),
}


LEASE_TOKEN = "q7Jm0Xn2cV4bZ6sD8fG1hK3lP5oI9uY7tR5eW3qA1zE"


@pytest.fixture
def held(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Job:
    """An attempt that a worker holds. Every claim answers the same token, so it is not the lease that a fence rests
    on here; `test_leases.py` has what rests on the lease alone."""
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    monkeypatch.setattr(ledger, "new_lease", lambda: LEASE_TOKEN)
    return ledger.claim(ledger.submit(ledger.new_job("sync", POLICY)).job_id, attempt=1, continuation=0)


def turn(job: Job, call: str) -> dict[str, Any]:
    """What a worker says of the attempt for which it speaks."""
    lease = {} if call == "claim" else {"lease": LEASE_TOKEN}
    return {"attempt": job.attempt, "continuation": job.continuation} | lease


@pytest.mark.parametrize("call", [*CALLS, "claim"])
@pytest.mark.parametrize("field", LOST)
def test_a_worker_whose_attempt_is_over_is_answered_409(ledger: Ledger, held: Job, field: str, call: str) -> None:
    seen, row = collide(ledger, held, field)
    route, body = CALLS.get(call, (call, {}))
    answer = problem(post(f"/api/jobs/{seen.job_id}/{route}", body | turn(seen, call)))
    assert answer[:2] == (409, "lost-lease")
    assert ledger.get(row.job_id) == row


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("field", LOST)
def test_a_worker_that_is_overtaken_within_its_call_is_answered_409(
    ledger: Ledger, held: Job, monkeypatch: pytest.MonkeyPatch, field: str, call: str
) -> None:
    """The route has read the row, and the row moves on before the write."""
    seen, row = collide(ledger, held, field)
    stale = replace(seen, cancel_requested=call == "cancelled")
    route, body = CALLS[call]
    with monkeypatch.context() as late:
        late.setattr(ledger, "get", lambda job_id: stale)
        answer = problem(post(f"/api/jobs/{seen.job_id}/{route}", body | turn(seen, call)))
    assert answer[:2] == (409, "lost-lease")
    assert ledger.get(row.job_id) == row


@pytest.mark.parametrize("call", CALLS)
def test_a_worker_that_holds_the_attempt_is_heard(ledger: Ledger, held: Job, call: str) -> None:
    """The calls above are refused for what has moved on, and for nothing else."""
    if call == "cancelled":
        ledger.cancel(held.job_id)
    route, body = CALLS[call]
    assert post(f"/api/jobs/{held.job_id}/{route}", body | turn(held, call)).status == 200
