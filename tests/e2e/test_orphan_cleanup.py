"""Orphaned media, from the preview to the undo, in the deployed stack (REQUIREMENTS A1-A7, K3, K7, K8, K11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.kernel.job import FRESH
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status
from tests.e2e.deployed import Deployed, FunctionFailed, Mailbox, Shelf, Turnstile, eventually

ODD = (
    "with space.jpg",
    "plus+and%2Bpercent.png",
    "ünïcødé-🏮.mp4",
    "quotes'\"<&>.gif",
    "UPPER.JPEG",
    "two//slashes.webp",
    "control\x01character.png",
)


def test_what_is_previewed_is_deleted_and_can_be_undone(stack: Deployed, shelf: Shelf) -> None:
    """A1-A5, A7, K11."""
    longest = "l" * (1024 - len(shelf.name) - 5) + ".jpg"
    orphans = shelf.put("orphan.jpg", longest, *ODD, body=b"12345")
    kept = shelf.put("kept.jpg", "kept with space+plus.mp4", "notes.txt", "no-extension", "folder.jpg/", body=b"123")
    shelf.refer("kept.jpg", "kept with space+plus.mp4", "a row without a file.jpg")
    everything = shelf.keys()
    assert everything == orphans | kept

    with stack.with_settings({"media": {"references": [shelf.reference(max_unmatched=1)]}}):
        preview = shelf.clean(references=None, dry_run=True)
    assert shelf.keys() == everything
    assert preview["dry_run"] is True
    assert (preview["deleted_files"], preview["would_delete_files"]) == (0, len(orphans))
    assert {
        key for key, entry in stack.outcomes(preview["manifest"]).items() if entry.outcome == "would_delete"
    } == orphans

    with stack.with_settings({"media": {"references": [shelf.reference(max_unmatched=1)]}}):
        report = shelf.clean(references=None)
    assert shelf.keys() == kept
    expected = {
        "status": "completed",
        "scanned_files": len(orphans) + 2,
        "orphaned_files": len(orphans),
        "deleted_files": len(orphans),
        "deleted_bytes": 5 * len(orphans),
        "failed_deletions": [],
        "dry_run": False,
        "skipped_young": 0,
        "skipped_size_limit": 0,
        "skipped_not_media": 3,
    }
    assert {name: report[name] for name in expected} == expected
    assert report["duration_seconds"] > 0
    row = stack.ledger.get(report["job_id"])
    assert (row.status, row.progress, row.dry_run) == (Status.COMPLETED, 100, False)
    assert row.result is not None and row.result["deleted_files"] == len(orphans)

    body = stack.client("s3").get_object(Bucket=stack.archive, Key=report["manifest"]["key"])["Body"].read()
    assert hashlib.sha256(body).hexdigest() == report["manifest"]["sha256"]
    assert {key: entry.outcome for key, entry in stack.outcomes(report["manifest"]).items()} == dict.fromkeys(
        orphans, "deleted"
    )

    undone = stack.invoke("undo", {"job_id": report["job_id"], "dry_run": False})
    assert (undone["restored_files"], undone["failed_restorations"]) == (len(orphans), [])
    assert shelf.keys() == everything
    again = stack.invoke("undo", {"job_id": report["job_id"], "dry_run": False})
    assert (again["restored_files"], again["already_restored"]) == (0, len(orphans))


def test_previews_unless_told_otherwise_and_leaves_young_files_alone(stack: Deployed, shelf: Shelf) -> None:
    """A2, A3: neither `dry_run` nor `min_age_hours` is given, so the settings' defaults hold."""
    files = shelf.put("one.jpg", "two.jpg")
    with stack.with_settings({"media": {"apply": False, "min_age_hours": 24}}):
        report = shelf.clean(dry_run=None)
    assert report["dry_run"] is True
    assert (report["scanned_files"], report["skipped_young"], report["orphaned_files"]) == (2, 2, 0)
    assert shelf.keys() == files


def test_tells_young_files_from_old_ones(stack: Deployed, shelf: Shelf) -> None:
    """A2."""
    (old,) = shelf.put("old.jpg")
    since = stack.client("s3").head_object(Bucket=stack.media, Key=old)["LastModified"]
    age = timedelta(seconds=6)
    eventually(lambda: utc_now() - since > age)
    young = shelf.put("young.jpg")
    shelf.refer("young.jpg")
    report = shelf.clean(min_age_hours=age / timedelta(hours=1))
    assert (report["deleted_files"], report["skipped_young"]) == (1, 1)
    assert shelf.keys() == young


def test_stops_before_the_size_limit(shelf: Shelf) -> None:
    """A4: what is left is counted."""
    shelf.put("a.jpg", "b.jpg", "c.jpg", "kept.jpg", body=b"x" * 400)
    shelf.refer("kept.jpg")
    report = shelf.clean(max_delete_gb=0.000_001)
    assert (report["deleted_files"], report["deleted_bytes"], report["skipped_size_limit"]) == (2, 800, 1)
    assert len(shelf.keys()) == 2


