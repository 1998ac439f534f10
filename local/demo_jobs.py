"""Jobs that the demo asks for over HTTP, with signed requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from local.console import say, step
from local.demo_stage import Stage
from local.signed import Api


class Jobs:
    """The jobs API of the stack on a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.api = Api(stage.aws.api_url())

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(path)
        self.stage.expect(answer.ok, f"GET {path} answered {answer.status_code}: {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.api.post(path, body)
        self.stage.expect(answer.ok, f"POST {path} answered {answer.status_code}: {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def finished(
        self, path: str, body: Mapping[str, Any], title: str, *, twice: bool = False
    ) -> tuple[dict[str, Any], list[tuple[int, str]]]:
        """The job that a request makes, once it has ended, and the progress that was seen on the way.

        Its schedule may hold the lock just then: that run is waited for. `twice` asks for a second run at once, which
        has to be refused.
        """
        stage = self.stage
        progress: list[tuple[int, str]] = []
        with step(title) as current:

            def accepted() -> dict[str, Any] | None:
                answer = self.api.post(path, body)
                return None if answer.status_code == 409 else self._checked(answer)

            made = stage.wait(f"The lock of {body['job_type']}", accepted)
            if twice:
                refusal = self.api.post(path, body)
                stage.expect(refusal.status_code == 409, f"The second run was not refused: {refusal.text}")
            while True:
                job = self.get(f"/api/jobs/{made['job_id']}")
                seen = (int(job.get("progress", 0)), str(job.get("message", "")))
                if seen[1] and seen not in progress:
                    progress.append(seen)
                if job.get("finished_at"):
                    break
                time.sleep(0.02)
            current.say(f"job {job['job_id']}, {job['status']}")
        if twice:
            say(f"A second one at once was refused, 409: {refusal.json()['detail']}")
        stage.expect(job["status"] == "completed", f"{title}: the job is {job['status']}: {job.get('errors')}")
        return job, progress

    def _checked(self, answer: Any) -> dict[str, Any]:
        self.stage.expect(answer.ok, f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found
