"""The rules of `lamplighter.rules` on the tables that the migrations make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from lamplighter import rules
from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.phased_job import PhaseRun, State, Turn
from lamplighter.kernel.retention import Set, apply, preview
from lamplighter.kernel.settings import Layer, RuleSettings, Settings, read, validated
from lamplighter.library import cleanup, rows
from lamplighter.rules import RULES
from local.stack import ROOT

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


pytestmark = pytest.mark.usefixtures("any_moment")


def insert(engine: Engine, table: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows with what they are expected to be: `stays...` or `goes...`."""
    with engine.begin() as connection:
        for row in rows.values():
            names = ", ".join(f'"{name}"' for name in row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def run(engine: Engine, name: str) -> int:
    """Applies a rule as the defaults have it; the preview must have said the same."""
    rule = rules.in_force(Settings())[name]
    found = preview(engine, rule, now=NOW, keep=rule.keep)
    applied = apply(engine, rule, now=NOW, keep=rule.keep, stop=lambda: None, progress=lambda percent, message: None)
    assert (applied.rows, applied.failed, applied.skipped, applied.stopped) == (found.rows, 0, 0, None)
    return applied.rows


def left(engine: Engine, table: str, key: str) -> set[Any]:
    with engine.connect() as connection:
        return set(connection.execute(text(f"SELECT {key} FROM {table}")).scalars())


@pytest.mark.parametrize("name", RULES)
def test_every_rule_fits_its_table(engine: Engine, name: str) -> None:
    assert run(engine, name) == 0


def test_downloads_go_after_fourteen_days(engine: Engine) -> None:
    """B4."""
    ages = {"stays": 14 * DAY - MINUTE, "goes": 14 * DAY + MINUTE}
    insert(engine, "handled_downloads", {name: {"timestamp": NOW - age} for name, age in ages.items()})

    assert run(engine, "downloads") == 1
    assert left(engine, "handled_downloads", '"timestamp"') == {NOW - ages["stays"]}


def test_system_logs_go_after_ninety_days(engine: Engine) -> None:
    """C16."""
    rows = {
        name: {
            "id": f"00000000-0000-0000-0000-{number:012}",
            "job_id": name,
            "job_type": "t",
            "level": "info",
            "message": "",
            "created_at": NOW - age,
        }
        for number, (name, age) in enumerate({"stays": 90 * DAY - MINUTE, "goes": 90 * DAY + MINUTE}.items())
    }
    insert(engine, "lamplighter.system_logs", rows)

    assert run(engine, "system_logs") == 1
    assert left(engine, "lamplighter.system_logs", "job_id") == {"stays"}


def test_completed_onboarding_requests_go_after_a_day(engine: Engine) -> None:
    """C16: those that failed, or were never completed, stay however old."""
    rows = {
        "stays": {"status": "completed", "completed_at": NOW - 24 * HOUR + MINUTE},
        "goes": {"status": "completed", "completed_at": NOW - 24 * HOUR - MINUTE},
        "stays, failed": {"status": "failed", "completed_at": NOW - 90 * DAY},
        "stays, open": {"status": "pending", "completed_at": None},
        "stays, without a moment": {"status": "completed", "completed_at": None},
    }
    insert(engine, "onboarding_requests", rows)

    assert run(engine, "onboarding_requests") == 1
    assert left(engine, "onboarding_requests", "id") == {1, 3, 4, 5}


def test_instances_of_a_deleted_account_are_flagged_and_never_deleted(engine: Engine) -> None:
    """C16; of an account that is not in the table nothing is known."""
    accounts = {"gone": NOW - DAY, "leaving": NOW + DAY, "here": None}
    insert(engine, "cloud_accounts", {name: {"id": name, "deleted_at": at} for name, at in accounts.items()})
    insert(
        engine,
        "lamplighter.instances",
        {name: {"id": f"i-{name}", "account_id": name, "region": "r"} for name in (*accounts, "unknown")},
    )

    assert isinstance(RULES["deleted_accounts"].action, Set)
    assert run(engine, "deleted_accounts") == 1
    assert left(engine, "lamplighter.instances WHERE needs_review", "id") == {"i-gone"}
    assert len(left(engine, "lamplighter.instances", "id")) == 4
    assert run(engine, "deleted_accounts") == 0


def test_only_expired_sessions_go(engine: Engine) -> None:
    """E1, FAILURES 13: a session that does not expire was deleted for its empty expiry (doorkeeper #1612)."""
    ends = {"goes": NOW - MINUTE, "stays": NOW + MINUTE, "stays, null": None, "stays, infinity": "infinity"}
    rows = {name: {"id": name, "user_id": "u", "expires_at": end} for name, end in ends.items()}
    insert(engine, "sessions", rows)

    assert run(engine, "sessions") == 1
    assert left(engine, "sessions", "id") == rows.keys() - {"goes"}


def test_only_tokens_that_are_of_no_more_use_go(engine: Engine) -> None:
    """E1, FAILURES 13: tokens without expiry (doorkeeper #1612) and such as could be refreshed (#1080) were deleted."""
    before, after = NOW - MINUTE, NOW + MINUTE
    ends: dict[str, tuple[Any, Any]] = {
        "goes": (before, before),
        "goes, has no refresh": (before, None),
        "stays": (after, None),
        "stays, refreshable": (before, after),
        "stays, refreshable for ever": (before, "infinity"),
        "stays, null": (None, None),
        "stays, null, refresh expired": (None, before),
        "stays, infinity": ("infinity", None),
        "stays, infinity, refresh expired": ("infinity", before),
    }
    rows = {name: {"id": name, "expires_at": at, "refresh_expires_at": to} for name, (at, to) in ends.items()}
    insert(engine, "tokens", rows)

    assert run(engine, "tokens") == 2
    assert left(engine, "tokens", "id") == {name for name in ends if name.startswith("stays")}


def test_findings_go_a_year_after_they_were_resolved_and_open_ones_never(engine: Engine) -> None:
    """C14."""
    resolved = {"stays": NOW - 365 * DAY + MINUTE, "goes": NOW - 365 * DAY - MINUTE, "stays open": None}
    rows = {
        name: {
            "account_id": "111122223333",
            "region": "eu-west-1",
            "check_id": "idle_cpu",
            "resource_id": name,
            "resource_type": "AwsEc2Instance",
            "kind": "idle_instance",
            "title": "An instance is idle",
            "severity": "low",
            "confidence": 1,
            "status": "resolved" if at else "open",
            "first_seen_at": NOW - 999 * DAY,
            "last_seen_at": NOW - 998 * DAY,
            "resolved_at": at,
            "job_id": "job",
        }
        for name, at in resolved.items()
    }
    insert(engine, "lamplighter.findings", rows)

    assert run(engine, "resolved_findings") == 1
    assert left(engine, "lamplighter.findings", "resource_id") == {"stays", "stays open"}


def test_reports_go_after_a_year(engine: Engine) -> None:
    """C7: the bucket keeps their documents as long."""
    rows = {
        name: {
            "job_id": name,
            "job_type": "waste_scan",
            "created_at": NOW - age,
            "monthly_usd": 1,
            "totals": "{}",
            "documents": "{}",
        }
        for name, age in {"stays": 365 * DAY - MINUTE, "goes": 365 * DAY + MINUTE}.items()
    }
    insert(engine, "lamplighter.cloud_reports", rows)

    assert run(engine, "cloud_reports") == 1
    assert left(engine, "lamplighter.cloud_reports", "job_id") == {"stays"}


def test_the_history_goes_thirty_days_after_it_was_copied(engine: Engine) -> None:
    """B3: not after the job finished, which may be longer ago."""
    rows = {
        name: {
            "job_id": name,
            "job_type": "t",
            "status": "completed",
            "created_at": NOW - 99 * DAY,
            "finished_at": NOW - 99 * DAY,
            "copied_at": NOW - age,
            "job": "{}",
        }
        for name, age in {"stays": 30 * DAY - MINUTE, "goes": 30 * DAY + MINUTE}.items()
    }
    insert(engine, "lamplighter.job_history", rows)

    assert run(engine, "job_history") == 1
    assert left(engine, "lamplighter.job_history", "job_id") == {"stays"}


# -- docs/adding-a-rule.md -------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "adding-a-rule.md").read_text()
ADDED, APPLIED, LARAVEL, DJANGO = (
    read(block, source="the page") for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """The page's tables and indexes."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.rollback()  # ends the transaction that the pool's ping began
        connection.execution_options(isolation_level="AUTOCOMMIT")
        for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL):
            for statement in filter(str.strip, block.split(";")):
                connection.exec_driver_sql(statement)
    return engine


def under(*documents: Mapping[str, object]) -> Settings:
    """What the documents make together, as the template parameter and the SSM parameter do."""
    settings = validated([Layer.of(document, source="the page") for document in documents])
    rules.in_force(settings)
    return settings


def work(name: str, settings: Settings, *, dry_run: bool = False) -> rows.Report:
    """One run of a rule as a phase of the cleanup."""
    report = cleanup.bodies(settings)[name](
        PhaseRun(a_job(NOW, dry_run=dry_run), a_state(name), settings=settings, stop_at=NOW + DAY, clock=lambda: NOW)
    )
    assert isinstance(report, rows.Report)
    return report


def a_job(now: datetime, *, dry_run: bool = False) -> Job:
    return Job(
        job_id=str(uuid4()),
        job_type="database_cleanup",
        status=Status.RUNNING,
        policy=Policy(timeout=HOUR),
        created_at=now,
        run_at=now,
        dry_run=dry_run,
    )


def a_state(name: str) -> State:
    turn = Turn(name=name, function="cleanup", span=(0, 100))
    return State(job_id="j", attempt=1, continuation=0, job_type="database_cleanup", left=[turn])


def test_the_pages_carts_go_once_they_are_applied_and_are_then_kept_longer(shop: Engine) -> None:
    made = {
        "stays": {"cart_no": 1, "touched_at": NOW - 60 * DAY + HOUR, "state": "abandoned"},
        "goes": {"cart_no": 2, "touched_at": NOW - 60 * DAY - MINUTE, "state": "abandoned"},
        "goes later, too": {"cart_no": 5, "touched_at": NOW - 91 * DAY, "state": "abandoned"},
        "stays, bought": {"cart_no": 3, "touched_at": NOW - 99 * DAY, "state": "bought"},
        "stays, untouched": {"cart_no": 4, "touched_at": None, "state": "abandoned"},
    }
    insert(shop, "shop.carts", made)

    for dry_run in (True, False):
        previewed = work("carts", under(ADDED), dry_run=dry_run)
        assert (previewed.dry_run, previewed.rows, previewed.oldest) == (True, 2, NOW - 91 * DAY)
    assert len(left(shop, "shop.carts", "cart_no")) == 5
    applied = work("carts", under(ADDED, APPLIED))
    assert (applied.dry_run, applied.rows) == (False, 1)
    assert left(shop, "shop.carts", "cart_no") == {1, 2, 3, 4}


def test_the_pages_visits_lose_their_address_and_are_archived(shop: Engine) -> None:
    ages = {1: 6 * DAY, 2: 8 * DAY, 3: 364 * DAY, 4: 366 * DAY}
    made = {
        str(number): {"id": number, "seen_at": NOW - age, "page": "/", "address": "192.0.2.7"}
        for number, age in ages.items()
    }
    insert(shop, "shop.visits", made)
    settings = under(ADDED, APPLIED)
    assert work("orphaned_carts", settings).rows == 0, "no customers and no carts are no fault"

    assert [work(name, settings).rows for name in rules.added(settings)] == [0, 3, 1, 0]
    assert [work(name, settings).rows for name in rules.added(settings)] == [0, 0, 0, 0]
    assert left(shop, "shop.visits WHERE address IS NULL", "id") == {2, 3}
    assert left(shop, "shop.visits", "id") == {1, 2, 3}
    assert left(shop, "shop.visits_archive WHERE archived_at IS NOT NULL", "id") == {4}


def test_the_pages_carts_of_customers_that_are_gone_are_marked(shop: Engine) -> None:
    insert(shop, "shop.customers", {"a": {"id": 1, "name": "a"}})
    customers = {1: 1, 2: 9, 3: None}
    made = {str(n): {"cart_no": n, "customer_id": customer, "state": "open"} for n, customer in customers.items()}
    insert(shop, "shop.carts", made)

    assert work("orphaned_carts", under(ADDED)).rows == 1
    assert work("orphaned_carts", under(ADDED, APPLIED)).rows == 1
    assert left(shop, "shop.carts WHERE state = 'orphaned'", "cart_no") == {2}


@pytest.mark.parametrize(
    ("document", "script", "expected"),
    [
        (
            LARAVEL,
            "DROP TABLE sessions; CREATE TABLE sessions (id varchar(255) PRIMARY KEY, user_id bigint, ip_address"
            " varchar(45), user_agent text, payload text NOT NULL, last_activity integer NOT NULL);"
            " CREATE INDEX ON sessions (last_activity);"
            " INSERT INTO sessions SELECT n, n, '', '', '', extract(epoch FROM timestamptz '2026-11-22 06:10Z')"
            " - n * 3600 FROM generate_series(1, 100) AS n",
            52,
        ),
        (
            DJANGO,
            "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text NOT NULL, expire_date"
            " timestamptz NOT NULL); INSERT INTO django_session SELECT n, '', timestamptz '2026-11-22 06:10Z'"
            " - (n - 50) * interval '1 hour' FROM generate_series(1, 100) AS n",
            50,
        ),
    ],
    ids=["Laravel", "Django"],
)
def test_the_pages_default_rules_fit_the_tables_of_frameworks(
    engine: Engine, document: Mapping[str, object], script: str, expected: int
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(script)
    assert work("sessions", under(document)).rows == expected
    applied = under(document, {"retention": {"rules": {"sessions": {"apply": True}}}})
    assert work("sessions", applied).rows == expected
    assert work("sessions", applied).rows == 0


def test_the_page_has_every_field_of_a_rule_with_its_default() -> None:
    table = PAGE.partition("| field | default | meaning |")[2].partition("\n\n")[0]
    shown = [name for row in table.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(shown) == sorted(RuleSettings.model_fields)
    assert f"may add {rules.MOST} rules" in PAGE


def test_the_privileges_that_the_page_names_are_enough(shop: Engine) -> None:
    insert(shop, "shop.visits", {"goes": {"id": 1, "seen_at": NOW - 999 * DAY, "page": "/"}})
    insert(shop, "shop.customers", {"a": {"id": 1, "name": "a"}})
    insert(shop, "shop.carts", {"goes": {"cart_no": 1, "customer_id": 2, "state": "open"}})
    with shop.begin() as connection:
        for statement in (
            "CREATE ROLE sweeper LOGIN",
            "GRANT USAGE ON SCHEMA shop TO sweeper",
            "GRANT SELECT, DELETE, UPDATE (page) ON shop.visits TO sweeper",
            "GRANT INSERT ON shop.visits_archive TO sweeper",
            "GRANT SELECT, UPDATE (state) ON shop.carts TO sweeper",
            "GRANT SELECT ON shop.customers TO sweeper",
        ):
            connection.execute(text(statement))
    try:
        with shop.connect() as connection:
            connection.execute(text("SET ROLE sweeper"))
            connection.commit()
        assert work("visits", under(ADDED, APPLIED)).rows == 1
        assert work("orphaned_carts", under(ADDED, APPLIED)).rows == 1
    finally:
        shop.dispose()
        with shop.begin() as connection:
            connection.execute(text("DROP OWNED BY sweeper"))
            connection.execute(text("DROP ROLE sweeper"))
