"""Makes a ledger job of each upload: EventBridge tells of every object that is put below `inputs/`.

An event may come twice; the job's id is derived from what the event is about, so that it is one job all the same. One
that never comes is made up for by the hourly expiry (`upload_expiry`), which looks for inputs that no job knows.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger
from pydantic import BaseModel, Field

from lamplighter.kernel import settings
from lamplighter.kernel.events import moment, parsed
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.store import DuplicateJob
from lamplighter.uploads.jobs import new_job

logger = Logger()
REPLAYED: Final = timedelta(days=3650)
"""How old an event may be: an archive of EventBridge can replay one after years."""


class Bucket(BaseModel):
    """Where it was put."""

    name: str


class Made(BaseModel):
    """The object; its key is as it is, not encoded as in S3's own notifications."""

    key: str = Field(max_length=1024)
    etag: str = Field(max_length=256)
    sequencer: str = Field(max_length=256)
    """Tells two puts under a key apart, even of the same content."""


class Detail(BaseModel):
    """What happened."""

    bucket: Bucket
    made: Made = Field(alias="object")


class Event(BaseModel):
    """What is used of an event `Object Created` (Amazon S3, "EventBridge event message structure")."""

    time: str
    detail: Detail


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Submit the job of one `Event`; the dispatcher starts it.

    Raises:
        Permanent: the event is none, or the object is no input.
    """
    told = parsed(Event, event)
    bucket, made = told.detail.bucket.name, told.detail.made
    if made.key.endswith("/"):
        return {"status": "skipped", "reason": f"{made.key} is a folder."}
    ledger, seed = Ledger.from_environment(), (bucket, made.key, made.etag, made.sequencer)
    at = moment("time", told.time, now=ledger.clock(), oldest=REPLAYED)
    job = new_job(ledger, settings.load(), key=made.key, etag=made.etag, at=at, seed=seed)
    try:
        ledger.submit(job)
    except DuplicateJob:
        logger.info("duplicate delivery of an event", extra={"job_id": job.job_id, "key": made.key})
        return {"status": "duplicate", "job_id": job.job_id}
    logger.info("an upload is due", extra={"job_id": job.job_id, "key": made.key})
    return {"status": "submitted", "job_id": job.job_id}
