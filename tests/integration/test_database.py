"""`lamplighter.kernel.database` against a real Postgres: reached, secured, lost."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
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
