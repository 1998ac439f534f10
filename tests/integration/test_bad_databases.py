"""Databases that are not as a job needs them: one sentence each, nothing lost, no lock held (issue "the owner's
database", bad input)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from lamplighter.kernel import database
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent, unreadable
from lamplighter.kernel.retention import Applied, Archive, Rule, apply, preview
from lamplighter.kernel.retention.rule import Delete
from local.postgres import postgres as server_of
from tests.ports import free_ports

DAY = timedelta(days=1)
RULE = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Delete())


def fill(engine: Engine, rows: int) -> None:
    """Rows of which each is due."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int PRIMARY KEY, at timestamptz NOT NULL)"))
        connection.execute(text("CREATE INDEX ON things (at)"))
        connection.execute(
            text(
                "INSERT INTO things SELECT n, now() - interval '60 days' - n * interval '1 s'"
                " FROM generate_series(1, :n) AS n"
            ),
            {"n": rows},
        )
        connection.execute(text("ANALYZE things"))


def left(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM things")).scalar_one())


def go(engine: Engine, rule: Rule = RULE, **options: Any) -> Applied:
    with engine.connect() as connection:
        now = connection.execute(text("SELECT now()")).scalar_one()
    defaults: dict[str, Any] = {"stop": lambda: None, "progress": lambda percent, message: None}
    return apply(engine, rule, now=now, keep=rule.keep, **(defaults | options))


def no_lock_is_held(engine: Engine) -> bool:
    """Whether no other session is in a transaction."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE 'idle in transaction%'"
    )
    with engine.connect() as connection:
        return connection.execute(text(query)).scalar_one() == 0


# -- poolers -----------------------------------------------------------------------------------------------------------


@contextmanager
def another_session_each_transaction(engine: Engine) -> Iterator[list[str]]:
    """As behind a pooler in transaction mode: what a session was set to is lost with each transaction.

    Yields the settings that a statement made outside of any transaction: a pooler gives them to others.
    """
    leaked: list[str] = []

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sets = (one.split()[:2] for one in statement.split(";") if one.split()[0] in {"SET", "RESET"})
        leaked.extend(what for _, what in sets if what not in {"LOCAL", "CONSTRAINTS", "TRANSACTION"})

    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement in {"COMMIT", "ROLLBACK"}:
            raw = connection.connection.dbapi_connection
            raw.execute_simple("DISCARD ALL")
            raw.execute_simple("SET statement_timeout = 0; SET lock_timeout = 0")

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    yield leaked
    event.remove(engine, "before_cursor_execute", before)
    event.remove(engine, "after_cursor_execute", after)


@pytest.mark.parametrize("ceiling", [None, 5000])
@pytest.mark.parametrize("is_archived", [False, True])
def test_a_run_sets_nothing_in_a_session_that_outlives_its_transaction(
    engine: Engine, ceiling: int | None, is_archived: bool
) -> None:
    """A pooler in transaction mode would give a timeout of 100 ms to the owner's application."""
    fill(engine, 9000)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE attic (LIKE things)"))
        connection.execute(text("CREATE TABLE parts (thing int REFERENCES things)"))
        connection.execute(text("INSERT INTO parts SELECT id FROM things WHERE id % 5 = 0"))
    action = Archive("attic") if is_archived else Delete()
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=action)

    with another_session_each_transaction(engine) as leaked:
        done = go(engine, rule, ceiling=ceiling)

    assert leaked == []
    assert done.rows == (ceiling or 7200)
    assert done.batches > 1
    assert left(engine) == 9000 - done.rows


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_pooler_that_drops_the_time_zone_makes_no_row_due_earlier_or_later(database_url: str, zone: str) -> None:
    """A timestamp without time zone is read in UTC (pg_partman #865: drivers and servers with zones of their own)."""
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE sessions (id int PRIMARY KEY, expires_at timestamp)"))
        utc = "now() AT TIME ZONE 'UTC'"
        ends = f"(1, {utc} - interval '1 hour'), (2, {utc} + interval '1 hour')"
        connection.execute(text(f"INSERT INTO sessions VALUES {ends}"))
        now = connection.execute(text("SELECT now()")).scalar_one()
        connection.execute(text(f"SET TimeZone = '{zone}'"))
    rule = Rule(name="sessions", table="sessions", clock="expires_at", action=Delete())

    found = preview(engine, rule, now=now, keep=rule.keep)
    assert (found.rows, found.oldest) == (1, now - timedelta(hours=1))
    assert go(engine, rule).rows == 1
    with engine.connect() as connection:
        assert list(connection.execute(text("SELECT id FROM sessions")).scalars()) == [2]


