"""The ledger under several workers, crashes at every point, two checkers, duplicate and reordered deliveries and
skewed clocks: a Hypothesis state machine (REQUIREMENTS K1-K3, K8, K10; FAILURES 1-4)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from lamplighter.jobs import timeout_checker
from lamplighter.jobs.dispatcher import Start, actions
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status, encode, job_key
from lamplighter.kernel.ledger.store import DuplicateJob, shards
from tests.memory_store import MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = {
    "plain": Policy(timeout=timedelta(minutes=5), target="lambda:plain", max_continuations=3),
    "alone": Policy(timeout=timedelta(minutes=5), target="lambda:alone", singleton=True),
    "beating": Policy(timeout=timedelta(minutes=60), target="bus", heartbeat=timedelta(minutes=2), max_attempts=9),
}


class Inline(Executor):
    """Does at once what it is given."""

    def __init__(self, max_workers: int) -> None:
        """Takes what a pool takes."""

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class LedgerMachine(RuleBasedStateMachine):
    """The world: one table, its stream, deliveries on their way, and workers that each hold a row they claimed."""

    deliveries = Bundle("deliveries")
    workers = Bundle("workers")
    sightings = Bundle("sightings")

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.now = START
        self.store = MemoryStore(self.on_stream)
        self.rng = random.Random(seed)
        self.ledger = self.ledger_at(timedelta())
        self.stream: list[tuple[Job | None, Job | None]] = []
        self.claims: Counter[tuple[str, int, int]] = Counter()
        self.ends: dict[str, dict[str, Any]] = {}

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
        self.claims[delivery] += 1
        return (ledger, job)

    @rule(target=workers, worker=consumes(workers), percent=st.integers(0, 100))
    def heartbeat(self, worker: tuple[Ledger, Job], percent: int) -> Any:
        ledger, job = worker
        try:
            return (ledger, ledger.heartbeat(job, progress=percent, message="working"))
        except LostLease:
            assert self.moved_on(job)
            return multiple()

    @rule(worker=consumes(workers), how=st.sampled_from(["complete", "fail", "permanent", "continue", "cancelled"]))
    def end(self, worker: tuple[Ledger, Job], how: str) -> None:
        """A worker ends its attempt, perhaps long after it was declared dead (a zombie)."""
        ledger, job = worker
        before = self.store.items[job_key(job.job_id)].copy()
        try:
            match how:
                case "complete":
                    ledger.complete(job, {"done": True})
                case "fail":
                    ledger.fail(job, RuntimeError("boom"))
                case "permanent":
                    ledger.fail(job, Permanent("bad input"))
                case "continue":
                    ledger.continue_later(job, checkpoint={"at": 1}, result=None)
                case "cancelled":
                    ledger.finish_cancelled(job, None)
        except LostLease:
            assert self.moved_on(job)
            assert self.store.items[job_key(job.job_id)] == before, "a zombie changed the row"

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

    @rule(target=sightings, shard=st.sampled_from(list(shards())))
    def see_expired(self, shard: int) -> Any:
        """One checker reads a page..."""
        return multiple(*self.store.expired(shard, self.now, limit=10).jobs)

    @rule(job=consumes(sightings))
    def act_on_what_was_seen(self, job: Job) -> None:
        """...and writes later, when a heartbeat, an end or the other checker may have come first."""
        try:
            change = self.ledger.expiry(job)
        except LostLease:
            return
        try:
            self.store.apply(change)
        except LostLease:
            return
        assert job.expires_at is not None
        assert job.expires_at <= self.now, "a live attempt was rescued"

    @rule()
    def check(self) -> None:
        """The other checker does both at once, for expired and due jobs."""
        stop_at = self.now + timedelta(minutes=1)
        with patch.object(timeout_checker, "ThreadPoolExecutor", Inline):  # in one order, so that a run can be repeated
            report = Checker(self.ledger, stop_at=stop_at, execution=lambda _: None).run({})
        assert report["errors"] == report["failed_lanes"] == 0

    # --- what must hold ----------------------------------------------------------------------------------------------

    def moved_on(self, job: Job) -> bool:
        row = self.ledger.get(job.job_id)
        return (row.status, row.attempt, row.continuation) != (Status.RUNNING, job.attempt, job.continuation)

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
            if item["job_type"] == "alone" and not Status(item["status"]).terminal
        ]
        assert live == [self.store.locks["alone"]] if "alone" in self.store.locks else live == []

    @invariant()
    def no_live_job_is_out_of_sight(self) -> None:
        """FAILURES 2 and 3: stuck jobs that no rescuer could see."""
        for item in self.store.items.values():
            if not Status(item["status"]).terminal:
                assert "expires_at" in item or "due_shard" in item

    def teardown(self) -> None:
        """Whatever happened: with nobody working any more, the checker alone brings every job to an end."""
        if not hasattr(self, "store"):
            return
        for _ in range(40):
            self.now += timedelta(hours=2)
            self.check()
        assert all(Status(item["status"]).terminal for item in self.store.items.values())


LedgerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60)
TestLedger = LedgerMachine.TestCase


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
