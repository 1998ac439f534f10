"""The ledger under several workers, crashes at every point, two checkers, duplicate and reordered deliveries and
skewed clocks: a Hypothesis state machine (REQUIREMENTS K1-K3, K8, K10, S11; FAILURES 1-4, 32).

Handles of attempts stay in use after their jobs have moved on. Each such stale write is counted by what has moved on
(`COLLISIONS`). One that succeeds fails the test; so does a run in which too few were tried.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from lamplighter.jobs import timeout_checker
from lamplighter.jobs.dispatcher import Start, actions
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status, decode, encode, job_key
from lamplighter.kernel.ledger.store import FENCE, DuplicateJob, Outcome, shards
from tests.memory_store import MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = {
    "plain": Policy(timeout=timedelta(minutes=5), target="lambda:plain", max_continuations=3),
    "alone": Policy(timeout=timedelta(minutes=5), target="lambda:alone", singleton=True),
    "beating": Policy(timeout=timedelta(minutes=60), target="bus", heartbeat=timedelta(minutes=2), max_attempts=9),
}

COLLISIONS: Counter[str] = Counter()
"""Stale writes that were tried, by what had moved on: another `attempt` or `continuation` was running, the `status` was
another, or a checker's `sighting` was out of date."""
MINIMUM = {"attempt": 500, "continuation": 300, "status": 1000, "sighting": 100}
"""Of them in a whole run; several times as many are usual."""


class Inline(Executor):
    """Does at once what it is given."""

    def __init__(self, max_workers: int) -> None:
        """Takes what a pool takes."""

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


ENDS: dict[str, Callable[[Ledger, Job], Job]] = {
    "complete": lambda ledger, job: ledger.complete(job, {"done": True}),
    "fail": lambda ledger, job: ledger.fail(job, RuntimeError("boom")),
    "permanent": lambda ledger, job: ledger.fail(job, Permanent("bad input")),
    "continue": lambda ledger, job: ledger.continue_later(job, checkpoint={"at": 1}, result=None),
    "cancelled": lambda ledger, job: ledger.finish_cancelled(job, None),
}
"""How a worker ends its attempt."""


