"""Totals count each resource once, however many checks found it (REQUIREMENTS C7)."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.check import Finding
from lamplighter.cloud.totals import counted, monthly_total


def finding(resource: str = "i-1", usd: float | None = 1, confidence: float = 1, **said: str) -> Finding:
    usual = {"account": "111122223333", "region": "eu-west-1", "check": "idle_cpu", "kind": "idle_instance", **said}
    return Finding(
        **usual,
        title="",
        severity="low",
        resource_type="Other",
        resource_id=resource,
        owner=None,
        monthly_usd=usd,
        confidence=confidence,
        score=None,
        since=None,
        evidence={},
    )


def test_nothing_costs_nothing() -> None:
    assert monthly_total([]) == 0


def test_an_instance_idle_by_cpu_and_memory_is_paid_once() -> None:
    cpu, memory = finding(usd=70, confidence=0.9), finding(usd=70, confidence=0.45, check="idle_memory")

    assert counted([memory, cpu]) == [cpu]
    assert monthly_total([memory, cpu]) == 70


def test_of_several_figures_the_highest_counts() -> None:
    unattached, gp2 = finding("vol-1", 10, 0.5), finding("vol-1", 2, kind="gp2_volume")

    assert counted([gp2, unattached]) == [unattached]


def test_the_same_id_elsewhere_is_another_resource() -> None:
    findings = [finding(), finding(region="us-east-1"), finding(account="444455556666"), finding("i-2")]

    assert monthly_total(findings) == 4


def test_what_has_no_price_hides_none() -> None:
    assert monthly_total([finding(usd=None), finding(usd=5)]) == 5
    assert counted([finding(usd=None)]) == []


FINDINGS = st.lists(
    st.builds(
        finding,
        st.sampled_from(["i-1", "i-2", "vol-1"]),
        st.none() | st.integers(0, 9).map(float),
        st.sampled_from([0.5, 1.0]),
        kind=st.sampled_from(["a", "b"]),
    ),
    max_size=12,
)


@given(FINDINGS)
def test_totals_of_any_group_add_up_to_the_whole(findings: list[Finding]) -> None:
    chosen = counted(findings)
    kinds = groupby(sorted(chosen, key=lambda one: one.kind), key=lambda one: one.kind)

    assert sum(monthly_total(list(group)) for _, group in kinds) == pytest.approx(monthly_total(findings))
    assert len({one.resource_id for one in chosen}) == len(chosen)
    assert counted(chosen) == chosen
