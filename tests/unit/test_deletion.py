"""The governor and the tally of `lamplighter.kernel.deletion`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.deletion import NAMED_FAILURES, Entry, Limits, Measure, Tally, refusals

LIMITS = Limits(max_share=0.5, max_reference_shrink=0.2, max_unmapped=0)
FINE = Measure(scanned=100, planned=50, references={"t.c": 80}, unmapped={"t.c": 0}, baseline={"t.c": 100})


def test_a_plan_at_every_limit_passes() -> None:
    assert refusals(FINE, LIMITS) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"planned": 51}, "51 of 100 files (51%) are orphans; 50% may be."),
        ({"references": {"t.c": 79}}, "t.c holds 79 references, 100 at the last accepted run: more than 20% fewer."),
        ({"references": {"u.d": 500}}, "t.c holds 0 references, 100 at the last accepted run: more than 20% fewer."),
        ({"references": {"t.c": 0}, "baseline": None}, "There are no references at all in t.c"),
        ({"unmapped": {"t.c": 1}}, "1 references in t.c cannot be mapped to keys; 0 may be."),
    ],
)
def test_each_limit_is_guarded_by_a_sentence_of_its_own(change: dict[str, object], sentence: str) -> None:
    found = refusals(replace(FINE, **change), LIMITS)  # type: ignore[arg-type]

    assert len(found) == 1
    assert sentence in found[0]


def test_the_first_run_has_no_baseline_to_shrink_from() -> None:
    assert refusals(replace(FINE, baseline=None), LIMITS) == []


def test_an_empty_bucket_is_no_reason_to_refuse() -> None:
    assert refusals(replace(FINE, scanned=0, planned=0), LIMITS) == []


@given(
    scanned=st.integers(0, 10**6),
    planned=st.integers(0, 10**6),
    now=st.integers(0, 10**6),
    before=st.none() | st.integers(0, 10**6),
    unmapped=st.integers(0, 10),
)
def test_more_orphans_or_fewer_references_never_turn_a_refusal_into_consent(
    scanned: int, planned: int, now: int, before: int | None, unmapped: int
) -> None:
    planned = min(planned, scanned)
    measure = Measure(
        scanned=scanned,
        planned=planned,
        references={"t.c": now},
        unmapped={"t.c": unmapped},
        baseline=None if before is None else {"t.c": before},
    )
    if refusals(measure, LIMITS):
        worse = replace(measure, planned=min(planned + 1, scanned), references={"t.c": max(now - 1, 0)})
        assert refusals(worse, LIMITS)


def test_a_tally_names_the_first_failures_and_counts_all() -> None:
    tally = Tally()
    entry = Entry(key="k", size=2, etag="e", last_modified="", outcome="failed", error="denied")

    tally.add([entry] * (NAMED_FAILURES + 5))

    assert tally.count["failed"] == NAMED_FAILURES + 5
    assert tally.size["failed"] == 2 * (NAMED_FAILURES + 5)
    assert tally.failures == ["k: denied"] * NAMED_FAILURES
