"""The ramp of earned trust (REQUIREMENTS S3), held against an oracle that reads the whole history."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lamplighter.deletion import ramp
from lamplighter.deletion.ramp import FACTOR, STEP, Stored, Trust, allowed
from lamplighter.kernel.ledger.row import derived_job_id
from tests.memory_trust import MemoryTable

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
FIRST = 100
MINUTE = timedelta(minutes=1)


def opened(table: MemoryTable, run: str, at: timedelta, **options: Any) -> ramp.Allowance:
    defaults: dict[str, Any] = {"definition": "d", "first": FIRST, "ceiling": None}
    return ramp.open(table, "s", run=run, now=NOW + at, **(defaults | options))


def ran(table: MemoryTable, run: str, at: timedelta, items: int = 1, **options: Any) -> int | None:
    """The limit of a run that acts and completes."""
    allowance = opened(table, run, at, **options)
    allowance.acted(items)
    return allowance.limit


def test_the_limit_rises_tenfold_a_day_up_to_the_ceiling() -> None:
    table = MemoryTable()

    limits = [ran(table, f"r{day}", day * STEP, ceiling=50_000) for day in range(6)]

    assert limits == [100, 1_000, 10_000, 50_000, 50_000, 50_000]


def test_a_limit_stays_for_24_hours_after_the_first_run_that_acted() -> None:
    table = MemoryTable()

    assert ran(table, "a", timedelta(0)) == 100
    assert ran(table, "b", STEP - MINUTE) == 100
    assert ran(table, "c", STEP) == 1_000
    assert ran(table, "d", STEP + MINUTE) == 1_000
    assert ran(table, "e", 2 * STEP - MINUTE) == 1_000
    assert ran(table, "f", 2 * STEP) == 10_000


def test_a_raised_ceiling_is_not_reached_at_once() -> None:
    """What a run was never allowed to act on, it has not earned."""
    table = MemoryTable()
    for day in range(9):
        ran(table, f"r{day}", day * STEP, ceiling=500)

    assert ran(table, "later", 9 * STEP, ceiling=None) == 1_000


@pytest.mark.parametrize("items", [0, None])
def test_a_run_that_acted_on_nothing_or_did_not_complete_raises_nothing(items: int | None) -> None:
    table = MemoryTable()
    for day in range(5):
        allowance = opened(table, f"r{day}", day * STEP)
        if items is not None:
            allowance.acted(items)

    assert opened(table, "last", 9 * STEP).limit == 100


def test_previews_write_nothing() -> None:
    table = MemoryTable()
    options: dict[str, Any] = {"definition": "d", "first": FIRST, "ceiling": None}

    assert ramp.look(table, "s", now=NOW, **options) == 100
    assert not table.items
    ran(table, "a", timedelta(0))
    before = table.read("s")
    assert ramp.look(table, "s", now=NOW + STEP, **options) == 1_000
    assert ramp.look(table, "s", now=NOW + STEP, **options | {"definition": "other"}) == 100
    assert table.read("s") == before


def test_an_undo_starts_again() -> None:
    table = MemoryTable()
    assert [ran(table, f"r{day}", day * STEP) for day in range(3)] == [100, 1_000, 10_000]

    ramp.reset(table, "s", NOW + 2 * STEP)

    assert [ran(table, f"s{day}", (3 + day) * STEP) for day in range(2)] == [100, 1_000]


def test_an_undo_of_what_never_ran_leaves_no_trace() -> None:
    table = MemoryTable()
    ramp.reset(table, "s", NOW)
    assert not table.items


def test_a_run_that_was_open_during_an_undo_raises_nothing() -> None:
    table = MemoryTable()
    ran(table, "a", timedelta(0))
    running = opened(table, "b", STEP)
    assert running.limit == 1_000

    ramp.reset(table, "s", NOW + STEP)
    running.acted(5)
    assert opened(table, "c", 3 * STEP).limit == 100
    running.acted(5)

    assert opened(table, "d", 6 * STEP).limit == 100


def test_a_run_that_is_continued_after_an_undo_raises_nothing() -> None:
    table = MemoryTable()
    ran(table, "a", timedelta(0))
    opened(table, "b", STEP)
    ramp.reset(table, "s", NOW + STEP)

    opened(table, "b", STEP + MINUTE).acted(5)

    assert opened(table, "c", 3 * STEP).limit == 100


def test_a_definition_that_changes_and_changes_back_starts_again() -> None:
    table = MemoryTable()
    assert [ran(table, f"r{day}", day * STEP) for day in range(3)] == [100, 1_000, 10_000]

    assert ran(table, "other", 3 * STEP, definition="e") == 100
    assert ran(table, "back", 4 * STEP) == 100


def test_the_definition_is_the_meaning_and_not_the_order() -> None:
    one = ramp.definition_of({"bucket": "b", "references": ["t.c", "u.d"]})

    assert one == ramp.definition_of({"references": ["t.c", "u.d"], "bucket": "b"})
    assert one != ramp.definition_of({"bucket": "b", "references": ["t.c"]})


@pytest.mark.parametrize(
    "damage",
    [
        {"limit": 10**9 + 1},
        {"limit": 10**20},
        {"limit": -1},
        {"limit": 50},
        {"since": NOW + 99 * STEP},
        {"acted_at": NOW + 99 * STEP},
        {"definition": ""},
    ],
)
def test_damage_is_never_a_free_pass(damage: dict[str, Any]) -> None:
    """A limit that no run can earn, and moments ahead of now: a clock went backwards."""
    sound = Trust(definition="d", limit=10_000, since=NOW - 9 * STEP, acted_at=NOW - 8 * STEP)
    assert allowed(sound, definition="d", now=NOW, first=FIRST, ceiling=None)[1] == 100_000

    assert allowed(replace(sound, **damage), definition="d", now=NOW, first=FIRST, ceiling=None)[1] == FIRST


def test_clocks_of_two_machines_may_differ_a_little() -> None:
    trust = Trust(definition="d", limit=10_000, since=NOW + ramp.SKEW)
    assert allowed(trust, definition="d", now=NOW, first=FIRST, ceiling=None)[1] == 10_000


def test_two_runs_at_once_raise_once() -> None:
    table = MemoryTable()
    ran(table, "a", timedelta(0))
    limits: list[int | None] = []
    table.before_write = lambda: limits.append(ran(table, "b", STEP))

    limits.append(ran(table, "c", STEP))

    assert (limits, table.lost) == ([1_000, 1_000], 1)


def test_an_undo_between_read_and_write_wins() -> None:
    table = MemoryTable()
    ran(table, "a", timedelta(0))
    table.before_write = lambda: ramp.reset(table, "s", NOW + STEP)

    assert (opened(table, "b", STEP).limit, table.lost) == (100, 1)


def test_a_run_has_one_allowance_in_all_of_its_attempts() -> None:
    table = MemoryTable()
    first = opened(table, "a", timedelta(0))
    assert (first.reserve(60), first.left) == (60, 40)

    again = opened(table, "a", MINUTE)

    assert (again.left, again.reserve(60), again.reserve(1), first.reserve(5)) == (40, 40, 0, 0)
    again.give_back(15)
    assert (again.left, opened(table, "a", 5 * STEP).left) == (15, 15)


def test_all_that_is_left_is_reserved_at_once_and_no_more() -> None:
    table = MemoryTable()
    limited, lifted = opened(table, "a", timedelta(0)), opened(table, "b", timedelta(0), applies=False)
    limited.reserve(60)

    assert (limited.reserve_all(), limited.reserve_all(), opened(table, "a", MINUTE).left) == (40, 0, 0)
    assert lifted.reserve_all() is None


def test_a_single_item_is_given_back_too() -> None:
    table = MemoryTable()
    allowance = opened(table, "a", timedelta(0))
    allowance.reserve(FIRST)
    allowance.give_back(1)

    assert (allowance.left, opened(table, "a", MINUTE).left) == (1, 1)


def test_a_run_keeps_the_allowance_that_it_began_with() -> None:
    """Its own actions do not raise it."""
    table = MemoryTable()
    opened(table, "a", timedelta(0)).acted(100)

    assert opened(table, "a", STEP).limit == 100
    assert opened(table, "b", STEP).limit == 1_000


def test_where_the_ramp_is_lifted_the_ceiling_holds() -> None:
    table = MemoryTable()

    assert opened(table, "a", timedelta(0), applies=False).limit is None
    assert opened(table, "a", timedelta(0), applies=False).reserve(10**9) == 10**9
    limited = opened(table, "b", timedelta(0), applies=False, ceiling=7)
    assert (limited.limit, limited.reserve(10), limited.reserve(1)) == (7, 7, 0)
    assert not table.items


def test_a_run_of_a_daily_schedule_begins_when_it_was_scheduled() -> None:
    tick = derived_job_id(NOW, "tick", "x", "y")

    assert ramp.began(tick, NOW + 12 * MINUTE) == NOW
    assert ramp.began(tick, NOW + 50 * STEP) == NOW + 50 * STEP - ramp.LATE
    assert ramp.began(tick, NOW - MINUTE) == NOW - MINUTE
    assert ramp.began("no ULID", NOW) == NOW


def test_what_is_held_back_is_counted() -> None:
    assert [ramp.held_back(250, limit) for limit in (None, 100, 250, 1_000)] == [0, 150, 0, 0]


# -- any history -----------------------------------------------------------------------------------------------------


class Histories(RuleBasedStateMachine):
    """Runs, retries, crashes, undos, changed definitions and other runs in between, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = MemoryTable()
        self.now = NOW
        self.definition = "d0"
        self.ceiling: int | None = None
        self.earned: list[datetime] = []
        """When the runs began that acted and completed, since the ramp started again."""
        self.seen: str | None = None
        """The definition of the last earnest run."""
        self.epoch = 0
        """Counts how often the ramp started again."""
        self.runs: dict[str, dict[str, Any]] = {}
        self.reached: set[str] = set()

    @initialize(ceiling=st.sampled_from([None, 30, 100, 5_000]))
    def begin(self, ceiling: int | None) -> None:
        self.ceiling = ceiling

    def most(self) -> int:
        """By the letter of S3: each rise needs a run that acted at least 24 hours ago, after the rise before."""
        limit, last = FIRST, datetime.min.replace(tzinfo=UTC)
        for moment in sorted(self.earned):
            if moment >= last and moment + STEP <= self.now:
                limit, last = limit * FACTOR, moment + STEP
        return limit if self.ceiling is None else min(limit, self.ceiling)

    def open(self, run: str) -> None:
        if self.definition != self.seen:
            self.earned, self.seen, self.epoch = [], self.definition, self.epoch + 1
        most = self.most()
        allowance = ramp.open(
            self.table, "s", run=run, definition=self.definition, now=self.now, first=FIRST, ceiling=self.ceiling
        )
        known = self.runs.setdefault(run, {"most": most, "acted": 0, "over": False, "epoch": self.epoch})
        known |= {"allowance": allowance, "began": self.now}
        assert allowance.limit is not None
        assert allowance.limit <= most, (allowance, most)
        assert allowance.limit <= known["most"]
        if allowance.limit > FIRST:
            self.reached.add("raised")

    @rule(hours=st.sampled_from([0, 1, 12, 24, 25]), minutes=st.integers(0, 59))
    def time_passes(self, hours: int, minutes: int) -> None:
        self.now += timedelta(hours=hours, minutes=minutes)

    @rule(number=st.integers(0, 30))
    def run(self, number: int) -> None:
        if not self.runs.get(f"r{number}", {}).get("over"):
            self.open(f"r{number}")

    @rule(one=st.integers(0, 30), other=st.integers(0, 30))
    def two_at_once(self, one: int, other: int) -> None:
        names = [f"r{number}" for number in (one, other) if not self.runs.get(f"r{number}", {}).get("over")]
        if len(names) == 2 and one != other:
            self.table.before_write = lambda: self.open(names[1])
            self.open(names[0])
            self.table.before_write = None

    @rule(days=st.integers(1, 3), hours=st.sampled_from([23, 24, 25]))
    def days(self, days: int, hours: int) -> None:
        """As most histories go: a run a day that acts and completes."""
        for _ in range(days):
            name = f"day{len(self.runs)}"
            self.open(name)
            run = self.runs[name]
            run["acted"] += run["allowance"].reserve(self.most() + 1)
            assert 0 < run["acted"] <= run["most"]
            self.ended(run)
            self.now += timedelta(hours=hours)

    def ended(self, run: dict[str, Any]) -> None:
        run["allowance"].acted(run["acted"])
        run["over"] = True
        if run["acted"] and run["epoch"] == self.epoch:
            self.earned.append(run["began"])

    def chosen(self, data: st.DataObject) -> dict[str, Any]:
        live = [run for run in self.runs.values() if not run["over"]]
        return data.draw(st.sampled_from(live))

    @precondition(lambda self: any(not run["over"] for run in self.runs.values()))
    @rule(data=st.data(), wanted=st.integers(0, 3_000), recorded=st.booleans())
    def act(self, data: st.DataObject, wanted: int, recorded: bool) -> None:
        """Where it is not recorded the attempt died: all that it reserved may have been done."""
        run = self.chosen(data)
        done = run["allowance"].reserve(wanted)
        if recorded:
            run["allowance"].give_back(done // 3)
            done -= done // 3
        run["acted"] += done
        assert run["acted"] <= run["most"]

    @precondition(lambda self: any(not run["over"] for run in self.runs.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self.ended(self.chosen(data))

    @precondition(lambda self: any(not run["over"] for run in self.runs.values()))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.chosen(data)["over"] = True

    @rule()
    def undo(self) -> None:
        if self.earned:
            self.reached.add("undone")
        ramp.reset(self.table, "s", self.now)
        self.earned, self.epoch = [], self.epoch + 1

    @rule(definition=st.sampled_from(["d0", "d1"]))
    def redefine(self, definition: str) -> None:
        self.definition = definition

    @rule()
    def damage(self) -> None:
        if self.table.items:
            self.table.items["s"] = Stored(trust=None, version="damaged")
            self.earned, self.epoch = [], self.epoch + 1

    def teardown(self) -> None:
        REACHED.update(self.reached | ({"collided"} if self.table.lost else set()))


REACHED: set[str] = set()


def test_no_run_of_any_history_acts_on_more_than_the_rule_allows() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Histories, settings=settings(max_examples=300, stateful_step_count=40))

    assert {"raised", "undone", "collided"} == REACHED
