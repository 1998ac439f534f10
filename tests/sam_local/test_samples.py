"""Every sample event through `sam local invoke`: the built function in Lambda's own environment, in a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from local.stack import ROOT
from tests.sam_local.conftest import ARCHITECTURE, World
from tests.template.project import Project

PROJECT = Project()
Invoke = Callable[..., Any]


@pytest.fixture(scope="session")
def invoke(world: World, tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    """Runs a sample and returns the function's answer; `changes` replace values of the event."""
    directory = tmp_path_factory.mktemp("sam")

    def run(sample: str, **changes: Any) -> Any:
        domain, job = Path(sample).parts
        (function,) = [one for one in PROJECT.functions if one.module == f"lamplighter.{domain}.{job}"]
        event = json.loads((ROOT / "events" / f"{sample}.json").read_text()) | changes
        (directory / "event.json").write_text(json.dumps(event))
        deployed = world.aws.client("lambda").get_function_configuration(FunctionName=f"lamplighter-{function.job}")
        variables = deployed["Environment"]["Variables"] | {
            "AWS_ENDPOINT_URL": world.endpoint_url,
            "DATABASE_URL": world.database_url,
        }
        (directory / "env.json").write_text(json.dumps({"Parameters": variables}))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",  # SAM asks STS for the account, with retries: nobody there
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAM_CLI_TELEMETRY": "0",
        }
        command: list[str | Path] = [Path(sys.executable).with_name("sam"), "local", "invoke", function.logical_id]
        command += ["--template", world.template]
        command += ["--event", directory / "event.json", "--env-vars", directory / "env.json", "--skip-pull-image"]
        # --env-vars replaces only what exists, and AWS_ENDPOINT_URL exists only where its parameter is given.
        command += ["--parameter-overrides", f"Architecture={ARCHITECTURE} EndpointUrl={world.endpoint_url}"]
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert "timed out after" not in result.stderr, result.stderr  # SAM's own status is 0 then
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip(), result.stderr
        answer = json.loads(result.stdout.strip().splitlines()[-1])
        assert not (isinstance(answer, dict) and "errorType" in answer), f"{sample} failed: {answer}\n{result.stderr}"
        return answer

    return run


@pytest.fixture(scope="session")
def photos(world: World) -> int:
    """How many photos the media bucket holds; no row refers to any."""
    s3, bucket = world.aws.client("s3"), world.aws.outputs()["MediaBucketName"]
    for number in range(3):
        s3.put_object(Bucket=bucket, Key=f"photos/{number}.jpg", Body=b"photo")
    return 3


@pytest.fixture(scope="session")
def scan(world: World) -> str:
    """A scan of the demo account, which has said what it would do about open ports."""
    states, ssm = world.aws.client("stepfunctions"), world.aws.client("ssm")
    remedies = {"cloud": {"remedies": {"open_ports": {"action": "revoke"}}}}
    parameter = world.aws.outputs()["SettingsParameterName"]
    ssm.put_parameter(Name=parameter, Value=json.dumps(remedies), Overwrite=True)
    assert world.aws.invoke("settings", {})["changed"] is True
    (arn,) = [
        one["stateMachineArn"]
        for one in states.list_state_machines()["stateMachines"]
        if one["name"].endswith("-cloud")
    ]
    execution = states.start_execution(stateMachineArn=arn, input='{"job_type": "security_enforcement"}')[
        "executionArn"
    ]
    while (told := states.describe_execution(executionArn=execution))["status"] == "RUNNING":
        time.sleep(0.2)
    return str(json.loads(told["output"])["job_id"])


def test_every_sample_is_run_here() -> None:
    text = Path(__file__).read_text()
    samples = [str(path.relative_to(ROOT / "events").with_suffix("")) for path in PROJECT.samples]
    assert not [sample for sample in samples if f'invoke("{sample}"' not in text]


def test_migrate(invoke: Invoke) -> None:
    assert invoke("jobs/migrate")["applied"] == [], "The deployment has migrated already."


def test_deployment(invoke: Invoke, world: World) -> None:
    table = world.aws.client("dynamodb").describe_table(TableName=world.aws.outputs()["JobsTableName"])["Table"]
    assert invoke("jobs/deployment") == {"protected": table.get("DeletionProtectionEnabled", False)}


def test_settings(invoke: Invoke) -> None:
    assert invoke("jobs/settings") == {"valid": True}


def test_orphan_cleanup(invoke: Invoke, photos: int, world: World) -> None:
    report = invoke("media/orphan_cleanup")
    assert (report["status"], report["dry_run"]) == ("completed", True)
    assert (report["scanned_files"], report["deleted_files"]) == (photos, 0)
    row = world.aws.client("dynamodb").get_item(
        TableName=world.aws.outputs()["JobsTableName"], Key={"pk": {"S": f"JOB#{report['job_id']}"}}
    )
    assert row["Item"]["status"] == {"S": "completed"}


def test_undo(invoke: Invoke, photos: int) -> None:
    cleanup = invoke("media/orphan_cleanup")
    report = invoke("media/undo", job_id=cleanup["job_id"])
    assert (report["status"], report["dry_run"], report["restored_files"]) == ("completed", True, 0)


