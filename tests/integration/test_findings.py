"""The findings' stores, Postgres and S3, held to one suite: a finding's life, and the first sight of an unattached
volume (REQUIREMENTS C5, C13, C14, P5)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamplighter.cloud.check import Finding, Judgement, Undetermined
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.cloud.inventory import Volume
from lamplighter.cloud.store.model import Recorded
from tests.integration.store_world import StoreWorld

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


def record(findings: StoreWorld, judged: Judgement, now: datetime = NOW, **values: Any) -> Recorded:
    given = {**HERE, "job_id": f"job at {now:%H:%M}", "exemptions": Exemptions()} | values
    return findings.store.record(judged, now=now, **given)


def rows(findings: StoreWorld) -> dict[str, Any]:
    return {row.resource_id: row for row in findings.rows()}


def later(hours: float) -> datetime:
    return NOW + timedelta(hours=hours)


def test_a_finding_is_opened_seen_again_resolved_and_reopened(findings: StoreWorld) -> None:
    """C14."""
    assert record(findings, judgement(finding("i-1"))) == Recorded(opened=1)
    first = rows(findings)["i-1"]
    assert (first.status, first.first_seen, first.last_seen) == ("open", NOW, NOW)
    assert (first.resolved_at, first.reopened_at, first.times_reopened) == (None, None, 0)
    assert (first.account, first.region, first.check) == ("111122223333", "eu-west-1", "idle_cpu")
    assert (first.kind, first.severity, first.owner, first.monthly_usd) == ("idle_instance", "low", "ana", 70.08)
    assert (first.since, first.evidence, first.job_id) == (
        NOW - timedelta(days=9),
        {"cpu": [1.5, 2], "limit": 5},
        "job at 03:00",
    )

    assert record(findings, judgement(finding("i-1", severity="high", evidence={})), later(1)) == Recorded(still_open=1)
    seen = rows(findings)["i-1"]
    assert (seen.first_seen, seen.last_seen, seen.severity, seen.evidence) == (NOW, later(1), "high", {})

    assert record(findings, judgement(), later(2)) == Recorded(resolved=1)
    gone = rows(findings)["i-1"]
    assert (gone.status, gone.last_seen, gone.resolved_at) == ("resolved", later(1), later(2))
    assert record(findings, judgement(), later(3)) == Recorded(), "once is enough"

    assert record(findings, judgement(finding("i-1")), later(4)) == Recorded(reopened=1)
    again = rows(findings)["i-1"]
    assert (again.id, again.status, again.first_seen) == (first.id, "open", NOW)
    assert (again.resolved_at, again.reopened_at, again.times_reopened) == (None, later(4), 1)


def test_the_same_scan_twice_changes_nothing_more(findings: StoreWorld) -> None:
    judged = judgement(finding("i-1"), finding("i-2"))
    record(findings, judged)
    before = rows(findings)
    assert record(findings, judged) == Recorded(still_open=2)
    assert rows(findings) == before


def test_what_a_check_could_not_judge_stays_as_it_is(findings: StoreWorld) -> None:
    """Unknown is never in order."""
    record(findings, judgement(finding("i-1"), finding("i-2")))
    assert record(findings, judgement(unknown=(unknown("i-1"),)), later(1)) == Recorded(resolved=1)
    after = rows(findings)
    assert (after["i-1"].status, after["i-1"].last_seen, after["i-2"].status) == ("open", NOW, "resolved")


@pytest.mark.parametrize("judged", [(), ("idle_cpu",)])
def test_a_check_that_could_not_look_resolves_nothing(findings: StoreWorld, judged: tuple[str, ...]) -> None:
    record(findings, judgement(finding("i-1")))
    assert record(findings, judgement(judged=judged, unknown=(unknown("*"),)), later(1)) == Recorded()
    assert rows(findings)["i-1"].status == "open"


def test_a_check_resolves_its_own_findings_only_and_those_of_its_region(findings: StoreWorld) -> None:
    record(findings, judgement(finding("i-1"), finding("sg-1", "open_ports"), judged=CHECKS))
    elsewhere = replace(finding("i-9"), region="us-east-1")
    record(findings, judgement(elsewhere), region="us-east-1")
    assert record(findings, judgement(), later(1)) == Recorded(resolved=1)
    assert {resource: row.status for resource, row in rows(findings).items()} == {
        "i-1": "resolved",
        "sg-1": "open",
        "i-9": "open",
    }


def test_an_older_scan_that_comes_late_neither_resolves_nor_opens_nor_reopens(findings: StoreWorld) -> None:
    record(findings, judgement(finding("i-0"), finding("i-1")), NOW)
    record(findings, judgement(finding("i-1"), finding("i-2")), later(2))
    before = rows(findings)
    late = judgement(finding("i-0"), finding("i-3"))
    assert record(findings, late, later(1)) == Recorded(superseded=frozenset({"idle_cpu"}))
    assert rows(findings) == before


def test_an_exempted_finding_is_kept_as_such_until_the_exemption_ends(findings: StoreWorld) -> None:
    """C13."""
    exemptions = Exemptions.parse(
        '{"exceptions": [{"check": "idle_cpu", "resource": "i-*", "reason": "a spare", "owner": "ops",'
        ' "expires": "2026-11-23"}]}'
    )
    assert record(findings, judgement(finding("i-1"), finding("v-1")), exemptions=exemptions).exempted == 1
    kept = rows(findings)
    assert (kept["i-1"].status, kept["i-1"].exemption["reason"], kept["v-1"].exemption) == ("open", "a spare", None)
    assert record(findings, judgement(finding("i-1")), later(72), exemptions=exemptions).exempted == 0
    assert rows(findings)["i-1"].exemption is None


def test_where_the_exemptions_are_not_known_each_finding_keeps_its_own(findings: StoreWorld) -> None:
    """A document that cannot be read must not turn what it excepts into alerts."""
    exemptions = Exemptions.parse(
        '{"exceptions": [{"check": "idle_cpu", "resource": "i-1", "reason": "a spare", "owner": "ops",'
        ' "expires": "2026-11-23"}]}'
    )
    record(findings, judgement(finding("i-1")), exemptions=exemptions)
    record(findings, judgement(finding("i-1"), finding("i-2")), later(1), exemptions=None)
    kept = rows(findings)
    assert (kept["i-1"].exemption["reason"], kept["i-2"].exemption) == ("a spare", None)


def test_what_could_not_be_judged_is_kept_until_the_next_scan_of_the_region(findings: StoreWorld) -> None:
    blind = unknown("*", "open_ports")
    record(findings, judgement(unknown=(unknown("i-1"), unknown("i-2"), blind)), job_id="first")
    first = [("idle_cpu", "i-1", "first"), ("idle_cpu", "i-2", "first"), ("open_ports", "*", "first")]
    assert findings.unjudged() == first
    late = judgement(unknown=(unknown("i-9"),))
    record(findings, late, NOW - timedelta(hours=1), job_id="late")
    assert findings.unjudged() == first
    record(findings, judgement(judged=CHECKS, unknown=(unknown("i-2"),)), later(1), job_id="second")
    assert findings.unjudged() == [("idle_cpu", "i-2", "second")]


def test_a_late_scan_that_could_not_look_says_nothing_of_what_was_judged_since(findings: StoreWorld) -> None:
    record(findings, judgement(finding("i-1")), later(1))
    record(findings, judgement(judged=(), unknown=(unknown("*"), unknown("*", "open_ports"))), NOW, job_id="late")
    assert findings.unjudged() == [("open_ports", "*", "late")]


def test_what_postgres_cannot_hold_and_what_a_check_finds_twice_spoil_nothing(findings: StoreWorld) -> None:
    odd = finding("i-1", owner="a\0b", evidence={"name": "x\0y"})
    assert record(findings, judgement(finding("i-1"), odd)) == Recorded(opened=1)
    assert (rows(findings)["i-1"].owner, rows(findings)["i-1"].evidence) == ("a\ufffdb", {"name": "x\ufffdy"})


def test_scans_of_one_region_at_once_leave_one_finding_each(findings: StoreWorld) -> None:
    judged = judgement(*(finding(f"i-{n}", check) for n in range(50) for check in CHECKS), judged=CHECKS)

    def scan(n: int) -> Recorded:
        return record(findings, judged if n % 2 else judgement(judged=CHECKS), later(n / 60))

    with ThreadPoolExecutor(4) as pool:  # as many connections as the pool has
        told = list(pool.map(scan, range(12)))
    after = rows(findings)
    assert len(after) == 50
    seen = [row.last_seen for row in findings.rows()]
    assert seen == [later(11 / 60)] * 100, "the latest has the last word, whoever came last"
    assert {row.status for row in after.values()} == {"open"}
    assert sum(one.opened for one in told) == 100


def test_ten_thousand_findings_are_recorded_at_once(findings: StoreWorld) -> None:
    judged = judgement(*(finding(f"i-{n:08}") for n in range(10_000)))
    assert record(findings, judged).opened == 10_000
    assert record(findings, judged, later(1)).still_open == 10_000
    assert record(findings, judgement(*judged.findings[5_000:]), later(2)).resolved == 5_000


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
    findings: StoreWorld, scans: list[tuple[int, dict[str, dict[str, Word]]]]
) -> None:
    findings.clear()
    model = Model()
    for at, said in scans:
        model.scan(at, said)
        pairs = [(check, resource, word) for check, words in said.items() for resource, word in words.items()]
        found = [finding(resource, check) for check, resource, word in pairs if word == "found"]
        unsure = tuple(unknown(resource, check) for check, resource, word in pairs if word == "unknown")
        record(findings, judgement(*found, judged=said, unknown=unsure), later(at))
    told = findings.rows()
    assert {(row.check, row.resource_id): row for row in told}.keys() == model.lives.keys()
    for row in told:
        life = model.lives[row.check, row.resource_id]
        assert (row.status, row.first_seen, row.last_seen) == (life.status, later(life.first), later(life.last))
        assert row.resolved_at == (None if life.resolved is None else later(life.resolved))
        assert row.reopened_at == (None if life.reopened is None else later(life.reopened))
        assert row.times_reopened == life.times


# -- volumes ---------------------------------------------------------------------------------------------------------


def volume(id_: str, *instances: str) -> Volume:
    return Volume(id=id_, type="gp3", size_gb=8, state="available", encrypted=True, created_at=NOW, instances=instances)


def since(
    findings: StoreWorld, hours: float, *volumes: Volume, preview: bool = False, **place: str
) -> dict[str, float]:
    told = findings.store.unattached_since(**{**HERE, **place}, volumes=volumes, now=later(hours), preview=preview)  # type: ignore[arg-type]
    return {name: (moment - NOW) / timedelta(hours=1) for name, moment in told.items()}


def test_the_first_sight_of_an_unattached_volume_is_kept_until_it_is_attached_or_gone(findings: StoreWorld) -> None:
    """C5."""
    assert since(findings, 0, volume("v-1"), volume("v-2"), volume("v-3", "i-1")) == {"v-1": 0, "v-2": 0}
    assert since(findings, 6, volume("v-1"), volume("v-2"), volume("v-3")) == {"v-1": 0, "v-2": 0, "v-3": 6}
    assert since(findings, 12, volume("v-1", "i-1"), volume("v-3")) == {"v-3": 6}, "one attached, one gone"
    assert since(findings, 18, volume("v-1"), volume("v-2"), volume("v-3")) == {"v-1": 18, "v-2": 18, "v-3": 6}


def test_a_volume_that_nobody_looked_at_for_days_is_seen_anew(findings: StoreWorld) -> None:
    """It may have been in use meanwhile: unknown is not waste."""
    since(findings, 0, volume("v-1"))
    assert since(findings, 47, volume("v-1")) == {"v-1": 0}
    assert since(findings, 95, volume("v-1")) == {"v-1": 0}
    assert since(findings, 144, volume("v-1")) == {"v-1": 144}


def test_what_nobody_looked_at_for_days_is_not_known_to_those_who_act(findings: StoreWorld) -> None:
    """C5: a scan that fails for days makes no volume old."""
    since(findings, 0, volume("v-1"), volume("v-2", "i-1"))
    record(findings, judgement(finding("i-1")))
    for hours, sights in ((48, {"v-1": NOW}), (49, {})):
        known = findings.store.known(**HERE, now=later(hours))
        assert (known.first_sights, known.open_since) == (sights, {("idle_cpu", "i-1"): NOW})
    elsewhere = findings.store.known(account=HERE["account"], region="us-east-1", now=NOW)
    assert (elsewhere.first_sights, elsewhere.open_since) == ({}, {})


def test_a_preview_of_a_look_keeps_nothing(findings: StoreWorld) -> None:
    assert since(findings, 0, volume("v-1"), preview=True) == {"v-1": 0}
    assert findings.sights() == {}


def test_regions_and_accounts_know_nothing_of_one_another(findings: StoreWorld) -> None:
    assert since(findings, 0, volume("v-1")) == {"v-1": 0}
    assert since(findings, 6, volume("v-2"), region="us-east-1") == {"v-2": 6}
    assert since(findings, 6, volume("v-3"), account="444455556666") == {"v-3": 6}
    assert since(findings, 12, volume("v-1")) == {"v-1": 0}
    assert since(findings, 12) == {}
    assert since(findings, 18, volume("v-2"), region="us-east-1") == {"v-2": 6}


def test_a_scan_that_comes_late_forgets_no_later_sight(findings: StoreWorld) -> None:
    since(findings, 6, volume("v-1"))
    since(findings, 3, volume("v-1", "i-1"))
    assert since(findings, 12, volume("v-1")) == {"v-1": 6}


def test_two_scans_of_one_region_at_once_keep_one_first_sight(findings: StoreWorld) -> None:
    volumes = [volume(f"v-{n}") for n in range(200)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda n: since(findings, 0, *(volumes if n % 2 else reversed(volumes))), range(8)))
    assert all(one == dict.fromkeys((v.id for v in volumes), 0) for one in told)
