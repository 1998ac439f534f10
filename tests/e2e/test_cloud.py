"""The scans of cloud accounts in the deployed stack: by schedule, API and hand, several accounts and regions, of which
some cannot be read (REQUIREMENTS C1, C5, C14, C15, C17, K3, K6-K9)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from lamplighter.cloud.checks import SECURITY, WASTE
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status, Trigger
from local.cloud import HOME, MEMBER, REGIONS, STRANGER, TARGETS
from local.signed import Api
from tests.e2e.deployed import Deployed, FunctionFailed, Machine, Turnstile, eventually

TYPES = ("security_enforcement", "waste_scan", "instance_health")
READ = {(account, region) for account in (HOME, MEMBER) for region in REGIONS}


@pytest.fixture(scope="module")
def machine(stack: Deployed) -> Iterator[Machine]:
    """The state machine, which is to scan the demo accounts, one that lets nobody in among them."""
    told = {"LAMPLIGHTER_CLOUD_TARGETS": json.dumps(TARGETS)}
    with stack.overriding("cloud-scan", **told), stack.overriding("cloud-region", **told):
        yield Machine(stack, "cloud", TYPES)


@pytest.fixture(autouse=True)
def nothing_known(stack: Deployed, machine: Machine) -> None:
    """No scan has been here."""
    tables = ("findings", "judged_checks", "unjudged", "unattached_volumes", "cloud_reports", "instances")
    stack.sql(f"TRUNCATE {', '.join(f'lamplighter.{table}' for table in tables)}")


def ec2(stack: Deployed, account: str = HOME, region: str = REGIONS[0]) -> Any:
    """EC2 as an account's owner has it."""
    keys = {"aws_access_key_id": account, "aws_secret_access_key": "test"}
    return boto3.client("ec2", region_name=region, endpoint_url=stack.aws.endpoint_url, **keys)


def kept(stack: Deployed, *checks: str) -> dict[tuple[str, str, str, str], Any]:
    """The stored findings of some checks."""
    rows = stack.sql(
        "SELECT * FROM lamplighter.findings WHERE check_id = ANY(CAST(:checks AS text[]))", checks=list(checks)
    )
    return {(row.account_id, row.region, row.check_id, row.resource_id): row for row in rows}


def planted(stack: Deployed, *checks: str) -> set[tuple[str, str, str, str]]:
    """What they are to find in the demo accounts, by the labels that it was planted with."""
    return {
        (one.account, one.region, check, one.resource_id)
        for one in stack.aws.planted()
        for check in one.found
        if check in checks
    }


def test_a_scan_goes_through_accounts_and_regions_and_tells_of_those_that_it_cannot_read(
    stack: Deployed, machine: Machine
) -> None:
    """C17, K9: one region's failure is reported, and the rest go on."""
    output = machine.run()
    assert (output["status"], output["finished"]) == ("completed_with_errors", True)
    regions = output["phases"]["regions"]
    lines = {(line["account"], line["region"]): line for line in regions["regions"]}
    assert lines.keys() == READ
    assert len(output["errors"]) == len(REGIONS)
    for error, region in zip(output["errors"], REGIONS, strict=True):
        assert error.startswith(f"regions: {STRANGER}/{region}: Permanent: The role arn:aws:iam::{STRANGER}:role/")
    found = kept(stack, *(check.id for check in SECURITY))
    assert found.keys() == planted(stack, *(check.id for check in SECURITY))
    assert (regions["findings"], regions["opened"], regions["resolved"]) == (len(found), len(found), 0)
    assert {row.status for row in found.values()} == {"open"}
    assert all(line["api_calls"] >= 8 for line in lines.values())

    row = stack.ledger.get(output["job_id"])
    assert (row.status, row.progress, row.trigger) == (Status.COMPLETED, 100, Trigger.CLI)
    assert [log.message for log in stack.history(row.job_id, rows=2)] == ["started, attempt 1 of 4", "completed"]
    measured = [line for line in stack.logs("cloud-scan", '"_aws"') if line["job"] == "security_enforcement"]
    assert any(line.get("Items", [0])[0] >= len(found) for line in measured)

    report = output["phases"]["report"]
    assert (report["status"], report["findings"]) == ("completed", len(found))
    document = stack.client("s3").get_object(
        Bucket=stack.archive, Key=report["documents"]["json"].removeprefix(f"s3://{stack.archive}/")
    )
    told = json.loads(document["Body"].read())
    assert [(one["account"], one["region"]) for one in told["regions_failed"]] == [(STRANGER, one) for one in REGIONS]
    [remark] = told["remarks"]
    assert remark.startswith("Nobody has looked for waste yet in ")


