"""The audit archive: a day of a million rows to S3, proven and deleted, and read back.

    PYTHONPATH=functions python -m bench.audit_archive [rows ...]

The phase's own body runs in a process of its own, against an embedded PostgreSQL 18 and the local AWS's S3. What it
archived is read back by the documented command and compared, line for line by its hash, with what psql printed of the
table before. `floor` does less than it must: psql into gzip, nothing proven, one DELETE that holds all its locks.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bench.orphan_scan import postgres, psql
from bench.tables import show
from local.stack import LocalAws

SIZES: Final = (100_000, 1_000_000)
ROUNDS: Final = 3
BUCKET: Final = "archive"
DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)
LINES: Final = "SELECT to_jsonb(t)::text FROM audit_log t ORDER BY created_at, id"

FILL: Final = """
    TRUNCATE audit_log RESTART IDENTITY;
    INSERT INTO audit_log (actor, action, target, details, created_at)
    SELECT 'user-' || i % 5000, (ARRAY['login', 'logout', 'update', 'delete'])[1 + i % 4], 'object/' || i * 7919.0,
        jsonb_build_object('ip', '10.0.' || i % 256 || '.' || i * 31 % 256, 'path', 'C:\\dir', 'request', md5(i::text)),
        '2026-01-01Z'::timestamptz + i * interval '1 day' / {rows}
    FROM generate_series(0, {rows} - 1) i;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one run took; `peak_mb` in MiB of the process, the longest statement that deletes in milliseconds."""

    seconds: float
    cpu: float
    peak_mb: float
    bytes: int = 0
    removed: int = 0
    longest_ms: float = 0


def archive() -> None:
    """One run of the phase, in the process of its own."""
    from sqlalchemy import event

    from lamplighter.admin.audit_archive import Report, body
    from lamplighter.kernel.database import engine
    from lamplighter.kernel.job import Run
    from lamplighter.kernel.ledger.row import Job, Policy, Status
    from lamplighter.kernel.settings import Settings

    began, longest = time.perf_counter(), 0.0

    def before(*arguments: Any) -> None:
        arguments[4].began = time.perf_counter()

    def after(*arguments: Any) -> None:
        nonlocal longest
        if "DELETE" in arguments[2]:
            longest = max(longest, time.perf_counter() - arguments[4].began)

    event.listen(engine(), "before_cursor_execute", before)
    event.listen(engine(), "after_cursor_execute", after)
    now = DAY + timedelta(days=365)
    job = Job(
        job_id="01BENCH",
        job_type="audit_archive",
        status=Status.RUNNING,
        policy=Policy(timeout=timedelta(minutes=5)),
        created_at=now,
        run_at=now,
    )
    report = body(Run(job, settings=Settings(), stop_at=datetime.max.replace(tzinfo=UTC)))
    assert isinstance(report, Report)
    tell(began, bytes=report.bytes, removed=report.removed, longest_ms=longest * 1000)


def read() -> None:
    """The documented command, in the process of its own; the lines go where the parent looks."""
    from lamplighter.admin.audit_read import main

    began = time.perf_counter()
    status = main(["--bucket", BUCKET])
    tell(began)
    raise SystemExit(status)


def tell(began: float, **values: float) -> None:
    """What it took, on standard error."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figure = {"seconds": time.perf_counter() - began, "cpu": sum(os.times()[:2]), "peak_mb": peak} | values
    print(json.dumps(figure), file=sys.stderr, flush=True)


def floor(directory: Path) -> Figure:
    """psql, gzip and one DELETE."""
    began = time.perf_counter()
    out = directory / "floor.gz"
    select = f"\\copy ({LINES}) TO STDOUT"
    script = f"{shlex.join(psql())} -Xqc {shlex.quote(select)} | gzip -6 > {out}"
    subprocess.run(["bash", "-eo", "pipefail", "-c", script], check=True)
    removing = time.perf_counter()
    subprocess.run([*psql(), "-Xqc", "DELETE FROM audit_log"], check=True)
    now = time.perf_counter()
    return Figure(seconds=now - began, cpu=0, peak_mb=0, bytes=out.stat().st_size, longest_ms=(now - removing) * 1000)


