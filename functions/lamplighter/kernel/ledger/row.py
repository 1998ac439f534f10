"""The job row: what the ledger knows of one job, and how it is spelled in the table.

A row is immutable here; `transitions` makes a new one from an old one and `store` writes the difference, fenced.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

SHARDS: Final = 10
"""Partitions of each index, and of each job type in one. A partition takes 1 000 write units a second (Amazon DynamoDB,
"Best practices for partition keys"); so many take 4 000 changes a second of one type (K16). A row that was written
when there were fewer stays where it is until its next change of status."""

TTL_BACKSTOP: Final = timedelta(days=90)
"""DynamoDB TTL of a finished row: only a backstop, a job keeps the promised retention (REQUIREMENTS B3)."""


PAYLOAD_LIMIT: Final = 100_000
"""Characters of JSON that a row takes as payload; what is larger belongs in S3."""


_OUTSIDE: Final = frozenset({"bus", "none"})
"""Targets of jobs that workers outside Lambda run."""


class Status(StrEnum):
    """Where a job stands (REQUIREMENTS K1)."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether a job in this status can never change again."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Trigger(StrEnum):
    """What made the job (REQUIREMENTS K1)."""

    SCHEDULE = "schedule"
    API = "api"
    CLI = "cli"
    EVENT = "event"
    RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a job type is timed, retried and started. It travels on the row, so the checker needs no catalogue.

    `target` says who starts a released job: `lambda:<job>` and `states:<machine>` are names below the stack's,
    `bus` puts an event for a worker outside Lambda, and `none` leaves it to a worker that polls. An attempt that sent
    a heartbeat and then none for as long as `heartbeat` is dead before its deadline.
    """

    timeout: timedelta
    target: str = "none"
    pickup: timedelta = timedelta(minutes=10)
    heartbeat: timedelta | None = None
    max_attempts: int = 3
    backoff_base: timedelta = timedelta(seconds=30)
    backoff_cap: timedelta = timedelta(minutes=15)
    poison_rescues: int = 3
    poison_window: timedelta = timedelta(hours=72)
    max_continuations: int = 500
    singleton: bool = False
    critical: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why one attempt ended without success (REQUIREMENTS K1)."""

    type: str
    message: str
    attempt: int
    at: datetime
    reason: str
    """`error`, `permanent`, `deadline`, `heartbeat`, `pickup`, `execution` or `continuations`."""
    stack_trace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. Times are aware UTC; `payload`, `result` and `checkpoint` are JSON objects."""

    job_id: str
    job_type: str
    status: Status
    policy: Policy
    created_at: datetime
    run_at: datetime
    deadline_at: datetime | None = None
    """When the attempt is dead (running), or should have been picked up (released); None while waiting or finished."""
    released: bool = True
    """Whether a pending job may be started now; False while it waits for `run_at`."""
    attempt: int = 1
    continuation: int = 0
    """How often this job went on from a checkpoint; with `attempt`, the fence of every write (K2, K8)."""
    lease: str | None = None
    """Of an attempt that a worker outside Lambda runs: the SHA-256 (hex) of its lease token, which the row never holds
    (K13). Part of the fence while it is set."""
    trigger: Trigger = Trigger.CLI
    schedule: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    finished_at: datetime | None = None
    progress: int = 0
    message: str = ""
    result: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    errors: tuple[AttemptError, ...] = ()
    rescues: tuple[datetime, ...] = ()
    """When the job was found expired (the poison guard's evidence, K10)."""
    cancel_requested: bool = False
    execution_arn: str | None = None
    input_keys: tuple[str, ...] = ()
    output_keys: tuple[str, ...] = ()
    dead_letter: str | None = None
    """Why the job is on the dead-letter list: `poison`, `exhausted` or `permanent`; None if it is not."""
    redriven_as: str | None = None
    redrive_of: str | None = None

    @property
    def max_attempts(self) -> int:
        """How many attempts the job has in all (K5)."""
        return self.policy.max_attempts

    @property
    def holds_lock(self) -> bool:
        """Whether the lock of its singleton type belongs to the job (K3)."""
        return self.policy.singleton and not self.status.terminal

    @property
    def outside(self) -> bool:
        """Whether workers outside Lambda run the job (B1)."""
        return self.policy.target in _OUTSIDE

    @property
    def expires_at(self) -> datetime | None:
        """When the checker should look at the job: its deadline, or sooner if heartbeats that it sent have stopped."""
        began, beat, patience = self.started_at, self.heartbeat_at, self.policy.heartbeat
        if self.status is Status.RUNNING and self.deadline_at and began and beat and patience and beat > began:
            return min(self.deadline_at, beat + patience)
        return self.deadline_at

    @property
    def shard(self) -> int:
        """Which partition of the sharded indexes holds the job."""
        return zlib.crc32(self.job_id.encode()) % SHARDS


def new_job_id(now: datetime, randomness: bytes) -> str:
    """A ULID of `now` (millisecond precision) and ten bytes of randomness."""
    from ulid import ULID

    return str(ULID.from_bytes(int(now.timestamp() * 1000).to_bytes(6) + randomness[:10]))


def derived_job_id(at: datetime, *seed: str) -> str:
    """The one job_id that belongs to `seed` at `at`: how the same tick, or the same redrive, makes one row (K6)."""
    return new_job_id(at, hashlib.sha256("\0".join(seed).encode()).digest())


def lease_digest(token: str) -> str:
    """What the row keeps of a lease token. The token holds 256 random bits, so a plain hash does not give it away."""
    return hashlib.sha256(token.encode()).hexdigest()


def to_text(moment: datetime) -> str:
    """ISO-8601 in UTC with milliseconds, which sorts as text: `2026-11-22T03:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """The aware moment that `to_text` wrote."""
    return datetime.fromisoformat(text)


_KEY_PREFIX: Final = "JOB#"
_TIMES: Final = ("created_at", "run_at", "deadline_at", "started_at", "heartbeat_at", "finished_at")
_JSON: Final = ("payload", "result", "checkpoint")
_DURATIONS: Final = ("timeout", "pickup", "heartbeat", "backoff_base", "backoff_cap", "poison_window")


def job_key(job_id: str) -> str:
    """The partition key of a job's row."""
    return _KEY_PREFIX + job_id


def type_key(job_type: str, shard: int) -> str:
    """How a row spells its job type, which is the partition key of `by_type`: `sync#3`. Rows were written without the
    shard once."""
    return f"{job_type}#{shard}"


def type_of(key: str) -> str:
    """The job type that a row spells, with or without its shard."""
    job_type, mark, shard = key.rpartition("#")
    return job_type if mark and shard.isdecimal() else key


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@lru_cache(maxsize=128)  # the rows of a type share theirs
def _policy_to_json(policy: Policy) -> str:
    values = {f.name: getattr(policy, f.name) for f in fields(policy)}
    values |= {name: int(values[name].total_seconds()) for name in _DURATIONS if values[name] is not None}
    return _to_json({name: value for name, value in values.items() if value is not None})


@lru_cache(maxsize=128)
def _policy_from_json(text: str) -> Policy:
    values = json.loads(text)
    return Policy(**values | {name: timedelta(seconds=values[name]) for name in _DURATIONS if name in values})


_ERROR_FIELDS: Final = tuple(f.name for f in fields(AttemptError))


def _error_to_item(error: AttemptError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in _ERROR_FIELDS} | {"at": to_text(error.at)}


def _error_from_item(item: dict[str, Any]) -> AttemptError:
    return AttemptError(**item | {"at": from_text(item["at"])})


_SPELLED: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(_TIMES, to_text),
    **dict.fromkeys(_JSON, _to_json),
    **dict.fromkeys(("input_keys", "output_keys"), list),
    **dict.fromkeys(("status", "trigger"), str),
    "policy": _policy_to_json,
    "errors": lambda errors: [_error_to_item(error) for error in errors],
    "rescues": lambda moments: [to_text(moment) for moment in moments],
}
"""How a field is spelled in the row, where not as it is."""

