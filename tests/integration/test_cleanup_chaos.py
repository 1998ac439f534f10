"""The cleanup under chaos: killed at every step of its work, its execution dead, ticks twice, two at once, cancelled at
random; hundreds of seeded runs of the real state machine and handlers over a real Postgres (FAILURES 1-4)."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Self
from unittest.mock import patch

import pytest
from sqlalchemy import Engine, text

from lamplighter.kernel import job as job_module
from lamplighter.kernel.ledger.row import Status
from lamplighter.library import old_jobs, plans, stale_jobs
from local.settings import applied
from tests.conftest import Seeded
from tests.integration.cleanup_world import SYNC, TABLES, World
from tests.integration.phases_world import FragileStore, Points, die_with, fragile, interleaved
from tests.state_machine import ExecutionFailed

OLD, YOUNG = timedelta(days=15), timedelta(days=13)
PATIENT = replace(SYNC, pickup=timedelta(hours=9))
PHASES = ("stale_jobs", "old_jobs", "downloads", "plans", "sessions")


class Chaos(World):
    """A world with something to clean, whose functions can be killed after everything that they write."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self.point = Points()
        super().__init__(engine, FragileStore(self.point))
        self.rng = rng
        self.stale = [self.ago(timedelta(minutes=rng.randint(31, 300)), PATIENT) for _ in range(5)]
        long = replace(PATIENT, timeout=timedelta(hours=9))
        self.live = [self.ago(timedelta(minutes=rng.randint(0, 20)), long, "export") for _ in range(3)]
        self.old = [self.finished(timedelta(days=rng.randint(31, 60))) for _ in range(5)]
        self.young = [self.finished(timedelta(days=rng.randint(0, 28))) for _ in range(4)]
        plans = [rng.choice([None, "gone", *(job.job_id for job in self.old)]) for _ in range(5)]
        plans += [rng.choice(self.live).job_id for _ in range(3)]
        days = [rng.randint(15, 90) for _ in range(9)] + [rng.randint(0, 12) for _ in range(6)]
        with engine.begin() as connection:  # in few statements: there are hundreds of worlds
            for table in TABLES.split(", "):
                connection.execute(text(f"DELETE FROM {table}"))
            connection.execute(
                text(
                    "INSERT INTO handled_downloads (timestamp) SELECT now() - days * interval '1 day'"
                    " FROM unnest(CAST(:days AS int[])) AS days"
                ),
                {"days": days},
            )
            connection.execute(
                text(
                    "INSERT INTO sessions SELECT CAST(n AS text), 'u', now() + n * interval '1 hour'"
                    " FROM unnest(CAST(:hours AS int[])) AS n"
                ),
                {"hours": [-50, -1, 1, 50]},
            )
            ids = (
                connection.execute(
                    text(
                        "INSERT INTO analysis_plans (status, job_id, updated_at)"
                        " SELECT 'PENDING', job_id, now() - interval '1 hour'"
                        " FROM unnest(CAST(:jobs AS text[])) AS job_id RETURNING id"
                    ),
                    {"jobs": plans},
                )
                .scalars()
                .all()
            )
        self.stuck, self.waiting = set(ids[:5]), set(ids[5:])

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """All that a function writes is a point."""
        with super().installed(), fragile(self, self.point):
            yield self

    def _invoke(self, function: str, payload: Any) -> Any:
        with self.point.within():
            return super()._invoke(function, payload)

    # -- invariants --------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """What holds at any time after the checker has passed, whatever was killed."""
        rows = {job.job_id: job for job in self.jobs()}
        for job in rows.values():
            overdue = not job.status.terminal and job.expires_at is not None and job.expires_at <= self.now
            assert not overdue, f"left behind: {job}"
        for job in (*self.live, *self.young):
            assert rows.get(job.job_id) == job, "what is none of its business was changed"
        for job in self.stale:
            assert rows[job.job_id].attempt == 2 and len(rows[job.job_id].errors) == 1, "rescued not once"
        archived = {
            row.job_id for row in self.sql("SELECT job_id FROM lamplighter.job_history")
        }  # once each: it is the key
        assert archived <= {job.job_id for job in self.old}, "archived before its time"
        for job in self.old:
            assert job.job_id in rows or job.job_id in archived, "lost"
        ((downloads, sessions),) = self.sql(
            "SELECT (SELECT count(*) FROM handled_downloads WHERE timestamp > now() - interval '14 days'),"
            " (SELECT count(*) FROM sessions WHERE expires_at > now())"
        )
        assert (downloads, sessions) == (6, 2), "something young was removed"
        assert {plan: status for plan, status in self.plans().items() if plan in self.waiting} == dict.fromkeys(
            self.waiting, "PENDING"
        )
        assert self.store.locks == {}, "a lock was left behind"

    def verify_done(self) -> None:
        """What holds when a run has come to its end."""
        assert not [job for job in self.old if self.store.get(job.job_id)]
        assert self.count("lamplighter.job_history") == len(self.old)
        assert (self.count("handled_downloads"), self.count("sessions")) == (6, 2)
        assert {status for plan, status in self.plans().items() if plan in self.stuck} == {"DRAFT"}

    def verify_told(self) -> None:
        """The runs together say what was done; of the stale jobs, the checker has settled those that no run did."""
        told = self.totals()
        assert told.pop("cleaned_jobs") <= EVERYTHING["cleaned_jobs"]
        assert told == {name: EVERYTHING[name] for name in told}

    def totals(self) -> dict[str, int]:
        """What the rows say was done, all runs together."""
        names = ("cleaned_jobs", "old_jobs_deleted", "old_downloads_deleted", "stuck_plans_updated")
        results = [job.result or {} for job in self.runs()]
        return {name: sum(result.get(name, 0) for result in results) for name in names}


