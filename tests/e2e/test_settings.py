"""Settings of the deployed stack: at a deployment, at run time, large ones, bad ones (REQUIREMENTS K4, P1, P2)."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from samcli.cli.types import CfnParameterOverridesType

from lamplighter.jobs.settings_document import KEY
from local.servers import LocalAwsError
from local.signed import Api
from local.stack import ROOT
from tests.e2e.conftest import SETTINGS
from tests.e2e.deployed import Deployed, FunctionFailed, Machine, Mailbox, Shelf, eventually

HARMLESS: dict[str, Any] = {"jobs": {"schedule_grace_minutes": 16}}


@pytest.fixture
def put(stack: Deployed) -> Iterator[Callable[[Any], None]]:
    """Puts the SSM parameter as an operator would, and waits for nothing."""

    def put(value: Any) -> None:
        stack.client("ssm").put_parameter(Name=stack.parameter, Value=json.dumps(value), Overwrite=True)

    yield put
    stack.put_settings({})


def effective(stack: Deployed) -> dict[str, Any]:
    item = stack.client("dynamodb").get_item(TableName=stack.table, Key={"pk": {"S": KEY}}, ConsistentRead=True)["Item"]
    document: dict[str, Any] = json.loads(item["document"]["S"])
    return document


def schedule(stack: Deployed, name: str) -> str:
    found = stack.client("scheduler").get_schedule(GroupName=stack.group, Name=f"{stack.name}-{name}")
    return f"{found['State']} {found['ScheduleExpression']}"


def test_a_change_of_the_parameter_reaches_the_jobs_and_a_schedule_by_the_checkers_own_pass(
    stack: Deployed, put: Callable[[Any], None], shelf: Shelf
) -> None:
    """Within a minute, though nobody calls anything."""
    shelf.put("a.jpg", "b.jpg", "kept.jpg", body=b"x" * 400)
    shelf.refer("kept.jpg")
    assert shelf.clean(dry_run=True)["skipped_size_limit"] == 0
    media = {"max_delete_gb": 0.000_000_5, "scan_interval_hours": 6}
    put(stack.document({"media": media, "uploads": {"cleanup_interval_seconds": 90}}))
    eventually(lambda: schedule(stack, "upload-cleanup").endswith("rate(2 minutes)"))
    assert schedule(stack, "orphan-cleanup") == "ENABLED rate(6 hours)"
    assert shelf.clean(dry_run=True)["skipped_size_limit"] == 1


def test_what_is_deployed_and_what_is_overridden_make_one_document(stack: Deployed, put: Callable[[Any], None]) -> None:
    assert effective(stack) == SETTINGS
    put({"retry_cap_seconds": 2} | HARMLESS)
    stack.check()
    assert effective(stack)["jobs"] == {"retry_base_seconds": 1, "retry_cap_seconds": 2, "schedule_grace_minutes": 16}


def test_a_bad_document_alerts_once_and_changes_nothing(
    stack: Deployed, put: Callable[[Any], None], alerts: Mailbox
) -> None:
    before = effective(stack)
    bad = {"retention": {"rules": {"e2e_nonsense": {"apply": True}}}}
    put(bad)
    for _ in range(3):
        assert stack.check()["finished"] is True
    (told,) = eventually(lambda: alerts.about("e2e_nonsense"))
    message = json.loads(told)["Message"]
    assert "retention.rules: e2e_nonsense is not a rule (known: downloads," in message
    assert "The document was refused as a whole" in message
    assert effective(stack) == before
    with pytest.raises(FunctionFailed, match=r"SettingsError: .*e2e_nonsense is not a rule"):
        stack.invoke("settings", {})
    assert len(alerts.about("e2e_nonsense")) == 1
    answer = stack.invoke("settings", {"validate": bad})
    assert (answer["valid"], "e2e_nonsense" in answer["problem"]) == (False, True)


def test_a_schedule_that_an_operator_stopped_stays_stopped(stack: Deployed, put: Callable[[Any], None]) -> None:
    """A6: until the settings want another interval or state of it."""
    every_six = {"media": {"scan_interval_hours": 6}}
    put(every_six)
    assert stack.invoke("settings", {})["switched"] == ["orphan-cleanup"]
    assert stack.invoke("schedules", {"schedule": "orphan-cleanup", "action": "stop"})["changed"] is True
    put(every_six | HARMLESS)
    assert stack.invoke("settings", {})["changed"] is True
    for _ in range(2):
        stack.check()
        assert stack.invoke("settings", {}) | {"sha256": ""} == {"changed": False, "sha256": "", "switched": []}
    assert schedule(stack, "orphan-cleanup") == "DISABLED rate(6 hours)"


def test_a_large_document_is_an_object_of_the_archive(stack: Deployed, put: Callable[[Any], None]) -> None:
    """Read with the function's own role: 500 regions of accounts."""
    accounts = [f"{n:012d}" for n in range(1, 501)]
    each = [
        {"accounts": [one], "regions": ["eu-west-1"], "role": "lamplighter-scan", "external_id": "x" * 300}
        for one in accounts
    ]
    body = json.dumps({"cloud": {"targets": each}}).encode()
    stack.client("s3").put_object(Bucket=stack.archive, Key="settings/e2e.json", Body=body)
    put({"s3": f"s3://{stack.archive}/settings/e2e.json"})
    assert stack.invoke("settings", {})["changed"] is True
    assert len(effective(stack)["cloud"]["targets"]) == 500
    stack.check()
    put({"s3": "s3://somebody-elses/settings.json"})
    with pytest.raises(FunctionFailed, match="s3 takes the address of an object in the archive bucket"):
        stack.invoke("settings", {})


