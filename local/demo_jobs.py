"""Jobs that the demo asks for over HTTP, with signed requests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from local.console import say, step
from local.demo_evidence import Evidence
from local.demo_stage import Stage
from local.signed import Api

if TYPE_CHECKING:
    from lamplighter.kernel.schedules import Schedule

AHEAD: Final = timedelta(seconds=30)
"""How long before its time a schedule is waited for: what the chapters that it could come into take."""


def about_to_start(schedules: Iterable[Schedule], now: datetime) -> dict[str, datetime]:
    """When those that are enabled and at their time within `AHEAD` of `now` (aware) are due, by name."""
    due = {schedule.name: schedule.due_after(now) for schedule in schedules if schedule.enabled}
    return {name: at for name, at in due.items() if at and at - now <= AHEAD}


class Jobs:
    """The jobs API of the stack on a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.api = Api(stage.aws.api_url())
        self.evidence = Evidence(aws=stage.aws, outputs=stage.outputs)

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
        first: list[str] = []
        with step(title) as current:

            def accepted() -> dict[str, Any] | None:
                answer = self.api.post(path, body)
                if answer.status_code != 409:
                    return self._checked(answer)
                first.append(answer.json()["detail"])
                return None

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
                time.sleep(0.1)
            current.say(f"job {job['job_id']}, {job['status']}")
        if first:
            say(f"Another run was there first and was waited for: {first[0]}")
        if twice:
            say(f"A second one at once was refused, 409: {refusal.json()['detail']}")
        stage.expect(job["status"] == "completed", f"{title}: the job is {job['status']}: {job.get('errors')}")
        return job, progress

    def running(self, *job_types: str) -> dict[str, Any] | None:
        """One of these types that waits or runs, if any does."""
        listed = (job for kind in job_types for job in self.get(f"/api/jobs?job_type={kind}&limit=1")["jobs"])
        return next((job for job in listed if job["status"] in ("pending", "running")), None)

    def let_pass(self, *schedules: str) -> None:
        """Wait for what these schedules are about to start, lest it come in between."""
        due = about_to_start(map(self.evidence.schedule, schedules), datetime.now(UTC))

        def over() -> bool | None:
            last = {name: self.evidence.last_completed(name) for name in due}
            return all(ended and ended >= due[name] for name, ended in last.items()) or None

        if due:
            with step("Schedules") as current:
                self.stage.wait("The runs that were due", over)
                ran = ", ".join(f"{name} at {at:%H:%M} UTC" for name, at in due.items())
                current.say(f"waited for what was due just now, lest it come in between: {ran}")

    def _checked(self, answer: Any) -> dict[str, Any]:
        self.stage.expect(answer.ok, f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found
