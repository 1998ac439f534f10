"""The ledger's store: one suite, run over DynamoDB and over the in-memory store that the unit tests use."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel import aws
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Permanent
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.dynamo import DynamoStore, from_item, to_item
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import AttemptError, Job, Policy, Status, encode, job_key, type_key
from lamplighter.kernel.ledger.store import (
    FENCE,
    FINAL,
    LEASE,
    SHARDS,
    Change,
    DuplicateJob,
    LockHeld,
    Outcome,
    Page,
    Store,
    after,
    shards,
)
from tests.conftest import Seeded
from tests.memory_store import MemoryStore
from tests.zombies import MOVES, WRITES, collide

DOCUMENTS = Path(__file__).parents[1] / "documents"
START = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)
POLICY = Policy(timeout=timedelta(minutes=30), target="lambda:sync")
SINGLE = replace(POLICY, singleton=True)


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["dynamodb", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    return DynamoStore(request.getfixturevalue("jobs_table")) if request.param == "dynamodb" else MemoryStore()


@pytest.fixture
def ledger(store: Store, clock: Clock) -> Ledger:
    return Ledger(store, clock=clock)


def start(ledger: Ledger, policy: Policy = POLICY, **values: Any) -> Job:
    return ledger.start(ledger.new_job("sync", policy, **values))


def test_a_row_comes_back_whole(ledger: Ledger) -> None:
    job = start(ledger, payload={"sizes": [1, 2.5, None], "name": "ü"}, schedule="sync", input_keys=("a", "b"))
    assert ledger.get(job.job_id) == job


def test_a_row_that_is_skipped_is_cancelled_from_the_start_and_takes_no_lock(ledger: Ledger) -> None:
    holder = start(ledger, SINGLE)
    skipped = ledger.skip(ledger.new_job("sync", SINGLE), {"reason": "too late"})
    assert ledger.get(skipped.job_id) == skipped
    assert (skipped.status, skipped.result, skipped.finished_at) == (Status.CANCELLED, {"reason": "too late"}, START)
    with pytest.raises(AlreadyRunning, match=holder.job_id):
        start(ledger, SINGLE)
    with pytest.raises(DuplicateJob):
        ledger.skip(ledger.new_job("sync", SINGLE, job_id=skipped.job_id), {})


def test_an_unknown_job_is_named(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="job_id: there is no job 'nonesuch'"):
        ledger.get("nonesuch")


def test_the_same_id_is_created_once(ledger: Ledger) -> None:
    job = start(ledger, payload={"first": True})
    with pytest.raises(DuplicateJob):
        ledger.submit(replace(job, payload={"first": False}))
    assert ledger.get(job.job_id).payload == {"first": True}


def test_the_same_claim_is_won_once_by_many_that_try_together(ledger: Ledger) -> None:
    job = ledger.submit(ledger.new_job("sync", POLICY))

    def claim(_: int) -> bool:
        try:
            ledger.claim(job.job_id, attempt=1, continuation=0)
        except LostLease:
            return False
        return True

    with ThreadPoolExecutor(8) as executor:
        assert sum(executor.map(claim, range(24))) == 1


def test_a_whole_life(ledger: Ledger, clock: Clock) -> None:
    job = ledger.claim(start_pending(ledger).job_id, attempt=1, continuation=0, execution_arn="arn:one")
    job = ledger.heartbeat(job, progress=30, message="a third")
    job = ledger.continue_later(job, checkpoint={"key": "m"}, result={"done": 1})
    job = ledger.claim(job.job_id, attempt=1, continuation=1)
    assert job.checkpoint == {"key": "m"}
    job = ledger.fail(job, ValueError("boom"))
    assert (job.status, job.attempt, job.execution_arn) == (Status.PENDING, 2, None)
    clock.now = job.run_at
    assert ledger.store.apply_many(ledger.releases([job])) == [Outcome.WRITTEN]
    job = ledger.claim(job.job_id, attempt=2, continuation=1)
    assert job.checkpoint == {"key": "m"}
    clock.now += timedelta(minutes=3)
    done = ledger.complete(job, {"done": 9})
    assert ledger.get(job.job_id) == done
    assert (done.status, done.finished_at, done.checkpoint, done.deadline_at) == (
        Status.COMPLETED,
        clock.now,
        None,
        None,
    )
    assert [error.type for error in done.errors] == ["ValueError"]


def start_pending(ledger: Ledger, **values: Any) -> Job:
    return ledger.submit(ledger.new_job("sync", POLICY, **values))


def test_a_zombie_can_write_nothing(ledger: Ledger, clock: Clock) -> None:
    """REQUIREMENTS K2; FAILURES 4."""
    zombie = start(ledger)
    clock.now += POLICY.timeout
    after = ledger.expire(zombie)
    for write in (
        lambda: ledger.heartbeat(zombie, progress=99, message="still here"),
        lambda: ledger.complete(zombie, {"late": True}),
        lambda: ledger.fail(zombie, ValueError("late")),
        lambda: ledger.finish_cancelled(zombie, None),
        lambda: ledger.continue_later(zombie, checkpoint={"late": True}, result=None),
    ):
        with pytest.raises(LostLease, match="moved on"):
            write()
    assert ledger.get(zombie.job_id) == after


@pytest.mark.parametrize("policy", [POLICY, SINGLE], ids=["plain", "singleton"])
@pytest.mark.parametrize("field", MOVES)
def test_no_write_of_a_zombie_passes_the_fence(
    ledger: Ledger, store: Store, clock: Clock, field: str, policy: Policy
) -> None:
    """K2, S11; FAILURES 32: each field of the fence by itself, in each way that the store writes."""
    seen, row = collide(ledger, start(ledger, policy), field)
    bystander = start(ledger)
    for name, write in WRITES[seen.status].items():
        change = Change(old=seen, new=write(seen, clock.now))
        with pytest.raises(LostLease, match="moved on"):
            store.apply(change)
        harmless = Change(old=bystander, new=bystander)
        assert store.apply_many([harmless, change, change]) == [Outcome.WRITTEN, Outcome.LOST, Outcome.LOST], name
        assert ledger.get(row.job_id) == row, name
    if policy.singleton and not row.status.terminal:
        with pytest.raises(LockHeld):
            store.create(ledger.new_job("sync", SINGLE))


def test_every_field_of_the_fence_has_a_zombie() -> None:
    assert set(MOVES) >= {*FENCE, LEASE}


@pytest.mark.parametrize(
    ("field", "other"),
    {
        "status": Status.FAILED,
        "attempt": 2,
        "continuation": 1,
        "released": False,
        "finished_at": START - timedelta(milliseconds=1),
        "redriven_as": "another",
    }.items(),
)
def test_a_finished_row_is_removed_only_as_it_was_read(ledger: Ledger, store: Store, field: str, other: Any) -> None:
    """Each field of what a removal expects by itself; a field that must be missing, and one that must be there."""
    assert field in FINAL
    job = ledger.complete(start(ledger), {"kept": True})
    assert store.remove_many([replace(job, **{field: other})]) == [Outcome.LOST]
    assert ledger.get(job.job_id) == job
    assert store.remove_many([job]) == [Outcome.WRITTEN]


def test_a_finished_job_cannot_be_expired_by_one_who_saw_it_running(ledger: Ledger, clock: Clock) -> None:
    """FAILURES 4: a successful job was later marked abandoned."""
    job = start(ledger)
    clock.now += POLICY.timeout
    change = ledger.expiry(job)
    done = ledger.complete(job, {"in": "time"})
    with pytest.raises(LostLease):
        ledger.store.apply(change)
    assert ledger.store.apply_many([change]) == [Outcome.LOST]
    assert ledger.get(job.job_id) == done


def test_an_expiry_loses_against_a_heartbeat(ledger: Ledger, clock: Clock) -> None:
    """FAILURES 1."""
    job = start(ledger, replace(POLICY, heartbeat=timedelta(minutes=2)))
    clock.now += timedelta(minutes=1)
    job = ledger.heartbeat(job, progress=1, message="alive")
    clock.now += timedelta(minutes=3)
    change = ledger.expiry(job)
    ledger.heartbeat(job, progress=1, message="alive")
    assert ledger.store.apply_many([change]) == [Outcome.LOST]


def test_many_changes_are_each_on_their_own(ledger: Ledger, clock: Clock) -> None:
    jobs = [start(ledger, replace(POLICY, max_attempts=1 + index % 2)) for index in range(60)]
    clock.now += POLICY.timeout
    changes = [ledger.expiry(job) for job in jobs]
    for index in (0, 30, 59):
        ledger.complete(jobs[index], None)
    outcomes = ledger.store.apply_many(changes)
    assert [index for index, outcome in enumerate(outcomes) if outcome is Outcome.LOST] == [0, 30, 59]
    for index, job in enumerate(jobs):
        row = ledger.get(job.job_id)
        if index in (0, 30, 59):
            assert row.status is Status.COMPLETED
        else:
            assert row == changes[index].new


def test_a_change_from_a_row_read_through_an_index_keeps_what_the_index_does_not_hold(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    job = start(ledger, payload={"keep": "me"}, input_keys=("a",))
    clock.now += POLICY.timeout
    (seen,) = store.expired(job.shard, clock.now, limit=10).jobs
    store.apply_many([ledger.expiry(seen)])
    clock.now = ledger.get(job.job_id).run_at
    (seen,) = store.due(job.shard, clock.now, limit=10).jobs
    store.apply_many(ledger.releases([seen]))
    again = ledger.claim(job.job_id, attempt=2, continuation=0)
    clock.now += POLICY.timeout
    (seen,) = store.expired(job.shard, clock.now, limit=10).jobs
    store.apply_many([ledger.expiry(seen)])
    row = ledger.get(job.job_id)
    assert (row.payload, row.input_keys, row.started_at) == ({"keep": "me"}, ("a",), again.started_at)
    assert [error.attempt for error in row.errors] == [1, 2]
    assert len(row.rescues) == 2


LEASED = replace(POLICY, target="bus")


def test_a_write_is_fenced_by_the_lease_that_was_read(ledger: Ledger, store: Store) -> None:
    """REQUIREMENTS K13: between a caller's read and its write, too."""
    job = ledger.claim(ledger.submit(ledger.new_job("sync", LEASED)).job_id, attempt=1, continuation=0)
    assert job.lease
    foreign = replace(job, lease="0" * 64)
    for write in (
        lambda: ledger.heartbeat(foreign, progress=99, message="mine"),
        lambda: ledger.complete(foreign, None),
        lambda: ledger.fail(foreign, ValueError("mine")),
    ):
        with pytest.raises(LostLease, match="moved on"):
            write()
    new = transitions.complete(foreign, now=ledger.clock(), result=None)
    assert store.apply_many([Change(old=foreign, new=new)]) == [Outcome.LOST]
    assert ledger.get(job.job_id) == job
    assert ledger.complete(job, None).lease is None


