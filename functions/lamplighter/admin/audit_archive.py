"""Audit archive: moves the audit log's old days to S3, where they are kept for years (REQUIREMENTS E1).

A phase of the cleanup, monthly. Each complete UTC day older than `retention.rules.audit_log.keep_days` is written as
one object, read back and compared, and linked into the archive's chain (`audit_chain`). Only then its rows are deleted,
each on condition that it is, byte for byte, the line that the object holds. Being killed anywhere leaves at worst an
object that nothing names, or rows that are in the archive too: the next run takes the one for its own or writes beside
it, and deletes the others before it does anything else. A row that comes late, or is changed after its day was read,
goes into the next part of that day.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel

from lamplighter import rules
from lamplighter.admin.audit_chain import GZIP, Chain, Contents, Damaged, Link, Meter, object_key
from lamplighter.deletion import ramp
from lamplighter.kernel import phases
from lamplighter.kernel.aws import client
from lamplighter.kernel.deletion import archive_bucket
from lamplighter.kernel.errors import Retryable
from lamplighter.kernel.job import Context, Run, Unfinished
from lamplighter.kernel.job import Report as JobReport

if TYPE_CHECKING:
    from sqlalchemy import Engine

FETCH: Final = 1_000
"""Rows that are read at once."""
UPLOAD_PART: Final = 8 << 20
"""Bytes of a part of an upload; S3 takes at least 5 MiB, and 10 000 parts ("Amazon S3 multipart upload limits")."""
OBJECT_LIMIT: Final = 1 << 30
"""Bytes of rows, uncompressed, after which an object ends; a day that has more goes on in its next part."""
LEVEL: Final = 6
"""gzip's."""

FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
"""No earlier: Python knows no moment before it, and an infinite one belongs to no day."""

DEFINITION: Final = {"table": "audit_log", "clock": "created_at"}
"""What the ramp knows of it (REQUIREMENTS S3)."""

LAG: Final = timedelta(days=1)
"""How far a standby may be behind; rows are archived days later at the earliest."""

_OF_PERIOD: Final = "FROM audit_log t WHERE created_at >= :start AND created_at < :end"

_DELETE: Final = """
    DELETE FROM audit_log t
    USING (SELECT line, (line::jsonb ->> 'id')::bigint AS id FROM string_to_table(:lines, E'\\n') AS line) archived
    WHERE t.id = archived.id AND to_jsonb(t)::text = archived.line
"""


class Head(BaseModel):
    """The newest link of the chain: kept with the job, away from the archive, it proves all before it."""

    number: int
    sha256: str


class Tally(BaseModel):
    """What the stretches of a run have done so far."""

    days: int = 0
    """Days with rows that are old enough; in a preview, those there are."""
    rows: int = 0
    """Their rows."""
    removed: int = 0
    """Rows deleted from the database."""
    objects: int = 0
    bytes: int = 0
    """Of the objects."""
    oldest: date | None = None
    newest: date | None = None


class Report(Tally, JobReport):
    """What a run archived."""

    head: Head | None = None
    held_by_ramp: int = 0
    """Rows old enough that are left in the database because the first runs delete only a few, or because of
    `max_rows`."""
    dry_run: bool

    def counts(self) -> tuple[int, int]:
        """Rows removed, bytes written."""
        return self.removed, self.bytes


class Stopped(Exception):
    """The run was asked to stop."""

    def __init__(self, reason: Literal["cancelled", "out_of_time"]) -> None:
        self.reason = reason


class LimitReached(Exception):
    """The run has deleted as many rows as it may."""


def body(run: Run) -> Report | Unfinished:
    """Archive what is old enough, a day at a time; a preview counts it.

    Raises:
        DatabaseUnavailable: nothing is lost, the next run goes on.
        Damaged: an object did not read back as it was written; its rows are still in the database.
        Retryable: another run archives at the same time.
    """
    from lamplighter.kernel.database import engine

    given = run.settings.rule("audit_log")
    before, limits = cutoff(run.now(), given.keep_days or 0), ramp.of_rows("audit_log", DEFINITION, given)
    if rules.previews("audit_log", run.job, run.settings):
        report = preview(engine(), before)
        return report.model_copy(
            update={"held_by_ramp": ramp.held_back(report.rows, ramp.look(now=run.now(), **limits))}
        )
    with engine().connect():
        pass  # a database that is down uses up no allowance
    allowance = ramp.open(run=run.job_id, now=ramp.began(run.job_id, run.now()), **limits)
    archiver = Archiver(run, client("s3"), archive_bucket(), engine(), allowance)
    try:
        archiver.archive(before)
    except Stopped as stopped:
        if stopped.reason == "out_of_time":
            return Unfinished(checkpoint=archiver.tally.model_dump(mode="json"), report=archiver.report())
        return archiver.report()
    except LimitReached:
        held = preview(engine(), before).rows
        allowance.acted(archiver.tally.removed)
        return archiver.report().model_copy(update={"held_by_ramp": held})
    allowance.acted(archiver.tally.removed)
    return archiver.report()


