"""`lamplighter.jobs.migrate` on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, text

from lamplighter.jobs import migrate
from lamplighter.kernel import database
from lamplighter.kernel.errors import Permanent, Retryable

FORMER = Path(__file__).parents[1] / "documents" / "database-0003.sql"
"""The statements of the migrations 0001 to 0003, as they ran before there was a schema of our own."""
OWN = (
    *("cloud_reports", "findings", "instances", "job_history", "judged_checks", "system_logs", "unattached_volumes"),
    "unjudged",
)
APPLICATIONS = (
    *("analysis_plans", "audit_log", "cloud_accounts", "handled_downloads", "media_files", "onboarding_requests"),
    *("sessions", "tokens"),
)
"""Tables that the former versions made where the application had none."""

ROWS = (
    "INSERT INTO system_logs (id, job_id, job_type, level, message) VALUES (gen_random_uuid(), 'j', 't', 'INFO', 'm')",
    "INSERT INTO job_history VALUES ('j', 't', 'completed', now(), now(), now(), '{}')",
    "INSERT INTO findings (account_id, region, check_id, resource_id, resource_type, kind, title, severity, confidence,"
    " status, first_seen_at, last_seen_at, job_id)"
    " SELECT 'a', 'r', 'c', CAST(n AS text), 't', 'k', 't', 'low', 1, 'open', now(), now(), 'j'"
    " FROM generate_series(1, 3) n",
    "INSERT INTO judged_checks VALUES ('a', 'r', 'c', now(), 'j')",
    "INSERT INTO unjudged VALUES ('a', 'r', 'c', 'why', '[]', now(), 'j')",
    "INSERT INTO unattached_volumes VALUES ('a', 'r', 'v', now())",
    "INSERT INTO cloud_reports VALUES ('j', 't', now(), 1, '{}', '{}')",
    "INSERT INTO media_files (storage_key) VALUES ('a.jpg')",
    "INSERT INTO sessions VALUES ('s', 'u', now())",
)
INSTANCE = "INSERT INTO instances (id, account_id, region, needs_review) VALUES ('i', 'a', 'r', true)"


def run(*statements: str) -> list[Any]:
    """The rows of the last statement, all in one transaction."""
    with database.engine().begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement.replace(":", r"\:")))
        return list(result) if result.returns_rows else []


def former(until: str = "0003") -> None:
    """Bring the database to a former version."""
    done, _, _ = FORMER.read_text().partition(f"'{until}'")
    rest = FORMER.read_text()[len(done) :].split(";")[0]
    with database.engine().begin() as connection:
        for statement in f"{done}{rest}".split(";\n"):
            connection.execute(text(statement))


def tables() -> dict[str, set[str]]:
    """The names of all tables, views and sequences there are, by schema."""
    found: dict[str, set[str]] = {}
    for schema, name in run(
        "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND relkind IN ('r', 'p', 'v', 'm', 'f')"
    ):
        found.setdefault(schema, set()).add(name)
    return found


def state(schema: str) -> dict[str, Any]:
    """Each table of a schema: its identity, all of the catalogue that describes it, and its rows."""
    described = run(
        "SELECT relname, CAST(pg_class.oid AS bigint), relowner, CAST(relacl AS text), relfilenode,"
        " (SELECT json_agg(json_build_array(attname, atttypid, attnotnull, atthasdef) ORDER BY attnum)"
        "  FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0),"
        " (SELECT json_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid) FROM pg_index"
        "  WHERE indrelid = pg_class.oid)"
        f" FROM pg_class WHERE relnamespace = to_regnamespace('{schema}') AND relkind = 'r'"
    )
    return {row[0]: (tuple(row), [tuple(one) for one in run(f'TABLE {schema}."{row[0]}"')]) for row in described}


def shapes() -> dict[str, Any]:
    """Our tables as the catalogue describes them, whenever and wherever they were made."""
    rows = run(
        "SELECT relname,"
        " (SELECT json_agg(json_build_array(attname, format_type(atttypid, atttypmod), attnotnull, attidentity,"
        "   pg_get_expr(adbin, adrelid)) ORDER BY attnum)"
        "  FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)"
        "  WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped),"
        " (SELECT json_agg(pg_get_indexdef(indexrelid) ORDER BY CAST(CAST(indexrelid AS regclass) AS text))"
        "  FROM pg_index WHERE indrelid = pg_class.oid),"
        " (SELECT json_agg(json_build_array(conname, pg_get_constraintdef(oid)) ORDER BY conname) FROM pg_constraint"
        "  WHERE conrelid = pg_class.oid)"
        " FROM pg_class WHERE relnamespace = to_regnamespace('lamplighter') AND relkind = 'r'"
    )
    return {row[0]: tuple(row) for row in rows}


# -- a database that is new to us ------------------------------------------------------------------------------------


def test_an_empty_database_gets_every_migration_and_a_second_run_none(database_url: str) -> None:
    first, second = migrate.handler({}, None), migrate.handler({}, None)

    assert first["applied"][-1] == first["revision"]
    assert second == {"revision": first["revision"], "applied": []}


def test_a_schema_that_a_later_version_migrated_stays_as_it_is(database_url: str) -> None:
    """That version's deployment is rolled back: an error would stop the rollback (P1)."""
    migrate.handler({}, None)
    run("UPDATE lamplighter.schema_version SET version_num = '9999'")
    before = state("lamplighter")

    assert migrate.handler({}, None) == {"revision": "9999", "applied": []}
    assert state("lamplighter") == before


