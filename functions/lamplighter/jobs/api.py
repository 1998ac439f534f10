"""The jobs API: run, preview, list, show, cancel, retry, redrive and undo jobs; schedules; work done outside Lambda;
what the scans of cloud accounts found.

Behind an HTTP API that lets in whom IAM allows `execute-api:Invoke`. Its OpenAPI document is at `/openapi.json`;
every error is problem details (RFC 9457). docs/api.md tells of it by example.
"""

from __future__ import annotations

import binascii
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestUnsupportedContentType, RequestValidationError

from lamplighter.jobs.http import cloud, operators, workers
from lamplighter.jobs.http.bodies import demand_json, parsed, unsupported
from lamplighter.jobs.http.problems import Problem, documented, invalid, not_found, response
from lamplighter.jobs.http.requests import demand_text, request_of
from lamplighter.kernel.errors import AlreadyRunning, LostLease, Retryable, Unreadable, unreadable
from lamplighter.kernel.events import short, shown
from lamplighter.kernel.ledger.ledger import UnknownJob
from lamplighter.kernel.no_database import NoDatabase

logger = Logger()
app = APIGatewayHttpResolver(enable_validation=True, json_body_deserializer=parsed)
app.include_router(operators.router)
app.include_router(workers.router)
app.include_router(cloud.router)
app.exception_handler(Exception)(lambda error: response(_problem_of(error), app.lambda_context.aws_request_id))

_PATH: Final = 200
"""Characters of a path that the answer repeats."""


@app.get(
    "/openapi.json",
    summary="This document",
    operation_id="openapi",
    tags=["About"],
    responses=documented(
        {200: {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}}
    ),
)
def openapi() -> Response[str]:
    """The OpenAPI document."""
    return Response(status_code=200, content_type="application/json", body=document())


@cache
def document() -> str:
    """The OpenAPI document as JSON."""
    from aws_lambda_powertools.event_handler.openapi.models import APIKey, APIKeyIn

    signature = APIKey(
        name="Authorization", in_=APIKeyIn.header, description="AWS Signature Version 4 of the service execute-api."
    )
    return app.get_openapi_json_schema(
        title="Lamplighter jobs API",
        version="1",
        description="Runs and watches Lamplighter's jobs, and hands out those of workers outside Lambda.",
        security_schemes={"aws_sigv4": signature},
        security=[{"aws_sigv4": []}],
    )


@logger.inject_lambda_context
def handler(event: object, context: Any) -> dict[str, Any]:
    """Answer one request of the HTTP API (payload format 2.0).

    Raises:
        Permanent: the event is no such request; through the API all of them are.
    """
    request = request_of(event)
    try:
        demand_text(request)
        demand_json(request)
    except Problem as problem:
        answer = response(problem, context.aws_request_id)
        return {"statusCode": answer.status_code, "headers": answer.headers, "body": answer.body}
    return app.resolve(request, context)


_TOLD: Final[dict[type[Exception], tuple[HTTPStatus, str]]] = {
    UnknownJob: (HTTPStatus.NOT_FOUND, "not-found"),
    AlreadyRunning: (HTTPStatus.CONFLICT, "already-running"),
    LostLease: (HTTPStatus.CONFLICT, "lost-lease"),
    NoDatabase: (HTTPStatus.CONFLICT, "no-database"),
    Unreadable: (HTTPStatus.CONFLICT, "unreadable"),
    Retryable: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
}
"""Errors whose own message is for the caller."""


def _problem_of(error: Exception) -> Problem:  # noqa: PLR0911 - one for each kind
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return invalid(_explained(problem) for problem in error.errors())
        case RequestUnsupportedContentType():  # without a body, too, where the route may have one
            return unsupported(app.current_event.headers.get("content-type", ""))
        case UnicodeDecodeError() | binascii.Error():
            return Problem(
                HTTPStatus.BAD_REQUEST, "not-json", "The body is not UTF-8, or base64 of UTF-8 as announced."
            )
        case NotFoundError():
            request = app.current_event.request_context.http
            return not_found(f"There is nothing at {short(request.method)} {short(request.path, _PATH)}.")
    if refused := unreadable(error):
        logger.error("unreadable", exc_info=error)
        error = refused
    for kind, (status, name) in _TOLD.items():
        if isinstance(error, kind):
            return Problem(status, name, str(error))
    logger.error("unexpected", exc_info=error)
    detail = "Something went wrong here, and was logged under the request id."
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected", detail)


def _explained(problem: dict[str, Any]) -> tuple[str, str]:
    field = ".".join(short(str(part)) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return field, f"{field}: is missing."
        case "extra_forbidden":
            return field, f"{field}: there is no such field."
    message = problem["msg"].removeprefix("Value error, ")
    return field, f"{field}: {message[0].lower()}{message[1:]}, got {shown(problem.get('input'))}."
