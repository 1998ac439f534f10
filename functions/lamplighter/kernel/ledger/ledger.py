"""The ledger: what jobs, the dispatcher, the checker and operators do with job rows.

It reads a row, asks `transitions` for the next version and has the store write it, fenced. The clock and the
randomness are its own, so that everything below is pure.
"""

from __future__ import annotations

import hmac
import os
import random
import re
import traceback
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent
from lamplighter.kernel.events import shown
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.dynamo import DynamoStore
from lamplighter.kernel.ledger.row import (
    AttemptError,
    Job,
    Policy,
    Status,
    Trigger,
    derived_job_id,
    lease_digest,
    new_job_id,
)
from lamplighter.kernel.ledger.store import Change, Cursor, DuplicateJob, LockHeld, Store, shards

Clock = Callable[[], datetime]
_TRIES: Final = 5
_ID: Final = re.compile(r"[\w#-]{1,64}", re.ASCII)
"""What an id may be, so that none is asked for that a key of the table cannot hold; all ids made here are ULIDs."""


def utc_now() -> datetime:
    """The current moment, aware, in whole milliseconds, as the row keeps time."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class UnknownJob(Permanent):
    """No such job in the ledger."""


class Ledger:
    """The job ledger over a store (REQUIREMENTS K1-K3, K6, K10)."""

    def __init__(self, store: Store, *, clock: Clock = utc_now, rng: random.Random | None = None) -> None:
        self.store = store
        self.clock = clock
        self._rng = rng or random.SystemRandom()

    @classmethod
    def from_environment(cls) -> Ledger:
        """The deployed ledger: the table that `JOBS_TABLE` names."""
        return cls(DynamoStore(os.environ["JOBS_TABLE"]))

    def new_job(self, job_type: str, policy: Policy, *, job_id: str | None = None, **values: Any) -> Job:
        """A row to be created: pending and released now, or waiting if `run_at` lies ahead; not written yet."""
        now = self.clock()
        run_at = values.pop("run_at", now)
        released = run_at <= now
        return Job(
            job_id=job_id or new_job_id(now, self._rng.randbytes(10)),
            job_type=job_type,
            policy=policy,
            status=Status.PENDING,
            created_at=now,
            run_at=run_at,
            released=released,
            deadline_at=now + policy.pickup if released else None,
            **values,
        )

    def submit(self, job: Job) -> Job:
        """Write a new row; its first change of status follows from the table's stream.

        Raises:
            DuplicateJob: the job_id exists.
            AlreadyRunning: the type is a singleton and another run, which the message names, holds its lock.
        """
        replacing: str | None = None
        for _ in range(_TRIES):
            try:
                self.store.create(job, instead_of=replacing)
            except LockHeld as held:
                replacing = self._let_go_of(held.holder, job.job_type)
            else:
                return job
        raise AlreadyRunning(f"{job.job_type} cannot start: its lock is contended by several runs.")

    def start(self, job: Job) -> Job:
        """Write a new row that is running from the start: how a scheduled tick or a call by hand begins.

        Raises:
            DuplicateJob, AlreadyRunning: as `submit`.
        """
        return self.submit(transitions.claim(job, attempt=1, continuation=0, now=self.clock()))

    def skip(self, job: Job, result: dict[str, Any]) -> Job:
        """Write a new row that is cancelled from the start, because it shall not run.

        Raises:
            DuplicateJob: the job_id exists.
        """
        return self.submit(transitions.request_cancel(replace(job, result=result), now=self.clock()))

    def _let_go_of(self, holder_id: str, job_type: str) -> str | None:
        """Free a singleton's lock if its holder is dead; the id to take the lock from, or None if it was freed."""
        now = self.clock()
        holder = self.store.get(holder_id)
        if holder is None or holder.status.terminal:
            return holder_id
        if holder.expires_at is not None and holder.expires_at <= now and holder.execution_arn is None:
            try:
                holder = self.expire(holder)
            except LostLease:
                return None  # it changed under us: look again
            if holder.status.terminal:
                return None
        since = holder.started_at or holder.created_at
        raise AlreadyRunning(
            f"{job_type} is already {holder.status}: job {holder.job_id} (attempt {holder.attempt} of "
            f"{holder.max_attempts}, since {since:%Y-%m-%d %H:%M:%S} UTC) holds its lock."
        )

    def get(self, job_id: str) -> Job:
        """The row as of now.

        Raises:
            UnknownJob: there is none.
        """
        job = self.store.get(job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise UnknownJob(
                f"job_id: there is no job {shown(job_id)} in the ledger. A finished job moves to job_history when its "
                "retention is over, and can be redriven no more."
            )
        return job

    def claim(
        self,
        job_id: str,
        *,
        attempt: int,
        continuation: int,
        execution_arn: str | None = None,
        lease: str | None = None,
        job_type: str | None = None,
    ) -> Job:
        """Start the expected attempt. One that a worker outside Lambda runs gets a lease: `lease`, or a new token.

        Args:
            job_type: what the job has to be; None takes any.

        Raises:
            LostLease: somebody else did, or the job has moved on.
            UnknownJob: there is no such job.
            Permanent: the job is of another type.
        """
        job = self.get(job_id)
        if job_type is not None and job.job_type != job_type:
            raise Permanent(f"job_id: job {job_id} is of type {job.job_type}; here {job_type} runs. Nothing was done.")
        return self._write(
            job,
            transitions.claim(
                job,
                attempt=attempt,
                continuation=continuation,
                now=self.clock(),
                execution_arn=execution_arn,
                lease=lease_digest(lease or self.new_lease()) if job.outside else None,
            ),
        )

    def new_lease(self) -> str:
        """A lease token: 256 random bits in 43 characters of base64url, as `secrets.token_urlsafe` makes them."""
        return urlsafe_b64encode(self._rng.randbytes(32)).rstrip(b"=").decode()

    def heartbeat(self, job: Job, *, progress: int, message: str, checkpoint: dict[str, Any] | None = None) -> Job:
        """Tell that the attempt lives; the answer carries `cancel_requested`. Raises LostLease."""
        now = self.clock()
        return self._write(
            job, transitions.heartbeat(job, now=now, progress=progress, message=message, checkpoint=checkpoint)
        )

    def complete(self, job: Job, result: dict[str, Any] | None) -> Job:
        """Record success. Raises LostLease."""
        return self._write(job, transitions.complete(job, now=self.clock(), result=result))

    def finish_cancelled(self, job: Job, result: dict[str, Any] | None) -> Job:
        """Record that the run stopped as asked. Raises LostLease."""
        return self._write(job, transitions.finish_cancelled(job, now=self.clock(), result=result))

    def continue_later(self, job: Job, *, checkpoint: dict[str, Any], result: dict[str, Any] | None) -> Job:
        """Hand over to the next continuation. Raises LostLease."""
        return self._write(job, transitions.continue_later(job, now=self.clock(), checkpoint=checkpoint, result=result))

    def fail(self, job: Job, error: BaseException, *, result: dict[str, Any] | None = None, final: bool = False) -> Job:
        """Record a failed attempt with its stack trace; a `Permanent` error, and one that is `final`, is not retried.
        Raises LostLease."""
        traced = getattr(error, "traced", True)
        return self.fail_as(
            job,
            type(error).__name__,
            str(error) or type(error).__name__,
            stack_trace="".join(traceback.format_exception(error)) if traced else "",
            retry=not (final or isinstance(error, Permanent)),
            result=result,
        )

    def fail_as(
        self,
        job: Job,
        error_type: str,
        message: str,
        *,
        stack_trace: str = "",
        retry: bool = True,
        result: dict[str, Any] | None = None,
    ) -> Job:
        """Record a failed attempt as its worker describes it. Raises LostLease."""
        now = self.clock()
        entry = AttemptError(
            type=error_type,
            message=message,
            stack_trace=stack_trace,
            attempt=job.attempt,
            at=now,
            reason="error" if retry else "permanent",
        )
        return self._write(
            job,
            transitions.fail(job, now=now, error=entry, retry=retry, jitter=self._rng.random(), result=result),
        )

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop (REQUIREMENTS K7).

        Raises:
            LostLease: it has finished, or kept changing.
            UnknownJob: there is no such job.
        """
        for _ in range(_TRIES - 1):
            job = self.get(job_id)
            try:
                return self._write(job, transitions.request_cancel(job, now=self.clock()))
            except LostLease:
                if job.status.terminal:
                    raise
        job = self.get(job_id)
        return self._write(job, transitions.request_cancel(job, now=self.clock()))

    def redrive(self, job_id: str) -> Job:
        """Run a dead-lettered job again, as a new job; doing so twice gives the same new job (REQUIREMENTS K10).

        Raises:
            UnknownJob: it, or the job that it was redriven as, has left the ledger.
            Permanent: the job is not on the dead-letter list.
            AlreadyRunning: its type is a singleton that runs.
        """
        old = self.get(job_id)
        if old.dead_letter is None:
            raise Permanent(f"job_id: job {job_id} is {old.status} and not on the dead-letter list.")
        return self._again(old)

    def retry(self, job_id: str) -> Job:
        """Run a failed or cancelled job again, as a new job, the same one however often this is asked; or release a
        waiting one now.

        Raises:
            Permanent: the job is about to run, runs, or has completed.
            LostLease: it changed at the same moment.
            AlreadyRunning: its type is a singleton that runs.
        """
        old = self.get(job_id)
        if old.status in (Status.FAILED, Status.CANCELLED):
            return self._again(old)
        if old.status is Status.PENDING and not old.released:
            return self._write(old, transitions.release(old, now=self.clock()))
        raise Permanent(f"job_id: job {job_id} is {old.status}: only what failed, was cancelled or waits is retried.")

    def _again(self, old: Job) -> Job:
        assert old.finished_at is not None
        if old.redriven_as is not None:
            if job := self.store.get(old.redriven_as):
                return job
            raise UnknownJob(  # its id is free again, but it has run: once is enough
                f"job_id: job {old.job_id} was redriven as {old.redriven_as}, which has finished and moved to "
                "job_history."
            )
        job = self.new_job(
            old.job_type,
            old.policy,
            job_id=derived_job_id(old.finished_at, "redrive", old.job_id),
            trigger=Trigger.RETRY,
            schedule=old.schedule,
            payload=old.payload,
            dry_run=old.dry_run,
            input_keys=old.input_keys,
            redrive_of=old.job_id,
        )
        try:
            self.submit(job)
        except DuplicateJob:
            job = self.get(job.job_id)
        with suppress(LostLease):  # it has left the ledger just now; the new row says whose redrive it is
            self._write(old, replace(old, redriven_as=job.job_id))
        return job

    def dead_letters(self, *, limit: int) -> list[Job]:
        """Jobs that failed for good and were not redriven, oldest first, up to `limit`."""
        found: list[Job] = []
        for shard in shards():
            oldest: list[Job] = []  # of each shard as many as are asked for: all may be in one
            cursor: Cursor | None = None
            while len(oldest) < limit:
                page = self.store.finished(Status.FAILED, shard, self.clock(), limit=limit, cursor=cursor)
                oldest += [job for job in page.jobs if job.dead_letter and not job.redriven_as]
                cursor = page.next
                if cursor is None:
                    break
            found += oldest
        return sorted(found, key=lambda job: job.finished_at or job.created_at)[:limit]

    def expire(self, job: Job) -> Job:
        """Fail or retry one expired job, on its row's own evidence. Raises LostLease."""
        return self.store.apply(self.expiry(job))

    def expiry(self, job: Job, *, reason: str | None = None, message: str | None = None) -> Change:
        """The change that expires a job, valid only while its `expires_at` is as read (FAILURES: a live job must
        not be rescued): a heartbeat in between makes it lose."""
        now = self.clock()
        why, text = expiry_reason(job, now)
        new = transitions.expire(job, now=now, jitter=self._rng.random(), reason=reason or why, message=message or text)
        return Change(old=job, new=new, unchanged=("expires_at",))

    def releases(self, jobs: Iterable[Job]) -> list[Change]:
        """The changes that release due jobs, spread over nothing: each is its own conditional write."""
        now = self.clock()
        return [Change(old=job, new=transitions.release(job, now=now)) for job in jobs]

    def _write(self, old: Job, new: Job) -> Job:
        return self.store.apply(Change(old=old, new=new))


def demand_lease(job: Job, *, attempt: int, continuation: int, lease: str | None) -> None:
    """Refuse a caller whose attempt does not run the job, or who does not hold its lease token (REQUIREMENTS K13).

    An attempt that was claimed before leases existed has none: its calls bring none.

    Raises:
        LostLease: the message says which.
    """
    if (job.status, job.attempt, job.continuation) != (Status.RUNNING, attempt, continuation):
        raise LostLease(
            f"Job {job.job_id} is {job.status} at attempt {job.attempt}.{job.continuation}: attempt "
            f"{attempt}.{continuation} changes nothing."
        )
    given = "" if lease is None else lease_digest(lease)
    if not hmac.compare_digest(given, job.lease or ""):
        raise LostLease(
            f"lease: attempt {attempt}.{continuation} of job {job.job_id} takes the token that its claim answered; "
            "nothing was changed."
        )


def expiry_reason(job: Job, now: datetime) -> tuple[str, str]:
    """Which timeout fired, and a sentence that says so (REQUIREMENTS D2)."""
    if job.status is Status.PENDING:
        return "pickup", f"Nobody picked the job up within {_spoken(job.policy.pickup)}."
    if job.deadline_at is not None and job.deadline_at <= now:
        return "deadline", f"The attempt ran longer than its timeout of {_spoken(job.policy.timeout)}."
    return "heartbeat", f"The attempt sent no heartbeat for {_spoken(job.policy.heartbeat or timedelta())}."


def _spoken(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    if seconds % 60 or seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min"
