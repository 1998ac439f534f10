"""Answers to CloudFormation for the custom resources of the template.

AWS CloudFormation, "Custom resource request objects" and "Custom resource response objects". A request holds the
presigned address that the answer goes to. Anyone who may invoke the function can put an address there, so an answer
goes to https alone, or to the endpoint that the function is configured with.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from aws_lambda_powertools import Logger

from lamplighter.kernel.errors import Permanent

logger = Logger(child=True)

FIELDS: Final = ("RequestType", "ResponseURL", "StackId", "RequestId", "LogicalResourceId")
"""What every request has."""
REASON_LIMIT: Final = 600
"""Characters, of at most six bytes each in JSON; the whole answer may have 4096."""


def is_request(event: object) -> bool:
    """Whether an event is, or pretends to be, a request of CloudFormation."""
    return isinstance(event, Mapping) and "ResponseURL" in event


def serve(
    event: Mapping[str, Any],
    *,
    physical_id: str,
    work: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    undo: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Do the work of a creation or an update, and tell CloudFormation how it went.

    Args:
        event: the request.
        physical_id: of the resource.
        work: takes the resource's properties and answers its attributes. What it raises fails the deployment, with
            that sentence.
        undo: takes the request of a deletion. By default a deletion keeps what there is.

    Raises:
        Permanent: the event is no request of CloudFormation; nothing was done and nothing sent.
    """
    _check(event)
    answer: dict[str, Any] = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
    answer |= {"PhysicalResourceId": physical_id, "Status": "SUCCESS"}
    try:
        if event["RequestType"] == "Delete":
            undo(event)
        else:
            answer["Data"] = dict(work(event.get("ResourceProperties", {})))
    except Exception as error:  # whatever it was, CloudFormation waits for an answer
        logger.exception("a custom resource failed")
        answer |= {"Status": "FAILED", "Reason": f"{type(error).__name__}: {error}"[:REASON_LIMIT]}
    body = json.dumps(answer, ensure_ascii=False).encode(errors="replace")
    # The address is signed for an empty content type; urllib's own would be refused.
    request = urllib.request.Request(  # noqa: S310 - checked above
        event["ResponseURL"], body, {"Content-Type": ""}, method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    return answer


def _check(event: Mapping[str, Any]) -> None:
    missing = [name for name in FIELDS if not isinstance(event.get(name), str)]
    if missing:
        raise Permanent(f"{missing[0]}: a request of CloudFormation has it, as text.")
    if event["RequestType"] not in ("Create", "Update", "Delete"):
        raise Permanent(f"RequestType: takes Create, Update or Delete, got {event['RequestType'][:40]!r}.")
    if not isinstance(event.get("ResourceProperties", {}), Mapping):
        raise Permanent("ResourceProperties: takes an object.")
    if not _is_allowed(event["ResponseURL"]):
        raise Permanent("ResponseURL: takes the https address that CloudFormation gives.")


def _is_allowed(url: str) -> bool:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    try:
        parts, own = urlsplit(url), urlsplit(endpoint or "")
    except ValueError:
        return False
    if not parts.hostname:
        return False
    return parts.scheme == "https" or bool(endpoint and (parts.scheme, parts.netloc) == (own.scheme, own.netloc))
