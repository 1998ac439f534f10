"""Pages of jobs, newest first, of one type or merged from several, filtered.

A page's cursor says when the last job that was looked at was created, and which jobs of that very millisecond were
passed: no job is given twice or left out, however many share a moment, and jobs made meanwhile do not shift a page.

A type's jobs are in several partitions. A cursor from before there were several names the type itself: the jobs of its
moment that have since moved to a shard are given again.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self

from lamplighter.kernel.ledger.by_type import merged, partitions, read_partition
from lamplighter.kernel.ledger.row import SHARDS, Job, Status, Trigger, from_text, to_text
from lamplighter.kernel.ledger.store import Store, after

_ID: Final = re.compile(r"[\w#-]{1,64}", re.ASCII)

LOOKED_AT: Final = 1_000
"""Jobs that one page looks at, at most, while it searches for those that the filters let through."""

SMALLEST_READ: Final = 10
"""Jobs that a partition is asked for at once, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a list is of; None lets all through."""

    status: Status | None = None
    trigger: Trigger | None = None
    since: datetime | None = None
    until: datetime | None = None

    def let_through(self, job: Job) -> bool:
        """Whether the job is wanted; the times are left to the store."""
        return self.status in (None, job.status) and self.trigger in (None, job.trigger)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: at a moment, and after the last job of that moment in each partition that had one."""

    at: datetime
    passed: dict[str, str] = field(default_factory=dict)
    """Job id by partition."""

    def moved(self, partition: str, job: Job) -> Cursor:
        """The cursor past `job`, which was read from `partition`."""
        passed = self.passed if job.created_at == self.at else {}
        return Cursor(job.created_at, {**passed, partition: job.job_id})

    def __str__(self) -> str:
        text = json.dumps([to_text(self.at), self.passed], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            at, passed = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            if to_text(from_text(at)) != at or not all(_ID.fullmatch(job_id) for job_id in dict(passed).values()):
                raise ValueError
            return cls(from_text(at), dict(passed))
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise ValueError("takes the `next` of the page before, as it is") from None


def page(
    store: Store, job_types: Iterable[str], filters: Filters, *, limit: int, cursor: Cursor | None = None
) -> tuple[list[Job], Cursor | None]:
    """Up to `limit` jobs, and the cursor of the next page, None after the last.

    A page that looked at `LOOKED_AT` jobs may hold fewer, even none, and still have a next one.
    """
    each = max(SMALLEST_READ, 2 * limit // SHARDS)  # what a partition is likely to have of a page
    names = [partition for job_type in job_types for partition in partitions(job_type)]
    lanes = {name: _lane(store, name, filters, limit=each, cursor=cursor) for name in names}
    found: list[Job] = []
    for looked_at, (partition, job) in enumerate(merged(lanes)):
        if len(found) == limit or looked_at == LOOKED_AT:
            return found, cursor
        cursor = (cursor or Cursor(job.created_at)).moved(partition, job)
        if filters.let_through(job):
            found.append(job)
    return found, None


def _lane(store: Store, partition: str, filters: Filters, *, limit: int, cursor: Cursor | None) -> Iterator[Job]:
    """The jobs of one partition from the cursor on."""
    until, place = filters.until, None
    if cursor:
        until = min(filter(None, (until, cursor.at)))
        # With other filters than those of the page before, DynamoDB would refuse to start outside of the range.
        if (passed := cursor.passed.get(partition)) and until == cursor.at:
            place = after(partition, cursor.at, passed)
    if filters.since and until and filters.since > until:
        return
    yield from read_partition(store, partition, limit=limit, cursor=place, since=filters.since, until=until)
