"""`lamplighter.kernel.database` against a real Postgres: reached, secured, lost."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pg8000.dbapi
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from lamplighter.kernel import database
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent


def test_a_database_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:hunter2@127.0.0.1:{port}/media")
    database.engine.cache_clear()

    with pytest.raises(
        DatabaseUnavailable, match=rf"database at 127\.0\.0\.1:{port}/media cannot be reached"
    ) as caught:
        database.engine().connect()

    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)
    database.engine.cache_clear()


def test_a_server_that_accepts_but_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CONNECT_TIMEOUT", timedelta(milliseconds=200))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://app:x@127.0.0.1:{port}/media")
        database.engine.cache_clear()
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            database.engine().connect()
    database.engine.cache_clear()


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(8)
            connection.sendall(b"N")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=decline, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://app:x@127.0.0.1:{port}/media?sslmode=verify-full")
        database.engine.cache_clear()
        with pytest.raises(DatabaseUnavailable, match="does not offer TLS"):
            database.engine().connect()
        thread.join()
    database.engine.cache_clear()


def test_a_wrong_database_name_says_so(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace("/test_", "/no_test_"))

    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        database.engine().connect()


def test_a_connection_that_the_server_drops_is_one_retryable_error_and_the_next_use_works(database_url: str) -> None:
    """FAILURES 8: a database that is down must never look like an answer."""
    with database.engine().connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        _kill(database_url, pid)
        with pytest.raises(DatabaseUnavailable, match="went away"):
            connection.execute(text("SELECT 1"))

    with database.engine().connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_pooled_connection_that_died_while_idle_is_replaced(database_url: str) -> None:
    with database.engine().connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    _kill(database_url, pid)

    with database.engine().connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def _kill(url: str, pid: int) -> None:
    other = create_engine("postgresql+pg8000://", creator=lambda: database._connect(database._from_url(url)))
    with other.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    other.dispose()


def test_statements_and_locks_are_bounded(database_url: str) -> None:
    with database.engine().connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "5s"
        database.bound_statements(connection, statement=timedelta(milliseconds=50))
        with pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(10)"))

    with database.engine().connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "No database is configured"),
        ({"DATABASE_URL": "mysql://a@b/c"}, "must look like postgresql://"),
        ({"DATABASE_URL": "postgresql://a@b:x/c"}, "must look like postgresql://"),
        ({"DATABASE_URL": "postgresql://a@b/c?sslmode=prefer"}, "sslmode takes disable or verify-full"),
        ({"DATABASE_HOST": "db"}, "DATABASE_NAME and DATABASE_USER is not"),
        (
            {"DATABASE_HOST": "db", "DATABASE_NAME": "n", "DATABASE_USER": "u", "DATABASE_PORT": "x"},
            "DATABASE_PORT takes",
        ),
    ],
)
def test_a_bad_setting_is_one_sentence_that_names_it(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(Permanent, match=sentence):
        database.address(environment)


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("postgresql://u:p@127.0.0.1:5432/n", False),
        ("postgresql://u@/n?host=/run/postgresql", False),
        ("postgresql://u:p@db.example.com/n", True),
        ("postgresql://u:p@db.example.com/n?sslmode=require", True),
        ("postgresql://u:p@172.17.0.1/n?sslmode=disable", False),
        ("postgresql://u:p@localhost/n?sslmode=verify-full", True),
    ],
)
def test_only_this_machine_or_an_explicit_url_goes_without_tls(url: str, tls: bool) -> None:
    assert database.address({"DATABASE_URL": url}).tls is tls


# -- what errors say ---------------------------------------------------------------------------------------------------

SECRET = "ada@example.com"


def test_no_value_of_a_row_or_a_parameter_is_in_an_error(database_url: str) -> None:
    """FAILURES: an alert with an owner's data."""
    with database.engine().begin() as connection:
        connection.execute(text("CREATE TABLE people (email text UNIQUE, age int CHECK (age > 0))"))
        connection.execute(text("INSERT INTO people VALUES (:email, 5)"), {"email": SECRET})
    statements = (
        "INSERT INTO people VALUES (:email, 5)",  # Key (email)=(...) already exists.
        "INSERT INTO people VALUES (:email || '.org', -1)",  # Failing row contains (...).
        "SELECT nonesuch FROM people WHERE email = :email",
    )
    for statement in statements:
        with database.engine().connect() as connection, pytest.raises(DBAPIError) as caught:
            connection.execute(text(statement), {"email": SECRET})
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.__cause__)
        assert "ada@" not in told
        assert ("violates" in str(caught.value)) is statement.startswith("INSERT")
        assert isinstance(caught.value.orig, pg8000.dbapi.Error)
        assert caught.value.orig.args[0]["C"] in ("23505", "23514", "42703")


