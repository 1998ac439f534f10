"""An upload from its event to its zip, in a real S3 endpoint and ledger (REQUIREMENTS D1-D3, K7)."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status
from lamplighter.kernel.ledger.store import Change
from lamplighter.uploads import log, objects, upload_intake, upload_processing
from lamplighter.uploads.headings import NotALog
from lamplighter.uploads.objects import InputMissing
from lamplighter.uploads.upload_processing import Params, Report, TimedOut, TooLarge, handler
from tests.integration.uploads_world import ENGLISH, KEY, Uploads, lines
from tests.unit.conftest import FakeContext

GERMAN = (
    "Zeit;Vollständiger Name;Betroffene/r Nutzer/in;Ereigniskontext;Komponente;Ereignisname;Beschreibung;Herkunft;"
    "IP-Adresse"
)


def test_a_log_becomes_a_zip_and_its_input_goes(uploads: Uploads) -> None:
    """D1, D3: German, with bad rows, a formula, a key that has to be spelled with care."""
    job = uploads.due(
        f"\ufeff{GERMAN}\r\n"
        '12.03.2024 14:05;=HYPERLINK("http://x");-;Kurs: 1;System;Kurs angezeigt;"Text; mit Semikolon";web;10.0.0.1\r\n'
        "irgendwann;Jörg;-;Kurs: 1;System;Kurs angezeigt;Text;web;10.0.0.1\r\n"
        "12.03.2024 14:06;Jörg;Ana;Kurs: 1;Test;Test angezeigt;Text;web;10.0.0.1\r\n"
    )
    assert (job.input_keys, job.trigger, job.payload["key"]) == ((KEY,), "event", KEY)
    answer = uploads.work(job)
    expected = {
        "status": "completed_with_errors",
        "rows": 2,
        "bad_rows": 1,
        "users": 2,
        "components": 2,
        "encoding": "utf-8-sig",
        "delimiter": ";",
        "first_time": "2024-03-12T14:05:00",
        "last_time": "2024-03-12T14:06:00",
        "input": "deleted",
        "output_key": f"outputs/{job.job_id}/results.zip",
    }
    assert {name: answer[name] for name in expected} == expected
    row = uploads.ledger.get(job.job_id)
    assert (row.status, row.progress) == (Status.COMPLETED, 100)
    assert set(row.output_keys) == uploads.keys() == {objects.results_key(job.job_id), objects.summary_key(job.job_id)}
    archive = uploads.zip_of(job)
    table = list(csv.DictReader(io.StringIO(archive.read("log.csv").decode(), newline="")))
    assert table[0]["Time"] == "2024-03-12T14:05:00"
    assert table[0]["User full name"] == '\'=HYPERLINK("http://x")'
    assert table[0]["Description"] == "Text; mit Semikolon"
    assert archive.namelist() == [
        "log.csv",
        "activity_by_component.csv",
        "activity_by_user.csv",
        "bad_rows.csv",
        "summary.json",
    ]
    assert json.loads(archive.read("summary.json"))["bad_row_details"] == [
        {"line": 3, "problem": "the time 'irgendwann' cannot be understood"}
    ]
    assert not uploads.unfinished()


def test_a_duplicate_event_is_one_job(uploads: Uploads) -> None:
    """K6; FAILURES 15: a business key, not a time window."""
    etag = uploads.put(lines(1))
    answers = [upload_intake.handler(uploads.event(etag), FakeContext()) for _ in range(2)]
    assert [answer["status"] for answer in answers] == ["submitted", "duplicate"]
    again = upload_intake.handler(uploads.event(etag, sequencer="02"), FakeContext())
    assert again["status"] == "submitted", "Put again, even if it is the same, it is another upload."
    assert len(newest(uploads.ledger.store, "upload_processing", limit=10)) == 2


def test_a_folder_is_no_upload(uploads: Uploads) -> None:
    assert upload_intake.handler(uploads.event("x", key="inputs/new/"), FakeContext())["status"] == "skipped"


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "a table": ("a,b\n1,2\n", {}, NotALog, "not a Moodle course log: no column is Time or"),
    "nothing": ("", {}, NotALog, "the file is empty"),
    "bad rows only": (
        lines(3, bad=(2, 3, 4)),
        {},
        NotALog,
        "no row could be understood, of 3; line 2: 1 fields, not 9.",
    ),
    "too large": ("x" * 1_000_001, {"max_mb": 1}, TooLarge, "has 1 MB; uploads.max_mb lets 1 MB pass."),
}


@pytest.mark.parametrize(("body", "settings", "kind", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_processed_fails_with_a_sentence_and_is_gone(
    uploads: Uploads, body: str, settings: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    """D1, D3."""
    run = uploads.claimed(body, **settings)
    with pytest.raises(kind) as refusal:
        handler.body(run, Params(**run.job.payload))
    assert str(refusal.value).startswith(KEY)
    assert sentence in str(refusal.value)
    assert not uploads.keys()
    assert not uploads.unfinished()


def test_a_run_that_takes_too_long_says_which_timeout_fired(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """D2."""
    monkeypatch.setattr(log, "BATCH", 10)
    run = uploads.claimed(lines(100), job_timeout_seconds=10)
    now = iter(utc_now() + timedelta(seconds=2 * n) for n in range(1000))
    monkeypatch.setattr(run, "_clock", lambda: next(now))
    with pytest.raises(TimedOut, match=r"uploads.job_timeout_seconds was over: after 10 s, \d+ % was read\."):
        handler.body(run, Params(**run.job.payload))
    assert not uploads.keys()
    assert not uploads.unfinished()


def test_cancelled_within_a_batch_nothing_is_left(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """K7."""
    monkeypatch.setattr(log, "BATCH", 10)
    monkeypatch.setattr("lamplighter.kernel.job.FRESH", timedelta(0))
    run = uploads.claimed(lines(100))
    uploads.ledger.cancel(run.job_id)
    report = handler.body(run, Params(**run.job.payload))
    assert isinstance(report, Report)
    assert run.cancelled
    assert (report.rows, report.output_key, report.input) == (10, None, "deleted")
    assert not uploads.keys()
    assert not uploads.unfinished()


def broken(*_: object, **__: object) -> Any:
    raise ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "UploadPart")


def test_the_input_stays_while_the_ledger_tries_again(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: deleted by the last attempt only."""
    job = uploads.due(lines(1))
    monkeypatch.setattr(objects.Upload, "_send", broken)
    for attempt in (1, 2, 3):
        answer = uploads.work(uploads.ledger.get(job.job_id))
        assert answer["retried"] is True
        assert uploads.keys() == {KEY}
        row = uploads.ledger.get(job.job_id)
        assert (row.status, row.attempt) == (Status.PENDING, attempt + 1)
        uploads.ledger.store.apply(Change(old=row, new=transitions.release(row, now=utc_now())))
    assert uploads.work(uploads.ledger.get(job.job_id))["retried"] is False
    assert uploads.ledger.get(job.job_id).status is Status.FAILED
    assert not uploads.keys()
    assert not uploads.unfinished()


