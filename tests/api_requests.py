"""Requests of the jobs API as the HTTP API hands them to its function, and what it answers."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode

from lamplighter.jobs import api
from tests.unit.conftest import FakeContext

USER = "arn:aws:iam::111122223333:user/operator"
NOBODY = "01KB2T5V8Q4W3N6E7R8T9Y0Z1A"
"""The id of no job."""


class Answer(NamedTuple):
    """What the API answered."""

    status: int
    body: Any
    headers: dict[str, str]


def ask(method: str, path: str, body: Any = None, *, user: str = USER, **headers: str) -> Answer:
    """One request as the HTTP API hands it over; a body that is no text is JSON."""
    answer = api.handler(event_of(method, path, body, user=user, **headers), FakeContext())
    told = {name.lower(): value for name, value in answer["headers"].items()}
    return Answer(answer["statusCode"], json.loads(answer["body"]), told)


def event_of(method: str, path: str, body: Any = None, *, user: str = USER, **headers: str) -> dict[str, Any]:
    """The event of such a request."""
    path, _, query = path.partition("?")
    event: dict[str, Any] = {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()},
        "requestContext": {
            "requestId": "JKJaXmPLvHcESHA=",
            "stage": "$default",
            "http": {"method": method, "path": path},
            "authorizer": {"iam": {"userArn": user}},
        },
        "isBase64Encoded": False,
    }
    if query:
        event["queryStringParameters"] = {name: ",".join(values) for name, values in parse_qs(query).items()}
    if body is not None:
        event["body"] = body if isinstance(body, str) else json.dumps(body)
    return event


def get(path: str, **query: Any) -> Answer:
    return ask("GET", f"{path}?{urlencode(query)}" if query else path)


def post(path: str, body: Any = None, **more: str) -> Answer:
    return ask("POST", path, body, **more)


def problem(answer: Answer) -> tuple[int, str, str]:
    """Status, kind and sentence of a problem; it is one in every respect."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body["status"] == answer.status
    assert answer.body["request_id"] == FakeContext.aws_request_id
    assert answer.body["title"]
    return answer.status, answer.body["type"].removeprefix("urn:lamplighter:problem:"), answer.body["detail"]
