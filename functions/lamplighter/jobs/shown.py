"""A job as people and programs outside are shown it: without the keys of the table, times and all as JSON has them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from lamplighter.kernel.ledger.row import Job, Status, Trigger, encode

JobId = Annotated[str, Field(pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$", examples=["01KB2T5V8Q4W3N6E7R8T9Y0Z1A"])]
"""A ULID."""
JobTypeName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$", examples=["analysis"])]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-22T03:00:00.000Z"])]
"""UTC, with milliseconds."""


class Answer(BaseModel):
    """What is answered; its schema is built when it is first needed, for a cold start answers one request. The sentence
    under a field is its description in the OpenAPI document."""

    model_config = ConfigDict(defer_build=True, use_attribute_docstrings=True)


class Brief(Answer):
    """A job in a list."""

    job_id: JobId
    job_type: JobTypeName
    status: Status
    attempt: int
    max_attempts: int
    trigger: Trigger
    dry_run: bool
    created_at: Moment
    finished_at: Moment | None = None
    progress: int = Field(ge=0, le=100)
    message: str
    """What the job does now, or did last; of a failed job, why it failed."""
    dead_letter: str | None = None
    """`poison`, `exhausted` or `permanent` if it is on the dead-letter list."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """The job, shown."""
        row = encode(job) | {"job_type": job.job_type}
        values = {name: row[name] for name in cls.model_fields if name in row}
        values |= {name: getattr(job, name) for name in ("payload", "result", "checkpoint") if name in cls.model_fields}
        if "policy" in cls.model_fields:
            values["policy"] = json.loads(row["policy"])
        return cls.model_validate(values)


class Error(Answer):
    """Why an attempt ended without success."""

    type: str
    message: str
    attempt: int
    at: Moment
    reason: str
    stack_trace: str


class Whole(Brief):
    """A job with all there is of it."""

    continuation: int
    schedule: str | None = None
    payload: dict[str, Any]
    result: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    errors: list[Error]
    run_at: Moment
    released: bool
    started_at: Moment | None = None
    heartbeat_at: Moment | None = None
    deadline_at: Moment | None = None
    """When the attempt is dead, or should have been picked up."""
    rescues: list[Moment]
    cancel_requested: bool
    execution_arn: str | None = None
    input_keys: list[str]
    output_keys: list[str]
    redriven_as: JobId | None = None
    redrive_of: JobId | None = None
    policy: dict[str, Any]
    """How it is timed, retried and started; durations in seconds."""
