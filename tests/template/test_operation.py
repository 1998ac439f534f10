"""What operators rely on: logs that end, alarms on metrics that exist, indexes that hold what the checker needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from lamplighter.admin.audit_chain import LINKS, OBJECTS
from lamplighter.admin.audit_read import KEPT_DAYS
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.row import Job, Policy, Status, decode, encode
from lamplighter.kernel.ledger.store import Change, difference, expectation
from lamplighter.preflight.preflight import PREFIX as PREFLIGHTS
from lamplighter.rules import RULES
from tests.template.project import ROOT, STACK, Function, Project

PROJECT = Project()
ALARMS = PROJECT.of_type("AWS::CloudWatch::Alarm")
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
REPORTS = "reports/"
"""The folder of the archive bucket with what the cloud scans report."""


def test_every_log_group_ends() -> None:
    for name, group in PROJECT.of_type("AWS::Logs::LogGroup").items():
        assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, f"{name} would be kept for ever."


@pytest.mark.parametrize("function", PROJECT.functions, ids=lambda function: function.job)
def test_every_function_logs_to_its_group(function: Function) -> None:
    groups = PROJECT.of_type("AWS::Logs::LogGroup")
    group = groups[function.properties["LoggingConfig"]["LogGroup"]["Ref"]]
    assert group["LogGroupName"]["Fn::Sub"] == f"/aws/lambda/{STACK}{function.job}"


def test_our_alarms_watch_metrics_that_the_code_emits() -> None:
    source = "".join(path.read_text() for path in (ROOT / "functions").rglob("*.py"))
    emitted = set(re.findall(r'add_metric\(\s*name="(\w+)"', source))
    watched = {alarm["MetricName"] for alarm in ALARMS.values() if alarm["Namespace"] == "Lamplighter"}
    assert watched and watched <= emitted
    for alarm in ALARMS.values():
        if alarm["Namespace"] == "Lamplighter":
            assert alarm["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}]


@pytest.mark.parametrize("metric", ["CheckerHeartbeat", "ScheduleWatchHeartbeat"])
def test_silence_is_an_alarm(metric: str) -> None:
    """FAILURES 3: the rescue job itself stalled, and nobody was told (K12)."""
    (alarm,) = [alarm for alarm in ALARMS.values() if alarm["MetricName"] == metric]
    assert alarm["TreatMissingData"] == "breaching"


def test_every_alarm_tells_people() -> None:
    for name, alarm in ALARMS.items():
        assert alarm["AlarmActions"] == [{"Ref": "AlertsTopic"}], f"{name} tells nobody."


def test_asynchronous_invocations_are_not_retried_by_lambda() -> None:
    """REQUIREMENTS K5: one owner of retries."""
    assert PROJECT.template["Globals"]["Function"]["EventInvokeConfig"]["MaximumRetryAttempts"] == 0
    assert not [
        function.job
        for function in PROJECT.functions
        if function.properties["EventInvokeConfig"]["MaximumRetryAttempts"]
    ]


@pytest.mark.parametrize("name", ["DispatcherStream", "HistoryStream"])
def test_a_stream_is_read_to_its_end_and_its_failures_kept(name: str) -> None:
    stream = PROJECT.resources[name]["Properties"]
    assert stream["StartingPosition"] == "TRIM_HORIZON", "LATEST loses what is written while the mapping is made."
    assert stream["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert stream["MaximumRecordAgeInSeconds"] > 0  # by default a record that fails is tried for ever
    assert stream["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": ["FailuresQueue", "Arn"]}


@pytest.mark.parametrize("name", ["DispatcherStream", "HistoryStream"])
def test_the_removal_of_finished_jobs_wakes_nobody(name: str) -> None:
    """Ten thousand jobs that leave the ledger would be ten thousand records that call for nothing."""
    (filter_,) = PROJECT.resources[name]["Properties"]["FilterCriteria"]["Filters"]
    assert json.loads(filter_["Pattern"])["eventName"] == ["INSERT", "MODIFY"]


def index(name: str) -> dict[str, set[str]]:
    (found,) = [
        one
        for one in PROJECT.resources["JobsTable"]["Properties"]["GlobalSecondaryIndexes"]
        if one["IndexName"] == name
    ]
    keys = {key["AttributeName"] for key in found["KeySchema"]} | {"pk"}
    return {"keys": keys, "attributes": keys | set(found["Projection"].get("NonKeyAttributes", []))}


def running(**values: object) -> Job:
    return Job(
        **{  # type: ignore[arg-type]
            "job_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "job_type": "export",
            "status": Status.RUNNING,
            "policy": Policy(
                timeout=timedelta(minutes=15), heartbeat=timedelta(minutes=1), target="lambda:export", singleton=True
            ),
            "created_at": NOW - timedelta(hours=2),
            "run_at": NOW - timedelta(hours=2),
            "started_at": NOW - timedelta(hours=1),
            "heartbeat_at": NOW - timedelta(minutes=2),
            "deadline_at": NOW - timedelta(minutes=1),
            "execution_arn": "arn:aws:states:us-east-1:111122223333:execution:lamplighter-export:1",
            "payload": {"large": "x" * 1000},
            "result": {"items": 1},
            "checkpoint": {"after": "a"},
            "schedule": "export",
            "progress": 40,
            "message": "half way",
            "rescues": (NOW - timedelta(hours=3),),
            "errors": (),
        }
        | values
    )


def as_read_through(name: str, job: Job) -> Job:
    return decode({key: value for key, value in encode(job).items() if key in index(name)["attributes"]})


def expired(job: Job) -> Job:
    return transitions.expire(job, now=NOW, jitter=0.5, reason="deadline", message="late")


ENDINGS = {
    "retried": (running(), expired),
    "poisoned": (running(rescues=(NOW - timedelta(hours=3), NOW - timedelta(hours=2))), expired),
    "exhausted": (running(attempt=3), expired),
    "cancelled": (running(cancel_requested=True), expired),
    "completed": (running(), lambda job: transitions.complete(job, now=NOW, result={"note": "it had succeeded"})),
    "extended": (running(started_at=NOW - timedelta(minutes=16)), lambda job: transitions.extend(job, now=NOW)),
}


@pytest.mark.parametrize(("job", "change"), ENDINGS.values(), ids=ENDINGS.keys())
def test_what_expires_is_changed_alike_whether_read_whole_or_through_the_index(
    job: Job, change: Callable[[Job], Job]
) -> None:
    """`by_deadline` leaves out payloads, results and stack traces; the checker must not notice."""
    part = as_read_through("by_deadline", job)
    assert index("by_deadline")["keys"] <= encode(job).keys()
    assert "payload" not in index("by_deadline")["attributes"]
    from_part, from_whole = (Change(old=one, new=change(one), unchanged=("expires_at",)) for one in (part, job))
    assert difference(from_part) == difference(from_whole)
    assert expectation(from_part) == expectation(from_whole)


def test_what_is_due_is_released_alike_whether_read_whole_or_through_the_index() -> None:
    job = running(status=Status.PENDING, released=False, deadline_at=None, run_at=NOW - timedelta(seconds=1))
    part = as_read_through("by_due", job)
    assert index("by_due")["keys"] <= encode(job).keys()
    from_part, from_whole = (Change(old=one, new=transitions.release(one, now=NOW)) for one in (part, job))
    assert difference(from_part) == difference(from_whole)
    assert expectation(from_part) == expectation(from_whole)


def test_an_upgrade_makes_or_removes_no_index() -> None:
    """An update of a table does one of both at a time, so an upgrade that does more fails (docs/adr/0023)."""
    indexes = PROJECT.resources["JobsTable"]["Properties"]["GlobalSecondaryIndexes"]
    assert {one["IndexName"]: [key["AttributeName"] for key in one["KeySchema"]] for one in indexes} == {
        "by_deadline": ["live_shard", "expires_at"],
        "by_due": ["due_shard", "run_at"],
        "by_type": ["job_type", "created_at"],
        "by_status": ["status_shard", "finished_at"],
    }


def test_the_checker_may_start_its_own_state_machine_and_no_other() -> None:
    """REQUIREMENTS K15."""
    statements = [
        statement
        for policy in PROJECT.resources["TimeoutCheckerFunction"]["Properties"]["Policies"]
        for statement in policy.get("Statement", ())
        if statement["Action"] == "states:StartExecution"
    ]
    names = [one["Resource"]["Fn::Sub"].partition(":stateMachine:")[2] for one in statements]
    assert names == ["${AWS::StackName}-timeout-checker"]


def test_the_promised_outputs_are_there() -> None:
    promised = "JobsTableName MediaBucketName UploadsBucketName ArchiveBucketName AlertsTopicArn DatabaseStatus"
    assert set(promised.split()) <= PROJECT.template["Outputs"].keys()


def test_a_deploy_applies_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    head = ScriptDirectory(str(PROJECT.root / "functions" / "lamplighter" / "kernel" / "migrations")).get_current_head()
    revision = PROJECT.resources["DatabaseSchema"]["Properties"]["Revision"]
    assert revision == head, f"Set Revision of DatabaseSchema to {head!r}: else no deploy applies that migration."


def test_the_audit_archives_objects_expire_and_its_chain_does_not() -> None:
    """REQUIREMENTS E1: kept for a configurable time. The links prove what is left, and what there has been."""
    lifecycle = PROJECT.resources["ArchiveBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"]: rule for rule in lifecycle if "ExpirationInDays" in rule}
    assert expiring.keys() == {OBJECTS, REPORTS, PREFLIGHTS}
    assert expiring[OBJECTS]["ExpirationInDays"] == {"Ref": "AuditArchiveDays"}
    assert not LINKS.startswith(OBJECTS)
    assert PROJECT.template["Parameters"]["AuditArchiveDays"]["Default"] == KEPT_DAYS


def test_reports_are_kept_as_long_as_the_rows_that_name_them() -> None:
    lifecycle = PROJECT.resources["ArchiveBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    [expiry] = [rule["ExpirationInDays"] for rule in lifecycle if rule.get("Prefix") == REPORTS]
    assert timedelta(days=expiry) == RULES["cloud_reports"].keep
