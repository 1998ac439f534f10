"""`lamplighter.jobs.migrate` on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
