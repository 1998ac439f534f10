"""Clocks in other units, rows whose parent is gone, and conditions of the owner's own, on Postgres (C16, E1, S6)."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from lamplighter.kernel import database
from lamplighter.kernel.errors import NoTable, Permanent, Retryable, Unfit
from lamplighter.kernel.retention import Archive, Candidates, Delete, Parent, Rule, Set, batches, preview, simulate
from lamplighter.kernel.retention.where import BadWhere, check
from tests.integration.test_retention import go, held

DAY = timedelta(days=1)
NOW = datetime(2026, 11, 22, 6, 10, 0, 500, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CUTOFF = NOW - 30 * DAY

pytestmark = pytest.mark.usefixtures("any_moment")


@pytest.fixture
def engine(database_url: str) -> Engine:
    """A database of its own."""
    return database.engine()


def due(engine: Engine, rule: Rule) -> Candidates:
    return preview(engine, rule, now=NOW, keep=rule.keep)


def run(engine: Engine, script: str, *rows: Any) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(script, *rows)


def asked(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())


def seconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(seconds=1)


def milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


# -- clocks ----------------------------------------------------------------------------------------------------------

NEVER = {
    "seconds": [None, 0, 1, -1, -(2**31), 2**31 - 1, seconds(datetime(1989, 12, 31, tzinfo=UTC))],
    "milliseconds": [None, 0, -1, 2**63 - 1, -(2**63), seconds(NOW - 900 * DAY), 9_999_999_999_999_999],
    "date": [None, "infinity", "-infinity", "0001-01-01", "1970-01-01", "1989-12-31"],
    "timestamp": [None, "infinity", "-infinity", "0001-01-01", "1970-01-01", "1989-12-31 23:59:59.999999"],
}
"""Marks for no moment, values in another unit, and what no backend's row can be (FAILURES 13)."""
OLD = {
    "seconds": [seconds(CUTOFF) - 1, seconds(NOW - 900 * DAY), seconds(datetime(1990, 1, 1, tzinfo=UTC))],
    "milliseconds": [milliseconds(CUTOFF) - 1, milliseconds(NOW - 900 * DAY)],
    "date": [str((CUTOFF - DAY).date()), "2020-02-29", "1990-01-01"],
    "timestamp": [str(CUTOFF - timedelta(microseconds=1)), "1990-01-01"],
}
YOUNG = {
    "seconds": [seconds(CUTOFF), seconds(CUTOFF) + 1, seconds(NOW)],
    "milliseconds": [milliseconds(CUTOFF), milliseconds(CUTOFF) + 1, milliseconds(NOW)],
    "date": [str(CUTOFF.date()), str(NOW.date()), "2199-12-31"],
    "timestamp": [str(CUTOFF), str(NOW)],
}
COLUMNS = [
    ("seconds", "integer"),
    ("seconds", "bigint"),
    ("milliseconds", "bigint"),
    ("date", "date"),
    ("timestamp", "date"),
    ("timestamp", "timestamp"),
    ("timestamp", "timestamptz"),
]


@pytest.fixture(params=["blocks", "spans"])
def place(request: pytest.FixtureRequest) -> str:
    """By what a run finds the rows."""
    return str(request.param)


def things(engine: Engine, column_type: str, values: list[Any], place: str) -> None:
    """A table with these clocks in the rows 1, 2, ...; where a run is to go by spans, young rows and an index."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE things (id bigint PRIMARY KEY, at {column_type})")
        for number, value in enumerate(values, 1):
            connection.execute(
                text(f"INSERT INTO things VALUES (:id, CAST(CAST(:at AS text) AS {column_type}))"),
                {"id": number, "at": None if value is None else str(value)},
            )
        if place == "spans":
            count = "2000000000" if column_type == "integer" else "2000000000000"
            youngest = "'2199-12-31'" if column_type.startswith(("date", "timestamp")) else count
            connection.exec_driver_sql(f"INSERT INTO things SELECT -n, {youngest} FROM generate_series(1, 3000) AS n")
            connection.exec_driver_sql("CREATE INDEX ON things (at); ANALYZE things")


@pytest.mark.parametrize(("unit", "column_type"), COLUMNS)
def test_a_clock_is_due_when_its_whole_unit_is_over(engine: Engine, unit: Any, column_type: str, place: str) -> None:
    """E1, C16: and what is no moment of a backend's never is."""
    kind = "date" if column_type == "date" else unit
    old, kept = OLD[kind], NEVER[kind] + YOUNG[kind]
    things(engine, column_type, [*old, *kept], place)
    rule = Rule(name="things", table="things", clock="at", clock_unit=unit, keep=30 * DAY, action=Delete())

    found = due(engine, rule)
    assert found.rows == len(old)
    assert found.oldest is not None and found.newest is not None
    assert found.oldest.year in (1990, 2024) and found.newest.tzinfo is not None
    assert timedelta(0) <= CUTOFF - found.newest <= DAY + timedelta(hours=7)
    applied = go(engine, rule, now=NOW)
    assert (applied.rows, applied.failed, applied.skipped) == (len(old), 0, 0)
    assert len(asked(engine, "SELECT id FROM things WHERE id > 0")) == len(kept)
    assert go(engine, rule, now=NOW).rows == due(engine, rule).rows == 0


