"""One region of a scan and of the health check: a real Postgres, and AWS as the local stand-in has it (C5, C15, K7)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import boto3
import pytest
from sqlalchemy import Engine, text

from lamplighter.cloud import access, cloud_region, cloud_scan, health
from lamplighter.cloud.cloud_region import Event, Watched
from lamplighter.cloud.exemptions import KEY
from lamplighter.cloud.health import Examined
from lamplighter.cloud.inventory import Instance, Inventory, Series
from lamplighter.kernel.cloud import Limits
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent
from lamplighter.kernel.fan_out import Stopped
from lamplighter.kernel.ledger.row import Job, Policy, Status, new_job_id
from lamplighter.kernel.phases import PhaseRun, State, Turn
from lamplighter.kernel.settings import CloudSettings, Settings
from tests.integration.media_world import ScriptedRun, Stop

REGION = "us-east-1"
DAY = timedelta(days=1)


class Account:
    """The test's own account, and scans of it."""

    def __init__(self, s3: Any, engine: Engine, account: str) -> None:
        self.s3, self.engine, self.account = s3, engine, account
        self.archive = f"archive-{uuid4().hex}"
        s3.create_bucket(Bucket=self.archive)
        self.ec2 = boto3.client("ec2")
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.settings = Settings()

    def run(self, job_type: str = "security_enforcement", *, dry_run: bool = False, **stops: Stop) -> ScriptedRun:
        """A run that is told to stop when it asks for the n-th time (`at_3="cancelled"`)."""
        job = Job(
            job_id=new_job_id(self.now, uuid4().bytes[:10]),
            job_type=job_type,
            status=Status.RUNNING,
            policy=Policy(timeout=timedelta(hours=1)),
            created_at=self.now,
            run_at=self.now,
            dry_run=dry_run,
        )
        script = {int(name.removeprefix("at_")): stop for name, stop in stops.items()}
        return ScriptedRun(job, settings=self.settings, now=self.now, stops=script)

    def scan(self, job_type: str = "security_enforcement", **values: Any) -> Any:
        """What a run says of the region."""
        return cloud_region.body(self.run(job_type, **values), {"account": self.account, "region": REGION})

    def report(self, *, dry_run: bool) -> cloud_scan.Reported:
        """What the phase after the regions says, in a run of its own."""
        job = self.run(dry_run=dry_run).job
        turn = Turn(name="report", function="cloud-scan", span=(95, 100))
        state = State(job_id=job.job_id, attempt=1, continuation=0, job_type=job.job_type, left=[turn])
        stop_at = self.now + timedelta(minutes=15)
        return cloud_scan.report(PhaseRun(job, state, settings=self.settings, stop_at=stop_at, clock=lambda: self.now))

    def volume(self, *, encrypted: bool = True) -> str:
        """One that nothing uses."""
        made: str = self.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=8, Encrypted=encrypted)["VolumeId"]
        return made

    def instance(self) -> str:
        """A running one."""
        image = self.ec2.register_image(Name=uuid4().hex, RootDeviceName="/dev/xvda")["ImageId"]
        made = self.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="t3.micro")
        return str(made["Instances"][0]["InstanceId"])

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def found(self, check: str) -> dict[str, str]:
        """Resources and the status of their findings."""
        rows = self.sql("SELECT resource_id, status FROM lamplighter.findings WHERE check_id = :check", check=check)
        return {row.resource_id: row.status for row in rows}


