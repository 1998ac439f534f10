"""`lamplighter.kernel.retention` on a real Postgres: what is due is changed, whatever else happens to the table."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from lamplighter.kernel import database, retention
from lamplighter.kernel.database import DatabaseUnavailable
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.retention import (
    MAX_SKEW,
    Applied,
    Archive,
    Candidates,
    Delete,
    Rule,
    Set,
    apply,
    batches,
    preview,
    simulate,
)
from lamplighter.kernel.retention.batches import POSITIONS, Blocks
from lamplighter.kernel.retention.table import look

DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
RULE = Rule(name="things", table="things", clock="at", keep=30 * DAY, floor=DAY, action=Delete())


pytestmark = pytest.mark.usefixtures("any_moment")


@pytest.fixture
def heap(database_url: str) -> Engine:
    """An empty table `things` without an index on its clock: a purge goes through its blocks."""
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz, note text DEFAULT 'new')"))
    return engine


@pytest.fixture(params=["blocks", "spans"])
def engine(heap: Engine, request: pytest.FixtureRequest) -> Engine:
    """The same, or with so many young rows that the planner finds the old ones by an index: spans of time."""
    if request.param == "spans":
        with heap.begin() as connection:
            connection.execute(text("CREATE INDEX ON things (at)"))
            young = text("INSERT INTO things SELECT -n, :at FROM generate_series(1, 3000) AS n")
            connection.execute(young, {"at": NOW})
            connection.execute(text("ANALYZE things"))
    return heap


def fill(engine: Engine, *ages: timedelta | None, table: str = "things") -> None:
    """Rows 1, 2, ... of these ages."""
    with engine.begin() as connection:
        for number, age in enumerate(ages, 1):
            at = None if age is None else NOW - age
            connection.execute(text(f"INSERT INTO {table} (id, at) VALUES (:id, :at)"), {"id": number, "at": at})


def ids(engine: Engine, table: str = "things", where: str = "true") -> list[int]:
    with engine.connect() as connection:
        query = text(f"SELECT id FROM {table} WHERE id > 0 AND {where} ORDER BY id")
        return list(connection.execute(query).scalars())


def go(engine: Engine, rule: Rule = RULE, **options: Any) -> Applied:
    defaults = {"now": NOW, "keep": rule.keep, "stop": lambda: None, "progress": lambda percent, message: None}
    return apply(engine, rule, **(defaults | options))


def due(engine: Engine, rule: Rule = RULE, keep: timedelta | None = None) -> Candidates:
    return preview(engine, rule, now=NOW, keep=rule.keep if keep is None else keep)


@contextmanager
def held(url: str, statement: str) -> Iterator[None]:
    """Somebody else's transaction that stays open."""
    other = create_engine("postgresql+pg8000://", creator=lambda: database._connect(database._from_url(url)))
    with other.connect() as connection:
        connection.execute(text(statement))
        yield
        connection.rollback()
    other.dispose()