@pytest.mark.parametrize(("unit", "column_type"), COLUMNS)
def test_many_rows_go_span_by_span_and_none_twice(
    engine: Engine, unit: Any, column_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "START_COST", 4)
    moments = [CUTOFF - DAY - n * timedelta(minutes=97) for n in range(400)]
    spell = {"integer": seconds, "bigint": seconds if unit == "seconds" else milliseconds}.get(column_type, str)
    values = [str(moment.date()) if column_type == "date" else spell(moment) for moment in moments]
    things(engine, column_type, values, "spans")
    rule = Rule(name="things", table="things", clock="at", clock_unit=unit, keep=30 * DAY, action=Delete())

    applied = go(engine, rule, now=NOW)

    assert (applied.rows, applied.failed, applied.skipped) == (400, 0, 0)
    assert applied.batches > 2
    assert asked(engine, "SELECT count(*) FROM things WHERE id > 0") == [0]


@pytest.mark.parametrize(("unit", "column_type"), COLUMNS)
def test_the_clocks_index_serves_the_condition(engine: Engine, unit: Any, column_type: str) -> None:
    """The column is compared as it is; a function around it would read the whole table."""
    things(engine, column_type, [OLD["date" if column_type == "date" else unit][0]], "spans")
    rule = Rule(name="things", table="things", clock="at", clock_unit=unit, keep=30 * DAY, action=Delete())
    seen: list[str] = []
    with engine.connect() as connection:
        from lamplighter.kernel.retention.table import execute, look, parameters_of

        table = look(connection, rule)
        query = f"EXPLAIN SELECT FROM things AS things WHERE {table.predicate}"
        seen = list(execute(connection, query, parameters_of(rule, table, CUTOFF)).scalars())
    assert re.search(r"Index Cond: \(\(at >= .*\) AND \(at < ", "\n".join(seen)), seen


@pytest.mark.parametrize(
    ("unit", "column_type", "sentence"),
    [
        ("timestamp", "integer", "is of type integer; the clock_unit timestamp takes a timestamp, with or without time "
         "zone, or a date. Is its clock_unit seconds or milliseconds?"),
        ("timestamp", "text", "is of type text; the clock_unit timestamp takes a timestamp"),
        ("timestamp", "jsonb", "is of type jsonb; the clock_unit timestamp takes a timestamp"),
        ("timestamp", "time", "is of type time without time zone; the clock_unit timestamp takes a timestamp"),
        ("date", "timestamptz", "is of type timestamp with time zone; the clock_unit date takes a date."),
        ("seconds", "timestamptz", "the clock_unit seconds takes seconds since 1970 as integer, bigint, num"),
        ("seconds", "real", "takes seconds since 1970 as integer, bigint, numeric or double precision."),
        ("seconds", "smallint", "takes seconds since 1970 as integer, bigint, numeric or double precision."),
        ("milliseconds", "date", "the clock_unit milliseconds takes milliseconds since 1970 as integer, "),
    ],
)  # fmt: skip
def test_a_clock_of_another_type_is_one_sentence(engine: Engine, unit: Any, column_type: str, sentence: str) -> None:
    run(engine, f"CREATE TABLE things (id bigint, at {column_type})")
    rule = Rule(name="things", table="things", clock="at", clock_unit=unit, keep=DAY, action=Delete())
    for attempt in (due, go):
        with pytest.raises(Permanent) as refused:
            attempt(engine, rule)
        assert str(refused.value).startswith("retention.rules.things.clock: the column at of things ")
        assert sentence in str(refused.value)


SECONDS = [seconds(NOW - age * DAY) for age in (1, 40, 900)]


