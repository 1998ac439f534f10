"""Lease tokens: only the worker that claimed an attempt ends it (REQUIREMENTS K13, FAILURES 33)."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from lamplighter.jobs.history import entry
from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.history import row_of
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status, encode
from lamplighter.kernel.ledger.store import Change, Outcome
from tests.api_requests import Answer, ask, get, post, problem
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock

POLICY: Final = Policy(timeout=timedelta(minutes=30), target="bus")
TURN: Final = {"attempt": 1, "continuation": 0}
CALLS: Final[dict[str, dict[str, Any]]] = {
    "heartbeat": {"progress": 40},
    "complete": {"result": {"done": 1}},
    "fail": {"message": "no"},
}
"""The calls that need the lease, and what they bring."""


@pytest.fixture(autouse=True)
def deployed_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)


@pytest.fixture
def job(ledger: Ledger) -> Job:
    return ledger.submit(ledger.new_job("analysis", POLICY))


def call(job: Job, name: str, lease: str | None = None, **more: Any) -> Answer:
    body = TURN | CALLS.get(name, {}) | ({} if lease is None else {"lease": lease}) | more
    return post(f"/api/jobs/{job.job_id}/{name}", body)


def claim(job: Job, **turn: int) -> str:
    answer = call(job, "claim", **turn)
    assert answer.status == 200, answer
    return str(answer.body["lease"])


@pytest.mark.parametrize("name", CALLS)
def test_the_holder_of_the_lease_may_speak_for_the_attempt(job: Job, name: str) -> None:
    assert call(job, name, claim(job)).status == 200


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("forged", ["missing", "guessed", "of another job", "of the attempt before"])
def test_without_its_lease_nobody_speaks_for_an_attempt(
    ledger: Ledger, clock: FakeClock, job: Job, name: str, forged: str
) -> None:
    """Today anybody who guesses `attempt: 1` ends another's job."""
    turn = TURN
    lease = claim(job)
    other = claim(ledger.submit(ledger.new_job("analysis", POLICY)))
    if forged == "of the attempt before":
        clock.tick(minutes=31)
        expired = ledger.expire(ledger.get(job.job_id))
        ledger.store.apply_many(ledger.releases([expired]))
        turn = {"attempt": 2, "continuation": 0}
        assert claim(job, **turn) != lease
    given = {"missing": None, "guessed": "A" * 43, "of another job": other, "of the attempt before": lease}[forged]
    before = ledger.get(job.job_id)
    status, kind, detail = problem(call(job, name, given, **turn))
    assert (status, kind) == (409, "lost-lease")
    assert detail == (
        f"lease: attempt {turn['attempt']}.0 of job {job.job_id} takes the token that its claim answered; "
        "nothing was changed."
    )
    assert ledger.get(job.job_id) == before


@pytest.mark.parametrize("lease", ["", "x" * 42, "x" * 44, "x" * 42 + "=", "é" * 43, 5, ["a"], True, "x" * 43 + "\n"])
def test_a_malformed_lease_is_named(ledger: Ledger, job: Job, lease: Any) -> None:
    claim(job)
    before = ledger.get(job.job_id)
    answer = call(job, "complete", lease)
    assert problem(answer)[:2] == (422, "invalid-request")
    assert [error["field"] for error in answer.body["errors"]] == ["body.lease"]
    assert ledger.get(job.job_id) == before


def test_the_lease_is_part_of_the_write_too(ledger: Ledger, job: Job) -> None:
    """Between a caller's read and its write another lease may have come: the store's condition sees it."""
    claim(job)
    row = ledger.get(job.job_id)
    assert row.lease
    foreign = replace(row, lease="0" * 64)
    new = transitions.complete(foreign, now=ledger.clock(), result=None)
    with pytest.raises(LostLease):
        ledger.store.apply(Change(old=foreign, new=new))
    assert ledger.store.apply_many([Change(old=foreign, new=new)]) == [Outcome.LOST]
    assert ledger.get(job.job_id) == row


