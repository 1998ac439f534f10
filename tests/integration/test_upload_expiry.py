"""Expiry of uploads, over a real S3 endpoint, job table and Postgres (REQUIREMENTS D3-D5, K7, K8, K11)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import Engine, select

from lamplighter.kernel import database
from lamplighter.kernel.database import job_history
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Job, Policy, Status, decode
from lamplighter.kernel.settings import Settings
from lamplighter.uploads import objects, upload_expiry
from lamplighter.uploads.upload_expiry import Report, body
from tests.integration.media_world import ScriptedRun, Stop
from tests.integration.uploads_world import KEY, Uploads, lines

pytestmark = pytest.mark.usefixtures("engine")


def expire(uploads: Uploads, *, hours: float = 0, stops: dict[int, Stop] | None = None, **values: Any) -> Any:
    """What the phase answers when it is so many hours later; `values` are of its run's row."""
    policy = Policy(timeout=timedelta(minutes=5))
    row = uploads.ledger.new_job("upload_cleanup", policy, **values)
    now = utc_now() + timedelta(hours=hours)
    return body(ScriptedRun(row, settings=Settings(), now=now, stops=stops or {}))


def completed(uploads: Uploads, body: str = lines(3)) -> Job:
    job = uploads.due(body)
    uploads.work(job)
    job = uploads.ledger.get(job.job_id)
    assert job.status is Status.COMPLETED
    return job


def failed(uploads: Uploads) -> Job:
    job = uploads.due("no log")
    uploads.work(job)
    job = uploads.ledger.get(job.job_id)
    assert job.status is Status.FAILED
    return job


def kept(engine: Engine) -> dict[str, Job]:
    """What the history holds."""
    with engine.connect() as connection:
        return {row.job_id: decode(row.job) for row in connection.execute(select(job_history))}


def gone(uploads: Uploads, job: Job) -> bool:
    return uploads.ledger.store.get(job.job_id) is None


def refuse_deletion(monkeypatch: pytest.MonkeyPatch, uploads: Uploads, key: str) -> None:
    """S3 refuses to delete this key."""
    delete = uploads.s3.delete_object

    def refuse(**asked: Any) -> Any:
        if asked["Key"] == key:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DeleteObject")
        return delete(**asked)

    monkeypatch.setattr(uploads.s3, "delete_object", refuse)


def test_files_and_records_expire_by_status(uploads: Uploads, engine: Engine) -> None:
    """D4; FAILURES 18: whoever looks later than an hour finds in the history why it failed."""
    done, broken = completed(uploads), failed(uploads)
    cancelled = uploads.ledger.cancel(uploads.due(lines(1)).job_id)
    active = uploads.due(lines(2))

    assert expire(uploads, hours=0.9).jobs_cleaned == 0
    report = expire(uploads, hours=1.1)
    assert (report.status, report.jobs_cleaned, report.active_jobs) == ("completed", 2, 1)
    assert gone(uploads, broken) and gone(uploads, cancelled)
    assert kept(engine)[broken.job_id].errors[0].message.startswith(f"{KEY}: not a Moodle course log")
    assert uploads.keys() == {KEY, *done.output_keys}

    assert expire(uploads, hours=23.9).jobs_cleaned == 0
    report = expire(uploads, hours=24.1)
    assert (report.jobs_cleaned, report.outputs_deleted, report.completed) == (1, 2, 1)
    assert gone(uploads, done)
    assert kept(engine).keys() == {done.job_id, broken.job_id, cancelled.job_id}
    assert uploads.keys() == {KEY}
    assert uploads.ledger.get(active.job_id) == active, "An active job is never touched."