def child(what: str, directory: Path) -> Figure:
    """Run a way in a process of its own."""
    with (directory / "lines").open("wb") as lines:
        command = [sys.executable, "-m", "bench.audit_archive", "--way", what]
        done = subprocess.run(command, stdout=lines, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Figure(**json.loads(done.stderr.splitlines()[-1]))


def digest(command: str) -> str:
    """The SHA-256 of what a shell command prints."""
    script = f"{command} | sha256sum"
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


def fill(rows: int) -> str:
    """A day's rows; the hash of their lines as psql prints them."""
    subprocess.run([*psql(), "-Xqc", FILL.format(rows=rows)], check=True)
    subprocess.run([*psql(), "-Xqc", "VACUUM ANALYZE audit_log"], check=True)
    return digest(f"{shlex.join(psql())} -XAt -v FETCH_COUNT=10000 -c {shlex.quote(LINES)}")


@contextmanager
def s3(directory: Path) -> Iterator[Any]:
    """The local AWS's S3, and the environment that leads to it."""
    local = LocalAws(directory=directory, first_port=int(os.environ.get("BENCH_PORT", "4790")))
    server = local.ministack()
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": local.endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ARCHIVE_BUCKET": BUCKET,
        "PYTHONPATH": os.pathsep.join(["functions", "."]),
        "PYTHONWARNINGS": "ignore",
    }
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        yield local.client("s3")
    finally:
        server.stop()


def empty(client: Any) -> None:
    """A new bucket."""
    from botocore.exceptions import ClientError

    try:
        while found := client.list_objects_v2(Bucket=BUCKET).get("Contents"):
            client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": entry["Key"]} for entry in found]})
    except ClientError:
        client.create_bucket(Bucket=BUCKET)


def main(sizes: Sequence[int]) -> None:
    """Measure and print a table."""
    from local.postgres import APPLICATION_TABLES

    table, peaks = [], {}
    with tempfile.TemporaryDirectory() as name, postgres() as url, s3(Path(name) / "aws") as client:
        directory = Path(name)
        os.environ["DATABASE_URL"] = url
        subprocess.run([*psql(), "-qf", str(APPLICATION_TABLES)], check=True)
        for rows in sizes:
            runs: dict[str, list[Figure]] = {"archive": [], "read back": [], "floor": []}
            for _ in range(ROUNDS):
                empty(client)
                expected = fill(rows)
                runs["archive"].append(child("archive", directory))
                runs["read back"].append(child("read", directory))
                if digest(f"cat {directory / 'lines'}") != expected or runs["archive"][-1].removed != rows:
                    raise SystemExit("What was read back is not what was archived.")
                size = (directory / "lines").stat().st_size
                fill(rows)
                runs["floor"].append(floor(directory))
            for way, figures in runs.items():
                median = sorted(figures, key=lambda figure: figure.seconds)[len(figures) // 2]
                table.append(line(way, rows, size, median))
                peaks[way, rows] = median.peak_mb
    header = ("", "rows", "s", "rows/s", "MB of lines", "MB stored", "longest DELETE ms", "CPU s", "peak MiB")
    show("Archive of one day", header, table)
    for way in ("archive", "read back"):
        grown = peaks[way, max(sizes)] - peaks[way, min(sizes)]
        print(f"\n{way}: peak memory from {min(sizes):_} to {max(sizes):_} rows {grown:+.1f} MiB".replace("_", " "))


def line(way: str, rows: int, size: int, figure: Figure) -> tuple[object, ...]:
    """A line of the table."""
    return (
        way,
        f"{rows:_}".replace("_", " "),
        f"{figure.seconds:.2f}",
        f"{rows / figure.seconds:_.0f}".replace("_", " "),
        f"{size / 1e6:.0f}",
        f"{figure.bytes / 1e6:.1f}" if figure.bytes else "",
        f"{figure.longest_ms:.0f}" if figure.longest_ms else "",
        f"{figure.cpu:.2f}" if figure.cpu else "",
        f"{figure.peak_mb:.0f}" if figure.peak_mb else "",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        {"archive": archive, "read": read}[sys.argv[2]]()
    else:
        main([int(argument) for argument in sys.argv[1:]] or SIZES)
