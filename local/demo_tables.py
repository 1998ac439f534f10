"""The demo's rows that have had their time, among those that have not: downloads, plans, sessions, tokens, audit log.

Put anew by every run, for what a run removes is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pg8000.native import Connection

AUDITED_DAYS: Final = (100, 99, 98)
"""Days ago on which somebody did something worth auditing; by default the database keeps 90."""

_FILLED: Final = {
    "handled_downloads": """
        INSERT INTO handled_downloads (timestamp)
        SELECT now() - n * interval '0.4 minutes' FROM generate_series(1, 100000) n""",  # back to 28 days ago
    "onboarding_requests": """
        INSERT INTO onboarding_requests (status, completed_at)
        SELECT CASE n % 3 WHEN 0 THEN 'pending' ELSE 'completed' END,
               CASE n % 3 WHEN 0 THEN NULL ELSE now() - n * interval '10 minutes' END FROM generate_series(1, 600) n""",
    "cloud_accounts": """
        INSERT INTO cloud_accounts (id, deleted_at)
        SELECT '1000000000' || 10 + n, CASE WHEN n > 8 THEN now() - n * interval '1 day' END
        FROM generate_series(1, 10) n""",
    "lamplighter.instances": """
        INSERT INTO lamplighter.instances (id, account_id, region)
        SELECT 'i-' || lpad(to_hex(n), 17, '0'), '1000000000' || 11 + n % 10, 'eu-central-1'
        FROM generate_series(1, 200) n""",
    "sessions": """
        INSERT INTO sessions (id, user_id, expires_at)
        SELECT 'session-' || n, 'user-' || n % 700, now() + (n - 20000) * interval '1 minute'
        FROM generate_series(1, 30000) n""",
    "tokens": """
        INSERT INTO tokens (id, expires_at, refresh_expires_at)
        SELECT 'token-' || n, CASE WHEN n % 10 > 0 THEN now() + (n - 15000) * interval '1 minute' END,
               CASE WHEN n % 3 = 0 THEN now() + (n - 5000) * interval '5 minutes' END
        FROM generate_series(1, 20000) n""",
    "audit_log": f"""
        INSERT INTO audit_log (actor, action, target, details, created_at)
        SELECT 'user-' || n % 50, (ARRAY['login', 'export', 'grant', 'delete'])[1 + n % 4], 'course-' || n % 300,
               jsonb_build_object('ip', '10.0.0.' || n % 250, 'n', n),
               date_trunc('day', now(), 'UTC') - day * interval '1 day' + n * interval '10 seconds'
        FROM unnest(ARRAY{list(AUDITED_DAYS)}) day, generate_series(0, 4999) n""",
}

_OLD_LOGS: Final = """
    INSERT INTO lamplighter.system_logs (id, job_id, job_type, level, message, created_at)
    SELECT gen_random_uuid(), '', 'demo', 'INFO', 'completed', now() - interval '88 days' - n * interval '10 minutes'
    FROM generate_series(1, 3000) n"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """How the demo's analysis plans stand."""

    stuck: int
    """Waiting for a job that does not run."""
    waiting: int
    """Waiting for a job that does."""


def fill(database: Connection, live_jobs: Iterable[str]) -> Plans:
    """Put all rows anew. Some plans wait for one of `live_jobs` (ids), others for jobs that nobody knows."""
    for table, statement in _FILLED.items():
        database.run(f"TRUNCATE {table}")
        database.run(statement)
    database.run("DELETE FROM lamplighter.system_logs WHERE job_type = 'demo'")
    database.run(_OLD_LOGS)
    database.run("TRUNCATE analysis_plans")
    waiting = list(live_jobs)
    stuck = [f"01GONE{n:020}" for n in range(60)]
    database.run(
        "INSERT INTO analysis_plans (status, job_id, updated_at)"
        " SELECT 'PENDING', unnest(CAST(:jobs AS text[])), now() - interval '1 hour'"
        " UNION ALL SELECT 'APPLIED', NULL, now() - interval '2 days' FROM generate_series(1, 300)",
        jobs=[*stuck, *waiting],
    )
    return Plans(stuck=len(stuck), waiting=len(waiting))


def count(database: Connection, table: str, where: str = "true") -> int:
    """Rows of a table, counted apart from any job."""
    ((rows,),) = database.run(f"SELECT count(*) FROM {table} WHERE {where}")
    return int(rows)
