"""What a run leaves behind, and the settings it obeys (REQUIREMENTS K4, K9)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from lamplighter.kernel.ledger.ledger import utc_now
from tests.e2e.deployed import Deployed, FunctionFailed, Mailbox, Shelf, eventually


def test_a_run_leaves_logs_metrics_and_history(stack: Deployed, shelf: Shelf) -> None:
    """K9."""
    shelf.put("a.jpg", "b.jpg", "c.jpg", "kept.jpg", body=b"12345")
    shelf.refer("kept.jpg")
    before = {name: _sum(stack, name) for name in ("Runs", "Items", "Bytes", "Duration", "Failures")}
    report = shelf.clean()
    job_id = report["job_id"]

    lines = eventually(lambda: len(found := stack.logs("orphan-cleanup", job_id)) >= 2 and found)
    told = [line for line in lines if line["message"] in ("started", "ended")]
    assert [line["message"] for line in told] == ["started", "ended"]
    assert {(line["job"], line["job_id"], line["attempt"]) for line in told} == {("orphan_cleanup", job_id, 1)}
    assert told[1]["report"]["deleted_files"] == 3

    grown = {name: _sum(stack, name) - before[name] for name in before}
    assert grown["Runs"] >= 1 and grown["Items"] >= 3 and grown["Bytes"] >= 15 and grown["Duration"] > 0

    rows = stack.history(job_id, rows=2)
    assert [(row.level, row.message, row.job_type) for row in rows] == [
        ("INFO", "started, attempt 1 of 4", "orphan_cleanup"),
        ("INFO", "completed", "orphan_cleanup"),
    ]
    assert rows[1].details["result"]["deleted_files"] == 3
    assert rows[1].details["duration_seconds"] > 0


def test_a_failed_run_leaves_its_stack_trace_and_a_count(stack: Deployed, shelf: Shelf) -> None:
    """K9, K1."""
    before = _sum(stack, "Failures")
    with pytest.raises(FunctionFailed, match="there is no table there_is_none"):
        shelf.clean(references=[{"table": "there_is_none", "column": "storage_key"}])
    (row,) = shelf.jobs()
    assert "Traceback" in row.errors[0].stack_trace and row.errors[0].type == "Permanent"
    eventually(lambda: _sum(stack, "Failures") > before)
    rows = stack.history(row.job_id, rows=2)
    assert (rows[1].level, rows[1].message) == ("ERROR", "failed")
    assert "Traceback" in rows[1].details["errors"][0]["stack_trace"]


def _sum(stack: Deployed, metric: str) -> float:
    """A metric of the orphan cleanup, over all time."""
    points = stack.client("cloudwatch").get_metric_statistics(
        Namespace="Lamplighter",
        MetricName=metric,
        Dimensions=[{"Name": "job", "Value": "orphan_cleanup"}, {"Name": "service", "Value": stack.name}],
        StartTime=utc_now() - timedelta(hours=1),
        EndTime=utc_now() + timedelta(minutes=5),
        Period=86_400,
        Statistics=["Sum"],
    )["Datapoints"]
    return float(sum(point["Sum"] for point in points))


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def override(stack: Deployed) -> Iterator[Callable[[str], None]]:
    """Puts the settings parameter, and has the checker look at it."""

    def put(value: str) -> None:
        stack.client("ssm").put_parameter(Name=stack.parameter, Value=value, Overwrite=True)
        stack.check()

    yield put
    stack.put_settings({})


def test_settings_are_overridden_without_a_deployment(
    stack: Deployed, shelf: Shelf, alerts: Mailbox, override: Callable[[str], None]
) -> None:
    """K4, A4: a good override is obeyed; a bad one is refused as a whole, told of once, and the last good one stays."""
    shelf.put("a.jpg", "b.jpg", "c.jpg", "kept.jpg", body=b"x" * 400)
    shelf.refer("kept.jpg")
    assert shelf.clean(dry_run=True)["skipped_size_limit"] == 0
    good = {"orphan_cleanup_max_delete_gb": 0.000_001, "orphan_cleanup_dry_run": True}
    override(json.dumps(stack.document(good)))
    assert shelf.clean(dry_run=True)["skipped_size_limit"] == 1

    override(json.dumps({"orphan_cleanup_max_delete_gb": -1, "orphan_cleanup_dry_run": False}))
    for _ in range(2):
        report = shelf.clean(dry_run=None)
        assert (report["dry_run"], report["skipped_size_limit"]) == (True, 1)
    told = eventually(lambda: alerts.about("orphan_cleanup_max_delete_gb: input"))
    assert len(told) == 1
    message = json.loads(told[0])["Message"]
    assert "orphan_cleanup_max_delete_gb: input should be greater than or equal to 0, got -1" in message
    assert "was refused as a whole" in message and "stay in force" in message
