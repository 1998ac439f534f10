"""The preflight through the API of the deployed stack, with its own rights and no others (REQUIREMENTS O4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local.signed import Api
from tests.e2e.deployed import Deployed, Shelf


def preflight(stack: Deployed) -> dict[str, Any]:
    """The result of a run that the API starts."""
    answer = Api(stack.api_url).post("/api/jobs/run/preflight", {"params": {}})
    assert answer.status_code == 202, answer.text
    job = stack.becomes(answer.json()["job_id"], "completed", "failed")
    assert job.status == "completed", job.errors
    return dict(job.result or {})


def read(stack: Deployed, address: str) -> str:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return str(stack.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode())


def test_it_runs_through_the_api_and_leaves_a_page(stack: Deployed, shelf: Shelf) -> None:
    shelf.put("one.jpg")
    shelf.refer("one.jpg")
    stack.sql("INSERT INTO sessions VALUES ('preflight', 'ann', now() - interval '1 day') ON CONFLICT DO NOTHING")
    with stack.with_settings({"media": {"references": [shelf.reference()], "base_path": shelf.name}}):
        report = preflight(stack)
    document = json.loads(read(stack, report["documents"]["json"]))
    items = {item["name"]: item for section in document["sections"] for item in section["items"]}
    assert (report["verdict"], report["blocked"]) == (document["verdict"], []), report
    undeclared = [one for one in report["warnings"] if "is not declared and seems to name files" in one]
    assert report["warnings"] == undeclared, "other tests may have left tables that name files"
    assert items["retention.rules.sessions"]["facts"]["rows"] >= 1
    assert items["media.bucket"]["facts"]["objects"] >= 1
    assert items["cost at rest"]["facts"]["usd"] > 0
    page = read(stack, report["documents"]["html"])
    assert f"<h1>Preflight: {report['verdict']}</h1>" in page
    assert stack.sql("SELECT count(*) FROM sessions WHERE id = 'preflight'")[0][0] == 1


@pytest.mark.parametrize("what", ["a bucket that may not be listed", "no database"])
def test_what_it_cannot_read_is_one_sentence(stack: Deployed, what: str) -> None:
    variables = {
        "a bucket that may not be listed": {"MEDIA_BUCKET": "somebody-elses-bucket"},
        "no database": {"DATABASE_URL": "postgresql://lamplighter@127.0.0.1:9/none?sslmode=disable"},
    }[what]
    with stack.overriding("preflight", **variables):
        report = preflight(stack)
    assert report["verdict"] == "blocked"
    named = {one.partition(":")[0] for one in report["blocked"]}
    assert named == {"media.bucket" if "MEDIA_BUCKET" in variables else "database"}, report
    assert report["documents"].keys() == {"json", "html"}
