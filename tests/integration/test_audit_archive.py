"""The audit log's archive: written, proven, deleted, read back; over a real Postgres and a real S3 endpoint."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from lamplighter.admin import audit_archive, audit_read
from lamplighter.admin.audit_archive import Report, body, cutoff
from lamplighter.admin.audit_chain import LINKS, OBJECTS, Chain, Damaged, Link
from lamplighter.kernel import database
from lamplighter.kernel.errors import Retryable
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.settings import parse
from tests.integration.media_world import ScriptedRun, Stop, before
from tests.unit.conftest import FakeContext

NOW = datetime(2026, 8, 31, 14, 30, tzinfo=UTC)
OLD = datetime(2026, 3, 3, tzinfo=UTC)
"""A midnight long before the cutoff."""
MICROSECOND = timedelta(microseconds=1)

Row = dict[str, Any]


class Killed(BaseException):
    """The process ended here."""


class Log:
    """The audit log, its archive, and what is done with them."""

    def __init__(self, s3: Any, engine: Engine) -> None:
        self.s3 = s3
        self.engine = engine
        self.bucket = f"archive-{uuid4().hex}"
        s3.create_bucket(Bucket=self.bucket)
        s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def add(self, *moments: datetime, **values: Any) -> None:
        """A row of each moment."""
        values = {"actor": "ann", "action": "login", "details": "{}"} | values
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO audit_log (actor, action, details, created_at)"
                    " VALUES (:actor, :action, CAST(:details AS jsonb), :at)"
                ),
                [values | {"at": moment} for moment in moments],
            )

    def fill(self, rows: int, *, start: datetime = OLD, days: int = 1) -> None:
        """Rows of all kinds of text, spread evenly."""
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO audit_log (actor, action, target, details, created_at) SELECT 'user ' || mod(i, 7),"
                    " (ARRAY['login', 'a \"quoted\" one', E'two\\nlines\\ttab', 'back\\slash', 'ü\u2028😀'])"
                    "[1 + mod(i, 5)], nullif(mod(i, 3), 0)::text,"
                    " jsonb_build_object('n', i, 'x', 1.50, 'deep', jsonb_build_array(null, i)),"
                    " CAST(:start AS timestamptz) + i * (CAST(:span AS interval) / :rows)"
                    " FROM generate_series(0, :rows - 1) i"
                ),
                {"start": start, "span": timedelta(days=days), "rows": rows},
            )

    def rows(self) -> list[Row]:
        """What is in the database, as the archive spells it."""
        with self.engine.connect() as connection:
            return list(
                connection.execute(text("SELECT to_jsonb(t) FROM audit_log t ORDER BY created_at, id")).scalars()
            )

    def sql(self, statement: str, **values: Any) -> None:
        """A statement in a transaction of its own."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def run(
        self,
        *,
        now: datetime = NOW,
        keep_days: int = 90,
        dry_run: bool = False,
        apply: bool = True,
        ramp: bool = False,
        job_id: str = "01RUN",
        stops: Mapping[int, Stop] | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> Report | Unfinished:
        """One stretch of the phase."""
        job = Job(
            job_id=job_id,
            job_type="audit_archive",
            status=Status.RUNNING,
            policy=Policy(timeout=timedelta(minutes=5)),
            created_at=now,
            run_at=now,
            dry_run=dry_run,
            checkpoint=checkpoint,
        )
        return body(
            ScriptedRun(
                job,
                settings=parse(
                    {"retention": {"rules": {"audit_log": {"apply": apply, "keep_days": keep_days, "ramp": ramp}}}},
                    source="a test",
                ),
                now=now,
                stops=stops or {},
            )
        )

    def archive(self, **options: Any) -> Report:
        """A run that comes to its end."""
        report = self.run(**options)
        assert isinstance(report, Report)
        return report

    def objects(self) -> list[str]:
        """The archive's objects of rows."""
        answer = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=OBJECTS)
        return [entry["Key"] for entry in answer.get("Contents", ())]

    def links(self) -> list[Link]:
        """The chain."""
        chain = Chain(self.s3, self.bucket)
        return [chain.link(number) for number in chain.numbers()]

    def body_of(self, key: str) -> bytes:
        """An object's bytes."""
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def nothing_was_overwritten(self) -> bool:
        """Whether each key has one version only."""
        versions = self.s3.list_object_versions(Bucket=self.bucket)
        counted = Counter(version["Key"] for version in versions.get("Versions", ()))
        return not versions.get("DeleteMarkers") and set(counted.values()) <= {1}


