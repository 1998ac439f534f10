"""`idle_memory`: only an agent knows, and memory alone does not say that an instance is idle (REQUIREMENTS C3)."""

from __future__ import annotations

import pytest

from lamplighter.cloud.checks import idle_cpu, idle_memory
from lamplighter.cloud.checks.idle_memory import check
from tests.inventories import DAY, NOW, instance, inventory, judged, series, silent

OLD = instance(type="m5.large", launched_at=NOW - 30 * DAY)


def test_none() -> None:
    assert silent(judged(check, inventory()))


@pytest.mark.parametrize(("highest", "found"), [(9.99, 1), (10, 0), (60, 0)])
def test_what_stays_below_the_limit_is_found(highest: float, found: int) -> None:
    memory = {"i-1": series(*[3.0] * 27, highest)}

    said = judged(check, inventory(instances=(OLD,), memory=memory))

    assert (len(said.findings), said.unknown) == (found, ())


def test_no_agent_is_unknown_and_says_so() -> None:
    (unknown,) = judged(check, inventory(instances=(OLD,))).unknown

    assert (unknown.resource_id, unknown.reason) == ("i-1", "no CloudWatch agent memory metric")


def test_too_few_datapoints_are_unknown() -> None:
    said = judged(check, inventory(instances=(OLD,), memory={"i-1": series(*[1.0] * 20)}))

    assert said.findings == ()
    assert said.unknown[0].reason.startswith("datapoints in 20 of the 28 parts")


def test_it_is_half_as_sure_as_the_cpu() -> None:
    here = inventory(instances=(OLD,), cpu={"i-1": series(1.0)}, memory={"i-1": series(2.0)})

    (memory,), (cpu,) = judged(idle_memory.check, here).findings, judged(idle_cpu.check, here).findings

    assert memory.confidence == pytest.approx(cpu.confidence / 2)
    assert (memory.monthly_usd, memory.kind) == (cpu.monthly_usd, cpu.kind)
