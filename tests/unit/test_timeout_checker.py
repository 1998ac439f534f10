"""The timeout checker over the in-memory ledger: evidence, paging, resuming, cost (REQUIREMENTS A13, B1, B2, K10)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest

from lamplighter.jobs import timeout_checker
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger import judgement
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import SHARDS, Job, Policy, Status
from lamplighter.kernel.ledger.store import Change, Outcome
from lamplighter.kernel.settings import Settings
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext
from tests.unit.test_ledger_machine import Inline

POLICY = Policy(timeout=timedelta(minutes=30), target="lambda:sync")


def no_execution(job: Job) -> str | None:
    return None


@pytest.fixture
def check(ledger: Ledger, clock: FakeClock) -> Callable[..., dict[str, Any]]:
    def _check(execution: Callable[[Job], str | None] = no_execution, **event: Any) -> dict[str, Any]:
        stop_at = clock() + timedelta(seconds=50)
        return Checker(ledger, stop_at=stop_at, execution=execution).run(event.get("cursors", {}))

    return _check


def start(ledger: Ledger, policy: Policy = POLICY, **values: Any) -> Job:
    return ledger.start(ledger.new_job("sync", policy, **values))


def test_an_expired_attempt_is_retried_once_even_by_two_checkers(ledger: Ledger, clock: FakeClock, check: Any) -> None:
    job = start(ledger)
    clock.tick(minutes=30)
    assert check()["retried"] == 1
    assert check()["expired"] == 0
    row = ledger.get(job.job_id)
    assert (row.status, row.attempt, row.errors[0].reason) == (Status.PENDING, 2, "deadline")


def test_nothing_that_lives_is_touched(ledger: Ledger, clock: FakeClock, check: Any, store: MemoryStore) -> None:
    """FAILURES 1: jobs of 9 to 47 minutes, and a rescuer that took six."""
    for job_type, timeout in Settings().jobs.timeout_minutes.items():
        ledger.start(ledger.new_job(job_type, replace(POLICY, timeout=timedelta(minutes=timeout))))
    before = {key: item.copy() for key, item in store.items.items()}
    clock.tick(minutes=4, seconds=59)
    assert check()["expired"] == 0
    assert store.items == before


@pytest.mark.parametrize("job_type", [name for name in Settings().jobs.timeout_minutes if name != "default"])
def test_each_job_type_expires_at_its_own_timeout(ledger: Ledger, clock: FakeClock, check: Any, job_type: str) -> None:
    """REQUIREMENTS B1."""
    timeout = Settings().job_timeout(job_type)
    ledger.start(ledger.new_job(job_type, Policy(timeout=timeout)))
    clock.now += timeout - timedelta(milliseconds=1)
    assert check()["expired"] == 0
    clock.now += timedelta(milliseconds=1)
    assert check()["expired"] == 1


def test_a_job_nobody_picks_up_is_released_again_and_at_last_fails(
    ledger: Ledger, clock: FakeClock, check: Any
) -> None:
    job = ledger.submit(ledger.new_job("sync", POLICY))
    for _ in range(20):
        clock.tick(minutes=11)
        check()
    row = ledger.get(job.job_id)
    assert (row.status, row.dead_letter) == (Status.FAILED, "poison")
    assert [error.reason for error in row.errors] == ["pickup"] * 3


def test_a_waiting_job_is_released_when_it_is_due_and_not_before(ledger: Ledger, clock: FakeClock, check: Any) -> None:
    job = ledger.submit(ledger.new_job("sync", POLICY, run_at=clock() + timedelta(minutes=5)))
    clock.tick(minutes=4)
    assert check()["released"] == 0
    clock.tick(minutes=1)
    assert check()["released"] == 1
    row = ledger.get(job.job_id)
    assert (row.released, row.deadline_at) == (True, clock() + POLICY.pickup)


def test_after_an_outage_waiting_jobs_are_released_and_not_punished(
    ledger: Ledger, clock: FakeClock, check: Any
) -> None:
    job = ledger.submit(ledger.new_job("sync", POLICY, run_at=clock() + timedelta(minutes=5)))
    clock.tick(days=2)
    check()
    row = ledger.get(job.job_id)
    assert (row.status, row.attempt, row.released) == (Status.PENDING, 1, True)


@pytest.mark.parametrize(
    ("execution", "label", "status"),
    [
        ("SUCCEEDED", "completed", Status.COMPLETED),
        ("RUNNING", "extended", Status.RUNNING),
        ("FAILED", "retried", Status.PENDING),
        ("ABORTED", "retried", Status.PENDING),
        ("TIMED_OUT", "retried", Status.PENDING),
        (None, "retried", Status.PENDING),
    ],
)
def test_an_expired_run_of_a_state_machine_is_judged_by_its_execution(
    ledger: Ledger, clock: FakeClock, check: Any, execution: str | None, label: str, status: Status
) -> None:
    """REQUIREMENTS B2."""
    job = start(ledger, replace(POLICY, target="states:sync"), execution_arn="arn:execution")
    clock.tick(minutes=30)
    assert check(lambda job: execution)[label] == 1
    assert ledger.get(job.job_id).status is status


class Executions:
    """Step Functions: which executions were asked to stop."""

    class exceptions:
        ClientError = RuntimeError

    def __init__(self, *, stops: bool = True) -> None:
        self.stopped: list[str] = []
        self._stops = stops

    def stop_execution(self, *, executionArn: str, **_: Any) -> None:
        if not self._stops:
            raise RuntimeError("throttled")
        self.stopped.append(executionArn)


@pytest.mark.parametrize("stops", [True, False])
def test_an_execution_past_its_extensions_is_stopped_first(
    ledger: Ledger, clock: FakeClock, check: Any, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """REQUIREMENTS B2: no second attempt begins beside one that lives, or that could not be stopped."""
    executions = Executions(stops=stops)
    monkeypatch.setattr(judgement, "client", lambda service: executions)
    job = start(ledger, replace(POLICY, target="states:sync"), execution_arn="arn:execution")
    clock.tick(minutes=59)
    assert check(lambda job: "RUNNING")["extended"] == 1
    assert executions.stopped == []
    clock.tick(minutes=1)
    before = ledger.get(job.job_id)
    report = check(lambda job: "RUNNING")
    if stops:
        assert (report["retried"], executions.stopped) == (1, ["arn:execution"])
        assert ledger.get(job.job_id).attempt == 2
    else:
        assert (report["errors"], ledger.get(job.job_id)) == (1, before)


@pytest.mark.parametrize("execution", ["SUCCEEDED", "RUNNING", "FAILED", None])
def test_a_verdict_loses_against_a_heartbeat(ledger: Ledger, clock: FakeClock, execution: str | None) -> None:
    """FAILURES 1: the checker has read the row, and only then it shows that it lives."""
    policy = replace(POLICY, target="states:sync", heartbeat=timedelta(minutes=2))
    job = start(ledger, policy, execution_arn="arn:execution")
    clock.tick(minutes=1)
    job = ledger.heartbeat(job, progress=1, message="alive")
    clock.tick(minutes=3)
    verdict = judgement.judge(ledger, job, lambda job: execution)
    alive = ledger.heartbeat(job, progress=2, message="alive")
    assert judgement.execute(ledger, [replace(verdict, stops_execution=False)]) == [Outcome.LOST]
    assert ledger.get(job.job_id) == alive


def test_one_job_that_cannot_be_judged_stops_no_other(ledger: Ledger, clock: FakeClock, check: Any) -> None:
    start(ledger, execution_arn="arn:broken")
    others = [start(ledger) for _ in range(9)]
    clock.tick(minutes=30)

    def execution(job: Job) -> str | None:
        raise RuntimeError("Step Functions is down")

    report = check(execution)
    assert (report["retried"], report["errors"]) == (9, 1)
    assert all(ledger.get(job.job_id).attempt == 2 for job in others)


def test_a_lane_that_fails_stops_no_other_and_silences_the_heartbeat(
    ledger: Ledger, clock: FakeClock, check: Any, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [start(ledger) for _ in range(40)]
    clock.tick(minutes=30)
    whole = store.expired

    def broken(shard: int, *args: Any, **options: Any) -> Any:
        if shard == 0:
            raise ConnectionError("DynamoDB is down")
        return whole(shard, *args, **options)

    monkeypatch.setattr(store, "expired", broken)
    report = check()
    assert report["failed_lanes"] == 1
    assert report["retried"] == sum(job.shard != 0 for job in jobs) > 0


def test_out_of_time_it_says_where_it_is_and_goes_on_from_there(
    ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS A13; FAILURES 2: a batch of others starved the later ones."""
    monkeypatch.setattr(timeout_checker, "PAGE", 5)
    jobs = [start(ledger) for _ in range(100)]
    clock.tick(minutes=30)
    cursors: dict[str, Any] = {}
    reports = []
    for _ in range(20):
        report = Checker(ledger, stop_at=clock(), execution=no_execution).run(cursors)  # a page a lane, then stop
        reports.append(report)
        cursors = report["cursors"]
        if report["finished"]:
            break
    assert len(reports) > 2
    assert sum(report["retried"] for report in reports) == 100
    assert all(ledger.get(job.job_id).attempt == 2 for job in jobs)


