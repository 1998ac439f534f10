"""docs/worker.py, the example of a worker outside Lambda, at work on the deployed stack (REQUIREMENTS B1, K2, K7)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.signed import Api
from local.stack import ROOT
from tests.e2e.deployed import Deployed, eventually


@pytest.fixture
def api(stack: Deployed) -> Api:
    return Api(stack.api_url)


@pytest.fixture
def workers(stack: Deployed, job_type: str, tmp_path: Path) -> Iterator[None]:
    """Two of them, so that they have to share."""
    command = [sys.executable, ROOT / "docs" / "worker.py", stack.api_url, job_type]
    environment = {**os.environ, **stack.aws.environment}
    with (tmp_path / "log").open("wb") as log:
        running = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for _ in range(2)]
        yield
        assert [worker.poll() for worker in running] == [None, None], (tmp_path / "log").read_text()
        for worker in running:
            worker.kill()
            worker.wait()


def submit(api: Api, job_type: str, texts: list[Any]) -> str:
    answer = api.post("/api/jobs", {"job_type": job_type, "payload": {"texts": texts}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def test_each_job_is_worked_at_once(stack: Deployed, api: Api, job_type: str, workers: None) -> None:
    ids = [submit(api, job_type, ["one two", "three"] * n) for n in range(1, 6)]
    for n, job_id in enumerate(ids, start=1):
        done = stack.becomes(job_id, "completed")
        assert (done.result, done.attempt, done.progress) == ({"words": 3 * n}, 1, 100)
        assert done.message == f"{2 * n} of {2 * n} texts"


def test_a_cancelled_worker_says_what_it_had_done(stack: Deployed, api: Api, job_type: str, workers: None) -> None:
    job_id = submit(api, job_type, ["a b"] * 10_000)
    eventually(lambda: stack.ledger.get(job_id).message)
    api.post(f"/api/jobs/{job_id}/cancel")
    ended = stack.becomes(job_id, "cancelled")
    assert 0 < (ended.result or {})["words"] < 20_000


def test_a_workers_error_is_recorded_and_the_job_tried_again(
    stack: Deployed, api: Api, job_type: str, workers: None
) -> None:
    job_id = submit(api, job_type, ["fine", 5])
    failed = stack.becomes(job_id, "failed", checking=True)
    assert [(error.type, error.attempt) for error in failed.errors] == [("AttributeError", n) for n in (1, 2, 3, 4)]
    assert "text.split()" in failed.errors[0].stack_trace
    assert job_id in {letter["job_id"] for letter in api.get("/api/dead-letters", limit=100).json()["jobs"]}