FIELDS: Final = tuple(f.name for f in fields(Job))


def encode(job: Job, names: Iterable[str] = FIELDS) -> dict[str, Any]:
    """The row's attributes as plain values (text, int, bool, list, dict); None is left out.

    The fields in `names`, and always what is derived: the table's and the indexes' keys.
    """
    item: dict[str, Any] = {}
    for name in names:
        value = getattr(job, name)
        item[name] = _SPELLED[name](value) if name in _SPELLED and value is not None else value
    item |= {"pk": job_key(job.job_id), "max_attempts": job.max_attempts} | _index_keys(job)
    return {name: value for name, value in item.items() if value is not None}


def _index_keys(job: Job) -> dict[str, str | int | None]:
    live = not job.status.terminal
    waiting = job.status is Status.PENDING and not job.released
    return {
        "job_type": type_key(job.job_type, job.shard),
        "live_shard": f"live#{job.shard}" if live else None,
        "expires_at": to_text(job.expires_at) if live and job.expires_at else None,
        "due_shard": f"due#{job.shard}" if waiting else None,
        "status_shard": None if live else f"{job.status}#{job.shard}",
        "ttl": int((job.finished_at + TTL_BACKSTOP).timestamp()) if job.finished_at else None,
    }


def decode(item: dict[str, Any]) -> Job:
    """The job that `encode` wrote; a row read through an index may lack attributes, which take their defaults."""
    values = {f.name: item[f.name] for f in fields(Job) if f.name in item}
    values["job_id"] = item["pk"].removeprefix(_KEY_PREFIX)
    values["job_type"] = type_of(item["job_type"])
    values |= {name: from_text(values[name]) for name in _TIMES if name in values}
    values |= {name: json.loads(values[name]) for name in _JSON if name in values}
    values["policy"] = _policy_from_json(item["policy"])
    values["status"] = Status(item["status"])
    values["trigger"] = Trigger(item.get("trigger", Trigger.CLI))
    values["errors"] = tuple(map(_error_from_item, item.get("errors", ())))
    values["rescues"] = tuple(map(from_text, item.get("rescues", ())))
    values |= {name: tuple(item.get(name, ())) for name in ("input_keys", "output_keys")}
    return Job(**values)
