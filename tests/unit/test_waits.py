"""Moments are acted on when they come, on a virtual clock: the schedule's passes, the stream, waits (REQUIREMENTS K15).

The oracle knows every moment that a job was to be acted on: each is acted on exactly once, within 2 s of it, or by the
next scheduled pass after it where a wait was lost.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest

from lamplighter.jobs import dispatcher, timeout_checker
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel.ledger import waits
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.ledger.store import Page
from tests.conftest import Seeded
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext
from tests.unit.test_ledger_machine import Inline

START = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)
LATE = timedelta(seconds=2)


@dataclass
class Due:
    """A moment at which a job was to be acted on, and when it was."""

    job_id: str
    moment: datetime
    acted_at: list[datetime] = field(default_factory=list)


class LaggingStore(MemoryStore):
    """Its indexes show a row as it was before its last write, until they have followed."""

    def __init__(self, listener: Callable[[Job | None, Job | None], None], clock: Callable[[], datetime]) -> None:
        super().__init__(listener)
        self.clock = clock
        self.lag = timedelta(milliseconds=200)
        self.writes: deque[tuple[datetime, str, dict[str, Any] | None]] = deque()

    def remember(self, key: str) -> None:
        item = self.items.get(key)
        self.writes.append((self.clock(), key, dict(item) if item else None))

    def create(self, job: Job, *, instead_of: str | None = None) -> None:
        self.remember(f"JOB#{job.job_id}")
        super().create(job, instead_of=instead_of)

    def apply(self, change: Any) -> Job:
        self.remember(f"JOB#{change.old.job_id}")
        return super().apply(change)

    def _page(self, *args: Any, **options: Any) -> Page:
        while self.writes and self.writes[0][0] <= self.clock() - self.lag:
            self.writes.popleft()
        if not self.writes:
            return super()._page(*args, **options)
        now = self.items
        shown = dict(now)
        for _, key, before in reversed(self.writes):
            if before is None:
                shown.pop(key, None)
            else:
                shown[key] = before
        self.items = shown
        try:
            return super()._page(*args, **options)
        finally:
            self.items = now


class World:
    """Time goes from event to event; what happens at one moment happens in the order in which it was planned."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = START
        self.store = LaggingStore(self.changed, lambda: self.now)
        self.ledger = Ledger(self.store, clock=lambda: self.now, rng=rng)
        self.events: list[tuple[datetime, int, Callable[[], None]]] = []
        self.order = count()
        self.stream: list[tuple[Job | None, Job | None]] = []
        self.dues: dict[str, list[Due]] = {}
        self.ticks: list[datetime] = []
        self.started: list[datetime] = []
        """The ends of the waits that were started."""
        self.lost: list[datetime] = []
        self.losing = 0.0
        """The share of waits that come to nothing."""
        self.repeating = 0.0
        """The share of waits that run twice."""
        self.checkers = 1
        self.after_each_pass: Callable[[], None] = lambda: None
        self.passes = 0

    def at(self, moment: datetime, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.order), event))

    def after(self, seconds: float, event: Callable[..., None], *values: Any) -> None:
        self.at(self.now + timedelta(seconds=seconds), partial(event, *values))

    def start(self, seconds: float) -> None:
        """A job begins that has so many seconds."""
        self.ledger.start(self.ledger.new_job("sync", policy(seconds)))

    def submit(self, seconds: float) -> None:
        """A job is made that is to run in so many seconds."""
        run_at = self.now + timedelta(seconds=seconds)
        self.ledger.submit(self.ledger.new_job("sync", policy(9 * 3600), run_at=run_at))

    def run(self, seconds: float) -> None:
        """Until then, with a pass of the schedule anywhere in each minute."""
        end = self.now + timedelta(seconds=seconds)
        minute = self.now
        while minute < end:
            for _ in range(self.checkers):
                self.at(minute + timedelta(seconds=self.rng.uniform(0, 59.9)), self.scheduled)
            minute += timedelta(minutes=1)
        while self.events and self.events[0][0] <= end:
            self.now, _, event = heapq.heappop(self.events)
            event()
        self.now = end

    # --- what the table's stream and the passes do --------------------------------------------------------------------

    def changed(self, old: Job | None, new: Job | None) -> None:
        assert new is not None
        dues = self.dues.setdefault(new.job_id, [])
        moment = waits.moment_of(new)
        before = waits.moment_of(old) if old else None
        # The checker's own writes: it rescued the job, or released it.
        acted = old is not None and (len(new.rescues) > len(old.rescues) or (new.released and not old.released))
        if acted:
            dues[-1].acted_at.append(self.now)
        elif dues and before != moment and not dues[-1].acted_at:
            dues.pop()  # it moved, or the job ended
        if moment is not None and (before != moment or acted):
            dues.append(Due(new.job_id, moment))
        if not self.stream:
            self.after(self.rng.uniform(0.05, 0.6), self.deliver)
        self.stream.append((old, new))

    def deliver(self) -> None:
        batch, self.stream = self.stream[:100], self.stream[100:]
        if self.stream:
            self.after(0.02, self.deliver)
        found = [waits.moment_to_wait_for(*change, self.now) for change in batch]
        self.begin([moment for moment in found if moment])

    def begin(self, moments: list[datetime]) -> None:
        if moments:
            waits.begin_wait(self.store, min(moments), self.now, self.wait)

    def begin_next(self, moment: datetime) -> None:
        waits.begin_wait(self.store, moment, self.now, self.wait, settle=timedelta())

    def wait(self, until: datetime) -> None:
        self.started.append(until)
        if self.rng.random() < self.losing:
            self.lost.append(until)
            return
        for _ in range(1 + (self.rng.random() < self.repeating)):
            begun = max(until, self.now) + timedelta(seconds=self.rng.uniform(0.03, 0.3))
            self.at(begun, self.check)

    def scheduled(self) -> None:
        self.ticks.append(self.now)
        self.check()
        self.after(0.001, self.after_each_pass)

    def check(self) -> None:
        self.passes += 1
        stop_at = self.now + timedelta(seconds=50)
        checker = Checker(self.ledger, stop_at=stop_at, execution=lambda _: None, begin_wait=self.begin_next)
        assert checker.run({})["finished"]

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def verify(self) -> Counter[str]:
        """Every moment that has come was acted on exactly once and in time; how many, and how late by the seconds."""
        seen: Counter[str] = Counter()
        for due in (due for dues in self.dues.values() for due in dues):
            if due.moment > self.now - timedelta(minutes=2):
                continue  # its time has not come, or not long enough ago to be judged
            assert len(due.acted_at) == 1, f"acted on {len(due.acted_at)} times: {due}"
            late = due.acted_at[0] - due.moment
            if late <= LATE:
                seen["in time"] += 1
            else:
                whole = due.moment + timedelta(seconds=1)
                lost = [until for until in self.lost if whole - waits.AHEAD - timedelta(minutes=2) < until <= whole]
                assert lost, f"{late} late although no wait was lost: {due}"
                following = min(tick for tick in self.ticks if tick >= due.moment)
                assert due.acted_at[0] <= following + LATE, f"not even by the next pass: {due}"
                seen["by the next pass"] += 1
        return seen