def test_audit_archive(invoke: Invoke) -> None:
    report = invoke("admin/audit_archive")
    assert (report["phase"], report["dry_run"], report["status"]) == ("audit_log", True, "completed")


def test_cleanup(invoke: Invoke) -> None:
    report = invoke("library/cleanup")
    assert (report["phase"], report["dry_run"], report["status"]) == ("stale_jobs", True, "completed")


def test_timeout_checker(invoke: Invoke) -> None:
    report = invoke("jobs/timeout_checker")
    assert (report["finished"], report["failed_lanes"]) == (True, 0)


def test_schedule_watch(invoke: Invoke) -> None:
    watched = len(PROJECT.schedules) - 2  # the checker and the watch itself have alarms
    assert invoke("jobs/schedule_watch") == {"watched": watched, "overdue": [], "unwatched": []}


def test_schedules(invoke: Invoke) -> None:
    assert invoke("jobs/schedules") == {"schedule": "orphan-cleanup", "enabled": True, "changed": False}


def test_job_control(invoke: Invoke) -> None:
    assert invoke("jobs/job_control") == {"jobs": []}


def test_api(invoke: Invoke) -> None:
    answer = invoke("jobs/api")
    assert (answer["statusCode"], json.loads(answer["body"])["next"]) == (200, None)


def test_dispatcher(invoke: Invoke, world: World) -> None:
    assert invoke("jobs/dispatcher") == {"batchItemFailures": []}
    noted = world.aws.client("dynamodb").get_item(
        TableName=world.aws.outputs()["JobsTableName"], Key={"pk": {"S": "SCHEDULE#orphan-cleanup"}}
    )
    assert noted["Item"]["last_completed_at"] == {"S": "2026-11-22T03:00:42.000Z"}


def test_history(invoke: Invoke, world: World) -> None:
    assert invoke("jobs/history") == {"batchItemFailures": []}
    job_id = json.loads((ROOT / "events/jobs/history.json").read_text())["Records"][0]["dynamodb"]["NewImage"][
        "job_id"
    ]["S"]
    connection = pg8000.native.Connection(
        "postgres", host="127.0.0.1", port=world.aws.first_port + 1, database="lamplighter"
    )
    rows = connection.run(
        "SELECT message FROM lamplighter.system_logs WHERE job_id = :id ORDER BY created_at", id=job_id
    )
    connection.close()
    assert rows == [["started, attempt 1 of 3"], ["completed"]]


def test_upload_intake(invoke: Invoke) -> None:
    assert invoke("uploads/upload_intake")["status"] == "skipped", "The sample is a folder."


def test_upload_processing(invoke: Invoke, world: World) -> None:
    s3, events = world.aws.client("s3"), world.aws.client("events")
    bucket = world.aws.outputs()["UploadsBucketName"]
    for rule in events.list_rules()["Rules"]:
        events.disable_rule(Name=rule["Name"])  # else the deployed function takes the upload
    header = "Time,User full name,Affected user,Event context,Component,Event name,Description,Origin,IP address\n"
    log = header + "12/03/2024 14:05,Ana,-,Course: 1,Quiz,Quiz viewed,Viewed,web,10.0.0.1\n"
    s3.put_object(Bucket=bucket, Key="inputs/course 7.csv", Body=log.encode())
    report = invoke("uploads/upload_processing")
    assert (report["status"], report["rows"], report["input"]) == ("completed", 1, "kept")


def test_upload_expiry(invoke: Invoke) -> None:
    report = invoke("uploads/upload_expiry")
    assert (report["phase"], report["dry_run"], report["jobs_cleaned"]) == ("uploads", True, 0)


def test_cloud_region(invoke: Invoke) -> None:
    told = invoke("cloud/cloud_region")
    assert (told["dry_run"], told["region"]) == (True, "us-east-1")
    assert {one["check"] for one in told["findings"]} >= {"open_ports", "unencrypted_volumes"}, "the demo account's"


def test_cloud_scan(invoke: Invoke) -> None:
    report = invoke("cloud/cloud_scan")
    assert (report["phase"], report["dry_run"], report["status"]) == ("report", True, "completed")


def test_cloud_actions(invoke: Invoke, scan: str) -> None:
    report = invoke("cloud/cloud_actions")
    assert (report["phase"], report["dry_run"], report["status"]) == ("actions", True, "completed")


def test_cloud_undo(invoke: Invoke, scan: str) -> None:
    report = invoke("cloud/cloud_undo", job_id=scan)
    assert (report["status"], report["dry_run"]) == ("completed", True)


def test_preflight(invoke: Invoke, world: World) -> None:
    report = invoke("preflight/preflight")
    assert (report["status"], report["items"]["blocked"]) == ("completed", 0), report["blocked"]
    bucket, _, key = report["documents"]["html"].removeprefix("s3://").partition("/")
    page = world.aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    assert f"<h1>Preflight: {report['verdict']}</h1>" in page
