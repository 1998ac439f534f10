"""Adoption, rehearsed: Lamplighter is deployed to a living database, and touches nothing before it is named.

    PYTHONPATH=functions python -m bench.adoption [rows]

The database has 30 tables of an application and so many rows (5 000 000 unless given). Some tables have names that
earlier versions of Lamplighter took for their own. Writers insert and read all the while. The steps are those of
docs/adopting-a-database.md. After each step, each table is compared with what it was, by count and by a hash of all its
rows; of the tables that the writers write to, those rows that the writers leave alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from statistics import median, quantiles
from typing import Any, Final

from sqlalchemy import NullPool, create_engine, text

from bench.deployed import deployed
from bench.tables import show
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import to_text
from local.stack import LocalAws
from tests.e2e.deployed import Deployed, Machine, eventually

ROWS: Final = 5_000_000
FORMER: Final = ("system_logs", "job_history", "instances", "findings", "judged_checks", "cloud_reports")
"""Tables of the application that are named as Lamplighter's own once were."""
PLAIN: Final = (
    *("users", "teams", "members", "projects", "tasks", "comments", "attachments", "invoices", "payments", "refunds"),
    *("products", "prices", "orders", "order_lines", "shipments", "addresses", "coupons", "reviews", "messages"),
    *("notifications", "webhooks", "api_keys", "features"),
)
RULE: Final = "carts"
"""The table of the rule that is applied."""
LIVING: Final = ("orders", RULE)
"""Tables that the writers write to, beyond the rows of the beginning."""
TABLES: Final = (*FORMER, *PLAIN, RULE)
WRITERS: Final = 2
QUIET: Final = 20.0
"""Seconds that the writers have to themselves."""
OLD: Final = 0.4
"""Of the carts, how many are due."""
FILES, ORPHANS = 400, 40
SCHEDULED: Final = {
    "cleanup": ("cleanup", "database_cleanup", "session_cleanup", "token_cleanup", "upload_cleanup", "audit_archive"),
}


def main(rows: int) -> None:
    """Run all steps and show them.

    Raises:
        SystemExit: a step did what it may not.
    """
    steps: list[list[object]] = []
    was: dict[str, tuple[int, int]] = {}

    def before(aws: LocalAws) -> None:
        fill(aws, rows)
        was.update(digests(aws.database_url))

    with deployed(before=before, settings={}) as bench:
        stack = Deployed(bench.aws)
        with writing(bench.aws.database_url) as latencies:
            time.sleep(QUIET)
            quiet = latencies()

            def step(name: str, act: Callable[[], str], *, changes: tuple[str, ...] = ()) -> None:
                latencies()
                began = time.perf_counter()
                said = act()
                took, noticed = time.perf_counter() - began, latencies()
                now = digests(bench.aws.database_url)
                touched = [table for table in now if now[table] != was[table]]
                if set(touched) - set(changes):
                    raise SystemExit(f"{name}: {', '.join(touched)} changed.")
                was.update(now)
                steps.append([name, said, f"{took:.1f}", _p99(noticed), ", ".join(touched) or "none"])

            step("deployed, and each cleanup has run", lambda: run_all(stack))
            step("preflight", lambda: preflight(stack))
            step("the rule is declared, and previews", lambda: cart_rule(stack, apply=False))
            step("the rule is applied: first run", lambda: cart_rule(stack, apply=True), changes=(RULE,))
            a_day_passes(stack, f"rows/{RULE}")
            step("a day later", lambda: cart_rule(stack, apply=True), changes=(RULE,))
            step("the ramp lifted", lambda: cart_rule(stack, apply=True, ramp=False), changes=(RULE,))
            step("orphan cleanup applied", lambda: clean(stack))
            step("undone", lambda: undo(stack))
        left, due = (stack.sql(f"SELECT count(*) FROM {RULE} WHERE {which}")[0][0] for which in ("true", _DUE))
    if due:
        raise SystemExit(f"{due} carts are due still.")
    title = f"{len(TABLES)} tables, {rows:_} rows, {WRITERS} writers (quiet: p99 {_p99(quiet)} ms); {left:_} carts left"
    show(
        title.replace("_", " "),
        ["step", "what it said", "s", "writers' p99, ms", "tables changed"],
        steps,
    )


# -- the application ---------------------------------------------------------------------------------------------------


def fill(aws: LocalAws, rows: int) -> None:
    """The application's tables, before Lamplighter comes; equally many rows in each."""
    each = rows // len(TABLES)
    with create_engine(_url(aws.database_url), poolclass=NullPool).begin() as connection:
        for table in TABLES:
            connection.execute(
                text(
                    f"CREATE TABLE {table} (id bigint PRIMARY KEY, owner_id bigint, status text NOT NULL, body text,"
                    " created_at timestamptz NOT NULL, updated_at timestamptz)"
                )
            )
            connection.execute(
                text(
                    f"INSERT INTO {table} SELECT n, mod(n, 1000), 'open', md5(CAST(n AS text)),"
                    " now() - (CASE WHEN mod(n, 10) < :old THEN 200 ELSE 20 END) * interval '1 day'"
                    " - n * interval '1 s', now() FROM generate_series(1, CAST(:rows AS int)) AS n"
                ),
                {"rows": each, "old": int(10 * OLD)},
            )
        connection.execute(text(f"CREATE INDEX ON {RULE} (created_at)"))
        connection.execute(text("CREATE SEQUENCE written START WITH 1000000000"))


