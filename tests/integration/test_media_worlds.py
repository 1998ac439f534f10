"""The orphan cleanup over generated worlds, through SQL and S3: no referenced object is deleted, whatever happens.

Rows are written and objects replaced while a run goes on, and the process dies at any of its writes; the oracle is the
world itself (`tests/worlds.py`). LAMPLIGHTER_SQL_WORLDS=2000 python -m pytest tests/integration/test_media_worlds.py
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from sqlalchemy import Engine, text

from lamplighter.deletion import ramp
from lamplighter.kernel import aws
from lamplighter.kernel.deletion import Refused
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.row import Job, Policy, Status, Trigger, new_job_id
from lamplighter.kernel.settings import parse
from lamplighter.media import listing, orphan_cleanup, scan
from tests.conftest import Seeded
from tests.integration.media_world import ScriptedRun
from tests.memory_s3 import Crash, MemoryS3
from tests.memory_trust import MemoryTable
from tests.worlds import World

SEEDS = int(os.environ.get("LAMPLIGHTER_SQL_WORLDS", "60"))
ARCHIVE = "archive"
OLD = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = {"text": ["text", "varchar"], "array": ["text[]"], "json": ["jsonb", "json", "text"], "html": ["text"]}
ADOPTIONS: list[Callable[[str], str]] = [
    lambda key: key,
    lambda key: f"https://cdn.example.com/{quote(key)}?v=1",
    lambda key: f"./{key.upper()}",
    lambda key: quote(key, safe=""),
]
"""Forms in which a row may come to name an orphan during a run."""


@dataclass
class Stage:
    """A world in Postgres and S3, and what a run over it may meet."""

    world: World
    engine: Engine
    s3: MemoryS3
    rng: random.Random
    adopted: set[str] = field(default_factory=set)
    """Orphans that a row came to name."""
    replaced: set[str] = field(default_factory=set)
    crashes: int = 0

    @property
    def references(self) -> list[dict[str, Any]]:
        """The columns as their owner declares them."""
        found = []
        for column in self.world.columns:
            table, _, name = column.name.rpartition(".")
            declared: dict[str, Any] = {"table": table, "column": name, "folder": column.folder}
            declared |= {"strip": column.strip, "elsewhere": column.elsewhere, "max_unmatched": column.missing}
            declared |= {"max_unreadable": column.missing if column.folder else 0}
            declared |= {"json": {"kind": "json", "path": "$.files[*].url"}, "html": {"kind": "html"}}.get(
                column.kind, {}
            )
            found.append(declared)
        return found

    def fill(self) -> None:
        """The rows and the objects."""
        with self.engine.begin() as connection:
            for column in self.world.columns:
                table, _, name = column.name.rpartition(".")
                kind = self.rng.choice(TYPES.get(column.kind, ["text"]))
                connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
                connection.execute(text(f"CREATE TABLE {table} ({name} {kind})"))
                if column.kind == "text":
                    connection.execute(text(f"CREATE INDEX ON {table} USING hash ({name})"))
                value = "ARRAY(SELECT json_array_elements_text(CAST(v AS json)))" if kind == "text[]" else "v"
                connection.execute(
                    text(
                        f"INSERT INTO {table} SELECT CAST({value} AS {kind})"
                        " FROM json_array_elements_text(CAST(:values AS json)) AS v"
                    ),
                    {"values": json.dumps([*column.values, None][:-1])},
                )
        self.s3.buckets |= {self.world.bucket: {}, ARCHIVE: {}}
        for key in [*self.world.objects, f"{self.world.base_path}notes.txt"]:
            self.s3.put(self.world.bucket, key, key.encode(), modified=OLD)

    def adopt(self, forms: Sequence[Callable[[str], str]]) -> None:
        """A row comes to name an orphan that is still there."""
        plain = [column for column in self.world.columns if column.kind == "text"]
        left = sorted(self.world.orphans - self.adopted - set(self.s3.deleted))
        if not plain or not left:
            return
        key = self.rng.choice(left)
        table, _, name = self.rng.choice(plain).name.rpartition(".")
        value = self.rng.choice(forms)(key)
        with self.engine.begin() as connection:
            connection.execute(text(f"INSERT INTO {table} ({name}) VALUES (:value)"), {"value": value})
        self.adopted.add(key)

    def replace(self, _forms: object = None) -> None:
        """An orphan is uploaded again, with the same content or another."""
        left = sorted(self.world.orphans - self.replaced - set(self.s3.deleted))
        if left:
            key = self.rng.choice(left)
            self.s3.put(self.world.bucket, key, self.rng.choice([key.encode(), b"new"]))
            self.replaced.add(key)

    def run(self, job_id: str, attempt: int, checkpoint: dict[str, Any] | None, stops: dict[int, Any]) -> Any:
        """An attempt, as far as it comes."""
        now = datetime.now(UTC)
        job = Job(
            job_id=job_id,
            job_type="orphan_cleanup",
            status=Status.RUNNING,
            policy=Policy(timeout=timedelta(minutes=15)),
            created_at=now,
            run_at=now,
            trigger=Trigger.CLI,
            attempt=attempt,
            checkpoint=checkpoint,
        )
        settings = parse({"allow_override": True, "media": {"exclude": self.world.exclude}}, source="a test")
        run = ScriptedRun(job, settings=settings, now=now, stops=stops)
        params = orphan_cleanup.handler.validated(
            {
                "bucket": self.world.bucket,
                "base_path": self.world.base_path,
                "references": self.references,
                "dry_run": False,
                "min_age_hours": 1,
                "quarantine_hours": 0,
                "max_orphan_share": 0.5,
            }
        )
        return orphan_cleanup.handler.body(run, params.resolved(run.settings))

    def to_the_end(self) -> orphan_cleanup.Report | None:
        """A run with its retries and continuations; None when it was refused."""
        job_id = new_job_id(datetime.now(UTC), self.rng.randbytes(10))
        checkpoint, stops = None, {}
        for attempt in range(1, 60):
            try:
                outcome = self.run(job_id, attempt, checkpoint, stops)
            except Crash:
                self.crashes += 1
                continue
            except Refused:
                return None
            if not isinstance(outcome, Unfinished):
                return outcome
            checkpoint = outcome.checkpoint
            stops = {self.rng.randint(3, 9): "out_of_time"} if self.rng.random() < 0.5 else {}
        raise AssertionError("the run never ends")


@pytest.fixture
def stage(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Sets a world up and takes it down."""
    for name, value in {
        "ARCHIVE_BUCKET": ARCHIVE,
        "STACK_NAME": "lamplighter",
        "ALERTS_TOPIC_ARN": "arn:aws:sns:us-east-1:111122223333:alerts",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scan, "PART", 10)
    monkeypatch.setattr(listing, "PAGES_A_BATCH", 1)
    trust = MemoryTable()
    monkeypatch.setattr(ramp, "table", lambda: trust)
    s3 = MemoryS3(page=60)
    client, lister = s3.client(), s3.client()
    made = boto3.client
    monkeypatch.setattr(aws, "client", lambda name: client if name == "s3" else made(name))
    monkeypatch.setattr(boto3, "client", lambda *_, **__: lister)

    def set_up(seed: int, **more: Any) -> Stage:
        s3.buckets.clear()
        s3.deleted.clear()
        s3.writes = 0
        s3.before_write = s3.after_write = lambda number, key: None
        trust.items.clear()
        stage = Stage(World(seed, **more), engine, s3, random.Random(f"stage {seed}"))
        stage.fill()
        return stage

    return set_up


