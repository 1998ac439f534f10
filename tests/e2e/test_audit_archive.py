"""The audit archive in the deployed stack: its function, with its own role, over the stack's database and bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status
from local.stack import ROOT
from tests.e2e.deployed import Deployed, FunctionFailed, Machine


def read_back(stack: Deployed, *arguments: str) -> str:
    """What the documented command prints."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-m", "lamplighter.admin.audit_read", "--bucket", stack.archive, *arguments],
        cwd=ROOT / "functions",
        env=os.environ | keys | {"AWS_ENDPOINT_URL": stack.aws.endpoint_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def archive(stack: Deployed) -> dict[str, Any]:
    """What the phase reports, run by the state machine as its schedule does it."""
    output = Machine(stack, "cleanup", ("audit_archive",)).run()
    row = stack.ledger.get(output["job_id"])
    assert (row.job_type, row.status, row.progress) == ("audit_archive", Status.COMPLETED, 100)
    report: dict[str, Any] = output["phases"]["audit_log"]
    assert row.result is not None
    assert row.result["phases"]["audit_log"] == report
    return report


@pytest.fixture
def old_day(stack: Deployed) -> datetime:
    """Midnight of a day that is long over, without rows."""
    day = utc_now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=200)
    stack.sql("DELETE FROM audit_log WHERE created_at < now() - interval '80 days'")
    return day


def test_old_days_are_archived_and_read_back_by_the_documented_command(stack: Deployed, old_day: datetime) -> None:
    for hour in (0, 5, 23, 24):
        stack.sql(
            "INSERT INTO audit_log (actor, action, details, created_at) VALUES ('ann', 'login', '{\"ü\": 1}', :at)",
            at=old_day + timedelta(hours=hour),
        )
    stack.sql("INSERT INTO audit_log (actor, action) VALUES ('bob', 'stays')")
    lines = stack.sql("SELECT to_jsonb(t) FROM audit_log t WHERE actor = 'ann' ORDER BY created_at")
    expected = [line for (line,) in lines]
    preview = stack.invoke("audit-archive", {"phase": "audit_log", "dry_run": True})
    assert (preview["days"], preview["rows"]) == (2, 4)

    report = archive(stack)

    assert (report["status"], report["days"], report["rows"], report["removed"]) == ("completed", 2, 4, 4)
    assert stack.sql("SELECT count(*) FROM audit_log WHERE actor = 'ann'") == [(0,)]
    assert stack.sql("SELECT count(*) FROM audit_log WHERE actor = 'bob'") == [(1,)]
    first, last = old_day.date().isoformat(), (old_day + timedelta(days=1)).date().isoformat()
    printed = read_back(stack, "--from", first, "--to", last)
    assert [json.loads(line) for line in printed.splitlines()] == expected
    assert "unbroken" in read_back(stack, "--verify", "--head", report["head"]["sha256"])
    assert archive(stack)["rows"] == 0
    stack.sql("DELETE FROM audit_log WHERE actor = 'bob'")


def test_a_database_that_is_down_fails_the_phase_and_archives_nothing(stack: Deployed, old_day: datetime) -> None:
    stack.sql("INSERT INTO audit_log (actor, action, created_at) VALUES ('eve', 'login', :at)", at=old_day)
    stack.aws.postgres().stop()
    try:
        with pytest.raises(FunctionFailed, match="cannot be reached"):
            stack.invoke("audit-archive", {"phase": "audit_log", "dry_run": True})
    finally:
        stack.aws.postgres().start()
    assert stack.sql("SELECT count(*) FROM audit_log WHERE actor = 'eve'") == [(1,)]
    assert archive(stack)["removed"] == 1
