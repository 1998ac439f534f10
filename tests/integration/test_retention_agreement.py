"""Preview and action agree: what triggers, rules and foreign keys make of a deletion (REQUIREMENTS S6, S8)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from lamplighter.kernel import database
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.retention import Archive, Delete, Rule, Set
from tests.integration.test_retention import DAY, NOW, due, fill, go, ids

pytestmark = pytest.mark.usefixtures("any_moment")

OLD = 40 * DAY
RULE = Rule(name="things", table="things", clock="at", keep=30 * DAY, floor=DAY, action=Delete())
MARK = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Set({"note": "old"}))
MOVE = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Archive("attic"))


@pytest.fixture
def engine(database_url: str) -> Engine:
    """Tables `things` and `parts`, which may refer to it."""
    engine = database.engine()
    run(
        engine,
        "CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz, note text DEFAULT 'new', parent bigint)",
        "CREATE TABLE parts (id int, thing bigint)",
        "CREATE TABLE attic (LIKE things)",
    )
    return engine


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def trigger(engine: Engine, body: str, when: str = "BEFORE DELETE", table: str = "things") -> None:
    run(
        engine,
        f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$",
        f"CREATE TRIGGER meddler {when} ON {table} FOR EACH ROW EXECUTE FUNCTION act()",
    )


def everything(engine: Engine) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        return {
            table: sorted(map(tuple, connection.execute(text(f"SELECT * FROM {table}"))), key=repr)
            for table in ("things", "parts", "attic")
        }


KEEPS = "IF old.id % 2 = 0 THEN RETURN NULL; END IF; RETURN old;"
SOFT = "UPDATE things SET note = 'deleted' WHERE id = old.id; RETURN NULL;"


@pytest.mark.parametrize("ceiling", [None, 3])
@pytest.mark.parametrize(
    ("rule", "body", "when", "table"),
    [
        (RULE, "RETURN NULL;", "BEFORE DELETE", "things"),
        (RULE, KEEPS, "BEFORE DELETE", "things"),
        (RULE, SOFT, "BEFORE DELETE", "things"),
        (RULE, "UPDATE things SET note = 'last' WHERE id = 9; RETURN old;", "AFTER DELETE", "things"),
        (RULE, "DELETE FROM parts WHERE thing = old.id; RETURN old;", "AFTER DELETE", "things"),
        (RULE, "DELETE FROM things WHERE id = 9; RETURN old;", "AFTER DELETE", "things"),
        (MARK, "RETURN NULL;", "BEFORE UPDATE", "things"),
        (MARK, "new.note := old.note; RETURN new;", "BEFORE UPDATE", "things"),
        (MARK, "DELETE FROM parts WHERE thing = old.id; RETURN new;", "BEFORE UPDATE", "things"),
        (MOVE, "RETURN NULL;", "BEFORE DELETE", "things"),
        (MOVE, "RETURN NULL;", "BEFORE INSERT", "attic"),
    ],
)
def test_a_trigger_that_does_otherwise_is_an_error_and_changes_nothing(
    engine: Engine, rule: Rule, body: str, when: str, table: str, ceiling: int | None
) -> None:
    fill(engine, *[OLD] * 8, DAY)
    run(engine, "INSERT INTO parts SELECT n, n FROM generate_series(1, 9) AS n")
    trigger(engine, body, when, table)
    before = everything(engine)

    with pytest.raises(Permanent) as raised:
        go(engine, rule, ceiling=ceiling)

    said = str(raised.value)
    assert "things: what things did is not what the rule says" in said
    assert "look at meddler" in said
    assert ("parts" in said) == ("parts" in body)
    assert everything(engine) == before


@pytest.mark.parametrize("ceiling", [None, 3])
@pytest.mark.parametrize(
    "body",
    [
        "DELETE FROM parts WHERE thing = old.id; RETURN old;",
        "DELETE FROM things WHERE id = 9; RETURN old;",
        "INSERT INTO things SELECT (old).*; RETURN old;",
    ],
)
def test_a_trigger_that_waits_for_the_commit_is_seen_too(engine: Engine, body: str, ceiling: int | None) -> None:
    fill(engine, *[OLD] * 8, DAY)
    run(
        engine,
        "INSERT INTO parts SELECT n, n FROM generate_series(1, 9) AS n",
        f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$",
        "CREATE CONSTRAINT TRIGGER meddler AFTER DELETE ON things DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION act()",
    )
    before = everything(engine)

    with pytest.raises(Permanent, match="what things did is not what the rule says"):
        go(engine, RULE, ceiling=ceiling)
    assert everything(engine) == before


@pytest.mark.parametrize(
    ("rule", "body", "when"),
    [
        (RULE, "INSERT INTO attic (id) VALUES (old.id); RETURN old;", "AFTER DELETE"),
        (RULE, "UPDATE parts SET thing = NULL WHERE id = 1; RETURN old;", "BEFORE DELETE"),
        (RULE, "TRUNCATE parts; RETURN old;", "AFTER DELETE"),
        (MARK, "new.parent := 1; RETURN new;", "BEFORE UPDATE"),
    ],
)
@pytest.mark.parametrize("ceiling", [None, 100, 5])
def test_what_a_trigger_inserts_updates_or_truncates_elsewhere_is_not_seen(
    engine: Engine, rule: Rule, body: str, when: str, ceiling: int | None
) -> None:
    """The limit that docs/operations.md states."""
    fill(engine, *[OLD] * 8, DAY)
    run(engine, "INSERT INTO parts SELECT n, n FROM generate_series(1, 9) AS n")
    trigger(engine, body, when)

    assert go(engine, rule, ceiling=ceiling).rows == min(8, ceiling or 8)


@pytest.mark.parametrize(
    ("rule", "rewrite", "table"),
    [
        (RULE, "ON DELETE TO things DO INSTEAD NOTHING", "things"),
        (RULE, "ON DELETE TO things DO INSTEAD UPDATE things SET note = 'deleted' WHERE id = old.id", "things"),
        (RULE, "ON DELETE TO things DO ALSO DELETE FROM parts WHERE thing = old.id", "things"),
        (MARK, "ON UPDATE TO things DO INSTEAD NOTHING", "things"),
        (MOVE, "ON INSERT TO attic DO INSTEAD NOTHING", "attic"),
    ],
)
def test_a_rewrite_rule_is_an_error_before_anything_is_touched(
    engine: Engine, rule: Rule, rewrite: str, table: str
) -> None:
    fill(engine, OLD, DAY)
    run(engine, f"CREATE RULE rewriter AS {rewrite}")
    before = everything(engine)

    for act in (go, due):
        with pytest.raises(Permanent, match=f"the rewrite rule rewriter of the table {table}"):
            act(engine, rule)
    assert everything(engine) == before


def test_rules_and_triggers_of_other_events_or_that_are_off_do_not_matter(engine: Engine) -> None:
    fill(engine, OLD, DAY)
    run(engine, "CREATE RULE rewriter AS ON UPDATE TO things DO INSTEAD NOTHING")
    trigger(engine, "RETURN NULL;", "BEFORE DELETE")
    run(engine, "ALTER TABLE things DISABLE TRIGGER meddler")

    assert go(engine).rows == due(engine).rows + 1 == 1


def refer(engine: Engine, action: str, table: str = "parts", column: str = "thing") -> None:
    run(
        engine,
        f"ALTER TABLE {table} ADD CONSTRAINT belongs FOREIGN KEY ({column}) REFERENCES things ON DELETE {action}",
    )


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_trigger_that_updates_rows_of_a_table_with_a_cascading_foreign_key_is_an_error(
    engine: Engine, action: str
) -> None:
    """Not told apart from what the foreign key does to rows that are not due."""
    fill(engine, *[OLD] * 8, DAY)
    run(engine, "INSERT INTO parts VALUES (1, 9)")
    refer(engine, action)
    trigger(engine, "UPDATE parts SET thing = 9 WHERE id = 1; RETURN old;", "AFTER DELETE")
    before = everything(engine)

    with pytest.raises(Permanent, match=r"rows of parts would be updated, which are not due \(look at .*meddler"):
        go(engine)
    assert everything(engine) == before


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_cascade_to_rows_that_are_not_due_is_an_error_before_anything_is_touched(engine: Engine, action: str) -> None:
    fill(engine, *[OLD] * 8, DAY)
    run(engine, "INSERT INTO parts VALUES (1, 5)")
    refer(engine, action)
    before = everything(engine)

    for act in (go, due):
        with pytest.raises(Permanent) as raised:
            act(engine)
        assert "rows of parts that are not due depend on due rows of things" in str(raised.value)
        assert f"foreign key belongs, ON DELETE {action}); nothing was touched" in str(raised.value)
    assert everything(engine) == before

    run(engine, "UPDATE parts SET thing = 9")
    assert (due(engine).rows, go(engine).rows) == (8, 8)


def test_a_foreign_key_to_a_partitioned_table_is_seen(database_url: str) -> None:
    engine = database.engine()
    run(
        engine,
        "CREATE TABLE things (id int PRIMARY KEY, at timestamptz) PARTITION BY LIST (id)",
        *(f"CREATE TABLE part_{n} PARTITION OF things FOR VALUES IN ({n})" for n in (1, 2)),
        "CREATE TABLE parts (thing int REFERENCES things ON DELETE CASCADE)",
    )
    fill(engine, OLD, DAY)
    run(engine, "INSERT INTO parts VALUES (2)")
    assert go(engine).rows == 1
    run(engine, "UPDATE things SET at = now() - interval '5 years'")

    with pytest.raises(Permanent, match="rows of parts that are not due"):
        go(engine)
    assert ids(engine) == [2]


def test_what_begins_to_depend_on_due_rows_during_the_run_is_kept_with_them(engine: Engine) -> None:
    fill(engine, *[OLD] * 8)
    refer(engine, "CASCADE")
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            run(engine, "INSERT INTO parts VALUES (1, 5)")

    with pytest.raises(Permanent, match=r"1 rows of parts would be deleted, which are not due.*rolled back"):
        go(engine, stop=stop)
    assert ids(engine) == list(range(1, 9))


@pytest.mark.parametrize("rule", [RULE, MOVE])
@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_young_row_that_begins_to_refer_to_a_due_one_during_the_run_keeps_it(
    engine: Engine, action: str, rule: Rule
) -> None:
    """It neither goes nor changes with it."""
    fill(engine, *[OLD] * 8, DAY)
    refer(engine, action, "things", "parent")
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            run(engine, "UPDATE things SET parent = 5 WHERE id = 9")

    applied = go(engine, rule, stop=stop)

    assert (applied.rows, applied.failed, applied.skipped, ids(engine)) == (7, 1, 0, [5, 9])
    assert everything(engine)["things"][-1][3] == 5


@pytest.mark.parametrize("rule", [RULE, MOVE])
@pytest.mark.parametrize("action", ["SET NULL", "SET DEFAULT", "CASCADE"])
def test_a_row_that_becomes_due_during_the_run_changes_no_rows_of_a_partitioned_table(
    engine: Engine, action: str, rule: Rule
) -> None:
    """S8: before the run its row was not due, so the key was no reason to refuse. The partition's rows are counted."""
    fill(engine, *[OLD] * 8, DAY, DAY)
    run(
        engine,
        "CREATE TABLE spread (id int, thing bigint DEFAULT 10) PARTITION BY RANGE (id)",
        "CREATE TABLE spread_1 PARTITION OF spread FOR VALUES FROM (0) TO (10)",
        "INSERT INTO spread VALUES (1, 9)",
        f"ALTER TABLE spread ADD FOREIGN KEY (thing) REFERENCES things ON DELETE {action}",
    )
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            run(engine, f"UPDATE things SET at = '{NOW - OLD}' WHERE id = 9")

    with pytest.raises(Permanent, match=r"rows of spread_1 would be (updated|deleted), which are not due"):
        go(engine, rule, stop=stop)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT thing FROM spread")).scalars().all() == [9]


