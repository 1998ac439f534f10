"""The ledger's transitions are pure: these are their rules, one by one, and as properties."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger import ledger, transitions
from lamplighter.kernel.ledger.ledger import expiry_reason
from lamplighter.kernel.ledger.row import (
    AttemptError,
    Job,
    Policy,
    Status,
    decode,
    derived_job_id,
    encode,
    from_text,
    new_job_id,
    to_text,
)

NOW = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)
POLICY = Policy(timeout=timedelta(minutes=30))


def pending(**values: Any) -> Job:
    defaults: dict[str, Any] = {
        "job_id": derived_job_id(NOW, "test"),
        "job_type": "sync",
        "status": Status.PENDING,
        "policy": POLICY,
        "created_at": NOW,
        "run_at": NOW,
        "deadline_at": NOW + POLICY.pickup,
    }
    return Job(**defaults | values)


def running(**values: Any) -> Job:
    job = transitions.claim(pending(), attempt=1, continuation=0, now=NOW)
    return replace(job, **values)


def error(**values: Any) -> AttemptError:
    return AttemptError(**{"type": "Boom", "message": "boom", "attempt": 1, "at": NOW, "reason": "error"} | values)


def expire(job: Job, now: datetime = NOW) -> Job:
    return transitions.expire(job, now=now, jitter=0.5, reason="deadline", message="too long")


def test_a_claim_starts_the_expected_attempt_with_a_deadline() -> None:
    job = transitions.claim(pending(), attempt=1, continuation=0, now=NOW)
    assert (job.status, job.started_at, job.deadline_at) == (Status.RUNNING, NOW, NOW + timedelta(minutes=30))


@pytest.mark.parametrize("turn", [(2, 0), (1, 1), (0, 0)])
def test_a_claim_of_another_attempt_is_refused(turn: tuple[int, int]) -> None:
    with pytest.raises(LostLease, match=r"is pending at attempt 1\.0"):
        transitions.claim(pending(), attempt=turn[0], continuation=turn[1], now=NOW)


def test_a_second_claim_is_refused() -> None:
    with pytest.raises(LostLease, match="is running"):
        transitions.claim(running(), attempt=1, continuation=0, now=NOW)


def test_progress_never_runs_backwards_and_stays_within_100() -> None:
    job = transitions.heartbeat(running(progress=40), now=NOW, progress=20, message="m")
    assert job.progress == 40
    assert transitions.heartbeat(job, now=NOW, progress=400, message="m").progress == 100
    assert transitions.complete(job, now=NOW, result=None).progress == 100


def test_a_failed_attempt_waits_for_its_backoff_without_a_deadline() -> None:
    job = transitions.fail(running(), now=NOW, error=error(), retry=True, jitter=1.0)
    assert (job.status, job.attempt, job.released, job.deadline_at) == (Status.PENDING, 2, False, None)
    assert job.run_at == NOW + POLICY.backoff_base
    assert job.errors == (error(),)


def test_a_permanent_error_is_not_retried() -> None:
    job = transitions.fail(running(), now=NOW, error=error(), retry=False, jitter=1.0)
    assert (job.status, job.dead_letter, job.finished_at) == (Status.FAILED, "permanent", NOW)


def test_the_last_attempt_ends_on_the_dead_letter_list() -> None:
    job = transitions.fail(running(attempt=3), now=NOW, error=error(attempt=3), retry=True, jitter=1.0)
    assert (job.status, job.dead_letter) == (Status.FAILED, "exhausted")


def test_the_poison_guard_counts_rescues_within_its_window_only() -> None:
    """REQUIREMENTS K10: rescued 3 times within 72 h."""
    patient = replace(POLICY, max_attempts=10)
    old, recent = NOW - timedelta(hours=73), NOW - timedelta(hours=71)
    assert expire(running(policy=patient, rescues=(old, recent))).status is Status.PENDING
    poisoned = expire(running(policy=patient, rescues=(recent, recent)))
    assert (poisoned.status, poisoned.dead_letter) == (Status.FAILED, "poison")


def test_a_job_is_released_once() -> None:
    waiting = transitions.fail(running(), now=NOW, error=error(), retry=True, jitter=1)
    released = transitions.release(waiting, now=NOW)
    assert (released.released, released.deadline_at) == (True, NOW + POLICY.pickup)
    with pytest.raises(LostLease, match="was released already"):
        transitions.release(released, now=NOW)


def test_the_poison_guard_counts_to_the_edge_of_its_window() -> None:
    """REQUIREMENTS K10: within 72 h, the 72nd included."""
    patient, edge = replace(POLICY, max_attempts=10), NOW - timedelta(hours=72)
    assert expire(running(policy=patient, rescues=(edge, NOW))).dead_letter == "poison"
    late = edge - transitions.MILLISECOND
    assert expire(running(policy=patient, rescues=(late, NOW))).status is Status.PENDING


def test_a_poisoned_job_that_was_asked_to_cancel_is_cancelled() -> None:
    asked = expire(running(rescues=(NOW, NOW), cancel_requested=True))
    assert (asked.status, asked.dead_letter) == (Status.CANCELLED, None)


def test_no_two_seeds_share_an_id() -> None:
    seeds = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), ("", "abc")]
    assert len({derived_job_id(NOW, *seed) for seed in seeds}) == len(seeds)


def test_a_checkpoint_goes_on_at_once_under_a_new_fence() -> None:
    job = transitions.continue_later(running(), now=NOW, checkpoint={"key": "a"}, result=None)
    assert (job.status, job.attempt, job.continuation, job.released) == (Status.PENDING, 1, 1, True)
    with pytest.raises(LostLease):
        transitions.claim(job, attempt=1, continuation=0, now=NOW)


def test_a_failure_after_a_checkpoint_keeps_the_checkpoint() -> None:
    job = transitions.continue_later(running(), now=NOW, checkpoint={"key": "a"}, result=None)
    job = transitions.claim(job, attempt=1, continuation=1, now=NOW)
    assert transitions.fail(job, now=NOW, error=error(), retry=True, jitter=0).checkpoint == {"key": "a"}


def test_continuations_are_bounded() -> None:
    job = running(policy=replace(POLICY, max_continuations=2), continuation=2)
    done = transitions.continue_later(job, now=NOW, checkpoint={}, result={"seen": 1})
    assert (done.status, done.result) == (Status.FAILED, {"seen": 1})
    assert done.errors[-1].reason == "continuations"


def test_cancelling_a_waiting_job_is_immediate_and_a_running_one_is_asked() -> None:
    assert transitions.request_cancel(pending(), now=NOW).status is Status.CANCELLED
    asked = transitions.request_cancel(running(), now=NOW)
    assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)


@pytest.mark.parametrize("end", ["expire", "fail", "continue"])
def test_a_job_that_was_asked_to_cancel_is_never_retried(end: str) -> None:
    job = running(cancel_requested=True)
    ended = {
        "expire": lambda: expire(job),
        "fail": lambda: transitions.fail(job, now=NOW, error=error(), retry=True, jitter=0),
        "continue": lambda: transitions.continue_later(job, now=NOW, checkpoint={}, result=None),
    }[end]()
    assert ended.status is Status.CANCELLED


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_terminal_states_are_immutable(status: Status) -> None:
    """FAILURES 4: a successful job was later marked abandoned."""
    job = replace(running(), status=status, finished_at=NOW, deadline_at=None)
    for change in (
        lambda: transitions.claim(job, attempt=1, continuation=0, now=NOW),
        lambda: transitions.heartbeat(job, now=NOW, progress=1, message=""),
        lambda: transitions.complete(job, now=NOW, result=None),
        lambda: transitions.finish_cancelled(job, now=NOW, result=None),
        lambda: transitions.continue_later(job, now=NOW, checkpoint={}, result=None),
        lambda: transitions.fail(job, now=NOW, error=error(), retry=True, jitter=0),
        lambda: transitions.request_cancel(job, now=NOW),
        lambda: transitions.release(job, now=NOW),
        lambda: transitions.extend(job, now=NOW),
        lambda: expire(job),
    ):
        with pytest.raises(LostLease):
            change()


def test_extensions_are_bounded() -> None:
    """FAILURES 2: jobs "running" for 91 days."""
    job, now = running(), NOW + timedelta(minutes=30)
    for _ in range(10):
        try:
            job = transitions.extend(job, now=now)
        except LostLease:
            break
        assert job.deadline_at is not None
        assert job.deadline_at > now
        now = job.deadline_at
    assert now == NOW + 2 * POLICY.timeout
    late = transitions.extend(running(), now=now - timedelta(minutes=1))
    assert (late.deadline_at, late.heartbeat_at) == (now, now - timedelta(minutes=1))
    assert transitions.extend(running(), now=NOW).deadline_at == NOW + POLICY.timeout / 4


def test_an_attempt_that_has_sent_heartbeats_expires_when_they_stop() -> None:
    policy = replace(POLICY, heartbeat=timedelta(minutes=2))
    job = transitions.claim(pending(policy=policy), attempt=1, continuation=0, now=NOW)
    assert job.expires_at == NOW + POLICY.timeout  # it may be of a kind that sends none
    beaten = transitions.heartbeat(job, now=NOW + timedelta(minutes=5), progress=1, message="")
    assert beaten.expires_at == NOW + timedelta(minutes=7)
    beaten = transitions.heartbeat(job, now=NOW + timedelta(minutes=29), progress=1, message="")
    assert beaten.expires_at == NOW + POLICY.timeout  # heartbeats do not move the deadline


@pytest.mark.parametrize(
    ("job", "after", "said"),
    [
        (running(), timedelta(minutes=30), "ran longer than its timeout of 30 min"),
        (running(policy=replace(POLICY, heartbeat=timedelta(seconds=90))), timedelta(minutes=2), "heartbeat for 90 s"),
        (running(policy=replace(POLICY, heartbeat=timedelta(minutes=1))), timedelta(minutes=2), "heartbeat for 1 min"),
        (running(policy=Policy(timeout=timedelta(hours=9))), timedelta(hours=9), "longer than its timeout of 540 min"),
        (pending(), timedelta(minutes=10), "picked the job up within 10 min"),
    ],
)
def test_the_message_says_which_timeout_fired(job: Job, after: timedelta, said: str) -> None:
    assert said in expiry_reason(job, NOW + after)[1]


@pytest.mark.parametrize(
    "end",
    [
        lambda job, one: transitions.fail(job, now=NOW, error=one, retry=False, jitter=0),
        lambda job, one: transitions.fail(
            replace(job, attempt=job.max_attempts), now=NOW, error=one, retry=True, jitter=0
        ),
        lambda job, one: transitions.expire(
            replace(job, attempt=job.max_attempts), now=NOW, jitter=0, reason="timeout", message=one.message
        ),
    ],
)
def test_a_failed_job_says_why_and_no_longer_how_far_it_was(end: Any) -> None:
    """K7: lists show the message alone."""
    job = transitions.heartbeat(running(), now=NOW, progress=50, message="7 candidates looked at")
    failed = end(job, error(message="There are no references at all." + "." * 2_000))
    assert (failed.status, failed.progress) == (Status.FAILED, 50)
    assert failed.message == failed.errors[-1].message
    assert failed.message.startswith("There are no references at all.")


def test_a_job_that_went_on_too_often_says_so() -> None:
    often = replace(running(), continuation=running().policy.max_continuations, message="working")
    failed = transitions.continue_later(often, now=NOW, checkpoint={}, result=None)
    assert failed.message == failed.errors[-1].message


def test_long_errors_are_cut_so_that_the_row_fits() -> None:
    long = error(message="m" * 10_000, stack_trace="s" * 50_000 + "the end")
    job = transitions.fail(running(), now=NOW, error=long, retry=False, jitter=0)
    assert len(job.errors[0].message) == transitions.MESSAGE_LIMIT
    assert len(job.errors[0].stack_trace) == transitions.STACK_TRACE_LIMIT
    assert job.errors[0].stack_trace.endswith("the end")


@given(attempt=st.integers(1, 10_000), jitter=st.floats(0, 1), base=st.integers(1, 3600), cap=st.integers(1, 86_400))
def test_backoff_is_within_its_cap_and_grows_until_then(attempt: int, jitter: float, base: int, cap: int) -> None:
    """REQUIREMENTS K5: exponential, full jitter, a cap."""
    policy = replace(POLICY, backoff_base=timedelta(seconds=base), backoff_cap=timedelta(seconds=cap))
    wait = transitions.backoff(policy, attempt, jitter)
    assert timedelta() <= wait <= policy.backoff_cap
    assert transitions.backoff(policy, attempt, 1.0) <= transitions.backoff(policy, attempt + 1, 1.0)
    assert transitions.backoff(policy, attempt, 0.0) == timedelta()
    if attempt == 1:
        assert transitions.backoff(policy, 1, 1.0) == min(policy.backoff_base, policy.backoff_cap)


moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)


@given(moments, moments)
def test_times_sort_as_text_and_come_back(one: datetime, other: datetime) -> None:
    assert from_text(to_text(one)) == one
    assert (one < other) == (to_text(one) < to_text(other))


def test_a_moment_of_the_ledgers_clock_is_the_one_that_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row keeps milliseconds: a run that compared finer moments would take its own write for another's."""

    class Moment(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2026, 1, 31, 3, 0, 0, 999_900, tzinfo=tz)

    monkeypatch.setattr(ledger, "datetime", Moment)
    now = ledger.utc_now()
    assert now == from_text(to_text(now)) == NOW + timedelta(milliseconds=999)


