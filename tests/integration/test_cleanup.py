"""The cleanup: its own state machine and handlers, in process, over a real Postgres (REQUIREMENTS B1-B11, C16)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from lamplighter import rules
from lamplighter.kernel import phases
from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.job import Run
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Status
from lamplighter.kernel.settings import parse
from lamplighter.library import cleanup, plans, stale_jobs
from local.settings import applied
from tests.integration.cleanup_world import SYNC, World
from tests.state_machine import ExecutionFailed

RULES = "LAMPLIGHTER_RETENTION_RULES"
OLD, YOUNG = timedelta(days=15), timedelta(days=13)


@pytest.fixture
def world(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("STACK_NAME", "stack")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Lamplighter")
    monkeypatch.setenv(RULES, json.dumps(applied()["rules"]))
    with World(engine).installed() as world:
        yield world


def fill(world: World) -> dict[str, Any]:
    """Something to do for each phase of the type `cleanup`, beside as much that is none of its business."""
    stale = world.ago(timedelta(minutes=42))
    live = world.ago(timedelta(minutes=29))
    old = world.finished(timedelta(days=31))
    young = world.finished(timedelta(days=29))
    world.downloads(3, OLD)
    world.downloads(4, YOUNG)
    stuck = [world.plan(None), world.plan("gone"), world.plan(old.job_id), world.plan(young.job_id)]
    kept = [world.plan(live.job_id), world.plan("gone", age=timedelta(minutes=4)), world.plan("gone", status="APPLIED")]
    return {"stale": stale, "live": live, "old": old, "young": young, "stuck": stuck, "kept": kept}


def expected(stale: Any, **changes: Any) -> dict[str, Any]:
    item = {
        "job_id": stale.job_id,
        "job_type": "sync",
        "status": "retried",
        "timeout_minutes": 30.0,
        "elapsed_minutes": 42.0,
    }
    return {
        "status": "completed",
        "cleaned_jobs": 1,
        "cleaned_job_details": [item],
        "old_jobs_deleted": 1,
        "old_downloads_deleted": 3,
        "stuck_plans_updated": 4,
        "errors": [],
    } | changes


def test_the_result_of_a_cleanup_is_b9s_exactly(world: World) -> None:
    made = fill(world)
    output = world.run()
    row = world.ledger.get(output["job_id"])
    assert row.result == expected(made["stale"])
    assert output == {"job_id": row.job_id, "finished": True} | expected(made["stale"])
    assert (row.status, row.progress, world.store.locks) == (Status.COMPLETED, 100, {})

    assert world.ledger.get(made["stale"].job_id).attempt == 2
    assert world.ledger.get(made["live"].job_id) == made["live"]
    assert world.store.get(made["old"].job_id) is None
    assert world.store.get(made["young"].job_id) == made["young"]
    assert world.count("lamplighter.job_history") == 1
    assert world.count("handled_downloads") == 4
    found = world.plans()
    assert {found[plan] for plan in made["stuck"]} == {"DRAFT"}
    assert [found[plan] for plan in made["kept"]] == ["PENDING", "PENDING", "APPLIED"]

    again = world.run()
    assert [again[name] for name in ("cleaned_jobs", "old_jobs_deleted", "old_downloads_deleted")] == [0, 0, 0]
    assert again["stuck_plans_updated"] == 0


def test_a_preview_finds_the_same_and_changes_nothing(world: World) -> None:
    """REQUIREMENTS K11, B11."""
    made = fill(world)
    rows, before = dict(world.store.items), (world.plans(), world.count("handled_downloads"))
    output = world.run(dry_run=True)
    row = world.ledger.get(output["job_id"])
    assert row.dry_run and row.result == expected(made["stale"])
    assert {key: item for key, item in world.store.items.items() if key in rows} == rows
    assert (world.plans(), world.count("handled_downloads")) == before
    assert world.count("lamplighter.job_history") == 0


def test_only_the_selected_phases_run(world: World) -> None:
    made = fill(world)
    world.sql("INSERT INTO sessions VALUES ('s', 'u', :at)", at=world.now - timedelta(hours=1))
    output = world.run(phases=["sessions", "downloads"])
    assert (output["old_downloads_deleted"], output["cleaned_jobs"], output["stuck_plans_updated"]) == (3, 0, 0)
    assert output["phases"]["sessions"]["rows"] == 1
    assert world.ledger.get(made["stale"].job_id) == made["stale"]
    assert world.count("sessions") == 0


# --- What is the owner's is named before it is touched (S4) ---------------------------------------------------------


def test_what_the_settings_do_not_apply_is_only_previewed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S4: on schedule, within the run in which Lamplighter's own is cleaned; FAILURES 23."""
    monkeypatch.delenv(RULES)
    made = fill(world)
    output = world.run(schedule="cleanup", scheduled_time=world.now.isoformat())
    assert output == {"job_id": output["job_id"], "finished": True} | expected(
        made["stale"], previewed=["downloads", "plans"]
    )
    assert world.store.get(made["old"].job_id) is None
    assert world.count("handled_downloads") == 7
    assert set(world.plans().values()) == {"PENDING", "APPLIED"}
    assert not world.ledger.get(output["job_id"]).dry_run  # some of it acted

    monkeypatch.setenv(RULES, '{"downloads": {"apply": true}}')
    output = world.run()
    assert (output["previewed"], output["old_downloads_deleted"]) == (["plans"], 3)
    assert (world.count("handled_downloads"), world.plans()[made["stuck"][0]]) == (4, "PENDING")