class LedgerMachine(RuleBasedStateMachine):
    """The world: one table, its stream, deliveries on their way, workers that each hold a row they claimed, and handles
    that are kept however the job goes on."""

    deliveries = Bundle("deliveries")
    workers = Bundle("workers")

    @initialize(
        target=workers,
        seed=st.integers(0, 2**32),
        running=st.lists(st.sampled_from(sorted(POLICIES)), max_size=3),
    )
    def begin(self, seed: int, running: list[str]) -> Any:
        """An empty table, or one with attempts under way."""
        self.now = START
        self.store = MemoryStore(self.on_stream)
        self.rng = random.Random(seed)
        self.ledger = self.ledger_at(timedelta())
        self.stream: list[tuple[Job | None, Job | None]] = []
        self.claims: Counter[tuple[str, int, int]] = Counter()
        self.ends: dict[str, dict[str, Any]] = {}
        self.handles: list[tuple[Ledger, Job]] = []
        """Of every attempt that was ever begun, as its worker first saw the row."""
        self.sightings: list[Job] = []
        """What a checker has read and not acted on yet."""
        return multiple(*(worker for job_type in running for worker in self.started(job_type)))

    def ledger_at(self, skew: timedelta) -> Ledger:
        return Ledger(self.store, clock=lambda: self.now + skew, rng=self.rng)

    def on_stream(self, old: Job | None, new: Job | None) -> None:
        self.stream.append((old, new))
        if old is not None and new is not None and new.status.terminal and not old.status.terminal:
            assert new.job_id not in self.ends, "a job ended twice"
            self.ends[new.job_id] = encode(new)

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(job_type=st.sampled_from(sorted(POLICIES)), later=st.sampled_from([0, 0, 600]))
    def submit(self, job_type: str, later: int) -> None:
        run_at = self.now + timedelta(seconds=later)
        job = self.ledger.new_job(job_type, POLICIES[job_type], run_at=run_at)
        try:
            self.ledger.submit(job)
        except AlreadyRunning as refusal:
            holder = self.store.locks[job_type]
            assert job_type == "alone"
            assert holder in str(refusal)

    @rule(target=workers, job_type=st.sampled_from(sorted(POLICIES)))
    def start(self, job_type: str) -> Any:
        """A tick or a call by hand: the row is running from the start."""
        return multiple(*self.started(job_type))

    def started(self, job_type: str) -> list[tuple[Ledger, Job]]:
        try:
            job = self.ledger.start(self.ledger.new_job(job_type, POLICIES[job_type]))
        except AlreadyRunning as refusal:
            assert self.store.locks[job_type] in str(refusal)
            return []
        return [self.began(self.ledger, job)]

    @rule(target=workers, position=st.integers(0, 10**6), how=st.sampled_from(["dead", "continued"]))
    def overtake(self, position: int, how: str) -> Any:
        """An attempt is declared dead, or hands over, and the next one runs at once."""
        running = self.running()
        return multiple(*self.overtaken(running[position % len(running)], how)) if running else multiple()

    def overtaken(self, job: Job, how: str) -> list[tuple[Ledger, Job]]:
        if how == "continued":
            job = self.ledger.continue_later(job, checkpoint={"at": 2}, result=None)
        else:
            job = self.ledger.expire(job)
        if job.status.terminal:
            return []
        if not job.released:
            assert self.store.apply_many(self.ledger.releases([job])) == [Outcome.WRITTEN]
        job = self.ledger.claim(job.job_id, attempt=job.attempt, continuation=job.continuation)
        return [self.began(self.ledger, job)]

    def running(self) -> list[Job]:
        jobs = [self.ledger.get(pk.removeprefix("JOB#")) for pk in sorted(self.store.items)]
        return [job for job in jobs if job.status is Status.RUNNING]

    def began(self, ledger: Ledger, job: Job) -> tuple[Ledger, Job]:
        """An attempt was begun: its worker."""
        self.claims[job.job_id, job.attempt, job.continuation] += 1
        self.handles.append((ledger, job))
        return ledger, job

    @rule(tick=st.integers(0, 3))
    def tick(self, tick: int) -> None:
        """The same scheduled tick, delivered once, twice or late."""
        job_id = f"0000000000000000000000000{tick}"
        job = self.ledger.new_job("plain", POLICIES["plain"], job_id=job_id)
        known = job_key(job_id) in self.store.items
        try:
            self.ledger.submit(job)
        except DuplicateJob:
            assert known
        else:
            assert not known

    @rule(target=deliveries, position=st.integers(0, 10**6), again=st.booleans())
    def stream_record(self, position: int, again: bool) -> Any:
        """Any record of the stream, in any order, perhaps to come again."""
        if not self.stream:
            return multiple()
        index = position % len(self.stream)
        old, new = self.stream[index] if again else self.stream.pop(index)
        return multiple(
            *(
                (action.job.job_id, action.job.attempt, action.job.continuation)
                for action in actions(old, new)
                if isinstance(action, Start)
            )
        )

    @rule(target=workers, delivery=deliveries, skew=st.integers(-30, 30))
    def claim(self, delivery: tuple[str, int, int], skew: int) -> Any:
        """A delivery arrives; it stays in its bundle, so it may arrive again."""
        job_id, attempt, continuation = delivery
        ledger = self.ledger_at(timedelta(seconds=skew))
        try:
            job = ledger.claim(job_id, attempt=attempt, continuation=continuation)
        except LostLease:
            return multiple()
        return self.began(ledger, job)

    @rule(target=workers, worker=consumes(workers), percent=st.integers(0, 100))
    def heartbeat(self, worker: tuple[Ledger, Job], percent: int) -> Any:
        ledger, job = worker
        beaten = self.write(job, lambda: ledger.heartbeat(job, progress=percent, message="working"))
        return multiple() if beaten is None else (ledger, beaten)

    @rule(worker=consumes(workers), how=st.sampled_from(sorted(ENDS)))
    def end(self, worker: tuple[Ledger, Job], how: str) -> None:
        """A worker ends its attempt, perhaps long after it was declared dead (a zombie)."""
        ledger, job = worker
        self.write(job, lambda: ENDS[how](ledger, job))

    @rule(how=st.sampled_from(["heartbeat", *sorted(ENDS)]))
    def haunt(self, how: str) -> None:
        """Every attempt that is over writes once more."""
        for ledger, job in self.handles:
            if self.moved_on(job):
                beat = partial(ledger.heartbeat, job, progress=99, message="late")
                self.write(job, beat if how == "heartbeat" else partial(ENDS[how], ledger, job))

    def write(self, job: Job, act: Callable[[], Job]) -> Job | None:
        """What an attempt writes; None if it was refused, which is so exactly when its job has moved on."""
        moved_on, before = self.moved_on(job), self.store.items[job_key(job.job_id)].copy()
        if moved_on:
            COLLISIONS[moved_on] += 1
        try:
            written = act()
        except LostLease:
            assert moved_on, "a living attempt was refused"
            assert self.store.items[job_key(job.job_id)] == before, "a zombie changed the row"
            return None
        assert not moved_on, f"a zombie wrote, although its {moved_on} was over"
        return written

    @rule(worker=consumes(workers))
    def crash(self, worker: tuple[Ledger, Job]) -> None:
        """Killed without a word."""

    @rule(seconds=st.sampled_from([1, 20, 45, 130, 310, 700, 3700]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(position=st.integers(0, 10**6))
    def cancel(self, position: int) -> None:
        if self.store.items:
            pk = sorted(self.store.items)[position % len(self.store.items)]
            job_id = pk.removeprefix("JOB#")
            terminal = self.ledger.get(job_id).status.terminal
            try:
                self.ledger.cancel(job_id)
            except LostLease:
                assert terminal

    @rule()
    def see_expired(self) -> None:
        """One checker reads the index..."""
        for shard in shards():
            self.sightings += self.store.expired(shard, self.now, limit=10).jobs

    @rule(again=st.booleans())
    def act_on_what_was_seen(self, again: bool) -> None:
        """...and writes later, when a heartbeat, an end or the other checker may have come first. Perhaps its pass is
        repeated later still."""
        for job in self.sightings:
            row = self.ledger.get(job.job_id)
            stale = [name for name in (*FENCE, "expires_at") if getattr(row, name) != getattr(job, name)]
            COLLISIONS["sighting"] += bool(stale)
            try:
                self.store.apply(self.ledger.expiry(job))
            except LostLease:
                assert stale, "a checker was refused that had read the row as it is"
                continue
            assert not stale, f"a checker wrote over a row whose {stale} it did not know"
            assert job.expires_at is not None
            assert job.expires_at <= self.now, "a live attempt was rescued"
        if not again:
            self.sightings.clear()

    @rule()
    def check(self) -> None:
        """The other checker does both at once, for expired and due jobs."""
        stop_at = self.now + timedelta(minutes=1)
        with patch.object(timeout_checker, "ThreadPoolExecutor", Inline):  # in one order, so that a run can be repeated
            report = Checker(self.ledger, stop_at=stop_at, execution=lambda _: None).run({})
        assert report["errors"] == report["failed_lanes"] == 0

    # --- what must hold ----------------------------------------------------------------------------------------------

    def moved_on(self, job: Job) -> str | None:
        """By what the job has moved on from an attempt; None if it is under way."""
        row = self.ledger.get(job.job_id)
        if row.status is not Status.RUNNING:
            return "status"
        return next((name for name in ("attempt", "continuation") if getattr(row, name) != getattr(job, name)), None)

    @invariant()
    def each_attempt_ran_at_most_once(self) -> None:
        assert all(count == 1 for count in self.claims.values())

    @invariant()
    def what_ended_stays_as_it_ended(self) -> None:
        for job_id, item in self.ends.items():
            assert self.store.items[job_key(job_id)] == item

    @invariant()
    def no_job_exceeds_its_attempts_and_each_failure_is_told(self) -> None:
        for item in self.store.items.values():
            assert 1 <= item["attempt"] <= item["max_attempts"]
            failed = item["attempt"] - 1 + (item["status"] == "failed")
            assert len(item["errors"]) >= failed

    @invariant()
    def a_singleton_has_one_live_job_which_holds_the_lock(self) -> None:
        live = [
            item["job_id"]
            for item in self.store.items.values()
            if decode(item).job_type == "alone" and not Status(item["status"]).terminal
        ]
        assert live == [self.store.locks["alone"]] if "alone" in self.store.locks else live == []

    @invariant()
    def no_live_job_is_out_of_sight(self) -> None:
        """FAILURES 2 and 3: stuck jobs that no rescuer could see."""
        for item in self.store.items.values():
            if not Status(item["status"]).terminal:
                assert "expires_at" in item or "due_shard" in item

    def teardown(self) -> None:
        """Whatever happened: the next attempt of each running job begins, and all former attempts write once more.
        Then no worker is left, and the checker alone ends every job."""
        if not hasattr(self, "store"):
            return
        self.now += timedelta(hours=2)
        self.see_expired()
        for number, job in enumerate(self.running()):
            self.overtaken(job, ("dead", "continued")[number % 2])
        self.act_on_what_was_seen(again=False)
        for how in ("heartbeat", *sorted(ENDS)):
            self.haunt(how)
        for _ in range(40):
            self.now += timedelta(hours=2)
            self.check()
        assert all(Status(item["status"]).terminal for item in self.store.items.values())


def test_whatever_happens_no_stale_write_succeeds() -> None:
    COLLISIONS.clear()
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=300, stateful_step_count=60))
    too_few = {name: COLLISIONS[name] for name, least in MINIMUM.items() if COLLISIONS[name] < least}
    assert not too_few, f"too few stale writes were tried: {too_few} of at least {MINIMUM}"


def test_an_expiry_loses_against_a_heartbeat_that_came_first() -> None:
    """FAILURES 1: the rescuer ran what was alive."""
    store, now = MemoryStore(), [START]
    ledger = Ledger(store, clock=lambda: now[0])
    job = ledger.start(ledger.new_job("beating", POLICIES["beating"]))
    now[0] += timedelta(minutes=1)
    job = ledger.heartbeat(job, progress=10, message="alive")
    now[0] += timedelta(minutes=3)
    change = ledger.expiry(job)  # the checker has read the row...
    alive = ledger.heartbeat(job, progress=50, message="alive")  # ...and only then the heartbeat arrives
    with pytest.raises(LostLease):
        store.apply(change)
    assert ledger.get(job.job_id) == alive
