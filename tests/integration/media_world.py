"""A media bucket, an archive and references to try the media jobs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import Engine, text

from lamplighter.kernel.deletion import Entry, ManifestAddress, entries, verified
from lamplighter.kernel.job import Report, Run, Unfinished
from lamplighter.kernel.ledger.row import Job, Policy, Status, Trigger, new_job_id
from lamplighter.kernel.settings import Settings, parse
from lamplighter.media import orphan_cleanup, scan, undo
from tests.memory_trust import MemoryTable

type Stop = Literal["cancelled", "out_of_time"] | None


STRICT = {
    "allow_override": False,
    "media": {"apply": True, "min_age_hours": 0, "max_orphan_share": 1, "quarantine_hours": 0},
}
"""Settings under which a cleanup of the tests may act without being allowed to override anything."""


class ScriptedRun(Run):
    """A detached run that is told to stop at the n-th time it asks."""

    def __init__(self, job: Job, *, settings: Settings, now: datetime, stops: Mapping[int, Stop]) -> None:
        super().__init__(job, settings=settings, stop_at=datetime.max.replace(tzinfo=UTC), clock=lambda: now)
        self._stops = stops
        self.asked = 0

    def stop(self) -> Stop:
        """As the script says."""
        self.asked += 1
        answer = self._stops.get(self.asked)
        self.cancelled = self.cancelled or answer == "cancelled"
        return answer


class World:
    """What the tests of the media jobs arrange and look at."""

    def __init__(self, s3: Any, engine: Engine, trust: MemoryTable) -> None:
        self.s3 = s3
        self.engine = engine
        self.trust = trust
        name = uuid4().hex  # buckets share one name space, over all accounts
        self.media, self.archive, self.plain = f"media-{name}", f"archive-{name}", f"plain-{name}"
        for bucket in (self.media, self.archive):
            s3.create_bucket(Bucket=bucket)
            self.version(bucket)

    def version(self, bucket: str) -> None:
        """Switches versioning on."""
        self.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def put(self, *keys: str, body: bytes = b"x", bucket: str | None = None) -> None:
        """Objects of that content."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.s3.put_object(Bucket=bucket or self.media, Key=key, Body=body), keys))

    def refer(self, *values: str | None) -> None:
        """Rows of media_files."""
        self.sql("INSERT INTO media_files (storage_key) VALUES (:value)", *({"value": value} for value in values))

    def sql(self, statement: str, *rows: Mapping[str, Any]) -> None:
        """A statement in a transaction of its own."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), rows or None)

    def keys(self, bucket: str | None = None) -> list[str]:
        """What the bucket holds now, besides what is Lamplighter's own."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket or self.media)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return [key for key in keys if not key.startswith(scan.OWN)]

    def run(
        self,
        *,
        job_id: str | None = None,
        after: timedelta = timedelta(0),
        schedule: str | None = None,
        trigger: Trigger = Trigger.CLI,
        settings: Mapping[str, Any] | None = None,
        checkpoint: dict[str, Any] | None = None,
        attempt: int = 1,
        stops: Mapping[int, Stop] | None = None,
        job_type: str = "orphan_cleanup",
    ) -> ScriptedRun:
        """A run that takes place `after` now."""
        now = datetime.now(UTC) + after
        job = Job(
            job_id=job_id or new_job_id(now, now.isoformat()[-16:].encode()),
            job_type=job_type,
            status=Status.RUNNING,
            policy=Policy(timeout=timedelta(minutes=15)),
            created_at=now,
            run_at=now,
            schedule=schedule,
            trigger=trigger,
            checkpoint=checkpoint,
            attempt=attempt,
        )
        given = {"allow_override": True} | dict(settings or {})
        return ScriptedRun(job, settings=parse(given, source="a test"), now=now, stops=stops or {})

    def clean(self, run: Run | None = None, **params: Any) -> orphan_cleanup.Report:
        """A cleanup that comes to its end: in earnest and of files of any age, if not told otherwise."""
        outcome = self.attempt(run or self.run(), **params)
        assert isinstance(outcome, orphan_cleanup.Report)
        return outcome

    def attempt(self, run: Run, **params: Any) -> Report | Unfinished:
        """A cleanup as far as it comes."""
        given = {
            "bucket": self.media,
            "dry_run": False,
            "min_age_hours": 0,
            "max_orphan_share": 1,
            "quarantine_hours": 0,
        } | params
        return orphan_cleanup.handler.body(run, orphan_cleanup.handler.validated(given).resolved(run.settings))

    def undo(self, address: ManifestAddress | None, run: Run | None = None, **params: Any) -> undo.Report:
        """An undo that comes to its end, in earnest if not told otherwise."""
        assert address
        given = {"manifest": address.key, "sha256": address.sha256, "dry_run": False} | params
        report = undo.handler.body(run or self.run(job_type="undo"), undo.handler.validated(given))
        assert isinstance(report, undo.Report)
        return report

    def outcomes(self, address: ManifestAddress | None) -> dict[str, Entry]:
        """What a manifest says, by key."""
        assert address
        return {entry.key: entry for entry in entries(self.s3, address.bucket, verified(self.s3, address))}


def before(client: Any, operation: str, act: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
    """Has `act` happen right before each call of an S3 operation; returns what ends that."""

    def hook(params: Mapping[str, Any], **_: Any) -> None:
        act(params)

    name = f"provide-client-params.s3.{operation}"
    client.meta.events.register(name, hook)
    return lambda: client.meta.events.unregister(name, hook)


def numbered(count: Iterable[int]) -> list[str]:
    """Keys of images, in order."""
    return [f"uploads/{n:06}.jpg" for n in count]
