"""What the ledger needs of its table: fenced conditional writes, sparse sharded indexes, singleton locks.

Each write says what it expects of the row it read (`FENCE`), so a writer that was overtaken changes nothing. `dynamo`
keeps this contract in DynamoDB, the tests' store in memory; both pass the same suite.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.row import FIELDS, SHARDS, Job, Status, encode, job_key, to_text

FENCE: Final = ("status", "attempt", "continuation", "released")
"""What every write demands to find unchanged (REQUIREMENTS K2)."""

LEASE: Final = "lease"
"""What a write demands to find unchanged besides, if the row that it read has one (REQUIREMENTS K13)."""

FINAL: Final = (*FENCE, "finished_at", "redriven_as")
"""What a removal demands to find unchanged: a finished row changes no more, but for being marked as redriven."""

WAIT_KEY: Final = "WAIT#timeout-checker"
"""The partition key of the row that says when the checker's next wait ends (REQUIREMENTS K15)."""

Cursor = dict[str, Any]
"""Where a page ended: give it back to get the next one. JSON-able."""


class DuplicateJob(Exception):
    """The job exists already; the row is unchanged."""


class LockHeld(Exception):
    """The singleton's lock belongs to another job."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of an index query."""

    jobs: tuple[Job, ...]
    next: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row's old and new version; `unchanged` names attributes beside the fence that must be as read."""

    old: Job
    new: Job
    unchanged: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of one change, or removal, among many."""

    WRITTEN = "written"
    LOST = "lost"
    ERROR = "errors"


class Store(Protocol):
    """What the ledger needs of its table."""

    def create(self, job: Job, *, instead_of: str | None = None) -> None:
        """Write a new row, and take the lock if it is a live one of a singleton type (from job `instead_of`, if given).

        Raises:
            DuplicateJob: the job_id exists.
            LockHeld: another job holds the lock.
        """
        ...

    def get(self, job_id: str) -> Job | None:
        """The row as of now (strongly consistent), or None."""
        ...

    def statuses(self, job_ids: Collection[str]) -> dict[str, Status]:
        """The status of each job that exists, as of now (strongly consistent)."""
        ...

    def apply(self, change: Change) -> Job:
        """Write the difference and return the row as it then is; a singleton's end frees its lock in the same write.

        Raises:
            LostLease: the row is not as `change.old` says.
        """
        ...

    def apply_many(self, changes: Sequence[Change]) -> list[Outcome]:
        """Write many differences, each on its own and fenced like `apply`; one's failure does not stop the rest."""
        ...

    def remove_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Remove rows of finished jobs, each only if it is as read; one's failure does not stop the rest.

        A row that is gone counts as removed: an attempt that died may have done it.

        Raises:
            ValueError: a job is not finished.
        """
        ...

    def expired(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        """Live jobs of a shard whose `expires_at` is at most `until`, and at least `since`, the longest overdue first;
        nothing else is read."""
        ...

    def due(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        """Waiting jobs of a shard whose `run_at` is at most `until`, and at least `since`, the longest due first."""
        ...

    def reserve_wait(self, until: datetime, *, earliest: datetime) -> bool:
        """Note that a wait ends at `until`, unless one is noted that ends from `earliest` to then; whether it was."""
        ...

    def free_wait(self, until: datetime) -> None:
        """Forget the wait that was to end at `until`, unless another one has been noted since."""
        ...

    def finished(
        self, status: Status, shard: int, before: datetime, *, limit: int, cursor: Cursor | None = None
    ) -> Page:
        """Jobs of a terminal status and shard that finished before a moment, oldest first."""
        ...

    def of_type(
        self,
        partition: str,
        *,
        limit: int,
        cursor: Cursor | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page:
        """Jobs of one of a type's partitions, newest first; those created from `since` to `until`, both included.
        `by_type` reads them all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a change writes: attributes set, removed, and lists that only grow."""

    set: dict[str, Any]
    remove: tuple[str, ...]
    append: dict[str, list[Any]]


_GROWING: Final = ("errors", "rescues")

_MOVING: Final = "job_type"
"""Written by every change, so that a row from before types were sharded moves to its shard (docs/adr/0023)."""


def difference(change: Change) -> Difference:
    """The attributes in which the two versions differ. A growing list is appended to, so a row read through an
    index, which lacks its older entries, can still be changed. An index lacks the lease too: the attempt's end removes
    it, whether it was read or not."""
    names = [name for name in FIELDS if getattr(change.old, name) is not getattr(change.new, name)]
    old, new = encode(change.old, names), encode(change.new, names)
    append = {name: new[name][len(old[name]) :] for name in _GROWING if len(new.get(name, ())) > len(old.get(name, ()))}
    ended = change.old.status is Status.RUNNING and change.new.status is not Status.RUNNING
    changed = {name: value for name, value in new.items() if name not in _GROWING and old.get(name) != value}
    return Difference(
        set={**changed, _MOVING: new[_MOVING]},
        remove=tuple(dict.fromkeys((*(name for name in old if name not in new), *((LEASE,) if ended else ())))),
        append=append,
    )


def expectation(change: Change) -> dict[str, Any]:
    """The attributes and values that the row must still have."""
    names = (*FENCE, *((LEASE,) if change.old.lease else ()), *change.unchanged)
    old = encode(change.old, (*FENCE, LEASE))
    return {name: old[name] for name in names}


def after(partition: str, created_at: datetime, job_id: str) -> Cursor:
    """Where a page of a type's partition that ends with this job goes on."""
    keys = {"pk": job_key(job_id), "job_type": partition, "created_at": to_text(created_at)}
    return {name: {"S": value} for name, value in keys.items()}


def removal_expectation(job: Job) -> dict[str, Any]:
    """The attributes that the row of a finished job must still have for its removal; None: must not have.

    Raises:
        ValueError: the job is not finished.
    """
    if not job.status.terminal:
        raise ValueError(f"Job {job.job_id} is {job.status}: only finished jobs are removed.")
    row = encode(job, FINAL)
    return {name: row.get(name) for name in FINAL}


def lock_key(job_type: str) -> str:
    """The partition key of a singleton type's lock (REQUIREMENTS K3)."""
    return f"LOCK#{job_type}"


def shards() -> range:
    """All shards of the sharded indexes."""
    return range(SHARDS)


def frees_lock(change: Change) -> bool:
    """Whether the change ends a singleton, whose lock goes in the same write."""
    return change.old.holds_lock and not change.new.holds_lock


def lost(change: Change) -> LostLease:
    """The error of a change whose row had moved on."""
    old = change.old
    return LostLease(
        f"Job {old.job_id} moved on from {old.status} at attempt {old.attempt}.{old.continuation}: nothing was changed."
    )
