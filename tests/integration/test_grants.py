"""docs/grants.sql: with these rights and no others Lamplighter works, and reads nothing that was not named (S4)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from ulid import ULID

from lamplighter import rules
from lamplighter.admin import audit_archive
from lamplighter.cloud import findings, health
from lamplighter.cloud.report import generate_waste_report
from lamplighter.cloud.store.postgres import PostgresStore
from lamplighter.jobs import history, migrate
from lamplighter.kernel import database
from lamplighter.kernel import history as job_history
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy
from lamplighter.kernel.phased_job import PhaseRun
from lamplighter.kernel.retention import Delete, Rule, apply, preview
from lamplighter.kernel.settings import Reference, Settings
from lamplighter.library import cleanup, plans
from lamplighter.media.values import read
from local.postgres import APPLICATION_TABLES, postgres_programs
from local.stack import ROOT
from tests.api_requests import get
from tests.integration.test_findings import HERE, finding, judgement
from tests.integration.test_rules import a_job, a_state
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeContext

GRANTS = ROOT / "docs" / "grants.sql"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class House:
    """An application's database, its administrator, and the role that the functions use."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.user, self._monkeypatch = url, f"fn-{uuid4().hex}", monkeypatch
        self.sql(f'CREATE ROLE "{self.user}" LOGIN')
        # What our own statements name is found without it; what the owner declares may need it.
        self.sql(f"""ALTER ROLE "{self.user}" SET search_path = ''""")
        with database.engine().begin() as connection:
            connection.exec_driver_sql(APPLICATION_TABLES.read_text())

    def sql(self, *statements: str) -> list[Any]:
        """Statements of whoever is connected now."""
        with database.engine().begin() as connection:
            for statement in statements:
                result = connection.execute(text(statement.replace(":", r"\:")))
            return list(result) if result.returns_rows else []

    def grant(self, *options: str, script: str = GRANTS.read_text()) -> None:
        """Run docs/grants.sql, as the administrator does."""
        psql = [str(postgres_programs() / "psql"), self.url, "-Xq", "-v", f"user={self.user}", *options, "-f", "-"]
        done = subprocess.run(psql, input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    @contextmanager
    def as_function(self) -> Iterator[None]:
        """While the package connects as the functions' role."""
        with self._monkeypatch.context() as environment:
            environment.setenv("DATABASE_URL", self.url.replace("//postgres:", f"//{self.user}:"))
            database.engine.cache_clear()
            yield
            database.engine().dispose()
        database.engine.cache_clear()

    def refusal(self, statement: str) -> str:
        """Why the functions' role may not do this."""
        with self.as_function(), pytest.raises(DBAPIError) as refused:
            self.sql(statement)
        return database.reason(refused.value.orig or refused.value)


@pytest.fixture
def house(database_url: str, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("STACK_NAME", "lamplighter")
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "lamplighter")
    return House(database_url, monkeypatch)


def use_every_table(s3: Any) -> None:
    """What the jobs and the API do with Lamplighter's own tables."""
    history.handler(json.loads((ROOT / "events/jobs/history.json").read_text()), FakeContext())

    ledger = Ledger(MemoryStore())
    job = ledger.submit(ledger.new_job("sync", Policy(timeout=DAY)))
    done = ledger.complete(ledger.claim(job.job_id, attempt=1, continuation=0, job_type="sync"), {})
    [moved] = job_history.move([done], store=ledger.store, engine=database.engine(), now=NOW)
    assert moved.fate is job_history.Fate.MOVED, moved.error
    assert job_history.recall(database.engine(), job.job_id) == done

    with database.engine().begin() as connection:
        for found in ((finding("i-1"), finding("i-2")), (finding("i-1"),)):
            given = {"job_id": "01SCAN", "now": NOW, "exemptions": None}
            findings.record(connection, judgement(*found, judged=["idle_cpu"]), **HERE, **given)
        assert findings.unattached_since(connection, **HERE, volumes=[], now=NOW) == {}
        assert findings.places(connection, checks=["idle_cpu"], resolved_after=NOW) == [tuple(HERE.values())]
        assert findings.open_since(connection, **HERE).keys() == {("idle_cpu", "i-1")}
    instance = dict.fromkeys(("instance_type", "state", "status", "cpu_percent", "memory_percent")) | {"id": "i-1"}
    for rows in ([instance], []):
        health._store(rows, now=NOW, **HERE, checked=True, measured=True)

    bucket, report_id = f"archive-{uuid4().hex}", str(ULID())
    s3.create_bucket(Bucket=bucket)
    for _ in range(2):
        report = generate_waste_report(
            PostgresStore(database.engine()),
            s3,
            bucket=bucket,
            job_id=report_id,
            job_type="waste_scan",
            now=NOW,
            places=None,
        )
    assert report.totals.all.findings == 1
    [listed] = get("/api/cloud/findings").body["findings"]
    assert get(f"/api/cloud/findings/{listed['id']}").body["resource_id"] == "i-1"
    assert len(get("/api/cloud/reports").body["reports"]) == 1

    for name in rules.OWN:
        assert clean(rules.RULES[name], after=400 * DAY) > 0, name


def clean(rule: Rule, *, after: timedelta = timedelta(0)) -> int:
    """Preview and apply a rule at a later moment."""
    engine, now = database.engine(), NOW + after
    kept = rule.keep
    found = preview(engine, rule, now=now, keep=kept)
    done = apply(engine, rule, now=now, keep=kept, stop=lambda: None, progress=lambda percent, message: None)
    assert (done.rows, done.failures) == (found.rows, ())
    return done.rows


@pytest.mark.usefixtures("any_moment")
def test_the_user_migrates_and_works_in_the_schema_and_nowhere_else(house: House, s3: Any) -> None:
    house.sql("CREATE TABLE customers (name text)")
    house.grant()
    house.grant()  # once more changes nothing
    with house.as_function():
        assert migrate.handler({}, None)["applied"]
        use_every_table(s3)
    for statement, said in {
        "SELECT FROM public.customers": "permission denied for table customers",
        "SELECT FROM public.media_files": "permission denied for table media_files",
        "DELETE FROM public.sessions": "permission denied for table sessions",
        "CREATE TABLE public.mine ()": "permission denied for schema public",
        "CREATE SCHEMA mine": "permission denied for database",
        "DROP SCHEMA lamplighter CASCADE": "must be owner of schema lamplighter",
    }.items():
        assert said in house.refusal(statement)


@pytest.mark.usefixtures("any_moment")
def test_the_administrator_migrates_and_the_user_works(house: House, s3: Any) -> None:
    house.grant("-v", "migrations=mine")
    with house.as_function(), pytest.raises(Permanent, match="has not the rights to migrate the schema lamplighter"):
        migrate.handler({}, None)
    assert migrate.handler({}, None)["applied"]
    with house.as_function():
        assert migrate.handler({}, None)["applied"] == [], "a deployment finds it done"
        use_every_table(s3)
    assert "permission denied for schema lamplighter" in house.refusal("CREATE TABLE lamplighter.mine ()")
    assert "must be owner of table findings" in house.refusal("ALTER TABLE lamplighter.findings ADD mine int")


@pytest.mark.usefixtures("any_moment")
def test_the_rights_that_the_script_names_are_enough_for_what_is_the_owners(
    house: House, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = GRANTS.read_text().replace("-- GRANT ", "GRANT ")
    assert named.count("\nGRANT ") == 7
    house.grant(script=named)
    house.sql(
        "INSERT INTO media_files (storage_key) VALUES ('a.jpg')",
        "INSERT INTO handled_downloads (timestamp) VALUES (now() - interval '1 year')",
        "INSERT INTO onboarding_requests (status, completed_at) VALUES ('completed', now() - interval '1 year')",
        "INSERT INTO sessions VALUES ('s', 'u', now() - interval '1 year')",
        "INSERT INTO tokens VALUES ('t', now() - interval '1 year')",
        "INSERT INTO cloud_accounts VALUES ('gone', now() - interval '1 year')",
        "INSERT INTO audit_log (actor, action, created_at) VALUES ('ann', 'login', now() - interval '1 year')",
        "INSERT INTO analysis_plans (status, job_id, updated_at) VALUES ('PENDING', 'gone', now() - interval '1 year')",
        f'ALTER ROLE "{house.user}" RESET search_path',  # the default rules name no schema
    )
    with house.as_function():
        migrate.handler({}, None)
        house.sql("INSERT INTO lamplighter.instances (id, account_id, region) VALUES ('i', 'gone', 'r')")
        for name in rules.RULES.keys() - rules.OWN:
            assert clean(rules.RULES[name]) == 1, name
        [plan] = plans._pending(NOW, None)
        assert plans._put_back([plan]) == 1
        assert audit_archive.preview(database.engine(), NOW).rows == 1
        house.sql("DELETE FROM audit_log t USING (SELECT 1) AS archived WHERE to_jsonb(t) IS NOT NULL")
        references = [Reference(table="media_files", column="storage_key")]
        with database.engine().connect() as connection:
            assert sum(len(batch.values) for batch in read(connection, references, max_lag=DAY)) == 1
    assert "permission denied" in house.refusal("SELECT created_at FROM public.media_files")
    assert "permission denied" in house.refusal("UPDATE public.analysis_plans SET job_id = 'mine'")


def test_a_rule_over_a_table_that_was_not_named_is_one_sentence(house: House) -> None:
    house.sql("CREATE TABLE customers (id int PRIMARY KEY, seen_at timestamptz)")
    house.grant()
    rule = Rule(name="mine", table="public.customers", clock="seen_at", keep=DAY, action=Delete())
    with house.as_function(), pytest.raises(Permanent, match=r"^mine: permission denied for table customers\.$"):
        preview(database.engine(), rule, now=NOW, keep=DAY)


@pytest.mark.usefixtures("any_moment")
def test_tables_that_were_not_named_fail_no_run(house: House) -> None:
    """S4: the user can read none of the owner's tables, and each scheduled preview of them failed."""
    house.grant()
    house.sql(f'ALTER ROLE "{house.user}" RESET search_path')
    bodies = {**cleanup.bodies(Settings()), "audit_log": rules.unless_missing("audit_log", audit_archive.body)}
    with house.as_function():
        migrate.handler({}, None)
        for name in {*rules.RULES, "audit_log"} - rules.OWN:
            run = PhaseRun(a_job(NOW), a_state(name), settings=Settings(), stop_at=NOW + DAY, clock=lambda: NOW)
            report = bodies[name](run)
            assert isinstance(report, rules.MissingTable), name
            assert "permission denied for table" in report.missing


def test_without_the_right_to_make_the_schema_the_sentence_says_what_to_run(house: House) -> None:
    with house.as_function(), pytest.raises(Permanent) as refused:
        migrate.handler({}, None)
    database_name = house.url.partition("?")[0].rpartition("/")[2]
    assert str(refused.value) == (
        f"The database user {house.user} may not create the schema lamplighter in the database {database_name}. As "
        f'an administrator of it, run `psql -v user="{house.user}" -f docs/grants.sql`; then deploy again.'
    )
    assert house.sql("SELECT to_regnamespace('lamplighter')") == [(None,)]


def test_former_tables_of_another_owner_are_named(house: House) -> None:
    """The function's user was changed since the tables were made."""
    house.sql("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "GRANT USAGE ON SCHEMA public TO public")
    with database.engine().begin() as connection:
        connection.exec_driver_sql((ROOT / "tests" / "documents" / "database-0003.sql").read_text())
    house.grant()
    house.sql(f'GRANT SELECT ON lamplighter_schema TO "{house.user}"', f'ALTER ROLE "{house.user}" RESET search_path')
    with house.as_function(), pytest.raises(Permanent, match=r"must be owner of table .*run the migrations as the own"):
        migrate.handler({}, None)
    assert migrate.handler({}, None)["applied"] == ["0004"], "as their owner"
