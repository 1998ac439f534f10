"""Scans in any order, of skewed clocks, that collide and die: the stores of findings against a model (C5, C14, P5).

What holds after each step: first sights never move, only what was judged resolves, and what a scan that died had to say
is in the store as a whole or not at all.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine

from lamplighter.cloud.check import Judgement
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.cloud.store import s3 as s3_store
from lamplighter.cloud.store.model import UNWATCHED
from tests.integration.store_world import Crash, PostgresWorld, S3World, StoreWorld
from tests.integration.test_findings import NOW, finding, unknown, volume
from tests.memory_s3 import MemoryS3

PLACES = (("111122223333", "eu-west-1"), ("111122223333", "us-east-1"), ("444455556666", "eu-west-1"))
CHECKS = ("idle_cpu", "open_ports")
RESOURCES = ("i-1", "i-2", "i-3")
HOUR = timedelta(hours=1)
type Word = Literal["found", "unknown", "silent"]
type Place = tuple[str, str]


@dataclass
class Life:
    status: str
    first: datetime
    last: datetime
    resolved: datetime | None = None
    reopened: datetime | None = None
    times: int = 0


@dataclass
class Scan:
    """What a scan of a region says: of each check, that it could not look (None), or a word of each resource."""

    place: Place
    at: datetime
    words: dict[str, dict[str, Word] | None]
    job: str

    @property
    def judgement(self) -> Judgement:
        pairs = [(check, id_, word) for check, said in self.words.items() for id_, word in (said or {}).items()]
        blind = [unknown("*", check) for check, said in self.words.items() if said is None]
        return Judgement(
            findings=tuple(finding(id_, check) for check, id_, word in pairs if word == "found"),
            unknown=(*(unknown(id_, check) for check, id_, word in pairs if word == "unknown"), *blind),
            judged=frozenset(check for check, said in self.words.items() if said is not None),
        )


@dataclass
class Model:
    """What has to be in the store."""

    lives: dict[tuple[Place, str, str], Life] = field(default_factory=dict)
    judged: dict[tuple[Place, str], datetime] = field(default_factory=dict)
    sights: dict[tuple[Place, str], tuple[datetime, datetime]] = field(default_factory=dict)

    def scan(self, scan: Scan) -> None:
        for check, said in scan.words.items():
            if said is None or self.judged.get((scan.place, check), scan.at) > scan.at:
                continue
            self.judged[scan.place, check] = scan.at
            for id_ in RESOURCES:
                self.hear(scan.at, (scan.place, check, id_), said.get(id_, "silent"))

    def hear(self, at: datetime, key: tuple[Place, str, str], word: Word) -> None:
        life = self.lives.get(key)
        if word == "found" and life is None:
            self.lives[key] = Life("open", at, at)
        elif word == "found" and life is not None:
            if life.status == "resolved":
                life.status, life.resolved, life.reopened, life.times = "open", None, at, life.times + 1
            life.last = at
        elif word == "silent" and life is not None and life.status == "open":
            life.status, life.resolved = "resolved", at

    def look(self, place: Place, at: datetime, unattached: frozenset[str]) -> None:
        for key in [key for key, (first, _) in self.sights.items() if key[0] == place and first <= at]:
            if key[1] not in unattached:
                del self.sights[key]
        for id_ in unattached:
            first, last = self.sights.get((place, id_), (at, at))
            self.sights[place, id_] = (at if last < at - UNWATCHED else first, max(last, at))


class Machine(RuleBasedStateMachine):
    """Steps of scans on one store; a subclass has it."""

    world: StoreWorld

    @initialize()
    def begin(self) -> None:
        self.world.clear()
        s3_store._read_before.clear()
        self.model = Model()
        self.now = NOW
        self.jobs = 0

    scans = st.builds(
        dict,
        place=st.sampled_from(PLACES),
        skew=st.sampled_from([0, 0, 0, -3, -1, 2, 50]),
        words=st.dictionaries(
            st.sampled_from(CHECKS),
            st.none() | st.dictionaries(st.sampled_from(RESOURCES), st.sampled_from(["found", "unknown", "silent"])),
            min_size=1,
        ),
    )

    def made(self, given: dict[str, Any], place: Place | None = None) -> Scan:
        self.now += HOUR
        self.jobs += 1
        at = self.now + given["skew"] * HOUR
        return Scan(place or given["place"], at, given["words"], f"job-{self.jobs:04}")

    def record(self, scan: Scan) -> Any:
        account, region = scan.place
        return self.world.store.record(
            scan.judgement, account=account, region=region, job_id=scan.job, now=scan.at, exemptions=Exemptions()
        )

    @rule(given=scans)
    def scan(self, given: dict[str, Any]) -> None:
        scan = self.made(given)
        before = {key: life.status for key, life in self.model.lives.items()}
        self.model.scan(scan)
        after = {key: life.status for key, life in self.model.lives.items()}
        told = self.record(scan)
        assert told.opened == len(after.keys() - before.keys())
        assert told.resolved == sum(before[key] == "open" and after[key] == "resolved" for key in before)
        assert told.reopened == sum(before[key] == "resolved" and after[key] == "open" for key in before)

    @rule(given=scans)
    def scan_twice(self, given: dict[str, Any]) -> None:
        scan = self.made(given)
        self.model.scan(scan)
        self.record(scan)
        again = self.record(scan)
        assert (again.opened, again.reopened, again.resolved) == (0, 0, 0)

    @rule(given=scans, write=st.integers(1, 6), after=st.booleans(), again=st.booleans())
    def scan_that_dies(self, given: dict[str, Any], write: int, after: bool, again: bool) -> None:
        scan, before = self.made(given), copy.deepcopy(self.model)
        self.model.scan(scan)
        died = True
        with suppress(Crash), self.world.dying_at(write, after=after):
            self.record(scan)
            died = False
        if died:
            whole, stored = self.lives(self.model), self.stored()
            assert stored in (self.lives(before), whole), "a part of a scan was stored"
            if again:
                self.record(scan)
            elif stored != whole or self.looked() != self.judged(self.model):
                self.model = before

    @rule(one=scans, other=scans)
    def two_at_once(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        """The other writes between the reading and the writing of the first."""
        first, second = self.made(one), self.made(other, place=one["place"])
        if isinstance(self.world, PostgresWorld):  # whose rows are locked until the first has written
            self.record(first)
            self.record(second)
            self.model.scan(first)
            self.model.scan(second)
            return
        events, statuses, met = self.world.s3.meta.events, list[int](), list[bool]()  # type: ignore[attr-defined]

        def between(**_: Any) -> None:
            events.unregister("before-call.s3.PutObject", between)
            met.append(True)
            self.record(second)

        def answered(http_response: Any, **_: Any) -> None:
            statuses.append(http_response.status_code)

        events.register("before-call.s3.PutObject", between)
        events.register("after-call.s3.PutObject", answered)
        self.record(first)
        events.unregister("before-call.s3.PutObject", between)
        events.unregister("after-call.s3.PutObject", answered)
        if met:
            assert 412 in statuses or len(statuses) == 1, "both wrote, and neither was refused"
        else:  # the first had nothing to write
            self.record(second)
        for scan in (second, first) if met else (first, second):
            self.model.scan(scan)

    @rule(
        place=st.sampled_from(PLACES),
        skew=st.sampled_from([0, 0, -3, 30, 60]),
        unattached=st.frozensets(st.sampled_from(("v-1", "v-2", "v-3"))),
        preview=st.booleans(),
    )
    def look(self, place: Place, skew: int, unattached: frozenset[str], preview: bool) -> None:
        self.now += HOUR
        at = self.now + skew * HOUR
        model = copy.deepcopy(self.model)
        model.look(place, at, unattached)
        volumes = [volume(id_, *([] if id_ in unattached else ["i-1"])) for id_ in ("v-1", "v-2", "v-3")]
        account, region = place
        since = self.world.store.unattached_since(
            account=account, region=region, volumes=volumes, now=at, preview=preview
        )
        assert since == {
            id_: first
            for (where, id_), (first, last) in model.sights.items()
            if where == place and last >= at - UNWATCHED
        }
        if not preview:
            self.model = model

    @rule(days=st.integers(1, 5))
    def wait(self, days: int) -> None:
        self.now += timedelta(days=days)

    # -- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def the_store_holds_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.stored() == self.lives(self.model)
        assert self.looked() == self.judged(self.model)
        assert self.world.sights() == {(*place, id_): seen for (place, id_), seen in self.model.sights.items()}

    @invariant()
    def the_store_answers_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        store, lives = self.world.store, self.model.lives
        open_ = {key: life for key, life in lives.items() if life.status == "open"}
        found = store.list_findings({"status": "open"}, order="newest", limit=100, after=None, now=self.now).rows
        assert {(one["account"], one["region"], one["check"], one["resource_id"]) for one in found} == {
            (*place, check, id_) for place, check, id_ in open_
        }
        assert [one["first_seen"] for one in found] == sorted((one["first_seen"] for one in found), reverse=True)
        resolved_after = self.now - 5 * HOUR
        assert store.places(checks=["idle_cpu"], resolved_after=resolved_after) == sorted(
            {
                place
                for (place, check, _), life in lives.items()
                if check == "idle_cpu" and (life.status == "open" or (life.resolved or NOW) > resolved_after)
            }
        )
        known = store.known(account=PLACES[0][0], region=PLACES[0][1], now=self.now)
        assert known.open_since == {
            (check, id_): life.reopened or life.first
            for (place, check, id_), life in open_.items()
            if place == PLACES[0]
        }

    def stored(self) -> dict[Any, Any]:
        return {
            ((row.account, row.region), row.check, row.resource_id): (
                *(row.status, row.first_seen, row.last_seen, row.resolved_at, row.reopened_at, row.times_reopened),
            )
            for row in self.world.rows()
        }

    def looked(self) -> dict[Any, datetime]:
        with self.world.store.snapshot(self.now) as snapshot:
            return dict(snapshot.looked())

    @staticmethod
    def lives(model: Model) -> dict[Any, Any]:
        return {
            key: (life.status, life.first, life.last, life.resolved, life.reopened, life.times)
            for key, life in model.lives.items()
        }

    @staticmethod
    def judged(model: Model) -> dict[Any, datetime]:
        return {
            ("security" if check == "open_ports" else "waste", place): at for (place, check), at in model.judged.items()
        }


HOW = settings(
    max_examples=15,
    stateful_step_count=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", ["postgres", "s3"])
def test_scans_that_collide_and_die_leave_what_a_simple_model_says(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "postgres":
        engine: Engine = request.getfixturevalue("engine")
        world: StoreWorld = PostgresWorld(engine)
    else:
        memory = MemoryS3()
        memory.buckets["archive"] = {}
        world = S3World(memory.client(), "archive")
    run_state_machine_as_test(type("Scans", (Machine,), {"world": world}), settings=HOW)  # type: ignore[arg-type]