@pytest.fixture
def log(s3: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log(s3, engine)
    monkeypatch.setenv("ARCHIVE_BUCKET", log.bucket)
    return log


@pytest.fixture
def read(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command: its status, what it printed, what it complained of."""

    def run(*arguments: str, now: datetime = NOW) -> tuple[int, str, str]:
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", printed)
            status = audit_read.main(["--bucket", log.bucket, *arguments], s3=log.s3, now=now)
        return status, printed.buffer.getvalue().decode(), capsys.readouterr().err  # type: ignore[attr-defined]

    return run


def read_rows(read: Callable[..., tuple[int, str, str]], *arguments: str) -> list[Row]:
    """The rows that the command prints; it has nothing to complain of."""
    status, printed, complaints = read(*arguments)
    assert (status, complaints) == (0, "")
    return [json.loads(line) for line in printed.splitlines()] if "\u2028" not in printed else _lines(printed)


def _lines(printed: str) -> list[Row]:
    return [json.loads(line) for line in printed.removesuffix("\n").split("\n")]


# -- what is archived, and when ----------------------------------------------------------------------------------------


def test_a_table_that_is_not_there_is_told_of_until_it_is_applied(
    log: Log, jobs_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: no deployment makes it."""
    log.sql("DROP TABLE audit_log")
    preview = {"phase": "audit_log", "dry_run": True}
    told = audit_archive.handler(preview, FakeContext())
    assert told["missing"] == 'The database refuses a statement (42P01): relation "audit_log" does not exist.'
    monkeypatch.setenv("LAMPLIGHTER_RETENTION_RULES", '{"audit_log": {"apply": true}}')
    with pytest.raises(DBAPIError, match="does not exist"):
        audit_archive.handler(preview, FakeContext())


def test_what_was_archived_reads_back_as_it_was(log: Log, read: Any) -> None:
    log.fill(500, days=3)
    before = log.rows()
    report = log.archive()
    assert (report.days, report.rows, report.removed, report.objects) == (3, 500, 500, 3)
    assert (report.oldest, report.newest) == (date(2026, 3, 3), date(2026, 3, 5))
    assert log.objects() == [f"audit/2026/03/2026-03-0{day}.jsonl.gz" for day in (3, 4, 5)]
    assert report.bytes == sum(len(log.body_of(key)) for key in log.objects())
    assert log.rows() == []
    assert read_rows(read) == before
    # any tool can read it, without ours
    assert _lines("".join(gzip.decompress(log.body_of(key)).decode() for key in log.objects())) == before


def test_only_whole_days_that_are_old_enough_are_archived(log: Log) -> None:
    """At midnight boundaries, of UTC, to the microsecond; the session's time zone is of no account."""
    first, last = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC)
    log.add(
        first - MICROSECOND, first, last - MICROSECOND, last, NOW - timedelta(days=90), NOW, NOW + timedelta(days=9)
    )
    assert cutoff(NOW, 90) == last
    log.sql("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")
    log.archive()
    assert log.objects() == ["audit/2026/05/2026-05-31.jsonl.gz", "audit/2026/06/2026-06-01.jsonl.gz"]
    assert [link.contents.rows for link in log.links()] == [1, 2]
    assert len(log.rows()) == 4
    assert log.archive(now=NOW + timedelta(days=1), keep_days=90).rows == 2
    assert len(log.rows()) == 2


@pytest.mark.parametrize(
    ("now", "days", "midnight"),
    [
        (datetime(2026, 3, 31, 0, 0, tzinfo=UTC), 1, datetime(2026, 3, 30, tzinfo=UTC)),
        (datetime(2026, 3, 31, 23, 59, 59, 999999, tzinfo=UTC), 1, datetime(2026, 3, 30, tzinfo=UTC)),
        (datetime(2024, 3, 1, 5, 0, tzinfo=UTC), 1, datetime(2024, 2, 29, tzinfo=UTC)),
        (datetime(2026, 3, 31, 1, 0, tzinfo=UTC).astimezone(), 90, datetime(2025, 12, 31, tzinfo=UTC)),
    ],
)
def test_the_cutoff_is_a_midnight(now: datetime, days: int, midnight: datetime) -> None:
    assert cutoff(now, days) == midnight


def test_what_the_settings_do_not_apply_is_only_previewed(log: Log) -> None:
    """S4."""
    log.fill(20)
    report = log.archive(apply=False)
    assert (report.dry_run, report.rows, len(log.rows())) == (True, 20, 20)
    assert log.s3.list_objects_v2(Bucket=log.bucket)["KeyCount"] == 0


def test_the_first_runs_delete_few_rows_and_the_next_goes_on(log: Log, read: Any) -> None:
    """S3. A day that was archived as a whole is left in the database in part."""
    log.fill(2_500, days=2)
    rows = log.rows()
    preview = log.archive(ramp=True, dry_run=True, job_id="preview")
    assert (preview.rows, preview.held_by_ramp) == (2_500, 1_500)

    first = log.archive(ramp=True, job_id="first")
    assert (first.removed, first.held_by_ramp, len(log.rows())) == (1_000, 1_500, 1_500)
    again = log.archive(ramp=True, job_id="first")
    assert (again.removed, again.held_by_ramp) == (0, 1_500)
    second = log.archive(ramp=True, job_id="second", now=NOW + timedelta(days=1))
    assert (second.removed, second.held_by_ramp, log.rows()) == (1_500, 0, [])
    assert sorted(read_rows(read), key=lambda row: row["id"]) == sorted(rows, key=lambda row: row["id"])


def test_days_without_rows_and_moments_without_a_day_make_nothing(log: Log) -> None:
    log.sql("ALTER TABLE audit_log ALTER created_at DROP NOT NULL")
    log.sql(
        "INSERT INTO audit_log (actor, action, created_at)"
        " VALUES ('a', 'b', NULL), ('a', 'b', '-infinity'), ('a', 'b', 'infinity')"
    )
    assert log.archive() == Report(dry_run=False)
    log.add(OLD, OLD + timedelta(days=40))
    assert log.archive().days == 2
    assert len(log.links()) == 2
    with log.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM audit_log")).scalar_one() == 3


def test_a_preview_counts_what_the_action_archives_and_writes_nothing(log: Log) -> None:
    """REQUIREMENTS K11."""
    log.fill(200, days=4)
    log.add(NOW)
    preview = log.archive(dry_run=True)
    assert log.s3.list_objects_v2(Bucket=log.bucket)["KeyCount"] == 0
    assert len(log.rows()) == 201
    report = log.archive()
    assert (preview.days, preview.rows, preview.oldest, preview.newest) == (4, 200, report.oldest, report.newest)
    assert (report.days, report.rows) == (4, 200)
    assert preview.removed == 0


def test_a_second_run_finds_nothing(log: Log) -> None:
    log.fill(50)
    first = log.archive()
    second = log.archive()
    assert second == Report(head=first.head, dry_run=False)
    assert len(log.links()) == 1


# -- late, changed, large ----------------------------------------------------------------------------------------------


def test_a_row_that_comes_late_goes_into_the_days_next_part(log: Log, read: Any) -> None:
    log.fill(30)
    rows = log.rows()
    log.archive()
    for part in (1, 2):
        log.add(OLD + timedelta(hours=part))
        rows += log.rows()
        log.archive()
    log.add(OLD + timedelta(days=1))  # another day has its own
    rows += log.rows()
    log.archive()
    assert log.objects() == [
        "audit/2026/03/2026-03-03.1.jsonl.gz",
        "audit/2026/03/2026-03-03.2.jsonl.gz",
        "audit/2026/03/2026-03-03.jsonl.gz",
        "audit/2026/03/2026-03-04.jsonl.gz",
    ]
    assert log.rows() == []
    assert read_rows(read) == rows
    assert log.nothing_was_overwritten()


def test_a_row_that_comes_after_the_snapshot_is_not_deleted(log: Log, read: Any) -> None:
    log.fill(30)
    early = log.rows()
    end = before(log.s3, "PutObject", _once(lambda _: log.add(OLD + timedelta(hours=5), actor="late")))
    log.archive()
    end()
    (late,) = log.rows()
    assert late["actor"] == "late"
    log.archive()
    assert log.rows() == []
    assert read_rows(read) == [*early, late]


def test_a_row_that_was_changed_after_the_snapshot_is_not_deleted(log: Log, read: Any) -> None:
    """What it was and what it became are both archived."""
    log.fill(30)
    early = log.rows()
    end = before(
        log.s3,
        "PutObject",
        _once(lambda _: log.sql("UPDATE audit_log SET action = 'mended' WHERE id = :id", id=early[7]["id"])),
    )
    report = log.archive()
    end()
    assert (report.rows, report.removed) == (30, 29)
    (changed,) = log.rows()
    assert changed == early[7] | {"action": "mended"}
    log.archive()
    assert log.rows() == []
    assert read_rows(read) == [*early, changed]


def _once(act: Callable[[Any], None]) -> Callable[[Any], None]:
    left = [act]

    def perhaps(params: Any) -> None:
        while left:
            left.pop()(params)

    return perhaps


def test_a_large_day_is_uploaded_in_parts(log: Log, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_archive, "FETCH", 50)
    monkeypatch.setattr(audit_archive, "UPLOAD_PART", 5 << 20)
    noise = random.Random(7)
    for hour in range(5):
        log.add(OLD + timedelta(hours=hour), details=json.dumps({"noise": noise.randbytes(1_500_000).hex()}))
    rows = log.rows()
    report = log.archive()
    assert report.bytes > 7 << 20
    assert report.objects == 1
    assert read_rows(read) == rows
    assert log.rows() == []
    assert not log.s3.list_multipart_uploads(Bucket=log.bucket).get("Uploads")


def test_a_day_that_is_too_large_for_one_object_has_several(
    log: Log, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_archive, "FETCH", 10)
    monkeypatch.setattr(audit_archive, "OBJECT_LIMIT", 5_000)
    log.fill(100)
    rows = log.rows()
    report = log.archive()
    assert report.days == 1
    assert report.objects == len(log.objects()) > 2
    assert read_rows(read) == rows
    assert log.rows() == []


# -- kills -------------------------------------------------------------------------------------------------------------


class Mortality:
    """Ends the process at its n-th step: a call of S3, a statement, a commit. What is dead does nothing more."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.step = 0
        self._dies_at = 0

    def _next(self, *_: Any, **__: Any) -> None:
        self.step += 1
        if self._dies_at and self.step >= self._dies_at:
            raise Killed

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Within this block; 0: counts only."""
        self.step, self._dies_at = 0, step
        events = self._log.s3.meta.events
        events.register("before-call.s3", self._next)
        event.listen(self._log.engine, "before_cursor_execute", self._next)
        event.listen(self._log.engine, "commit", self._next)
        try:
            yield
        finally:
            events.unregister("before-call.s3", self._next)
            event.remove(self._log.engine, "before_cursor_execute", self._next)
            event.remove(self._log.engine, "commit", self._next)
            self._log.engine.dispose()


def archived(log: Log) -> list[Row]:
    """What the objects hold that the chain names."""
    return [row for link in log.links() for row in _lines(gzip.decompress(log.body_of(link.key)).decode())]


def held(log: Log, rows: list[Row]) -> None:
    """Each row is in the database, or in the archive once, or both; no object was written over another."""
    counted = Counter(json.dumps(row) for row in archived(log))
    assert max(counted.values(), default=1) == 1, "a row is archived twice"
    there = counted.keys() | {json.dumps(row) for row in log.rows()}
    assert {json.dumps(row) for row in rows} <= there, "a row is lost"
    assert log.nothing_was_overwritten()


@pytest.mark.parametrize("parts", [False, True], ids=["small", "in parts"])
def test_killed_at_any_step_and_run_again_nothing_is_lost_or_archived_twice(
    s3: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch, read: Any, parts: bool
) -> None:
    """FAILURES 11: verified before anything is removed."""
    monkeypatch.setattr(audit_archive, "FETCH", 20)
    if parts:
        monkeypatch.setattr(audit_archive, "UPLOAD_PART", 1)  # MiniStack takes parts of any size
    step, steps = 0, 1
    while step < steps:
        log = Log(s3, engine)
        monkeypatch.setenv("ARCHIVE_BUCKET", log.bucket)
        log.sql("TRUNCATE audit_log")
        log.fill(60, days=2)
        rows, mortality = log.rows(), Mortality(log)
        with mortality.at(step), suppress(Killed):
            log.run()
        if not step:
            steps = mortality.step
        held(log, rows)
        log.archive()
        held(log, rows)
        assert log.rows() == []
        assert sum(link.contents.rows for link in log.links()) == 60
        assert audit_read.main(["--bucket", log.bucket, "--verify"], s3=s3, now=NOW) == 0
        step += 1
    assert steps > 15


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_nothing_is_lost_or_archived_twice(
    log: Log, read: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Killed, stopped and continued, with rows that come late and change in between, at random."""
    rng = random.Random(seed)
    monkeypatch.setattr(audit_archive, "FETCH", rng.choice((7, 50)))
    monkeypatch.setattr(audit_archive, "OBJECT_LIMIT", rng.choice((2_000, 1 << 30)))
    monkeypatch.setattr(audit_archive, "UPLOAD_PART", rng.choice((1, 8 << 20)))
    log.fill(rng.randrange(1, 150), days=rng.randrange(1, 5))
    seen, mortality, checkpoint = {json.dumps(row): row for row in log.rows()}, Mortality(log), None
    for _ in range(6):
        with mortality.at(rng.choice((0, rng.randrange(1, 60)))), suppress(Killed):
            outcome = log.run(
                stops={rng.randrange(1, 30): rng.choice(("out_of_time", "cancelled"))}, checkpoint=checkpoint
            )
            checkpoint = outcome.checkpoint if isinstance(outcome, Unfinished) else None
        held(log, list(seen.values()))
        if rng.random() < 0.5:
            log.fill(rng.randrange(1, 9), days=rng.randrange(1, 5))
        if rng.random() < 0.3:
            kept = {json.dumps(row) for row in archived(log)}
            for row in log.rows():  # what they were is known to nobody, unless it was archived
                if row["id"] % 7 == seed % 7 and json.dumps(row) not in kept:
                    seen.pop(json.dumps(row), None)
            log.sql("UPDATE audit_log SET action = action || '!' WHERE mod(id, 7) = :n", n=seed % 7)
        seen |= {json.dumps(row): row for row in log.rows()}
    for _ in range(2):
        log.archive()
    held(log, list(seen.values()))
    assert log.rows() == []
    assert sorted(json.dumps(row) for row in read_rows(read)) == sorted(seen)


def test_an_object_that_a_dead_run_left_is_taken_if_it_is_right(log: Log, read: Any) -> None:
    log.fill(30)
    rows = log.rows()
    key = "audit/2026/03/2026-03-03.jsonl.gz"
    lines = "".join(_stored_lines(log))
    log.s3.put_object(Bucket=log.bucket, Key=key, Body=gzip.compress(lines.encode(), compresslevel=1))
    log.archive()
    assert log.objects() == [key]
    assert read_rows(read) == rows
    assert log.nothing_was_overwritten()


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{}\n", mtime=0), gzip.compress(b"{}\n" * 50, mtime=0)[:-9]],
    ids=["empty", "no gzip", "other rows", "cut short"],
)
def test_an_object_that_a_dead_run_left_is_written_beside_if_it_is_not(log: Log, read: Any, content: bytes) -> None:
    log.fill(30)
    rows = log.rows()
    log.s3.put_object(Bucket=log.bucket, Key="audit/2026/03/2026-03-03.jsonl.gz", Body=content)
    log.archive()
    assert [link.key for link in log.links()] == ["audit/2026/03/2026-03-03.1.jsonl.gz"]
    assert read_rows(read) == rows
    assert log.rows() == []
    assert log.nothing_was_overwritten()


def _stored_lines(log: Log) -> list[str]:
    with log.engine.connect() as connection:
        lines = connection.execute(text("SELECT to_jsonb(t)::text FROM audit_log t ORDER BY created_at, id")).scalars()
        return [f"{line}\n" for line in lines]


def test_of_two_runs_at_once_one_archives(log: Log, read: Any) -> None:
    """A zombie that wakes after its job was given to another run."""
    log.fill(30)
    rows = log.rows()
    other: list[Report] = []

    def overtake(params: Mapping[str, Any]) -> None:
        if params["Key"].startswith(LINKS) and not other:
            other.append(Report(dry_run=False))
            other[0] = log.archive(now=NOW + timedelta(hours=1))

    end = before(log.s3, "PutObject", overtake)
    with pytest.raises(Retryable, match="Another run has archived something: 2026-03-03"):
        log.run()
    end()
    assert other[0].removed == 30
    assert len(log.links()) == 1
    held(log, rows)
    assert read_rows(read) == rows


def test_a_link_that_was_written_although_the_answer_got_lost_is_known_again(log: Log, read: Any) -> None:
    """boto3 sends a request again; the second one finds the first one's link."""
    log.fill(30)

    def send_twice(params: Mapping[str, Any]) -> None:
        if params["Key"].startswith(LINKS):
            end()
            log.s3.put_object(**params)

    end = before(log.s3, "PutObject", send_twice)
    assert log.archive().removed == 30
    assert read("--verify")[0] == 0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_does_not_read_back_as_written_removes_no_row(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 11: a backup that was never read made retention delete the real one."""
    log.fill(30)

    class Rotten(Chain):
        def pieces(self, *arguments: Any) -> Iterator[bytes]:
            first, *_ = super().pieces(*arguments)
            yield first[:-200]
            arguments[1]._object.update(b"x")

    monkeypatch.setattr(audit_archive, "Chain", Rotten)
    with pytest.raises(Damaged, match=r"2026-03-03: .* does not read back as it was written; no row was deleted"):
        log.run()
    assert len(log.rows()) == 30
    assert log.links() == []


def test_rows_that_are_left_of_an_object_that_was_altered_are_not_deleted(log: Log) -> None:
    log.fill(30)
    with suppress(Killed):
        _die_after_the_link(log)
    assert len(log.links()) == 1
    assert len(log.rows()) == 30
    (key,) = log.objects()
    log.s3.put_object(Bucket=log.bucket, Key=key, Body=gzip.compress(b'{"id": 1}\n'))
    with pytest.raises(Damaged, match=r"2026-03-03: .* is not what was archived"):
        log.run()
    assert len(log.rows()) == 30


def _die_after_the_link(log: Log) -> None:
    def die(*arguments: Any) -> None:
        if "DELETE FROM audit_log" in arguments[2]:
            raise Killed

    event.listen(log.engine, "before_cursor_execute", die)
    try:
        log.run()
    finally:
        event.remove(log.engine, "before_cursor_execute", die)
        log.engine.dispose()


def test_a_broken_head_stops_the_archive(log: Log) -> None:
    log.fill(30)
    log.archive()
    link = log.links()[0]
    log.s3.put_object(
        Bucket=log.bucket, Key=f"{LINKS}00000000.json", Body=link.body.replace(b"2026-03-03", b"2026-03-04")
    )
    log.add(OLD + timedelta(days=5))
    # A link that was altered is seen by the next one; what is no link at all, at once.
    log.s3.put_object(Bucket=log.bucket, Key=f"{LINKS}00000001.json", Body=b"{}")
    with pytest.raises(Damaged, match="Link 1 of the audit archive is not a link"):
        log.run()
    assert len(log.rows()) == 1


def test_a_database_that_is_down_archives_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nowhere")
    database.engine.cache_clear()
    with pytest.raises(Retryable, match="cannot be reached"):
        log.run()
    assert log.objects() == []


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_out_of_time_goes_on_and_reports_all_it_did(
    log: Log, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K8."""
    monkeypatch.setattr(audit_archive, "FETCH", 10)
    log.fill(100, days=5)
    rows, checkpoint, stretches = log.rows(), None, 0
    while True:
        outcome = log.run(stops={12: "out_of_time"}, checkpoint=checkpoint)
        stretches += 1
        if isinstance(outcome, Report):
            break
        checkpoint = outcome.checkpoint
        assert not log.s3.list_multipart_uploads(Bucket=log.bucket).get("Uploads")
    assert stretches > 2
    assert (outcome.days, outcome.rows, outcome.removed, outcome.objects) == (5, 100, 100, 5)
    assert read_rows(read) == rows


def test_a_cancelled_run_says_what_it_has_done(log: Log) -> None:
    """REQUIREMENTS K7."""
    log.fill(100, days=5)
    report = log.archive(stops={9: "cancelled"})
    assert 0 < report.removed < 100
    assert len(log.rows()) == 100 - report.removed
    assert report.head is not None


# -- reading back ------------------------------------------------------------------------------------------------------


def test_a_range_of_days_is_read(log: Log, read: Any) -> None:
    log.fill(100, days=5)
    rows = log.rows()
    log.archive()
    log.add(OLD + timedelta(days=2, hours=1))
    late = log.rows()
    log.archive()
    inside = [row for row in rows if "2026-03-04" <= row["created_at"][:10] <= "2026-03-05"]
    assert read_rows(read, "--from", "2026-03-04", "--to", "2026-03-05") == inside + late
    assert read_rows(read, "--from", "2026-03-07") == [row for row in rows if row["created_at"] >= "2026-03-07"]
    assert read_rows(read, "--from", "2027-01-01") == []


def test_verifying_prints_a_sentence(log: Log, read: Any) -> None:
    assert read("--verify") == (0, "The archive is empty.\n", "")
    log.fill(100, days=5)
    report = log.archive()
    assert report.head
    status, printed, _ = read("--verify", "--head", report.head.sha256)
    assert status == 0
    assert printed == (
        "100 rows of 5 days (2026-03-03 to 2026-03-07) in 5 objects are as they were archived. "
        f"The chain of 5 links is unbroken; its head is {report.head.sha256}.\n"
    )


@pytest.mark.parametrize("how", ["flipped bit", "other rows", "nothing", "cut short", "longer", "gone"])
def test_an_object_that_was_tampered_with_is_named_and_not_printed(log: Log, read: Any, how: str) -> None:
    log.fill(100, days=5)
    rows = log.rows()
    log.archive()
    key = log.objects()[2]
    body = log.body_of(key)
    tampered = {
        "flipped bit": body[:100] + bytes([body[100] ^ 1]) + body[101:],
        "other rows": gzip.compress(gzip.decompress(body).replace(b"login", b"logon"), mtime=0),
        "nothing": b"",
        "cut short": body[:-4],
        "longer": body + body,
    }
    if how == "gone":
        log.s3.delete_object(Bucket=log.bucket, Key=key)
    else:
        log.s3.put_object(Bucket=log.bucket, Key=key, Body=tampered[how])
    for arguments in ((), ("--verify",)):
        status, printed, complaints = read(*arguments)
        assert status == 1
        assert complaints.startswith("2026-03-05: audit/2026/03/2026-03-05.jsonl.gz is ")
    assert printed == ""
    _, printed, _ = read()
    assert _lines(printed) == [row for row in rows if not row["created_at"].startswith("2026-03-05")]
    assert read("--verify", "--from", "2026-03-06")[0] == 0


def test_a_chain_that_was_tampered_with_is_broken_there(log: Log, read: Any) -> None:
    log.fill(100, days=5)
    report = log.archive()
    assert report.head
    names = [f"{LINKS}{number:08}.json" for number in range(5)]
    bodies = [log.body_of(name) for name in names]

    def put(number: int, body: bytes) -> None:
        log.s3.put_object(Bucket=log.bucket, Key=names[number], Body=body)

    links = log.links()
    fewer = Link(**{name: getattr(links[2], name) for name in Link.__slots__} | {"day": "2026-03-09"})
    put(2, fewer.body)  # a link that reads well, but is another: the next one tells
    assert read("--verify")[2] == "2026-03-06: the chain is broken, link 3 does not follow the one before.\n"
    put(2, bodies[2].replace(b" ", b""))
    assert "Link 2 of the audit archive (2026-03-05) is not what was written." in read("--verify")[2]
    put(2, b"[]")
    assert "Link 2 of the audit archive is not a link." in read("--verify")[2]
    log.s3.delete_object(Bucket=log.bucket, Key=names[2])
    assert read("--verify")[:2] == (1, "")
    assert read("--verify")[2] == "2026-03-06: the chain is broken, link 2 is missing.\n"
    put(2, bodies[2])
    assert read("--verify", "--head", report.head.sha256)[0] == 0
    log.s3.delete_object(Bucket=log.bucket, Key=names[4])  # cut off at its end, a chain looks whole
    assert read("--verify")[0] == 0
    status, _, complaints = read("--verify", "--head", report.head.sha256)
    assert status == 1
    assert "the chain's end was cut off, or altered" in complaints


def test_objects_that_have_expired_end_what_can_be_read_but_not_the_chain(log: Log, read: Any) -> None:
    log.fill(100, days=5)
    log.archive()
    log.add(OLD + timedelta(days=200))
    kept = log.rows()
    later = NOW + timedelta(days=300)
    log.archive(now=later)
    for key in log.objects()[:5]:
        log.s3.delete_object(Bucket=log.bucket, Key=key)
    in_time = later + timedelta(days=1)
    status, printed, _ = read("--kept-days", "300", now=in_time)
    assert (status, _lines(printed)) == (0, kept)
    _, printed, _ = read("--verify", "--kept-days", "300", now=in_time)
    assert printed.startswith(
        "1 rows of 6 days (2026-03-03 to 2026-09-19) in 1 objects are as they were archived; 5 more have"
    )
    status, _, complaints = read("--kept-days", "302", now=in_time)
    assert status == 1
    assert complaints.count("is not in the archive") == 5


def test_a_day_that_is_no_day_is_refused(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--from", "yesterday")
    assert "--from: takes a day such as 2026-08-24, got 'yesterday'" in capsys.readouterr().err