def test_an_unknown_parameter_deletes_nothing(stack: Deployed, shelf: Shelf) -> None:
    """K11: a misspelt `dry_run` is an error and no deletion."""
    files = shelf.put("a.jpg")
    with pytest.raises(FunctionFailed, match="InvalidParams: dry-run is not a parameter of orphan_cleanup"):
        shelf.clean(**{"dry-run": True})
    assert shelf.keys() == files


# -- governor --------------------------------------------------------------------------------------------------------


def test_no_references_delete_nothing_and_alert(stack: Deployed, shelf: Shelf, alerts: Mailbox) -> None:
    """A7, K9; FAILURES 8: a database without rows looks like a bucket full of orphans."""
    files = shelf.put("a.jpg", "b.jpg")
    with pytest.raises(FunctionFailed, match=r"Refused: There are no references at all in .* Nothing was deleted\."):
        shelf.clean()
    assert shelf.keys() == files
    (row,) = shelf.jobs()
    assert (row.status, row.dead_letter, row.attempt) == (Status.FAILED, "permanent", 1)
    assert row.result is not None and row.result["status"] == "refused"
    eventually(lambda: alerts.about(row.job_id))


def test_too_many_orphans_delete_nothing(shelf: Shelf) -> None:
    """A7; FAILURES 7: ten times as many orphans as expected."""
    files = shelf.put("a.jpg", "b.jpg", "c.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    with pytest.raises(FunctionFailed, match=r"3 of 4 files \(75%\) are orphans; 20% may be\."):
        shelf.clean(max_orphan_share=0.2)
    assert shelf.keys() == files


def test_override_needs_two_switches(stack: Deployed, shelf: Shelf) -> None:
    """A7, S2; FAILURES 10 and 22: neither switch does it alone."""
    files = shelf.put("a.jpg")
    with pytest.raises(FunctionFailed, match="set the setting allow_override to true"):
        shelf.clean(override=True)
    with stack.with_settings({"allow_override": True}):
        with pytest.raises(FunctionFailed, match="set the parameter override to true"):
            shelf.clean()
        assert shelf.keys() == files
        assert shelf.clean(override=True)["deleted_files"] == 1


def test_quarantine_deletes_what_an_earlier_run_listed_unchanged(shelf: Shelf) -> None:
    """A7; FAILURES 9: an object that was overwritten under its key begins its quarantine anew."""
    shelf.put("orphan.jpg", "overwritten.jpg")
    shelf.refer("elsewhere.jpg")
    shelf.put("elsewhere.jpg")
    quarantine = timedelta(seconds=0.5)
    hours = quarantine / timedelta(hours=1)
    first = shelf.clean(quarantine_hours=hours)
    served = utc_now() + quarantine
    assert (first["deleted_files"], first["skipped_quarantine"]) == (0, 2)
    shelf.put("overwritten.jpg", body=b"new")
    eventually(lambda: utc_now() > served)
    second = shelf.clean(quarantine_hours=hours)
    assert (second["deleted_files"], second["skipped_quarantine"]) == (1, 1)
    assert shelf.keys() == {shelf.key("overwritten.jpg"), shelf.key("elsewhere.jpg")}


# -- between the scan and the deletion -------------------------------------------------------------------------------


def test_what_changes_between_scan_and_deletion_is_kept(
    stack: Deployed, shelf: Shelf, background: Callable[..., Future[Any]]
) -> None:
    """A7; FAILURES 5: referenced again, replaced, or gone since the scan."""
    shelf.put("adopted.jpg", "replaced.jpg", "gone.jpg", "orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    with Turnstile(stack.engine, shelf.name) as turnstile:
        run = background(shelf.clean)
        turnstile.wait()  # first reading
        turnstile.step()  # second reading
        turnstile.step()  # re-check
        shelf.put("replaced.jpg", body=b"new")
        stack.client("s3").delete_object(Bucket=stack.media, Key=shelf.key("gone.jpg"))
        turnstile.connection.exec_driver_sql(f"INSERT INTO {shelf.name} VALUES (%s)", (shelf.key("adopted.jpg"),))
        turnstile.release()
        report = run.result(30)
    assert shelf.keys() == {shelf.key(name) for name in ("adopted.jpg", "replaced.jpg", "kept.jpg")}
    outcomes = ("deleted_files", "kept_referenced_again", "kept_changed", "already_gone", "failed_deletions")
    assert [report[name] for name in outcomes] == [1, 1, 1, 1, []]


def test_undo_refuses_an_altered_manifest(stack: Deployed, shelf: Shelf) -> None:
    """A7."""
    shelf.put("a.jpg", "b.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    report = shelf.clean()
    s3, key = stack.client("s3"), report["manifest"]["key"]
    manifest = json.loads(s3.get_object(Bucket=stack.archive, Key=key)["Body"].read())
    s3.put_object(Bucket=stack.archive, Key=key, Body=json.dumps(manifest | {"scope": f"{stack.uploads}/-"}))
    with pytest.raises(FunctionFailed, match=r"is not what was written \(its SHA-256 differs\): nothing was touched"):
        stack.invoke("undo", {"job_id": report["job_id"], "dry_run": False})
    assert shelf.keys() == {shelf.key("kept.jpg")}


# -- long runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd() -> list[str]:
    """Names of more orphans than one part of a plan takes."""
    return [f"{n:05}.jpg" for n in range(1_100)]


def test_a_second_run_is_refused_and_told_who_holds_the_lock(
    stack: Deployed, shelf: Shelf, background: Callable[..., Future[Any]]
) -> None:
    """K3."""
    shelf.put("a.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    with Turnstile(stack.engine, shelf.name) as turnstile:
        first = background(shelf.clean)
        turnstile.wait()
        with pytest.raises(FunctionFailed, match="AlreadyRunning") as refusal:
            stack.invoke("orphan-cleanup", shelf.params)
        turnstile.release()
        report = first.result(30)
    assert report["job_id"] in str(refusal.value)
    assert report["deleted_files"] == 1


def test_progress_shows_and_cancellation_stops_it_within_a_part(
    stack: Deployed, shelf: Shelf, crowd: list[str], background: Callable[..., Future[Any]]
) -> None:
    """K7: a cancelled run says what it had already done, and undo brings that back."""
    orphans = shelf.put(*crowd)
    shelf.put("kept.png")
    shelf.refer("kept.png")
    with Turnstile(stack.engine, shelf.name) as turnstile:
        run = background(shelf.clean)
        turnstile.wait()  # first reading
        turnstile.step()  # second reading
        job_id = shelf.jobs()[0].job_id
        _let_the_heartbeat_age(stack, job_id)
        turnstile.step()  # re-check of the first part
        row = stack.ledger.get(job_id)
        assert row.message == "1 references read"
        stack.ledger.cancel(job_id)
        _let_the_heartbeat_age(stack, job_id)
        turnstile.release()
        report = run.result(30)
    assert report["status"] == "cancelled"
    assert report["deleted_files"] == 1_000
    row = stack.ledger.get(job_id)
    assert row.status is Status.CANCELLED and row.result is not None and row.result["deleted_files"] == 1_000
    assert len(shelf.keys()) == len(crowd) + 1 - 1_000

    undone = stack.invoke("undo", {"job_id": job_id, "dry_run": False})
    assert undone["restored_files"] == 1_000
    assert shelf.keys() >= orphans


def test_a_run_that_does_not_fit_the_timeout_goes_on_from_its_checkpoint(
    stack: Deployed, shelf: Shelf, crowd: list[str], background: Callable[..., Future[Any]]
) -> None:
    """K8: stopped in the scan and again between two parts, never begun anew, continued by the dispatcher alone."""
    shelf.put(*crowd)
    kept = shelf.put("kept.png", "notes.txt")
    shelf.refer("kept.png")
    with stack.configured("orphan-cleanup", Timeout=14), Turnstile(stack.engine, shelf.name) as turnstile:
        run = background(shelf.clean)
        turnstile.wait()  # first reading
        row = shelf.jobs()[0]
        _let_the_run_age(stack, row.job_id, seconds=3.5)
        turnstile.step()  # second reading
        _let_the_run_age(stack, row.job_id, seconds=7.2)
        turnstile.step()  # the run stops: the next look is the continuation's second reading
        answer = run.result(30)
        assert answer["finished"] is False
        assert answer["scanned_files"] == len(crowd) + 1
        assert stack.ledger.get(row.job_id).continuation == 1
        _let_the_run_age(stack, row.job_id, seconds=3.5)
        turnstile.step()  # re-check of the first part
        _let_the_run_age(stack, row.job_id, seconds=7.2)
        turnstile.step()  # the second continuation's reading
        assert len(shelf.keys()) == len(crowd) - 1_000 + len(kept)
        turnstile.release()
        row = stack.becomes(row.job_id, "completed", "failed")
    assert (row.status, row.attempt, row.continuation, row.errors) == (Status.COMPLETED, 1, 2, ())
    assert row.result is not None
    counts = ("scanned_files", "orphaned_files", "deleted_files", "deleted_bytes", "skipped_not_media")
    assert [row.result[name] for name in counts] == [len(crowd) + 1, len(crowd), len(crowd), len(crowd), 1]
    assert shelf.keys() == kept
    assert len(stack.outcomes(row.result["manifest"])) == len(crowd)


def _let_the_heartbeat_age(stack: Deployed, job_id: str) -> None:
    """Until a body that asks whether to stop sends a heartbeat first."""
    eventually(lambda: utc_now() - (stack.ledger.get(job_id).heartbeat_at or utc_now()) >= FRESH)


def _let_the_run_age(stack: Deployed, job_id: str, *, seconds: float) -> None:
    """Of a timeout of 14 s, a run stops after half. It waits for a lock for 5 s at most, so it ages in two places."""
    age = timedelta(seconds=seconds)
    eventually(lambda: utc_now() - (stack.ledger.get(job_id).started_at or utc_now()) >= age)
