"""The cleanup's state machine in process: its real definition and handlers, a ledger in memory and a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, text

from lamplighter.jobs.dispatcher import Start, actions
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel import phases, retention
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy
from lamplighter.kernel.settings import Settings
from lamplighter.library import cleanup, stale_jobs
from local.stack import ROOT
from tests.memory_store import MemoryStore
from tests.state_machine import Execution, ExecutionFailed, load
from tests.unit.conftest import FakeContext

DEFINITION = load((ROOT / "statemachines/cleanup.asl.yaml").read_text(), Cleanup="cleanup", Stack="stack")
SYNC = Policy(timeout=timedelta(minutes=30), target="bus", backoff_base=timedelta(0))
TABLES = "handled_downloads, analysis_plans, onboarding_requests, sessions, tokens, job_history, system_logs"


class World:
    """A ledger whose stream is followed as the dispatcher follows it, executions, and a clock that is told the time."""

    def __init__(self, engine: Engine, store: MemoryStore | None = None) -> None:
        self.engine = engine
        self.now = utc_now()
        self.pending: list[Job] = []
        """What the dispatcher is to start."""
        self.store = store or MemoryStore()
        self.store._listener = self._follow
        self.ledger = Ledger(self.store, clock=lambda: self.now)
        self.executions: dict[str, Execution] = {}
        self.function_time = timedelta(minutes=4)
        self.settings = Settings()

    def _follow(self, old: Job | None, new: Job | None) -> None:
        self.pending += [action.job for action in actions(old, new) if isinstance(action, Start)]

    # -- the state machine -------------------------------------------------------------------------------------------

    def execution(self, **given: Any) -> Execution:
        """A new execution, not run yet; by hand unless told otherwise."""
        arn = f"arn:execution:{len(self.executions)}"
        made = Execution(
            definition=DEFINITION,
            invoke=self._invoke,
            arn=arn,
            started=self.now.isoformat(),
            input={"job_type": "cleanup"} | given,
        )
        self.executions[arn] = made
        return made

    def run(self, **given: Any) -> Any:
        """The output of an execution. Raises ExecutionFailed."""
        return self.execution(**given).run()

    def tick(self, job_type: str = "cleanup", at: datetime | None = None) -> Execution:
        """What the schedule of a type starts."""
        schedule = job_type.replace("_", "-")
        planned = (at or self.now).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.execution(job_type=job_type, schedule=schedule, scheduled_time=planned)

    def _invoke(self, function: str, payload: Any) -> Any:
        assert function in ("cleanup", "stack-cleanup")
        assert len(json.dumps(payload)) < 256 * 1024
        return cleanup.handler(payload, FakeContext(self.function_time))

    def status(self, job: Job) -> str | None:
        """What Step Functions would say of a job's execution."""
        execution = self.executions.get(job.execution_arn or "")
        return execution.status if execution else None

    @contextmanager
    def installed(self) -> Iterator[World]:
        """The handlers work on this world's ledger, clock and executions."""
        bodies = {**cleanup.BODIES, "stale_jobs": partial(stale_jobs.body, execution=self.status)}
        with (
            patch.object(Ledger, "from_environment", lambda: self.ledger),
            patch.object(cleanup, "BODIES", bodies),
            patch.object(phases, "utc_now", lambda: self.now),
            patch.object(retention, "MAX_SKEW", timedelta(days=365)),
        ):
            yield self

    # -- the ledger's machinery --------------------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """One pass of the timeout checker."""
        return Checker(self.ledger, stop_at=self.now + timedelta(minutes=1), execution=self.status).run({})

    def dispatch(self) -> None:
        """Start what was released, and let it run."""
        while self.pending:
            job = self.pending.pop(0)
            if job.policy.target == "states:cleanup":
                turn = {"job_id": job.job_id, "attempt": job.attempt, "continuation": job.continuation}
                with suppress(ExecutionFailed):  # the row says what became of it
                    self.run(job_type=job.job_type, **turn)

    def settle(self, *, passes: int = 12) -> None:
        """Let time go by until nothing of the cleanups lives."""
        for _ in range(passes):
            self.check()
            self.dispatch()
            if not any(job.job_type in cleanup.TYPES for job in self.jobs() if not job.status.terminal):
                return
            self.now += timedelta(minutes=5, seconds=1)
        raise AssertionError([job for job in self.jobs() if not job.status.terminal])

    # -- what is to be cleaned ---------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All rows."""
        return [self.ledger.get(key.removeprefix("JOB#")) for key in list(self.store.items)]

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def count(self, table: str, where: str = "true") -> int:
        """Rows of a table."""
        return int(self.sql(f"SELECT count(*) FROM {table} WHERE {where}")[0][0])

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
