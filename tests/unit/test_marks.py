"""When a resource is marked, left alone and acted upon (REQUIREMENTS C13)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.marks import KEEP, STACK_TAG, Case, Mark, decide, excluded
from lamplighter.kernel.cloud import Remedy

NOW = datetime(2026, 11, 22, 9, 15, 30, tzinfo=UTC)
STOP = Remedy(action="stop", after_days=7, apply=True)
KEY = "lamplighter:idle_cpu"
DUE = {KEY: "stop after 2026-11-22T09:15Z"}
IDLE = Case(verdict="offends", tags={}, open_since=NOW - timedelta(days=8))


def decided(case: Case, *, remedy: Remedy = STOP, now: datetime = NOW) -> tuple[str, str]:
    decision = decide(case, "idle_cpu", remedy, now=now, stack="lamplighter")
    return decision.step, decision.reason or str(decision.mark or "")


def test_what_offends_is_marked_first() -> None:
    assert decided(IDLE) == ("mark", "stop after 2026-11-29T09:15Z")


def test_without_a_wait_it_is_still_marked_first() -> None:
    assert decided(IDLE, remedy=Remedy(action="stop", after_days=0)) == ("mark", "stop after 2026-11-22T09:15Z")


def test_a_mark_that_only_tells_says_since_when() -> None:
    remedy = Remedy(action="tag")
    assert decided(IDLE, remedy=remedy) == ("mark", "found 2026-11-22T09:15Z")
    found = replace(IDLE, tags={KEY: "found 2026-01-01T00:00Z"})
    assert decided(found, remedy=remedy, now=NOW + timedelta(days=999)) == ("wait", "It is marked.")


def test_it_is_acted_upon_once_its_time_has_come_and_not_before() -> None:
    early = replace(IDLE, tags={KEY: "stop after 2026-11-22T09:16Z"})
    assert decided(early) == ("wait", "Its time comes at 2026-11-22T09:16Z.")
    assert decided(early, now=NOW + timedelta(minutes=1)) == ("act", "stop after 2026-11-22T09:16Z")
    moment = NOW.replace(minute=16, second=0)
    assert decided(early, now=moment - timedelta(microseconds=1))[0] == "wait"
    assert decided(early, now=moment)[0] == "act"


def test_a_mark_with_an_earlier_moment_does_not_shorten_the_wait() -> None:
    """Who may write tags may not thereby have things deleted at once."""
    fresh = replace(IDLE, tags={KEY: "stop after 2020-01-01T00:00Z"}, open_since=NOW - timedelta(days=6))
    assert decided(fresh) == ("wait", "Its time comes at 2026-11-23T09:15Z.")


@pytest.mark.parametrize(
    "value",
    [
        *("", "no, thanks", "stop", "stop after today", "stop after 2026-11-22", "stop  after 2026-11-22T09:15Z"),
        *("stop after 2026-11-22T9:15Z", "stop after 2026-11-1T09:15Z", "stop 2026-11-22T09:15Z", "stop after"),
        *("found after 2026-11-22T09:15Z", "sleep after 2026-11-22T09:15Z"),
    ],
)
def test_a_mark_that_somebody_rewrote_is_not_acted_upon(value: str) -> None:
    assert decided(replace(IDLE, tags={KEY: value})) == ("keep", f"Somebody rewrote its mark: {KEY} is {value!r}.")


def test_a_mark_that_promises_something_else_is_written_anew() -> None:
    was = replace(IDLE, tags={KEY: "found 2020-01-01T00:00Z"})
    assert decided(was) == ("mark", "stop after 2026-11-29T09:15Z")


def test_what_became_compliant_is_unmarked() -> None:
    assert decided(replace(IDLE, verdict="in_order", tags=DUE))[0] == "unmark"
    assert decided(replace(IDLE, verdict="in_order"))[0] == "none"


def test_a_mark_that_is_not_ours_stays_where_it_is() -> None:
    assert decided(replace(IDLE, verdict="in_order", tags={KEY: "mine"}))[0] == "none"


def test_what_an_exception_covers_is_unmarked_and_kept() -> None:
    exempted = replace(IDLE, exempted="An exception covers it.")
    assert decided(exempted) == ("keep", "An exception covers it.")
    assert decided(replace(exempted, tags=DUE)) == ("unmark", "An exception covers it.")


def test_unknown_means_keep() -> None:
    assert decided(replace(IDLE, verdict="unknown", tags=DUE, reason="No datapoints.")) == ("keep", "No datapoints.")


def test_what_no_scan_has_stored_is_kept() -> None:
    assert decided(replace(IDLE, open_since=None, tags=DUE))[0] == "keep"


def test_the_stack_never_acts_upon_itself() -> None:
    """FAILURES 14: the cleanup stack deleted itself (aws-nuke-account-cleanser-example #4)."""
    own = replace(IDLE, tags={**DUE, STACK_TAG: "lamplighter"})
    assert decided(own) == ("keep", "It belongs to the stack lamplighter, which this is a part of.")
    assert decided(replace(IDLE, tags={**DUE, STACK_TAG: "shop"}))[0] == "act"


@pytest.mark.parametrize("value", ["", "no", "until spring"])
def test_what_is_tagged_keep_is_never_touched(value: str) -> None:
    assert decided(replace(IDLE, tags={**DUE, KEEP: value})) == ("keep", f"It is tagged {KEEP}.")


moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
marks = st.builds(
    lambda action, after: str(Mark(action=action, after=after.replace(second=0, microsecond=0))),
    st.sampled_from(["tag", "stop", "revoke"]),
    moments,
)
tags = st.dictionaries(
    st.sampled_from([KEY, KEEP, STACK_TAG, "Owner", "lamplighter:idle_memory"]),
    marks | st.text("stop after 2", max_size=8) | st.just("lamplighter"),
)
cases = st.builds(
    Case,
    verdict=st.sampled_from(["offends", "unknown", "in_order"]),
    tags=tags,
    open_since=st.none() | moments,
    exempted=st.none() | st.just("excepted"),
)
remedies = st.builds(
    Remedy, action=st.sampled_from(["tag", "stop", "revoke"]), after_days=st.integers(0, 90), apply=st.booleans()
)


@given(case=cases, remedy=remedies, now=moments)
def test_nothing_is_acted_upon_but_what_was_announced_and_still_offends(
    case: Case, remedy: Remedy, now: datetime
) -> None:
    decision = decide(case, "idle_cpu", remedy, now=now, stack="lamplighter")
    untouchable = excluded(case.tags, "lamplighter") or case.verdict == "unknown"
    if decision.step in {"mark", "act", "unmark"}:
        assert not untouchable
    if decision.step in {"mark", "act"}:
        assert case.verdict == "offends" and not case.exempted and case.open_since
    if decision.step == "act":
        mark = Mark.parse(case.tags[KEY])
        assert mark and mark.action == remedy.action != "tag"
        assert mark.after <= now and case.open_since
        assert now - case.open_since >= timedelta(days=remedy.after_days)
    if decision.step == "unmark":
        assert Mark.parse(case.tags[KEY])
    if decision.step == "mark":
        assert decision.mark and Mark.parse(str(decision.mark)) == decision.mark


@given(case=cases, remedy=remedies, now=moments, later=st.timedeltas(timedelta(), timedelta(days=999)))
def test_what_is_due_stays_due(case: Case, remedy: Remedy, now: datetime, later: timedelta) -> None:
    steps: list[Any] = [decide(case, "idle_cpu", remedy, now=at, stack="s").step for at in (now, now + later)]
    assert steps[0] == steps[1] or steps == ["wait", "act"]


@given(marks)
def test_a_mark_reads_back_as_it_was_written(value: str) -> None:
    assert str(Mark.parse(value)) == value