EVERYTHING = {"cleaned_jobs": 5, "old_jobs_deleted": 5, "old_downloads_deleted": 9, "stuck_plans_updated": 5}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each phase has several; and no heartbeat in the background, which would number the points otherwise."""
    for module, name, size in ((stale_jobs, "PAGE", 2), (old_jobs, "PAGE", 2), (plans, "BATCH", 2)):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(job_module, "BEAT", timedelta(hours=1))
    monkeypatch.setenv("STACK_NAME", "stack")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Lamplighter")
    monkeypatch.setenv("LAMPLIGHTER_RETENTION_RULES", json.dumps(applied()["rules"]))
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # a run has some thirty lines


def points_of(engine: Engine) -> int:
    """How many points a run has that nobody kills; it does everything, and says so."""
    with Chaos(engine, random.Random(0)).installed() as world:
        world.run(phases=PHASES)
        world.verify()
        world.verify_done()
        assert world.totals() == EVERYTHING
        return len(world.point.passed)


def test_killed_at_every_point_it_loses_nothing_and_the_next_attempt_ends_it(engine: Engine, seeded: Seeded) -> None:
    """The function alone is killed, or the execution with it, in turn; what was done is done once, and not undone."""
    points = points_of(engine)
    assert points > 40
    got_away = 0
    for deadly, rng in seeded(range(1, points + 1)):
        with Chaos(engine, rng).installed() as world:
            world.point.kill_at(deadly)
            execution = world.execution(phases=PHASES)
            with suppress(ExecutionFailed):
                die_with(execution) if deadly % 2 else execution.run()
            # It may get away: how many statements a rule takes depends on where its rows lie, and how long they take.
            got_away += len(world.point.passed) < deadly
            assert len(world.point.passed) == deadly or execution.status == "SUCCEEDED"
            world.point.kill_no_more()
            world.now += timedelta(minutes=5)
            world.settle()
            world.verify()
            assert all(run.status is Status.COMPLETED and run.attempt <= 2 for run in world.runs())
            if not [run for run in world.runs() if run.result and run.result["status"] == "completed"]:
                world.run(phases=PHASES)
                world.verify()
            world.verify_done()
            assert all(done <= EVERYTHING[name] for name, done in world.totals().items()), "counted twice"
    assert got_away < points / 4


@pytest.mark.parametrize("seeds", [range(50), range(50, 100)], ids=str)
def test_two_at_once_one_tick_twice_and_cancelled_at_random(engine: Engine, seeds: range, seeded: Seeded) -> None:
    """K3, K6, K7: two executions step by step in any order, of one tick, of two, or by hand; one may be cancelled."""
    for _seed, rng in seeded(seeds):
        with Chaos(engine, rng).installed() as world:
            same = rng.random() < 0.5
            first, second = [world.tick(), world.tick()] if same else [world.execution(), world.tick(at=world.now)]
            cancel = rng.random() < 0.5
            for _ in interleaved([first, second], rng):
                if cancel and world.store.locks and rng.random() < 0.2:
                    world.ledger.cancel(world.store.locks["cleanup"])
                    cancel = False
            world.settle()
            world.verify()
            ran = [job for job in world.runs() if job.status in (Status.COMPLETED, Status.CANCELLED)]
            assert len(ran) == len(world.runs()) in ((1,) if same else (1, 2))
            world.run()
            world.verify()
            world.verify_told()


def test_out_of_time_again_and_again_it_goes_on_and_counts_right(engine: Engine, seeded: Seeded) -> None:
    """K8: functions of seconds, executions that are over before all is done, and every fourth is killed besides."""
    for seed, rng in seeded(range(30)):
        with Chaos(engine, rng).installed() as world:
            world.function_time = timedelta(seconds=rng.choice([6, 12, 60]))
            killed = seed % 4 == 0
            if killed:
                world.point.kill_at(rng.randint(1, 80))
            jump = patch.object(world, "_invoke", late(world, rng))
            with jump, suppress(ExecutionFailed):
                world.run()
            world.settle(passes=30)
            world.verify()
            if not killed:
                (run,) = world.runs()
                assert (run.status, run.attempt) == (Status.COMPLETED, 1)
                world.verify_told()
            world.run()
            world.verify()


def late(world: Chaos, rng: random.Random) -> Callable[[str, Any], Any]:
    """Each call of a function takes up to two minutes."""
    whole = world._invoke

    def invoke(function: str, payload: Any) -> Any:
        world.now += timedelta(seconds=rng.randint(0, 120))
        return whole(function, payload)

    return invoke
