"""`log_groups_without_retention`: what nobody ever deletes only grows."""

from __future__ import annotations

import pytest

from lamplighter.cloud.checks.log_groups_without_retention import check
from lamplighter.cloud.inventory import LogGroup
from tests.inventories import DAY, NOW, inventory, judged, silent


def group(retention_days: int | None, stored_bytes: int = 0, log_class: str = "STANDARD") -> LogGroup:
    return LogGroup(
        id="/app",
        created_at=NOW - 400 * DAY,
        stored_bytes=stored_bytes,
        retention_days=retention_days,
        log_class=log_class,
    )


def test_none() -> None:
    assert silent(judged(check, inventory()))


def test_one_with_a_retention_is_in_order() -> None:
    assert silent(judged(check, inventory(log_groups=(group(3653, 2**40),))))


@pytest.mark.parametrize(("log_class", "found"), [("STANDARD", 1), ("INFREQUENT_ACCESS", 1), ("DELIVERY", 0)])
def test_one_of_the_delivery_class_keeps_nothing_for_long(log_class: str, found: int) -> None:
    assert len(judged(check, inventory(log_groups=(group(None, 2**40, log_class),))).findings) == found


@pytest.mark.parametrize(("stored", "usd"), [(0, 0), (100 * 2**30, 3)])
def test_one_without_is_found_however_small(stored: int, usd: float) -> None:
    (finding,) = judged(check, inventory(log_groups=(group(None, stored),))).findings

    assert finding.monthly_usd == pytest.approx(usd)
    assert (finding.resource_id, finding.owner, finding.confidence) == ("/app", None, 0.5)
    assert finding.evidence["stored_bytes"] == stored