# -- a whole view ------------------------------------------------------------------------------------------------------

LAG = timedelta(minutes=1)


@pytest.fixture
def tenants(database_url: str) -> Iterator[str]:
    """A table whose rows are hidden from all but one tenant, and the URL of a user who is no superuser."""
    role = f"app_{uuid4().hex[:8]}"
    with database.engine().begin() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            "CREATE TABLE files (storage_key text, tenant int)",
            "INSERT INTO files VALUES ('a', 1), ('b', 2)",
            "ALTER TABLE files ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON files USING (tenant = 1)",
            f"GRANT SELECT ON files TO {role}",
        ):
            connection.execute(text(statement))
    yield role
    with database.engine().begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))


def _as(role: str, connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL ROLE {role}"))


def test_hidden_rows_are_refused_where_the_view_must_be_whole(tenants: str) -> None:
    with database.engine().connect() as connection:
        _as(tenants, connection)
        assert connection.execute(text("SELECT count(*) FROM files")).scalar_one() == 1  # and says nothing
        database.whole_view(connection, max_lag=LAG)
        with pytest.raises(Permanent, match=r'hides rows from this user: .* for table "files"\. Let the user bypass'):
            connection.execute(text("SELECT count(*) FROM files"))
    with database.engine().connect() as connection:  # the next transaction is as before
        assert connection.execute(text("SHOW row_security")).scalar_one() == "on"


def test_an_owner_is_refused_too_where_the_table_forces_its_policies(tenants: str) -> None:
    with database.engine().begin() as connection:
        connection.execute(text(f"ALTER TABLE files OWNER TO {tenants}"))
    with database.engine().connect() as connection:
        _as(tenants, connection)
        database.whole_view(connection, max_lag=LAG)
        assert connection.execute(text("SELECT count(*) FROM files")).scalar_one() == 2
    with database.engine().begin() as connection:
        connection.execute(text("ALTER TABLE files FORCE ROW LEVEL SECURITY"))
    with database.engine().connect() as connection:
        _as(tenants, connection)
        database.whole_view(connection, max_lag=LAG)
        with pytest.raises(Permanent, match='for table "files"'):
            connection.execute(text("SELECT count(*) FROM files"))


def test_who_bypasses_row_security_sees_all(tenants: str) -> None:
    with database.engine().connect() as connection:
        database.whole_view(connection, max_lag=LAG)
        assert connection.execute(text("SELECT count(*) FROM files")).scalar_one() == 2
    with database.engine().begin() as connection:
        connection.execute(text(f"ALTER ROLE {tenants} BYPASSRLS"))
    with database.engine().connect() as connection:
        _as(tenants, connection)
        database.whole_view(connection, max_lag=LAG)
        assert connection.execute(text("SELECT count(*) FROM files")).scalar_one() == 2


@pytest.mark.parametrize(
    ("replayed", "error", "sentence"),
    [
        ("clock_timestamp() - interval '59 s'", None, ""),
        (
            "clock_timestamp() - interval '61 s'",
            Permanent,
            "standby that is 61 s behind its primary; 60 s are accepted",
        ),
        ("clock_timestamp() - interval '9 d'", Permanent, "standby that is 777600 s behind"),
        ("NULL", Permanent, "does not say how far it is behind"),
    ],
)
def test_a_standby_that_is_behind_is_refused(
    database_url: str, replayed: str, error: type[Exception] | None, sentence: str
) -> None:
    """The server's own functions, with two of them in their place."""
    with database.engine().connect() as connection:
        for statement in (
            "CREATE SCHEMA standby",
            "CREATE FUNCTION standby.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "CREATE FUNCTION standby.pg_last_xact_replay_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            f"$$SELECT CAST({replayed} AS timestamptz)$$",
            "SET LOCAL search_path = standby, pg_catalog",
        ):
            connection.execute(text(statement))
        if error is None:
            database.whole_view(connection, max_lag=LAG)
            return
        with pytest.raises(error, match=sentence):
            database.whole_view(connection, max_lag=LAG)