def test_the_waste_scan_finds_what_was_planted_and_keeps_first_sights(stack: Deployed, machine: Machine) -> None:
    """C2-C7; C5: a volume is waste only once it has been seen unattached for as long as the limit says."""
    checks = [check.id for check in WASTE if check.id != "unattached_volumes"]
    client = ec2(stack)
    volume = client.create_volume(AvailabilityZone=f"{REGIONS[0]}a", Size=8, VolumeType="gp3", Encrypted=True)
    try:
        machine.run(job_type="waste_scan")
    finally:
        client.delete_volume(VolumeId=volume["VolumeId"])
    assert kept(stack, *checks).keys() == planted(stack, *checks)
    assert kept(stack, "unattached_volumes") == {}
    rows = stack.sql("SELECT account_id, region, volume_id FROM lamplighter.unattached_volumes")
    seen = {(account, region, "unattached_volumes", id_) for account, region, id_ in rows}
    waste = planted(stack, "unattached_volumes")
    assert waste | {(HOME, REGIONS[0], "unattached_volumes", volume["VolumeId"])} <= seen

    stack.sql("UPDATE lamplighter.unattached_volumes SET first_seen_at = first_seen_at - interval '15 days'")
    machine.run(job_type="waste_scan")
    assert kept(stack, "unattached_volumes").keys() == waste
    assert stack.sql("SELECT 1 FROM lamplighter.unattached_volumes WHERE volume_id = :id", id=volume["VolumeId"]) == []