@pytest.mark.parametrize(
    "name", [name for name in rules.names() if name in cleanup.BODIES and name != "deleted_accounts"]
)
def test_each_rule_acts_when_it_is_lamplighters_own_or_applied(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = name in ("system_logs", "job_history", "resolved_findings", "cloud_reports")
    monkeypatch.delenv(RULES)
    output = world.run(job_type="database_cleanup", phases=[name])
    assert output["phases"][name]["dry_run"] is not own
    assert world.ledger.get(output["job_id"]).dry_run is not own
    monkeypatch.setenv(RULES, json.dumps({name: {"apply": True}}))
    assert world.run(job_type="database_cleanup", phases=[name])["phases"][name]["dry_run"] is False
    assert world.run(job_type="database_cleanup", phases=[name], dry_run=True)["phases"][name]["dry_run"] is True


def test_a_run_in_earnest_of_what_is_not_applied_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: unless `allow_override` is true; without the phase it runs."""
    monkeypatch.setenv(RULES, '{"downloads": {"apply": true}}')
    fill(world)
    sentence = "dry_run: false is refused, because the settings do not apply plans; set retention.rules.plans.apply to"
    with pytest.raises(ExecutionFailed, match=sentence):
        world.run(dry_run=False)
    assert (world.count("handled_downloads"), newest(world.ledger.store, "cleanup", limit=9)) == (7, [])
    output = world.run(dry_run=False, phases=["downloads"])
    assert (output["old_downloads_deleted"], world.count("handled_downloads")) == (3, 4)
    monkeypatch.setenv("LAMPLIGHTER_ALLOW_OVERRIDE", "true")
    output = world.run(dry_run=False)
    assert (output["stuck_plans_updated"], "previewed" in output) == (4, False)
    assert "DRAFT" in world.plans().values()


def test_what_is_no_more_applied_when_its_turn_comes_is_only_previewed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of the moment of the action decide, not those of the order."""
    fill(world)
    real = cleanup.BODIES["old_jobs"]

    def turned_off(run: Any) -> Any:
        monkeypatch.setenv(RULES, "{}")
        return real(run)

    monkeypatch.setitem(cleanup.BODIES, "old_jobs", turned_off)
    output = world.run(dry_run=False)
    assert (output["previewed"], world.count("handled_downloads")) == (["downloads", "plans"], 7)


OTHERS = [  # those whose phases have a function of their own are tested with it
    name for name, kind in cleanup.TYPES.items() if name != "cleanup" and kind.spans.keys() <= cleanup.BODIES.keys()
]


@pytest.mark.parametrize("job_type", OTHERS)
def test_every_other_type_tells_each_phases_report(world: World, job_type: str) -> None:
    kind = cleanup.TYPES[job_type]
    output = world.run(job_type=job_type)
    assert output["status"] == "completed"
    assert output["phases"].keys() == kind.spans.keys()
    assert all(report["rows"] == 0 for report in output["phases"].values())


def test_what_the_largest_reports_take_still_travels(world: World) -> None:
    """Step Functions takes 256 KiB; the list that B9 promises is never given up for its length."""
    item = stale_jobs.Item(
        job_id="0" * 26, job_type="x" * 64, status="completed", timeout_minutes=1234.5, elapsed_minutes=123456.7
    )
    report = stale_jobs.Report(
        cleaned_jobs=10**6,
        cleaned_job_details=[item] * stale_jobs.LISTED,
        failed=10**6,
        failures=["x" * stale_jobs.SENTENCE] * stale_jobs.NAMED,
    )
    assert len(report.model_dump_json()) < phases.REPORT_LIMIT


def test_the_database_cleanup_does_what_c16_says(world: World) -> None:
    world.sql("INSERT INTO onboarding_requests (status, completed_at) VALUES ('completed', :at)", at=world.now - OLD)
    world.sql("INSERT INTO onboarding_requests (status, completed_at) VALUES ('failed', :at)", at=world.now - OLD)
    world.sql("INSERT INTO cloud_accounts VALUES ('gone', :at), ('here', NULL)", at=world.now - OLD)
    world.sql(
        "INSERT INTO lamplighter.instances (id, account_id, region) VALUES ('i-1', 'gone', 'r'), ('i-2', 'here', 'r')"
    )
    found = world.run(job_type="database_cleanup")["phases"]
    assert (found["onboarding_requests"]["rows"], found["deleted_accounts"]["rows"]) == (1, 1)
    assert world.sql("SELECT id FROM lamplighter.instances WHERE needs_review") == [("i-1",)]
    assert world.count("lamplighter.instances") == 2


def test_a_table_of_the_wrong_shape_fails_its_phase_and_no_other(world: World) -> None:
    """REQUIREMENTS B10."""
    made = fill(world)
    world.sql("ALTER TABLE handled_downloads RENAME COLUMN timestamp TO handled_at")
    output = world.run()
    (error,) = output["errors"]
    assert error.startswith("downloads: Unfit: downloads: the table handled_downloads has no column timestamp")
    assert output == {"job_id": output["job_id"], "finished": True} | expected(
        made["stale"], status="completed_with_errors", old_downloads_deleted=0, errors=[error]
    )


def test_tables_that_are_not_there_are_told_of_and_fail_nothing_until_they_are_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: no deployment makes the tables that the default rules name."""
    monkeypatch.delenv(RULES)
    fill(world)
    tables = ("handled_downloads", "analysis_plans", "onboarding_requests", "cloud_accounts", "sessions", "tokens")
    world.sql(f"DROP TABLE {', '.join(tables)}")
    output = world.run()
    assert (output["status"], output["errors"], output["cleaned_jobs"] > 0) == ("completed", [], True)
    assert output["missing"] == {
        "downloads": "downloads: there is no table handled_downloads in the database.",
        "plans": 'analysis_plans: relation "analysis_plans" does not exist.',
    }
    output = world.run(job_type="database_cleanup")
    assert (output["status"], output["errors"]) == ("completed", [])
    assert {name: report["missing"] for name, report in output["phases"].items() if "missing" in report} == {
        "onboarding_requests": "onboarding_requests: there is no table onboarding_requests in the database.",
        "deleted_accounts": 'deleted_accounts: relation "cloud_accounts" does not exist.',
    }
    assert output["phases"]["system_logs"]["dry_run"] is False

    monkeypatch.setenv(RULES, '{"sessions": {"apply": true}}')
    with pytest.raises(ExecutionFailed, match="sessions: NoTable: sessions: there is no table sessions"):
        world.run(job_type="session_cleanup")
    output = world.run(job_type="token_cleanup")
    assert output["phases"]["tokens"]["missing"] == "tokens: there is no table tokens in the database."


def test_tables_of_other_columns_are_told_of_and_fail_nothing_until_they_are_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: an application's sessions may be Laravel's, and its tokens another's. A rule of the settings has to fit."""
    monkeypatch.delenv(RULES)
    world.sql("ALTER TABLE sessions DROP COLUMN expires_at")
    world.sql("ALTER TABLE tokens DROP COLUMN refresh_expires_at")
    world.sql("ALTER TABLE onboarding_requests ALTER COLUMN completed_at TYPE text")
    sentences = {
        "session_cleanup": ("sessions", "sessions: the table sessions has no column expires_at."),
        "token_cleanup": ("tokens", 'retention.rules.tokens.where: column "refresh_expires_at" does not exist.'),
        "database_cleanup": (
            "onboarding_requests",
            "retention.rules.onboarding_requests.clock: the column completed_at of onboarding_requests is of type text;"
            " the clock_unit timestamp takes a timestamp, with or without time zone, or a date.",
        ),
    }
    for job_type, (name, sentence) in sentences.items():
        output = world.run(job_type=job_type)
        assert (output["status"], output["errors"], output["phases"][name]["missing"]) == ("completed", [], sentence)

    monkeypatch.setenv(RULES, json.dumps({name: {"apply": True} for name, _ in sentences.values()}))
    for job_type in ("session_cleanup", "token_cleanup"):
        with pytest.raises(ExecutionFailed, match=r"Unfit: .*expires_at"):
            world.run(job_type=job_type)
    output = world.run(job_type="database_cleanup")
    assert output["errors"] == [f"onboarding_requests: Unfit: {sentences['database_cleanup'][1]}"]

    mine = {"table": "sessions", "clock": "expires_at", "keep_days": 1}
    monkeypatch.setenv(RULES, json.dumps({"mine": mine, "lost": mine | {"table": "nowhere"}}))
    output = world.run(job_type="database_cleanup", phases=["mine", "lost", "system_logs"])
    assert output["errors"] == ["mine: Unfit: mine: the table sessions has no column expires_at."]
    assert output["phases"]["lost"]["missing"] == "lost: there is no table nowhere in the database."
    assert output["phases"]["system_logs"]["status"] == "completed"


@pytest.mark.parametrize(
    ("job_type", "name", "script", "sentence"),
    [
        (
            "database_cleanup",
            "onboarding_requests",
            "ALTER TABLE onboarding_requests ALTER status TYPE int USING 1",
            'retention.rules.onboarding_requests.where: invalid input syntax for type integer: "completed".',
        ),
        (
            "database_cleanup",
            "deleted_accounts",
            "DROP TABLE cloud_accounts; CREATE TABLE cloud_accounts (id bigint, deleted_at timestamptz)",
            "retention.rules.deleted_accounts.where: operator does not exist: bigint = text.",
        ),
        (
            "session_cleanup",
            "sessions",
            "ALTER TABLE sessions RENAME TO logins; CREATE VIEW sessions AS SELECT * FROM logins",
            "sessions: sessions is no ordinary or partitioned table.",
        ),
        (
            "session_cleanup",
            "sessions",
            "CREATE TABLE carts (session_id text REFERENCES sessions ON DELETE CASCADE);"
            "INSERT INTO sessions VALUES ('s', 'u', '2020-01-01'); INSERT INTO carts VALUES ('s')",
            "sessions: rows of carts that are not due depend on due rows of sessions (foreign key"
            " carts_session_id_fkey, ON DELETE CASCADE); nothing was touched. Add a rule for carts that runs first, or"
            " change the foreign key.",
        ),
        (
            "cleanup",
            "plans",
            "ALTER TABLE analysis_plans RENAME status TO state",
            "analysis_plans: column analysis_plans.status does not exist.",
        ),
        (
            "cleanup",
            "plans",
            "CREATE TYPE state AS ENUM ('draft'); ALTER TABLE analysis_plans ALTER status TYPE state USING 'draft'",
            "analysis_plans: operator does not exist: state = character varying.",
        ),
    ],
)
def test_a_default_over_another_applications_table_fails_nothing_until_it_is_applied(
    world: World, monkeypatch: pytest.MonkeyPatch, job_type: str, name: str, script: str, sentence: str
) -> None:
    """S4: each run failed, every 30 minutes, over a table that the owner had never named."""
    monkeypatch.delenv(RULES)
    for statement in script.split(";"):
        world.sql(statement)
    output = world.run(job_type=job_type)
    assert (output["status"], output["errors"]) == ("completed", [])
    assert sentence in (output.get("missing", {}).get(name), output.get("phases", {}).get(name, {}).get("missing"))

    monkeypatch.setenv(RULES, json.dumps({name: {"apply": True}}))
    try:
        assert any(sentence in error for error in world.run(job_type=job_type)["errors"])
    except ExecutionFailed as failed:
        assert sentence in str(failed)


def test_a_table_of_ours_that_is_not_there_is_an_error(world: World) -> None:
    world.sql("DROP TABLE lamplighter.system_logs")
    output = world.run(job_type="database_cleanup", dry_run=True)
    [error] = output["errors"]
    assert error == "system_logs: NoTable: system_logs: there is no table lamplighter.system_logs in the database."


def test_settings_below_a_rules_floor_fail_the_run_before_anything_is_touched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 10: a typo in the retention removed all."""
    fill(world)
    before = dict(world.store.items)
    monkeypatch.setenv("LAMPLIGHTER_RETENTION_DAYS", '{"downloads": 0.5}')
    with pytest.raises(ExecutionFailed, match=r"retention.rules.downloads.keep_days: takes at least 1 days, got 0\.5"):
        world.run()
    (job,) = newest(world.ledger.store, "cleanup", limit=9)
    assert (job.status, job.dead_letter) == (Status.FAILED, "permanent")
    assert (world.count("handled_downloads"), set(before) < set(world.store.items)) == (7, True)


def test_the_type_and_the_phase_are_named_when_they_are_wrong_and_no_row_is_left(world: World) -> None:
    with pytest.raises(ExecutionFailed, match="job_type: takes one of cleanup, database_cleanup"):
        world.run(job_type="cleanups")
    with pytest.raises(ExecutionFailed, match="phases: plan is no phase of cleanup"):
        world.run(phases=["plan"])
    assert (world.store.items, world.store.locks) == ({}, {})


def test_progress_is_as_b8_says(world: World) -> None:
    """REQUIREMENTS B8."""
    seen = []
    execution = world.execution()
    for state in execution.steps():
        rows = newest(world.ledger.store, "cleanup", limit=1)
        if state == "Choose" and rows and rows[0].status is Status.RUNNING:
            seen.append(rows[0].progress)
    assert seen == [0, 90, 92, 95, 100]


def test_an_execution_that_is_aborted_frees_the_lock_and_is_gone_on_from(world: World) -> None:
    """REQUIREMENTS B6, K3; FAILURES 3: the rescue job itself stalled, and held its lock."""
    made = fill(world)
    execution = world.execution()
    for state in execution.steps():
        if len(execution.entered) == 4:  # the first phase is done
            assert state == "Phase"
            break
    execution.status = "ABORTED"
    (job,) = newest(world.ledger.store, "cleanup", limit=1)
    with pytest.raises(ExecutionFailed, match=f"AlreadyRunning.*{job.job_id}.*holds its lock"):
        world.run()
    world.settle()
    row = world.ledger.get(job.job_id)
    assert (row.status, row.attempt, row.errors[0].message) == (Status.COMPLETED, 2, "Its execution is ABORTED.")
    assert row.result is not None
    assert [row.result[name] for name in ("cleaned_jobs", "old_jobs_deleted", "old_downloads_deleted")] == [1, 1, 3]
    assert made["stale"].job_id == row.result["cleaned_job_details"][0]["job_id"]
    assert world.store.locks == {}
    assert world.run()["status"] == "completed"


def test_a_phase_that_works_too_long_goes_on_in_the_next_execution(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K8: from where it was, with what it had counted."""
    monkeypatch.setattr(plans, "BATCH", 2)
    stuck = [world.plan(None) for _ in range(9)]
    whole = plans._put_back

    def slow(found: Any) -> int:
        world.now += timedelta(minutes=2)
        return whole(found)

    monkeypatch.setattr(plans, "_put_back", slow)
    world.function_time = timedelta(minutes=10)
    output = world.run(phases=["plans"])
    assert (output["finished"], output["stuck_plans_updated"]) == (False, 6)
    world.dispatch()
    row = world.ledger.get(output["job_id"])
    assert (row.status, row.attempt, row.continuation) == (Status.COMPLETED, 1, 1)
    assert row.result is not None and row.result["stuck_plans_updated"] == 9
    assert set(world.plans().values()) == {"DRAFT"} and len(stuck) == 9


# --- stale jobs (B2) -------------------------------------------------------------------------------------------------


def alone(world: World, *, dry_run: bool = False, stop: Any = None) -> Run:
    job = replace(world.ago(timedelta(0), job_type="sweep"), dry_run=dry_run)
    settings = parse({"retention": applied()}, source="a test")
    return Run(job, settings=settings, stop_at=world.now + timedelta(minutes=4), clock=world.ledger.clock)


@pytest.mark.parametrize(
    ("status", "label", "after"),
    [
        ("SUCCEEDED", "completed", Status.COMPLETED),
        ("FAILED", "retried", Status.PENDING),
        ("ABORTED", "retried", Status.PENDING),
        (None, "retried", Status.PENDING),
    ],
)
def test_a_stale_job_is_judged_by_its_execution(world: World, status: str, label: str, after: Status) -> None:
    """REQUIREMENTS B2."""
    job = world.ago(timedelta(minutes=31), execution_arn="arn:execution:sync")
    report = stale_jobs.body(alone(world), execution=lambda job: status)
    assert isinstance(report, stale_jobs.Report)
    assert [(item.job_id, item.status) for item in report.cleaned_job_details] == [(job.job_id, label)]
    assert world.ledger.get(job.job_id).status is after


def test_a_job_whose_execution_lives_gets_more_time_and_counts_as_nothing(world: World) -> None:
    """FAILURES 1: a live job was rescued, and ran twice."""
    job = world.ago(timedelta(minutes=31), execution_arn="arn:execution:sync")
    report = stale_jobs.body(alone(world), execution=lambda job: "RUNNING")
    assert isinstance(report, stale_jobs.Report)
    assert (report.cleaned_jobs, report.extended) == (0, 1)
    row = world.ledger.get(job.job_id)
    assert (row.status, row.attempt) == (Status.RUNNING, 1)
    assert row.deadline_at is not None and row.deadline_at > world.now


def test_a_pending_job_that_nobody_picked_up_is_stale_too(world: World) -> None:
    then = Ledger(world.store, clock=lambda: world.now - timedelta(minutes=12))
    job = then.submit(then.new_job("sync", SYNC))
    report = stale_jobs.body(alone(world))
    assert isinstance(report, stale_jobs.Report)
    (item,) = report.cleaned_job_details
    assert (item.job_id, item.status, item.timeout_minutes, item.elapsed_minutes) == (job.job_id, "retried", 10, 12)


def test_one_job_that_cannot_be_judged_stops_no_other_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K11; FAILURES 2: a batch of others starved the later ones."""
    monkeypatch.setattr(stale_jobs, "PAGE", 3)
    monkeypatch.setattr(stale_jobs, "LISTED", 10)
    monkeypatch.setattr(stale_jobs, "NAMED", 5)
    broken = [world.ago(timedelta(minutes=50), execution_arn="arn:broken") for _ in range(20)]
    stale = [world.ago(timedelta(minutes=31)) for _ in range(40)]

    def execution(job: Any) -> str:
        raise RuntimeError("Step Functions is down")

    report = stale_jobs.body(alone(world), execution=execution)
    assert isinstance(report, stale_jobs.Report)
    assert (report.status, report.cleaned_jobs, report.failed) == ("completed_with_errors", 40, 20)
    assert (len(report.cleaned_job_details), len(report.failures)) == (10, 5)
    assert report.failures[0].endswith("RuntimeError: Step Functions is down")
    assert {world.ledger.get(job.job_id).attempt for job in stale} == {2}
    assert {world.ledger.get(job.job_id).attempt for job in broken} == {1}


def test_a_job_that_lives_on_after_it_was_found_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 1, 4: it completes between the look and the write."""
    job = world.ago(timedelta(minutes=31))
    whole = stale_jobs.judge

    def judged(*args: Any) -> Any:
        verdict = whole(*args)
        world.ledger.complete(job, {"n": 1})
        return verdict

    monkeypatch.setattr(stale_jobs, "judge", judged)
    report = stale_jobs.body(alone(world))
    assert isinstance(report, stale_jobs.Report)
    assert (report.cleaned_jobs, report.failed) == (0, 0)
    assert world.ledger.get(job.job_id).status is Status.COMPLETED
    with pytest.raises(LostLease):
        world.ledger.expire(job)


# --- plans (B5) ------------------------------------------------------------------------------------------------------


def test_plans_are_put_back_by_the_batch_and_only_if_they_are_as_they_were_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS B5: one got a new job, one was touched, one is held, after they were read."""
    monkeypatch.setattr(plans, "BATCH", 4)
    taken, touched, held, *others = [world.plan("gone") for _ in range(11)]
    live = world.ago(timedelta(minutes=1))
    whole, calls = world.store.statuses, []

    def statuses(job_ids: Any) -> Any:
        found = whole(job_ids)
        if not calls:
            world.sql("UPDATE analysis_plans SET job_id = :job WHERE id = :id", job=live.job_id, id=taken)
            world.sql("UPDATE analysis_plans SET updated_at = now() WHERE id = :id", id=touched)
        calls.append(job_ids)
        return found

    monkeypatch.setattr(world.store, "statuses", statuses)
    with world.engine.connect() as other, other.begin():
        other.exec_driver_sql(f"SELECT id FROM analysis_plans WHERE id = {held} FOR UPDATE")
        report = plans.body(alone(world))
    assert isinstance(report, plans.Report)
    assert (report.plans, len(calls)) == (8, 3)
    found = world.plans()
    assert [found[plan] for plan in (taken, touched, held)] == ["PENDING"] * 3
    assert {found[plan] for plan in others} == {"DRAFT"}


def test_the_status_of_many_jobs_is_looked_up_at_once(world: World) -> None:
    jobs = [world.finished(timedelta(days=1)) for _ in range(3)]
    found = world.store.statuses({job.job_id for job in jobs} | {"gone"})
    assert found == {job.job_id: Status.COMPLETED for job in jobs}


def test_the_result_says_what_the_ramp_holds_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3: beside B9's names, and only where there is something."""
    monkeypatch.setenv(RULES, json.dumps({"downloads": {"apply": True}}))
    world.downloads(1_200, OLD)

    result = world.ledger.get(world.run()["job_id"]).result or {}

    assert (result["old_downloads_deleted"], result["held_by_ramp"]) == (1_000, {"downloads": 200})
