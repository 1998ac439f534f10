"""The timeout checker's cost: by the jobs that have expired, not by the jobs there are. `python -m bench.checker`.

The real `Checker` over the real `DynamoStore` and boto3, against a table of a million rows (`dynamodb_stub`) that
counts requests and holds each answer back. Each pass runs in a fresh process, like the first of a Lambda environment:
its time includes making the client and opening its connections, not the imports (`cold_start` has those). Afterwards
every row is looked at: the expired ones are at attempt 2, with one error, and nothing else has changed.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import batched
from math import ceil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Final

from bench.dynamodb_stub import Remote, served
from bench.tables import show
from lamplighter.jobs.timeout_checker import PAGE, Checker
from lamplighter.kernel.ledger.dynamo import BATCH, DynamoStore
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import SHARDS
from lamplighter.kernel.ledger.store import shards

TOTAL: Final = 1_000_000
LIVE: Final = 100_000
"""Running rows that have time left, and as many waiting ones that are not due."""
EXPIRED: Final = {0: timedelta(0), 100: timedelta(hours=1), 10_000: timedelta(hours=2)}
"""How many rows have expired, and how far the checker's clock is moved on until they have."""
LATENCIES: Final = (timedelta(milliseconds=8), timedelta(0))
ROUNDS: Final = 3

Work = Callable[[], dict[str, Any]]
"""What is timed; answers a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one pass took, in a process of its own."""

    report: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_mb: float


def checked(endpoint_url: str, ahead: timedelta, work: Callable[[Ledger], Work]) -> Figures:
    """`work` done over a ledger whose clock is `ahead` of the machine's, in a fresh process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(theirs, endpoint_url, ahead, work))
    process.start()
    theirs.close()
    figures: Figures = ours.recv()
    process.join()
    return figures


def _measured(answer: Connection, endpoint_url: str, ahead: timedelta, work: Callable[[Ledger], Work]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is logged is written, but not read
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "JOBS_TABLE": "jobs",
    }
    import boto3  # noqa: F401 - imports are not what is measured here

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # what the function's memory buys: one processor

    ledger = Ledger.from_environment()
    ledger.clock = lambda: utc_now() + ahead
    timed = work(ledger)
    began, cpu = time.perf_counter(), time.process_time()
    report = timed()
    answer.send(
        Figures(
            report=report,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
    )


def one_pass(ledger: Ledger) -> Work:
    """A pass of the checker."""
    checker = Checker(ledger, stop_at=ledger.clock() + timedelta(seconds=55), execution=lambda job: None)
    return lambda: checker.run({})


def floor(ledger: Ledger) -> Work:
    """Only the batched writes of a pass, prepared in advance, four at a time: what boto3 alone takes."""
    store = DynamoStore("jobs")
    statements = []
    for shard in shards():
        page = store.expired(shard, ledger.clock(), limit=TOTAL)
        while True:
            statements += [store._statement(ledger.expiry(job)) for job in page.jobs]
            if page.next is None:
                break
            page = store.expired(shard, ledger.clock(), limit=TOTAL, cursor=page.next)
    batches = list(batched(statements, BATCH, strict=False))

    def send() -> dict[str, Any]:
        with ThreadPoolExecutor(SHARDS) as threads:
            answers = list(threads.map(lambda batch: store._client.batch_execute_statement(Statements=batch), batches))
        return {"retried": sum("Error" not in each for answer in answers for each in answer["Responses"])}

    return send


def verify(table: Remote, expired: int, untouched: str) -> None:
    """Look at every row after a pass. Raises AssertionError."""
    before: dict[str, bytes] = table.ask("before")
    rows = table.ask("read", list(before))
    assert len(before) == expired
    for key, was in before.items():
        old, new = json.loads(was), json.loads(rows[key])
        assert (old["status"]["S"], old["attempt"]["N"]) == ("running", "1")
        assert (new["status"]["S"], new["attempt"]["N"], new["released"]["BOOL"]) == ("pending", "2", False)
        assert [entry["M"]["reason"]["S"] for entry in new["errors"]["L"]] == ["deadline"]
        same = old.keys() - {"status", "attempt", "released", "errors", "rescues", "run_at", "live_shard"}
        assert all(new.get(name) == old[name] for name in same - {"deadline_at", "expires_at"})
        assert not {"deadline_at", "expires_at"} & new.keys()
    assert table.ask("digest", without=set(before)) == untouched


def least_requests(per_shard: list[int]) -> dict[str, int]:
    """What these expired jobs must take: a query per lane; where jobs have expired, one per page and one for the next
    moment; a batched write per 25 of a page."""
    pages = [
        [PAGE] * (jobs // PAGE) + [jobs % PAGE] for jobs in per_shard
    ]  # the last one, perhaps empty, ends the lane
    return {
        "Query": 2 * SHARDS + sum(len(lane) + 1 for lane in pages if lane != [0]),
        "BatchExecuteStatement": sum(ceil(page / BATCH) for lane in pages for page in lane),
    }


def main() -> None:
    """Run and verify all passes, and show their medians."""
    start = utc_now()
    most = max(EXPIRED)
    runs: dict[tuple[str, int, timedelta], list[tuple[Figures, Counter[str]]]] = {}
    with served(start=start, total=TOTAL, expiring=list(_differences()), live=LIVE) as table:
        untouched = {expired: _digest(table, start + ahead) for expired, ahead in EXPIRED.items()}
        for _ in range(ROUNDS):
            for latency in LATENCIES:
                table.ask("latency=", latency.total_seconds())
                for expired, ahead in EXPIRED.items():
                    figures = checked(table.endpoint_url, ahead, one_pass)
                    requests = table.ask("requests")
                    assert figures.report["retried"] == expired, figures.report
                    assert requests == Counter(least_requests(table.ask("changed_per_shard"))), requests
                    verify(table, expired, untouched[expired])
                    runs.setdefault(("checker", expired, latency), []).append((figures, requests))
                    table.ask("reset")
                figures = checked(table.endpoint_url, EXPIRED[most], floor)
                assert figures.report["retried"] == most, figures.report
                runs.setdefault(("floor", most, latency), []).append((figures, table.ask("requests")))
                table.ask("reset")
    _show(runs)


def _differences() -> Iterator[tuple[timedelta, int]]:
    """Each group of rows of its own: those that expire at a moment, beside those that have expired before."""
    before = 0
    for expired, ahead in EXPIRED.items():
        yield ahead, expired - before
        before = expired


def _digest(table: Remote, now: datetime) -> str:
    digest: str = table.ask("digest", without=table.ask("expired_by", now))
    return digest


def _show(runs: dict[tuple[str, int, timedelta], list[tuple[Figures, Counter[str]]]]) -> None:
    rows = []
    for (what, expired, latency), passes in runs.items():
        seconds = [figures.seconds for figures, _ in passes]
        _, requests = passes[0]
        rows.append(
            [
                what,
                f"{expired:,}",
                f"{latency / timedelta(milliseconds=1):.0f} ms",
                requests["Query"] if what == "checker" else "",
                requests["BatchExecuteStatement"],
                f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
                f"{median(figures.cpu_seconds for figures, _ in passes):.2f}",
                f"{expired / median(seconds):,.0f}" if expired else "",
                f"{median(figures.peak_mb for figures, _ in passes):.0f}",
            ]
        )
    show(
        f"Timeout checker among {TOTAL:,} jobs, one pass, median of {ROUNDS} (range); every row verified after each",
        ["", "expired", "latency", "Query", "BatchExecuteStatement", "seconds", "CPU s", "jobs/s", "peak MB"],
        rows,
    )


if __name__ == "__main__":
    main()
