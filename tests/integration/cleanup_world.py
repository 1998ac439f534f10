"""The cleanup's state machine in process, and what there is for it to clean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Self
from unittest.mock import patch

from lamplighter.kernel import retention
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy
from lamplighter.library import cleanup, stale_jobs
from local.stack import ROOT
from tests.integration.phases_world import PhasesWorld
from tests.state_machine import load
from tests.unit.conftest import FakeContext

DEFINITION = load((ROOT / "statemachines/cleanup.asl.yaml").read_text(), Cleanup="cleanup", Stack="stack")
SYNC = Policy(timeout=timedelta(minutes=30), target="bus", backoff_base=timedelta(0))
OWN = "lamplighter.job_history, lamplighter.system_logs"
TABLES = f"handled_downloads, analysis_plans, onboarding_requests, sessions, tokens, {OWN}"


class World(PhasesWorld):
    """The cleanup's executions, and what there is for them to clean."""

    definition = DEFINITION
    types = tuple(cleanup.TYPES)
    function_time = timedelta(minutes=4)

    def _invoke(self, function: str, payload: Any) -> Any:
        assert function in ("cleanup", "stack-cleanup")
        return cleanup.handler(payload, FakeContext(self.function_time))

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """The handlers work on this world's ledger, clock and executions."""
        bodies = {**cleanup.BODIES, "stale_jobs": partial(stale_jobs.body, execution=self.status)}
        with (
            super().installed(),
            patch.object(cleanup, "BODIES", bodies),
            patch.object(retention, "MAX_SKEW", timedelta(days=365)),
        ):
            yield self

    # -- what is to be cleaned ---------------------------------------------------------------------------------------

    def downloads(self, rows: int, age: timedelta) -> None:
        """Handled downloads of an age."""
        self.sql(
            "INSERT INTO handled_downloads (timestamp) SELECT :at FROM generate_series(1, :rows)",
            at=self.now - age,
            rows=rows,
        )

    def plan(self, job_id: str | None, *, age: timedelta = timedelta(hours=1), status: str = "PENDING") -> int:
        """A plan; its id."""
        (row,) = self.sql(
            "INSERT INTO analysis_plans (status, job_id, updated_at) VALUES (:status, :job_id, :at) RETURNING id",
            status=status,
            job_id=job_id,
            at=self.now - age,
        )
        return int(row[0])

    def plans(self) -> dict[int, str]:
        """The status of each plan."""
        return {row.id: row.status for row in self.sql("SELECT id, status FROM analysis_plans")}

    def ago(self, ago: timedelta, policy: Policy = SYNC, job_type: str = "sync", **values: Any) -> Job:
        """A job that was started some time ago."""
        then = Ledger(self.store, clock=lambda: self.now - ago)
        return then.start(then.new_job(job_type, policy, **values))

    def finished(self, ago: timedelta, job_type: str = "sync") -> Job:
        """A job that completed some time ago."""
        then = Ledger(self.store, clock=lambda: self.now - ago)
        return then.complete(then.start(then.new_job(job_type, SYNC)), {"n": 1})
