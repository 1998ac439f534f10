"""State machines of phased jobs in process: their real definition and handlers, a ledger in memory, a real Postgres;
and how functions and executions of them are killed."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self
from unittest.mock import patch

from sqlalchemy import Engine, event, text

from lamplighter.jobs.dispatcher import Action, Start, actions
from lamplighter.jobs.timeout_checker import Checker
from lamplighter.kernel import phases
from lamplighter.kernel.job import Run
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.settings import Settings
from tests.memory_store import MemoryStore
from tests.state_machine import Execution, ExecutionFailed, Killed

WRITES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|MERGE INTO) [\w.]+")


class PhasesWorld(ABC):
    """A ledger whose stream is followed as the dispatcher follows it, executions, and a clock that is told the time."""

    definition: Mapping[str, Any]
    types: Collection[str]
    """The job types of the state machine; the first is what is started where a test does not say."""
    function_time = timedelta(minutes=15)

    def __init__(self, engine: Engine, store: MemoryStore | None = None) -> None:
        self.engine = engine
        self.now = utc_now()
        self.pending: list[Job] = []
        """What the dispatcher is to start."""
        self.done: list[Action] = []
        """What else the stream called for."""
        self.store = store or MemoryStore()
        self.store._listener = self._follow
        self.ledger = Ledger(self.store, clock=lambda: self.now)
        self.executions: dict[str, Execution] = {}
        self.settings = Settings()

    def _follow(self, old: Job | None, new: Job | None) -> None:
        for action in actions(old, new):
            if isinstance(action, Start):
                self.pending.append(action.job)
            else:
                self.done.append(action)

    @abstractmethod
    def _invoke(self, function: str, payload: Any) -> Any:
        """A call of a function by the state machine."""

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """The handlers work on this world's ledger and clock."""
        with (
            patch.object(Ledger, "from_environment", lambda: self.ledger),
            patch.object(phases, "utc_now", lambda: self.now),
        ):
            yield self

    # -- the state machine -------------------------------------------------------------------------------------------

    def execution(self, **given: Any) -> Execution:
        """A new execution, not run yet; by hand unless told otherwise."""
        arn = f"arn:execution:{len(self.executions)}"
        made = Execution(
            definition=self.definition,
            invoke=self._invoke,
            arn=arn,
            started=self.now.isoformat(),
            input={"job_type": next(iter(self.types))} | given,
        )
        self.executions[arn] = made
        return made

    def run(self, **given: Any) -> Any:
        """The output of an execution. Raises ExecutionFailed."""
        return self.execution(**given).run()

    def tick(self, job_type: str | None = None, at: datetime | None = None) -> Execution:
        """What the schedule of a type starts."""
        type_ = job_type or next(iter(self.types))
        planned = (at or self.now).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.execution(job_type=type_, schedule=type_.replace("_", "-"), scheduled_time=planned)

    def status(self, job: Job) -> str | None:
        """What Step Functions would say of a job's execution."""
        execution = self.executions.get(job.execution_arn or "")
        return execution.status if execution else None

    # -- the ledger's machinery --------------------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """One pass of the timeout checker."""
        return Checker(self.ledger, stop_at=self.now + timedelta(minutes=1), execution=self.status).run({})

    def dispatch(self) -> None:
        """Start what was released, and let it run."""
        while self.pending:
            job = self.pending.pop(0)
            if job.job_type in self.types:
                turn = {"job_id": job.job_id, "attempt": job.attempt, "continuation": job.continuation}
                with suppress(ExecutionFailed):  # the row says what became of it
                    self.run(job_type=job.job_type, **turn)

    def settle(self, *, passes: int = 12) -> None:
        """Let time go by until none of the state machine's jobs lives."""
        for _ in range(passes):
            self.check()
            self.dispatch()
            if not any(job.job_type in self.types for job in self.jobs() if not job.status.terminal):
                return
            self.now += timedelta(minutes=5, seconds=1)
        raise AssertionError([job for job in self.jobs() if not job.status.terminal])

    # -- what there is -----------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All rows."""
        return [self.ledger.get(key.removeprefix("JOB#")) for key in list(self.store.items)]

    def runs(self) -> list[Job]:
        """The rows of the state machine's jobs."""
        return [job for job in self.jobs() if job.job_type in self.types]

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def count(self, table: str, where: str = "true") -> int:
        """Rows of a table."""
        return int(self.sql(f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


class Points:
    """The moments at which a function can be killed, which are after everything that it writes; kills it at one."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        """What functions have written since the last call of `kill_at`; what comes after the kill is not counted."""
        self.killed = False
        self._deadly: tuple[str, int] | None = None
        self._where: str | None = None

    def kill_at(self, number: int, what: str = "") -> None:
        """Kill at the n-th point, or at the n-th of those that are called `what`."""
        self.passed, self.killed, self._deadly = [], False, (what, number)

    def kill_no_more(self) -> None:
        """Let everything live from now on."""
        self.killed = True

    def __call__(self, what: str) -> None:
        if self._where is None or self.killed:
            return
        self.passed.append(f"{self._where}{what}")
        if self._deadly is None:
            return
        called, number = self._deadly
        if called in ("", self.passed[-1]) and (self.passed.count(called) if called else len(self.passed)) == number:
            self.killed = True
            raise Killed

    @contextmanager
    def within(self, where: str = "") -> Iterator[None]:
        """A function is at work; `where` stands before what its points are called."""
        self._where = where
        try:
            yield
        finally:
            self._where = None


class FragileStore(MemoryStore):
    """A store whose caller may be killed after each write."""

    def __init__(self, point: Points) -> None:
        super().__init__()
        for name in ("create", "apply", "apply_many", "remove_many"):
            setattr(self, name, after(getattr(self, name), partial(point, name)))


def after[**P, R](whole: Callable[P, R], then: Callable[[], None]) -> Callable[P, R]:
    """The same function, after which something else is done."""

    def both(*args: P.args, **options: P.kwargs) -> R:
        answer = whole(*args, **options)
        then()
        return answer

    return both


@contextmanager
def fragile(world: PhasesWorld, point: Points) -> Iterator[None]:
    """Every statement of a function that writes is a point, and every commit."""
    dialect = world.engine.dialect

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if writes := WRITES.search(statement):
            point(writes[0])

    with (
        stopping(world),
        patch.object(dialect, "do_commit", after(dialect.do_commit, partial(point, "COMMIT"))),
    ):
        event.listen(world.engine, "after_cursor_execute", executed)
        try:
            yield
        finally:
            event.remove(world.engine, "after_cursor_execute", executed)


@contextmanager
def stopping(world: PhasesWorld) -> Iterator[None]:
    """Each time that a function asks whether to go on, the clock goes on a second."""
    stop = Run.stop

    def stops(run: Run) -> Any:
        world.now += timedelta(seconds=1)
        return stop(run)

    with patch.object(Run, "stop", stops):
        yield


def die_with(execution: Execution) -> None:
    """Run it; when a function of it is killed, it is gone at once."""
    whole = execution.invoke

    def invoke(function: str, payload: Any) -> Any:
        try:
            return whole(function, payload)
        except Killed:
            raise KeyboardInterrupt from None

    execution.invoke = invoke
    with suppress(KeyboardInterrupt):
        execution.run()
    if execution.status == "RUNNING":
        execution.status = "ABORTED"


def interleaved(executions: Collection[Execution], rng: random.Random) -> Iterator[None]:
    """A step of one, a step of another, in any order, until all have ended or were aborted."""
    going = {execution.arn: execution.steps() for execution in executions}
    while going:
        arn = rng.choice(list(going))
        with suppress(ExecutionFailed):
            next(going[arn], None)
        going = {one.arn: going[one.arn] for one in executions if one.status == "RUNNING"}
        yield