@contextmanager
def timed(engine: Engine) -> Iterator[list[float]]:
    """How many seconds each statement took that could lock rows."""
    took: list[float] = []

    def before(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        connection.info["began"] = time.perf_counter()

    def after(connection: Any, *rest: Any) -> None:
        took.append(time.perf_counter() - connection.info["began"])

    listeners = [("before_cursor_execute", before), ("after_cursor_execute", after), ("handle_error", lambda _: None)]
    for name, listener in listeners:
        event.listen(engine, name, listener)
    yield took
    for name, listener in listeners:
        event.remove(engine, name, listener)


def test_what_is_older_than_keep_goes_and_the_rest_stays(engine: Engine) -> None:
    fill(engine, 29 * DAY, 30 * DAY, 31 * DAY, 400 * DAY, None, -DAY)

    found = due(engine)
    applied = go(engine)

    assert (found.rows, found.oldest, found.newest) == (2, NOW - 400 * DAY, NOW - 31 * DAY)
    assert (applied.rows, applied.stopped, applied.failed, applied.skipped) == (2, None, 0, 0)
    assert ids(engine) == [1, 2, 5, 6]
    assert go(engine).rows == due(engine).rows == 0


# -- one predicate ---------------------------------------------------------------------------------------------------

CLOCKS = st.one_of(
    st.sampled_from([None, "infinity", "-infinity"]),
    st.integers(-5, 40).map(lambda days: days * DAY),
    st.integers(-3, 3).map(lambda late: 7 * DAY + late * MICROSECOND),
)
"""Ages, and clocks that have none."""
ROWS = st.lists(st.tuples(CLOCKS, st.sampled_from(["a", "b", None]), st.integers(0, 3)), max_size=12)
ACTIONS = [Delete(), Archive("attic"), Set({"note": "b", "share": 0.1}), Set({"note": None})]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rows=ROWS,
    clock=st.sampled_from(["at", None]),
    where=st.sampled_from(
        [
            *("true", "note = 'a'", "n > 1 OR note IS NULL -- few", "at < :cutoff OR n = 0", "mod(n, 2) = 0"),
            *("note LIKE 'a%' /* it's :so */ OR note = 'b%s'", "note = $a$a$a$ OR note = $$it's %$$"),
        ]
    ),
    action=st.sampled_from(ACTIONS),
    keep=st.sampled_from([timedelta(0), 7 * DAY]),
    indexed=st.booleans(),
)
def test_the_preview_is_what_the_action_changes(
    database_url: str, rows: list[Any], clock: str | None, where: str, action: Any, keep: timedelta, indexed: bool
) -> None:
    """K11, and nothing younger than its retention is touched; a second run finds nothing more."""
    clock = clock if isinstance(action, Set) and where != "true" else "at"  # without either, every row would be due
    rule = Rule(name="r", table="r", clock=clock, where=where, action=action)
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS r, attic"))
        connection.execute(text("CREATE TABLE r (id int, at timestamptz, note text, n int, share real)"))
        connection.execute(text("CREATE TABLE attic (extra int DEFAULT 7, LIKE r)"))
        for number, (age, note, n) in enumerate(rows):
            row = {"id": number, "at": NOW - age if isinstance(age, timedelta) else age, "note": note, "n": n}
            connection.execute(text("INSERT INTO r VALUES (:id, :at, :note, :n)"), row)
        if indexed:
            connection.execute(text("INSERT INTO r SELECT 100 + n, 'infinity' FROM generate_series(1, 2000) AS n"))
            connection.execute(text("CREATE INDEX ON r (at)"))
            connection.execute(text("ANALYZE r"))
    before = contents(engine, "r")

    found = preview(engine, rule, now=NOW, keep=keep)
    applied = go(engine, rule, keep=keep)

    after = contents(engine, "r")
    changed = {key for key, row in before.items() if after.get(key) != row}
    assert applied.rows == found.rows == len(changed)
    if isinstance(action, Archive):
        assert contents(engine, "attic", "id, at, note, n, share") == {key: before[key] for key in changed}
    if isinstance(action, Set):
        assert after.keys() == before.keys()
    if rule.clock:
        for key in changed:
            at = before[key][1]
            assert at not in (None, "infinity", "-infinity")
            assert at < NOW - keep
    assert preview(engine, rule, now=NOW, keep=keep).rows == go(engine, rule, keep=keep).rows == 0