@pytest.fixture
def account(s3: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Account:
    made = Account(s3, engine, boto3.client("sts").get_caller_identity()["Account"])
    for name, value in {"ACCOUNT_ID": made.account, "AWS_REGION": REGION, "ARCHIVE_BUCKET": made.archive}.items():
        monkeypatch.setenv(name, value)
    return made


def test_a_scan_records_what_it_finds_and_resolves_what_is_mended(account: Account) -> None:
    kept, mended = account.volume(encrypted=False), account.volume(encrypted=False)
    report = account.scan()
    assert (report.status, report.opened, report.api_calls > 0) == ("completed", report.findings, True)
    assert account.found("unencrypted_volumes") == {kept: "open", mended: "open"}
    account.ec2.delete_volume(VolumeId=mended)
    account.now += DAY
    assert account.scan().resolved == 2, "it had no tags either"
    assert account.found("unencrypted_volumes") == {kept: "open", mended: "resolved"}


def test_a_volume_is_waste_once_it_has_been_seen_unattached_for_long_enough(account: Account) -> None:
    """C5."""
    volume = account.volume()
    account.settings = Settings(cloud=CloudSettings(limits=Limits(unattached_days=1)))
    account.now += timedelta(hours=1)
    account.scan("waste_scan")
    account.now += timedelta(hours=23)
    account.scan("waste_scan")
    assert account.found("unattached_volumes") == {}
    account.now += timedelta(hours=2)
    account.scan("waste_scan")
    assert account.found("unattached_volumes") == {volume: "open"}


def test_a_preview_says_what_it_would_find_and_keeps_nothing(account: Account) -> None:
    """K11."""
    account.volume(encrypted=False)
    report = account.scan(dry_run=True)
    assert (report.findings > 0, report.opened) == (True, 0)
    told = cloud_region.previewed(Event(job_type="security_enforcement", dry_run=True))
    assert len(told["findings"]) == report.findings
    for table in ("findings", "judged_checks", "unjudged", "unattached_volumes"):
        assert account.sql(f"SELECT count(*) FROM lamplighter.{table}") == [(0,)], table


def test_exceptions_that_cannot_be_understood_are_told_of_and_unmake_none(account: Account) -> None:
    volume = account.volume(encrypted=False)
    exception = (
        '{"check": "unencrypted_volumes", "resource": "%s", "reason": "r", "owner": "o", "expires": "2999-01-01"}'
    )
    account.s3.put_object(Bucket=account.archive, Key=KEY, Body='{"exceptions": [%s]}' % (exception % volume))
    assert (account.scan().exempted, account.scan().remark) == (1, None)
    account.s3.put_object(Bucket=account.archive, Key=KEY, Body="{")
    report = account.scan()
    assert report.remark and report.remark.startswith(f"In {KEY}: The exceptions are not")
    exempted = "SELECT exemption ->> 'reason' FROM lamplighter.findings WHERE check_id = 'unencrypted_volumes'"
    assert account.sql(exempted) == [("r",)]


def test_an_exception_that_has_expired_covers_nothing_and_is_told_of(account: Account) -> None:
    account.volume(encrypted=False)
    exception = {
        "check": "unencrypted_volumes",
        "resource": "*",
        "reason": "r",
        "owner": "ada",
        "expires": "2020-01-31",
    }
    account.s3.put_object(Bucket=account.archive, Key=KEY, Body=json.dumps({"exceptions": [exception]}))
    report = account.scan()
    assert (report.exempted, report.remark) == (0, "Expired exceptions (1): unencrypted_volumes * (ada, 2020-01-31).")


@pytest.mark.parametrize("reason", ["cancelled", "out_of_time"])
def test_a_run_that_is_to_stop_sends_no_other_request_and_records_nothing(account: Account, reason: Stop) -> None:
    """K7; half a region must not be taken for the whole."""
    account.volume(encrypted=False)
    with pytest.raises(Stopped):
        account.scan(at_3=reason)
    assert account.found("unencrypted_volumes") == {}


def test_each_request_asks_first(account: Account) -> None:
    run = account.run(at_2="cancelled")
    clients = Watched(access.clients(REGION, session_name="test"), run)
    clients("ec2").describe_volumes()
    with pytest.raises(Stopped):
        clients("ec2").describe_volumes()
    assert (run.asked, clients.calls) == (2, 1)


def test_a_database_that_is_down_is_found_out_before_anything_is_read(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamplighter.kernel import database

    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    database.engine.cache_clear()
    run = account.run()
    with pytest.raises(DatabaseUnavailable):
        cloud_region.body(run, {"account": account.account, "region": REGION})
    assert run.asked == 0


def test_a_role_that_cannot_be_assumed_is_the_regions_failure(account: Account) -> None:
    targets = '[{"accounts": ["222222222222"], "regions": ["us-east-1"], "role": "none"}]'
    account.settings = Settings.model_validate({"cloud": {"targets": targets}})
    with pytest.raises(Permanent, match="The role arn:aws:iam::222222222222:role/none cannot be assumed"):
        cloud_region.body(account.run(), {"account": "222222222222", "region": "us-east-1"})


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_report_leaves_out_what_is_no_target_any_more(account: Account, dry_run: bool) -> None:
    account.volume(encrypted=False)
    findings = account.scan().findings
    assert account.report(dry_run=dry_run).findings == findings > 0
    account.settings = Settings.model_validate(
        {"cloud": {"targets": [{"accounts": [account.account], "regions": ["eu-west-1"]}]}}
    )
    told = account.report(dry_run=dry_run)
    assert (told.findings, bool(told.documents)) == (0, not dry_run)


# -- health ------------------------------------------------------------------------------------------------------------


def examined(account: Account, **values: Any) -> Examined:
    report = account.scan("instance_health", **values)
    assert isinstance(report, Examined)
    return report


def instances(account: Account) -> dict[str, Any]:
    return {row.id: row for row in account.sql("SELECT * FROM lamplighter.instances")}


def measure(account: Account, instance: str, value: float) -> None:
    account_metric = {
        "MetricName": "CPUUtilization",
        "Dimensions": [{"Name": "InstanceId", "Value": instance}],
        "Timestamp": account.now - timedelta(hours=3),
        "Value": value,
    }
    boto3.client("cloudwatch").put_metric_data(Namespace="AWS/EC2", MetricData=[account_metric])


def test_the_instances_are_added_measured_and_marked_when_they_are_gone(account: Account) -> None:
    """C15: never deleted, and whether one is to be reviewed is not for the check to say."""
    first, second = account.instance(), account.instance()
    measure(account, first, 42.5)
    assert examined(account).instances == 2
    told = instances(account)
    assert (told[first].account_id, told[first].region, told[first].instance_type) == (
        account.account,
        REGION,
        "t3.micro",
    )
    assert (told[first].state, told[first].status, told[first].cpu_percent) == ("running", "ok", 42.5)
    assert (told[second].cpu_percent, told[second].memory_percent) == (None, None)
    assert told[first].measured_at == told[first].updated_at == account.now
    account.sql("UPDATE lamplighter.instances SET needs_review = (id = :id)", id=second)
    account.ec2.terminate_instances(InstanceIds=[second])
    account.now += DAY
    report = examined(account)
    assert (report.instances, report.terminated) == (1, 1)
    told = instances(account)
    assert (told[second].state, told[second].status, told[second].needs_review) == ("terminated", None, True)
    assert (told[first].state, told[first].needs_review) == ("running", False)
    account.now += DAY
    assert examined(account).terminated == 0, "it is told of once"


def test_other_regions_and_accounts_are_left_alone(account: Account) -> None:
    insert = (
        "INSERT INTO lamplighter.instances (id, account_id, region, state) VALUES (:id, :account, :region, 'running')"
    )
    account.sql(insert, id="i-1", account="999999999999", region=REGION)
    account.sql(insert, id="i-2", account=account.account, region="eu-west-1")
    examined(account)
    assert {id_: row.state for id_, row in instances(account).items()} == {"i-1": "running", "i-2": "running"}


def test_a_preview_of_the_health_check_changes_nothing(account: Account) -> None:
    account.instance()
    assert examined(account, dry_run=True).instances == 1
    assert instances(account) == {}


def test_a_check_that_comes_late_writes_over_no_later_one(account: Account) -> None:
    instance = account.instance()
    examined(account)
    account.ec2.stop_instances(InstanceIds=[instance])
    account.now -= timedelta(minutes=5)
    examined(account)
    assert instances(account)[instance].state == "running"


def test_what_could_not_be_read_stays_as_it_was(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is neither healthy nor idle, and an instance that cannot be seen is not gone."""
    instance = account.instance()
    measure(account, instance, 42.5)
    examined(account)
    before = instances(account)[instance]
    account.now += DAY
    blind: dict[str, str] = {"cpu": "AccessDenied"}

    def read(*_: Any, now: datetime, **values: Any) -> Inventory:
        there = Instance(id=instance, type="t3.micro", state="running", launched_at=account.now, image_id="ami-1")
        return Inventory(account=account.account, region=REGION, read_at=now, instances=(there,), gaps=blind)

    monkeypatch.setattr(health.reader, "read", read)
    assert examined(account).remark == f"{account.account}/{REGION}: cpu: AccessDenied"
    after = instances(account)[instance]
    assert (after.cpu_percent, after.measured_at) == (42.5, before.measured_at)
    assert after.updated_at == account.now
    blind["instances"] = "AccessDenied"
    with pytest.raises(Permanent, match="The instances cannot be read: AccessDenied"):
        examined(account)
    assert instances(account)[instance] == after


def test_the_highest_value_of_the_day_and_the_worst_of_the_checks_count() -> None:
    there = Instance(
        id="i-1", type="t3.micro", state="running", launched_at=datetime(2026, 11, 1, tzinfo=UTC), image_id="ami-1"
    )
    inventory = Inventory(
        account="1" * 12,
        region=REGION,
        read_at=datetime(2026, 11, 22, tzinfo=UTC),
        instances=(there,),
        cpu={"i-1": Series(expected=4, values=(3.0, 81.5, 4.0))},
        memory={"i-1": Series(expected=4, values=())},
    )
    (row,) = health.present(inventory, {"i-1": "impaired"})
    assert (row["cpu_percent"], row["memory_percent"], row["status"]) == (81.5, None, "impaired")

    class Ec2:
        def get_paginator(self, _: str) -> Any:
            return self

        def paginate(self) -> list[dict[str, Any]]:
            ok, bad = {"Status": "ok"}, {"Status": "impaired"}
            return [
                {"InstanceStatuses": [{"InstanceId": "i-1", "SystemStatus": ok, "InstanceStatus": bad}]},
                {"InstanceStatuses": [{"InstanceId": "i-2", "SystemStatus": ok, "InstanceStatus": ok}]},
            ]

    assert health.statuses(Ec2()) == {"i-1": "impaired", "i-2": "ok"}