def test_an_attempt_that_was_declared_dead_deletes_nothing(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """K2: its input is the next attempt's."""
    run = uploads.claimed(lines(1))
    uploads.ledger.expire(run.job)
    with pytest.raises(LostLease):
        handler.body(run, Params(**run.job.payload))
    assert uploads.holds(KEY)
    run = uploads.run(run.job)
    monkeypatch.setattr(log, "_DELIMITERS", "|")
    with pytest.raises(LostLease):
        handler.body(run, Params(**run.job.payload))
    assert uploads.holds(KEY)


def test_an_attempt_that_died_after_its_work_is_not_lost(uploads: Uploads) -> None:
    """FAILURES 15: the input is gone, the output is there, the ledger was not told."""
    run = uploads.claimed(lines(5))
    first = handler.body(run, Params(**run.job.payload))
    assert isinstance(first, Report)
    again = handler.body(uploads.run(run.job), Params(**run.job.payload))
    assert isinstance(again, Report)
    assert (again.rows, again.output_key, again.input) == (5, first.output_key, "already gone")


def test_a_newer_upload_under_the_same_key_is_neither_read_nor_deleted(uploads: Uploads) -> None:
    """FAILURES 9: a shared or overwritten key deleted with the old row."""
    run = uploads.claimed(lines(1))
    uploads.put(lines(2))
    with pytest.raises(InputMissing, match="was replaced by a newer upload, which has a job of its own"):
        handler.body(run, Params(**run.job.payload))
    assert uploads.keys() == {KEY}


def test_replaced_while_it_is_processed_the_newer_one_stays(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 9."""
    run = uploads.claimed(lines(3))
    finish = upload_processing.Results.finish
    monkeypatch.setattr(upload_processing.Results, "finish", lambda *a: (finish(*a), uploads.put(lines(2))))
    report = handler.body(run, Params(**run.job.payload))
    assert isinstance(report, Report)
    assert (report.rows, report.input) == (3, "replaced")
    assert uploads.holds(KEY)


def test_replaced_while_it_is_read_is_told(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 9: never half of one and half of the other."""
    monkeypatch.setattr(objects, "RANGE", 1_000)
    run = uploads.claimed(lines(100))
    pieces = objects.read(uploads.s3, objects.find(uploads.s3, uploads.bucket, KEY, None))
    next(pieces)
    uploads.put(lines(200))
    with pytest.raises(InputMissing, match="deleted or replaced while it was read"):
        list(pieces)
    assert run.job.status is Status.RUNNING


def test_an_input_that_is_not_there_fails_with_a_sentence(uploads: Uploads) -> None:
    """D3."""
    run = uploads.claimed(lines(1))
    uploads.s3.delete_object(Bucket=uploads.bucket, Key=KEY)
    with pytest.raises(InputMissing, match=r"was deleted or has been processed\."):
        handler.body(run, Params(**run.job.payload))


def test_a_deletion_that_fails_is_reported_and_fails_nothing(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3."""
    job = uploads.due(lines(1))
    monkeypatch.setattr(uploads.s3, "delete_object", broken)
    answer = uploads.work(job)
    assert answer["status"] == "completed"
    assert answer["input"].startswith("failed: An error occurred (SlowDown)")
    assert uploads.ledger.get(job.job_id).status is Status.COMPLETED


def test_a_preview_reads_all_and_changes_nothing(uploads: Uploads) -> None:
    """K11: by hand."""
    uploads.put(lines(5, bad=(4,)))
    answer = handler({"key": KEY, "dry_run": True}, FakeContext())
    assert (answer["rows"], answer["bad_rows"], answer["input"], answer["output_key"]) == (4, 1, "kept", None)
    assert uploads.keys() == {KEY}


def test_guesses_that_prove_wrong_are_mended(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Month first, and Latin-1 that shows late: the file is read again, and no part of the first output stays."""
    monkeypatch.setattr(log, "SAMPLE", 64)
    monkeypatch.setattr(log, "BATCH", 2)
    monkeypatch.setattr(objects, "PIECE", 200)
    rest = ",-,Course: 1,Quiz,Viewed,Text,web,10.0.0.1"
    rows = [f"03/{day:02}/24 14:05,Ana{rest}" for day in range(1, 25)]
    run = uploads.claimed("\n".join([ENGLISH, *rows, f"03/25/24 14:05,José{rest}"]).encode("latin-1"))
    report = handler.body(run, Params(**run.job.payload))
    assert isinstance(report, Report)
    assert (report.rows, report.bad_rows, report.encoding, report.users) == (25, 0, "cp1252", 2)
    assert (report.first_time, report.last_time) == ("2024-03-01T14:05:00", "2024-03-25T14:05:00")
    assert not uploads.unfinished()


@pytest.mark.parametrize("key", ["outputs/x.csv", "inputs/", "inputs/folder/", "../inputs/x"])
def test_only_inputs_are_processed(key: str) -> None:
    with pytest.raises(Exception, match="key: "):
        handler.validated({"key": key})