def test_a_pass_that_has_time_goes_through_all_of_its_pages(
    ledger: Ledger, clock: FakeClock, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS A13: none of them waits for the next pass."""
    monkeypatch.setattr(timeout_checker, "PAGE", 5)
    for _ in range(100):
        start(ledger)
    clock.tick(minutes=30)
    report = check()
    assert (report["finished"], report["retried"]) == (True, 100)


def test_jobs_that_cannot_be_judged_do_not_starve_those_behind_them(
    ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 2: they stay where the next pass would begin if it did not go on."""
    monkeypatch.setattr(timeout_checker, "PAGE", 1)
    for _ in range(40):
        start(ledger, execution_arn="arn:broken")
    clock.tick(seconds=1)
    behind = [start(ledger) for _ in range(40)]
    clock.tick(minutes=30)

    def execution(job: Job) -> str | None:
        raise RuntimeError("Step Functions is down")

    cursors: dict[str, Any] = {}
    for _ in range(80):
        report = Checker(ledger, stop_at=clock(), execution=execution).run(cursors)
        cursors = report["cursors"]
        if report["finished"]:
            break
    assert report["finished"]
    assert all(ledger.get(job.job_id).attempt == 2 for job in behind)


def test_a_pass_ends_before_its_function_does(
    ledger: Ledger, clock: FakeClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Lambda kills it, and nobody learns where the next pass has to go on."""
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    monkeypatch.setattr(timeout_checker, "PAGE", 1)
    for _ in range(200):
        start(ledger)
    clock.tick(minutes=30)
    whole, at_a_time = store.expired, threading.Lock()

    def slow(*args: Any, **options: Any) -> Any:
        with at_a_time:
            clock.tick(seconds=0.5)
        return whole(*args, **options)

    monkeypatch.setattr(store, "expired", slow)
    killed_at = clock() + timedelta(minutes=1)
    report = timeout_checker.handler({"waited": True}, FakeContext(timedelta(minutes=1)))
    assert not report["finished"]
    assert clock() < killed_at


@pytest.mark.parametrize(
    ("event", "applies"),
    [({}, True), ({"waited": False}, True), ({"waited": True}, False), ({"cursors": {"due/0": "done"}}, False)],
)
def test_settings_take_effect_once_a_minute_and_by_hand(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], applies: bool
) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    applied: list[str] = []
    monkeypatch.setattr(timeout_checker, "apply_settings", lambda: applied.append("now"))
    timeout_checker.handler(event, FakeContext())
    assert bool(applied) is applies


def test_a_pass_waits_for_the_settings_no_longer_than_its_function_may_take(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    waits: list[timedelta] = []
    monkeypatch.setattr(timeout_checker, "apply_settings_within", waits.append)
    for left in (timedelta(minutes=1), timedelta(seconds=8)):
        timeout_checker.handler({}, FakeContext(left))
    assert waits[0] == timeout_checker.SETTINGS_TIME
    assert timedelta() < waits[1] < timedelta(seconds=8)


def test_its_cost_grows_with_the_expired_jobs_alone(
    ledger: Ledger, clock: FakeClock, check: Any, store: MemoryStore
) -> None:
    """REQUIREMENTS A13."""
    for _ in range(500):
        start(ledger, replace(POLICY, timeout=timedelta(hours=9)))
    store.requests = 0
    check()
    assert store.requests == 2 * SHARDS
    old = start(ledger)
    clock.tick(minutes=30)
    store.requests = 0
    assert check()["retried"] == 1
    assert store.requests == 2 * SHARDS + 3, "the lane of the expired job is read, written, and looked ahead in"
    assert ledger.get(old.job_id).attempt == 2


def test_it_tells_how_long_the_oldest_was_overdue(ledger: Ledger, clock: FakeClock, check: Any) -> None:
    start(ledger)
    clock.tick(minutes=42)
    assert check()["oldest_overdue_seconds"] == 12 * 60
    assert check()["oldest_overdue_seconds"] == 0


def test_a_singleton_that_dies_for_good_frees_its_lock(
    ledger: Ledger, clock: FakeClock, check: Any, store: MemoryStore
) -> None:
    policy = replace(POLICY, singleton=True, max_attempts=1)
    start(ledger, policy)
    clock.tick(minutes=30)
    assert check()["failed"] == 1
    assert store.locks == {}
    start(ledger, policy)


def test_many_are_counted_by_what_became_of_them(ledger: Ledger, clock: FakeClock, check: Any) -> None:
    for index in range(30):
        start(ledger, replace(POLICY, max_attempts=1 + index % 3))
    clock.tick(minutes=30)
    report = check()
    assert (report["expired"], report["retried"], report["failed"]) == (30, 20, 10)


def test_an_event_it_does_not_take_is_an_error() -> None:
    with pytest.raises(Permanent, match="cursor: is not known here"):
        timeout_checker.handler({"cursor": {}}, FakeContext())
    with pytest.raises(Permanent, match="waited: takes true or false, got"):
        timeout_checker.handler({"waited": "yes"}, FakeContext())
    for bad in (5, "later", {"pk": "x"}, {"pk": {"S": 5}}, {"pk": {"N": "5"}}):
        with pytest.raises(Permanent, match=r"cursors\.due/0: takes done, or the cursor of another pass"):
            timeout_checker.handler({"cursors": {"due/0": bad}}, FakeContext())


def test_only_the_heartbeat_is_measured_while_there_is_nothing_to_do(
    ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    monkeypatch.setattr(timeout_checker, "apply_settings", lambda: None)

    def measured() -> set[str]:
        timeout_checker.handler({}, FakeContext())
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
        return {metric["Name"] for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]}

    assert measured() == {"CheckerHeartbeat"}
    start(ledger)
    clock.tick(minutes=31)
    assert measured() == {"CheckerHeartbeat", "OldestOverdueSeconds", "JobsExpired"}


def test_two_checkers_that_read_the_same_jobs_count_each_retry_once(
    ledger: Ledger, clock: FakeClock, store: MemoryStore, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: both have read all 200 before either writes; what one retried, the other has lost."""
    jobs = [start(ledger) for _ in range(200)]
    clock.tick(minutes=30)
    both_have_read = Barrier(2, timeout=60)
    monkeypatch.setattr(timeout_checker, "ThreadPoolExecutor", Inline)  # so that each lane of one meets the other's
    whole = store.apply_many

    def apply_many(changes: Sequence[Change]) -> list[Outcome]:
        if changes:
            both_have_read.wait()
        return whole(changes)

    monkeypatch.setattr(store, "apply_many", apply_many)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: check(), range(2)))
    assert sum(report["retried"] for report in reports) == 200
    assert sum(report["lost"] for report in reports) == 200
    rows = [ledger.get(job.job_id) for job in jobs]
    assert {(row.attempt, len(row.errors), len(row.rescues)) for row in rows} == {(2, 1, 1)}