def test_a_finding_is_resolved_when_its_resource_is_mended_and_reopened_when_it_is_not(
    stack: Deployed, machine: Machine
) -> None:
    """C14."""
    client = ec2(stack)
    group = client.create_security_group(GroupName="e2e-life", Description="test")["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    key = (HOME, REGIONS[0], "open_ports", group)
    try:
        machine.run()
        first = kept(stack, "open_ports")[key]
        assert (first.status, first.times_reopened) == ("open", 0)
        client.revoke_security_group_ingress(GroupId=group, IpPermissions=[ssh])
        assert machine.run()["phases"]["regions"]["resolved"] == 1
        mended = kept(stack, "open_ports")[key]
        assert (mended.status, mended.first_seen_at) == ("resolved", first.first_seen_at)
        assert mended.resolved_at > mended.last_seen_at
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
        assert machine.run()["phases"]["regions"]["reopened"] == 1
        again = kept(stack, "open_ports")[key]
        assert (again.status, again.resolved_at, again.times_reopened) == ("open", None, 1)
        assert again.first_seen_at == first.first_seen_at < mended.resolved_at < again.reopened_at
    finally:
        client.delete_security_group(GroupId=group)


def test_an_exception_sets_a_finding_apart_in_the_store_the_report_and_the_api(
    stack: Deployed, machine: Machine
) -> None:
    """C7, C13."""
    account, region, check, resource = min(planted(stack, "open_ports"))
    exception = {"check": check, "resource": resource, "reason": "A bastion", "owner": "ada", "expires": "2999-12-31"}
    s3, document = stack.client("s3"), {"Bucket": stack.archive, "Key": "cloud/exceptions.json"}
    s3.put_object(**document, Body=json.dumps({"exceptions": [exception]}))
    try:
        output = machine.run()
    finally:
        s3.delete_object(**document)
    [apart] = [key for key, row in kept(stack, check).items() if row.exemption]
    assert apart == (account, region, check, resource)
    report = output["phases"]["report"]
    assert report["findings"] == len(planted(stack, *(one.id for one in SECURITY))) - 1
    page = s3.get_object(Bucket=stack.archive, Key=report["documents"]["html"].removeprefix(f"s3://{stack.archive}/"))
    assert "A bastion" in page["Body"].read().decode()

    api = Api(stack.api_url)
    [listed] = api.get("/api/cloud/findings", exempted="true").json()["findings"]
    assert (listed["resource_id"], listed["exemption"]["reason"]) == (resource, "A bastion")
    assert api.get(f"/api/cloud/findings/{listed['id']}").json() == listed
    [told] = api.get("/api/cloud/reports").json()["reports"]
    assert (told["job_id"], told["documents"]) == (output["job_id"], report["documents"])


def test_a_preview_says_what_it_would_find_and_leaves_nothing_behind(stack: Deployed, machine: Machine) -> None:
    """K11."""
    output = machine.run(dry_run=True)
    regions = output["phases"]["regions"]
    assert (regions["findings"], regions["opened"]) == (len(planted(stack, *(one.id for one in SECURITY))), 0)
    assert output["phases"].keys() == {"regions"}
    for table in ("findings", "judged_checks", "unjudged", "unattached_volumes", "cloud_reports"):
        assert stack.sql(f"SELECT count(*) FROM lamplighter.{table}") == [(0,)], table
    told = stack.invoke("cloud-region", {"job_type": "security_enforcement", "dry_run": True, "account": MEMBER})
    assert {one["resource_id"] for one in told["findings"] if one["check"] == "open_ports"} == {
        key[3] for key in planted(stack, "open_ports") if key[:2] == (MEMBER, REGIONS[0])
    }
    assert stack.sql("SELECT count(*) FROM lamplighter.findings") == [(0,)]


def test_a_tick_of_each_schedule_runs_its_job_once(stack: Deployed, machine: Machine) -> None:
    """C1, K6, K12."""
    for job_type in TYPES:
        name = job_type.replace("_", "-")
        row, tick = stack.ticked(name)
        assert (row.status, row.trigger, row.schedule) == (Status.COMPLETED, Trigger.SCHEDULE, name)
        eventually(lambda name=name: stack.note(name))
        again = machine.run(job_type=job_type, **tick)
        assert (again["status"], again["job_id"]) == ("duplicate", row.job_id)
    assert stack.invoke("schedule-watch", {})["unwatched"] == []


def test_a_scan_can_be_run_through_the_api(stack: Deployed, machine: Machine) -> None:
    request = {"job_type": "security_enforcement", "params": {"dry_run": True}}
    answer = Api(stack.api_url).post("/api/jobs/run", request)
    assert answer.status_code == 202, answer.text
    row = stack.becomes(answer.json()["job_id"], "completed", "failed")
    assert (row.status, row.trigger, row.dry_run) == (Status.COMPLETED, Trigger.API, True)
    assert row.result is not None and row.result["phases"]["regions"]["findings"] > 0


def test_of_two_that_are_started_together_one_is_refused_with_the_holders_name(
    stack: Deployed, machine: Machine
) -> None:
    """K3."""
    with Turnstile(stack.engine, "lamplighter.unattached_volumes") as turnstile:
        refused, row = machine.together(turnstile)
    assert f": job {row.job_id} (attempt " in refused.cause
    assert row.status is Status.COMPLETED
    assert row.result is not None and row.result["phases"]["regions"]["findings"] > 0


def test_a_run_that_is_cancelled_begins_no_other_region_and_says_what_it_had_done(
    stack: Deployed, machine: Machine
) -> None:
    """K7."""
    with stack.overriding("cloud-scan", LAMPLIGHTER_CLOUD_CONCURRENCY="1"):
        with Turnstile(stack.engine, "lamplighter.findings") as turnstile:
            arn = machine.start()
            turnstile.wait()
            row = machine.row(arn)
            stack.invoke("job-control", {"action": "cancel", "job_id": row.job_id})
        output = machine.end(arn).output
    assert (output["status"], output["finished"]) == ("cancelled", True)
    assert [(line["account"], line["region"]) for line in output["phases"]["regions"]["regions"]] == [
        (HOME, REGIONS[0])
    ]
    assert {key[:2] for key in kept(stack, *(check.id for check in SECURITY))} == {(HOME, REGIONS[0])}
    assert stack.ledger.get(row.job_id).status is Status.CANCELLED


def test_an_execution_that_is_aborted_is_tried_again_and_ends(stack: Deployed, machine: Machine) -> None:
    """K2, K5; FAILURES 3."""
    with Turnstile(stack.engine, "lamplighter.findings") as turnstile:
        arn = machine.start()
        turnstile.wait()
        row = machine.row(arn)
        machine.states.stop_execution(executionArn=arn)
        assert machine.end(arn).status == "ABORTED"
    stack.backdate(row.job_id)
    row = stack.becomes(row.job_id, "completed", "failed", checking=True)
    assert (row.status, row.attempt, row.errors[0].type) == (Status.COMPLETED, 2, "TimedOut")
    assert row.result is not None
    found = kept(stack, *(check.id for check in SECURITY))
    assert row.result["phases"]["regions"]["findings"] == len(found)


def test_without_its_database_a_scan_fails_is_retried_and_ends_when_the_database_is_back(
    stack: Deployed, machine: Machine
) -> None:
    """K5, E8."""
    postgres = stack.aws.postgres()
    postgres.stop()
    try:
        began = utc_now()
        ended = machine.end(machine.start())
        assert (ended.status, ended.error) == ("FAILED", "AllItemsFailed")
        (row,) = [job for job in stack.of_type("security_enforcement") if job.created_at >= began]
        assert "DatabaseUnavailable" in row.errors[0].message
    finally:
        postgres.start()
    row = stack.becomes(row.job_id, "completed", "failed", checking=True)
    assert row.status is Status.COMPLETED and row.attempt > 1


def test_the_health_check_brings_the_instances_up_to_date(stack: Deployed, machine: Machine) -> None:
    """C15; and those of an account that cannot be read stay as they were."""
    insert = (
        "INSERT INTO lamplighter.instances (id, account_id, region, state, needs_review, updated_at)"
        " VALUES (:id, :account, :region, 'running', true, :at)"
    )
    before = utc_now() - timedelta(days=1)
    for id_, account in (("i-gone", HOME), ("i-far", STRANGER)):
        stack.sql(insert, id=id_, account=account, region=REGIONS[0], at=before)
    output = machine.run(job_type="instance_health")
    assert output["status"] == "completed_with_errors"
    regions = output["phases"]["regions"]
    told = {row.id: row for row in stack.sql("SELECT * FROM lamplighter.instances")}
    assert regions["instances"] == len(told) - 2
    assert (told["i-gone"].state, told["i-gone"].needs_review) == ("terminated", True)
    assert (told["i-far"].state, told["i-far"].updated_at) == ("running", before)
    assert regions["terminated"] == 1
    names = {
        one.name: one.resource_id for one in stack.aws.planted() if (one.account, one.region) == (HOME, REGIONS[0])
    }
    busy, idle, stopped = (told[names[name]] for name in ("cpu-busy", "cpu-idle", "stopped-long"))
    assert (busy.account_id, busy.region, busy.instance_type) == (HOME, REGIONS[0], "m5.large")
    assert (busy.state, busy.status, stopped.state, stopped.status) == ("running", "ok", "stopped", None)
    assert idle.cpu_percent < 5 < busy.cpu_percent
    assert stopped.cpu_percent is None and busy.memory_percent > 10
    assert busy.measured_at == busy.updated_at > before
    assert not busy.needs_review


def test_bad_targets_are_refused_in_a_sentence(stack: Deployed, machine: Machine) -> None:
    bad = json.dumps([{"accounts": [MEMBER], "regions": ["us-east-1"]}])
    with stack.overriding("cloud-scan", LAMPLIGHTER_CLOUD_TARGETS=bad):
        ended = machine.end(machine.start())
    assert (ended.status, ended.error) == ("FAILED", "Permanent")
    assert f"cloud.targets: {MEMBER} needs a role, for the stack is in {HOME}." in ended.cause
    with pytest.raises(FunctionFailed, match=r"us-west-9 is none of them"):
        stack.invoke("cloud-region", {"job_type": "waste_scan", "dry_run": True, "region": "us-west-9"})