_DUE: Final = "created_at < now() - interval '90 days'"


def digests(url: str) -> dict[str, tuple[int, int]]:
    """Count and hash of the rows of each table that the writers leave alone."""
    found = {}
    with create_engine(_url(url), poolclass=NullPool).connect() as connection:
        for table in TABLES:
            where = "id < 1000000000" if table in LIVING else "true"
            [(rows, digest)] = connection.execute(
                text(
                    "SELECT count(*), coalesce(bit_xor(hashtextextended(CAST(t AS text), 0)), 0)"
                    f" FROM {table} AS t WHERE {where}"
                )
            )
            found[table] = rows, digest
    return found


@contextmanager
def writing(url: str) -> Iterator[Callable[[], list[float]]]:
    """Writers in processes of their own. Yields what gives the seconds of their transactions since the last call."""
    context = get_context("spawn")
    over, taken = context.Event(), context.Queue()
    writers = [context.Process(target=_write, args=(url, over, taken)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()

    def latencies() -> list[float]:
        found: list[float] = []
        while not taken.empty():
            found += taken.get()
        return found

    try:
        yield latencies
    finally:
        over.set()
        eventually(lambda: latencies() is not None and not any(writer.is_alive() for writer in writers))


def _write(url: str, over: Event, taken: Any) -> None:
    engine = create_engine(_url(url))
    while not over.is_set():
        some = []
        until = time.monotonic() + 1
        while time.monotonic() < until:
            began = time.perf_counter()
            with engine.begin() as connection:
                for table in LIVING:
                    new = {"body": "x" * 100}
                    connection.execute(
                        text(
                            f"INSERT INTO {table} (id, owner_id, status, body, created_at)"
                            " VALUES (nextval('written'), 1, 'open', :body, now())"
                        ),
                        new,
                    )
                    connection.execute(text(f"SELECT * FROM {table} WHERE id = 5"))
            some.append(time.perf_counter() - began)
            time.sleep(0.005)
        taken.put(some)


# -- the steps ---------------------------------------------------------------------------------------------------------


def run_all(stack: Deployed) -> str:
    """Each job type of the cleanups and the orphan cleanup, once, as their schedules start them."""
    ran = 0
    for machine, types in SCHEDULED.items():
        for job_type in types:
            Machine(stack, machine, [job_type]).run(job_type=job_type)
            ran += 1
    stack.clean(min_age_hours=24)
    stack.check()
    return f"{ran + 1} jobs ran, all of the owner's was previewed"


def preflight(stack: Deployed) -> str:
    """What preflight says first."""
    answer = stack.invoke("preflight", {})
    return str(answer["verdict"])


def cart_rule(stack: Deployed, *, apply: bool, ramp: bool = True) -> str:
    """Declare the rule, and run the cleanup of the database with it alone."""
    rule = {"table": RULE, "clock": "created_at", "keep_days": 90, "apply": apply, "ramp": ramp}
    put(stack, {"retention": {"rules": {RULE: rule}}})
    answer = Machine(stack, "cleanup", ["database_cleanup"]).run(job_type="database_cleanup", phases=[RULE])
    phase = answer["phases"][RULE]
    verb = "deleted" if not phase["dry_run"] else "would go"
    return f"{phase['rows']:_} rows {verb}, {phase['held_by_ramp']:_} held by the ramp".replace("_", " ")


def put(stack: Deployed, document: Mapping[str, Any]) -> None:
    """Put the settings in force, and leave the schedules alone."""
    stack.client("ssm").put_parameter(Name=stack.parameter, Value=json.dumps(document), Overwrite=True)
    stack.invoke("settings", {})


def clean(stack: Deployed) -> str:
    """Apply the orphan cleanup to files that media_files names, but for some."""
    keys = [f"uploads/{n}.jpg" for n in range(FILES)]
    stack.put(*keys)
    stack.sql("INSERT INTO media_files (storage_key) VALUES (:key)", *({"key": key} for key in keys[ORPHANS:]))
    put(stack, {"media": {"apply": True, "min_age_hours": 0, "quarantine_hours": 0}})
    report = stack.clean()
    stack.last = report["job_id"]  # type: ignore[attr-defined]
    assert stack.keys("uploads/") == set(keys[ORPHANS:])
    return f"{report['deleted_files']} of {report['scanned_files']} files removed"


def undo(stack: Deployed) -> str:
    """Bring the files back."""
    report = stack.invoke("undo", {"job_id": stack.last, "dry_run": False})  # type: ignore[attr-defined]
    assert len(stack.keys("uploads/")) == FILES
    return f"{report['restored_files']} files restored"


def a_day_passes(stack: Deployed, scope: str) -> None:
    """What the ramp knows of a scope happened a day earlier."""
    stack.client("dynamodb").update_item(
        TableName=stack.table,
        Key={"pk": {"S": f"trust#{scope}"}},
        UpdateExpression="SET since = :then, acted_at = :then",
        ConditionExpression="attribute_exists(acted_at)",
        ExpressionAttributeValues={":then": {"S": to_text(utc_now() - timedelta(hours=25))}},
    )


def _p99(latencies: list[float]) -> str:
    if len(latencies) < 2:
        return "-"
    return f"{1000 * quantiles(latencies, n=100)[98]:.1f} (median {1000 * median(latencies):.1f})"


def _url(url: str) -> str:
    return url.replace("postgresql:", "postgresql+pg8000:")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