def test_what_a_deployment_does_not_apply_is_only_previewed(stack: Deployed, put: Callable[[Any], None]) -> None:
    """S4, end to end: the session cleanup of a stack whose settings do not name the rule."""
    put({"allow_override": False, "retention": {"rules": {"sessions": {"apply": False}}}})
    stack.invoke("settings", {})
    arn = stack.machine_arn("cleanup")
    states = stack.client("stepfunctions")

    def run(**given: Any) -> dict[str, Any]:
        started = states.start_execution(stateMachineArn=arn, input=json.dumps({"job_type": "session_cleanup"} | given))

        def ended() -> dict[str, Any] | None:
            told: dict[str, Any] = states.describe_execution(executionArn=started["executionArn"])
            return None if told["status"] == "RUNNING" else told

        return eventually(ended)

    output = json.loads(run()["output"])
    assert output["phases"]["sessions"]["dry_run"] is True
    assert stack.ledger.get(output["job_id"]).dry_run
    refused = run(dry_run=False)
    assert (refused["status"], "dry_run: false is refused" in refused["cause"]) == ("FAILED", True)


def test_a_rule_that_is_added_at_run_time_previews_acts_once_it_is_applied_and_its_ramp_holds(
    stack: Deployed, put: Callable[[Any], None]
) -> None:
    """S4, S3, B11, C16, K14: no deployment in between. The clock counts milliseconds, as Keycloak's do."""
    stack.sql("CREATE TABLE e2e_events (event_no bigint PRIMARY KEY, realm text, seen bigint)")
    stack.sql("CREATE TABLE e2e_realms (name text PRIMARY KEY)")
    now = "extract(epoch FROM now())"
    stack.sql("INSERT INTO e2e_realms VALUES ('here')")
    stack.sql(
        "INSERT INTO e2e_events SELECT n, CASE WHEN n % 2 = 0 THEN 'here' ELSE 'gone' END,"
        f" CAST(1000 * ({now} - 86400 * 31) AS bigint) - n FROM generate_series(1, 3000) AS n"
        f" UNION ALL SELECT 4000 + n, 'gone', CAST(1000 * {now} AS bigint) FROM generate_series(1, 5) AS n"
        f" UNION ALL SELECT 5000, 'gone', 0 UNION ALL SELECT 5001, 'gone', CAST({now} - 86400 * 31 AS bigint)"
        " UNION ALL SELECT 5002, 'gone', NULL UNION ALL SELECT 5003, NULL, 1600000000000"
    )
    rule: dict[str, Any] = {
        "table": "e2e_events",
        "key": "event_no",
        "clock": "seen",
        "clock_unit": "milliseconds",
        "keep_days": 30,
        "floor_days": 7,
        "orphan_of": {"table": "public.e2e_realms", "column": "realm", "key": "name"},
    }
    machine = Machine(stack, "cleanup", ("database_cleanup",))

    def settle(**changes: Any) -> None:
        put({"retention": {"rules": {"e2e_events": rule | changes}}})
        stack.invoke("settings", {})

    def left() -> int:
        ((count,),) = stack.sql("SELECT count(*) FROM e2e_events")
        return int(count)

    try:
        settle()
        for given in ({}, {"phases": ["e2e_events"]}):
            phase = machine.run(**given)["phases"]["e2e_events"]
            assert (phase["dry_run"], phase["rows"], phase["held_by_ramp"], left()) == (True, 1500, 500, 3009)
            assert phase["oldest"][:4] >= "2024"
        assert stack.invoke("cleanup", {"phase": "e2e_events", "dry_run": True})["rows"] == 1500
        ended = machine.end(machine.start(phases=["e2e_event"]))
        assert "phases: e2e_event is no phase of database_cleanup (it takes" in ended.cause
        api = Api(stack.api_url)
        ordered = {"job_type": "database_cleanup", "params": {"phases": ["e2e_event"]}}
        refused = api.post("/api/jobs/run", ordered)
        assert (refused.status_code, "e2e_event is no phase" in refused.text) == (422, True)
        simulated = api.post("/api/retention/simulate", {"rule": "e2e_events", "keep_days": 90}).json()
        assert (simulated["current"]["rows"], simulated["proposed"]["rows"]) == (1500, 0)

        for bad, sentence in (
            ({"keep_days": 5}, "retention.rules.e2e_events.keep_days: takes at least 7 days, got 5."),
            ({"where": "true) OR (true"}, "retention.rules.e2e_events.where: closes a parenthesis that it has not"),
        ):
            put({"retention": {"rules": {"e2e_events": rule | bad}}})
            with pytest.raises(FunctionFailed, match=re.escape(sentence)):
                stack.invoke("settings", {})

        settle(apply=True, where="event = = 1")
        wrong = machine.run(phases=["e2e_events", "system_logs"])
        assert wrong["errors"] == [
            'e2e_events: Permanent: retention.rules.e2e_events.where: syntax error at or near "=".'
        ]
        assert (wrong["status"], wrong["phases"]["system_logs"]["status"], left()) == (
            "completed_with_errors", "completed", 3009
        )  # fmt: skip

        settle(apply=True)
        phase = machine.run(phases=["e2e_events"])["phases"]["e2e_events"]
        assert (phase["dry_run"], phase["rows"], phase["held_by_ramp"], left()) == (False, 1000, 500, 2009)
        settle(apply=True, ramp=False)
        assert machine.run(phases=["e2e_events"])["phases"]["e2e_events"]["rows"] == 500
        assert stack.sql("SELECT count(*), min(event_no) FROM e2e_events WHERE realm = 'here'") == [(1500, 2)]
        assert left() == 1509
    finally:
        stack.sql("DROP TABLE e2e_events")
        stack.sql("DROP TABLE e2e_realms")