json_objects = st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none() | st.lists(st.text()))


@given(
    job=st.builds(
        Job,
        job_id=st.builds(derived_job_id, moments, st.text()),
        job_type=st.text(min_size=1),
        status=st.sampled_from(Status),
        policy=st.builds(Policy, timeout=st.integers(1, 10**6).map(lambda s: timedelta(seconds=s))),
        created_at=moments,
        run_at=moments,
        deadline_at=st.none() | moments,
        finished_at=st.none() | moments,
        payload=json_objects,
        result=st.none() | json_objects,
        errors=st.lists(st.builds(error, message=st.text(), at=moments)).map(tuple),
        rescues=st.lists(moments).map(tuple),
        execution_arn=st.none() | st.text(),
    )
)
def test_a_row_comes_back_as_it_was_written(job: Job) -> None:
    assert decode(encode(job)) == job


@given(moments, st.text(), st.text())
def test_the_same_tick_has_one_id_and_another_tick_another(at: datetime, name: str, other: str) -> None:
    """REQUIREMENTS K6."""
    assert derived_job_id(at, "tick", name) == derived_job_id(at, "tick", name)
    if name != other:
        assert derived_job_id(at, "tick", name) != derived_job_id(at, "tick", other)
    assert derived_job_id(at, "tick", name) != derived_job_id(at + timedelta(seconds=1), "tick", name)


@given(moments, st.binary(min_size=10, max_size=10))
def test_an_id_says_when_its_job_was_made(at: datetime, randomness: bytes) -> None:
    """The ramp reads there when a run began."""
    said = ULID.from_str(new_job_id(at, randomness)).datetime
    assert at - timedelta(milliseconds=1) <= said <= at


def test_only_live_jobs_stand_in_the_deadline_index_and_only_waiting_ones_in_the_due_index() -> None:
    waiting = transitions.fail(running(), now=NOW, error=error(), retry=True, jitter=1)
    done = transitions.complete(running(), now=NOW, result=None)
    assert {"live_shard", "expires_at"} <= encode(running()).keys()
    assert "due_shard" not in encode(running())
    assert "due_shard" in encode(waiting)
    assert "expires_at" not in encode(waiting)
    assert not {"live_shard", "expires_at", "due_shard"} & encode(done).keys()
    assert "status_shard" in encode(done)
