"""Bodies of requests: JSON objects that can be kept wherever a job's row and its history go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

from lamplighter.jobs.http.problems import Problem, invalid

LIMIT: Final = 300_000
"""Characters of a body: the longest report (`kernel.job.RESULT_LIMIT`) fits, with what is around it."""
DEPTH: Final = 32


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
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "not-json",
            f"The body must be sent with `Content-Type: application/json`, not {told or 'without a content type'!r}.",
        )


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
    _demand_storable(value)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large a number")
    return number


def _demand_storable(value: Any) -> None:
    """Postgres keeps no U+0000 in JSON, and nothing keeps half of a surrogate pair: a row that holds one would stop
    the history, which has to follow."""
    waiting = [(value, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH:
            raise invalid([("body", f"body: takes {DEPTH} levels of objects and lists at most.")])
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
            raise invalid([("body", "body: takes no text with U+0000 or half of a surrogate pair.")])
        if isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
