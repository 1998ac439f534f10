"""Uploads: what it takes to turn a Moodle course log into its zip, beside reading it with the csv module alone.

    PYTHONPATH=functions python -m bench.csv_processing [megabytes ...]

Each way runs in a process of its own, in turns, on the same file, and must count the same rows. `lamplighter` is the
deployed job's body: boto3 reads the file in ranges from a local stub without latency (another process, which is not
measured), and the zip goes back there in parts. `csv module` opens the file and counts what csv.reader gives, no more.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from bench.tables import show
from lamplighter.uploads.headings import COLUMNS

SIZES_MB = (10, 100, 1000)
ROUNDS = 3
USERS = 2_000
MOST_MIB = 256
"""What the issue allows, at any size."""
EVENTS = [
    ("System", "Course viewed", "viewed the course with id '7'"),
    ("Quiz", "Quiz attempt viewed", "has viewed the attempt of the quiz with course module id '{}'"),
    ("Forum", "Discussion viewed", "has viewed the discussion with id '{}' in the forum"),
    ("File", "Course module viewed", "viewed the 'resource' activity with course module id '{}'"),
    ("Assignment", "A submission has been submitted", 'has submitted the submission "{}" for the assignment'),
    ("URL", "Course module viewed", "viewed the 'url' activity with course module id '{}'"),
]


def write_log(path: Path, megabytes: int) -> int:
    """A made-up log of that size, as Moodle writes them: newest first, UTF-8 with its mark; its number of rows."""
    chance = random.Random(megabytes)
    users = [f"{chance.choice(('Ana', 'José', 'Zoë', 'Hans', 'Łucja'))} Pérez {n}" for n in range(USERS)]
    at, rows = datetime(2024, 12, 31, 23, 59), 0  # noqa: DTZ001 - as in a log
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        log = csv.writer(file)
        log.writerow(COLUMNS)
        while file.tell() < megabytes * 1_000_000:
            at -= timedelta(minutes=1)
            written = at.strftime("%d/%m/%y, %H:%M")
            minute = []
            for _ in range(chance.randrange(40)):
                user, module = chance.randrange(USERS), chance.randrange(40_000)
                component, event, description = EVENTS[module % len(EVENTS)]
                affected = users[module % USERS] if module % 10 == 0 else "-"
                context, text = f"{component}: Unit {module % 300}", description.format(module)
                who, address = f"The user with id '{user}' {text}.", f"10.{module % 256}.{user % 256}.7"
                minute.append((written, users[user], affected, context, component, event, who, "web", address))
            log.writerows(minute)
            rows += len(minute)
    return rows


# -- the ways --------------------------------------------------------------------------------------------------------


def csv_module(path: str) -> dict[str, Any]:
    """Reading alone."""
    began = time.perf_counter()
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    return {"seconds": time.perf_counter() - began, "rows": rows}


def lamplighter(path: str) -> dict[str, Any]:
    """The job."""
    from datetime import UTC

    from lamplighter.kernel.aws import client
    from lamplighter.kernel.job import Run
    from lamplighter.kernel.ledger.row import Job, Policy, Status, new_job_id
    from lamplighter.kernel.settings import Settings
    from lamplighter.uploads.upload_processing import Report, handler

    now = datetime.now(UTC)
    job = Job(
        job_id=new_job_id(now, bytes(10)),
        job_type="upload_processing",
        status=Status.RUNNING,
        policy=Policy(timeout=timedelta(minutes=15)),
        created_at=now,
        run_at=now,
    )
    run = Run(job, settings=Settings(), stop_at=now + timedelta(hours=1))
    client("s3")  # what a cold start takes is measured elsewhere
    began = time.perf_counter()
    report = handler.body(run, handler.validated({"key": f"inputs/{Path(path).name}"}))
    assert isinstance(report, Report)
    assert (report.input, report.bad_rows, report.users) == ("deleted", 0, USERS)
    return {"seconds": time.perf_counter() - began, "rows": report.rows, "output": report.output_bytes}


WAYS = {"csv module": csv_module, "lamplighter": lamplighter}


# -- the stub --------------------------------------------------------------------------------------------------------


class Stub(BaseHTTPRequestHandler):
    """As much of S3 as an upload takes: inputs are files of a directory, what is written is counted and forgotten."""

    protocol_version = "HTTP/1.1"
    directory: Path

    def do_HEAD(self) -> None:
        self._answer(length=self._file().stat().st_size)

    def do_GET(self) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        with self._file().open("rb") as file:
            file.seek(int(first))
            self._answer(file.read(int(last) - int(first) + 1), status=206)

    def do_POST(self) -> None:
        self._drain()
        kind = "InitiateMultipartUploadResult" if self.path.endswith("?uploads") else "CompleteMultipartUploadResult"
        self._answer(f"<{kind}><UploadId>1</UploadId></{kind}>".encode())

    def do_PUT(self) -> None:
        self._drain()
        self._answer()

    def do_DELETE(self) -> None:
        self._answer(status=204)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _file(self) -> Path:
        return self.directory / self.path.rpartition("/")[2]

    def _drain(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))

    def _answer(self, body: bytes = b"", *, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def serve(directory: str) -> None:
    """Until killed."""
    Stub.directory = Path(directory)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def stub(directory: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "bench.csv_processing", "serve", directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


# -- the comparison --------------------------------------------------------------------------------------------------


def measure(way: str, path: Path, endpoint: str) -> dict[str, Any]:
    """One run."""
    environment = os.environ | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "UPLOADS_BUCKET": "uploads",
        "POWERTOOLS_SERVICE_NAME": "bench",
    }
    command = [sys.executable, "-m", "bench.csv_processing", "run", way, path]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(megabytes: int) -> list[list[object]]:
    """All ways in turns on one file; the medians."""
    with tempfile.TemporaryDirectory() as directory, stub(Path(directory)) as endpoint:
        path = Path(directory) / f"{megabytes}.csv"
        rows = write_log(path, megabytes)
        size = path.stat().st_size / 1_000_000
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, figures in runs.items():
                figures.append(measure(way, path, endpoint))
        assert {run["rows"] for figures in runs.values() for run in figures} == {rows}
    lines: list[list[object]] = []
    for way, figures in runs.items():
        rates = [size / run["seconds"] for run in figures]
        seconds, cpu = median(run["seconds"] for run in figures), median(run["cpu"] for run in figures)
        peak = max(run["peak"] for run in figures)
        assert peak < MOST_MIB, f"{way} took {peak:.0f} MiB"
        output = f"{figures[0]['output'] / 1_000_000:.1f}" if "output" in figures[0] else ""
        spread = f"{median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})"
        lines.append(
            [f"{megabytes} MB, {rows:_} rows: {way}", f"{seconds:.2f}", f"{cpu:.2f}", spread, f"{peak:.0f}", output]
        )
    return lines


def main() -> None:
    """Compare, or do what this very program asks of a process of its own."""
    match sys.argv[1:]:
        case ["serve", directory]:
            serve(directory)
        case ["run", way, path]:
            figures = WAYS[way](path)
            used = resource.getrusage(resource.RUSAGE_SELF)
            print(json.dumps(figures | {"cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}))
        case sizes:
            lines = [line for size in map(int, sizes or SIZES_MB) for line in compare(size)]
            show(
                f"A course log to its zip, Python {sys.version.split()[0]}, median of {ROUNDS} in turns (range)",
                ["log", "s", "CPU s of the process", "MB/s", "peak MiB", "zip MB"],
                lines,
            )


if __name__ == "__main__":
    main()