def cutoff(now: datetime, keep_days: float) -> datetime:
    """The midnight (UTC) before which rows are archived: all of their day is at least so many days old."""
    kept_since = now.astimezone(UTC) - timedelta(days=keep_days)
    return kept_since.replace(hour=0, minute=0, second=0, microsecond=0)


def preview(engine: Engine, before: datetime) -> Report:
    """What there is to archive."""
    from sqlalchemy import text

    from lamplighter.kernel.database import whole_view

    statement = (
        "SELECT count(*) AS rows, count(DISTINCT (created_at AT TIME ZONE 'UTC')::date) AS days,"
        f" min(created_at) AS oldest, max(created_at) AS newest {_OF_PERIOD}"
    )
    with engine.connect() as connection:
        whole_view(connection, max_lag=LAG)
        found = connection.execute(text(statement), {"start": FIRST, "end": before}).one()
    return Report(
        days=found.days,
        rows=found.rows,
        oldest=found.oldest and found.oldest.date(),
        newest=found.newest and found.newest.date(),
        dry_run=True,
    )


def bounds(day: date) -> dict[str, datetime]:
    """A UTC day's first moment, and the next one's."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return {"start": start, "end": start + timedelta(days=1)}


class Archiver:
    """One stretch of a run."""

    def __init__(self, run: Run, s3: Any, bucket: str, engine: Engine, allowance: ramp.Allowance) -> None:
        self._allowance = allowance
        self.tally = Tally.model_validate(run.checkpoint or {})
        self._run = run
        self._s3 = s3
        self._bucket = bucket
        self._engine = engine
        self._chain = Chain(s3, bucket)
        self._head = self._chain.head()

    def archive(self, before: datetime) -> None:
        """Archive every day before a midnight.

        Raises:
            Stopped: between two batches.
            LimitReached: nothing more may be deleted, and there are rows left that are old enough.
        """
        self._check()
        if self._head:
            self._end(self._head)
        after, oldest = FIRST, None
        while day := self._next_day(after, before):
            self._check()
            if self._allowance.left == 0:
                raise LimitReached
            oldest = oldest or day
            self._run.progress(100 * (day - oldest).days // (before.date() - oldest).days, f"archiving {day}")
            link, whole = self._write(day)
            if link is None:  # its rows have gone meanwhile
                after = bounds(day)["end"]
                continue
            self._count(link)
            removed = self._remove(link)
            if whole or not removed:  # what is left was changed meanwhile: it is the next run's
                after = bounds(day)["end"]

    def report(self) -> Report:
        """What all stretches have done."""
        head = self._head and Head(number=self._head.number, sha256=self._head.sha256)
        return Report(**self.tally.model_dump(), head=head, dry_run=False)

    def _check(self) -> None:
        if reason := self._run.stop():
            raise Stopped(reason)

    def _next_day(self, after: datetime, before: datetime) -> date | None:
        from sqlalchemy import text

        from lamplighter.kernel.database import whole_view

        statement = text(f"SELECT min(created_at) {_OF_PERIOD}")
        with self._engine.connect() as connection:
            whole_view(connection, max_lag=LAG)
            oldest = connection.execute(statement, {"start": after, "end": before}).scalar_one()
        return oldest.astimezone(UTC).date() if oldest else None

    def _end(self, link: Link) -> None:
        """Delete what a run that died after it had appended the link has left of its rows."""
        from sqlalchemy import text

        with self._engine.connect() as connection:
            left = text(f"SELECT EXISTS (SELECT {_OF_PERIOD})")
            if not connection.execute(left, bounds(date.fromisoformat(link.day))).scalar_one():
                return
        if self._read_back(link.key) != link.contents:
            raise Damaged(f"{link.day}: {link.key} is not what was archived; its rows that are left were not deleted.")
        self._remove(link)

    def _write(self, day: date) -> tuple[Link | None, bool]:
        """Write a day's rows, verify them and append their link; whether that was all of them."""
        # The last object there is may be one whose run died before it was linked.
        for part in count(max(0, self._chain.parts(day) - 1)):
            key = object_key(day, part)
            upload = Upload(self._s3, self._bucket, key)
            try:
                whole = self._export(day, upload)
                if not upload.meter.rows:
                    return None, True
                ours = upload.complete()
            finally:
                upload.abandon()
            wrote = upload.meter.contents
            try:
                found = self._read_back(key)
            except Damaged:
                if ours:
                    raise
                continue
            if found == wrote or (not ours and _same_rows(found, wrote)):
                return self._append(day, key, found), whole
            if ours:
                raise Damaged(f"{day}: {key} does not read back as it was written; no row was deleted.")
        raise AssertionError("Parts are counted without end.")

    def _export(self, day: date, upload: Upload) -> bool:
        """Stream the day's rows, of one snapshot, into the upload; False when the object is full before they end."""
        from sqlalchemy import text

        from lamplighter.kernel.database import whole_view

        lines = text(f"SELECT to_jsonb(t)::text {_OF_PERIOD} ORDER BY created_at, id")
        size = 0
        with self._engine.connect().execution_options(stream_results=True) as connection:
            whole_view(connection, max_lag=LAG)
            for batch in connection.execute(lines, bounds(day)).scalars().partitions(FETCH):
                self._check()
                rows = "".join(f"{line}\n" for line in batch).encode()
                upload.write(rows)
                size += len(rows)
                if size >= OBJECT_LIMIT:
                    return False
        return True

    def _read_back(self, key: str) -> Contents:
        meter = Meter()
        for _ in self._chain.pieces(key, meter):
            self._check()
        return meter.contents

    def _append(self, day: date, key: str, contents: Contents) -> Link:
        link = Link(
            number=self._head.number + 1 if self._head else 0,
            day=day.isoformat(),
            key=key,
            contents=contents,
            archived_at=self._run.now().isoformat(timespec="milliseconds"),
            previous=self._head.sha256 if self._head else None,
        )
        if not self._chain.append(link):
            raise Retryable(f"Another run has archived something: {link.day} is left to the next attempt.")
        self._head = link
        return link

    def _remove(self, link: Link) -> int:
        """Delete the rows that an archived object holds, where they still are as it holds them.

        Raises:
            LimitReached: some of them are left, which the next run deletes first.
        """
        from sqlalchemy import text

        statement, removed = text(_DELETE), 0
        for piece in self._chain.pieces(link.key, Meter()):
            lines = piece.decode().removesuffix("\n").split("\n")
            while lines:
                self._check()
                some = lines[: self._allowance.reserve(len(lines))]
                if not some:
                    raise LimitReached
                with self._engine.begin() as connection:
                    gone = connection.execute(statement, {"lines": "\n".join(some)}).rowcount
                self._allowance.give_back(len(some) - gone)
                removed += gone
                self.tally.removed += gone
                del lines[: len(some)]
        return removed

    def _count(self, link: Link) -> None:
        day, tally = date.fromisoformat(link.day), self.tally
        tally.days += tally.newest != day
        tally.oldest = min(tally.oldest or day, day)
        tally.newest = max(tally.newest or day, day)
        tally.rows += link.contents.rows
        tally.objects += 1
        tally.bytes += link.contents.bytes


