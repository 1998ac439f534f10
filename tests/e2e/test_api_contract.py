"""The jobs API keeps to its OpenAPI document, whatever it is sent: tried by schemathesis on the deployed stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Final

import pytest
import requests
import schemathesis
from hypothesis import settings
from schemathesis import checks as any_api
from schemathesis.specs.openapi import checks

from lamplighter.jobs.api import document
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.row import Job
from local.signed import Api, as_admin
from tests.e2e.deployed import Deployed, Shelf

EXAMPLES: Final = 20
"""Random requests for each operation, beside the thirty or so that schemathesis derives from the document's limits."""

CHECKS: Final = [
    any_api.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]

RUNS: Final = ("/api/jobs/run", "/api/jobs/run/{job_type}", "/api/jobs/preview")

schema = schemathesis.openapi.from_dict(
    json.loads(document()),
    config=schemathesis.Config.from_dict(
        {
            "generation": {"max-examples": EXAMPLES, "deterministic": True, "with-security-parameters": False},
            "phases": {"coverage": {"unexpected-methods": []}},
        }
    ),
)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = as_admin()
        yield session


@pytest.fixture(scope="module")
def jobs(stack: Deployed) -> Iterator[str]:
    """Ids of jobs that there are, each in the next one of all states, and now and then of none."""
    ledger = stack.ledger

    def pending() -> Job:
        return stack.seed("e2e_contract", target="none", payload={"n": [1, 2.5, None, "ü"]})

    def running() -> Job:
        return ledger.heartbeat(ledger.claim(pending().job_id, attempt=1, continuation=0), progress=5, message="ü")

    states: list[Callable[[], str]] = [
        lambda: pending().job_id,
        lambda: running().job_id,
        lambda: ledger.fail(running(), OSError("again")).job_id,
        lambda: ledger.fail(running(), Permanent("no"), result={"done": 1}).job_id,
        lambda: ledger.complete(running(), {"done": 2}).job_id,
        lambda: ledger.cancel(running().job_id).job_id,
        lambda: ledger.cancel(pending().job_id).job_id,
        lambda: "01KB2T5V8Q4W3N6E7R8T9Y0Z1A",
    ]
    return (make() for make in cycle(states))


@schema.parametrize()
@settings(deadline=None)
def test_the_api_keeps_to_its_document(
    case: schemathesis.Case, stack: Deployed, session: requests.Session, jobs: Iterator[str]
) -> None:
    if len(case.path_parameters.get("job_id", "")) == 26:
        case.path_parameters["job_id"] = next(jobs)
    if case.operation.path == "/api/jobs/run/{job_type}" and not isinstance(case.body, dict | list | str | int | float):
        case.body, case.media_type = {}, "application/json"  # without a body it would run, too
    if case.operation.path in RUNS and isinstance(case.body, dict):
        # What is valid by chance would run for real: one parameter that no job has sees to it that nothing does.
        params = case.body.setdefault("params", {})
        if isinstance(params, dict):
            params["no parameter"] = True
    answer = case.call(base_url=stack.api_url, session=session)
    case.validate_response(answer, CHECKS)


def test_a_job_that_is_made_is_answered_as_documented(stack: Deployed, shelf: Shelf) -> None:
    answer = Api(stack.api_url).post(
        "/api/jobs/preview", {"job_type": "orphan_cleanup", "params": {"base_path": shelf.name}}
    )
    assert answer.status_code == 202, answer.text
    schema["/api/jobs/preview"]["POST"].validate_response(answer)
    stack.becomes(answer.json()["job_id"], "completed", "failed")


def test_the_deployed_document_is_this_one(stack: Deployed) -> None:
    assert Api(stack.api_url).get("/openapi.json").text == document()
