"""`lamplighter.cloud.checks.unencrypted_volumes` (REQUIREMENTS C8)."""

from __future__ import annotations

from lamplighter.cloud.checks.unencrypted_volumes import check
from tests.inventories import inventory, judged, volume


def test_none() -> None:
    assert not judged(check, inventory()).findings


def test_clean() -> None:
    assert not judged(check, inventory(volumes=(volume(),))).findings


def test_offending_attached_or_not() -> None:
    world = inventory(
        volumes=(volume(encrypted=False), volume("vol-2"), volume("vol-3", encrypted=False, instances=()))
    )
    findings = judged(check, world).findings
    assert [(one.resource_id, one.severity, one.evidence["attached_to"]) for one in findings] == [
        ("vol-1", "medium", ["i-1"]),
        ("vol-3", "medium", []),
    ]


def test_unread() -> None:
    judgement = judged(check, inventory(gaps={"volumes": "UnauthorizedOperation"}))
    assert (judgement.judged, [unknown.resource_id for unknown in judgement.unknown]) == (frozenset(), ["*"])