def test_a_lease_is_shown_once_and_kept_nowhere(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the row, nor the stream, the history, `system_logs`, the API or a retry has it."""
    written: list[tuple[Job | None, Job | None]] = []
    store = MemoryStore(lambda old, new: written.append((old, new)))
    ledger = Ledger(store, clock=clock)
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    job = ledger.submit(ledger.new_job("analysis", POLICY))
    lease = claim(job)
    answers = [
        call(job, "heartbeat", lease),
        get(f"/api/jobs/{job.job_id}"),
        get("/api/jobs", job_type="analysis"),
        post(f"/api/jobs/{job.job_id}/cancel"),
        call(job, "complete", lease),
        get(f"/api/jobs/{job.job_id}"),
    ]
    assert [answer.status for answer in answers] == [200] * 6
    ended = ledger.get(job.job_id)
    rows = [encode(row) for change in written for row in change if row]
    logged = [entry(old, new) for old, new in written]
    seen = json.dumps([[answer.body for answer in answers], rows, logged, row_of(ended, clock())], default=str)
    assert lease not in seen
    digests = {row["lease"] for row in rows if "lease" in row}
    assert len(digests) == 1
    assert not any(digest in json.dumps([answer.body for answer in answers]) for digest in digests)
    assert ended.lease is None
    assert "lease" not in row_of(ended, clock())["job"]


@pytest.mark.parametrize("end", ["fail", "expire", "continue"])
def test_the_end_of_an_attempt_ends_its_lease(ledger: Ledger, clock: FakeClock, job: Job, end: str) -> None:
    row = ledger.claim(job.job_id, **TURN)
    assert row.lease
    if end == "expire":
        clock.tick(minutes=31)
        row = ledger.expire(row)
    else:
        row = ledger.fail(row, OSError()) if end == "fail" else ledger.continue_later(row, checkpoint={}, result=None)
    assert (row.status, row.lease, ledger.get(job.job_id).lease) == (Status.PENDING, None, None)


def test_jobs_of_our_own_have_no_lease(ledger: Ledger) -> None:
    own = ledger.submit(ledger.new_job("cleanup", replace(POLICY, target="states:cleanup")))
    assert ledger.claim(own.job_id, **TURN).lease is None


def test_tokens_are_random_and_of_256_bits(store: MemoryStore, clock: FakeClock) -> None:
    """The ledger's own source of randomness, which by default is the system's."""
    one, same = (Ledger(store, clock=clock, rng=random.Random(5)).new_lease() for _ in range(2))
    assert one == same
    system = {Ledger(store).new_lease() for _ in range(100)}
    assert len(system) == 100
    assert {len(token) for token in system} == {43}


CLAIMED_BEFORE: Final = {
    "pk": "JOB#01KGA0SR80V0XM9ZT7S3K1Y4QF",
    "max_attempts": 3,
    "live_shard": "live#0",
    "expires_at": "2026-01-31T04:00:00.000Z",
    "job_id": "01KGA0SR80V0XM9ZT7S3K1Y4QF",
    "job_type": "analysis",
    "status": "running",
    "policy": '{"timeout":3600,"target":"bus","pickup":3600,"heartbeat":300,"max_attempts":3,"backoff_base":30,'
    '"backoff_cap":900,"poison_rescues":3,"poison_window":259200,"max_continuations":500,"singleton":false,'
    '"critical":false}',
    "created_at": "2026-01-31T03:00:00.000Z",
    "run_at": "2026-01-31T03:00:00.000Z",
    "deadline_at": "2026-01-31T04:00:00.000Z",
    "released": True,
    "attempt": 1,
    "continuation": 0,
    "trigger": "api",
    "payload": '{"library":7}',
    "dry_run": False,
    "started_at": "2026-01-31T03:00:00.000Z",
    "heartbeat_at": "2026-01-31T03:00:00.000Z",
    "progress": 0,
    "message": "",
    "errors": [],
    "rescues": [],
    "cancel_requested": False,
    "input_keys": [],
    "output_keys": [],
}
"""The row of an attempt that a worker claimed before there were leases, as that version wrote it."""


@pytest.mark.parametrize("name", CALLS)
def test_an_attempt_claimed_before_the_upgrade_is_ended_without_a_lease(
    store: MemoryStore, ledger: Ledger, name: str
) -> None:
    store.items[CLAIMED_BEFORE["pk"]] = dict(CLAIMED_BEFORE)
    job = ledger.get(CLAIMED_BEFORE["job_id"])
    assert (job.lease, job.started_at) == (None, datetime(2026, 1, 31, 3, tzinfo=UTC))
    assert problem(call(job, name, "A" * 43))[:2] == (409, "lost-lease")
    assert call(job, name).status == 200


def test_the_next_attempt_of_such_a_job_has_one(store: MemoryStore, ledger: Ledger, clock: FakeClock) -> None:
    store.items[CLAIMED_BEFORE["pk"]] = dict(CLAIMED_BEFORE)
    job = ledger.get(CLAIMED_BEFORE["job_id"])
    assert call(job, "fail").body["status"] == "pending"
    assert ask("POST", f"/api/jobs/{job.job_id}/retry").status == 202
    second = {"attempt": 2, "continuation": 0}
    lease = claim(job, **second)
    assert problem(call(job, "complete", **second))[:2] == (409, "lost-lease")
    assert call(job, "complete", lease, **second).status == 200