Worlds = Callable[[int], Iterator[World]]


@pytest.fixture
def worlds(seeded: Seeded) -> Iterator[Worlds]:
    """So many worlds, one after the other."""
    with patch.object(timeout_checker, "ThreadPoolExecutor", Inline), patch.object(timeout_checker, "logger"):
        yield lambda number: (World(rng) for _, rng in seeded(range(number)))


def policy(seconds: float) -> Policy:
    """Of a job that has so many seconds, and one attempt."""
    return Policy(timeout=timedelta(seconds=seconds), pickup=timedelta(hours=9), max_attempts=1)


@pytest.mark.parametrize("checkers", [1, 2])
@pytest.mark.parametrize("seconds", [1, 30, 59, 61, 119, 121, 180])
def test_a_deadline_is_acted_on_within_two_seconds(worlds: Worlds, seconds: int, checkers: int) -> None:
    """Each made just after a pass, and at any other time."""
    for world in worlds(3):
        world.checkers = checkers
        world.after_each_pass = lambda world=world: world.start(seconds)  # type: ignore[misc]
        for moment in range(0, 600, 7):
            world.after(moment, world.start, seconds)
        world.run(900)
        assert set(seen := world.verify()) == {"in time"}
        assert seen["in time"] > 90


def test_a_job_for_later_is_released_within_two_seconds(worlds: Worlds) -> None:
    for world in worlds(5):
        for moment in range(0, 600, 7):
            world.after(moment, world.submit, world.rng.choice([1, 30, 59, 61, 119, 300]))
        world.run(1200)
        assert world.verify() == {"in time": 86}


def test_a_deadline_that_heartbeats_move_is_acted_on_once_they_stop(worlds: Worlds) -> None:
    beating = Policy(timeout=timedelta(hours=9), heartbeat=timedelta(seconds=60), max_attempts=1)
    for world in worlds(10):

        def beat(job: Job, left: int, world: World = world) -> None:
            job = world.ledger.heartbeat(job, progress=1, message="alive")
            if left:
                world.after(world.rng.uniform(5, 55), beat, job, left - 1)

        def begin(left: int, world: World = world) -> None:
            world.after(1, beat, world.ledger.start(world.ledger.new_job("sync", beating)), left)

        for left in range(15):
            world.after(world.rng.uniform(0, 300), begin, left)
        world.run(1500)
        assert world.verify() == {"in time": 15}, "each job is rescued once, a minute after its last heartbeat"
        assert len(world.started) < 90 < sum(range(1, 16)), "a heartbeat begins no wait"


