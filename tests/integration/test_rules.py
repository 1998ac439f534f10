"""The rules of `lamplighter.rules` on the tables that the migrations make."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from lamplighter.kernel.retention import Set, apply, preview
from lamplighter.kernel.settings import Settings
from lamplighter.rules import RULES, keep

NOW = datetime.now(UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


def insert(engine: Engine, table: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows with what they are expected to be: `stays...` or `goes...`."""
    with engine.begin() as connection:
        for row in rows.values():
            names = ", ".join(f'"{name}"' for name in row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def run(engine: Engine, name: str) -> int:
    """Applies a rule as the defaults have it; the preview must have said the same."""
    rule = RULES[name]
    kept = keep(rule, Settings())
    found = preview(engine, rule, now=NOW, keep=kept)
    applied = apply(engine, rule, now=NOW, keep=kept, stop=lambda: None, progress=lambda percent, message: None)
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
    insert(engine, "system_logs", rows)

    assert run(engine, "system_logs") == 1
    assert left(engine, "system_logs", "job_id") == {"stays"}


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
        "instances",
        {name: {"id": f"i-{name}", "account_id": name, "region": "r"} for name in (*accounts, "unknown")},
    )

    assert isinstance(RULES["deleted_accounts"].action, Set)
    assert run(engine, "deleted_accounts") == 1
    assert left(engine, "instances WHERE needs_review", "id") == {"i-gone"}
    assert len(left(engine, "instances", "id")) == 4
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
    insert(engine, "job_history", rows)

    assert run(engine, "job_history") == 1
    assert left(engine, "job_history", "job_id") == {"stays"}
