"""The scans under chaos: killed after everything that they write, alone or with their execution, and whatever befalls
calls of a state machine at random; the real definition and handlers over a real Postgres, and over a bucket
(FAILURES 1-4, C5, C7, P5)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Engine, event

from lamplighter.cloud.cloud_region import CHECKS
from lamplighter.cloud.store.s3 import S3Store
from lamplighter.kernel import aws
from lamplighter.kernel import job as job_module
from lamplighter.kernel.errors import DatabaseUnavailable
from lamplighter.kernel.ledger.row import Status
from tests.integration.cloud_world import Cloud
from tests.integration.phases_world import die_with, interleaved
from tests.integration.scans_world import DAY, HOUR, MINUTE, ScansWorld
from tests.memory_s3 import MemoryS3
from tests.state_machine import Execution, ExecutionFailed

ACCIDENTS = ("late", "throttled", "answer lost", "twice", "killed", "database away")
THROTTLED = type("Lambda.TooManyRequestsException", (Exception,), {})
LOST = type("Lambda.ServiceException", (Exception,), {})
"""What the state machine calls again for, by Step Functions' names."""


@pytest.fixture
def s3(cloud: Cloud, kept: Engine | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 client of the cloud; of a bucket in memory where that keeps the findings, and is written so often."""
    if kept is None:
        memory, other = MemoryS3().client(), aws.client
        monkeypatch.setattr(aws, "client", lambda service: memory if service == "s3" else other(service))
        yield memory
        return
    aws._client.cache_clear()
    yield aws.client("s3")
    aws._client.cache_clear()


@pytest.fixture(params=["postgres", "s3"])
def kept(request: pytest.FixtureRequest) -> Engine | None:
    """The database that keeps the findings, or none: then the bucket does."""
    return request.getfixturevalue("engine") if request.param == "postgres" else None


@pytest.fixture(autouse=True)
def function_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no heartbeat in the background, which would be a point now and then."""
    monkeypatch.setattr(job_module, "BEAT", timedelta(hours=1))
    monkeypatch.setenv("STACK_NAME", "stack")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Lamplighter")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # a run has some thirty lines


class Chaos(ScansWorld):
    """A world in which calls of functions meet with accidents."""

    accidents: Sequence[str] = ("none",)
    """Each call meets with one of them."""

    def _invoke(self, function: str, payload: Any) -> Any:
        call = partial(super()._invoke, function, payload)
        match self.rng.choice(self.accidents):
            case "late" if payload.get("step") != "begin":  # a tick that is late is none
                self.now += self.rng.randint(1, 14) * MINUTE
            case "throttled":
                raise THROTTLED("Rate exceeded")
            case "answer lost":
                call()
                raise LOST("The answer is lost.")
            case "twice":
                call()
            case "killed":
                self.point.kill_at(self.rng.randint(1, 6))
            case "database away":
                with self._without_database():
                    return call()
        return call()

    @contextmanager
    def _without_database(self) -> Iterator[None]:
        def refused(*_: Any) -> None:
            raise DatabaseUnavailable("The database went away.")

        def slow(*_: Any) -> None:
            raise DatabaseUnavailable("S3 is to be asked more slowly.")

        if not self.engine:
            with patch.object(S3Store, "_get", slow):
                yield
            return
        event.listen(self.engine, "before_cursor_execute", refused)
        try:
            yield
        finally:
            event.remove(self.engine, "before_cursor_execute", refused)

    def recover(self) -> None:
        """No more accidents, and time enough for every deadline."""
        self.accidents = ("none",)
        self.point.kill_no_more()
        self.now += HOUR
        self.settle()
        self.verify()


def test_killed_after_every_write_it_loses_nothing_and_the_next_attempt_ends_it(kept: Engine | None, s3: Any) -> None:
    """The function alone is killed, or the execution with it, in turn. Each time it is another day, on which some
    regions cannot be read, and what is kept of the days before is put to the test as well."""
    with Chaos(kept, s3, seed=0).installed() as world:
        writes = writes_of(world)
        for number, (what, job_type) in enumerate(writes.items()):
            die, kinds = number % 2 == 0, list(CHECKS) if job_type in CHECKS else [job_type]
            assert any(is_killed(world, what, world.rng.choice(kinds), die=die) for _ in range(5)), f"{what} is rare"


def writes_of(world: Chaos) -> dict[str, str]:
    """What runs write that nobody kills, and the first job type that writes it."""
    writes = dict[str, str]()
    for job_type in world.types:
        world.point.kill_at(0)
        world.run(job_type=job_type)
        writes = dict.fromkeys(world.point.passed, job_type) | writes
        world.verify()
    assert {what.partition(":")[0] for what in writes} >= {"begin", "divide", "regions", "gather", "report", "finish"}
    tables = {"regions: INSERT INTO lamplighter.findings", "regions: INSERT INTO lamplighter.instances"}
    kept = tables if world.engine else {"regions: keep", "report: keep"}
    assert {"report: upload", *kept} <= writes.keys()
    return writes


def is_killed(world: Chaos, what: str, job_type: str, *, die: bool) -> bool:
    """Whether a run was killed after it wrote that; if so, it has come to a good end after all."""
    world.now += DAY
    world.point.kill_at(world.rng.randint(1, 3) if "regions" in what else 1, what)
    execution = world.tick(job_type)
    with suppress(ExecutionFailed):
        die_with(execution) if die else execution.run()
    killed = world.point.killed
    world.recover()
    return killed


def test_a_report_says_that_a_scan_died_before_its_regions_were_done(kept: Engine | None, s3: Any) -> None:
    """What it shows are findings of an earlier scan, or nothing."""
    with Chaos(kept, s3, seed=1).installed() as world:
        world.point.kill_at(1, "divide: apply")
        told = world.run(job_type="security_enforcement")
        document = world.document(told["job_id"])
        assert (told["status"], told["errors"]) == ("completed_with_errors", ["regions: Runtime.ExitError"])
        assert document.remarks[0] == (
            "The regions could not all be scanned; findings may be those of an earlier scan: Runtime.ExitError"
        )
        world.recover()


def test_a_report_that_is_made_again_replaces_the_first_wholly_or_not_at_all(kept: Engine | None, s3: Any) -> None:
    """The first was whole when its execution died; the second, about other findings, dies while it is written."""
    with Chaos(kept, s3, seed=1).installed() as world:
        last = "report: COMMIT" if kept else "report: keep"
        for deadly in ("report: put", "report: upload", last):
            world.now += DAY
            world.point.kill_at(1, last)
            die_with(world.tick("waste_scan"))
            world.now += 3 * DAY
            world.run(job_type="security_enforcement")
            world.point.kill_at(1, deadly)
            world.settle()
            assert world.point.killed
            world.recover()


@pytest.mark.parametrize("seed", range(3))
def test_two_at_once_with_accidents_at_random(kept: Engine | None, s3: Any, seed: int) -> None:
    """K3, K6-K8: two executions step by step in any order, of one tick, of two, or by hand, perhaps a preview; one may
    be cancelled, one aborted; calls come late, are throttled, answered in vain, delivered twice, killed, or find no
    database."""
    with Chaos(kept, s3, seed).installed() as world:
        rng = world.rng
        for _ in range(12):
            world.now += rng.choice([HOUR, DAY])
            executions = two(world)
            world.accidents = rng.choice(
                [("none",), ("late",), ACCIDENTS, *(("none",) * 5 + (one,) for one in ACCIDENTS)]
            )
            cancel, abort = rng.random() < 0.2, rng.random() < 0.2
            for _ in interleaved(executions, rng):
                if cancel and world.store.locks and rng.random() < 0.2:
                    world.ledger.cancel(rng.choice(list(world.store.locks.values())))
                    cancel = False
                if abort and rng.random() < 0.1 and executions[0].status == "RUNNING":
                    executions[0].status = "ABORTED"
            world.recover()
        ended = {run.status for run in world.runs() if run.started_at}
        assert ended >= {Status.COMPLETED, Status.CANCELLED}


def two(world: Chaos) -> list[Execution]:
    """Two executions that start together."""
    first = world.tick(world.rng.choice(world.types))
    match world.rng.randrange(3):
        case 0:
            return [first, world.tick(first.input["job_type"])]
        case 1:
            return [first, world.tick(world.rng.choice(world.types), at=world.now - 5 * MINUTE)]
    return [first, world.execution(job_type=world.rng.choice(list(CHECKS)), dry_run=world.rng.random() < 0.3)]