def test_nothing_is_made_outside_the_schema(database_url: str) -> None:
    """S4, FAILURES 23: the application's tables are the application's to make."""
    migrate.handler({}, None)

    assert tables() == {"lamplighter": {*OWN, "schema_version"}}


def test_tables_of_the_application_with_our_names_are_not_touched(database_url: str) -> None:
    """FAILURES 23: a deployment adopted tables of the same name and expired their rows."""
    names = [*OWN, *APPLICATIONS, "schema_version", "alembic_version"]
    run(*(f"CREATE TABLE {name} (id int PRIMARY KEY, expires_at timestamptz DEFAULT now())" for name in names))
    run(*(f"INSERT INTO {name} VALUES (1)" for name in names))
    before = state("public")

    migrate.handler({}, None)

    assert state("public") == before
    assert before.keys() == set(names)
    assert tables()["lamplighter"] == {*OWN, "schema_version"}


def test_the_tables_of_the_package_are_those_that_the_migrations_make(database_url: str) -> None:
    migrate.handler({}, None)

    with database.engine().connect() as connection:
        options = {"include_name": _ours, "include_schemas": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), database.metadata) == []
    assert database.metadata.tables


def _ours(name: str | None, kind: str, parents: Any) -> bool:
    if kind == "schema":
        return name == database.SCHEMA
    return kind != "table" or parents["schema_qualified_table_name"] in database.metadata.tables


def test_two_at_once_apply_each_migration_once(database_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: migrate.handler({}, None), range(2)))

    assert sorted(len(result["applied"]) for result in results)[0] == 0
    assert results[0]["revision"] == results[1]["revision"]


def test_a_schema_of_our_name_with_tables_that_are_not_ours_is_refused(database_url: str) -> None:
    run("CREATE SCHEMA lamplighter", "CREATE TABLE lamplighter.findings (id int)")
    before = state("lamplighter")

    with pytest.raises(Permanent, match=r'not make: relation "findings" already exists\. Rename or move it'):
        migrate.handler({}, None)
    assert state("lamplighter") == before


# -- a database of a former version ----------------------------------------------------------------------------------


def test_the_former_tables_move_with_their_rows_and_the_applications_stay(database_url: str) -> None:
    former()
    run(*ROWS, INSTANCE)
    before = state("public")

    assert migrate.handler({}, None)["applied"] == ["0004"]

    here, there = state("lamplighter"), state("public")
    assert there.keys() == set(APPLICATIONS)
    assert there == {name: before[name] for name in APPLICATIONS}
    for name in OWN:
        assert here[name][1] == before[name][1] != [], name
    run("SET LOCAL search_path = lamplighter", ROWS[2].replace("'a', 'r'", "'b', 'r'", 1))
    assert run("SELECT max(id) FROM lamplighter.findings") == [(6,)], "the identity goes on"
    assert migrate.handler({}, None)["applied"] == []