def test_a_lost_wait_costs_no_more_than_the_time_to_the_next_pass(worlds: Worlds) -> None:
    together: Counter[str] = Counter()
    for world in worlds(10):
        world.losing = 0.3
        for _ in range(200):
            world.after(world.rng.uniform(0, 1800), world.start, world.rng.choice([1, 30, 59, 61, 119]))
        world.run(2400)
        seen = world.verify()
        assert seen.total() == 200
        together += seen
    assert min(together["by the next pass"], together["in time"]) > 200


def test_the_same_wait_twice_changes_nothing(worlds: Worlds) -> None:
    for world in worlds(5):
        world.repeating = 1.0
        for _ in range(200):
            world.after(world.rng.uniform(0, 1800), world.start, world.rng.choice([1, 30, 59, 61, 119]))
        world.run(2400)
        assert world.verify() == {"in time": 200}
        assert world.passes == 2 * len(world.started) + len(world.ticks)


def test_everything_at_once(worlds: Worlds) -> None:
    """Two checkers, waits that are lost or come twice, jobs for now and for later."""
    for world in worlds(10):
        world.checkers, world.losing, world.repeating = 2, 0.02, 0.05
        for _ in range(150):
            what = world.rng.choice([world.start, world.submit])
            world.after(world.rng.uniform(0, 1200), what, world.rng.uniform(0, 200))
        world.run(1800)
        assert world.verify().total() >= 150


def test_a_thousand_moments_start_about_one_wait_a_second(worlds: Worlds) -> None:
    """Two minutes in which 1 000 jobs fall due, made in whatever order."""
    for world in worlds(1):
        for _ in range(1000):
            world.after(world.rng.uniform(0, 3), world.start, world.rng.uniform(1, 119))
        world.run(300)
        assert world.verify() == {"in time": 1000}
        assert 110 < len(world.started) < 130
        assert world.passes == len(world.started) + len(world.ticks)


def test_an_idle_ledger_waits_for_nothing(worlds: Worlds) -> None:
    for world in worlds(1):
        for _ in range(50):
            world.start(9 * 3600)
        world.run(3600)
        assert (world.started, world.store.wait) == ([], None)


# --- One wait ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "until"),
    [(10, 10), (10.001, 11), (10.999, 11), (0.1, 1), (-60, 1), (0.25, 1)],
)
def test_a_wait_ends_with_the_whole_second(store: MemoryStore, moment: float, until: int) -> None:
    started: list[datetime] = []
    assert waits.begin_wait(store, START + timedelta(seconds=moment), START, started.append)
    assert started == [START + timedelta(seconds=until)]


def test_a_wait_that_ends_before_the_moment_serves_it(store: MemoryStore) -> None:
    def begin(seconds: float) -> bool:
        return waits.begin_wait(store, START + timedelta(seconds=seconds), START, lambda _: None)

    assert begin(60)
    assert not begin(60)
    assert not begin(59.5)  # the same second
    assert not begin(119)
    assert begin(59)


def test_a_wait_that_has_ended_or_ends_too_soon_serves_nothing_more(store: MemoryStore) -> None:
    later = START + timedelta(seconds=100)
    assert waits.begin_wait(store, START + timedelta(seconds=60), START, lambda _: None)
    for now, serves in ((59.75, True), (59.751, False), (60, False), (90, False)):
        trial = MemoryStore()
        trial.wait = store.wait
        assert waits.begin_wait(trial, later, START + timedelta(seconds=now), lambda _: None) is not serves


def test_a_wait_that_could_not_be_started_leaves_its_moment_free(store: MemoryStore) -> None:
    def broken(until: datetime) -> None:
        raise ConnectionError("Step Functions is down")

    moment = START + timedelta(seconds=60)
    with pytest.raises(ConnectionError):
        waits.begin_wait(store, moment, START, broken)
    assert waits.begin_wait(store, moment, START, lambda _: None)


