"""The cleanup's state machine in the deployed stack: by hand, by schedule, cancelled, aborted, without its database
(REQUIREMENTS B1-B11, K3, K6-K8, K11, E8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy, Status, Trigger
from tests.e2e.deployed import Deployed, FunctionFailed, Machine, Turnstile, eventually

B9 = (
    "status",
    "cleaned_jobs",
    "cleaned_job_details",
    "old_jobs_deleted",
    "old_downloads_deleted",
    "stuck_plans_updated",
    "errors",
)


@pytest.fixture(scope="module")
def machine(stack: Deployed) -> Machine:
    """The state machine."""
    return Machine(stack, "cleanup", ("cleanup", "database_cleanup", "session_cleanup", "token_cleanup"))


@pytest.fixture(autouse=True)
def tidy(stack: Deployed, machine: Machine) -> Iterator[None]:
    """Nothing that another test left is there to be cleaned."""
    for table in ("handled_downloads", "analysis_plans", "sessions", "tokens"):
        stack.sql(f"DELETE FROM {table}")
    yield


def finished(stack: Deployed, job_type: str, *, days: int) -> Job:
    """A job that completed some days ago."""
    then = Ledger(stack.ledger.store, clock=lambda: utc_now() - timedelta(days=days))
    return then.complete(then.start(then.new_job(job_type, Policy(timeout=timedelta(hours=1)))), {"n": 1})


def fill(stack: Deployed, job_type: str) -> dict[str, Any]:
    """Something for each phase, beside what is none of its business."""
    old, young = finished(stack, job_type, days=31), finished(stack, job_type, days=29)
    for days, rows in ((15, 3), (13, 2)):
        at = utc_now() - timedelta(days=days)
        stack.sql("INSERT INTO handled_downloads (timestamp) SELECT :at FROM generate_series(1, :n)", at=at, n=rows)
    plan = "INSERT INTO analysis_plans (status, job_id, updated_at) VALUES ('PENDING', :job_id, :at)"
    live = stack.seed(job_type, timeout=timedelta(hours=9), pickup=timedelta(hours=9))
    for job_id in (None, young.job_id, live.job_id):
        stack.sql(plan, job_id=job_id, at=utc_now() - timedelta(hours=1))
    stale = stack.ledger.claim(stack.seed(job_type).job_id, attempt=1, continuation=0)
    stack.backdate(stale.job_id)
    return {"old": old, "young": young, "live": live, "stale": stale}


def left(stack: Deployed) -> tuple[int, int]:
    """Downloads, and plans that are still pending."""
    (downloads,) = stack.sql("SELECT count(*) FROM handled_downloads")
    (plans,) = stack.sql("SELECT count(*) FROM analysis_plans WHERE status = 'PENDING'")
    return downloads[0], plans[0]


def test_a_preview_and_then_the_run_say_the_same_in_b9s_words(stack: Deployed, machine: Machine, job_type: str) -> None:
    """B2-B5, B9, K11: and between the two nothing has changed."""
    made = fill(stack, job_type)
    preview = machine.run(dry_run=True)
    assert left(stack) == (5, 3)
    assert stack.ledger.get(made["old"].job_id) == made["old"]
    output = machine.run()
    assert output.keys() == {"job_id", "finished", *B9} == preview.keys()
    names = ("status", "old_jobs_deleted", "old_downloads_deleted", "stuck_plans_updated", "errors")
    assert [output[name] for name in names] == [preview[name] for name in names] == ["completed", 1, 3, 2, []]
    assert left(stack) == (2, 1)
    stale = stack.ledger.get(made["stale"].job_id)
    assert (stale.attempt, [error.reason for error in stale.errors]) == (2, ["deadline"])
    if preview["cleaned_jobs"]:  # else the timeout checker was faster
        (item,) = preview["cleaned_job_details"]
        assert (item["job_id"], item["status"], item["timeout_minutes"]) == (stale.job_id, "retried", 60)
    assert stack.ledger.store.get(made["old"].job_id) is None
    assert stack.sql("SELECT status FROM lamplighter.job_history WHERE job_id = :id", id=made["old"].job_id) == [
        ("completed",)
    ]
    assert stack.ledger.get(made["young"].job_id) == made["young"]
    assert stack.ledger.get(made["live"].job_id) == made["live"]

    row = stack.ledger.get(output["job_id"])
    assert (row.status, row.progress, row.trigger) == (Status.COMPLETED, 100, Trigger.CLI)
    assert row.result == {name: output[name] for name in B9}
    history = stack.history(row.job_id, rows=2)
    assert [log.message for log in history] == ["started, attempt 1 of 4", "completed"]
    assert history[1].details["result"] == row.result
    measured = stack.logs("cleanup", '"_aws"')
    assert any(line.get("Items") in ([6], [7]) for line in measured if line["job"] == "cleanup")


def test_a_tick_of_the_schedule_runs_it_and_is_noted(stack: Deployed, machine: Machine) -> None:
    """B6, B11, K6, K12."""
    row, tick = stack.ticked("cleanup")
    assert (row.status, row.trigger) == (Status.COMPLETED, Trigger.SCHEDULE)
    assert row.execution_arn is not None and row.execution_arn.startswith(
        machine.arn.replace("stateMachine", "execution")
    )
    assert row.result is not None and row.result.keys() == set(B9)
    eventually(lambda: stack.note("cleanup"))
    again = machine.run(**tick)
    assert (again["status"], again["job_id"]) == ("duplicate", row.job_id)


def test_the_watch_can_tell_when_every_schedule_is_due(stack: Deployed) -> None:
    """K12: those that are cron expressions included."""
    assert stack.invoke("schedule-watch", {})["unwatched"] == []


def test_a_tick_past_its_misfire_grace_is_skipped_and_its_row_says_so(stack: Deployed, machine: Machine) -> None:
    """B6."""
    late = utc_now() - timedelta(minutes=10)
    tick = {"schedule": "token-cleanup", "scheduled_time": late.strftime("%Y-%m-%dT%H:%M:%SZ")}
    output = machine.run(job_type="token_cleanup", **tick)
    row = stack.ledger.get(output["job_id"])
    assert (row.status, row.started_at) == (Status.CANCELLED, None)
    assert row.result == {"status": "skipped", "reason": "The tick came 10 min late; its misfire grace is 5 min."}
    assert [log.message for log in stack.history(row.job_id, rows=1)] == ["cancelled"]
    assert stack.note("token-cleanup") is None
    assert stack.logs("cleanup", "misfire grace")


def test_only_the_selected_phases_run_and_other_types_have_their_own(stack: Deployed, machine: Machine) -> None:
    """B11, C16, E1."""
    stack.sql("INSERT INTO sessions VALUES ('e2e', 'u', :at)", at=utc_now() - timedelta(hours=1))
    stack.sql("INSERT INTO tokens VALUES ('e2e', :at, NULL)", at=utc_now() - timedelta(hours=1))
    stack.sql("INSERT INTO handled_downloads (timestamp) VALUES (:at)", at=utc_now() - timedelta(days=15))
    output = machine.run(phases=["sessions"])
    assert (output["old_downloads_deleted"], output["phases"]["sessions"]["rows"]) == (0, 1)
    assert left(stack) == (1, 0)
    assert machine.run(job_type="token_cleanup")["phases"]["tokens"]["rows"] == 1
    assert machine.run(job_type="session_cleanup")["phases"]["sessions"]["rows"] == 0
    database = machine.run(job_type="database_cleanup")
    assert (database["status"], database["errors"]) == ("completed", [])
    assert {"system_logs", "onboarding_requests", "deleted_accounts", "job_history"} <= database["phases"].keys()


def test_the_database_cleanup_deletes_what_expired_and_only_flags_instances(stack: Deployed, machine: Machine) -> None:
    """C16."""
    now = utc_now()
    log = (
        "INSERT INTO lamplighter.system_logs (id, job_id, job_type, level, message, created_at)"
        " VALUES (gen_random_uuid(), '', :type, 'INFO', '', :at)"
    )
    for kind, days in (("e2e_old", 91), ("e2e_young", 89)):
        stack.sql(log, type=kind, at=now - timedelta(days=days))
    request = "INSERT INTO onboarding_requests (status, completed_at) VALUES (:status, :at)"
    for status, hours in (("completed", 25), ("completed", 23), ("rejected", 25)):
        stack.sql(request, status=status, at=now - timedelta(hours=hours))
    stack.sql("INSERT INTO onboarding_requests (status) VALUES ('completed')")
    stack.sql("INSERT INTO cloud_accounts VALUES ('gone', :at), ('there', NULL)", at=now - timedelta(days=1))
    stack.sql(
        "INSERT INTO lamplighter.instances (id, account_id, region) VALUES ('i-1', 'gone', 'r'), ('i-2', 'there', 'r')"
    )
    assert machine.run(job_type="database_cleanup")["status"] == "completed"
    assert stack.sql(
        "SELECT job_type FROM lamplighter.system_logs WHERE job_type LIKE 'e2e!_%' ESCAPE '!' AND job_id = ''"
    ) == [("e2e_young",)]
    requests = stack.sql("SELECT status, completed_at < now() - interval '1 day' FROM onboarding_requests")
    assert sorted(requests, key=str) == [("completed", False), ("completed", None), ("rejected", True)]
    assert stack.sql("SELECT id, needs_review FROM lamplighter.instances ORDER BY id") == [
        ("i-1", True),
        ("i-2", False),
    ]


def test_bad_input_is_refused_in_a_sentence_and_leaves_no_row(stack: Deployed, machine: Machine) -> None:
    before = stack.of_type("cleanup")
    ended = machine.end(machine.start(phases=["plan"]))
    assert (ended.status, ended.error) == ("FAILED", "InvalidParams")
    assert json.loads(ended.cause)["errorMessage"].startswith(
        "phases: plan is no phase of cleanup (it takes stale_jobs,"
    )
    assert stack.of_type("cleanup") == before


def test_a_phase_that_crashes_is_recorded_and_the_others_run(stack: Deployed, machine: Machine) -> None:
    """B10."""
    stack.sql("INSERT INTO sessions VALUES ('e2e', 'u', :at)", at=utc_now() - timedelta(hours=1))
    stack.sql("ALTER TABLE analysis_plans RENAME COLUMN updated_at TO changed_at")
    try:
        output = machine.run(phases=["plans", "sessions"])
    finally:
        stack.sql("ALTER TABLE analysis_plans RENAME COLUMN changed_at TO updated_at")
    assert (output["status"], output["phases"]["sessions"]["rows"]) == ("completed_with_errors", 1)
    (error,) = output["errors"]
    assert error == "plans: Permanent: analysis_plans: column analysis_plans.updated_at does not exist."
    assert stack.ledger.get(output["job_id"]).status is Status.COMPLETED
    assert stack.logs("cleanup", "a phase failed")[-1]["exception"].startswith("Traceback")


def test_of_two_that_are_started_together_one_is_refused_with_the_holders_name(
    stack: Deployed, machine: Machine
) -> None:
    """K3."""
    with Turnstile(stack.engine, "analysis_plans") as turnstile:
        refused, row = machine.together(turnstile, phases=["plans"])
    assert f": job {row.job_id} (attempt " in refused.cause
    assert row.status is Status.COMPLETED


def test_a_run_can_be_cancelled_and_says_what_it_had_done(stack: Deployed, machine: Machine) -> None:
    """K7, B8."""
    stack.sql("INSERT INTO handled_downloads (timestamp) VALUES (:at)", at=utc_now() - timedelta(days=15))
    stack.sql("INSERT INTO sessions VALUES ('e2e', 'u', :at)", at=utc_now() - timedelta(hours=1))
    with Turnstile(stack.engine, "analysis_plans") as turnstile:
        arn = machine.start(phases=["downloads", "plans", "sessions"])
        turnstile.wait()
        row = machine.row(arn)
        assert row.status is Status.RUNNING
        stack.invoke("job-control", {"action": "cancel", "job_id": row.job_id})
    output = machine.end(arn).output
    assert (output["status"], output["finished"], output["old_downloads_deleted"]) == ("cancelled", True, 1)
    row = stack.ledger.get(row.job_id)
    assert row.status is Status.CANCELLED
    assert row.result is not None and "sessions" not in row.result.get("phases", {})
    assert stack.sql("SELECT id FROM sessions") == [("e2e",)]
    assert machine.run(phases=["sessions"])["phases"]["sessions"]["rows"] == 1, "the lock is free"


def test_an_execution_that_dies_leaves_no_job_running_past_its_deadline(stack: Deployed, machine: Machine) -> None:
    """B6, K3; FAILURES 3: the rescue job stalled, and held its lock."""
    stack.sql("INSERT INTO handled_downloads (timestamp) VALUES (:at)", at=utc_now() - timedelta(days=15))
    with Turnstile(stack.engine, "analysis_plans") as turnstile:
        arn = machine.start(phases=["downloads", "plans"])
        turnstile.wait()
        row = machine.row(arn)
        machine.states.stop_execution(executionArn=arn)
        assert machine.end(arn).status == "ABORTED"
        assert machine.end(machine.start()).error == "AlreadyRunning"
    stack.backdate(row.job_id)
    row = stack.becomes(row.job_id, "completed", "failed", checking=True)
    assert (row.status, row.attempt) == (Status.COMPLETED, 2)
    assert row.errors[0].message in ("Its execution is ABORTED.", "The attempt ran longer than its timeout of 5 min.")
    assert row.result is not None and row.result["old_downloads_deleted"] == 1, "from where the first attempt was"
    assert machine.run()["status"] == "completed"


def test_without_its_database_it_fails_is_retried_and_ends_when_the_database_is_back(
    stack: Deployed, machine: Machine, job_type: str
) -> None:
    """B10, K5, E8."""
    stale = stack.ledger.claim(stack.seed(job_type).job_id, attempt=1, continuation=0)
    stack.backdate(stale.job_id)
    postgres = stack.aws.postgres()
    postgres.stop()
    try:
        began = utc_now()
        ended = machine.end(machine.start())
        assert (ended.status, ended.error) == ("FAILED", "DatabaseUnavailable")
        (row,) = [job for job in stack.of_type("cleanup") if job.created_at >= began]
        assert (row.errors[0].type, row.errors[0].reason) == ("DatabaseUnavailable", "error")
        assert stack.ledger.get(stale.job_id).attempt == 2, "what needs no database was done"
    finally:
        postgres.start()
    row = stack.becomes(row.job_id, "completed", "failed", checking=True)
    assert row.status is Status.COMPLETED and row.attempt > 1


def test_a_phase_can_be_previewed_straight_from_its_function(stack: Deployed, machine: Machine) -> None:
    stack.sql("INSERT INTO handled_downloads (timestamp) VALUES (:at)", at=utc_now() - timedelta(days=15))
    told = stack.invoke("cleanup", {"phase": "downloads", "dry_run": True})
    assert (told["rows"], told["dry_run"], left(stack)) == (1, True, (1, 0))
    with pytest.raises(
        FunctionFailed, match="Permanent: dry_run: input should be True, got False; takes the state of a run"
    ):
        stack.invoke("cleanup", {"phase": "downloads", "dry_run": False})