def test_a_policy_that_begins_in_mid_run_is_an_error(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS S6: a rule keeps what another table names; if its rows are hidden, each would look free."""
    administrator = database.engine()
    fill(administrator, 9000)
    with administrator.begin() as connection:
        connection.execute(text("CREATE TABLE kept (thing int)"))
        connection.execute(text("INSERT INTO kept SELECT id FROM things WHERE id % 2 = 0"))
        connection.execute(text("DROP ROLE IF EXISTS tenant_in_mid_run"))
        connection.execute(text("CREATE ROLE tenant_in_mid_run LOGIN"))
        connection.execute(text("GRANT SELECT, DELETE, UPDATE ON things, kept TO tenant_in_mid_run"))
    monkeypatch.setenv("DATABASE_URL", database_url.replace("//postgres:", "//tenant_in_mid_run:"))
    database.engine.cache_clear()
    where = "NOT EXISTS (SELECT FROM kept WHERE kept.thing = things.id)"
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Delete(), where=where)

    def hide(percent: int, message: str) -> None:
        with administrator.begin() as connection:
            connection.execute(text("ALTER TABLE kept ENABLE ROW LEVEL SECURITY"))

    tenant = database.engine()
    with pytest.raises(Permanent, match="hides rows from this user"):
        go(tenant, rule, progress=hide)
    tenant.dispose()
    with administrator.begin() as connection:
        query = "SELECT count(*) FROM kept JOIN things ON thing = id"
        assert connection.execute(text(query)).scalar_one() == 4500
        assert connection.execute(text("SELECT count(*) FROM things")).scalar_one() < 9000
        connection.execute(text("DROP OWNED BY tenant_in_mid_run"))
        connection.execute(text("DROP ROLE tenant_in_mid_run"))
    administrator.dispose()
    database.engine.cache_clear()


def answering(server: socket.socket, message: str) -> None:
    """A server that answers the startup message with an error."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        fields = f"SFATAL\0VFATAL\0C08P01\0M{message}\0\0".encode()
        connection.sendall(b"E" + (len(fields) + 4).to_bytes(4) + fields)


def test_a_pooler_that_refuses_our_limits_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """PgBouncer refuses what is not in its ignore_startup_parameters."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = "unsupported startup parameter: statement_timeout"
        thread = threading.Thread(target=answering, args=(server, message))
        thread.start()
        monkeypatch.setenv("DATABASE_URL", f"postgresql://app:x@127.0.0.1:{server.getsockname()[1]}/media")
        database.engine.cache_clear()
        with pytest.raises(
            Permanent,
            match=r"unsupported startup parameter: statement_timeout\. Add statement_timeout and lock_timeout to the "
            r"pooler's ignore_startup_parameters, or connect to the server itself\.$",
        ):
            database.engine().connect()
        thread.join()
    database.engine.cache_clear()


# -- servers that do not write -----------------------------------------------------------------------------------------


@pytest.fixture
def read_only(engine: Engine) -> Engine:
    """A session that may not write: of a standby, of a primary after a failover, or of a user who is so set."""
    fill(engine, 10)
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    engine.dispose()
    return engine


def test_a_read_only_database_is_one_sentence_and_the_next_attempt_connects_anew(read_only: Engine) -> None:
    """After a failover the name leads to the new primary, the pooled connection to the old one."""
    assert preview(read_only, RULE, now=_now(read_only), keep=RULE.keep).rows == 10
    with pytest.raises(Permanent, match=r"^things: the database is read-only, a standby for instance; connect to the"):
        go(read_only)
    assert left(read_only) == 10
    with read_only.connect() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        before = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(Exception, match="read-only transaction") as refused:
            connection.execute(text("UPDATE things SET at = now()"))
    found = unreadable(refused.value)
    assert found
    assert str(found) == "The database refuses a statement (25006): cannot execute UPDATE in a read-only transaction."
    with read_only.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != before
        connection.rollback()
        connection.execute(text("SET TRANSACTION READ WRITE"))
        connection.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
        connection.commit()
    read_only.dispose()
    assert go(read_only).rows == 10


def _now(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("SELECT now()")).scalar_one()


# -- servers that have no room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("53100", "could not extend file: No space left on device"),
        ("53200", "out of memory"),
        ("53400", "temporary file size exceeds temp_file_limit"),
    ],
)
def test_a_server_without_room_ends_the_run_and_loses_nothing(engine: Engine, state: str, said: str) -> None:
    fill(engine, 400)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE attic (LIKE things)"))
        connection.execute(text("CREATE SEQUENCE written"))
        connection.exec_driver_sql(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('written') > 150 THEN RAISE"
            f" EXCEPTION '{said}' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$"
        )
        connection.exec_driver_sql("CREATE TRIGGER fail BEFORE INSERT ON attic FOR EACH ROW EXECUTE FUNCTION fail()")
    rule = Rule(name="things", table="things", clock="at", keep=30 * DAY, action=Archive("attic"))

    with pytest.raises(DatabaseUnavailable, match=f"^The database lacks a resource: {said}$"):
        go(engine, rule)

    with engine.connect() as connection:
        moved = connection.execute(text("SELECT count(*) FROM attic")).scalar_one()
        assert connection.execute(text("SELECT last_value FROM written")).scalar_one() > 150
    assert moved + left(engine) == 400
    assert no_lock_is_held(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER fail ON attic"))
    assert go(engine, rule).rows == 400 - moved


def test_a_user_without_connections_is_named_and_the_next_attempt_works(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator = database.engine()
    with administrator.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS crowded"))
        connection.execute(text("CREATE ROLE crowded LOGIN CONNECTION LIMIT 1"))
    monkeypatch.setenv("DATABASE_URL", database_url.replace("//postgres:", "//crowded:"))
    database.engine.cache_clear()
    first = database.engine()
    with first.connect():
        database.engine.cache_clear()
        second = database.engine()
        with pytest.raises(DatabaseUnavailable, match=r'cannot be reached: too many connections for role "crowded"$'):
            second.connect()
    first.dispose()
    with second.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    second.dispose()
    database.engine.cache_clear()
    with administrator.begin() as connection:
        connection.execute(text("DROP ROLE crowded"))


def test_one_process_holds_one_connection(engine: Engine) -> None:
    """What a stack takes of max_connections is then the number of its functions that run at once."""
    fill(engine, 1500)
    most = 0

    def look(percent: int, message: str) -> None:
        nonlocal most
        with counting.connect() as connection:
            most = max(most, connection.execute(text(query)).scalar_one())

    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    counting = _another(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parts (thing int REFERENCES things)"))
        connection.execute(text("INSERT INTO parts SELECT id FROM things WHERE id % 5 = 0"))
    assert go(engine, progress=look).failed == 300
    counting.dispose()
    assert most == 1


def _another(engine: Engine) -> Engine:
    """An engine of its own on the same database."""
    database.engine.cache_clear()
    return database.engine()


# -- a server that is started again ------------------------------------------------------------------------------------


def test_a_server_that_restarts_in_mid_run_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    port = free_ports()
    server = server_of(port=port, directory=tmp_path / "data", logs=tmp_path)
    server.start()
    try:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}/lamplighter")
        database.engine.cache_clear()
        engine = database.engine()
        fill(engine, 20_000)
        asked = 0

        def restart() -> None:
            nonlocal asked
            asked += 1
            if asked == 3:
                server.stop()
                server.start()

        with pytest.raises(DatabaseUnavailable):
            go(engine, stop=restart, target=timedelta(milliseconds=20))
        assert asked == 4  # before the batch, and within it
        rest = left(engine)
        assert 0 < rest < 20_000
        assert go(engine).rows == rest
        engine.dispose()
    finally:
        server.stop()
        database.engine.cache_clear()
