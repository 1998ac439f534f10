"""Turns an uploaded Moodle course log into a zip of results (`results`), as a ledger job that `upload_intake` makes.

The input is deleted as soon as the job is final: done, cancelled, or failed for good. While the ledger will try again,
it stays. Nobody sees half an output: it appears when it is complete (REQUIREMENTS D1-D3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger
from pydantic import Field

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import LostLease, Permanent
from lamplighter.kernel.job import Params as JobParams
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, job
from lamplighter.uploads import objects
from lamplighter.uploads.headings import NotALog
from lamplighter.uploads.log import Log
from lamplighter.uploads.objects import INPUTS, Input, InputMissing
from lamplighter.uploads.results import Results, Summary
from lamplighter.uploads.times import Misread, Order

logger = Logger(child=True)

MEGABYTE: Final = 1_000_000


class Params(JobParams):
    """What a run takes."""

    key: str = Field(pattern=f"(?s)^{INPUTS}.*[^/]$")
    """The input, in the uploads bucket."""
    etag: str | None = None
    """The content that is meant; by default whatever is under the key when the run begins."""
    dry_run: bool = False
    """Read the log and say what is in it; write and delete nothing."""


class Report(Summary, JobReport):
    """What a run did."""

    key: str
    dry_run: bool
    output_key: str | None = None
    """The zip; None after a preview or a cancellation."""
    bytes: int = 0
    """Of the input."""
    output_bytes: int = 0
    input: str = "kept"
    """What became of the input: `deleted`, `already gone`, `replaced` by a newer upload, `kept`, or `failed: ...`."""
    duration_seconds: float = 0

    def counts(self) -> tuple[int, int]:
        """Rows and bytes read."""
        return self.rows + self.bad_rows, self.bytes


class TooLarge(Permanent):
    """The input is larger than the setting `uploads.max_mb`."""


class TimedOut(Permanent):
    """The run took longer than it may (REQUIREMENTS D2); the message says which timeout fired."""


class _Cancelled(Exception):
    """The run was asked to stop; ends the writing, so that it leaves nothing behind."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


@job("upload_processing", params=Params, timeout=timedelta(minutes=15))
def handler(run: Run, params: Params) -> Report:
    """Process one upload.

    Raises:
        NotALog, TooLarge, TooVaried, TimedOut, InputMissing: it cannot be processed, ever; the message says why.
    """
    began = run.now()
    s3, bucket = client("s3"), os.environ["UPLOADS_BUCKET"]
    etag = params.etag
    try:
        source = objects.find(s3, bucket, params.key, etag)
        etag = source.etag
        limit = run.settings.uploads.max_mb
        if source.size > limit * MEGABYTE:
            raise TooLarge(f"{params.key} has {source.size / MEGABYTE:.0f} MB; uploads.max_mb lets {limit} MB pass.")
        report = _Processing(run, s3, source, params, began).report()
    except LostLease:
        raise
    except InputMissing:
        earlier = _of_an_earlier_attempt(s3, bucket, run.job_id)
        if earlier is None:
            raise
        return earlier.model_copy(update={"input": "already gone"})
    except Exception as error:
        final = isinstance(error, Permanent) or run.attempt >= run.job.max_attempts
        if final and etag and not params.dry_run:
            _make_sure_it_is_ours(run)
            run.logger.info("input", extra={"outcome": objects.delete(s3, bucket, params.key, etag)})
        raise
    if not params.dry_run:
        _make_sure_it_is_ours(run)
        report.input = objects.delete(s3, bucket, params.key, etag)
        if run.cancelled:
            for output in (objects.results_key(run.job_id), objects.summary_key(run.job_id)):
                objects.delete(s3, bucket, output)
            report.output_key = None
    report.duration_seconds = (run.now() - began).total_seconds()
    return report


def _make_sure_it_is_ours(run: Run) -> None:
    """Raises LostLease if the attempt was declared dead: the input is another one's then."""
    run.beat()
    run.stop()


def _of_an_earlier_attempt(s3: Any, bucket: str, job_id: str) -> Report | None:
    """The report of an attempt that had done everything but to tell the ledger (FAILURES 15), or None."""
    found = objects.content(s3, bucket, objects.summary_key(job_id))
    return Report.model_validate_json(found) if found else None


class _Processing:
    """One reading of an input, or more where a guess about it proves wrong."""

    def __init__(self, run: Run, s3: Any, source: Input, params: Params, began: datetime) -> None:
        self._run = run
        self._s3 = s3
        self._source = source
        self._dry_run = params.dry_run
        self._seconds = run.settings.uploads.job_timeout_seconds
        self._over_at = began + timedelta(seconds=self._seconds)
        self._read = 0

    def report(self) -> Report:
        """Read and write it all; the report lies beside the zip when that is done."""
        encoding: str | None = None
        order: Order | None = None
        while True:
            try:
                report = self._write(encoding, order)
                break
            except Misread as misread:
                encoding, order = misread.encoding or encoding, misread.order or order
                self._run.logger.info("read again", extra={"encoding": encoding, "order": order})
            except _Cancelled as cancelled:
                return self._told(cancelled.summary)
            except NotALog as error:
                raise NotALog(f"{self._source.key}: {error}") from None
        if not self._dry_run:
            key = objects.summary_key(self._run.job_id)
            body = report.model_dump_json(indent=2).encode()
            self._s3.put_object(Bucket=self._source.bucket, Key=key, Body=body, ContentType="application/json")
        return report

    def _write(self, encoding: str | None, order: Order | None) -> Report:
        self._read = 0
        log = Log(self._blocks(), encoding=encoding, order=order)
        with self._output() as out, Results(out, at=self._run.job.created_at) as results:
            for batch in log:
                results.add(batch)
                self._go_on(results)
            if not results.rows:
                bad = results.summary().bad_row_details
                first = f"; line {bad[0].line}: {bad[0].problem}" if bad else ""
                raise NotALog(f"no row could be understood, of {results.bad_rows}{first}.")
            summary = results.summary(encoding=log.encoding, delimiter=log.delimiter, replaced_characters=log.replaced)
            results.finish(summary)
        return self._told(summary, output_bytes=out.size)

    def _output(self) -> objects.Upload | objects.Nowhere:
        if self._dry_run:
            return objects.Nowhere()
        key = objects.results_key(self._run.job_id)
        return objects.Upload(self._s3, self._source.bucket, key, content_type="application/zip")

    def _blocks(self) -> Iterator[bytes]:
        for block in objects.read(self._s3, self._source):
            self._read += len(block)
            yield block

    def _go_on(self, results: Results) -> None:
        """Tell how far it is, and stop where that is asked for.

        Raises:
            _Cancelled, TimedOut, LostLease: it is.
        """
        run, percent = self._run, 100 * self._read // self._source.size
        run.progress(min(percent, 99), f"{results.rows} rows, {results.bad_rows} bad")
        reason = run.stop()
        if reason == "cancelled":
            raise _Cancelled(results.summary())
        if run.now() >= self._over_at:
            raise TimedOut(f"uploads.job_timeout_seconds was over: after {self._seconds} s, {percent} % was read.")
        if reason == "out_of_time":
            raise TimedOut(f"The function's own timeout was near when {percent} % was read.")

    def _told(self, summary: Summary, *, output_bytes: int = 0) -> Report:
        return Report(
            **summary.model_dump(),
            status="completed_with_errors" if summary.bad_rows else "completed",
            key=self._source.key,
            dry_run=self._dry_run,
            output_key=objects.results_key(self._run.job_id) if output_bytes else None,
            bytes=self._source.size,
            output_bytes=output_bytes,
        )
