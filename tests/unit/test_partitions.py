"""No partition of an index is a bottleneck: write units are counted as DynamoDB bills them (REQUIREMENTS K16)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import SHARDS, Job, Policy, encode
from tests.conftest import Seeded
from tests.memory_store import MemoryStore
from tests.template.project import Project
from tests.unit.conftest import FakeClock

JOBS: Final = 1000
CHANGES_A_SECOND: Final = 4000
UNITS: Final = 1000
"""Write units a second that one partition takes (Amazon DynamoDB, "Best practices for partition keys")."""
POLICY: Final = Policy(timeout=timedelta(minutes=30), target="bus", heartbeat=timedelta(minutes=5))

INDEXES: Final = Project().resources["JobsTable"]["Properties"]["GlobalSecondaryIndexes"]


def size(value: Any) -> int:
    """Bytes of an attribute's value."""
    match value:
        case str():
            return len(value.encode())
        case bool():
            return 1
        case int():
            return 1 + math.ceil(len(str(value)) / 2)
        case list():
            return 3 + sum(1 + size(each) for each in value)
    return 3 + sum(1 + len(name) + size(each) for name, each in value.items())


def entry(index: dict[str, Any], job: Job | None) -> dict[str, Any] | None:
    """What an index holds of a row."""
    item = encode(job) if job else {}
    keys = [key["AttributeName"] for key in index["KeySchema"]]
    if not all(key in item for key in keys):
        return None
    projection = index["Projection"]
    if projection["ProjectionType"] == "ALL":
        return item
    names = {*keys, "pk", *projection["NonKeyAttributes"]}
    return {name: value for name, value in item.items() if name in names}


def units(item: dict[str, Any]) -> int:
    """Write units of one write of it."""
    return math.ceil(sum(len(name) + size(value) for name, value in item.items()) / 1024)


def written(old: Job | None, new: Job | None) -> Counter[tuple[str, str]]:
    """The write units that a change takes, by index and partition ("Global secondary indexes", write capacity)."""
    found: Counter[tuple[str, str]] = Counter()
    for index in INDEXES:
        name, keys = index["IndexName"], [key["AttributeName"] for key in index["KeySchema"]]
        was, becomes = entry(index, old), entry(index, new)
        if was == becomes:
            continue
        if was and becomes and all(was[key] == becomes[key] for key in keys):
            found[name, was[keys[0]]] += max(units(was), units(becomes))
            continue
        for one in (was, becomes):
            if one:
                found[name, one[keys[0]]] += units(one)
    return found


def completed(ledger: Ledger, clock: FakeClock, rng: random.Random) -> None:
    """A worker's job, with heartbeats."""
    job = ledger.submit(ledger.new_job("sync", POLICY, payload={"library": 7, "paths": ["2026/01/31"] * 8}))
    job = ledger.claim(job.job_id, attempt=1, continuation=0)
    for progress in range(rng.randrange(3)):
        clock.tick(seconds=1)
        job = ledger.heartbeat(job, progress=progress, message="at work")
    ledger.complete(job, {"items": 17})


def beating(ledger: Ledger, clock: FakeClock, rng: random.Random) -> None:
    """Hardly anything but heartbeats, each of which moves the row within the index by deadline."""
    job = ledger.submit(ledger.new_job("sync", POLICY, payload={"library": 7}))
    job = ledger.claim(job.job_id, attempt=1, continuation=0)
    for progress in range(10):
        clock.tick(seconds=1)
        job = ledger.heartbeat(job, progress=progress, message="at work")
    ledger.complete(job, {"items": 17})


def retried(ledger: Ledger, clock: FakeClock, rng: random.Random) -> None:
    """A job that fails, waits, is released and completes."""
    job = ledger.submit(ledger.new_job("sync", POLICY))
    job = ledger.fail(ledger.claim(job.job_id, attempt=1, continuation=0), ValueError("boom"))
    clock.now = max(clock.now, job.run_at)
    ledger.store.apply_many(ledger.releases([job]))
    ledger.complete(ledger.claim(job.job_id, attempt=2, continuation=0), None)


@pytest.mark.parametrize("life", [completed, beating, retried])
def test_four_thousand_changes_a_second_of_one_type_fit(
    clock: FakeClock, seeded: Seeded, life: Callable[[Ledger, FakeClock, random.Random], None]
) -> None:
    """On paper: each partition of each index gets its share, and that is less than a partition takes."""
    for _, rng in seeded(range(1)):
        counted: Counter[tuple[str, str]] = Counter()
        changes: list[tuple[Job | None, Job | None]] = []
        ledger = Ledger(MemoryStore(lambda old, new, to=changes: to.append((old, new))), clock=clock, rng=rng)
        for _ in range(JOBS):
            life(ledger, clock, rng)
        for change in changes:
            counted += written(*change)
        assert {name for name, _ in counted} >= {"by_deadline", "by_type", "by_status"}
        for name in {name for name, _ in counted}:
            of_index = {partition: number for (index, partition), number in counted.items() if index == name}
            assert max(of_index.values()) < 1.25 * sum(of_index.values()) / SHARDS, f"{name}: {of_index}"
            hottest = max(of_index.values()) * CHANGES_A_SECOND / len(changes)
            print(f"{name}: {hottest:.0f} units a second of {UNITS}")  # noqa: T201 - shown with a failure
            assert hottest <= UNITS, f"{name}: {of_index}"


def test_a_singleton_is_spread_like_any_other(ledger: Ledger, clock: FakeClock, store: MemoryStore) -> None:
    for _ in range(200):
        ledger.complete(ledger.start(ledger.new_job("sync", replace(POLICY, singleton=True))), None)
    partitions = Counter(item["job_type"] for item in store.items.values())
    assert len(partitions) == SHARDS
    assert max(partitions.values()) < 2 * 200 / SHARDS