def judge(stage: Stage, report: orphan_cleanup.Report | None, seen: Counter[str]) -> None:
    """The oracle: nothing that is referenced is gone, and what is said is so."""
    world, where = stage.world, f"seed {stage.world.seed}\n{stage.world}"
    gone = set(world.objects) - set(stage.s3.keys(world.bucket))
    lost = gone - world.orphans
    assert not lost, f"deleted though referenced, excluded or ambiguous: {sorted(lost)[:3]}, {where}"
    # A row that comes after the last reading before a deletion cannot be seen; its window is one part.
    seen["worlds"] += 1
    seen["crashes"] += stage.crashes
    if report is None:
        seen["refused"] += 1
        assert not gone, where
        return
    seen["accepted"] += 1
    seen["orphans"] += len(world.orphans - stage.adopted - stage.replaced)
    seen["removed"] += len(gone)
    assert report.deleted_files == len(gone), where
    assert not gone & stage.replaced, f"deleted though uploaded again: {sorted(gone & stage.replaced)[:3]}, {where}"
    for source, column in zip(report.references, world.columns, strict=True):
        assert source.values == source.matched + source.outside + source.unmatched
        if column.kind != "html" and not stage.adopted:
            values = sum(bool(one.strip("\0\u200b\ufeff \t\n\r\xa0")) for one in column.strings)
            assert (source.values, source.unmatched) == (values, column.missing), f"{source}, {where}"