def test_a_bad_document_fails_a_deployment_with_its_sentence(stack: Deployed) -> None:
    """P1: and the version before stays."""
    before, cloudformation = effective(stack), stack.client("cloudformation")
    bad = SETTINGS | {"media": {"max_orphan_share": 1.5}}
    with pytest.raises(LocalAwsError, match="UPDATE_ROLLBACK_COMPLETE"):
        stack.aws.deploy(bad)
    events = cloudformation.describe_stack_events(StackName=stack.name)["StackEvents"]
    reasons = [
        event.get("ResourceStatusReason") for event in events if event["LogicalResourceId"] == "EffectiveSettings"
    ]
    sentence = "media.max_orphan_share: input should be less than or equal to 1, got 1.5."
    assert f"SettingsError: In the template parameter Settings: {sentence}" in reasons
    assert effective(stack) == before
    stack.stand_still()  # the local CloudFormation puts every schedule back that it passes, changed or not


def test_the_answers_of_a_guided_deployment_go_into_a_file_of_the_owners(stack: Deployed, tmp_path: Path) -> None:
    """`samconfig.toml` stays as it is, so that an upgrade does not conflict with it."""
    own, settings = tmp_path / "my-samconfig.toml", '{"media": {"apply": true}, "jobs": {"retry_base_seconds": 7}}'
    before = (ROOT / "samconfig.toml").read_bytes()
    shutil.copy(ROOT / "samconfig.toml", own)
    answers = {"Stack Name": "guided", "DatabaseUrl": "-", "Parameter Settings": settings, "Deploy this changeset": "n"}
    said = guided(stack, own, answers)
    assert "Deploy this changeset" in said
    assert (ROOT / "samconfig.toml").read_bytes() == before
    saved = tomllib.loads(own.read_text())["default"]["deploy"]["parameters"]
    assert saved["stack_name"] == "guided"
    overrides = CfnParameterOverridesType().convert(saved["parameter_overrides"], None, None)
    assert (overrides["Settings"], "DatabaseUrl" in overrides) == (settings, False)
    assert {"BaseUrl", "RetryBaseSeconds", "OrphanCleanupDryRun"}.isdisjoint(overrides)
    assert len(overrides) <= 20


def guided(stack: Deployed, config_file: Path, answers: dict[str, str]) -> str:
    """What `sam deploy --guided` says to somebody who gives these answers, and else presses return."""
    sam = Path(sys.executable).with_name("sam")
    path = f"{ROOT / '.tools' / 'bin'}:{sam.parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(config_file.parent), "TERM": "dumb", "SAM_CLI_TELEMETRY": "0"}
    terminal, theirs = pty.openpty()
    command = [sam, "deploy", "--guided", "--config-file", config_file]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment | stack.aws.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = line = ""
    try:
        while said.count("Parameter ") < 200:  # it asks for one thing again and again if it does not like the answer
            assert select.select([terminal], [], [], 60)[0], f"it waits for an answer, and has said:\n{said}"
            said += (some := os.read(terminal, 4096).decode(errors="replace"))
            line = (line + some).rpartition("\n")[2]
            # Not before the blank: what is typed between the colon and the blank of a hidden prompt is thrown away.
            if line.endswith(": "):
                answer = next((answer for asked, answer in answers.items() if asked in line), "")
                os.write(terminal, f"{answer}\n".encode())
                line = ""
    except OSError:  # it has ended
        pass
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    return said
