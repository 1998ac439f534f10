"""The answer to CloudFormation: where it goes, what it says, and to whom nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from lamplighter.jobs import custom_resource, migrate
from lamplighter.jobs import settings as settings_job
from lamplighter.kernel.errors import Permanent


class Receiver:
    """The address that waits for answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[dict[str, Any]] = []
        self.content_types: list[str | None] = []
        self.lengths: list[int] = []


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """At the configured endpoint."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            here.answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            here.content_types.append(self.headers["Content-Type"])
            here.lengths.append(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    here = Receiver(f"http://127.0.0.1:{server.server_port}/answer?signature=x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


def request(url: str, kind: str = "Create", **changes: Any) -> dict[str, Any]:
    return {
        "RequestType": kind,
        "ResponseURL": url,
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "Thing",
        "ResourceProperties": {"Size": "3"},
    } | changes


def test_the_answer_has_an_empty_content_type_and_the_attributes(receiver: Receiver) -> None:
    """The address is signed for no other."""
    answer = custom_resource.serve(
        request(receiver.url), physical_id="thing", work=lambda given: {"Twice": given["Size"] * 2}
    )
    assert answer == {
        "Status": "SUCCESS",
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "Thing",
        "PhysicalResourceId": "thing",
        "Data": {"Twice": "33"},
    }
    assert (receiver.answers, receiver.content_types) == ([answer], [""])


def test_what_the_work_raises_fails_the_deployment_with_its_sentence(receiver: Receiver) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise Permanent("size: takes at most 2." + "x" * 5000)

    answer = custom_resource.serve(request(receiver.url, "Update"), physical_id="thing", work=fail)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith("Permanent: size: takes at most 2.")
    assert len(json.dumps(receiver.answers[0])) < 4096


@pytest.mark.parametrize("point", [0xE9, 0x8868, 0x1F4BE, 0x01, 0xD800], ids=hex)
def test_the_answer_is_short_enough_in_every_language(
    receiver: Receiver, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has its messages in its own language. CloudFormation takes 4096 bytes, and shows nothing of a longer."""
    character = chr(point)
    monkeypatch.setattr(custom_resource.logger, "exception", lambda _: None)  # no terminal takes the last one

    def fail(_: object) -> dict[str, Any]:
        raise Permanent(character * 2000)

    stack = "arn:aws:cloudformation:us-east-1:111122223333:stack/" + "s" * 128 + "/" + "0" * 36
    custom_resource.serve(request(receiver.url, StackId=stack), physical_id="x", work=fail)
    assert receiver.answers[0]["Status"] == "FAILED"
    assert receiver.lengths[0] < 4096


def test_a_deletion_does_nothing_and_succeeds(receiver: Receiver) -> None:
    answer = custom_resource.serve(request(receiver.url, "Delete"), physical_id="thing", work=lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    assert (answer["Status"], len(receiver.answers)) == ("SUCCESS", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ResponseURL": "http://169.254.169.254/latest"}, "ResponseURL: takes the https address"),
        ({"ResponseURL": "http://127.0.0.1.example.com/"}, "ResponseURL: takes the https address"),
        ({"ResponseURL": "file:///etc/passwd"}, "ResponseURL: takes the https address"),
        ({"ResponseURL": "https://"}, "ResponseURL: takes the https address"),
        ({"ResponseURL": "https://[::1"}, "ResponseURL: takes the https address"),
        ({"ResponseURL": 5}, "ResponseURL: a request of CloudFormation has it, as text"),
        ({"RequestId": None}, "RequestId: a request of CloudFormation has it, as text"),
        ({"RequestType": "Destroy"}, "RequestType: takes Create, Update or Delete, got 'Destroy'"),
        ({"ResourceProperties": [1]}, "ResourceProperties: takes an object"),
    ],
)
@pytest.mark.parametrize("handler", [migrate.handler, settings_job.handler], ids=["migrate", "settings"])
def test_nothing_is_done_and_nothing_sent_for_what_is_no_request_of_cloudformation(
    receiver: Receiver, handler: Any, changes: dict[str, Any], said: str
) -> None:
    """It would be a way to send requests from within the account, and a deployment that any caller can end."""
    with pytest.raises(Permanent, match=said):
        handler(request(receiver.url, **changes), None)
    assert receiver.answers == []


@pytest.mark.parametrize("event", [5, None, "text", [], {"attempt": 1}, {"validate": 1, "more": 2}, {"Settings": "{}"}])
def test_events_of_other_shapes_are_one_sentence(event: Any) -> None:
    with pytest.raises(Permanent, match=r"^Takes \{\}"):
        settings_job.handler(event, None)
    with pytest.raises(Permanent, match=r"takes no fields|a request of CloudFormation"):
        migrate.handler(event, None)