@pytest.mark.parametrize(
    ("unit", "values", "due_rows"),
    [
        ("milliseconds", SECONDS, "has no moment between 1990 and 2200 in milliseconds, but has some in seconds"),
        ("seconds", [1000 * one for one in SECONDS], "in seconds, but has some in milliseconds; nothing was touched."),
        ("milliseconds", [*SECONDS, *(1000 * one for one in SECONDS)], 2),
        ("seconds", [*SECONDS, *(1000 * one for one in SECONDS)], 2),
        ("milliseconds", [0, None, -1], 0),
        ("seconds", [], 0),
        ("seconds", [seconds(NOW)], 0),
    ],
)
def test_a_wrong_unit_deletes_nothing_and_does_not_look_like_a_clean_table(
    engine: Engine, unit: Any, values: list[Any], due_rows: Any, place: str
) -> None:
    """A cutoff of the wrong unit ended every session (multimeric/koa-pg-session #8, Mail-Otter #179), or none for ever
    (OmniRoute #9625); a column held both units (CortexReach/memory-lancedb-pro #689)."""
    things(engine, "bigint", values, "blocks")
    if place == "spans":
        run(engine, "CREATE INDEX ON things (at)")
    rule = Rule(name="things", table="things", clock="at", clock_unit=unit, keep=30 * DAY, action=Delete())

    if isinstance(due_rows, str):
        with pytest.raises(Permanent, match=rf"^retention\.rules\.things\.clock_unit: at of things .*{due_rows}"):
            due(engine, rule)
        assert go(engine, rule, now=NOW).rows == 0
    else:
        assert due(engine, rule).rows == go(engine, rule, now=NOW).rows == due_rows
    assert len(asked(engine, "SELECT id FROM things")) == len(values) - (due_rows if isinstance(due_rows, int) else 0)


@pytest.mark.parametrize("column_type", ["numeric", "numeric(20,3)", "double precision"])
def test_a_count_with_a_fraction_stands_for_its_moment(engine: Engine, column_type: str, place: str) -> None:
    """As Python's `time.time()` writes it; NaN is greater than every number."""
    cutoff = seconds(CUTOFF)
    old, kept = [cutoff - 0.5, cutoff - 1_000.25, 700_000_000.125], [cutoff, cutoff + 0.25, 0, "NaN", None, 1e15]
    things(engine, column_type, [*old, *kept], place)
    rule = Rule(name="things", table="things", clock="at", clock_unit="seconds", keep=30 * DAY, action=Delete())

    assert due(engine, rule).rows == 3
    assert go(engine, rule, now=NOW).rows == 3
    assert len(asked(engine, "SELECT id FROM things WHERE id > 0")) == len(kept)


def test_what_if_is_counted_for_counts_and_dates_too(engine: Engine) -> None:
    things(engine, "bigint", [milliseconds(NOW - age * DAY) for age in (5, 15, 45)], "blocks")
    rule = Rule(name="things", table="things", clock="at", clock_unit="milliseconds", keep=30 * DAY, action=Delete())

    found = simulate(engine, rule, now=NOW, keep=10 * DAY)

    assert (found.current.rows, found.proposed.rows) == (1, 2)
    assert found.proposed.newest == NOW.replace(microsecond=0) - 15 * DAY


def test_a_day_whose_rows_are_too_many_for_one_batch_is_cleaned_block_by_block(engine: Engine) -> None:
    things(engine, "date", ["2020-01-01"] * 150, "spans")
    slow = Rule(
        name="things", table="things", clock="at", keep=30 * DAY, action=Delete(),
        where="CAST(pg_sleep(0.001) AS text) = ''",
    )  # fmt: skip

    applied = go(engine, slow, now=NOW, target=timedelta(milliseconds=60))

    assert (applied.rows, applied.failed, applied.skipped) == (150, 0, 0)
    assert applied.batches > 1


# -- rows whose parent is gone ---------------------------------------------------------------------------------------

ORPHANS = Rule(
    name="orphans", table="posts", clock=None, action=Delete(), orphan_of=Parent(table="users", column="user_id")
)


@pytest.fixture
def posts(engine: Engine) -> Engine:
    """Posts 1 to 6 of the users 1 and 2; 3 and 4 of a user that is gone, 5 of none."""
    run(
        engine,
        "CREATE TABLE users (id bigint PRIMARY KEY, name text);"
        "CREATE TABLE posts (id bigint PRIMARY KEY, user_id bigint, at timestamptz, note text DEFAULT 'new');"
        "INSERT INTO users VALUES (1, 'a'), (2, 'b');"
        f"INSERT INTO posts VALUES (1, 1, '{CUTOFF - DAY}'), (2, 2, NULL), (3, 9, '{CUTOFF - DAY}'),"
        f" (4, 9, '{NOW}'), (5, NULL, '{CUTOFF - DAY}'), (6, 1, '{NOW}')",
    )
    return engine


