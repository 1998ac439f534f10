"""Bodies of requests: JSON objects that can be kept wherever a job's row and its history go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

from lamplighter.jobs.http.problems import Problem, invalid
from lamplighter.kernel.events import shown, unstorable

LIMIT: Final = 300_000
"""Characters of a body: the longest report (`kernel.job.RESULT_LIMIT`) fits, with what is around it."""


def demand_json(event: Mapping[str, Any]) -> None:
    """Refuse a body that does not say that it is JSON, or is too large to look at.

    Raises:
        Problem: 413 or 415.
    """
    body = event.get("body")
    if not body:
        return
    if len(body) > LIMIT:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too-large",
            f"The body has {len(body)} characters, more than the {LIMIT} that it may have: put what is large into S3.",
        )
    told = event["headers"].get("content-type", "")
    if told.partition(";")[0].strip().lower() != "application/json":
        raise unsupported(told)


def unsupported(content_type: str) -> Problem:
    """415."""
    sent = f"as {shown(content_type)}" if content_type else "without a content type"
    detail = f"The body must be sent with `Content-Type: application/json`, not {sent}."
    return Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", detail)


def parsed(text: str) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
        Problem: 400, it is not JSON; 422, it is no object, is nested too deeply, or holds text that a database refuses.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        detail = f"The body is not JSON: {error or 'it is nested too deeply'}."
        raise Problem(HTTPStatus.BAD_REQUEST, "not-json", detail) from None
    if not isinstance(value, dict):
        raise invalid([("body", "body: takes a JSON object.")])
    if why := unstorable(value):
        raise invalid([("body", f"body: {why}.")])
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large a number")
    return number
