"""How much a cleanup deletes in all of its parts: a preview counts as a run in earnest does (REQUIREMENTS A4, S3)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lamplighter.kernel.deletion import Entry, Tally
from lamplighter.media.removal import Removal
from tests.memory_s3 import MemoryS3

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def outcomes(parts: list[list[int]], *, max_bytes: int = 10**9, limit: int | None = None) -> list[str]:
    """What a preview decides about files of these sizes, a part after the other."""
    removal = Removal(
        lambda orphans: [None] * len(orphans),
        None,
        bucket="media",
        planned_at=NOW,
        max_bytes=max_bytes,
        limit=limit,
        quarantined=None,
        dry_run=True,
    )
    tally, found = Tally(), list[Any]()
    for number, sizes in enumerate(parts):
        entries = [Entry(key=f"{number}/{n}.jpg", size=size, etag="e") for n, size in enumerate(sizes)]
        decided = removal(entries, tally, False)
        tally.add(decided)
        found += decided
    return [entry.outcome for entry in found]


WOULD, FULL, HELD = "would_delete", "skipped_size_limit", "held_by_ramp"


def test_the_size_limit_is_that_of_all_parts_and_may_be_reached() -> None:
    assert outcomes([[4, 3], [3, 1]], max_bytes=10) == [WOULD, WOULD, WOULD, FULL]
    assert outcomes([[4, 3], [4], [1]], max_bytes=10) == [WOULD, WOULD, FULL, FULL], "nothing is squeezed in behind"
    assert outcomes([[10]], max_bytes=10) == [WOULD]
    assert outcomes([[11]], max_bytes=10) == [FULL]


@pytest.mark.parametrize(("limit", "done"), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 5), (6, 5), (None, 5)])
def test_the_ramp_holds_back_what_is_above_it_over_all_parts(limit: int | None, done: int) -> None:
    assert outcomes([[1, 1], [1], [1, 1]], limit=limit) == [WOULD] * done + [HELD] * (5 - done)


@pytest.mark.parametrize("key", ["a.jpg", "a\rb.jpg"], ids=["in a batch", "by itself"])
@pytest.mark.parametrize("operation", [None, "DeleteObjects", "DeleteObject"])
def test_a_file_that_is_replaced_at_the_last_moment_is_kept(key: str, operation: str | None) -> None:
    """After it was looked at once more: the deletion itself names the state that was planned for."""
    s3 = MemoryS3()
    s3.put("media", key, b"planned", modified=NOW)
    client, version = s3.client(), s3.buckets["media"][key][-1]
    if operation:
        replaced = lambda **_: s3.put("media", key, b"another")  # noqa: E731
        client.meta.events.register(f"before-call.s3.{operation}", replaced)
    removal = Removal(
        lambda orphans: [None] * len(orphans),
        client,
        bucket="media",
        planned_at=NOW,
        max_bytes=100,
        limit=None,
        quarantined=None,
        dry_run=False,
    )
    entry = Entry(key=key, size=7, etag=version.etag, last_modified=NOW.isoformat())
    (decided,) = removal([entry], Tally(), False)
    own_request = "\r" in key
    hit = operation == ("DeleteObject" if own_request else "DeleteObjects")
    assert decided.outcome == ("kept_changed" if hit else "deleted")
    assert s3.deleted == ([] if hit else [key])