def _same_rows(one: Contents, other: Contents) -> bool:
    return (one.rows, one.rows_sha256) == (other.rows, other.rows_sha256)


class Upload:
    """An object that is written as it comes, in parts once it is larger than one; never over another."""

    def __init__(self, s3: Any, bucket: str, key: str) -> None:
        self.meter = Meter()
        self._s3 = s3
        self._at = {"Bucket": bucket, "Key": key}
        self._gzip = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, rows: bytes) -> None:
        """Some whole lines."""
        self.meter.unpacked(rows)
        self._take(self._gzip.compress(rows))
        if len(self._buffer) >= UPLOAD_PART:
            self._send()

    def complete(self) -> bool:
        """Make the object; False if there is one of that key, which is left as it is."""
        from botocore.exceptions import ClientError

        self._take(self._gzip.flush())
        try:
            if not self._upload_id:
                body = bytes(self._buffer)
                self._s3.put_object(**self._at, Body=body, ContentType="application/gzip", IfNoneMatch="*")
                return True
            self._send()
            self._s3.complete_multipart_upload(
                **self._at, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}, IfNoneMatch="*"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        self._upload_id = None
        return True

    def abandon(self) -> None:
        """Give up what was not completed."""
        if self._upload_id:
            self._s3.abort_multipart_upload(**self._at, UploadId=self._upload_id)

    def _take(self, data: bytes) -> None:
        self.meter.packed(data)
        self._buffer += data

    def _send(self) -> None:
        if not self._upload_id:
            made = self._s3.create_multipart_upload(**self._at, ContentType="application/gzip")
            self._upload_id = made["UploadId"]
        number = len(self._parts) + 1
        answer = self._s3.upload_part(**self._at, UploadId=self._upload_id, PartNumber=number, Body=bytes(self._buffer))
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._buffer.clear()


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The Lambda that serves the phase `audit_log`."""
    return phases.take(event, context, {"audit_log": rules.unless_missing("audit_log", body)})