def test_what_was_moved_is_what_a_new_database_has(database_url: str) -> None:
    migrate.handler({}, None)
    new = shapes()
    run("DROP SCHEMA lamplighter CASCADE")
    former()
    migrate.handler({}, None)
    assert shapes() == new
    assert new.keys() == {*OWN, "schema_version"}


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE instances ADD name text",
        "ALTER TABLE instances DROP measured_at",
        "ALTER TABLE instances ALTER region DROP NOT NULL",
        "ALTER TABLE instances ALTER state SET DEFAULT 'new'",
        "ALTER TABLE instances ALTER cpu_percent TYPE real",
        "ALTER TABLE instances ADD CHECK (region <> '')",
        "ALTER TABLE instances ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE instances DROP CONSTRAINT instances_pkey",
        "DROP INDEX ix_instances_account_id",
        "ALTER INDEX ix_instances_account_id RENAME TO by_account",
        "CREATE INDEX ON instances (region)",
        "CREATE TABLE volumes (instance_id text REFERENCES instances)",
        "CREATE TABLE more () INHERITS (instances)",
        "CREATE RULE kept AS ON DELETE TO instances DO INSTEAD NOTHING",
        "CREATE TRIGGER seen BEFORE UPDATE ON instances"
        " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE instances RENAME TO machines",
        "DROP TABLE instances; CREATE VIEW instances AS SELECT 'i' AS id",
    ],
)
def test_instances_that_are_not_as_we_made_them_stay(database_url: str, change: str) -> None:
    """The former versions adopted a table of this name: then it is the application's, whatever it is like."""
    former()
    run(INSTANCE, *change.split("; "))
    before = state("public")
    left = before.keys() - set(OWN) - {"lamplighter_schema"} | before.keys() & {"instances"}

    migrate.handler({}, None)

    after = state("public")
    assert after == {name: before[name] for name in left}
    assert state("lamplighter")["instances"][1] == []


def test_tables_that_the_application_had_before_stay_as_they_are(database_url: str) -> None:
    run(
        "CREATE TABLE sessions (session_key text PRIMARY KEY, expire_date timestamptz)",
        "CREATE TABLE media_files (id int PRIMARY KEY, storage_key text, title text)",
        "CREATE TABLE instances (id text PRIMARY KEY, name text)",
        "INSERT INTO media_files VALUES (1, 'a.jpg', 'mine')",
        "INSERT INTO instances VALUES ('i', 'mine')",
    )
    former_statements = FORMER.read_text().split(";\n")
    skipped = ("CREATE TABLE sessions", "CREATE INDEX ix_sessions", "CREATE TABLE instances", "CREATE INDEX ix_inst")
    run(*(one for one in former_statements if one.strip() and not one.startswith(skipped)))
    before = state("public")

    migrate.handler({}, None)

    assert state("public") == {name: before[name] for name in (*APPLICATIONS, "instances")}
    assert state("lamplighter")["instances"][1] == []


@pytest.mark.parametrize(("version", "rows"), [("0001", 1), ("0002", 2)])
def test_an_earlier_version_is_brought_here_too(database_url: str, version: str, rows: int) -> None:
    former(version)
    run(*ROWS[:rows])
    migrate.handler({}, None)
    kept = [name for name, (_, found) in state("lamplighter").items() if found and name != "schema_version"]
    assert kept == ["system_logs", "job_history"][:rows]
    assert tables()["lamplighter"] == {*OWN, "schema_version"}
    assert not tables()["public"] & {"system_logs", "job_history", "lamplighter_schema"}


def test_a_former_table_that_its_owner_has_removed_is_made_and_the_others_move(database_url: str) -> None:
    """A deployment must not stick over a table that is gone, or has been put away."""
    former()
    run(*ROWS, "DROP TABLE unattached_volumes", "ALTER TABLE system_logs RENAME TO old_logs")
    assert migrate.handler({}, None)["applied"] == ["0004"]
    assert set(OWN) <= tables()["lamplighter"]
    assert run("SELECT count(*) FROM lamplighter.findings") == [(3,)]
    assert run("SELECT count(*) FROM lamplighter.system_logs") == [(0,)]
    assert run("SELECT count(*) FROM public.old_logs") == [(1,)]


def test_former_tables_that_the_search_path_does_not_have_are_named_and_left(database_url: str) -> None:
    """An administrator who migrates has another search path than the functions' user. The findings seemed lost."""
    [(name,)] = run("SELECT current_database()")
    run("CREATE SCHEMA app", f"ALTER DATABASE {name} SET search_path = app")
    database.engine().dispose()
    former()
    run(*ROWS, f"ALTER DATABASE {name} RESET search_path")
    database.engine().dispose()
    before = state("app")
    with pytest.raises(
        Permanent,
        match=r"of a former version are in the schema app, which is not in the search path of the user postgres",
    ):
        migrate.handler({}, None)
    assert state("app") == before
    assert "lamplighter" not in tables()

    run(f"ALTER DATABASE {name} SET search_path = app")
    database.engine().dispose()
    assert migrate.handler({}, None)["applied"] == ["0004"]
    assert run("SELECT count(*) FROM lamplighter.findings") == [(3,)]


