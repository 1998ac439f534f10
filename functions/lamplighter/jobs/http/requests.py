"""What the routes of the jobs API share: whose request it is, and jobs made once however often they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.middlewares import NextMiddleware
from aws_lambda_powertools.event_handler.openapi.params import Header, Path
from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse, OpenAPIResponseHeader
from pydantic import BaseModel, ConfigDict

from lamplighter.jobs.http.problems import Problem, invalid
from lamplighter.jobs.shown import Whole
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import json_object, short, shown, unstorable
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, derived_job_id
from lamplighter.kernel.ledger.store import DuplicateJob

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern="^[A-Za-z0-9._~:/+=-]{1,128}$",
        description="Makes a repetition answer the job that the first request made, for a day at least (ADR 0010).",
    ),
]
JobIdInPath = Annotated[str, Path(pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$", description="The job's ULID.")]

_LOCATION: Final[dict[str, OpenAPIResponseHeader]] = {
    "Location": {"description": "The job's address", "schema": {"type": "string"}}
}
RUNS: Final[dict[int, OpenAPIResponse]] = {202: {"description": "The job, pending", "headers": _LOCATION}}
"""What a request that makes a job is answered with."""
MADE: Final[dict[int, OpenAPIResponse]] = RUNS | {
    200: {"description": "The job that the same idempotency key made", "headers": _LOCATION}
}
"""What one that may carry an idempotency key is answered with."""

_QUERY: Final = "queryStringParameters"
_SESSION: Final = re.compile(r"^(arn:[^:]+:sts::\d+:assumed-role/.+)/[^/]+$")


class Body(BaseModel):
    """A request's body; a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, use_attribute_docstrings=True)


def request_of(event: object) -> dict[str, Any]:
    """The event, if it is a request of an HTTP API (payload format 2.0) that IAM has let in.

    Raises:
        Permanent: it is none.
    """
    request = json_object(event, "a request of the HTTP API")
    for name, texts in (("headers", request.get("headers")), ("queryStringParameters", request.get(_QUERY, {}))):
        if not isinstance(texts, dict) or not all(isinstance(text, str) for pair in texts.items() for text in pair):
            raise Permanent(f"{name}: takes an object of texts, got {shown(texts)}.")
    match request:
        case {
            "rawPath": str(),
            "requestContext": {
                "stage": str(),
                "http": {"method": str(), "path": str()},
                "authorizer": {"iam": {"userArn": str()}},
            },
        } if isinstance(request.get("body") or "", str):
            return request
    raise Permanent("The event must be a request of the HTTP API in payload format 2.0, let in by IAM.")


def demand_text(request: Mapping[str, Any]) -> None:
    """Refuse a path, query or header that no row and no message can hold.

    Raises:
        Problem: 422.
    """
    texts = [("path", request["rawPath"])]
    texts += [(f"query.{short(name)}", name + value) for name, value in request.get(_QUERY, {}).items()]
    texts += [(f"header.{short(name)}", name + value) for name, value in request["headers"].items()]
    if problems := [(place, f"{place}: {why}.") for place, text in texts if (why := unstorable(text))]:
        raise invalid(problems)


def demand_known_query(app: APIGatewayHttpResolver, next_middleware: NextMiddleware) -> Response[Any]:
    """Refuse a query parameter that the route does not have: a misspelt filter would let everything through.

    Raises:
        Problem: 422.
    """
    known = {param.alias for param in app.context["_route"].dependant.query_params}
    unknown = sorted(app.current_event.query_string_parameters.keys() - known)
    if unknown:
        takes = ", ".join(sorted(known))
        raise invalid(
            (f"query.{name}", f"query.{name}: there is no such parameter; it takes {takes}.")
            for name in map(short, unknown)
        )
    return next_middleware(app)


def caller(event: Mapping[str, Any]) -> str:
    """Whose request it is: the ARN of the user, or of the role whatever its session is called."""
    arn: str = event["requestContext"]["authorizer"]["iam"]["userArn"]
    session = _SESSION.match(arn)
    return session[1] if session else arn


def submitted(ledger: Ledger, new: Job, key: str | None, event: Mapping[str, Any]) -> Response[Whole]:
    """Write a new row, 202; or the job that the same idempotency key has made today or yesterday, 200.

    Raises:
        Problem: 422, the key was given with another body.
        AlreadyRunning: the type is a singleton that runs.
    """
    if key is None:
        return accepted(ledger.submit(new))
    today = ledger.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    now, before = (derived_job_id(day, "request", caller(event), key) for day in (today, today - timedelta(days=1)))
    made = ledger.store.get(before)
    if made is None:
        try:
            return accepted(ledger.submit(replace(new, job_id=now)))
        except DuplicateJob:
            made = ledger.get(now)
    if (made.job_type, made.payload) != (new.job_type, new.payload):
        sentence = f"Idempotency-Key: {key!r} made job {made.job_id} from another body: give each job a key of its own."
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "key-reused", sentence, errors=[("header.idempotency-key", sentence)]
        )
    return Response(status_code=200, content_type="application/json", headers=_at(made), body=Whole.of(made))


def accepted(job: Job) -> Response[Whole]:
    """202: the job is made, and runs by itself."""
    return Response(status_code=202, content_type="application/json", headers=_at(job), body=Whole.of(job))


def _at(job: Job) -> dict[str, str | list[str]]:
    return {"Location": f"/api/jobs/{job.job_id}"}
