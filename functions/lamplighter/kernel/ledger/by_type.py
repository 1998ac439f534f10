"""The jobs of a type, newest first: merged from the partitions that hold them (REQUIREMENTS K16)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from heapq import merge
from itertools import chain, islice, repeat
from typing import Final

from lamplighter.kernel.ledger.row import Job, type_key
from lamplighter.kernel.ledger.store import Cursor, Store, shards

AT_ONCE: Final = 16
"""Partitions that are asked at the same time."""


def partitions(job_type: str) -> tuple[str, ...]:
    """The partitions of `by_type` that may hold jobs of a type: the one of rows that were written before types were
    sharded and have not changed since, and one for each shard."""
    return (job_type, *(type_key(job_type, shard) for shard in shards()))


def read_partition(
    store: Store,
    partition: str,
    *,
    limit: int,
    cursor: Cursor | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Job]:
    """All jobs of a partition from the cursor on, newest first, in pages of `limit`."""
    while True:
        page = store.of_type(partition, limit=limit, cursor=cursor, since=since, until=until)
        yield from page.jobs
        cursor = page.next
        if cursor is None:
            return


def merged(lanes: Mapping[str, Iterator[Job]]) -> Iterator[tuple[str, Job]]:
    """The jobs of several partitions, newest first, each with the partition that it was read from.

    A row that moves to its shard while it is read may be seen in both places; it comes once.
    """
    if not lanes:
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(lanes))) as pool:
        first = list(pool.map(lambda lane: list(islice(lane, 1)), lanes.values()))
    named = [
        zip(repeat(partition), chain(head, lane), strict=False)
        for head, (partition, lane) in zip(first, lanes.items(), strict=True)
    ]
    moment: datetime | None = None
    seen: set[str] = set()
    for partition, job in merge(*named, key=lambda found: found[1].created_at, reverse=True):
        if job.created_at != moment:
            moment, seen = job.created_at, set()
        if job.job_id not in seen:
            seen.add(job.job_id)
            yield partition, job


def newest(store: Store, job_type: str, *, limit: int) -> list[Job]:
    """The newest `limit` jobs of a type."""
    lanes = {partition: read_partition(store, partition, limit=limit) for partition in partitions(job_type)}
    return [job for _, job in islice(merged(lanes), limit)]