def test_a_preview_says_what_a_run_does(uploads: Uploads, engine: Engine) -> None:
    """K11."""
    completed(uploads)
    failed(uploads)
    uploads.put("x", "inputs/lost.csv")
    uploads.put("x", "outputs/01ARZ3NDEKTSV4RRFFQ69G5FAV/results.zip")
    before = uploads.keys()
    preview = expire(uploads, hours=25, dry_run=True)
    assert uploads.keys() == before
    assert not kept(engine)
    report = expire(uploads, hours=25)
    counts = ("jobs_cleaned", "inputs_deleted", "outputs_deleted", "uploads_found", "freed_bytes", "completed")
    assert [getattr(preview, name) for name in counts] == [getattr(report, name) for name in counts]
    assert [(item.kind, item.name, item.bytes) for item in preview.items] == [
        (item.kind, item.name, item.bytes) for item in report.items
    ]
    assert report.counts() == (2, report.freed_bytes)
    assert report.freed_bytes > 1_000


def test_a_deletion_that_fails_blocks_only_its_own_record(
    uploads: Uploads, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3, D4, K11."""
    stuck, other = completed(uploads), completed(uploads)
    with monkeypatch.context() as patch:
        refuse_deletion(patch, uploads, objects.results_key(stuck.job_id))
        report = expire(uploads, hours=25)
    assert (report.status, report.jobs_cleaned) == ("completed_with_errors", 1)
    (sentence,) = report.errors
    assert sentence.startswith(f"{objects.results_key(stuck.job_id)}: failed: ")
    assert gone(uploads, other) and not gone(uploads, stuck)
    assert expire(uploads, hours=25).jobs_cleaned == 1
    assert kept(engine).keys() == {stuck.job_id, other.job_id}
    assert not uploads.keys()


def test_the_input_of_a_dead_job_goes_at_once(uploads: Uploads) -> None:
    """D3: it was killed, or its own deletion failed."""
    run = uploads.claimed(lines(1))
    job = uploads.ledger.fail(run.job, Permanent("killed"))
    report = expire(uploads)
    assert (report.inputs_deleted, report.jobs_cleaned) == (1, 0)
    assert not uploads.keys()
    assert not gone(uploads, job)


def test_the_same_file_put_there_again_is_not_taken_for_the_old_one(uploads: Uploads) -> None:
    """FAILURES 9: it has the ETag of an upload that failed, and its event is still under way."""
    run = uploads.claimed(lines(1))
    job = uploads.ledger.fail(run.job, Permanent("killed"))
    uploads.backdate(job, hours=1)
    assert expire(uploads).inputs_deleted == 0
    assert uploads.holds(KEY)


def test_an_upload_whose_event_was_lost_gets_its_job_once(uploads: Uploads) -> None:
    etag = uploads.put(lines(4))
    assert expire(uploads, hours=0.2).uploads_found == 0, "The event may still come."
    assert expire(uploads, hours=0.3).uploads_found == 1
    assert expire(uploads, hours=0.4).uploads_found == 0
    (job,) = newest(uploads.ledger.store, "upload_processing", limit=10)
    assert (job.status, job.payload) == (Status.PENDING, {"key": KEY, "etag": etag})
    assert uploads.work(job)["rows"] == 4
    assert not uploads.holds(KEY)


def test_a_preview_of_an_input_is_no_reason_to_delete_it(uploads: Uploads) -> None:
    etag = uploads.put(lines(4))
    uploads.preview(etag)
    report = expire(uploads, hours=0.1)
    assert report.inputs_deleted == 0
    assert uploads.holds(KEY)


def test_outputs_that_no_job_knows_are_removed_when_they_are_old(uploads: Uploads) -> None:
    """What a crash leaves; never what an active job is about to have."""
    active = uploads.due(lines(1))
    uploads.put("half", objects.results_key(active.job_id))
    uploads.put("orphan", "outputs/01ARZ3NDEKTSV4RRFFQ69G5FAV/results.zip")
    uploads.put("stray", "outputs/stray")
    before = uploads.keys()
    assert expire(uploads, hours=23).outputs_deleted == 0
    assert uploads.keys() == before
    report = expire(uploads, hours=25)
    assert (report.outputs_deleted, report.freed_bytes) == (2, 11)
    assert uploads.keys() == {KEY, objects.results_key(active.job_id)}


def test_without_the_database_files_go_and_records_stay(
    uploads: Uploads, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B10, D4: nothing leaves the ledger that the history does not have."""
    jobs = [completed(uploads), failed(uploads)]
    uploads.put("x", "inputs/lost.csv")
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
        database.engine.cache_clear()
        with pytest.raises(DatabaseUnavailable):
            expire(uploads, hours=25)
    database.engine.cache_clear()
    assert not uploads.keys() & {key for job in jobs for key in job.output_keys}
    assert not any(gone(uploads, job) for job in jobs)
    assert len(newest(uploads.ledger.store, "upload_processing", limit=10)) == 3, "The lost one got its job."
    assert expire(uploads, hours=25).jobs_cleaned == 2
    assert kept(engine).keys() == {job.job_id for job in jobs}


def test_without_a_database_a_record_stays_as_long_as_those_of_other_jobs(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: its files go at their time; what became of a failed one can be seen for a month."""
    monkeypatch.delenv("DATABASE_URL")
    jobs = [completed(uploads), failed(uploads)]
    report = expire(uploads, hours=25)
    assert (report.status, report.jobs_cleaned, report.outputs_deleted) == ("completed", 0, 2)
    assert not any(gone(uploads, job) for job in jobs)
    preview = expire(uploads, hours=30 * 24 + 1, dry_run=True)
    assert not any(gone(uploads, job) for job in jobs)
    assert {item.outcome for item in preview.items} == {
        "completed, its record would be deleted",
        "failed, its record would be deleted",
    }
    assert expire(uploads, hours=30 * 24 - 1).jobs_cleaned == 0
    assert expire(uploads, hours=30 * 24 + 1).jobs_cleaned == preview.jobs_cleaned == 2
    assert all(gone(uploads, job) for job in jobs)


def test_stopped_anywhere_it_goes_on_and_counts_on(uploads: Uploads, engine: Engine) -> None:
    """K8."""
    unfinished = 0
    for asked in range(1, 8):
        jobs = [completed(uploads), completed(uploads), failed(uploads)]
        freed = sum(found.size for found in objects.listed(uploads.s3, uploads.bucket, objects.OUTPUTS))
        report = expire(uploads, hours=25, stops={asked: "out_of_time"})
        if isinstance(report, Unfinished):
            unfinished += 1
            report = expire(uploads, hours=25, checkpoint=json.loads(json.dumps(report.checkpoint)))
        assert (report.jobs_cleaned, report.outputs_deleted, report.freed_bytes) == (3, 4, freed)
        assert kept(engine).keys() >= {job.job_id for job in jobs}
    assert unfinished >= 4


def test_cancelled_it_says_what_it_had_done(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """K7."""
    monkeypatch.setattr(upload_expiry, "PAGE", 1)
    jobs = [failed(uploads) for _ in range(3)]
    report = expire(uploads, hours=25, stops={5: "cancelled"})
    assert isinstance(report, Report)
    assert report.jobs_cleaned == sum(gone(uploads, job) for job in jobs) == 1


def test_metrics_and_log_tell_the_hour(
    uploads: Uploads, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """D5."""
    completed(uploads)
    run = uploads.claimed(lines(1))
    uploads.ledger.fail_as(run.job, "TimedOut", "late", retry=False)
    uploads.due(lines(2))
    capsys.readouterr()
    report = expire(uploads, hours=25)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    (metrics,) = [line for line in printed if "_aws" in line]
    assert {name: metrics[name] for name in ("JobsCleaned", "Timeouts", "ActiveJobs")} == {
        "JobsCleaned": [2.0],
        "Timeouts": [1.0],
        "ActiveJobs": [1.0],
    }
    assert metrics["SpaceFreed"] == [report.freed_bytes / 1_000_000]
    assert metrics["MeanDuration"] == [report.mean_duration_seconds]
    assert metrics["job"] == "upload_processing"
    (line,) = [vars(record) for record in caplog.records if record.message == "uploads expired"]
    assert (line["jobs_cleaned"], line["disk_freed_mb"]) == (2, round(report.freed_bytes / 1_000_000, 3))
    assert line["duration_ms"] == report.duration_ms
