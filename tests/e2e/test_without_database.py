"""A second deployment, without a database: scans, uploads and the ledger's cleanup run; the rest says why not (P5)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from lamplighter.cloud.checks import SECURITY
from lamplighter.jobs.schedules import NEED_DATABASE
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status, to_text
from local.cloud import HOME, REGIONS
from local.signed import Api
from local.stack import LocalAws
from tests.e2e.deployed import Deployed, FunctionFailed, Machine, eventually
from tests.e2e.test_cloud import planted
from tests.e2e.test_uploads import SPANISH, Folder

SETTINGS = {
    "media": {"enabled": False},
    "jobs": {"retry_base_seconds": 1, "retry_cap_seconds": 1},
    "cloud": {
        "targets": [{"accounts": [HOME], "regions": list(REGIONS)}],
        "remedies": {"open_ports": {"action": "tag", "max_share": 1}},
    },
}
CHECKS = [check.id for check in SECURITY]


@pytest.fixture(scope="module")
def scans(aws: LocalAws) -> Deployed:
    """The second stack, beside the one that has a database, as it was deployed."""
    local = replace(aws, stack_name="scans")
    local.deploy(SETTINGS, DatabaseUrl="-")
    return Deployed(local)


@pytest.fixture(scope="module", autouse=True)
def deployed(scans: Deployed) -> dict[str, str]:
    """The state of each of its schedules after the deployment; they stand still from now on."""
    listed = scans.client("scheduler").list_schedules(GroupName=scans.group)["Schedules"]
    state = {one["Name"].removeprefix(f"{scans.name}-"): one["State"] for one in listed}
    scans.stand_still()
    return state


@pytest.fixture
def api(scans: Deployed) -> Api:
    """The second stack's API, called as the account's owner."""
    return Api(scans.api_url)


def test_the_deployment_says_what_is_off_and_so_do_its_schedules(scans: Deployed, deployed: dict[str, str]) -> None:
    assert scans.aws.outputs()["DatabaseStatus"].startswith("No database is configured: ")
    assert {name for name, state in deployed.items() if state == "DISABLED"} == NEED_DATABASE


def findings(api: Api, **query: str) -> list[dict[str, Any]]:
    """All findings by the API, page by page."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get("/api/cloud/findings", limit="50", **query, **cursor).json()
        found += page["findings"]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


def test_a_scan_keeps_its_findings_in_the_archive_bucket_and_reports_them(scans: Deployed, api: Api) -> None:
    """C7, C14: opened, seen again, shown, reported; IAM lets each function do just that."""
    machine = Machine(scans, "cloud", ("security_enforcement",))
    first = machine.run()
    assert (first["status"], first["errors"]) == ("completed", [])
    wanted = {one for one in planted(scans, *CHECKS) if one[0] == HOME}
    found = findings(api)
    assert {(one["account"], one["region"], one["check"], one["resource_id"]) for one in found} == wanted
    assert first["phases"]["regions"]["opened"] == len(found) > 0
    assert first["phases"]["actions"]["outcomes"]["would_be_marked"] > 0, "what acts does not know the findings"
    keys = {f"findings/regions/{HOME}/{region}.json.gz" for region in REGIONS} | {"findings/reports.json.gz"}
    listed = scans.client("s3").list_objects_v2(Bucket=scans.archive, Prefix="findings/")["Contents"]
    assert keys <= {one["Key"] for one in listed}

    again = machine.run()
    regions = again["phases"]["regions"]
    assert (regions["opened"], regions["reopened"], regions["resolved"]) == (0, 0, 0)
    seen = {one["id"]: one for one in findings(api)}
    assert {one["id"]: one["first_seen"] for one in found} == {id_: one["first_seen"] for id_, one in seen.items()}
    assert all(moment(one["last_seen"]) > moment(one["first_seen"]) for one in seen.values())
    assert {one["job_id"] for one in seen.values()} == {again["job_id"]}
    one = found[0]
    assert api.get(f"/api/cloud/findings/{one['id']}").json() == seen[one["id"]]
    assert {each["region"] for each in findings(api, region=REGIONS[1])} == {REGIONS[1]}

    reports = api.get("/api/cloud/reports").json()["reports"]
    assert [report["job_id"] for report in reports] == [again["job_id"], first["job_id"]]
    key = reports[0]["documents"]["json"].removeprefix(f"s3://{scans.archive}/")
    document = json.loads(scans.client("s3").get_object(Bucket=scans.archive, Key=key)["Body"].read())
    assert {one["id"] for one in document["findings"]} == seen.keys()
    assert len(document["trend"]) == 2


