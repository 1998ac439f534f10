"""Generated schemas, rows, users and crashes: what retention does to them is what the oracle says (S8, S9, K11)."""

from __future__ import annotations

import pytest

from tests.conftest import Seeded
from tests.schema_worlds import ACTS, World, build, stage

WORLDS = range(80)
MUST_HAPPEN = (
    "errors",
    "complete runs",
    "rows refused",
    "rows kept by rows of their table",
    "runs of several batches",
    "runs that met the ceiling",
    "runs by spans",
    "runs over partitions",
    "rows that went by a clock of seconds",
    "rows that went by a clock of milliseconds",
    "rows that went by a clock of date",
    "orphans that went",
    "crashes, before",
    "crashes, after",
    "crashes, lost",
    "crashes between batches",
)


@pytest.mark.usefixtures("database_url")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that were lost
def test_a_rule_does_to_a_world_what_the_oracle_says(seeded: Seeded) -> None:
    with stage() as theatre:
        for seed, _ in seeded(WORLDS):
            theatre.play(build(seed))
            assert not theatre.seen.faults
    assert theatre.seen.count["worlds"] == len(WORLDS)
    assert [what for what in MUST_HAPPEN if not theatre.seen.count[what]] == []
    assert any(theatre.seen.count[f"due rows that went after rows of theirs, {act}"] for act in ACTS)


def test_the_worlds_are_of_every_kind() -> None:
    worlds: list[World] = [build(seed) for seed in range(1_000)]

    assert {child.act for world in worlds for child in world.children} == set(ACTS)
    assert {world.own for world in worlds} == {None, *ACTS}
    assert {change.kind for world in worlds for change in world.changes} >= {"young", "due", "child", "hold", "join"}
    assert {change.kind for world in worlds for change in world.changes} >= {"adopt", "birth", "death"}
    assert {world.trigger for world in worlds} == {None, "soft", "raise", "log"}
    assert {(world.clock_type, world.clock_unit) for world in worlds} == {
        *(("timestamptz", "timestamp"), ("timestamp", "timestamp"), ("date", "timestamp"), ("date", "date")),
        *(("integer", "seconds"), ("bigint", "seconds"), ("bigint", "milliseconds")),
    }
    assert any(world.is_lost for world in worlds)
    assert sum(bool(world.people) and bool(world.due()) for world in worlds) > 200
    assert any(world.rewrite for world in worlds)
    assert any(world.forbidden() for world in worlds)
    assert sum(bool(world.blocked()) for world in worlds) > 300
    assert build(7) == build(7)
