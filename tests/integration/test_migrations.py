"""`lamplighter.jobs.migrate` on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from lamplighter.jobs import migrate
from lamplighter.kernel import database


def test_an_empty_database_gets_every_migration_and_a_second_run_none(database_url: str) -> None:
    first, second = migrate.handler({}, None), migrate.handler({}, None)

    assert first["applied"][-1] == first["revision"]
    assert second == {"revision": first["revision"], "applied": []}


def test_two_at_once_apply_each_migration_once(database_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: migrate.handler({}, None), range(2)))

    assert sorted(len(result["applied"]) for result in results)[0] == 0
    assert results[0]["revision"] == results[1]["revision"]


def test_the_tables_of_the_package_are_those_that_the_migrations_make(database_url: str) -> None:
    migrate.handler({}, None)

    with database.engine().connect() as connection:
        ours = MigrationContext.configure(connection, opts={"include_name": _ours})
        assert compare_metadata(ours, database.metadata) == []


def _ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in database.metadata.tables


def test_an_application_that_already_has_its_media_files_keeps_them(database_url: str) -> None:
    with database.engine().begin() as connection:
        connection.execute(text("CREATE TABLE media_files (id int PRIMARY KEY, storage_key text, title text)"))
        connection.execute(text("INSERT INTO media_files VALUES (1, 'a.jpg', 'mine')"))

    migrate.handler({}, None)

    with database.engine().connect() as connection:
        assert connection.execute(text("SELECT title FROM media_files")).scalar_one() == "mine"
        indexed = [
            column for index in inspect(connection).get_indexes("media_files") for column in index["column_names"]
        ]
    assert "storage_key" in indexed


def test_a_table_of_another_shape_is_left_as_it_is(database_url: str) -> None:
    with database.engine().begin() as connection:
        connection.execute(text("CREATE TABLE sessions (session_key text PRIMARY KEY, expire_date timestamptz)"))

    migrate.handler({}, None)

    with database.engine().connect() as connection:
        assert [column["name"] for column in inspect(connection).get_columns("sessions")] == [
            "session_key",
            "expire_date",
        ]


@pytest.fixture
def cloudformation(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address that waits for a custom resource's answers, and those that came."""
    answers: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}/answer", answers
    server.shutdown()
    thread.join()
    server.server_close()


def request(url: str, kind: str) -> dict[str, Any]:
    return {
        "RequestType": kind,
        "ResponseURL": url,
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "Schema",
        "ResourceProperties": {"Revision": "0001"},
    }


def test_a_deploy_migrates_and_is_told(database_url: str, cloudformation: Any) -> None:
    url, answers = cloudformation
    migrate.handler(request(url, "Create"), None)
    (answer,) = answers
    assert answer["Data"]["applied"]
    assert {name: answer[name] for name in ("Status", "StackId", "RequestId", "LogicalResourceId")} == {
        "Status": "SUCCESS",
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "Schema",
    }


def test_a_deploy_that_cannot_migrate_fails_with_the_reason(
    cloudformation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answers = cloudformation
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    database.engine.cache_clear()
    migrate.handler(request(url, "Update"), None)
    database.engine.cache_clear()
    assert answers[0]["Status"] == "FAILED"
    assert "127.0.0.1:9/nothing cannot be reached" in answers[0]["Reason"]


def test_deleting_the_stack_leaves_the_tables(database_url: str, cloudformation: Any) -> None:
    url, answers = cloudformation
    migrate.handler({}, None)
    migrate.handler(request(url, "Delete"), None)
    assert answers[0]["Status"] == "SUCCESS"
    with database.engine().connect() as connection:
        assert "system_logs" in inspect(connection).get_table_names()
