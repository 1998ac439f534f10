"""`lamplighter.media.values` on a real Postgres: every value of every kind of column, or one sentence."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from lamplighter.kernel import database
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.media import Reference
from lamplighter.media import values

HOUR = timedelta(hours=1)


def reference(name: str, **declared: Any) -> Reference:
    table, _, column = name.rpartition(".")
    return Reference(table=table, column=column, **declared)


def sql(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def read(engine: Engine, name: str, **declared: Any) -> list[str]:
    """The values of a column, sorted."""
    with engine.connect() as connection:
        batches = list(values.read(connection, [reference(name, **declared)], max_lag=HOUR))
    return sorted(value for batch in batches for value in batch.values)


def hints(engine: Engine, name: str, **declared: Any) -> set[str]:
    with engine.connect() as connection:
        batches = list(values.read(connection, [reference(name, **declared)], max_lag=HOUR))
    return {value for batch in batches for value in batch.hints}


@pytest.fixture
def citext(engine: Engine) -> bool:
    """Whether the server brings citext; a domain stands in for it where it does not."""
    with engine.begin() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"
        ).scalar_one()
        connection.exec_driver_sql("CREATE EXTENSION citext" if found else "CREATE DOMAIN citext AS text")
    return bool(found)


@pytest.mark.usefixtures("citext")
@pytest.mark.parametrize("kind", ["text", "varchar(99)", "varchar", "char(20)", "citext", "key", "keys_of_keys"])
def test_text_of_every_type_is_read(engine: Engine, kind: str) -> None:
    sql(
        engine,
        "CREATE DOMAIN key AS text CHECK (value <> 'never')",
        "CREATE DOMAIN keys_of_keys AS key",
        f"CREATE TABLE t (v {kind})",
        "INSERT INTO t VALUES ('a.jpg'), (NULL), ('Ä b.jpg'), ('')",
    )

    assert [value for value in read(engine, "t.v") if value] == ["a.jpg", "Ä b.jpg"]


@pytest.mark.parametrize("kind", ["text[]", "varchar(9)[]", "char(9)[]", "key[]", "list"])
def test_each_element_of_an_array_is_a_value(engine: Engine, kind: str) -> None:
    sql(
        engine,
        "CREATE DOMAIN key AS text",
        "CREATE DOMAIN list AS text[]",
        f"CREATE TABLE t (v {kind})",
        "INSERT INTO t VALUES ('{a.jpg,NULL,b.jpg}'), (NULL), ('{}'), ('{{c.jpg},{d.jpg}}')",
    )

    assert read(engine, "t.v") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


DOCUMENT = json.dumps({"cover": "a.jpg", "all": ["b.jpg", {"n": 1, "of": "Title"}], "c.jpg": None, "d": "d%2Ejpg"})


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
def test_all_strings_of_json_are_read_and_those_that_are_no_media_are_hints(engine: Engine, kind: str) -> None:
    sql(engine, f"CREATE TABLE t (v {kind})", f"INSERT INTO t VALUES ('{DOCUMENT}'), ('null'), ('\"e.jpg\"')")

    assert read(engine, "t.v", kind="json") == ["a.jpg", "b.jpg", "c.jpg", "d%2Ejpg", "e.jpg"]
    assert hints(engine, "t.v", kind="json") == {"Title"}


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
def test_a_path_says_which_strings_of_json_count(engine: Engine, kind: str) -> None:
    sql(engine, f"CREATE TABLE t (v {kind})", f"INSERT INTO t VALUES ('{DOCUMENT}'), ('[]')")

    assert read(engine, "t.v", kind="json", path="$.all[*]") == ["b.jpg"]
    assert read(engine, "t.v", kind="json", path="$.all") == ["b.jpg"]
    assert read(engine, "t.v", kind="json", path='$."c\'.jpg"') == []


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
def test_a_path_that_selects_an_object_in_some_rows_reads_what_is_in_it(engine: Engine, kind: str) -> None:
    rows = ('{"i": "a"}', '{"i": {"src": "b.jpg", "alt": "b"}}', '{"i": [["c.jpg"], {"d": [1, "d.jpg"]}]}', '{"i": 7}')
    sql(engine, f"CREATE TABLE t (v {kind})", *(f"INSERT INTO t VALUES ('{row}')" for row in rows))

    assert read(engine, "t.v", kind="json", path="$.i") == ["a", "b.jpg", "c.jpg", "d.jpg"]
    assert hints(engine, "t.v", kind="json", path="$.i") == {"b"}


def test_json_that_cannot_be_read_is_a_value_as_it_stands(engine: Engine) -> None:
    deep = "[" * 100_000
    sql(
        engine,
        "CREATE TABLE t (v text)",
        f"INSERT INTO t VALUES ('{{\"a\": \"a.jpg'), ('{deep}'), ('[\"b\\u0000.jpg\"]'), ('[\"\\ud800c.jpg\"]')",
    )

    assert read(engine, "t.v", kind="json") == sorted(['{"a": "a.jpg', deep, "b\0.jpg", "\ud800c.jpg"])


@pytest.mark.parametrize(("kind", "document"), [("json", '["b\\u0000.jpg"]'), ("text", "[")])
def test_json_that_a_path_cannot_be_applied_to_is_one_sentence(engine: Engine, kind: str, document: str) -> None:
    sql(engine, f"CREATE TABLE t (v {kind})", f"INSERT INTO t VALUES ('{document}')")

    with pytest.raises(Permanent, match=r"references: t\.v cannot be read: "):
        read(engine, "t.v", kind="json", path="$[*]")


PAGE = """<p>See <img src="/media/a%20b.jpg" srcset='c.jpg 1x, d.jpg 2x' alt="my e.jpg"> <a href="/about">us</a>
<div style="background: url('f.png')" data-video=g.mp4>![alt](h (1).jpg "title") [x]: i.gif and uploads/j k.webp, l.jpg
"""


def test_html_and_markdown_give_the_paths_in_them(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (v text)")
        connection.execute(text("INSERT INTO t VALUES (:page)"), {"page": PAGE})

    found = read(engine, "t.v", kind="html")

    for name in ["/media/a%20b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.png", "g.mp4", "h (1).jpg", "i.gif", "l.jpg"]:
        assert found.count(name) == 1, (name, found)
    assert hints(engine, "t.v", kind="html") >= {"/about", "my e.jpg", "uploads/j k.webp"}


def test_a_large_table_is_read_whole_by_ranges_of_blocks(engine: Engine) -> None:
    sql(
        engine,
        "CREATE TABLE t (id int, v text)",
        "INSERT INTO t SELECT n, 'k' || n FROM generate_series(1, 60000) AS n",
        "DELETE FROM t WHERE id % 3 = 0",
        "UPDATE t SET v = v || 'x' WHERE id % 5 = 0",
        "INSERT INTO t VALUES (0, NULL)",
    )
    with engine.connect() as connection:
        batches = list(values.read(connection, [reference("t.v")], max_lag=HOUR))

    assert len(batches) > 2
    expected = [f"k{n}{'x' if n % 5 == 0 else ''}" for n in range(1, 60_001) if n % 3]
    assert sorted(value for batch in batches for value in batch.values) == sorted(expected)


def test_rows_that_move_while_the_table_is_read_are_read_once(engine: Engine) -> None:
    """Ranges in snapshots of their own lost 15 to 21 % of an updated table."""
    sql(engine, "CREATE TABLE t (id int, v text)", "INSERT INTO t SELECT n, 'k' || n FROM generate_series(1, 60000) n")
    with engine.connect() as connection:
        reading = values.read(connection, [reference("t.v")], max_lag=HOUR)
        found = list(next(reading).values)
        for _ in range(2):
            sql(engine, "UPDATE t SET id = id + 1")
        found += [value for batch in reading for value in batch.values]

    assert len(found) == 60_000
    assert set(found) == {f"k{n}" for n in range(1, 60_001)}


def test_partitions_children_and_views_are_read_whole(engine: Engine) -> None:
    sql(
        engine,
        "CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id)",
        "CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (5)",
        "CREATE TABLE lower PARTITION OF low FOR VALUES FROM (5) TO (10)",
        "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (20)",
        "INSERT INTO parts SELECT n, 'k' || n FROM generate_series(0, 19) AS n",
        "CREATE TABLE parent (v text)",
        "CREATE TABLE child (more int) INHERITS (parent)",
        "INSERT INTO parent VALUES ('a')",
        "INSERT INTO child VALUES ('b', 1)",
        "CREATE VIEW seen AS SELECT v FROM parent ORDER BY v",
        "CREATE MATERIALIZED VIEW kept AS SELECT v FROM parent",
    )

    assert len(read(engine, "parts.v")) == 20
    assert read(engine, "parent.v") == read(engine, "seen.v") == read(engine, "kept.v") == ["a", "b"]


def test_a_server_without_tid_ranges_is_read_by_a_cursor(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "TID_RANGES_SINCE", 10**9)
    monkeypatch.setattr(values, "FETCHED", 7)
    sql(engine, "CREATE TABLE t (v text)", "INSERT INTO t SELECT n FROM generate_series(1, 20) AS n")
    with engine.connect() as connection:
        batches = list(values.read(connection, [reference("t.v"), reference("t.v")], max_lag=HOUR))

    assert [len(batch.values) for batch in batches] == [7, 7, 6] * 2


def test_names_that_need_quotes_are_read(engine: Engine) -> None:
    sql(
        engine,
        'CREATE SCHEMA "my app"',
        'CREATE TABLE "my app"."User:Files %s" ("The ""Key"" :x" varchar(99))',
        """INSERT INTO "my app"."User:Files %s" VALUES ('a.jpg')""",
        'CREATE VIEW "my app"."v:v" AS SELECT * FROM "my app"."User:Files %s"',
    )

    for table in ("my app.User:Files %s", "my app.v:v"):
        source = Reference(table=table, column='The "Key" :x')
        with engine.connect() as connection:
            assert [b.values for b in values.read(connection, [source], max_lag=HOUR)] == [["a.jpg"]]


def test_both_columns_are_read_in_one_snapshot(engine: Engine) -> None:
    sql(engine, "CREATE TABLE a (v text)", "CREATE TABLE b (v text)", "INSERT INTO a VALUES ('moving')")
    with engine.connect() as connection:
        reading = values.read(connection, [reference("b.v"), reference("a.v")], max_lag=HOUR)
        found = [next(reading)]
        sql(engine, "INSERT INTO b SELECT * FROM a", "DELETE FROM a")
        found += reading

    assert [value for batch in found for value in batch.values] == ["moving"]


# -- what cannot be read in full -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "declared", "sentence"),
    [
        ("nowhere.v", {}, "there is no table nowhere in the database"),
        ("t_seq.last_value", {}, "there is no table t_seq"),
        ("t.gone", {}, "the table t has no column gone"),
        ("t.ctid", {}, "the table t has no column ctid"),
        ("t.number", {}, "t.number is of type integer; a column of text"),
        ("t.mood", {}, "t.mood is of type mood; a column of text"),
        ("t.blob", {}, "t.blob is of type bytea; a column of text"),
        ("t.moods", {}, "t.moods is of type mood[]; a column of text"),
        ("t.v", {"kind": "array"}, "t.v is of type text, which can be read as text or html or json, not as array"),
        ("t.list", {"kind": "html"}, "t.list is of type text[], which can be read as array, not as html"),
        ("t.j", {"kind": "json", "path": "$["}, "t.j cannot be read: syntax error"),
        ('t"; DROP TABLE t; --.v', {}, "there is no table"),
        ("broken.v", {}, "broken.v cannot be read: division by zero"),
    ],
)
def test_what_cannot_be_read_is_one_final_sentence(
    engine: Engine, name: str, declared: dict[str, Any], sentence: str
) -> None:
    sql(
        engine,
        "CREATE TYPE mood AS ENUM ('fine')",
        "CREATE SEQUENCE t_seq",
        "CREATE TABLE t (v text, number int, mood mood, moods mood[], blob bytea, list text[], j jsonb)",
        """INSERT INTO t (v, number, j) VALUES ('a', 0, '"a"')""",
        "CREATE VIEW broken AS SELECT (1 / number)::text AS v FROM t",
    )

    with pytest.raises(Permanent) as caught:
        read(engine, name, **declared)

    assert sentence in str(caught.value)
    assert str(caught.value).startswith("references: ")
    assert len(str(caught.value)) < 400
    assert nothing_held(engine)


def nothing_held(engine: Engine) -> bool:
    """Whether no session holds a lock on a table of ours, or is left in a transaction."""
    with engine.connect() as connection:
        return not connection.exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%'"
        ).scalar_one()


@contextmanager
def as_role(engine: Engine, *grants: str) -> Iterator[Engine]:
    """An engine of a role that may do no more than `grants` say."""
    role = f"reader_{id(grants)}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        for grant in grants:
            connection.exec_driver_sql(f"GRANT {grant} TO {role}")
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
    where = replace(database._from_url(os.environ["DATABASE_URL"]), user=role, password=None, name=str(name))
    other = create_engine("postgresql+pg8000://", creator=lambda: database._connect(where))
    try:
        yield other
    finally:
        other.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")


TENANTS = [
    "CREATE TABLE t (tenant text, v text)",
    "INSERT INTO t SELECT CASE WHEN n % 5 = 0 THEN 'b' ELSE 'a' END, 'k' || n FROM generate_series(1, 20) AS n",
]


def test_row_security_that_hides_a_tenant_fails_the_reading(engine: Engine) -> None:
    """FAILURES 21 (wpmgr #408): the other tenant's files looked orphaned."""
    sql(
        engine,
        *TENANTS,
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON t USING (tenant = 'a')",
        "CREATE VIEW seen WITH (security_invoker) AS SELECT * FROM t",
    )
    with as_role(engine, "SELECT ON t, seen") as reader:
        with reader.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 16, "it hides rows"
        for name in ("t.v", "seen.v"):
            with pytest.raises(Permanent, match=rf"{name} cannot be read in full: .*table \"t\".*BYPASSRLS"):
                read(reader, name)
    assert len(read(engine, "t.v")) == 20


def test_row_security_of_a_partition_hides_nothing_when_its_parent_is_read(engine: Engine) -> None:
    sql(
        engine,
        "CREATE TABLE t (id int, v text) PARTITION BY LIST (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "ALTER TABLE t2 ENABLE ROW LEVEL SECURITY",
    )
    with as_role(engine, "SELECT ON t, t2") as reader:
        assert read(reader, "t.v") == ["a", "b"]


@pytest.mark.parametrize("grants", [(), ("SELECT (other) ON t",)])
def test_no_right_to_read_is_one_final_sentence(engine: Engine, grants: tuple[str, ...]) -> None:
    sql(engine, "CREATE TABLE t (v text, other text)")
    with as_role(engine, *grants) as reader:
        with pytest.raises(Permanent, match=r"t\.v cannot be read in full: permission denied for table t\."):
            read(reader, "t.v")
        assert nothing_held(engine)


def test_the_right_to_one_column_is_enough(engine: Engine) -> None:
    sql(engine, "CREATE TABLE t (v text, other text)", "INSERT INTO t VALUES ('a', 'b')")
    with as_role(engine, "SELECT (v) ON t") as reader:
        assert read(reader, "t.v") == ["a"]


def test_a_locked_table_is_reported_and_read_later(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sql(engine, "CREATE TABLE t (v text)")
    monkeypatch.setattr(database, "LOCK_TIMEOUT", timedelta(milliseconds=100))
    monkeypatch.setattr(database.bound_statements, "__kwdefaults__", {"lock": timedelta(milliseconds=100)})
    with engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE t")
        with pytest.raises(Retryable, match=r"references: t is locked by another session"):
            read(engine, "t.v")
    assert read(engine, "t.v") == []


def test_a_reading_that_a_standby_cancels_starts_over(engine: Engine) -> None:
    sql(
        engine,
        "CREATE FUNCTION conflict() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '40001' USING MESSAGE ="
        " 'canceling statement due to conflict with recovery'; END $$",
        "CREATE VIEW t AS SELECT conflict() AS v",
    )
    with pytest.raises(Retryable, match=r"reading t\.v was interrupted \(canceling statement due to conflict"):
        read(engine, "t.v")


def test_a_table_rewritten_since_the_snapshot_is_not_taken_for_empty(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(engine, "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
    identify = values._identify

    def slow(*arguments: Any) -> Any:
        found = identify(*arguments)
        thread = threading.Thread(
            target=sql, args=(engine, "CREATE TABLE copy AS TABLE t", "TRUNCATE t", "INSERT INTO t TABLE copy")
        )
        thread.start()
        thread.join()
        return found

    monkeypatch.setattr(values, "_identify", slow)
    with pytest.raises(Retryable, match="t was rewritten while it was read"):
        read(engine, "t.v")
    monkeypatch.undo()
    assert read(engine, "t.v") == ["a"]
