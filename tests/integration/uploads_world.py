"""The uploads bucket and the jobs of its uploads, as the integration tests see them."""

from __future__ import annotations

import io
import os
from datetime import timedelta
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

from lamplighter.kernel.aws import client
from lamplighter.kernel.job import Run
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, job_key, to_text
from lamplighter.kernel.settings import parse
from lamplighter.uploads import objects, upload_intake
from lamplighter.uploads.upload_processing import handler
from tests.unit.conftest import FakeContext

KEY = "inputs/Logs of course 7 (ñ + 1) 100%.csv"
ENGLISH = "Time,User full name,Affected user,Event context,Component,Event name,Description,Origin,IP address"


class Uploads:
    """The uploads bucket, and its jobs."""

    def __init__(self, s3: Any, ledger: Ledger) -> None:
        self.s3 = s3
        self.ledger = ledger
        self.bucket = f"uploads-{uuid4().hex}"
        s3.create_bucket(Bucket=self.bucket)

    def put(self, body: str | bytes, key: str = KEY) -> str:
        """An object; its ETag."""
        body = body if isinstance(body, bytes) else body.encode()
        return str(self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"'))

    def keys(self) -> set[str]:
        return {entry["Key"] for entry in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())}

    def holds(self, key: str) -> bool:
        return key in self.keys()

    def event(self, etag: str, key: str = KEY, sequencer: str = "01") -> dict[str, Any]:
        made = {"key": key, "size": 1, "etag": etag, "sequencer": sequencer}
        return {"time": "2026-11-22T03:00:00Z", "detail": {"bucket": {"name": self.bucket}, "object": made}}

    def due(self, body: str | bytes) -> Job:
        """The job of a new upload."""
        event = self.event(self.put(body), sequencer=uuid4().hex)
        answer = upload_intake.handler(event, FakeContext())
        return self.ledger.get(answer["job_id"])

    def work(self, job: Job) -> dict[str, Any]:
        """What the function answers to the dispatcher."""
        return handler(
            {"job_id": job.job_id, "attempt": job.attempt, "continuation": job.continuation},
            FakeContext(timedelta(minutes=15)),
        )

    def claimed(self, body: str | bytes, **settings: Any) -> Run:
        """A run of a new upload, which has begun."""
        job = self.due(body)
        job = self.ledger.claim(job.job_id, attempt=1, continuation=0)
        return self.run(job, **settings)

    def run(self, job: Job, **settings: Any) -> Run:
        stop_at = utc_now() + timedelta(minutes=10)
        return Run(job, settings=parse({"uploads": settings}, source="a test"), stop_at=stop_at, ledger=self.ledger)

    def preview(self, etag: str) -> None:
        """A preview of the upload, which has ended."""
        answer = handler({"key": KEY, "etag": etag, "dry_run": True}, FakeContext())
        assert self.ledger.get(answer["job_id"]).status.terminal

    def backdate(self, job: Job, *, hours: float) -> None:
        """Pretend that the job was made so long ago."""
        client("dynamodb").update_item(
            TableName=os.environ["JOBS_TABLE"],
            Key={"pk": {"S": job_key(job.job_id)}},
            UpdateExpression="SET created_at = :at",
            ExpressionAttributeValues={":at": {"S": to_text(job.created_at - timedelta(hours=hours))}},
        )

    def zip_of(self, job: Job) -> ZipFile:
        return ZipFile(
            io.BytesIO(self.s3.get_object(Bucket=self.bucket, Key=objects.results_key(job.job_id))["Body"].read())
        )

    def unfinished(self) -> list[Any]:
        return list(self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ()))


def lines(count: int, *, bad: tuple[int, ...] = ()) -> str:
    """A log of `count` rows, `bad` ones (by line) among them."""
    rows = (
        f"12/03/24 14:{number % 60:02},User {number % 7},-,Course: 1,Quiz,Viewed,The user viewed,web,10.0.0.1"
        for number in range(2, count + 2)
    )
    return "\r\n".join([ENGLISH, *("rubbish" if n in bad else row for n, row in enumerate(rows, start=2))]) + "\r\n"
