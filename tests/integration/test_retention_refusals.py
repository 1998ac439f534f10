"""Rows that the database refuses to delete do not stop the others; chains go whole (REQUIREMENTS S9, FAILURES 26)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from lamplighter.kernel import database
from lamplighter.kernel.database import DatabaseUnavailable
from lamplighter.kernel.errors import Retryable
from lamplighter.kernel.retention import Archive, Delete, Rule, batches
from lamplighter.kernel.retention.table import look
from tests.conftest import Seeded
from tests.integration.test_retention import DAY, NOW, go, held, timed

pytestmark = pytest.mark.usefixtures("any_moment")

RULE = Rule(name="things", table="shop.things", clock="at", keep=30 * DAY, action=Delete())
MOVE = replace(RULE, action=Archive("shop.attic"))
OLD = f"timestamptz '{NOW}' - interval '60 days' + n * interval '1 second'"
KINDS = ("NO ACTION", "RESTRICT", "NO ACTION DEFERRABLE INITIALLY IMMEDIATE", "NO ACTION DEFERRABLE INITIALLY DEFERRED")


@pytest.fixture
def engine(database_url: str) -> Engine:
    """A schema of its own with empty tables `things` and `attic`."""
    engine = database.engine()
    run(
        engine,
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.things (id bigint PRIMARY KEY, at timestamptz, note text, parent bigint)",
        "CREATE INDEX ON shop.things (parent)",
        "CREATE TABLE shop.attic (LIKE shop.things)",
    )
    return engine


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def fill(engine: Engine, count: int, *, parent: str = "NULL", order: str = "n") -> None:
    """Rows 1 to `count`, all of them due."""
    run(
        engine,
        f"INSERT INTO shop.things SELECT n, {OLD}, 'new', {parent}"
        f" FROM generate_series(1, {count}) AS n ORDER BY {order}",
    )


def parts(engine: Engine, numbers: list[int], how: str = "NO ACTION") -> None:
    """A table whose rows refer to these things."""
    run(engine, f"CREATE TABLE shop.parts (thing bigint REFERENCES shop.things ON DELETE {how})")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO shop.parts SELECT unnest(CAST(:n AS bigint[]))"), {"n": numbers})
    run(engine, "CREATE INDEX ON shop.parts (thing)", "ANALYZE shop.parts", "ANALYZE shop.things")


def ids(engine: Engine, table: str = "things") -> set[int]:
    with engine.connect() as connection:
        return set(connection.execute(text(f"SELECT id FROM shop.{table} WHERE id > 0")).scalars())


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("how", KINDS)
def test_rows_that_children_keep_do_not_stop_the_others(
    engine: Engine, seeded: Seeded, how: str, indexed: bool
) -> None:
    for _, chance in seeded([KINDS.index(how)]):
        kept = sorted(chance.sample(range(1, 20_001), 6_000))
    fill(engine, 20_000)
    parts(engine, kept, how)
    if indexed:  # spans of time, for few rows are due
        young = f"SELECT -n, timestamptz '{NOW}' FROM generate_series(1, 60000) AS n"
        run(
            engine,
            f"INSERT INTO shop.things (id, at) {young}",
            "CREATE INDEX ON shop.things (at)",
            "ANALYZE shop.things",
        )

    with timed(engine) as took:
        applied = go(engine, RULE)

    assert (applied.rows, applied.failed, applied.skipped, applied.stopped) == (14_000, 6_000, 0, None)
    assert ids(engine) == set(kept)
    assert len(took) < 200, "a search row by row"
    reason = "rows of shop.parts still refer to it (foreign key parts_thing_fkey)."
    assert len(applied.failures) == batches.NAMED_FAILURES
    assert set(applied.failures) <= {f"shop.things id={number}: {reason}" for number in kept}


def test_the_ceiling_counts_the_rows_that_go_and_nothing_else(engine: Engine) -> None:
    """A deferred key speaks at the commit, after the rows were counted: it is asked before."""
    fill(engine, 1_000)
    parts(engine, [number for number in range(1, 1_001) if number % 3], "NO ACTION DEFERRABLE INITIALLY DEFERRED")
    counted: list[int] = []

    limited = go(engine, RULE, ceiling=100, counted=counted.append)
    assert (limited.rows, sum(counted), limited.stopped, len(ids(engine))) == (100, 100, "ceiling", 900)

    counted.clear()
    rest = go(engine, RULE, ceiling=1_000, counted=counted.append)
    assert (rest.rows, sum(counted), rest.failed, rest.stopped) == (233, 233, 667, None)


def test_an_archive_leaves_out_what_children_keep(engine: Engine) -> None:
    fill(engine, 3_000)
    parts(engine, list(range(1, 3_001, 3)))

    applied = go(engine, MOVE)

    assert (applied.rows, applied.failed, applied.skipped) == (2_000, 1_000, 0)
    assert ids(engine) == set(range(1, 3_001, 3))
    assert ids(engine, "attic") == set(range(1, 3_001)) - ids(engine)


def test_keys_of_several_columns_and_of_partitions_count_with_their_nulls(database_url: str) -> None:
    """MATCH SIMPLE: a reference with a NULL refers to nothing. A key to one partition keeps rows of that one alone."""
    engine = database.engine()
    run(
        engine,
        'CREATE SCHEMA "Sh op"',
        'CREATE TABLE "Sh op"."Thin gs" (id bigint, "No" text, at timestamptz, PRIMARY KEY (id, "No"))'
        " PARTITION BY RANGE (id)",
        'CREATE TABLE "Sh op".low PARTITION OF "Sh op"."Thin gs" FOR VALUES FROM (0) TO (100)',
        'CREATE TABLE "Sh op".high PARTITION OF "Sh op"."Thin gs" FOR VALUES FROM (100) TO (200)',
        f"INSERT INTO \"Sh op\".\"Thin gs\" SELECT n, 'it''s :' || n, {OLD} FROM generate_series(1, 199) AS n",
        'CREATE TABLE "Sh op".parts (thing bigint, "No" text) PARTITION BY LIST (thing)',
        'CREATE TABLE "Sh op".rest PARTITION OF "Sh op".parts DEFAULT',
        'ALTER TABLE "Sh op".parts ADD CONSTRAINT whole FOREIGN KEY (thing, "No") REFERENCES "Sh op"."Thin gs"',
        "INSERT INTO \"Sh op\".parts VALUES (3, 'it''s :3'), (150, 'it''s :150'), (4, NULL), (NULL, 'it''s :5')",
        'CREATE TABLE "Sh op".marks (thing bigint, "No" text)',
        'ALTER TABLE "Sh op".marks ADD CONSTRAINT one FOREIGN KEY ("No", thing) REFERENCES "Sh op".high ("No", id)',
        "INSERT INTO \"Sh op\".marks VALUES (160, 'it''s :160')",
    )
    rule = replace(RULE, table="Sh op.Thin gs", key="No")

    applied = go(engine, rule)

    assert (applied.rows, applied.failed, applied.skipped) == (196, 3, 0)
    reason = {3: '"Sh op".parts', 150: '"Sh op".parts', 160: '"Sh op".marks'}
    names = {3: "whole", 150: "whole", 160: "one"}
    assert set(applied.failures) == {
        f"Sh op.Thin gs No=it's :{n}: rows of {table} still refer to it (foreign key {names[n]})."
        for n, table in reason.items()
    }


def test_a_cascade_from_a_partition_is_seen_when_the_key_is_of_the_whole_table(engine: Engine) -> None:
    """A rule may name a partition; the foreign key names the table that it belongs to."""
    run(
        engine,
        "CREATE TABLE shop.logs (id bigint PRIMARY KEY, at timestamptz) PARTITION BY RANGE (id)",
        "CREATE TABLE shop.logs_1 PARTITION OF shop.logs FOR VALUES FROM (0) TO (100)",
        f"INSERT INTO shop.logs SELECT n, {OLD} FROM generate_series(1, 9) AS n",
        "CREATE TABLE shop.notes (log bigint REFERENCES shop.logs)",
        "INSERT INTO shop.notes VALUES (3), (5)",
    )
    rule = replace(RULE, table="shop.logs_1")

    applied = go(engine, rule)

    assert (applied.rows, applied.failed, ids(engine, "logs")) == (7, 2, {3, 5})
    run(
        engine,
        "ALTER TABLE shop.notes DROP CONSTRAINT notes_log_fkey",
        "ALTER TABLE shop.notes ADD FOREIGN KEY (log) REFERENCES shop.logs ON DELETE CASCADE",
    )
    with pytest.raises(Exception, match=r"rows of shop\.notes that are not due depend on due rows"):
        go(engine, rule)
    assert ids(engine, "logs") == {3, 5}


def test_children_that_we_may_not_read_are_found_row_by_row(engine: Engine) -> None:
    fill(engine, 200)
    parts(engine, list(range(1, 201, 3)))
    run(
        engine,
        "DROP ROLE IF EXISTS sweeper",
        "CREATE ROLE sweeper",
        "GRANT USAGE ON SCHEMA shop TO sweeper",
        "GRANT SELECT, UPDATE, DELETE ON shop.things TO sweeper",
    )

    def become(connection: Any, _record: Any) -> None:
        connection.cursor().execute("SET ROLE sweeper")
        connection.commit()

    engine.dispose()
    event.listen(engine, "connect", become)
    applied = go(engine, RULE)
    event.remove(engine, "connect", become)
    engine.dispose()

    assert (applied.rows, applied.failed, applied.skipped) == (133, 67, 0)
    assert "violates foreign key constraint" in applied.failures[0]
    run(engine, "DROP OWNED BY sweeper", "DROP ROLE sweeper")


def refuse(engine: Engine, condition: str) -> None:
    """A trigger that raises for some rows."""
    run(
        engine,
        "CREATE FUNCTION shop.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN IF {condition} THEN RAISE EXCEPTION 'on hold'; END IF; RETURN old; END$$",
        "CREATE TRIGGER refuse BEFORE DELETE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.refuse()",
    )


@pytest.mark.parametrize("condition", ["old.id % 10 < 3", "old.id < 200"])
def test_rows_that_a_trigger_refuses_do_not_stop_the_others(engine: Engine, condition: str) -> None:
    """Also where they stand together: the search does not end at the first that it meets."""
    fill(engine, 600)
    parts(engine, [300, 301])
    refuse(engine, condition)
    stay = {n for n in range(1, 601) if n in (300, 301) or (n < 200 if "200" in condition else n % 10 < 3)}

    applied = go(engine, RULE, target=timedelta(seconds=5))  # a part that takes too long is cut in another way

    assert ids(engine) == stay
    assert (applied.rows, applied.failed + applied.skipped) == (600 - len(stay), len(stay))
    assert applied.failed > len(stay) / 2 or "200" in condition


def test_a_search_row_by_row_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SEARCHED", 5)
    fill(engine, 200)
    refuse(engine, "old.id % 2 = 0")

    with timed(engine) as took:
        applied = go(engine, RULE)

    assert 5 <= applied.failed <= 7  # what was cut down to single rows by then is tried
    assert applied.rows + applied.failed + applied.skipped == 200
    assert len(took) < 400


# -- chains ----------------------------------------------------------------------------------------------------------

ORDERS = {"in order": "n", "shuffled": "md5(CAST(n AS text))", "newest first": "-n"}


def refer_to_itself(engine: Engine, how: str) -> None:
    run(
        engine,
        f"ALTER TABLE shop.things ADD CONSTRAINT belongs FOREIGN KEY (parent) REFERENCES shop.things ON DELETE {how}",
        "ANALYZE shop.things",
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", [*KINDS[:2], "CASCADE"])
def test_a_chain_of_due_rows_goes_whole(engine: Engine, how: str, order: str) -> None:
    fill(engine, 20_000, parent="nullif(n - 1, 0)", order=ORDERS[order])
    refer_to_itself(engine, how)
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))

    applied = go(engine, RULE)

    assert (applied.rows, applied.failed, applied.skipped, applied.stopped) == (20_000, 0, 0, None)
    assert ids(engine) == set()
    if order == "shuffled":
        assert any('"kept"' in statement for statement in said), "the rows were put in order"


@pytest.mark.parametrize("how", KINDS[:2])
def test_a_row_that_is_not_due_keeps_the_due_rows_that_it_refers_to(engine: Engine, how: str) -> None:
    """One in the middle of a chain, one a row that a child keeps: what refers to them goes, the others stay."""
    fill(engine, 3_000, parent="CASE WHEN n % 1000 <> 1 THEN n - 1 END", order=ORDERS["shuffled"])
    run(engine, f"INSERT INTO shop.things VALUES (9999, '{NOW}', 'young', 500)")
    refer_to_itself(engine, how)
    parts(engine, [1_300], how)

    applied = go(engine, RULE)

    assert ids(engine) == {9999, *range(1, 501), *range(1_001, 1_301)}
    assert (applied.rows, applied.failed, applied.skipped) == (2_200, 800, 0)
    own, other = "a row that stays refers to it (foreign key belongs).", "rows of shop.parts still refer to it"
    assert all(own in failure or other in failure for failure in applied.failures)


def test_rings_and_rows_that_refer_to_themselves_go(engine: Engine) -> None:
    """Rings of three, of which one is kept by a child, and a row that is its own parent."""
    fill(engine, 3_000, parent="CASE WHEN n % 3 = 0 THEN n - 2 ELSE n + 1 END", order=ORDERS["shuffled"])
    run(engine, "UPDATE shop.things SET parent = id WHERE id IN (1, 2, 3)")
    refer_to_itself(engine, "NO ACTION")
    parts(engine, [1_500])

    applied = go(engine, RULE)

    assert ids(engine) == {1_498, 1_499, 1_500}
    assert (applied.rows, applied.failed, applied.skipped) == (2_997, 3, 0)


def test_a_chain_through_partitions_goes_whole(database_url: str) -> None:
    engine = database.engine()
    run(
        engine,
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.things (id bigint PRIMARY KEY, at timestamptz, parent bigint) PARTITION BY HASH (id)",
        *(
            f"CREATE TABLE shop.part_{n} PARTITION OF shop.things FOR VALUES WITH (MODULUS 3, REMAINDER {n})"
            for n in range(3)
        ),
        f"INSERT INTO shop.things SELECT n, {OLD}, nullif(n - 1, 0) FROM generate_series(1, 2000) AS n",
        "CREATE INDEX ON shop.things (parent)",
        "ALTER TABLE shop.things ADD FOREIGN KEY (parent) REFERENCES shop.things",
    )

    applied = go(engine, RULE)

    assert (applied.rows, applied.failed, applied.skipped, ids(engine)) == (2_000, 0, 0, set())


def test_a_chain_meets_the_ceiling_and_a_refusal_on_its_way(engine: Engine) -> None:
    fill(engine, 1_000, parent="nullif(n - 1, 0)", order=ORDERS["shuffled"])
    refer_to_itself(engine, "NO ACTION")
    refuse(engine, "old.id = 400")

    limited = go(engine, RULE, ceiling=250)
    assert (limited.rows, limited.stopped, ids(engine)) == (250, "ceiling", set(range(1, 751)))
    assert (limited.failed, limited.skipped) == (0, 0)

    rest = go(engine, RULE)
    assert (rest.rows, rest.failed, rest.skipped, ids(engine)) == (350, 400, 0, set(range(1, 401)))
    assert sum("on hold" in failure for failure in rest.failures) == 1


def test_a_ring_that_is_larger_than_the_ceiling_waits(engine: Engine) -> None:
    fill(engine, 6, parent="CASE WHEN n < 6 THEN n % 5 + 1 END")
    refer_to_itself(engine, "NO ACTION")

    applied = go(engine, RULE, ceiling=3)

    assert (applied.rows, applied.failed, applied.skipped) == (1, 0, 5)
    assert ids(engine) == {1, 2, 3, 4, 5}


def test_more_waiting_rows_than_are_remembered_are_told_and_go_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHAINED", 300)
    for name in ("START_BLOCKS", "MAX_BLOCKS"):  # otherwise the chain is one batch
        monkeypatch.setattr(batches, name, 1)
    fill(engine, 1_000, parent="nullif(n - 1, 0)", order=ORDERS["shuffled"])
    refer_to_itself(engine, "NO ACTION")

    runs, left = 0, 1_000
    while left:
        applied = go(engine, RULE)
        assert applied.rows + applied.failed + applied.skipped == left
        assert applied.rows
        left, runs = len(ids(engine)), runs + 1
    assert runs > 1


# -- locked tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "mode"),
    [("things", "SHARE"), ("things", "ACCESS EXCLUSIVE"), ("parts", "ACCESS EXCLUSIVE"), ("parts", "EXCLUSIVE")],
)
def test_a_table_that_somebody_locks_meanwhile_ends_the_run_with_one_sentence(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, table: str, mode: str
) -> None:
    """Not a search for the row that is locked, ten milliseconds for each."""
    fill(engine, 5_000)
    parts(engine, [])
    monkeypatch.setattr(database, "LOCK_TIMEOUT", timedelta(milliseconds=50))
    engine.dispose()
    holding = held(database_url, f"LOCK TABLE shop.{table} IN {mode} MODE")
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            holding.__enter__()

    with timed(engine) as took, pytest.raises(Retryable) as raised:
        go(engine, RULE, stop=stop)
    holding.__exit__(None, None, None)

    assert str(raised.value) == (
        f"things: somebody has locked shop.{table}; try again later. 0 rows of shop.things were changed before."
    )
    assert len(took) < 40
    assert go(engine, RULE).rows == 5_000


def test_a_lock_that_goes_in_time_is_waited_for(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(engine, 100)
    holding = held(database_url, "LOCK TABLE shop.things IN SHARE MODE")
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            holding.__enter__()

    def sleep(_: float) -> None:
        holding.__exit__(None, None, None)

    monkeypatch.setattr(batches.time, "sleep", sleep)
    applied = go(engine, RULE, stop=stop)

    assert (applied.rows, applied.failed, applied.skipped) == (100, 0, 0)


def test_a_batch_looks_referrers_up_by_an_index(engine: Engine) -> None:
    """A join would read all of a large referring table for each batch: batches shrink to rows, and the run fails."""
    fill(engine, 5_000)
    parts(engine, list(range(1, 5_001)))
    with engine.connect() as connection:
        [keeper] = look(connection, RULE).keepers
        query = f"EXPLAIN SELECT FROM shop.things AS things WHERE NOT {keeper.spared}"
        plan = "\n".join(connection.execute(text(query)).scalars())
    assert "parts_thing_idx" in plan
    assert "Join" not in plan


def test_a_server_that_is_lost_while_a_refused_batch_is_rolled_back_ends_the_run(engine: Engine) -> None:
    """It was the refusal that was dealt with, and the next statement failed for a reason of SQLAlchemy's."""
    fill(engine, 20)
    parts(engine, [3])
    lost, looking = 0, False

    end = text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE state LIKE 'idle in tran%(aborted)'")

    def lose(_connection: Any) -> None:
        nonlocal lost, looking
        if looking or lost:  # the other connection ends by a rollback, too
            return
        looking = True
        with engine.connect() as other:
            lost += bool(other.execute(end).scalar_one_or_none())
        looking = False

    event.listen(engine, "rollback", lose)
    with pytest.raises(DatabaseUnavailable):
        go(engine, RULE, ceiling=30)
    event.remove(engine, "rollback", lose)
    assert lost
    assert len(ids(engine)) == 20