@pytest.mark.parametrize("schema", ["Our Shop", "lamplighter"])
def test_former_tables_in_another_schema_than_public_are_found(database_url: str, schema: str) -> None:
    """They were made in the first schema of the user's search path."""
    name = database_url.partition("?")[0].rpartition("/")[2]
    run(f'CREATE SCHEMA "{schema}"', f'ALTER DATABASE {name} SET search_path = "{schema}", public')
    database.engine().dispose()
    former()
    run(*ROWS, INSTANCE)

    migrate.handler({}, None)

    found = tables()
    assert {name: len(rows) for name, (_, rows) in state("lamplighter").items() if name in OWN} == {
        name: 3 if name == "findings" else 1 for name in OWN
    }
    assert not any("lamplighter_schema" in names for names in found.values())
    assert found[schema] >= set(APPLICATIONS)


class Killed(Exception):
    """The migration came to no end."""


def test_a_migration_that_is_killed_anywhere_has_changed_nothing_and_is_done_again(database_url: str) -> None:
    former()
    run(*ROWS, INSTANCE)
    before, engine, killed = state("public"), database.engine(), 0
    for last in range(1, 1000):
        with _killed_after(engine, last) as said:
            try:
                done = migrate.handler({}, None)
                break
            except Killed:
                killed += 1
        assert (state("public"), tables().keys()) == (before, {"public"}), said[-1]
    assert done["applied"] == ["0004"]
    assert killed > 20
    assert tables() == {"lamplighter": {*OWN, "schema_version"}, "public": set(APPLICATIONS)}


class _killed_after:
    """Ends whatever is done on an engine after so many statements."""

    def __init__(self, engine: Engine, last: int) -> None:
        self._engine, self._last = engine, last
        self.said: list[str] = []

    def __enter__(self) -> list[str]:
        event.listen(self._engine, "after_cursor_execute", self._count)
        return self.said

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "after_cursor_execute", self._count)

    def _count(self, *arguments: Any) -> None:
        self.said.append(arguments[2])
        if len(self.said) >= self._last:
            raise Killed


def test_two_at_once_from_a_former_version(database_url: str) -> None:
    former()
    run(*ROWS, INSTANCE)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: migrate.handler({}, None)["applied"], range(4)))
    assert sorted(results) == [[], [], [], ["0004"]]
    assert tables() == {"lamplighter": {*OWN, "schema_version"}, "public": set(APPLICATIONS)}


def test_a_table_that_somebody_holds_is_waited_for_and_then_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_WAIT", timedelta(milliseconds=50))
    former()
    before = tables()
    with database.engine().begin() as other:
        other.execute(text("LOCK TABLE findings IN ACCESS SHARE MODE"))
        with pytest.raises(Retryable, match="got no lock in time: canceling statement due to lock timeout"):
            migrate.handler({}, None)
    assert tables() == before
    assert migrate.handler({}, None)["applied"] == ["0004"]


# -- CloudFormation --------------------------------------------------------------------------------------------------


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


def test_a_deploy_whose_user_may_not_make_the_schema_fails_with_what_to_run(
    database_url: str, cloudformation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answers = cloudformation
    run("DROP ROLE IF EXISTS nobody_much", "CREATE ROLE nobody_much LOGIN")
    with monkeypatch.context() as environment:
        environment.setenv("DATABASE_URL", database_url.replace("//postgres:", "//nobody_much:"))
        database.engine.cache_clear()
        migrate.handler(request(url, "Create"), None)
        database.engine().dispose()
    database.engine.cache_clear()
    (answer,) = answers
    assert (answer["Status"], tables()) == ("FAILED", {})
    assert answer["Reason"].startswith("Permanent: The database user nobody_much may not create the schema lamplighter")
    assert 'run `psql -v user="nobody_much" -f docs/grants.sql`; then deploy again.' in answer["Reason"]


def test_deleting_the_stack_leaves_the_tables(database_url: str, cloudformation: Any) -> None:
    url, answers = cloudformation
    migrate.handler({}, None)
    migrate.handler(request(url, "Delete"), None)
    assert answers[0]["Status"] == "SUCCESS"
    assert tables()["lamplighter"] >= set(OWN)