@pytest.mark.parametrize("many", [False, True])
def test_an_expiry_read_through_the_index_ends_the_lease(
    ledger: Ledger, store: Store, clock: Clock, many: bool
) -> None:
    """The index does not hold the lease."""
    job = ledger.claim(ledger.submit(ledger.new_job("sync", LEASED)).job_id, attempt=1, continuation=0)
    clock.now += POLICY.timeout
    (seen,) = store.expired(job.shard, clock.now, limit=10).jobs
    if many:
        assert store.apply_many([ledger.expiry(seen)]) == [Outcome.WRITTEN]
    else:
        ledger.expire(seen)
    row = ledger.get(job.job_id)
    assert (row.status, row.attempt, row.lease) == (Status.PENDING, 2, None)


def test_the_indexes_show_only_what_is_asked_for_in_order_page_by_page(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    expired = [start(ledger, replace(POLICY, timeout=timedelta(minutes=1 + index))) for index in range(12)]
    for _ in range(5):
        start(ledger, replace(POLICY, timeout=timedelta(days=1)))
    for job in expired[:2]:
        ledger.complete(job, None)
    waiting = [start_pending(ledger, run_at=clock.now + timedelta(minutes=5 + index)) for index in range(7)]
    clock.now += timedelta(minutes=12)
    assert seen(store, "expired", clock.now) == {job.job_id for job in expired[2:]}
    assert seen(store, "due", clock.now) == {job.job_id for job in waiting}
    assert seen(store, "due", clock.now - timedelta(minutes=6)) == {job.job_id for job in waiting[:2]}


def seen(store: Store, kind: str, now: datetime) -> set[str]:
    found: list[Job] = []
    for shard in shards():
        cursor = None
        while True:
            page = getattr(store, kind)(shard, now, limit=2, cursor=cursor)
            found += page.jobs
            cursor = page.next
            if cursor is None:
                break
    assert len({job.job_id for job in found}) == len(found)
    return {job.job_id for job in found}


def test_finished_jobs_stand_by_status_and_time_and_all_by_type(ledger: Ledger, store: Store, clock: Clock) -> None:
    first = ledger.complete(start(ledger), None)
    clock.now += timedelta(days=1)
    second = ledger.complete(start(ledger), None)
    start(ledger)
    before = {
        job.job_id
        for shard in shards()
        for job in store.finished(Status.COMPLETED, shard, START + timedelta(hours=1), limit=10).jobs
    }
    assert before == {first.job_id}
    found = newest(store, "sync", limit=2)
    assert found[0].created_at >= found[1].created_at
    assert second.job_id in {job.job_id for job in found}
    assert newest(store, "sync", limit=3)[2] == first


def make_of_one_partition(ledger: Ledger, clock: Clock, number: int, *, apart: timedelta) -> tuple[str, list[Job]]:
    """So many jobs that stand in one partition of their type, newest first."""
    made: list[Job] = []
    while len(made) < number:
        job = ledger.new_job("sync", POLICY)
        if job.shard == 0:
            made.insert(0, ledger.start(job))
            clock.now += apart
    return type_key("sync", 0), made


def test_a_types_jobs_are_read_by_period_and_on_from_any_of_them(ledger: Ledger, store: Store, clock: Clock) -> None:
    partition, made = make_of_one_partition(ledger, clock, 6, apart=timedelta(minutes=1))
    second, fifth = made[4].created_at, made[1].created_at
    assert store.of_type(partition, limit=9, since=second, until=fifth).jobs == tuple(made[1:5])
    assert store.of_type(partition, limit=9, since=fifth).jobs == tuple(made[:2])
    assert store.of_type(partition, limit=9, until=second).jobs == tuple(made[4:])
    place = after(partition, fifth, made[1].job_id)
    assert store.of_type(partition, limit=2, until=fifth, cursor=place).jobs == tuple(made[2:4])


def test_the_jobs_of_one_millisecond_are_each_read_once(ledger: Ledger, store: Store, clock: Clock) -> None:
    partition, made = make_of_one_partition(ledger, clock, 7, apart=timedelta())
    found: list[str] = []
    place = None
    while page := store.of_type(partition, limit=2, until=START, cursor=place).jobs:
        found += [job.job_id for job in page]
        place = after(partition, START, found[-1])
    assert (len(found), set(found)) == (7, {job.job_id for job in made})


# --- Types in shards (K16) ------------------------------------------------------------------------------------------


def put_old_row(store: Store, job: Job) -> None:
    """Write a row as it was written before types were sharded."""
    item = to_item(job) | {"job_type": {"S": job.job_type}}
    if isinstance(store, DynamoStore):
        aws.client("dynamodb").put_item(TableName=store.table, Item=item)
    else:
        assert isinstance(store, MemoryStore)
        store.items[job_key(job.job_id)] = encode(job) | {"job_type": job.job_type}


def stored_type(store: Store, job: Job) -> str:
    """How the row spells its type now."""
    if isinstance(store, DynamoStore):
        key = {"pk": {"S": job_key(job.job_id)}}
        return str(aws.client("dynamodb").get_item(TableName=store.table, Key=key)["Item"]["job_type"]["S"])
    assert isinstance(store, MemoryStore)
    return str(store.items[job_key(job.job_id)]["job_type"])


def test_a_row_from_before_types_were_sharded_is_read_and_moves_with_its_next_change(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    old = from_item(json.loads((DOCUMENTS / "job-row-0.1.json").read_text()))
    assert (old.job_type, old.status) == ("sync", Status.RUNNING)
    put_old_row(store, old)
    assert ledger.get(old.job_id) == old
    assert newest(store, "sync", limit=9) == [old]
    beaten = ledger.heartbeat(old, progress=1, message="alive")
    assert stored_type(store, beaten) == type_key("sync", old.shard)
    assert newest(store, "sync", limit=9) == [beaten]
    done = ledger.complete(beaten, None)
    assert newest(store, "sync", limit=9) == [done]
    assert store.remove_many([done]) == [Outcome.WRITTEN]


def test_a_table_of_old_rows_is_listed_in_order_while_it_moves(
    ledger: Ledger, store: Store, clock: Clock, seeded: Seeded
) -> None:
    """Some rows move, in batches too, some have finished for good, new ones come."""
    for _, rng in seeded(range(1)):
        jobs = []
        for _ in range(60):
            clock.now += timedelta(milliseconds=rng.choice([0, 0, 1]))
            job = transitions.claim(ledger.new_job("sync", POLICY), attempt=1, continuation=0, now=clock.now)
            put_old_row(store, job)
            jobs.append(job)
        changed = [store.apply(Change(old=job, new=replace(job, progress=5))) for job in jobs[:20]]
        clock.now += timedelta(hours=1)
        assert store.apply_many([ledger.expiry(job) for job in jobs[20:40]]) == [Outcome.WRITTEN] * 20
        made = [start(ledger) for _ in range(10)]
        found = newest(store, "sync", limit=1000)
        assert [job.created_at for job in found] == sorted((job.created_at for job in found), reverse=True)
        assert sorted(job.job_id for job in found) == sorted(job.job_id for job in [*jobs, *made])
        assert {stored_type(store, job) for job in [*changed, *jobs[20:40], *made]} == {
            type_key("sync", job.shard) for job in [*changed, *jobs[20:40], *made]
        }
        assert {stored_type(store, job) for job in jobs[40:]} == {"sync"}
        expired = {job.job_id for shard in shards() for job in store.expired(shard, clock.now, limit=99).jobs}
        assert expired == {job.job_id for job in [*jobs[:20], *jobs[40:]]}


def test_a_singleton_is_refused_while_another_lives_and_free_when_it_ends(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    """REQUIREMENTS K3."""
    holder = start(ledger, SINGLE)
    with pytest.raises(LockHeld):
        store.create(ledger.new_job("sync", SINGLE))
    with pytest.raises(AlreadyRunning, match=f"sync is already running: job {holder.job_id}"):
        start(ledger, SINGLE)
    with pytest.raises(DuplicateJob):  # the same tick again is a duplicate, not a rival
        ledger.submit(holder)
    ledger.complete(holder, None)
    assert start(ledger, SINGLE).status is Status.RUNNING


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("end", ["complete", "fail permanently", "finish_cancelled"])
def test_the_end_of_a_singleton_frees_its_lock_in_the_same_write(
    ledger: Ledger, store: Store, clock: Clock, end: str, many: bool
) -> None:
    """K3: no next run has to find out that the holder is dead. A retry keeps the lock."""
    job = start(ledger, SINGLE)
    job = store.apply(Change(old=job, new=WRITES[Status.RUNNING]["heartbeat"](job, clock.now)))
    rival = ledger.new_job("sync", SINGLE)
    with pytest.raises(LockHeld):
        store.create(rival)
    change = Change(old=job, new=WRITES[Status.RUNNING][end](job, clock.now))
    if many:
        assert store.apply_many([change]) == [Outcome.WRITTEN]
    else:
        store.apply(change)
    store.create(rival)
    store.apply(Change(old=rival, new=rival))
    waiting = store.apply(
        Change(old=rival, new=transitions.expire(rival, now=clock.now, jitter=0, reason="pickup", message="late"))
    )
    assert waiting.status is Status.PENDING
    with pytest.raises(LockHeld):
        store.create(ledger.new_job("sync", SINGLE))


def test_a_lock_is_taken_from_the_named_job_alone(ledger: Ledger, store: Store) -> None:
    """K3: who has seen a dead holder takes the lock from that one, not from a third that was quicker."""
    holder = start(ledger, SINGLE)
    rival = ledger.new_job("sync", SINGLE)
    with pytest.raises(LockHeld) as held:
        store.create(rival, instead_of="the one before")
    assert (held.value.holder, store.get(rival.job_id)) == (holder.job_id, None)
    store.create(rival, instead_of=holder.job_id)
    with pytest.raises(LockHeld) as held:
        store.create(ledger.new_job("sync", SINGLE))
    assert held.value.holder == rival.job_id


def test_rows_are_read_strongly_consistent(jobs_table: str, clock: Clock) -> None:
    """The local DynamoDB is so always; the real one only where it is asked."""
    asked: list[dict[str, Any]] = []
    store = DynamoStore(jobs_table)
    ledger = Ledger(store, clock=clock)
    job = start(ledger)
    for operation in ("GetItem", "BatchGetItem"):
        aws.client("dynamodb").meta.events.register(
            f"provide-client-params.dynamodb.{operation}", lambda params, **_: asked.append(params)
        )
    assert store.get(job.job_id) == job
    assert store.statuses([job.job_id]) == {job.job_id: Status.RUNNING}
    single, many = asked
    assert single["ConsistentRead"] is True
    assert many["RequestItems"][jobs_table]["ConsistentRead"] is True


def test_two_who_redrive_at_once_make_one_job(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """K10: both have read the row before either marked it."""
    dead = ledger.fail(start(ledger), Permanent("no"))
    first = ledger.redrive(dead.job_id)
    get = ledger.get
    monkeypatch.setattr(ledger, "get", lambda job_id: dead if job_id == dead.job_id else get(job_id))
    assert ledger.redrive(dead.job_id) == first
    assert [job.job_id for job in newest(ledger.store, "sync", limit=9) if job.redrive_of] == [first.job_id]


def test_a_singleton_that_lost_its_lease_frees_no_lock(ledger: Ledger, clock: Clock) -> None:
    zombie = start(ledger, replace(SINGLE, max_attempts=1))
    clock.now += POLICY.timeout
    second = start(ledger, replace(SINGLE, max_attempts=1))  # the dead holder was expired on the way
    assert ledger.get(zombie.job_id).status is Status.FAILED
    with pytest.raises(LostLease):
        ledger.complete(zombie, None)
    with pytest.raises(AlreadyRunning, match=second.job_id):
        start(ledger, SINGLE)


def test_of_many_that_start_a_singleton_together_one_runs(ledger: Ledger) -> None:
    def attempt(_: int) -> bool:
        try:
            start(ledger, SINGLE)
        except AlreadyRunning:
            return False
        return True

    with ThreadPoolExecutor(8) as executor:
        assert sum(executor.map(attempt, range(16))) == 1


def test_a_dead_letter_is_listed_until_it_is_redriven_and_redriving_twice_is_once(ledger: Ledger, clock: Clock) -> None:
    """REQUIREMENTS K10."""
    failed = [ledger.fail(start(ledger, payload={"n": n}), Permanent("no")) for n in range(5)]
    ledger.complete(start(ledger), None)
    assert {job.job_id for job in ledger.dead_letters(limit=10)} == {job.job_id for job in failed}
    assert len(ledger.dead_letters(limit=3)) == 3
    again = ledger.redrive(failed[2].job_id)
    assert ledger.redrive(failed[2].job_id).job_id == again.job_id
    assert (again.status, again.payload, again.redrive_of) == (Status.PENDING, {"n": 2}, failed[2].job_id)
    assert failed[2].job_id not in {job.job_id for job in ledger.dead_letters(limit=10)}
    old = ledger.get(failed[2].job_id)
    assert replace(old, redriven_as=None) == failed[2]
    with pytest.raises(Permanent, match="not on the dead-letter list"):
        ledger.redrive(again.job_id)


def test_what_failed_or_was_cancelled_is_retried_as_one_new_job(ledger: Ledger) -> None:
    failed = ledger.fail(start(ledger, payload={"n": 1}), Permanent("no"))
    cancelled = ledger.cancel(start_pending(ledger, payload={"n": 2}).job_id)
    for old in (failed, cancelled):
        again = ledger.retry(old.job_id)
        assert (again.status, again.payload, again.redrive_of) == (Status.PENDING, old.payload, old.job_id)
        assert ledger.retry(old.job_id).job_id == again.job_id


def test_what_waits_for_its_backoff_is_released_by_a_retry(ledger: Ledger) -> None:
    waiting = ledger.fail_as(start(ledger), "IOError", "the disk is full", stack_trace="line 1")
    assert (waiting.released, waiting.errors[0].type, waiting.errors[0].stack_trace) == (False, "IOError", "line 1")
    released = ledger.retry(waiting.job_id)
    assert (released.job_id, released.status, released.released) == (waiting.job_id, Status.PENDING, True)


def test_what_runs_or_completed_is_not_retried(ledger: Ledger) -> None:
    running, done = start(ledger), ledger.complete(start(ledger), None)
    for job in (running, done, start_pending(ledger)):
        with pytest.raises(Permanent, match="only what failed, was cancelled or waits is retried"):
            ledger.retry(job.job_id)


def test_a_cancellation_that_races_a_heartbeat_is_seen_by_the_next(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.cancel(job.job_id)
    beaten = ledger.heartbeat(job, progress=5, message="unaware")
    assert beaten.cancel_requested is True


def test_a_row_with_the_longest_errors_and_report_fits(ledger: Ledger) -> None:
    error = AttemptError(
        type="E",
        message="ü" * transitions.MESSAGE_LIMIT,
        stack_trace="ü" * transitions.STACK_TRACE_LIMIT,
        attempt=1,
        at=START,
        reason="error",
    )
    job = start(ledger, errors=(error,) * 9, result={"report": "x" * 200_000})
    assert ledger.get(job.job_id) == job


def test_an_empty_change_still_demands_its_fence(ledger: Ledger, store: Store) -> None:
    job = start(ledger)
    assert store.apply(Change(old=job, new=job)) == job
    done = ledger.complete(job, None)
    with pytest.raises(LostLease):
        store.apply(Change(old=job, new=job))
    assert ledger.get(job.job_id) == done


class Collision:
    """botocore's `before-call` hook: the first `times` writes meet another that is under way."""

    def __init__(self, times: int, code: str) -> None:
        self.left = times
        self._code = code

    def __call__(self, **_: Any) -> Any:
        if not self.left:
            return None
        self.left -= 1
        error = {"Error": {"Code": self._code, "Message": "Transaction is ongoing for the item"}}
        if self._code == "TransactionCanceledException":
            error["CancellationReasons"] = [{"Code": "TransactionConflict"}, {"Code": "None"}]  # type: ignore[assignment]
        status = type("Answer", (), {"status_code": 400})()
        return status, error | {"ResponseMetadata": {"HTTPStatusCode": 400}}


@pytest.mark.parametrize("times", [1, 3])
def test_a_write_that_meets_another_is_tried_again(
    jobs_table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Else a finished singleton that is cancelled in the same moment would be recorded as failed, and run again."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    events = aws.client("dynamodb").meta.events
    ledger = Ledger(DynamoStore(jobs_table), clock=clock)
    transaction = Collision(0, "TransactionCanceledException")
    single = Collision(0, "TransactionConflictException")
    events.register("before-call.dynamodb.TransactWriteItems", transaction)
    events.register("before-call.dynamodb.UpdateItem", single)
    transaction.left = times
    job = start(ledger, SINGLE)
    single.left = times
    job = ledger.heartbeat(job, progress=1, message="alive")
    transaction.left = times
    assert ledger.complete(job, {"done": 1}).status is Status.COMPLETED
    assert len(waits) == 3 * times
    transaction.left = 100
    with pytest.raises(Exception, match="TransactionCanceled"):
        start(ledger, SINGLE)


def test_the_oldest_dead_letters_come_first_whatever_shard_they_are_in(ledger: Ledger, clock: Clock) -> None:
    """A shard that yields more than was asked for must not shorten the search of the next."""

    def dead(shard: int) -> Job:
        clock.now += timedelta(minutes=1)
        number = next(
            n for n in range(1000) if ledger.new_job("sync", POLICY, job_id=f"{clock.now:%H%M}-{n}").shard == shard
        )
        return ledger.fail(start(ledger, job_id=f"{clock.now:%H%M}-{number}"), Permanent("no"))

    ledger.redrive(dead(1).job_id)
    oldest = [dead(1), dead(1)]
    ledger.redrive(dead(0).job_id)
    for _ in range(3):
        dead(0)
    assert [job.job_id for job in ledger.dead_letters(limit=2)] == [job.job_id for job in oldest]


def test_dead_letters_are_read_only_as_far_as_they_are_asked_for(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of each shard, however many jobs have failed."""
    for _ in range(3 * SHARDS):
        ledger.fail(start(ledger), Permanent("no"))
    read, pages = store.finished, Counter[int]()

    def counted(status: Status, shard: int, *asked: Any, **options: Any) -> Page:
        pages[shard] += 1
        return read(status, shard, *asked, **options)

    monkeypatch.setattr(store, "finished", counted)
    assert len(ledger.dead_letters(limit=1)) == 1
    assert pages == dict.fromkeys(range(SHARDS), 1)


def finish(ledger: Ledger, number: int, **values: Any) -> Job:
    """A job that completed, failed or was cancelled, by its number."""
    job = start(ledger, **values)
    ends = (
        lambda: ledger.complete(job, {"n": number, "text": "ü" * 100}),
        lambda: ledger.fail(job, Permanent("no")),
        lambda: ledger.finish_cancelled(job, None),
    )
    return ends[number % 3]()


def test_finished_jobs_are_removed_and_removing_them_twice_is_once(ledger: Ledger, store: Store) -> None:
    jobs = [finish(ledger, number) for number in range(60)]
    stays = finish(ledger, 0)
    assert store.remove_many(jobs) == [Outcome.WRITTEN] * 60
    assert store.remove_many(jobs[:2]) == [Outcome.WRITTEN] * 2
    assert [store.get(job.job_id) for job in jobs] == [None] * 60
    assert ledger.get(stays.job_id) == stays


def test_a_finished_job_that_changed_since_it_was_read_is_not_removed(ledger: Ledger, store: Store) -> None:
    """A redrive marks its row, and the copy in the history must have the mark."""
    seen = [ledger.fail(start(ledger), Permanent("no")) for _ in range(30)]
    ledger.redrive(seen[7].job_id)
    outcomes = store.remove_many(seen)
    assert [number for number, outcome in enumerate(outcomes) if outcome is Outcome.LOST] == [7]
    marked = ledger.get(seen[7].job_id)
    assert marked.redriven_as is not None
    assert store.remove_many([marked]) == [Outcome.WRITTEN]


def test_what_a_batch_leaves_undone_is_removed_on_its_own_unless_it_changed(jobs_table: str, clock: Clock) -> None:
    """DynamoDB may throttle single statements of a batch."""
    ledger = Ledger(DynamoStore(jobs_table), clock=clock)
    seen = [ledger.fail(start(ledger), Permanent("no")) for _ in range(2)]
    ledger.redrive(seen[0].job_id)
    throttled = {"Responses": [{"Error": {"Code": "ThrottlingError", "Message": "slow down"}}] * len(seen)}
    answer = type("Answer", (), {"status_code": 200})(), throttled
    aws.client("dynamodb").meta.events.register("before-call.dynamodb.BatchExecuteStatement", lambda **_: answer)

    assert ledger.store.remove_many(seen) == [Outcome.LOST, Outcome.WRITTEN]
    assert ledger.get(seen[0].job_id).redriven_as is not None


def test_another_job_that_took_a_removed_ones_id_is_not_removed(ledger: Ledger, store: Store, clock: Clock) -> None:
    first = ledger.complete(start(ledger), None)
    store.remove_many([first])
    clock.now += timedelta(seconds=1)
    second = ledger.complete(start(ledger, job_id=first.job_id), None)
    assert store.remove_many([first]) == [Outcome.LOST]
    assert ledger.get(first.job_id) == second


def test_a_job_that_lives_is_never_removed(ledger: Ledger, store: Store) -> None:
    done, running, waiting = ledger.complete(start(ledger), None), start(ledger), start_pending(ledger)
    for job in (running, waiting):
        with pytest.raises(ValueError, match="only finished jobs are removed"):
            store.remove_many([done, job])
    assert ledger.get(done.job_id) == done


def test_pages_go_on_while_what_they_showed_is_removed(ledger: Ledger, store: Store, clock: Clock) -> None:
    """The cursor names the last row of a page, which is gone by the time it is used."""
    jobs = {finish(ledger, 0).job_id for _ in range(25)}
    clock.now += timedelta(hours=1)
    seen: list[str] = []
    for shard in shards():
        cursor = None
        while True:
            page = store.finished(Status.COMPLETED, shard, clock.now, limit=3, cursor=cursor)
            seen += [job.job_id for job in page.jobs]
            store.remove_many(page.jobs)
            cursor = page.next
            if cursor is None:
                break
    assert sorted(seen) == sorted(jobs)


def test_a_removed_dead_letter_cannot_be_redriven(ledger: Ledger, store: Store) -> None:
    dead = ledger.fail(start(ledger), Permanent("no"))
    store.remove_many([dead])
    with pytest.raises(Permanent, match=f"no job '{dead.job_id}' in the ledger.*job_history.* and can be redriven no"):
        ledger.redrive(dead.job_id)


def test_what_was_redriven_runs_once_even_after_its_row_has_been_removed(ledger: Ledger, store: Store) -> None:
    dead = ledger.fail(start(ledger), Permanent("no"))
    again = ledger.redrive(dead.job_id)
    done = ledger.complete(ledger.claim(again.job_id, attempt=1, continuation=0), None)
    store.remove_many([done])
    with pytest.raises(Permanent, match=f"was redriven as {again.job_id}, which has finished and moved"):
        ledger.redrive(dead.job_id)
    assert store.get(again.job_id) is None


# --- The checker's next wait (K15) --------------------------------------------------------------------------------


def test_a_wait_is_noted_once_unless_it_ends_later_or_is_over(store: Store) -> None:
    def reserve(until: int, *, at: int = 0) -> bool:
        return store.reserve_wait(START + timedelta(seconds=until), earliest=START + timedelta(seconds=at))

    assert reserve(60)
    assert not reserve(60)
    assert not reserve(90)
    assert reserve(30)
    assert not reserve(60, at=30)
    assert reserve(60, at=31)


def test_a_wait_that_was_noted_can_be_forgotten_by_whoever_noted_it(store: Store) -> None:
    first, second = START + timedelta(seconds=60), START + timedelta(seconds=30)
    assert store.reserve_wait(first, earliest=START)
    assert store.reserve_wait(second, earliest=START)
    store.free_wait(first)
    assert not store.reserve_wait(second, earliest=START)
    store.free_wait(second)
    store.free_wait(second)
    assert store.reserve_wait(first, earliest=START)


def test_many_at_once_note_one_wait(store: Store) -> None:
    until = START + timedelta(seconds=60)
    with ThreadPoolExecutor(8) as pool:
        noted = list(pool.map(lambda _: store.reserve_wait(until, earliest=START), range(24)))
    assert sum(noted) == 1


def test_what_falls_due_later_is_read_from_a_moment_on(ledger: Ledger, store: Store, clock: Clock) -> None:
    jobs = [start(ledger, replace(POLICY, timeout=timedelta(minutes=minutes))) for minutes in (1, 2, 3)]
    later = [ledger.submit(ledger.new_job("sync", POLICY, run_at=START + timedelta(minutes=m))) for m in (1, 2, 3)]

    def read(kind: str, since: datetime, until: datetime) -> set[str]:
        pages = [getattr(store, kind)(shard, until, limit=9, since=since) for shard in shards()]
        return {job.job_id for page in pages for job in page.jobs}

    since, until = START + timedelta(minutes=2), START + timedelta(minutes=3)
    assert read("expired", since, until) == {job.job_id for job in jobs[1:]}
    assert read("due", since, until) == {job.job_id for job in later[1:]}
    assert read("due", since + timedelta(milliseconds=1), until) == {later[2].job_id}


def test_two_checkers_at_once_count_and_retry_each_job_once(ledger: Ledger, clock: Clock) -> None:
    jobs = [start(ledger) for _ in range(200)]
    clock.now += timedelta(hours=1)

    def check(_: int) -> dict[str, Any]:
        return Checker(ledger, stop_at=clock.now + timedelta(seconds=50), execution=lambda _: None).run({})

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(check, range(2)))
    assert sum(report["retried"] for report in reports) == 200
    assert [report["errors"] for report in reports] == [0, 0]
    rows = [ledger.get(job.job_id) for job in jobs]
    assert {(row.attempt, len(row.errors), len(row.rescues)) for row in rows} == {(2, 1, 1)}
