"""Generated worlds on a stage: rows in Postgres, objects in an S3 of this process, and the deployed job's body.

What the integration tests and the bench of generated worlds share. The settings are those of an owner who applies the
cleanup and lifts its ramp; everything else, the governor too, is as it is deployed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import boto3
from sqlalchemy import Engine, text

from lamplighter.deletion import ramp
from lamplighter.kernel import aws
from lamplighter.kernel.deletion import Refused
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.row import Job, Policy, Status, Trigger, new_job_id
from lamplighter.kernel.settings import parse
from lamplighter.media import listing, orphan_cleanup, scan
from tests.integration.media_world import ScriptedRun
from tests.memory_s3 import Crash, MemoryS3
from tests.memory_trust import MemoryTable
from tests.worlds import World

ARCHIVE = "archive"
OLD = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = {"text": ["text", "varchar"], "array": ["text[]"], "json": ["jsonb", "json", "text"], "html": ["text"]}
TYPES |= {"strings": TYPES["json"], "document": ["text"]}
DECLARED: dict[str, dict[str, Any]] = {
    "json": {"kind": "json", "path": "$.files[*].url"},
    "strings": {"kind": "json"},
    "html": {"kind": "html"},
    "document": {"kind": "html"},
}
PART = 10
"""Entries in a part: a world has several of each kind."""
ENVIRONMENT = {
    "ARCHIVE_BUCKET": ARCHIVE,
    "STACK_NAME": "lamplighter",
    "ALERTS_TOPIC_ARN": "arn:aws:sns:us-east-1:111122223333:alerts",
}


@contextmanager
def theatre(engine: Engine, *, page: int = 60, part: int = PART, quick: bool = False) -> Iterator[Callable[..., Stage]]:
    """Puts this process's S3 and table of trust in the place of AWS. Gives what sets up the world of a seed.

    Args:
        engine: of the database that `lamplighter.kernel.database` uses.
        page: keys in a page of a listing.
        part: candidates in a part.
        quick: look at single objects without boto3, which takes half of a small world's time.
    """
    trust, s3 = MemoryTable(), MemoryS3(page=page)
    client, lister, made = s3.client(), s3.client(), boto3.client

    def set_up(seed: int, **more: Any) -> Stage:
        s3.buckets.clear()
        s3.deleted.clear()
        s3.writes = 0
        s3.before_write = s3.after_write = lambda number, key: None
        trust.items.clear()
        stage = Stage(World(seed, **more), engine, s3, random.Random(f"stage {seed}"))
        stage.fill()
        return stage

    with ExitStack() as patches:
        for change in (
            patch.dict(os.environ, ENVIRONMENT),
            patch.object(scan, "PART", part),
            patch.object(listing, "PAGES_A_BATCH", 1),
            patch.object(ramp, "table", lambda: trust),
            patch.object(aws, "client", lambda name: client if name == "s3" else made(name)),
            patch.object(boto3, "client", lambda *_, **__: lister),
        ):
            patches.enter_context(change)
        if quick:
            patches.enter_context(patch.object(listing, "look", lambda _, bucket, key: s3.look(bucket, key)))
        yield set_up


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
    refusals: list[str] = field(default_factory=list)
    """Why the governor refused the last run."""

    @property
    def references(self) -> list[dict[str, Any]]:
        """The columns as their owner declares them."""
        found = []
        for column in self.world.columns:
            table, _, name = column.name.rpartition(".")
            declared: dict[str, Any] = {"table": table, "column": name, "folder": column.folder}
            declared |= {"strip": column.strip, "elsewhere": column.elsewhere, "max_unmatched": column.missing}
            declared |= {"max_unreadable": column.missing if column.folder else 0}
            declared |= DECLARED.get(column.kind, {})
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
        for key in [*self.world.objects, *self.world.neighbours, f"{self.world.base_path}notes.txt"]:
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
        settings = parse(
            {
                "media": {
                    "apply": True,
                    "ramp": False,
                    "base_path": self.world.base_path,
                    "references": self.references,
                    "exclude": self.world.exclude,
                    "min_age_hours": 1,
                    "quarantine_hours": 0,
                }
            },
            source="a generated world",
        )
        run = ScriptedRun(job, settings=settings, now=now, stops=stops)
        os.environ["MEDIA_BUCKET"] = self.world.bucket
        params = orphan_cleanup.handler.validated({})
        return orphan_cleanup.handler.body(run, params.resolved(run.settings))

    def to_the_end(self) -> orphan_cleanup.Report | None:
        """A run with its retries and continuations; None when it was refused."""
        self.refusals = []
        job_id = new_job_id(datetime.now(UTC), self.rng.randbytes(10))
        checkpoint, stops = None, {}
        for attempt in range(1, 60):
            try:
                outcome = self.run(job_id, attempt, checkpoint, stops)
            except Crash:
                self.crashes += 1
                continue
            except Refused as refused:
                report = refused.report
                assert isinstance(report, orphan_cleanup.Report)
                self.refusals = report.refusals
                return None
            if not isinstance(outcome, Unfinished):
                self.refusals = outcome.refusals  # with nothing to remove, a refused run ends well
                return None if self.refusals else outcome
            checkpoint = outcome.checkpoint
            stops = {self.rng.randint(3, 9): "out_of_time"} if self.rng.random() < 0.5 else {}
        raise AssertionError("the run never ends")