def test_worlds_as_they_are(stage: Callable[[int], Stage], seeded: Seeded) -> None:
    seen: Counter[str] = Counter()
    for seed, _ in seeded(range(SEEDS)):
        one = stage(seed)
        judge(one, one.to_the_end(), seen)

    print(dict(seen))  # noqa: T201 - what was reached
    assert seen["accepted"] > SEEDS // 4
    assert seen["refused"] > SEEDS // 20
    assert seen["removed"] >= 0.95 * seen["orphans"]


def test_worlds_that_change_while_they_are_cleaned(stage: Callable[[int], Stage], seeded: Seeded) -> None:
    """A row that is written before the last reading keeps its file in any form; one that comes later, in a usual form.

    Rows and uploads come right before some write of the run; the run may die at others, before or after they are done.
    """
    seen: Counter[str] = Counter()
    for seed, rng in seeded(range(1000, 1000 + SEEDS)):
        one = stage(seed, clean=seed % 2 == 0)
        events = {rng.randint(1, 20): rng.choice([one.adopt, one.replace]) for _ in range(rng.randint(1, 5))}
        deaths = {rng.randint(1, 30) for _ in range(rng.randint(0, 3))}
        after = rng.random() < 0.5
        happen, die = happening(events), dying(deaths)
        one.s3.before_write = happen if after else both(happen, die)
        one.s3.after_write = die if after else lambda number, key: None
        report = one.to_the_end()
        one.s3.before_write = one.s3.after_write = lambda number, key: None
        judge(one, report, seen)
        lost = one.adopted & set(one.world.objects) - set(one.s3.keys(one.world.bucket))
        assert not lost, f"deleted though a row came to name it: {sorted(lost)[:3]}, seed {seed}\n{one.world}"
        seen["adopted"] += len(one.adopted)
        seen["replaced"] += len(one.replaced)

    print(dict(seen))  # noqa: T201 - what was reached
    assert seen["crashes"] > SEEDS // 3
    assert min(seen["adopted"], seen["replaced"], seen["accepted"]) > SEEDS // 3
    assert seen["removed"] >= 0.9 * seen["orphans"]


def happening(events: dict[int, Callable[[Sequence[Callable[[str], str]]], None]]) -> Callable[[int, str], None]:
    """The events, each right before a write of that number or the next one that is not a deletion itself."""

    def act(number: int, key: str) -> None:
        if not key.startswith("runs/"):
            return
        early = "candidates-" in key or "references-" in key or "listed-" in key
        for due in [one for one in events if one <= number]:
            events.pop(due)(ADOPTIONS if early else ADOPTIONS[:1])

    return act


def dying(deaths: set[int]) -> Callable[[int, str], None]:
    """A crash at each write of such a number."""

    def act(number: int, _key: str) -> None:
        if number in deaths:
            raise Crash

    return act


def both(*actions: Callable[[int, str], None]) -> Callable[[int, str], None]:
    """One after the other."""

    def act(number: int, key: str) -> None:
        for action in actions:
            action(number, key)

    return act


def test_a_crash_at_each_single_write(stage: Callable[[int], Stage]) -> None:
    """Before it and after it, in one world after the other until every write of a run has been one."""
    seen: Counter[str] = Counter()
    number = 0
    while seen["crashes"] == number * 2:  # the last run came to its end before its crash
        number += 1
        for after in (False, True):
            one = stage(209, clean=True)
            die = dying({number})
            one.s3.before_write = (lambda number, key: None) if after else die
            one.s3.after_write = die if after else lambda number, key: None
            judge(one, one.to_the_end(), seen)
            assert set(one.s3.keys(one.world.bucket)) >= set(one.world.objects) - one.world.orphans

    assert number > 9
    assert seen["removed"] == seen["orphans"] > 0
