"""The ledger's store in memory, for tests: the contract of `Store`, proven by the suite that DynamoDB passes too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from threading import RLock
from typing import Any

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.row import Job, Status, decode, encode, job_key, to_text
from lamplighter.kernel.ledger.store import (
    Change,
    Cursor,
    DuplicateJob,
    LockHeld,
    Outcome,
    Page,
    difference,
    expectation,
    lost,
    removal_expectation,
)


class MemoryStore:
    """Items by key. `listener` is told of every change, as the stream would be: (old, new)."""

    def __init__(self, listener: Callable[[Job | None, Job | None], None] | None = None) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.locks: dict[str, str] = {}
        self.wait: datetime | None = None
        self.requests = 0
        self._listener = listener
        self._lock = RLock()

    def create(self, job: Job, *, instead_of: str | None = None) -> None:
        with self._lock:
            self.requests += 1
            key = job_key(job.job_id)
            if key in self.items:
                raise DuplicateJob(job.job_id)
            if job.holds_lock:
                holder = self.locks.get(job.job_type)
                if holder not in (None, instead_of):
                    raise LockHeld(str(holder))
                self.locks[job.job_type] = job.job_id
            self.items[key] = encode(job)
            self._tell(None, job)

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            self.requests += 1
            item = self.items.get(job_key(job_id))
            return decode(item) if item else None

    def statuses(self, job_ids: Collection[str]) -> dict[str, Status]:
        with self._lock:
            self.requests += 1
            found = {job_id: self.items.get(job_key(job_id)) for job_id in job_ids}
            return {job_id: Status(item["status"]) for job_id, item in found.items() if item}

    def apply(self, change: Change) -> Job:
        with self._lock:
            self.requests += 1
            item = self.items.get(job_key(change.old.job_id))
            expected = expectation(change)
            if item is None or any(item.get(name) != value for name, value in expected.items()):
                raise lost(change)
            before = decode(item)
            diff = difference(change)
            item |= diff.set
            for name, tail in diff.append.items():
                item[name] = [*item[name], *tail]
            for name in diff.remove:
                item.pop(name, None)
            frees = change.new.status.terminal and not change.old.status.terminal
            if frees and self.locks.get(change.old.job_type) == change.old.job_id:
                del self.locks[change.old.job_type]
            after = decode(item)
            self._tell(before, after)
            return after

    def apply_many(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes = []
        for change in changes:
            try:
                self.apply(change)
            except LostLease:
                outcomes.append(Outcome.LOST)
            else:
                outcomes.append(Outcome.WRITTEN)
        return outcomes

    def remove_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        expected = [removal_expectation(job) for job in jobs]
        outcomes = []
        with self._lock:
            self.requests += 1
            for job, as_read in zip(jobs, expected, strict=True):
                key = job_key(job.job_id)
                item = self.items.get(key)
                if item is not None and any(item.get(name) != value for name, value in as_read.items()):
                    outcomes.append(Outcome.LOST)
                    continue
                if item is not None:
                    del self.items[key]
                    self._tell(decode(item), None)
                outcomes.append(Outcome.WRITTEN)
        return outcomes

    def expired(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        return self._page("live_shard", f"live#{shard}", "expires_at", until, limit, cursor, since=since)

    def due(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        return self._page("due_shard", f"due#{shard}", "run_at", until, limit, cursor, since=since)

    def reserve_wait(self, until: datetime, *, earliest: datetime) -> bool:
        with self._lock:
            self.requests += 1
            if self.wait is not None and earliest <= self.wait <= until:
                return False
            self.wait = until
            return True

    def free_wait(self, until: datetime) -> None:
        with self._lock:
            self.requests += 1
            if self.wait == until:
                self.wait = None

    def finished(
        self, status: Status, shard: int, before: datetime, *, limit: int, cursor: Cursor | None = None
    ) -> Page:
        return self._page("status_shard", f"{status}#{shard}", "finished_at", before, limit, cursor)

    def of_type(
        self,
        partition: str,
        *,
        limit: int,
        cursor: Cursor | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page:
        return self._page("job_type", partition, "created_at", until, limit, cursor, since=since, newest_first=True)

    def _page(
        self,
        key: str,
        value: str,
        sort_key: str,
        until: datetime | None,
        limit: int,
        cursor: Cursor | None,
        *,
        since: datetime | None = None,
        newest_first: bool = False,
    ) -> Page:
        with self._lock:
            self.requests += 1
            rows = [
                (item[sort_key], pk)
                for pk, item in self.items.items()
                if item.get(key) == value
                and sort_key in item
                and (until is None or item[sort_key] <= to_text(until))
                and (since is None or item[sort_key] >= to_text(since))
            ]
            rows.sort(reverse=newest_first)
            if cursor:
                at = (cursor[sort_key]["S"], cursor["pk"]["S"])
                rows = [row for row in rows if (row < at if newest_first else row > at)]
            page = rows[:limit]
            end = {sort_key: {"S": page[-1][0]}, "pk": {"S": page[-1][1]}} if len(rows) > limit else None
            return Page(jobs=tuple(decode(self.items[pk]) for _, pk in page), next=end)

    def _tell(self, old: Job | None, new: Job | None) -> None:
        if self._listener:
            self._listener(old, new)