def test_what_is_no_findings_fails_the_region_with_one_sentence_and_resolves_nothing(scans: Deployed, api: Api) -> None:
    s3, key = scans.client("s3"), f"findings/regions/{HOME}/{REGIONS[0]}.json.gz"
    kept = s3.get_object(Bucket=scans.archive, Key=key)["Body"].read()
    s3.put_object(Bucket=scans.archive, Key=key, Body=b"scribbled")
    try:
        told = Machine(scans, "cloud", ("security_enforcement",)).run()
        [actions, report, region] = told["errors"]
        assert actions.startswith(
            f"actions: Unreadable: s3://{scans.archive}/{key} is not what Lamplighter wrote there"
        )
        assert region.startswith(f"regions: {HOME}/{REGIONS[0]}: Unreadable: s3://{scans.archive}/{key} is not what")
        assert report.startswith(f"report: Unreadable: s3://{scans.archive}/{key} is not what Lamplighter wrote there")
        answer = api.get("/api/cloud/findings")
        assert (answer.status_code, answer.json()["title"]) == (409, "Unreadable")
        assert s3.get_object(Bucket=scans.archive, Key=key)["Body"].read() == b"scribbled"
    finally:
        s3.put_object(Bucket=scans.archive, Key=key, Body=kept)
    assert {one["status"] for one in findings(api)} == {"open"}


def test_an_upload_is_processed_and_its_record_stays(scans: Deployed) -> None:
    """D1-D4: the files expire by their time to live; the record stays as long as those of other jobs."""
    folder = Folder(scans)
    row = '"13/03/24, 14:05","José Pérez",-,"Curso: 7",Sistema,"Curso visto","El usuario 12",web,10.0.0.1\r\n'
    job = folder.done(folder.put("log.csv", SPANISH + row))
    assert (job.status, job.errors) == (Status.COMPLETED, ())
    assert folder.keys() == set()
    assert folder.keys(f"outputs/{job.job_id}/") == set(job.output_keys)
    machine = Machine(scans, "cleanup", ("upload_cleanup",))
    for age, gone in ((timedelta(days=2), (2, 0)), (timedelta(days=31), (0, 1))):
        then = to_text(utc_now() - age)
        scans.backdate(job.job_id, created_at=then, finished_at=then)
        told = machine.run()["phases"]["uploads"]
        assert (told["outputs_deleted"], told["jobs_cleaned"], told["errors"]) == (*gone, [])
    assert scans.ledger.store.get(job.job_id) is None


def test_the_cleanup_does_the_ledgers_phases_and_names_those_that_it_left_out(scans: Deployed) -> None:
    told = Machine(scans, "cleanup", ("cleanup",)).run()
    assert (told["status"], told["without_database"], told["errors"]) == ("completed", ["downloads", "plans"], [])


def test_what_needs_a_database_says_so_in_one_sentence(scans: Deployed, api: Api) -> None:
    """K14: final at once, and nothing is left behind."""
    for job_type in ("database_cleanup", "instance_health", "audit_archive"):
        answer = api.post(f"/api/jobs/run/{job_type}", {})
        detail = f"No database is configured: {job_type} needs one. Deploy with DatabaseSecretArn, DatabaseHost or "
        assert (answer.status_code, answer.json()["detail"]) == (409, f"{detail}DatabaseUrl.")
        assert scans.of_type(job_type) == []
    answer = api.post("/api/jobs/run/cleanup", {"params": {"phases": ["stale_jobs", "downloads"]}})
    assert answer.json()["detail"].startswith("No database is configured: downloads needs one.")
    for schedule in NEED_DATABASE:
        answer = api.post(f"/api/schedules/{schedule}/start")
        assert (answer.status_code, answer.json()["title"]) == (409, "No database"), schedule
    with pytest.raises(FunctionFailed, match=r"NoDatabase: No database is configured: .* needs one\. Deploy with"):
        scans.invoke("orphan-cleanup", {})
    with pytest.raises(FunctionFailed, match="NoDatabase: No database is configured"):
        scans.invoke("migrate", {})
    ended = Machine(scans, "cloud", ("instance_health",))
    assert ended.end(ended.start()).error == "NoDatabase"
    answer = api.post("/api/retention/simulate", {"rule": "system_logs", "keep_days": 30})
    assert (answer.status_code, answer.json()["title"]) == (409, "No database")
    assert api.get("/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV").status_code == 404


def test_no_alarm_has_anything_to_say(scans: Deployed) -> None:
    """A schedule that is off is not missed, and nothing was undeliverable."""
    eventually(lambda: scans.invoke("schedule-watch", {}).get("overdue") in ([], None) or None)
    attributes = scans.client("sqs").get_queue_attributes(
        QueueUrl=scans.failures_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    assert attributes["Attributes"]["ApproximateNumberOfMessages"] == "0"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
