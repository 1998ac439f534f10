"""The ledger's rows of uploads."""

from __future__ import annotations

from datetime import datetime

from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Trigger, derived_job_id
from lamplighter.kernel.settings import Settings
from lamplighter.uploads import objects
from lamplighter.uploads.upload_processing import handler as processing


def new_job(ledger: Ledger, settings: Settings, *, key: str, etag: str, at: datetime, seed: tuple[str, ...]) -> Job:
    """The one job of an upload that `seed` tells from every other at `at`; not written yet."""
    job_id = derived_job_id(at, "upload", *seed)
    return processing.new_job(
        ledger,
        settings,
        {"key": key, "etag": etag},
        job_id=job_id,
        trigger=Trigger.EVENT,
        input_keys=(key,),
        output_keys=(objects.results_key(job_id), objects.summary_key(job_id)),
    )