@pytest.mark.parametrize("rule", [RULE, MOVE])
@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL"])
def test_chains_of_many_blocks_go_into_the_archive_too(engine: Engine, action: str, rule: Rule) -> None:
    """Whatever the database does to the rest of a chain, each row is counted once, and in one of the two tables."""
    run(
        engine,
        f"INSERT INTO things SELECT n, timestamptz '{NOW - OLD}', repeat('x', 700), n % 300 + 1"
        " FROM generate_series(1, 300) AS n ORDER BY md5(CAST(n AS text))",
        "CREATE INDEX ON things (parent)",
        "UPDATE things SET parent = NULL WHERE id = 300",
    )
    refer(engine, action, "things", "parent")

    applied = go(engine, rule)

    assert (applied.rows, applied.failed, applied.skipped, ids(engine)) == (300, 0, 0, [])
    assert len(ids(engine, "attic")) == (300 if rule is MOVE else 0)


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
@pytest.mark.parametrize("ceiling", [None, 100])
def test_chains_of_due_rows_go_and_are_counted(engine: Engine, action: str, ceiling: int | None) -> None:
    fill(engine, *[OLD] * 8, DAY)
    run(engine, "UPDATE things SET parent = id - 1 WHERE id BETWEEN 2 AND 8")
    refer(engine, action, "things", "parent")

    assert (due(engine).rows, go(engine, ceiling=ceiling).rows, ids(engine)) == (8, 8, [9])


