"""Job control: look at jobs, submit one for a worker outside Lambda, cancel one, redrive a dead letter.

By hand, for operators (REQUIREMENTS K7, K10, B1).
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lamplighter.catalogue import NAMES
from lamplighter.jobs.shown import Brief, Whole
from lamplighter.kernel import settings
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import demand_storable, json_object, parsed
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import PAYLOAD_LIMIT, Job
from lamplighter.kernel.policies import outside

logger = Logger()

_NEEDS: Final = {
    "show": "job_id",
    "cancel": "job_id",
    "redrive": "job_id",
    "list": "job_type",
    "submit": "job_type",
}


class Event(BaseModel):
    """`show`, `cancel` and `redrive` a job by its id, `list` the newest of a type or the `dead_letters`, or `submit` a
    job of a type with a payload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["show", "list", "cancel", "dead_letters", "redrive", "submit"]
    job_id: str | None = None
    job_type: str | None = Field(None, pattern="^[a-z][a-z0-9_]{0,63}$")
    payload: dict[str, Any] = {}
    limit: int = Field(25, ge=1, le=100)

    @model_validator(mode="after")
    def _complete(self) -> Event:
        needed = _NEEDS.get(self.action)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{self.action} needs {needed}")
        if len(json.dumps(self.payload)) > PAYLOAD_LIMIT:
            raise ValueError(f"payload takes {PAYLOAD_LIMIT} characters of JSON at most: put the rest into S3")
        return self


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Do what the event says; answers the job, or jobs in brief.

    Raises:
        Permanent: the event is not as `Event`, there is no such job, or it is not on the dead-letter list.
        LostLease: the job to cancel has ended.
        AlreadyRunning: the job to redrive is of a singleton type that runs.
    """
    demand_storable(json_object(event, "an action, and what it needs"))
    told = parsed(Event, event)
    ledger = Ledger.from_environment()
    job_id = told.job_id or ""
    match told.action:
        case "show":
            return _shown(Whole, ledger.get(job_id))
        case "cancel":
            return _shown(Whole, ledger.cancel(job_id))
        case "redrive":
            return _shown(Whole, ledger.redrive(job_id))
        case "submit":
            if told.job_type in NAMES:
                raise Permanent(f"job_type: {told.job_type} is run by Lamplighter itself: invoke its function.")
            policy = outside(told.job_type or "", settings.load())
            return _shown(Whole, ledger.submit(ledger.new_job(told.job_type or "", policy, payload=told.payload)))
        case "dead_letters":
            return {"jobs": [_shown(Brief, job) for job in ledger.dead_letters(limit=told.limit)]}
        case "list":
            found = newest(ledger.store, told.job_type or "", limit=told.limit)
            return {"jobs": [_shown(Brief, job) for job in found]}


def _shown(form: type[Brief], job: Job) -> dict[str, Any]:
    return form.of(job).model_dump(mode="json")