def contents(engine: Engine, table: str, columns: str = "*") -> dict[int, Any]:
    with engine.connect() as connection:
        return {row[0]: tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM {table}"))}


def test_names_that_need_quotes_work_everywhere(database_url: str) -> None:
    engine = database.engine()
    schema, table, at, note = 'my "app', "Drop :table; -- v1.2", 'the "At" 100%', "it's \\ :note"
    quote = engine.dialect.identifier_preparer.quote_identifier
    with engine.begin() as connection:
        for statement in (
            f"CREATE SCHEMA {quote(schema)}",
            f"CREATE TABLE {quote(schema)}.{quote(table)} (id int, {quote(at)} timestamptz, {quote(note)} text)",
            f"INSERT INTO {quote(schema)}.{quote(table)} VALUES (1, '{NOW - 9 * DAY}', 'x'), (2, '{NOW}', 'x')",
            f"CREATE TABLE {quote(schema)}.attic (LIKE {quote(schema)}.{quote(table)})",
        ):
            connection.exec_driver_sql(statement)
    name = f"{schema}.{table}"
    mark = Rule(name="mark", table=name, clock=at, action=Set({note: "old"}), keep=DAY)
    move = Rule(name="move", table=name, clock=at, action=Archive(f"{schema}.attic"), keep=DAY)

    assert (due(engine, mark).rows, go(engine, mark).rows, due(engine, mark).rows) == (1, 1, 0)
    assert (due(engine, move).rows, go(engine, move).rows) == (1, 1)


def test_a_clock_without_time_zone_is_utc(database_url: str) -> None:
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int, at timestamp)"))
        utc = NOW.replace(tzinfo=None)
        for number, at in enumerate((utc - DAY - MICROSECOND, utc - DAY), 1):
            connection.execute(text("INSERT INTO things VALUES (:id, :at)"), {"id": number, "at": at})

    assert due(engine, keep=DAY).oldest == NOW - DAY - MICROSECOND
    assert go(engine, keep=DAY).rows == 1
    assert ids(engine) == [2]


def test_partitions_are_dealt_with_one_by_one(database_url: str) -> None:
    """Rows of two partitions can have the same ctid: one is old, the other is not."""
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int, at timestamptz) PARTITION BY LIST (id)"))
        for number in (1, 2, 3):
            connection.execute(text(f"CREATE TABLE part_{number} PARTITION OF things FOR VALUES IN ({number})"))
    fill(engine, 40 * DAY, DAY, 50 * DAY)
    rule = Rule(name="r", table="things", clock="at", keep=30 * DAY, action=Delete(), where="things.id < 9")

    assert due(engine, rule).rows == 2
    assert go(engine, rule).rows == 2
    assert ids(engine) == [2]


