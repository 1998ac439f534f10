"""`unattached_volumes`: counted from when a scan first saw it, as EC2 does not say since when (REQUIREMENTS C5)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.checks.unattached_volumes import check
from lamplighter.cloud.inventory import Volume
from tests.inventories import DAY, NOW, inventory, judged, silent, volume

SECOND = timedelta(seconds=1)


def loose(**said: Any) -> Volume:
    return volume(**{"state": "available", "instances": (), "created_at": NOW - 100 * DAY, "size_gb": 100, **said})


def test_none() -> None:
    assert silent(judged(check, inventory()))


@pytest.mark.parametrize(
    "said",
    [{"state": "in-use", "instances": ("i-1",)}, {"state": "error"}, {"state": "creating"}, {"instances": ("i-1",)}],
)
def test_what_is_not_free_is_in_order(said: dict[str, Any]) -> None:
    assert silent(judged(check, inventory(volumes=(loose(**said),))))


def test_one_that_was_seen_for_long_is_found() -> None:
    since = NOW - 20 * DAY

    (finding,) = judged(check, inventory(volumes=(loose(),)), unattached_since={"vol-1": since}).findings

    assert finding.monthly_usd == pytest.approx(8.8)
    assert (finding.confidence, finding.since) == (1, since)
    assert finding.evidence == {
        "type": "gp3",
        "size_gb": 100,
        "created_at": "2026-08-14T12:00:00+00:00",
        "unattached_since": "2026-11-02T12:00:00+00:00",
        "unattached_days": 20,
        "limit_days": 14,
        "price_source": "price file of 2026-11-22, eu-west-1 estimated by region factor",
    }


@pytest.mark.parametrize(("since", "found"), [(NOW - 14 * DAY, 1), (NOW - 14 * DAY + SECOND, 0)])
def test_fourteen_days_are_enough_and_a_second_less_is_not(since: Any, found: int) -> None:
    said = judged(check, inventory(volumes=(loose(),)), unattached_since={"vol-1": since})

    assert (len(said.findings), said.unknown) == (found, ())


def test_one_that_is_seen_for_the_first_time_has_only_begun() -> None:
    assert silent(judged(check, inventory(volumes=(loose(),)), unattached_since={"vol-2": NOW - 90 * DAY}))


@pytest.mark.parametrize(("created", "found"), [(NOW - 14 * DAY, 1), (NOW - 14 * DAY + SECOND, 0)])
def test_where_nobody_watched_the_age_is_all_there_is(created: Any, found: int) -> None:
    findings = judged(check, inventory(volumes=(loose(created_at=created),))).findings

    assert [(finding.confidence, finding.since) for finding in findings] == [(0.5, None)] * found
    for finding in findings:
        assert finding.evidence["unattached_since"] == "unknown: nobody has watched it; it is unattached now"


@given(created=st.integers(0, 40), since=st.none() | st.integers(0, 40), watched=st.booleans())
def test_none_is_found_that_is_younger_than_the_limit(created: int, since: int | None, watched: bool) -> None:
    seen = {"vol-1": NOW - since * DAY} if since is not None else {}

    said = judged(
        check, inventory(volumes=(loose(created_at=NOW - created * DAY),)), unattached_since=seen if watched else None
    )

    assert bool(said.findings) == (created >= 14 and (not watched or (since is not None and since >= 14)))
