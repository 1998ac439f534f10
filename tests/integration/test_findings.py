"""`lamplighter.cloud.findings` on a real Postgres: a finding's life, and the first sight of an unattached volume."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from lamplighter.cloud import findings
from lamplighter.cloud.check import Finding, Judgement, Undetermined
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.cloud.findings import Recorded
from lamplighter.cloud.inventory import Volume

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
HERE = {"account": "111122223333", "region": "eu-west-1"}
CHECKS = ("idle_cpu", "open_ports")


def finding(resource: str, check: str = "idle_cpu", **values: Any) -> Finding:
    return Finding(
        **{
            **HERE,
            "check": check,
            "kind": "idle_instance",
            "title": "An instance is idle",
            "severity": "low",
            "resource_type": "AwsEc2Instance",
            "resource_id": resource,
            "owner": "ana",
            "monthly_usd": 70.08,
            "confidence": 0.9,
            "score": 63.07,
            "since": NOW - timedelta(days=9),
            "evidence": {"cpu": [1.5, 2], "limit": 5},
        }
        | values
    )


def unknown(resource: str, check: str = "idle_cpu") -> Undetermined:
    return Undetermined(**HERE, check=check, resource_id=resource, reason="No agent.")


def judgement(
    *found: Finding, judged: Iterable[str] = ("idle_cpu",), unknown: tuple[Undetermined, ...] = ()
) -> Judgement:
    return Judgement(findings=found, unknown=unknown, judged=frozenset(judged))


def record(engine: Engine, judged: Judgement, now: datetime = NOW, **values: Any) -> Recorded:
    given = {**HERE, "job_id": f"job at {now:%H:%M}", "exemptions": Exemptions()} | values
    with engine.begin() as connection:
        return findings.record(connection, judged, now=now, **given)


def rows(engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        return {
            row.resource_id: row for row in connection.execute(text("SELECT * FROM lamplighter.findings ORDER BY id"))
        }


def later(hours: float) -> datetime:
    return NOW + timedelta(hours=hours)


def test_a_finding_is_opened_seen_again_resolved_and_reopened(engine: Engine) -> None:
    """C14."""
    assert record(engine, judgement(finding("i-1"))) == Recorded(opened=1)
    first = rows(engine)["i-1"]
    assert (first.status, first.first_seen_at, first.last_seen_at) == ("open", NOW, NOW)
    assert (first.resolved_at, first.reopened_at, first.times_reopened) == (None, None, 0)
    assert (first.account_id, first.region, first.check_id) == ("111122223333", "eu-west-1", "idle_cpu")
    assert (first.kind, first.severity, first.owner, first.monthly_usd) == ("idle_instance", "low", "ana", 70.08)
    assert (first.since, first.evidence, first.job_id) == (
        NOW - timedelta(days=9),
        {"cpu": [1.5, 2], "limit": 5},
        "job at 03:00",
    )

    assert record(engine, judgement(finding("i-1", severity="high", evidence={})), later(1)) == Recorded(still_open=1)
    seen = rows(engine)["i-1"]
    assert (seen.first_seen_at, seen.last_seen_at, seen.severity, seen.evidence) == (NOW, later(1), "high", {})

    assert record(engine, judgement(), later(2)) == Recorded(resolved=1)
    gone = rows(engine)["i-1"]
    assert (gone.status, gone.last_seen_at, gone.resolved_at) == ("resolved", later(1), later(2))
    assert record(engine, judgement(), later(3)) == Recorded(), "once is enough"

    assert record(engine, judgement(finding("i-1")), later(4)) == Recorded(reopened=1)
    again = rows(engine)["i-1"]
    assert (again.id, again.status, again.first_seen_at) == (first.id, "open", NOW)
    assert (again.resolved_at, again.reopened_at, again.times_reopened) == (None, later(4), 1)


def test_the_same_scan_twice_changes_nothing_more(engine: Engine) -> None:
    judged = judgement(finding("i-1"), finding("i-2"))
    record(engine, judged)
    before = rows(engine)
    assert record(engine, judged) == Recorded(still_open=2)
    assert rows(engine) == before


def test_what_a_check_could_not_judge_stays_as_it_is(engine: Engine) -> None:
    """Unknown is never in order."""
    record(engine, judgement(finding("i-1"), finding("i-2")))
    assert record(engine, judgement(unknown=(unknown("i-1"),)), later(1)) == Recorded(resolved=1)
    after = rows(engine)
    assert (after["i-1"].status, after["i-1"].last_seen_at, after["i-2"].status) == ("open", NOW, "resolved")


@pytest.mark.parametrize("judged", [(), ("idle_cpu",)])
def test_a_check_that_could_not_look_resolves_nothing(engine: Engine, judged: tuple[str, ...]) -> None:
    record(engine, judgement(finding("i-1")))
    assert record(engine, judgement(judged=judged, unknown=(unknown("*"),)), later(1)) == Recorded()
    assert rows(engine)["i-1"].status == "open"


def test_a_check_resolves_its_own_findings_only_and_those_of_its_region(engine: Engine) -> None:
    record(engine, judgement(finding("i-1"), finding("sg-1", "open_ports"), judged=CHECKS))
    elsewhere = replace(finding("i-9"), region="us-east-1")
    record(engine, judgement(elsewhere), region="us-east-1")
    assert record(engine, judgement(), later(1)) == Recorded(resolved=1)
    assert {resource: row.status for resource, row in rows(engine).items()} == {
        "i-1": "resolved",
        "sg-1": "open",
        "i-9": "open",
    }


def test_an_older_scan_that_comes_late_neither_resolves_nor_opens_nor_reopens(engine: Engine) -> None:
    record(engine, judgement(finding("i-0"), finding("i-1")), NOW)
    record(engine, judgement(finding("i-1"), finding("i-2")), later(2))
    before = rows(engine)
    late = judgement(finding("i-0"), finding("i-3"))
    assert record(engine, late, later(1)) == Recorded(superseded=frozenset({"idle_cpu"}))
    assert rows(engine) == before


def test_an_exempted_finding_is_kept_as_such_until_the_exemption_ends(engine: Engine) -> None:
    """C13."""
    exemptions = Exemptions.parse(
        '{"exceptions": [{"check": "idle_cpu", "resource": "i-*", "reason": "a spare", "owner": "ops",'
        ' "expires": "2026-11-23"}]}'
    )
    assert record(engine, judgement(finding("i-1"), finding("v-1")), exemptions=exemptions).exempted == 1
    kept = rows(engine)
    assert (kept["i-1"].status, kept["i-1"].exemption["reason"], kept["v-1"].exemption) == ("open", "a spare", None)
    assert record(engine, judgement(finding("i-1")), later(72), exemptions=exemptions).exempted == 0
    assert rows(engine)["i-1"].exemption is None


def test_where_the_exemptions_are_not_known_each_finding_keeps_its_own(engine: Engine) -> None:
    """A document that cannot be read must not turn what it excepts into alerts."""
    exemptions = Exemptions.parse(
        '{"exceptions": [{"check": "idle_cpu", "resource": "i-1", "reason": "a spare", "owner": "ops",'
        ' "expires": "2026-11-23"}]}'
    )
    record(engine, judgement(finding("i-1")), exemptions=exemptions)
    record(engine, judgement(finding("i-1"), finding("i-2")), later(1), exemptions=None)
    kept = rows(engine)
    assert (kept["i-1"].exemption["reason"], kept["i-2"].exemption) == ("a spare", None)


def unjudged(engine: Engine) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT check_id, job_id, resources FROM lamplighter.unjudged")).all()
    return sorted((row.check_id, resource, row.job_id) for row in rows for resource in row.resources)


def test_what_could_not_be_judged_is_kept_until_the_next_scan_of_the_region(engine: Engine) -> None:
    blind = unknown("*", "open_ports")
    record(engine, judgement(unknown=(unknown("i-1"), unknown("i-2"), blind)), job_id="first")
    first = [("idle_cpu", "i-1", "first"), ("idle_cpu", "i-2", "first"), ("open_ports", "*", "first")]
    assert unjudged(engine) == first
    late = judgement(unknown=(unknown("i-9"),))
    record(engine, late, NOW - timedelta(hours=1), job_id="late")
    assert unjudged(engine) == first
    record(engine, judgement(judged=CHECKS, unknown=(unknown("i-2"),)), later(1), job_id="second")
    assert unjudged(engine) == [("idle_cpu", "i-2", "second")]


def test_a_late_scan_that_could_not_look_says_nothing_of_what_was_judged_since(engine: Engine) -> None:
    record(engine, judgement(finding("i-1")), later(1))
    record(engine, judgement(judged=(), unknown=(unknown("*"), unknown("*", "open_ports"))), NOW, job_id="late")
    assert unjudged(engine) == [("open_ports", "*", "late")]


def test_what_postgres_cannot_hold_and_what_a_check_finds_twice_spoil_nothing(engine: Engine) -> None:
    odd = finding("i-1", owner="a\0b", evidence={"name": "x\0y"})
    assert record(engine, judgement(finding("i-1"), odd)) == Recorded(opened=1)
    assert (rows(engine)["i-1"].owner, rows(engine)["i-1"].evidence) == ("a\ufffdb", {"name": "x\ufffdy"})


def test_scans_of_one_region_at_once_leave_one_finding_each(engine: Engine) -> None:
    judged = judgement(*(finding(f"i-{n}", check) for n in range(50) for check in CHECKS), judged=CHECKS)

    def scan(n: int) -> Recorded:
        return record(engine, judged if n % 2 else judgement(judged=CHECKS), later(n / 60))

    with ThreadPoolExecutor(4) as pool:  # as many connections as the pool has
        told = list(pool.map(scan, range(12)))
    after = rows(engine)
    assert len(after) == 50
    with engine.connect() as connection:
        seen = connection.execute(
            text("SELECT count(*), min(last_seen_at), max(last_seen_at) FROM lamplighter.findings")
        ).one()
    assert seen == (100, later(11 / 60), later(11 / 60)), "the latest has the last word, whoever came last"
    assert {row.status for row in after.values()} == {"open"}
    assert sum(one.opened for one in told) == 100


def test_ten_thousand_findings_are_recorded_at_once(engine: Engine) -> None:
    judged = judgement(*(finding(f"i-{n:08}") for n in range(10_000)))
    assert record(engine, judged).opened == 10_000
    assert record(engine, judged, later(1)).still_open == 10_000
    assert record(engine, judgement(*judged.findings[5_000:]), later(2)).resolved == 5_000


# -- the lifecycle against a model -----------------------------------------------------------------------------------

RESOURCES = ("i-1", "i-2", "i-3")
Word = Literal["found", "unknown", "silent"]


@dataclass
class Life:
    """What the model knows of a finding."""

    status: str
    first: int
    last: int
    resolved: int | None = None
    reopened: int | None = None
    times: int = 0


@dataclass
class Model:
    """Findings of one region by check and resource, and when each check was judged last."""

    lives: dict[tuple[str, str], Life] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)

    def scan(self, at: int, said: dict[str, dict[str, Word]]) -> None:
        for check, words in said.items():
            if self.judged.get(check, at) > at:
                continue
            self.judged[check] = at
            for resource, word in words.items():
                self.hear(at, (check, resource), word)

    def hear(self, at: int, key: tuple[str, str], word: Word) -> None:
        life = self.lives.get(key)
        if word == "found" and life is None:
            self.lives[key] = Life("open", at, at)
        elif word == "found" and life is not None:
            if life.status == "resolved":
                life.status, life.resolved, life.reopened, life.times = "open", None, at, life.times + 1
            life.last = at
        elif word == "silent" and life is not None and life.status == "open":
            life.status, life.resolved = "resolved", at


words = st.fixed_dictionaries({name: st.sampled_from(["found", "unknown", "silent"]) for name in RESOURCES})
scans = st.lists(
    st.tuples(st.integers(0, 12), st.dictionaries(st.sampled_from(CHECKS), words, min_size=1)), min_size=1, max_size=12
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(scans=scans)
def test_the_lives_of_findings_are_those_of_a_simple_model(
    engine: Engine, scans: list[tuple[int, dict[str, dict[str, Word]]]]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE lamplighter.findings, lamplighter.judged_checks"))
    model = Model()
    for at, said in scans:
        model.scan(at, said)
        pairs = [(check, resource, word) for check, words in said.items() for resource, word in words.items()]
        found = [finding(resource, check) for check, resource, word in pairs if word == "found"]
        unsure = tuple(unknown(resource, check) for check, resource, word in pairs if word == "unknown")
        record(engine, judgement(*found, judged=said, unknown=unsure), later(at))
    with engine.connect() as connection:
        told = connection.execute(text("SELECT * FROM lamplighter.findings")).all()
    assert {(row.check_id, row.resource_id): row for row in told}.keys() == model.lives.keys()
    for row in told:
        life = model.lives[row.check_id, row.resource_id]
        assert (row.status, row.first_seen_at, row.last_seen_at) == (life.status, later(life.first), later(life.last))
        assert row.resolved_at == (None if life.resolved is None else later(life.resolved))
        assert row.reopened_at == (None if life.reopened is None else later(life.reopened))
        assert row.times_reopened == life.times


# -- volumes ---------------------------------------------------------------------------------------------------------


def volume(id_: str, *instances: str) -> Volume:
    return Volume(id=id_, type="gp3", size_gb=8, state="available", encrypted=True, created_at=NOW, instances=instances)


def since(engine: Engine, hours: float, *volumes: Volume, **place: str) -> dict[str, float]:
    with engine.begin() as connection:
        told = findings.unattached_since(connection, **{**HERE, **place}, volumes=volumes, now=later(hours))
    return {name: (moment - NOW) / timedelta(hours=1) for name, moment in told.items()}


def test_the_first_sight_of_an_unattached_volume_is_kept_until_it_is_attached_or_gone(engine: Engine) -> None:
    """C5."""
    assert since(engine, 0, volume("v-1"), volume("v-2"), volume("v-3", "i-1")) == {"v-1": 0, "v-2": 0}
    assert since(engine, 6, volume("v-1"), volume("v-2"), volume("v-3")) == {"v-1": 0, "v-2": 0, "v-3": 6}
    assert since(engine, 12, volume("v-1", "i-1"), volume("v-3")) == {"v-3": 6}, "one attached, one gone"
    assert since(engine, 18, volume("v-1"), volume("v-2"), volume("v-3")) == {"v-1": 18, "v-2": 18, "v-3": 6}


def test_a_volume_that_nobody_looked_at_for_days_is_seen_anew(engine: Engine) -> None:
    """It may have been in use meanwhile: unknown is not waste."""
    since(engine, 0, volume("v-1"))
    assert since(engine, 47, volume("v-1")) == {"v-1": 0}
    assert since(engine, 95, volume("v-1")) == {"v-1": 0}
    assert since(engine, 144, volume("v-1")) == {"v-1": 144}


def test_regions_and_accounts_know_nothing_of_one_another(engine: Engine) -> None:
    assert since(engine, 0, volume("v-1")) == {"v-1": 0}
    assert since(engine, 6, volume("v-2"), region="us-east-1") == {"v-2": 6}
    assert since(engine, 6, volume("v-3"), account="444455556666") == {"v-3": 6}
    assert since(engine, 12, volume("v-1")) == {"v-1": 0}
    assert since(engine, 12) == {}
    assert since(engine, 18, volume("v-2"), region="us-east-1") == {"v-2": 6}


def test_a_scan_that_comes_late_forgets_no_later_sight(engine: Engine) -> None:
    since(engine, 6, volume("v-1"))
    since(engine, 3, volume("v-1", "i-1"))
    assert since(engine, 12, volume("v-1")) == {"v-1": 6}


def test_two_scans_of_one_region_at_once_keep_one_first_sight(engine: Engine) -> None:
    volumes = [volume(f"v-{n}") for n in range(200)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda n: since(engine, 0, *(volumes if n % 2 else reversed(volumes))), range(8)))
    assert all(one == dict.fromkeys((v.id for v in volumes), 0) for one in told)