@contextmanager
def another(url: str) -> Iterator[Connection]:
    """Another session, which commits each statement."""
    engine = create_engine("postgresql+pg8000://", creator=lambda: database._connect(database._from_url(url)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def parts(database_url: str) -> Engine:
    """A table `things` whose partitions `part_1` to `part_3` hold a due row each."""
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int, at timestamptz) PARTITION BY LIST (id)"))
        for number in (1, 2, 3):
            connection.execute(text(f"CREATE TABLE part_{number} PARTITION OF things FOR VALUES IN ({number})"))
    fill(engine, 40 * DAY, 41 * DAY, 42 * DAY)
    return engine


@pytest.mark.parametrize("where", ["true", "EXISTS (SELECT FROM pg_class)"])
@pytest.mark.parametrize("how", ["ALTER TABLE things DETACH PARTITION part_2", "DROP TABLE part_2"])
@pytest.mark.parametrize("moment", ["before the partition", "right before its batch"])
def test_a_partition_that_leaves_the_table_during_the_run_is_left_alone(
    parts: Engine, database_url: str, moment: str, how: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the archive of a partition manager (pg_partman's `retention_keep_table`), or is gone (pg_partman #767)."""
    rule = Rule(name="r", table="things", clock="at", keep=30 * DAY, action=Delete(), where=where)
    pending = [how]

    def leave() -> None:
        with another(database_url) as other:
            other.exec_driver_sql(pending.pop())

    def stop() -> None:
        if moment == "before the partition" and pending:
            leave()

    take = batches.Work._take

    def taken(work: batches.Work, leaf: Any, place: Any) -> bool:
        if moment == "right before its batch" and "part_2" in leaf.name and pending:
            leave()
        return take(work, leaf, place)

    monkeypatch.setattr(batches.Work, "_take", taken)
    applied = go(parts, rule, stop=stop)
    assert (applied.rows, applied.failed, applied.skipped, applied.stopped) == (2, 0, 0, None)
    assert ids(parts) == []
    if "DETACH" in how:
        assert ids(parts, "part_2") == [2]


def test_a_partition_whose_detachment_was_interrupted_is_no_part_of_the_table(parts: Engine, database_url: str) -> None:
    """The preview left its rows out, and the action deleted them (PuppetDB #4013, ThingsBoard #8271)."""
    with held(database_url, "SELECT FROM things"), another(database_url) as other:
        other.exec_driver_sql("SET statement_timeout = '100ms'")
        with pytest.raises(DBAPIError, match="canceling statement due to statement timeout"):
            other.exec_driver_sql("ALTER TABLE things DETACH PARTITION part_2 CONCURRENTLY")

    with parts.connect() as connection:
        assert not [leaf for leaf in look(connection, RULE).leaves if "part_2" in leaf.name]
    assert due(parts).rows == 2
    assert go(parts).rows == 2
    assert ids(parts, "part_2") == [2]


@pytest.mark.parametrize("action", [Delete(), Set({"note": "old"})])
def test_a_published_table_without_a_replica_identity_is_one_sentence(heap: Engine, action: Delete | Set) -> None:
    """Logical replication makes the server refuse the change (CoW Protocol #3461, pg-boss #387)."""
    fill(heap, 40 * DAY)
    with heap.begin() as connection:
        connection.execute(text("ALTER TABLE things DROP CONSTRAINT things_pkey"))
        connection.execute(text("CREATE PUBLICATION everything FOR ALL TABLES"))
    rule = replace(RULE, action=action)
    assert due(heap, rule).rows == 1
    with pytest.raises(
        Permanent, match=r"^things: cannot (delete from|update) table .* replica identity and publishes"
    ):
        go(heap, rule)
    assert ids(heap) == [1]


def test_a_table_that_inherits_twice_is_cleaned_and_counted_once(heap: Engine) -> None:
    with heap.begin() as connection:
        for table, parents in (("b", "things"), ("c", "things"), ("d", "b, c")):
            connection.execute(text(f"CREATE TABLE {table} () INHERITS ({parents})"))
        connection.execute(text("ALTER TABLE d ADD PRIMARY KEY (id)"))
        connection.execute(text("CREATE TABLE parts (thing bigint REFERENCES d)"))
    fill(heap, 40 * DAY, 40 * DAY, table="d")
    with heap.begin() as connection:
        connection.execute(text("INSERT INTO parts VALUES (1)"))
    assert due(heap).rows == 2
    applied = go(heap)
    assert (applied.rows, applied.failed, len(applied.failures)) == (1, 1, 1)


# -- beside users ----------------------------------------------------------------------------------------------------


def test_a_row_that_a_user_holds_is_skipped_and_taken_the_next_time(engine: Engine, database_url: str) -> None:
    """FAILURES 12: a purge must not wait for anyone, nor anyone for it."""
    fill(engine, *[40 * DAY] * 20)
    with held(database_url, "UPDATE things SET note = 'mine' WHERE id IN (7, 8)"), timed(engine) as took:
        applied = go(engine)
        assert (applied.rows, applied.skipped, applied.failed, applied.stopped) == (18, 2, 0, None)
        assert ids(engine) == [7, 8]
        assert max(took) < database.LOCK_TIMEOUT.total_seconds() / 2

    assert go(engine).rows == 2


def test_a_row_that_became_young_while_a_user_held_it_stays(engine: Engine, database_url: str) -> None:
    fill(engine, 40 * DAY, 40 * DAY)
    with held(database_url, f"UPDATE things SET at = '{NOW}' WHERE id = 1; COMMIT; SELECT 1"):
        assert go(engine).rows == 1
    assert ids(engine) == [1]


def test_a_row_whose_child_a_user_holds_is_skipped(engine: Engine, database_url: str) -> None:
    """The row itself is free, what its deletion cascades to is not: a due row, reached through the one before it."""
    fill(engine, *[40 * DAY] * 9)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE things ADD part_of bigint REFERENCES things ON DELETE CASCADE"))
        connection.execute(text("UPDATE things SET part_of = 5 WHERE id = 6"))
    with held(database_url, "UPDATE things SET note = 'mine' WHERE id = 6"):
        applied = go(engine)
        assert (applied.rows, applied.skipped, applied.failed) == (7, 2, 0)
        assert ids(engine) == [5, 6]
    assert go(engine).rows == 2


# -- refused by the database -----------------------------------------------------------------------------------------


def test_a_row_that_is_still_referenced_is_reported_and_the_others_go(engine: Engine) -> None:
    """K11: per-item errors never stop the rest."""
    fill(engine, *[40 * DAY] * 200)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parts (thing bigint REFERENCES things)"))
        connection.execute(text("INSERT INTO parts VALUES (3), (77), (78)"))

    applied = go(engine)

    assert (applied.rows, applied.failed, applied.skipped, applied.stopped) == (197, 3, 0, None)
    assert ids(engine) == [3, 77, 78]
    assert sorted(failure.split(":")[0] for failure in applied.failures) == [
        "things id=3",
        "things id=77",
        "things id=78",
    ]
    assert "rows of parts still refer to it (foreign key parts_thing_fkey)" in applied.failures[0]
    assert "Key (" not in applied.failures[0]  # the server's detail has values of the row


def test_a_refused_row_among_more_than_are_searched_is_found_all_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them share one moment, so that no shorter span has fewer."""
    monkeypatch.setattr(batches, "WINDOW", 20)
    fill(engine, *[40 * DAY] * 30, *[41 * DAY + n * DAY for n in range(30)])
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parts (thing bigint REFERENCES things)"))
        connection.execute(text("INSERT INTO parts VALUES (7), (50)"))

    go(engine)

    assert ids(engine) == [7, 50]


def test_a_table_that_forbids_its_deletion_ends_the_run_soon(heap: Engine) -> None:
    fill(heap, *[40 * DAY] * 1000)
    with heap.begin() as connection:
        connection.execute(
            text("""CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS
                    $$BEGIN RAISE EXCEPTION 'append only'; END$$""")
        )
        connection.execute(text("CREATE TRIGGER forbid BEFORE DELETE ON things FOR EACH ROW EXECUTE FUNCTION forbid()"))

    with timed(heap) as took:
        applied = go(heap)

    assert len(took) < 700  # five for each batch, for a table with triggers is watched
    assert (applied.rows, applied.failed + applied.skipped) == (0, 1000)
    assert "append only" in applied.failures[0]


# -- lock time -------------------------------------------------------------------------------------------------------


def slow(engine: Engine, seconds: float) -> None:
    """Each deleted row takes this long."""
    with engine.begin() as connection:
        connection.execute(
            text(f"""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                     $$BEGIN PERFORM pg_sleep({seconds}); RETURN old; END$$""")
        )
        connection.execute(text("CREATE TRIGGER slow BEFORE DELETE ON things FOR EACH ROW EXECUTE FUNCTION slow()"))


def test_batches_that_take_too_long_are_cut_down(engine: Engine) -> None:
    """FAILURES 12: whatever a row costs, no statement changes more than there is time for."""
    fill(engine, *[40 * DAY + n * timedelta(hours=1) for n in range(300)])
    slow(engine, 0.005)
    changed: list[int] = []
    event.listen(engine, "after_cursor_execute", lambda *said: changed.append(said[1].rowcount))

    applied = go(engine, target=timedelta(milliseconds=250))

    assert (applied.rows, applied.failed, applied.skipped) == (300, 0, 0)
    assert applied.batches > 3
    assert 0 < max(changed) <= 50


def test_rows_that_share_one_moment_are_cut_down_too(engine: Engine) -> None:
    fill(engine, *[40 * DAY] * 30)
    slow(engine, 0.02)

    applied = go(engine, target=timedelta(milliseconds=300))

    assert (applied.rows, applied.failed, applied.skipped) == (30, 0, 0)
    assert applied.batches > 1


def test_a_table_of_which_each_row_takes_too_long_is_given_up(engine: Engine) -> None:
    fill(engine, *[40 * DAY + n * DAY for n in range(40)])
    slow(engine, 0.1)

    with pytest.raises(Permanent, match=r"^things: changing a single row takes more than 0:00:00\.02"):
        go(engine, target=timedelta(milliseconds=20))

    assert len(ids(engine)) == 40


def test_the_connection_is_patient_again_afterwards(heap: Engine) -> None:
    fill(heap, 40 * DAY)
    go(heap)

    with heap.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "5s"


def test_batches_are_spans_where_an_index_serves_and_blocks_elsewhere(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    fill(engine, *[40 * DAY] * 9)
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))

    go(engine)

    [place] = {statement.split(" WHERE ")[1].split(" ")[0] for statement in said if statement.startswith("DELETE")}
    assert place == {"blocks": "ctid", "spans": '"at"'}[request.node.callspec.params["engine"]]


def test_ranges_of_blocks_are_read_as_such(heap: Engine) -> None:
    """The planner must not read the whole table for each batch."""
    place = Blocks(0, 64 * POSITIONS)
    with heap.connect() as connection:
        query = text(f"EXPLAIN DELETE FROM things WHERE {place.sql}")
        plan = connection.execute(query, place.parameters()).scalars().all()
    assert "Tid Range Scan" in "".join(plan)


# -- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["cancelled", "out_of_time"])
def test_it_stops_between_batches_and_the_next_run_goes_on(engine: Engine, reason: str) -> None:
    fill(engine, *[40 * DAY + n * timedelta(hours=1) for n in range(100)])
    slow(engine, 0.002)
    answers = iter([None, None, None, reason])
    seen: list[tuple[int, str]] = []

    applied = go(engine, stop=lambda: next(answers), progress=lambda *said: seen.append(said))

    assert applied.stopped == reason
    assert len(ids(engine)) == 100 - applied.rows > 0
    rest = go(engine, progress=lambda *said: seen.append(said))
    assert (rest.rows, rest.stopped) == (100 - applied.rows, None)
    assert ids(engine) == []
    assert [percent for percent, _ in seen] == sorted(percent for percent, _ in seen) or seen[-1][0] == 100
    assert seen[-1] == (100, f"{rest.rows} rows of things")


@pytest.mark.parametrize("ceiling", [0, 1, 7, 30, 31])
def test_the_ceiling_is_never_exceeded(engine: Engine, ceiling: int) -> None:
    fill(engine, *[40 * DAY] * 30)

    applied = go(engine, ceiling=ceiling)

    assert (applied.rows, len(ids(engine))) == (min(ceiling, 30), 30 - min(ceiling, 30))
    assert applied.stopped == ("ceiling" if ceiling <= 30 else None)


@pytest.mark.parametrize("ceiling", [1, 7, 25, 31])
def test_the_ceiling_is_that_of_all_batches_together(
    heap: Engine, monkeypatch: pytest.MonkeyPatch, ceiling: int
) -> None:
    """Every batch is a block of some eleven rows; the last one may change fewer than it holds."""
    monkeypatch.setattr(batches, "START_BLOCKS", 1)
    monkeypatch.setattr(batches, "MAX_BLOCKS", 1)
    with heap.begin() as connection:
        wide = text("INSERT INTO things SELECT n, :at, repeat('x', 700) FROM generate_series(1, 40) AS n")
        connection.execute(wide, {"at": NOW - 40 * DAY})
    applied = go(heap, ceiling=ceiling)
    assert (applied.rows, len(ids(heap)), applied.stopped) == (ceiling, 40 - ceiling, "ceiling")
    assert applied.batches > ceiling // 12, "rows of several blocks"


def test_a_set_changes_what_is_null_and_nothing_twice(engine: Engine) -> None:
    fill(engine, *[40 * DAY] * 3)
    with engine.begin() as connection:
        connection.execute(text("UPDATE things SET note = CASE id WHEN 1 THEN NULL WHEN 2 THEN 'old' END WHERE id < 3"))
    rule = replace(RULE, action=Set({"note": "old"}))
    assert due(engine, rule).rows == 2
    assert (go(engine, rule).rows, ids(engine, where="note = 'old'")) == (2, [1, 2, 3])
    assert go(engine, rule).rows == due(engine, rule).rows == 0


def test_the_connection_is_patient_again_after_a_run_that_failed(heap: Engine) -> None:
    """Whatever it was given to call may fail in the middle of a batch."""
    fill(heap, *[40 * DAY] * 3)

    def fails(percent: int, message: str) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        go(heap, progress=fails)
    for _ in range(3):
        with heap.connect() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
            assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "5s"


def test_a_lack_of_rights_is_no_refused_row(heap: Engine) -> None:
    """It is of the whole table: one sentence, and no search row by row."""
    fill(heap, *[40 * DAY] * 3)
    with heap.begin() as connection:
        connection.execute(
            text("""CREATE FUNCTION deny() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'permission denied for things' USING ERRCODE = '42501'; END $$""")
        )
        connection.execute(text("CREATE TRIGGER deny BEFORE DELETE ON things FOR EACH ROW EXECUTE FUNCTION deny()"))
    with pytest.raises(Permanent, match=r"^things: permission denied for things"):
        go(heap)
    assert ids(heap) == [1, 2, 3]


def test_a_run_that_is_killed_loses_nothing_and_archives_nothing_twice(engine: Engine, database_url: str) -> None:
    """Killed in the middle of any statement: each row is in one of the two tables, and the next run moves the rest."""
    fill(engine, *[40 * DAY + n * timedelta(hours=1) for n in range(120)])
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE attic (LIKE things)"))
    slow(engine, 0.001)
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Archive("attic"))

    def kill() -> None:
        with held(
            database_url,
            "SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity"
            " WHERE query LIKE 'WITH moved%' AND state = 'active'",
        ):
            pass

    for _ in range(4):
        killer = threading.Timer(0.06, kill)
        killer.start()
        with suppress(DatabaseUnavailable):
            go(engine, rule, target=timedelta(milliseconds=60))
        killer.join()
        assert sorted(ids(engine) + ids(engine, "attic")) == list(range(1, 121))

    go(engine, rule)
    assert (ids(engine), ids(engine, "attic")) == ([], list(range(1, 121)))


def test_what_is_in_the_archive_already_is_not_archived_twice(heap: Engine) -> None:
    fill(heap, 40 * DAY, 40 * DAY, 40 * DAY)
    with heap.begin() as connection:
        connection.execute(text("CREATE TABLE attic (LIKE things INCLUDING INDEXES)"))
        connection.execute(text("INSERT INTO attic SELECT * FROM things WHERE id = 2"))
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Archive("attic"))

    applied = go(heap, rule)

    assert (applied.rows, applied.failed) == (2, 1)
    assert "things id=2: duplicate key value" in applied.failures[0]
    assert (ids(heap), ids(heap, "attic")) == ([2], [1, 2, 3])


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"table": "thing"}, "there is no table thing in the database"),
        ({"table": "pg_tables"}, "pg_tables is no ordinary or partitioned table"),
        ({"clock": "since"}, "the table things has no column since"),
        ({"clock": "note"}, "column note of things is of type text; the clock_unit timestamp takes a timestamp"),
        ({"key": "uuid"}, "the table things has no column uuid"),
        ({"action": Set({"seen": True})}, "the table things has no column seen"),
        ({"action": Archive("attic")}, "there is no table attic to archive into"),
        ({"action": Archive("shelf")}, "the table shelf lacks at, note of things"),
        ({"where": "colour = 'red'"}, 'column "colour" does not exist'),
    ],
)
def test_a_rule_that_does_not_fit_the_database_touches_nothing(
    heap: Engine, change: dict[str, Any], sentence: str
) -> None:
    fill(heap, 400 * DAY)
    with heap.begin() as connection:
        connection.execute(text("CREATE TABLE shelf (id bigint)"))
    rule = replace(RULE, **change)

    for attempt in (due, go):
        with pytest.raises(Permanent, match=rf"^(things|retention\.rules\.things\.(clock|where)): .*{sentence}"):
            attempt(heap, rule)
    assert ids(heap) == [1]


def test_nothing_is_kept_for_less_than_the_floor(heap: Engine) -> None:
    """FAILURES 10: whatever a caller asks for."""
    fill(heap, 400 * DAY)
    for attempt in (
        lambda: due(heap, keep=DAY - MICROSECOND),
        lambda: go(heap, keep=DAY - MICROSECOND),
        lambda: simulate(heap, RULE, now=NOW, keep=DAY - MICROSECOND),
        lambda: go(heap, keep=-DAY),
    ):
        with pytest.raises(Permanent, match=r"^things: rows are kept for at least 1 day"):
            attempt()
    assert ids(heap) == [1]


@pytest.mark.parametrize("skew", [-timedelta(minutes=10), timedelta(days=365)])
def test_clocks_that_differ_are_a_reason_to_touch_nothing(
    heap: Engine, skew: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_SKEW", MAX_SKEW)
    fill(heap, 29 * DAY, 400 * DAY)

    with pytest.raises(Permanent, match=r"the database's clock says .* nothing was touched"):
        go(heap, now=datetime.now(UTC) + skew)

    assert ids(heap) == [1, 2]


def test_a_table_that_somebody_has_locked_is_left_for_later(
    heap: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(heap, 400 * DAY)
    monkeypatch.setattr(database, "LOCK_TIMEOUT", timedelta(milliseconds=50))
    heap.dispose()  # a connection learns the timeout when it is made

    with held(database_url, "LOCK TABLE things"):
        for attempt in (due, go):
            with pytest.raises(Retryable, match=r"^things: somebody has locked things; try again later\.$"):
                attempt(heap)


def test_a_database_that_is_down_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 8."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://app@127.0.0.1:9/none")
    database.engine.cache_clear()
    for attempt in (due, go):
        with pytest.raises(DatabaseUnavailable):
            attempt(database.engine())
    database.engine.cache_clear()


# -- the simulator ---------------------------------------------------------------------------------------------------


def test_the_simulator_says_what_another_retention_would_change(heap: Engine) -> None:
    fill(heap, 5 * DAY, 20 * DAY, 40 * DAY, 50 * DAY)

    simulation = simulate(heap, RULE, now=NOW, keep=10 * DAY)

    assert (simulation.current.rows, simulation.proposed.rows) == (2, 3)
    assert (simulation.current.newest, simulation.proposed.newest) == (NOW - 40 * DAY, NOW - 20 * DAY)
    assert simulation.proposed.oldest == NOW - 50 * DAY
    assert 2 * simulation.proposed.bytes == 3 * simulation.current.bytes > 0
    assert simulate(heap, RULE, now=NOW, keep=365 * DAY, current=45 * DAY).current.rows == 1
    assert len(ids(heap)) == 4


def test_the_simulator_locks_nothing_and_waits_for_no_row(heap: Engine, database_url: str) -> None:
    fill(heap, 40 * DAY)
    with held(database_url, "UPDATE things SET note = 'mine'"):
        assert simulate(heap, RULE, now=NOW, keep=365 * DAY).current.rows == 1


def test_counting_is_bounded(heap: Engine) -> None:
    fill(heap, 40 * DAY)
    slow_rule = replace(RULE, where="pg_sleep(9) IS NOT NULL")

    with pytest.raises(Permanent, match=r"^things: counting takes more than 1 s; an index"):
        simulate(heap, slow_rule, now=NOW, keep=DAY, timeout=timedelta(seconds=1))