def test_a_chain_is_never_longer_than_the_ceiling(engine: Engine) -> None:
    fill(engine, *[OLD] * 8)
    run(engine, "UPDATE things SET parent = id - 1 WHERE id BETWEEN 2 AND 8")
    refer(engine, "CASCADE", "things", "parent")

    applied = go(engine, ceiling=3)

    assert applied.rows <= 3
    assert len(ids(engine)) == 8 - applied.rows


def test_a_chain_that_ends_in_a_row_that_is_not_due_is_an_error(engine: Engine) -> None:
    fill(engine, OLD, OLD, DAY)
    run(engine, "UPDATE things SET parent = id - 1 WHERE id > 1")
    refer(engine, "CASCADE", "things", "parent")

    with pytest.raises(Permanent, match="rows of things that are not due depend on due rows of things"):
        go(engine)
    assert ids(engine) == [1, 2, 3]


# -- any table -------------------------------------------------------------------------------------------------------

MEDDLERS = {
    None: None,
    "keeps": ("BEFORE DELETE", KEEPS),
    "soft": ("BEFORE DELETE", SOFT),
    "takes parts": ("AFTER DELETE", "DELETE FROM parts WHERE thing = old.id; RETURN old;"),
    "records": ("AFTER DELETE", "INSERT INTO attic (id) VALUES (old.id); RETURN old;"),
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    ages=st.lists(st.sampled_from([OLD, DAY]), min_size=1, max_size=7),
    meddler=st.sampled_from(list(MEDDLERS)),
    key=st.sampled_from([None, "CASCADE", "SET NULL", "NO ACTION"]),
    own=st.sampled_from([None, "CASCADE", "SET NULL", "NO ACTION"]),
    parts=st.lists(st.integers(1, 7), max_size=2),
    parents=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), max_size=3),
    ceiling=st.sampled_from([None, None, 1, 3]),
)
def test_only_what_is_due_changes_and_all_of_it_is_counted(
    engine: Engine,
    ages: list[timedelta],
    meddler: str | None,
    key: str | None,
    own: str | None,
    parts: list[int],
    parents: list[tuple[int, int]],
    ceiling: int | None,
) -> None:
    run(
        engine,
        "DROP TABLE IF EXISTS parts, attic, things; DROP FUNCTION IF EXISTS act",
        "CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz, note text DEFAULT 'new', parent bigint)",
        "CREATE TABLE parts (id int, thing bigint)",
        "CREATE TABLE attic (id bigint)",
    )
    fill(engine, *ages)
    for part in parts:
        run(engine, f"INSERT INTO parts SELECT 1, id FROM things WHERE id = {part}")
    for child, parent in parents:
        run(engine, f"UPDATE things SET parent = (SELECT id FROM things WHERE id = {parent}) WHERE id = {child}")
    if key:
        refer(engine, key)
    if own:
        run(engine, f"ALTER TABLE things ADD FOREIGN KEY (parent) REFERENCES things ON DELETE {own}")
    if found := MEDDLERS[meddler]:
        trigger(engine, found[1], found[0])
    before = everything(engine)
    old = {number for number, age in enumerate(ages, 1) if age == OLD}

    try:
        applied = go(engine, ceiling=ceiling)
    except Permanent:
        event("refused")
        rows, kept = None, everything(engine)
        assert {row[0] for row in before["things"]} - {row[0] for row in kept["things"]} <= old
    else:
        event("applied")
        rows, kept = applied.rows, everything(engine)
        gone = {row[0] for row in before["things"]} - {row[0] for row in kept["things"]}
        assert (gone <= old, len(gone)) == (True, rows)
        assert rows <= (len(old) if ceiling is None else ceiling)
        if ceiling is None:
            assert rows + applied.failed + applied.skipped == len(old)
    young = [row for row in before["things"] if row[0] not in old]
    assert [row for row in kept["things"] if row[0] not in old] == young
    assert kept["parts"] == before["parts"]


# -- row security ----------------------------------------------------------------------------------------------------


def test_rows_that_row_security_hides_are_an_error_that_names_the_table(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 21: what one tenant's policy hides is not deleted around, and not counted without."""
    fill(engine, *[OLD] * 4)
    run(
        engine,
        "ALTER TABLE things ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY tenant ON things USING (id < 3)",
        "DROP ROLE IF EXISTS keeper",
        "CREATE ROLE keeper",
        "GRANT ALL ON things TO keeper",
    )
    from sqlalchemy import event as events

    def become(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET ROLE keeper")
        connection.commit()

    engine.dispose()
    events.listen(engine, "connect", become)
    for act in (due, go):
        with pytest.raises(Permanent, match='row-level security policy for table "things"'):
            act(engine)
    events.remove(engine, "connect", become)
    engine.dispose()
    assert ids(engine) == [1, 2, 3, 4]
    run(engine, "DROP OWNED BY keeper", "DROP ROLE keeper")


def test_the_connection_goes_back_as_it_was(engine: Engine) -> None:
    fill(engine, *[OLD] * 4)
    go(engine, ceiling=2)

    with engine.connect() as connection:
        assert connection.execute(text("SHOW row_security")).scalar_one() == "on"
        assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