@pytest.mark.parametrize(
    ("before", "after", "waited_for"),
    [
        (None, 1, True),
        (None, 120, True),
        (None, 120.001, False),
        (None, -5, True),
        (60, 60, False),  # nothing has moved
        (60, 90, False),  # the pass at 60 finds it
        (60, 59, True),
        (0.2, 90, True),  # the pass at 0.2 may come before the index has followed
        (-5, 90, True),
    ],
)
def test_a_change_calls_for_a_wait_only_where_none_finds_it(
    ledger: Ledger, before: float | None, after: float, waited_for: bool
) -> None:
    now = ledger.clock()

    def running(seconds: float) -> Job:
        return ledger.new_job("sync", policy(60), run_at=now + timedelta(seconds=seconds), job_id="a")

    def waiting(seconds: float) -> Job:
        return replace(running(seconds), released=False, deadline_at=None)

    new = waiting(after)
    moment = waits.moment_to_wait_for(None if before is None else waiting(before), new, now)
    assert moment == (new.run_at if waited_for else None)


def test_a_finished_or_removed_job_calls_for_no_wait(ledger: Ledger) -> None:
    job = ledger.start(ledger.new_job("sync", policy(60)))
    done = ledger.complete(job, None)
    assert done.status is Status.COMPLETED
    assert waits.moment_to_wait_for(job, done, ledger.clock()) is None
    assert waits.moment_to_wait_for(done, None, ledger.clock()) is None


# --- The functions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def started(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The ends of the waits that the functions start."""
    found: list[datetime] = []
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    monkeypatch.setattr(timeout_checker, "apply_settings", lambda: None)
    monkeypatch.setattr(waits, "start_waiting", found.append)
    monkeypatch.setattr(dispatcher, "DynamoStore", lambda table: ledger.store)
    monkeypatch.setattr(dispatcher, "utc_now", ledger.clock)
    return found


def test_the_wait_begins_before_the_pass_acts(
    ledger: Ledger, store: MemoryStore, clock: FakeClock, started: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand expired jobs take seconds, in which others fall due."""
    ledger.start(ledger.new_job("sync", policy(60)))
    ledger.start(ledger.new_job("sync", policy(70)))
    clock.tick(seconds=60)
    whole, begun = store.apply_many, []
    monkeypatch.setattr(store, "apply_many", lambda changes: begun.append(list(started)) or whole(changes))
    assert timeout_checker.handler({}, FakeContext())["failed"] == 1
    assert begun == [[clock() + timedelta(seconds=10)]]


def test_a_moment_that_the_index_shows_needs_nothing_to_settle(store: MemoryStore) -> None:
    """A pass that ends late in a second must not skip the next one."""
    now, moment = START + timedelta(seconds=0.9), START + timedelta(seconds=0.95)
    ends: list[datetime] = []
    for _ in range(2):
        waits.begin_wait(store, moment, now, ends.append, settle=timedelta())
    assert ends == [START + timedelta(seconds=1)]
    assert waits.begin_wait(MemoryStore(), moment, now, ends.append)
    assert ends[-1] == START + timedelta(seconds=2)


def test_a_pass_that_runs_out_of_time_still_waits_for_what_it_has_seen(
    ledger: Ledger, clock: FakeClock, started: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeout_checker, "PAGE", 1)
    for _ in range(30):
        ledger.start(ledger.new_job("sync", policy(60)))
    clock.tick(seconds=40)
    ledger.start(ledger.new_job("sync", policy(60)))
    clock.tick(seconds=25)
    report = timeout_checker.handler({}, FakeContext(left=timedelta()))
    assert report["finished"] is False
    assert started == [clock() + timedelta(seconds=35)]


def test_a_wait_that_fails_fails_no_pass_and_no_batch(
    ledger: Ledger, started: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(until: datetime) -> None:
        raise ConnectionError("Step Functions is down")

    monkeypatch.setattr(waits, "start_waiting", broken)
    job = ledger.start(ledger.new_job("sync", policy(60)))
    assert timeout_checker.handler({}, FakeContext())["finished"] is True
    dispatcher.begin_wait([waits.moment_of(job) or job.created_at], ledger.clock())
    assert started == []


def test_only_the_schedules_pass_is_the_heartbeat_that_the_alarm_watches(
    started: list[datetime], capsys: pytest.CaptureFixture[str]
) -> None:
    """K12: else waits, which go on for a while by themselves, would hide a schedule that has stopped."""
    timeout_checker.handler({"waited": True, "cursors": {}}, FakeContext())
    assert "CheckerHeartbeat" not in capsys.readouterr().out
    timeout_checker.handler({"waited": False, "cursors": {}}, FakeContext())
    assert "CheckerHeartbeat" in capsys.readouterr().out


def test_an_execution_that_began_before_an_upgrade_ends_well(started: list[datetime]) -> None:
    """The state machine of the version before told which half of the minute it was."""
    assert timeout_checker.handler({"half": 2, "cursors": {}}, FakeContext())["finished"] is True
