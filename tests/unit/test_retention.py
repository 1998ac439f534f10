"""`lamplighter.kernel.retention`: what needs no database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.retention import Archive, Delete, Parent, Rule, Set, _cutoff
from lamplighter.kernel.retention.batches import GROWTH, Blocks, Pace, Place, Rows, Span
from lamplighter.kernel.retention.clock import Clock, clock_of

DAY = timedelta(days=1)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
AT = Clock(name="at", kind="timestamptz", step=MICROSECOND)


@pytest.mark.parametrize(
    "contradiction",
    [
        {"clock": None},
        {"clock": None, "action": Archive("attic")},
        {"clock": None, "where": "id > 3"},
        {"clock": None, "where": "id > 3", "action": Archive("attic")},
        {"floor": 2 * DAY},
        {"keep": -DAY, "floor": -DAY},
        {"where": "true) OR (true"},
        {"where": "note = ')' -- (\n) OR (true"},
    ],
)
def test_a_rule_that_contradicts_itself_cannot_be_made(contradiction: dict[str, Any]) -> None:
    sound: dict[str, Any] = {"name": "things", "table": "things", "clock": "at", "keep": DAY, "action": Delete()}
    Rule(**sound)

    with pytest.raises(ValueError, match=r"^things: "):
        Rule(**(sound | contradiction))


def test_only_a_set_can_do_without_a_clock() -> None:
    Rule(name="things", table="things", clock=None, action=Set({"seen": True}), where="note IN (')', '(') -- )")


def test_it_is_known_which_rules_read_other_tables() -> None:
    plain = Rule(name="things", table="things", clock="at", keep=DAY, action=Delete())
    parent = Parent(table="users", column="user_id")

    assert not plain.reads_tables
    assert replace(plain, orphan_of=parent).reads_tables
    assert replace(plain, where="NOT EXISTS (SELECT FROM users)").reads_tables
    assert not replace(plain, where="note = 'exists (select)'").reads_tables


@pytest.mark.parametrize(
    ("unit", "column_type", "kind", "step"),
    [
        ("timestamp", "timestamp with time zone", "timestamptz", MICROSECOND),
        ("timestamp", "timestamp(6) without time zone", "timestamptz", MICROSECOND),
        ("timestamp", "date", "date", DAY),
        ("date", "date", "date", DAY),
        ("seconds", "integer", "bigint", timedelta(seconds=1)),
        ("seconds", "double precision", "bigint", timedelta(seconds=1)),
        ("milliseconds", "numeric(20,0)", "bigint", timedelta(milliseconds=1)),
    ],
)
def test_a_clock_has_the_step_of_its_unit(unit: Any, column_type: str, kind: Any, step: timedelta) -> None:
    assert clock_of("at", unit, column_type) == Clock(name="at", kind=kind, step=step)


@pytest.mark.parametrize(
    ("unit", "column_type"),
    [
        *(
            ("timestamp", "integer"),
            ("timestamp", "time without time zone"),
            ("date", "timestamp"),
            ("seconds", "date"),
        ),
        *(("seconds", "smallint"), ("milliseconds", "real"), ("milliseconds", "text"), ("seconds", "timestamp")),
    ],
)
def test_a_column_of_another_type_is_no_clock(unit: Any, column_type: str) -> None:
    assert clock_of("at", unit, column_type) is None


def test_keep_is_at_least_the_floor_and_the_floor_will_do() -> None:
    """FAILURES 10: whatever a caller asks for."""
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, floor=DAY, action=Delete())
    assert _cutoff(rule, NOON, DAY) == NOON - DAY
    assert _cutoff(rule, NOON, 30 * DAY) == NOON - 30 * DAY
    for less in (DAY - MICROSECOND, timedelta(), -DAY):
        with pytest.raises(Permanent, match=r"^things: rows are kept for at least 1 day"):
            _cutoff(rule, NOON, less)
    with pytest.raises(Permanent, match="before the calendar begins"):
        _cutoff(rule, NOON, timedelta(days=10**6))


places = st.one_of(
    st.tuples(st.integers(0, 10**7), st.integers(1, 10**7)).map(lambda pair: Blocks(pair[0], sum(pair))),
    st.integers(1, 10**15).map(lambda length: Span(AT, NOON, NOON + length * MICROSECOND)),
    st.lists(st.uuids().map(str), min_size=1, max_size=50, unique=True).map(Rows),
)


def length(place: Place) -> int:
    if isinstance(place, Rows):
        return len(place.tids)
    if isinstance(place, Span):
        return (place.end - place.first) // MICROSECOND
    return place.end - place.first


@given(place=places)
def test_the_halves_of_a_place_are_the_place(place: Place) -> None:
    if length(place) == 1:
        assert place.halves() == ()
        return

    match place, *place.halves():
        case Rows(tids), Rows(first), Rows(second):
            assert [*first, *second] == tids
        case Blocks(start, end) | Span(_, start, end), first, second:
            assert (first.first, first.end, second.end) == (start, second.first, end)
    assert all(0 < length(half) < length(place) for half in place.halves())


def test_a_place_is_halved_to_single_rows_in_few_steps() -> None:
    place: Place = Blocks(0, 1024 * 2048)
    steps = 0
    while halves := place.halves():
        place, steps = halves[steps % 2], steps + 1
    assert (length(place), steps) == (1, 21)


@given(costs=st.lists(st.floats(1e-7, 1e-2), min_size=1, max_size=30))
def test_a_batch_is_never_sized_beyond_what_the_last_ones_allow(costs: list[float]) -> None:
    """Whatever a unit costs, the next batch is within the goal at that cost, the growth and the limit."""
    pace = Pace(size=64, goal=0.06, limit=1024)
    for cost in costs:
        size = pace.size
        pace.learn(size, size * cost)
        assert pace.size * cost <= 0.06 * 1.000001
        assert 0 < pace.size <= min(GROWTH * size, 1024)


def test_the_pace_comes_close_to_the_goal_and_recovers_from_a_slow_moment() -> None:
    pace = Pace(size=10, goal=0.06)
    for _ in range(10):
        pace.learn(pace.size, pace.size * 1e-5)
    assert pace.size == pytest.approx(6000)
    pace.learn(pace.size, pace.size * 1e-3)
    assert pace.size == pytest.approx(60)
    for _ in range(50):
        pace.learn(pace.size, pace.size * 1e-5)
    assert pace.size == pytest.approx(6000)


def test_a_batch_that_was_cancelled_halves_the_next() -> None:
    pace = Pace(size=1000, goal=0.06)
    pace.halve()
    assert pace.size == 500