@pytest.mark.parametrize(
    ("change", "goes"),
    [
        ({}, [3, 4]),
        ({"clock": "at", "keep": 30 * DAY}, [3]),
        ({"where": "id < 4"}, [3]),
        ({"where": "EXISTS (SELECT FROM users WHERE users.name = 'a') AND posts.id > 3"}, [4]),
        ({"action": Archive("attic")}, [3, 4]),
        ({"action": Set({"note": "flagged"})}, [3, 4]),
        ({"action": Set({"user_id": None})}, [3, 4]),
        ({"orphan_of": Parent(table="public.users", column="user_id", key="id")}, [3, 4]),
    ],
    ids=str,
)  # fmt: skip
def test_rows_go_whose_parent_is_gone_and_no_others(posts: Engine, change: dict[str, Any], goes: list[int]) -> None:
    """C16: a reference of NULL is none."""
    run(posts, "CREATE TABLE attic (LIKE posts)")
    rule = replace(ORPHANS, **change)
    before = asked(posts, "SELECT CAST(posts AS text) FROM posts ORDER BY id")

    assert due(posts, rule).rows == len(goes)
    applied = go(posts, rule, now=NOW)

    assert (applied.rows, applied.failed, applied.skipped) == (len(goes), 0, 0)
    after = asked(posts, "SELECT CAST(posts AS text) FROM posts ORDER BY id")
    changed = [n for n, row in enumerate(before, 1) if row not in after]
    assert changed == goes
    assert len(after) == (6 if isinstance(rule.action, Set) else 6 - len(goes))
    assert asked(posts, "SELECT id FROM attic ORDER BY id") == (goes if isinstance(rule.action, Archive) else [])
    assert go(posts, rule, now=NOW).rows == due(posts, rule).rows == 0


