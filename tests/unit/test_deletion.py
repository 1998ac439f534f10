"""The governor and the tally of `lamplighter.kernel.deletion`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.deletion import (
    NAMED_FAILURES,
    SHOWN_GROUPS,
    Entry,
    GovernorLimits,
    Group,
    Manifest,
    Measure,
    Plan,
    SourceCount,
    Tally,
    refusals,
    warnings,
)

LIMITS = GovernorLimits(max_share=0.2, max_reference_shrink=0.2)


def count(matched: int, unmatched: int = 0, column: str = "t.c", **more: Any) -> SourceCount:
    values = matched + unmatched + more.get("outside", 0)
    return SourceCount(column=column, values=values, matched=matched, unmatched=unmatched, **more)


FINE = Measure(scanned=100, planned=20, sources=(count(80),), baseline={"t.c": 100})


def test_a_plan_at_every_limit_passes() -> None:
    limit = count(75, 5, max_unmatched=5, unreadable=2, max_unreadable=2)

    assert refusals(FINE, LIMITS) == []
    assert refusals(replace(FINE, sources=(limit,)), LIMITS) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"planned": 21}, "21 of 100 files (21%) are orphans; 20% may be."),
        ({"sources": (count(79),)}, "t.c holds 79 references, 100 at the last accepted run: more than 20% fewer."),
        (
            {"sources": (count(500, column="u.d"),)},
            "t.c holds 0 references, 100 at the last accepted run: more than 20% fewer.",
        ),
        ({"sources": (count(0),), "baseline": None}, "There are no references at all in t.c"),
        ({"sources": (count(0, outside=90),)}, "No reference in t.c names a file that exists"),
        ({"sources": (count(80, 1),)}, "1 of 81 references in t.c name no file that exists; 0 may (max_unmatched)"),
        (
            {"sources": (count(80, 6, max_unmatched=5),)},
            "6 of 86 references in t.c name no file that exists; 5 may (max_unmatched)",
        ),
        (
            {"sources": (count(80, 2, max_unmatched=5, unreadable=1),)},
            "2 of 82 references in t.c have 1 without the extension of a media file; 0 may (max_unreadable)",
        ),
    ],
)
def test_each_limit_is_guarded_by_a_sentence_of_its_own(change: dict[str, Any], sentence: str) -> None:
    found = refusals(replace(FINE, **change), LIMITS)

    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize(
    ("configured", "sentence"),
    [
        (count(0), "There are no references at all in t.c: everything looks orphaned."),
        (count(0, outside=90), "No reference in t.c names a file that exists"),
        (count(0, 3, max_unmatched=3), "No reference in t.c names a file that exists"),
    ],
)
def test_a_column_that_only_the_run_adds_excuses_no_configured_one(configured: SourceCount, sentence: str) -> None:
    """REQUIREMENTS S2: references that a caller adds may only tighten."""
    measure = replace(FINE, sources=(configured, count(900, column="u.d")), baseline=None)

    (found,) = refusals(replace(measure, configured=frozenset({"t.c"})), LIMITS)

    assert found.startswith(sentence)
    assert found.endswith("Columns that only the run names do not count here.")
    assert refusals(replace(measure, configured=frozenset({"t.c", "u.d"})), LIMITS) == []
    assert refusals(measure, LIMITS) == [], "with allow_override, the columns of the run are the configured ones"


@pytest.mark.parametrize(("kept", "is_refused"), [(0, False), (1, True)])
def test_what_only_added_columns_keep_counts_into_the_share(kept: int, is_refused: bool) -> None:
    """REQUIREMENTS S2: a column that a run adds does not bring the share of orphans below its limit."""
    most = replace(FINE, scanned=100, planned=int(100 * LIMITS.max_share))

    found = refusals(replace(most, kept_by_others=kept), LIMITS)

    assert bool(found) == is_refused
    assert not found or found[0].endswith("Files that only columns of the run keep count as orphans here.")


@pytest.mark.parametrize("values", [99, 101])
def test_an_account_that_does_not_add_up_is_none(values: int) -> None:
    """FAILURES 19: each value is matched, outside or unmatched, and none is left over."""
    with pytest.raises(ValueError, match=f"{values} values are not 80 matched"):
        SourceCount(column="t.c", values=values, matched=80, outside=15, unmatched=5)
    assert SourceCount(column="t.c", values=100, matched=80, outside=15, unmatched=5).values == 100


def test_a_refusal_groups_what_it_cannot_match_and_says_what_to_declare() -> None:
    groups = [
        Group(start="gravatar.com/avatar", count=30, examples=["https://gravatar.com/avatar/1", "x", "y"]),
        Group(start="static/", count=10, examples=["static/a.jpg"]),
    ]

    (sentence,) = refusals(replace(FINE, sources=(count(80, 40, groups=groups),)), LIMITS)

    assert "gravatar.com/avatar (30): https://gravatar.com/avatar/1, x, y; static/ (10): static/a.jpg." in sentence
    assert all(word in sentence for word in ("strip", "elsewhere", "folder", "max_unmatched"))


def test_a_refusal_counts_the_groups_that_it_does_not_list() -> None:
    """Whoever declared those that are listed would else believe that the next run passes."""
    groups = [Group(start=f"{n}/", count=9, examples=["x"]) for n in range(SHOWN_GROUPS + 1)]

    for shown, more in ((groups[:-1], None), (groups, "; and 1 more groups.")):
        (sentence,) = refusals(replace(FINE, sources=(count(80, 90, groups=shown),)), LIMITS)
        assert (more in sentence) if more else ("more groups" not in sentence)


def test_unmatched_references_above_one_percent_are_accepted_with_a_warning() -> None:
    accepted = [replace(FINE, sources=(count(990 - n, n, max_unmatched=99),)) for n in (9, 10)]

    assert [refusals(one, LIMITS) for one in accepted] == [[], []]
    assert [len(warnings(one)) for one in accepted] == [0, 1]
    assert "10 of 990 references in t.c (1.0%) name no file; max_unmatched accepts them." in warnings(accepted[1])[0]


def test_the_first_run_has_no_baseline_to_shrink_from() -> None:
    assert refusals(replace(FINE, baseline=None), LIMITS) == []


def test_an_empty_bucket_is_no_reason_to_refuse() -> None:
    assert refusals(replace(FINE, scanned=0, planned=0), LIMITS) == []


def test_a_count_that_does_not_add_up_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"t\.c: 9 values are not 5 matched"):
        SourceCount(column="t.c", values=9, matched=5, outside=1, unmatched=2)


OLD_COUNT = {"column": "t.c", "values": 9, "mapped": 7, "unmapped": 2, "unmapped_examples": ["/ (2, 0 of 2)"]}
OLD_PLAN = {
    "job_id": "j",
    "scope": "s",
    "planned_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:00Z",
    "parts": 1,
    "references": {"t.c": 9},
    "refusals": [],
    "accepted": True,
    "facts": {},
}
OLD_MANIFEST = {name: OLD_PLAN[name] for name in ("job_id", "scope", "planned_at", "refusals", "accepted")} | {
    "finished_at": "2026-01-01T00:00:00Z",
    "dry_run": False,
    "complete": True,
    "references": {"t.c": 9},
    "parts": [{"key": "k", "sha256": "0", "entries": 3}],
}


def test_what_was_written_down_before_is_still_read() -> None:
    old = SourceCount.model_validate(OLD_COUNT)

    assert (old.matched, old.unmatched, old.unmatched_examples) == (7, 2, ["/ (2, 0 of 2)"])
    assert Plan.model_validate(OLD_PLAN).sources == []
    assert Manifest.model_validate(OLD_MANIFEST).missing_files == 0


@given(
    scanned=st.integers(0, 10**6),
    planned=st.integers(0, 10**6),
    matched=st.integers(0, 10**6),
    before=st.none() | st.integers(0, 10**6),
    unmatched=st.integers(0, 10),
)
def test_more_orphans_or_fewer_references_never_turn_a_refusal_into_consent(
    scanned: int, planned: int, matched: int, before: int | None, unmatched: int
) -> None:
    planned = min(planned, scanned)
    measure = Measure(
        scanned=scanned,
        planned=planned,
        sources=(count(matched, unmatched, max_unmatched=5),),
        baseline=None if before is None else {"t.c": before},
    )
    if refusals(measure, LIMITS):
        worse = (count(max(matched - 1, 0), unmatched + 1, max_unmatched=5),)
        assert refusals(replace(measure, planned=min(planned + 1, scanned), sources=worse), LIMITS)


def test_a_tally_names_the_first_failures_and_counts_all() -> None:
    tally = Tally()
    entry = Entry(key="k", size=2, etag="e", last_modified="", outcome="failed", error="denied")

    tally.add([entry] * (NAMED_FAILURES + 5))

    assert tally.count["failed"] == NAMED_FAILURES + 5
    assert tally.size["failed"] == 2 * (NAMED_FAILURES + 5)
    assert tally.failures == ["k: denied"] * NAMED_FAILURES
