"""Errors of the jobs API as problem details (RFC 9457): `application/problem+json`, one clear sentence each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse

from lamplighter.jobs.shown import Answer

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 10
LISTED: Final = 10
"""Fields of which an answer says what is wrong."""


class Field(Answer):
    """One field that is not as it should be."""

    field: str
    """Where it is, such as `body.params.min_age_hours` or `query.limit`."""
    message: str


class Details(Answer):
    """Problem details (RFC 9457)."""

    type: str
    """What kind of problem, as a URN: the same for every problem of the kind."""
    title: str
    status: int
    detail: str
    """What is wrong here, as a sentence."""
    request_id: str
    """Under which the log tells of the request."""
    errors: list[Field] | None = None
    """With 422, what is wrong with which field."""


class Problem(Exception):
    """A request that cannot be done; `kind` names the problem's type, `errors` the fields at fault."""

    def __init__(
        self, status: HTTPStatus, kind: str, detail: str, *, errors: Iterable[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = None if errors is None else list(errors)


def invalid(errors: Iterable[tuple[str, str]]) -> Problem:
    """422: fields of the request are not as they should be; each with its name and a sentence."""
    found = list(errors)
    listed = found[:LISTED]
    more = [f"{len(found) - LISTED} more fields are wrong."] if len(found) > LISTED else []
    detail = " ".join([*(sentence for _, sentence in listed), *more])
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", detail, errors=listed)


def not_found(detail: str) -> Problem:
    """404."""
    return Problem(HTTPStatus.NOT_FOUND, "not-found", detail)


def conflict(kind: str, detail: str) -> Problem:
    """409: the request is sound, but not as things stand."""
    return Problem(HTTPStatus.CONFLICT, kind, detail)


def response(problem: Problem, request_id: str) -> Response[str]:
    """The answer that tells of a problem."""
    status = problem.status
    body: dict[str, Any] = {
        "type": f"urn:lamplighter:problem:{problem.kind}",
        "title": problem.kind.replace("-", " ").capitalize(),
        "status": int(status),
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.errors is not None:
        body["errors"] = [{"field": field, "message": message} for field, message in problem.errors]
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Response(status_code=int(status), content_type=MEDIA_TYPE, headers=headers, body=json.dumps(body))


_MEANINGS: Final[Mapping[int, str]] = {
    400: "The body is not JSON",
    404: "There is no such thing",
    405: "The path takes other methods",
    409: "Not as things stand: a singleton runs, a lease is lost, the job's status does not allow it, or a table or "
    "service that is needed may not be used",
    413: "The body is too large",
    415: "The body is not said to be application/json",
    422: "A field is not as it should be; `errors` names each",
    500: "Something went wrong here; the log tells of it under the request id",
    503: "What is needed (the database, the settings) cannot be reached now",
}
_BODY: Final = (400, 413, 415)

_GATEWAY: Final[dict[int, OpenAPIResponse]] = {
    status: {
        "description": meaning,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
            }
        },
    }
    for status, meaning in (
        (403, "Not signed, or the caller's policies do not allow `execute-api:Invoke` here (by API Gateway)"),
        (429, "Too many requests at once (by API Gateway)"),
    )
}


def documented(
    success: Mapping[int, OpenAPIResponse], *problems: int, body: bool = False
) -> dict[int, OpenAPIResponse]:
    """What a route may answer: `success`, `problems`, and what every route may, with `body` one that takes a body."""
    statuses = {*problems, 409, 422, 500, 503, *(_BODY if body else ())}
    told: dict[int, OpenAPIResponse] = {
        status: {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"model": Details}}}
        for status in sorted(statuses)
    }
    return {**success, **_GATEWAY, **told}