NIL = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("column_type", "none", "some"),
    [
        ("bigint", [None, 0, -1], [7, -2]),
        ("text", [None, "", "0"], ["7", " "]),
        ("numeric", [None, 0, -1], [7]),
        ("uuid", [None, NIL], ["70000000-0000-0000-0000-000000000000"]),
    ],
)
def test_what_names_no_parent_is_no_orphan(engine: Engine, column_type: str, none: list[Any], some: list[Any]) -> None:
    """FAILURES 27, of another kind: an empty text, or a zero, for "none". WordPress has the guests' comments so."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE users (id {column_type} PRIMARY KEY)")
        connection.exec_driver_sql(f"CREATE TABLE posts (id int, user_id {column_type})")
        parent = {"uuid": "'60000000-0000-0000-0000-000000000000'"}.get(column_type, "'6'")
        connection.exec_driver_sql(f"INSERT INTO users VALUES ({parent}); INSERT INTO posts VALUES (0, {parent})")
        for number, value in enumerate([*none, *some], 1):
            connection.execute(
                text(f"INSERT INTO posts VALUES (:id, CAST(CAST(:who AS text) AS {column_type}))"),
                {"id": number, "who": None if value is None else str(value)},
            )

    assert due(engine, ORPHANS).rows == len(some)
    assert go(engine, ORPHANS, now=NOW).rows == len(some)
    assert asked(engine, "SELECT id FROM posts ORDER BY id") == list(range(len(none) + 1))
    run(engine, "TRUNCATE users; DELETE FROM posts WHERE id = 0")
    assert due(engine, ORPHANS).rows == 0


def test_names_of_the_parent_and_of_its_columns_may_be_the_rows_own(engine: Engine) -> None:
    run(
        engine,
        'CREATE SCHEMA odd; CREATE TABLE odd."parent" (id int PRIMARY KEY, "parent :id" text);'
        'CREATE TABLE "parent" ("parent :id" text PRIMARY KEY, id int);'
        """INSERT INTO "parent" VALUES ('a', 9); INSERT INTO odd."parent" VALUES (1, 'a'), (2, 'gone'), (9, NULL)""",
    )
    rule = Rule(
        name="r", table="odd.parent", clock=None, action=Delete(),
        orphan_of=Parent(table="public.parent", column="parent :id", key="parent :id"),
    )  # fmt: skip

    assert go(engine, rule, now=NOW).rows == 1
    assert asked(engine, 'SELECT id FROM odd."parent" ORDER BY id') == [1, 9]


def test_parents_of_partitions_and_of_partitioned_tables_are_found(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE users (id int PRIMARY KEY) PARTITION BY HASH (id);"
        "CREATE TABLE users_0 PARTITION OF users FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE users_1 PARTITION OF users FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "CREATE TABLE posts (id int, user_id int) PARTITION BY HASH (id);"
        "CREATE TABLE posts_0 PARTITION OF posts FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE posts_1 PARTITION OF posts FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "INSERT INTO users SELECT n FROM generate_series(1, 20) AS n;"
        "INSERT INTO posts SELECT n, n FROM generate_series(1, 40) AS n",
    )

    assert go(engine, ORPHANS, now=NOW).rows == 20
    assert asked(engine, "SELECT max(id) FROM posts") == [20]


@pytest.mark.parametrize(
    ("script", "change", "sentence"),
    [
        (
            "TRUNCATE users",
            {},
            r"^orphans: the parent users has no rows, so every row of posts would be an orphan; noth",
        ),
        ("DROP TABLE users", {}, r"^orphans: there is no table users in the database\."),
        (
            "ALTER TABLE users RENAME TO u; CREATE VIEW users AS SELECT * FROM u",
            {},
            "is no ordinary or partitioned tabl",
        ),
        (
            "CREATE MATERIALIZED VIEW seen AS SELECT * FROM users",
            {"table": "seen"},
            "is no ordinary or partitioned tab",
        ),
        ("SELECT 1", {"key": "no"}, r"^orphans: the parent users has no column no\."),
        ("SELECT 1", {"column": "no"}, r"^orphans: the table posts has no column no\."),
        (
            "SELECT 1",
            {"key": "name"},
            r"^retention\.rules\.orphans\.orphan_of: operator does not exist: text = bigint\.",
        ),
        ("SELECT 1", {"table": "public.posts"}, r"^orphans: the parent public\.posts is the rule's own table\."),
    ],
)
def test_a_parent_that_cannot_tell_is_one_sentence_and_nothing_goes(
    posts: Engine, script: str, change: dict[str, Any], sentence: str
) -> None:
    """FAILURES 8: a table that was lost looks like everything orphaned."""
    run(posts, script)
    rule = replace(ORPHANS, orphan_of=replace(ORPHANS.orphan_of or Parent(table="", column=""), **change))
    for attempt in (due, go):
        with pytest.raises(Permanent, match=sentence) as refused:
            attempt(posts, rule)
        assert isinstance(refused.value, NoTable) == (script == "DROP TABLE users")
    assert len(asked(posts, "SELECT id FROM posts")) == 6


def test_parents_that_row_security_hides_are_an_error(posts: Engine) -> None:
    """S6; FAILURES 21."""
    run(
        posts,
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON users USING (name = 'a');"
        "CREATE ROLE sweeper; GRANT ALL ON users, posts TO sweeper",
    )
    try:
        with posts.connect() as connection:
            connection.exec_driver_sql("SET ROLE sweeper")
            connection.commit()
        for attempt in (due, go):
            with pytest.raises(Permanent, match=r"The database hides rows from this user: .*users"):
                attempt(posts, ORPHANS)
    finally:
        posts.dispose()
        run(posts, "DROP OWNED BY sweeper; DROP ROLE sweeper")
    assert len(asked(posts, "SELECT id FROM posts")) == 6


def test_parents_that_are_lost_during_the_run_end_it_without_an_orphan_more(posts: Engine) -> None:
    run(posts, "INSERT INTO posts SELECT n, 1 FROM generate_series(10, 5000) AS n; ANALYZE posts")
    stops = iter([None, "truncate", *[None] * 10_000])

    def stop() -> None:
        if next(stops) == "truncate":
            run(posts, "TRUNCATE users")

    applied = go(posts, replace(ORPHANS, action=Delete()), now=NOW, stop=stop)

    assert applied.rows in (0, 2)
    assert asked(posts, "SELECT count(*) FROM posts WHERE user_id = 1") == [4993]


@pytest.mark.parametrize("ceiling", [None, 100])
@pytest.mark.parametrize("new_parent", [1, 7])
def test_a_row_that_gets_a_parent_while_it_is_waited_for_stays(
    posts: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, new_parent: int, ceiling: int | None
) -> None:
    """At READ COMMITTED the new row would be held against the parents as they were before: user 7 is not among them."""
    monkeypatch.setattr(batches, "LOCK_WAIT", timedelta(seconds=5))
    change = (
        f"INSERT INTO users VALUES ({new_parent}, 'x') ON CONFLICT DO NOTHING;"
        f" UPDATE posts SET user_id = {new_parent} WHERE id = 3"
    )
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    # The run's own engine has no connection to spare for others.
    elsewhere = create_engine(
        "postgresql+pg8000://", creator=lambda: database._connect(database._from_url(database_url))
    )
    with elsewhere.connect() as other:
        other.exec_driver_sql(change)
        waited: list[bool] = []

        def commit() -> None:
            until = time.monotonic() + 10
            while not (seen := asked(elsewhere, waiting) != [0]) and time.monotonic() < until:
                time.sleep(0.01)
            other.commit()
            waited.append(seen)

        thread = threading.Thread(target=commit)
        thread.start()
        applied = go(posts, ORPHANS, now=NOW, ceiling=ceiling, target=timedelta(seconds=10))
        thread.join()
    elsewhere.dispose()

    assert waited == [True]
    assert asked(posts, "SELECT id FROM posts ORDER BY id") == [1, 2, 3, 5, 6]
    assert applied.rows == 1


def test_a_locked_parent_ends_the_run_with_one_sentence(
    posts: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", timedelta(milliseconds=200))
    with held(database_url, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"), pytest.raises(Retryable, match="locked"):
        go(posts, ORPHANS, now=NOW)
    assert len(asked(posts, "SELECT id FROM posts")) == 6


# -- conditions of the owner's own -----------------------------------------------------------------------------------

ANY = Rule(name="any", table="things", clock="at", keep=30 * DAY, action=Delete())


@pytest.fixture
def mixed(engine: Engine) -> Engine:
    """Rows 1 to 3, of which only the first is old."""
    run(
        engine,
        "CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz, note text, n int DEFAULT 0);"
        "CREATE TABLE others (id bigint PRIMARY KEY);"
        f"INSERT INTO things VALUES (1, '{CUTOFF - DAY}', 'a:b'), (2, '{NOW}', 'x'), (3, NULL, 'y')",
    )
    return engine


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("note = = 'x'", 'syntax error at or near "="'),
        ("nothing = 1", 'column "nothing" does not exist'),
        ("note = 1", "operator does not exist: text = integer"),
        ("note", "argument of WHERE must be type boolean, not type text"),
        ("count(*) > 1", "aggregate functions are not allowed in WHERE"),
        ("true ORDER BY id", 'syntax error at or near "ORDER"'),
        ("true LIMIT 1", 'syntax error at or near "LIMIT"'),
        ("no_such_function(id)", r"function no_such_function\(bigint\) does not exist"),
        ("id = 'x'", 'invalid input syntax for type bigint: "x"'),
        ("at < :cutof", 'syntax error at or near ":"'),
        ("1 / 0 = 1", "division by zero"),
    ],
)
def test_a_condition_that_the_database_does_not_take_is_one_sentence(mixed: Engine, where: str, sentence: str) -> None:
    for attempt in (due, go):
        with pytest.raises(Permanent, match=rf"^retention\.rules\.any\.where: {sentence}.*\.$") as refused:
            attempt(mixed, replace(ANY, where=where))
        others = ("column", "operator", "argument", "function", "no_such", "invalid")  # those of another table
        assert isinstance(refused.value, Unfit) is sentence.startswith(others)
    assert len(asked(mixed, "SELECT id FROM things")) == 3


def test_a_condition_that_fails_on_a_row_is_one_sentence(mixed: Engine) -> None:
    for attempt in (due, go):
        with pytest.raises(
            Permanent, match=r"\.where: fails on a row of things: division by zero \(SQLSTATE 22012\)\.$"
        ):
            attempt(mixed, replace(ANY, where="1 / n = 1"))
        with pytest.raises(Permanent) as refused:
            attempt(mixed, replace(ANY, where="CAST(note AS int) = 1"))
        assert "invalid input syntax for type integer: ... (SQLSTATE 22P02)" in str(refused.value)


def test_a_condition_over_a_table_that_is_not_there_counts_as_a_missing_table(mixed: Engine) -> None:
    with pytest.raises(NoTable, match=r'^any: relation "gone" does not exist\.$'):
        due(mixed, replace(ANY, where="EXISTS (SELECT FROM gone)"))


@pytest.mark.parametrize(
    "where",
    [
        "note LIKE '%:%'",
        "note = 'a:b' AND at::date < now()::date",
        "note IN ('a:b', ')', ';') /* ) */",
        "at < :cutoff AND note ~ '^\\w:\\w$'",
        "NOT EXISTS (SELECT FROM others WHERE others.id = things.id)",
        "note = $$a:b$$ -- the end",
    ],
)
def test_sql_is_taken_as_one_writes_it(mixed: Engine, where: str) -> None:
    assert due(mixed, replace(ANY, where=where)).rows == 1
    assert go(mixed, replace(ANY, where=where), now=NOW).rows == 1
    assert asked(mixed, "SELECT id FROM things ORDER BY id") == [2, 3]


PIECES = (
    "'",
    "''",
    '"',
    '""',
    "$$",
    "$a$",
    "--",
    "/*",
    "*/",
    "\n",
    "\r",
    "\\",
    "(",
    ")",
    ":",
    "$",
    "a",
    "é",
    ";",
    "E'",
)
HIDING = ("'{}'", "E'{}'", "N'{}'", "U&'{}'", "$${}$$", "$a${}$a$", "'x' {} 'y'")


def hidden(chance: random.Random) -> str:
    """A comment, or an expression with a string or an identifier, that holds what may be mistaken for code."""
    text = "".join(chance.choices(PIECES, k=chance.randint(1, 3)))
    comments = (f"/*{text}*/", f"--{text}\n", f"/* /*{text}*/ */")
    expression = chance.choice(
        [f"note = {chance.choice(HIDING).format(text)}", f'EXISTS (SELECT 1 AS "{text}")', f"(note <> '{text}')"]
    )
    return chance.choice([*comments, f"{chance.choice([*comments, ''])} {expression}"])


def conditions(seed: int) -> Iterator[str]:
    """Conditions with a parenthesis too many, between two things that may hide it from a scanner."""
    chance = random.Random(seed)
    while True:
        front, back = hidden(chance), hidden(chance)
        before, after = ("" if one.rstrip().endswith(("*/", "\n")) else "OR" for one in (front, back))
        yield f"{front} {chance.choice([before, 'OR'])} true) OR (true {chance.choice([after, 'OR'])} {back}"


def test_no_condition_gets_out_of_its_parentheses(mixed: Engine) -> None:
    """What `check` takes selects nothing where the clock does not, whatever the server makes of quotes and comments."""
    escaped, candidates = 0, conditions(0)
    with mixed.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.rollback()  # the pool's ping began a transaction
        driver.autocommit = True
        cursor = driver.cursor()
        for _ in range(10_000):
            where = next(candidates)
            try:
                cursor.execute(f"SELECT id FROM things WHERE false AND ({where}\n)")
                rows = cursor.fetchall()
            except Exception:  # noqa: BLE001 - the server does not take it
                continue
            if rows:
                escaped += 1
                with pytest.raises(BadWhere):
                    check(where)
        driver.autocommit = False
    assert escaped > 300


def test_statements_after_the_condition_are_not_reached(mixed: Engine) -> None:
    """Past the check, the server itself takes one statement."""
    rule = replace(ANY)
    object.__setattr__(rule, "where", "true; DELETE FROM things")
    for attempt in (due, go):
        with pytest.raises(Permanent, match=r"^retention\.rules\.any\.where: cannot insert multiple commands"):
            attempt(mixed, rule)
    object.__setattr__(rule, "where", "true) OR (true")
    for attempt in (due, go):
        with pytest.raises(Permanent, match=r"^retention\.rules\.any\.where: syntax error"):
            attempt(mixed, rule)
    assert len(asked(mixed, "SELECT id FROM things")) == 3


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (Set({"n": "many"}), r'^retention\.rules\.any\.action: invalid input syntax for type integer: "many"\.$'),
        (Set({"n": 2**40}), r"^retention\.rules\.any\.action: .* out of range for type integer\.$"),
        (Set({"need": None}), r"^any: the column need of things takes no null\.$"),
        (Archive("public.things"), r"^any: the table public\.things holds the rows that are to be archived into it\.$"),
        (Set({"code": "anonymous"}), r"action: the column code of things takes at most 5 characters, got 9\.$"),
        (Set({"code": 123456}), r"action: the column code of things takes at most 5 characters, got 6\.$"),
        (Set({"twice": 4}), r"^any: the column twice of things is generated, and takes no value\.$"),
        (Set({"made": 4}), r"^any: the column made of things is generated, and takes no value\.$"),
        (Set({"flags": "1011"}), r"action: the column flags of things takes at most 2 characters, got 4\.$"),
    ],
)
def test_an_action_that_cannot_work_is_one_sentence(mixed: Engine, action: Any, sentence: str) -> None:
    run(
        mixed,
        "ALTER TABLE things ADD need int NOT NULL DEFAULT 1, ADD code varchar(5), ADD flags bit(2),"
        "ADD twice int GENERATED ALWAYS AS (2 * n) STORED, ADD made int GENERATED ALWAYS AS IDENTITY",
    )
    for attempt in (due, go):
        with pytest.raises(Permanent, match=sentence):
            attempt(mixed, replace(ANY, action=action))


LOSSY = (
    *(("numeric(10,2)", kind) for kind in ("integer", "bigint", "numeric(10,1)", "double precision")),
    *(("double precision", kind) for kind in ("real", "numeric", "smallint")),
    *(("timestamptz", kind) for kind in ("date", "time", "timestamptz(0)", "timestamp(3)")),
    *(("numeric", "numeric(20,6)"), ("bigint", "double precision"), ("integer", "real"), ("interval", "interval(0)")),
    *(("text", "integer"), ("bigint", "timestamptz"), ("timestamptz", "bigint"), ("boolean", "numeric")),
    ("integer", "integer GENERATED ALWAYS AS (1) STORED"),
    *(("numeric[]", "integer[]"), ("numeric", "whole"), ("cents", "integer"), ("timestamptz[]", "date[]")),
)
KEPT = (
    *(("integer", kind) for kind in ("smallint", "bigint", "numeric", "numeric(12,2)", "double precision", "text")),
    *(("numeric(10,2)", kind) for kind in ("numeric", "numeric(12,4)", "numeric(9,2)", "text")),
    *(("timestamptz(3)", kind) for kind in ("timestamptz", "timestamp", "timestamptz(3)")),
    *(("varchar(40)", kind) for kind in ("text", "varchar(20)")),
    *(
        ("text[]", "varchar[]"),
        ("jsonb", "json"),
        ("uuid", "text"),
        ("real", "double precision"),
        ("date", "timestamp"),
    ),
    *(("integer", "whole"), ("whole", "bigint"), ("cents", "numeric"), ("whole", "whole"), ("integer[]", "bigint[]")),
)


def make_archive(engine: Engine, mine: str, theirs: str) -> None:
    """A table with an old row, and an archive whose column x is of another type."""
    run(
        engine,
        "CREATE DOMAIN whole AS integer; CREATE DOMAIN cents AS numeric(9,2);"
        f"CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz, x {mine});"
        f"CREATE TABLE attic (id bigint, at timestamptz, x {theirs}); INSERT INTO things VALUES (1, '{CUTOFF - DAY}')",
    )


@pytest.mark.parametrize(("mine", "theirs"), LOSSY)
def test_an_archive_that_would_change_a_value_is_one_sentence(engine: Engine, mine: str, theirs: str) -> None:
    """Rows were rounded or cut as they were archived, and then deleted (OpenDXP #185)."""
    make_archive(engine, mine, theirs)
    for attempt in (due, go):
        with pytest.raises(Permanent, match=r"^retention\.rules\.any\.action: the column x of attic is "):
            attempt(engine, replace(ANY, action=Archive("attic")))


@pytest.mark.parametrize(("mine", "theirs"), KEPT)
def test_an_archive_may_have_types_that_keep_each_value(engine: Engine, mine: str, theirs: str) -> None:
    make_archive(engine, mine, theirs)
    assert go(engine, replace(ANY, action=Archive("attic"))).rows == 1


def test_an_archive_with_a_column_that_no_row_has_is_one_sentence_unless_it_is_filled(mixed: Engine) -> None:
    """Each row was refused by itself, in every run."""
    run(mixed, "CREATE TABLE attic (LIKE things, reason text NOT NULL)")
    rule = replace(ANY, action=Archive("attic"))
    for attempt in (due, go):
        with pytest.raises(Permanent, match=r"action: the column reason of attic takes no null and has no default"):
            attempt(mixed, rule)
    run(
        mixed,
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.reason = ''old''; RETURN NEW; END';"
        "CREATE TRIGGER fill BEFORE INSERT ON attic FOR EACH ROW EXECUTE FUNCTION fill()",
    )
    assert go(mixed, rule).rows == 1


def test_a_name_without_a_schema_never_means_a_table_of_lamplighters(mixed: Engine) -> None:
    """A user who is called lamplighter has the schema first on the search path."""
    run(mixed, "CREATE SCHEMA IF NOT EXISTS lamplighter; CREATE TABLE lamplighter.reports (id bigint, at timestamptz)")
    run(mixed, f"INSERT INTO lamplighter.reports VALUES (1, '{CUTOFF - DAY}')")
    with mixed.begin() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET search_path = lamplighter, public')
    mixed.dispose()
    parent = Parent(table="reports", column="n")
    for attempt in (due, go):
        for field, rule in (
            ("table", replace(ANY, table="reports")),
            ("orphan_of", replace(ANY, orphan_of=parent)),
            ("action", replace(ANY, action=Archive("reports"))),
        ):
            sentence = rf"\.{field}: reports is found in the schema lamplighter.* as in public\.reports\.$"
            with pytest.raises(Permanent, match=sentence):
                attempt(mixed, rule)
    assert due(mixed, replace(ANY, table="lamplighter.reports")).rows == 1
