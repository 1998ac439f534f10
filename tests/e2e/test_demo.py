"""The demo's way of asking for jobs, where their schedules may be first."""

from __future__ import annotations

import pytest
from pg8000.native import Connection

from local.demo_jobs import Jobs
from local.demo_stage import Stage
from tests.e2e.deployed import Deployed


def test_a_run_that_holds_the_lock_is_waited_for(stack: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("/api/jobs/preview", {"job_type": "session_cleanup"})
    with Connection("postgres", host="127.0.0.1", port=stack.aws.first_port + 1, database="lamplighter") as database:
        jobs = Jobs(Stage(stack.aws, database))
        first = jobs.post(*asked)["job_id"]
        assert jobs.running("session_cleanup")
        job, _ = jobs.finished(*asked, "Again")
    assert job["job_id"] != first
    assert job["status"] == "completed"
    said = " ".join(capsys.readouterr().out.split())
    assert "Another run was there first and was waited for: session_cleanup is already" in said
    assert f"job {first}" in said
