"""`log_groups_without_retention`: what nobody ever deletes only grows."""

from __future__ import annotations

import pytest

from lamplighter.cloud.checks.log_groups_without_retention import check
from lamplighter.cloud.inventory import LogGroup
from tests.inventories import DAY, NOW, inventory, judged, silent


def group(retention_days: int | None, stored_bytes: int = 0) -> LogGroup:
    created = NOW - 400 * DAY
    return LogGroup(id="/app", created_at=created, stored_bytes=stored_bytes, retention_days=retention_days)


def test_none() -> None:
    assert silent(judged(check, inventory()))


def test_one_with_a_retention_is_in_order() -> None:
    assert silent(judged(check, inventory(log_groups=(group(3653, 2**40),))))


@pytest.mark.parametrize(("stored", "usd"), [(0, 0), (100 * 2**30, 3)])
def test_one_without_is_found_however_small(stored: int, usd: float) -> None:
    (finding,) = judged(check, inventory(log_groups=(group(None, stored),))).findings

    assert finding.monthly_usd == pytest.approx(usd)
    assert (finding.resource_id, finding.owner, finding.confidence) == ("/app", None, 0.5)
    assert finding.evidence["stored_bytes"] == stored
