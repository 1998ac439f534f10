"""A worker outside Lambda: takes jobs of one type from the jobs API, works on them, and tells how it went.

    pip install boto3 requests
    python worker.py https://a1b2c3d4e5.execute-api.us-east-1.amazonaws.com count_words

It signs with whatever credentials boto3 finds. Run as many as you like: exactly one of them wins each claim.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import boto3
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

PAUSE = 2.0
"""Seconds between looks for work while there is none."""


class Refused(Exception):
    """The job is not ours (any more): somebody else has it, it timed out, or it has ended."""


class Api:
    """The jobs API, called with AWS Signature Version 4."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._aws = boto3.Session()
        self._http = requests.Session()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """What the API answers. Raises Refused for 409, and requests.HTTPError for what else went wrong."""
        request = requests.Request(method, self._url + path, params=query, json=body).prepare()
        signed = AWSRequest(method, request.url, data=request.body, headers={"Content-Type": "application/json"})
        SigV4Auth(self._aws.get_credentials(), "execute-api", self._aws.region_name).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        answer = self._http.send(request, timeout=35)
        if answer.status_code == 409:
            raise Refused(answer.json()["detail"])
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told


def work(payload: dict[str, Any], done: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Your work: counts the words of some texts into `done`. Yields its progress, in steps well below 5 minutes."""
    texts = payload["texts"]
    for number, text in enumerate(texts, start=1):
        done["words"] = done.get("words", 0) + len(text.split())
        yield 100 * number // len(texts), f"{number} of {len(texts)} texts"


def attempt(api: Api, job: dict[str, Any]) -> None:
    """Claim the job as it was seen, work on it, and record how that ended. Raises Refused if it is not ours."""
    path = f"/api/jobs/{job['job_id']}"
    shown = api.call("GET", path)
    turn = {"attempt": shown["attempt"], "continuation": shown["continuation"]}
    job = api.call("POST", f"{path}/claim", turn)
    turn["lease"] = job["lease"]  # proves to the other calls that the attempt is ours
    done: dict[str, Any] = {}
    try:
        for progress, message in work(job["payload"], done):
            beat = api.call("POST", f"{path}/heartbeat", turn | {"progress": progress, "message": message})
            if beat["cancel_requested"]:
                api.call("POST", f"{path}/complete", turn | {"cancelled": True, "result": done})
                return
    except Refused:
        raise
    except Exception as error:  # whatever it was, the ledger decides whether it is tried again
        what = {"type": type(error).__name__, "message": str(error)[:1000] or "no message"}
        api.call("POST", f"{path}/fail", turn | what | {"stack_trace": traceback.format_exc()[-8000:]})
        return
    api.call("POST", f"{path}/complete", turn | {"result": done})


def main(url: str, job_type: str) -> None:
    """Work until stopped."""
    api = Api(url)
    while True:
        waiting = api.call("GET", "/api/jobs", job_type=job_type, status="pending")["jobs"]
        for job in waiting:
            try:
                attempt(api, job)
            except Refused as refusal:
                print(refusal, file=sys.stderr)
        if not waiting:
            time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
