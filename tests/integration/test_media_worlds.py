"""The orphan cleanup over generated worlds, through SQL and S3: no referenced object is deleted, whatever happens.

Rows are written and objects replaced while a run goes on, and the process dies at any of its writes; the oracle is the
world itself (`tests/worlds.py`). LAMPLIGHTER_SQL_WORLDS=2000 python -m pytest tests/integration/test_media_worlds.py
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

import pytest
from sqlalchemy import Engine

from lamplighter.media import orphan_cleanup
from tests.conftest import Seeded
from tests.media_stage import Stage, theatre
from tests.memory_s3 import Crash

SEEDS = int(os.environ.get("LAMPLIGHTER_SQL_WORLDS", "60"))
ADOPTIONS: list[Callable[[str], str]] = [
    lambda key: key,
    lambda key: f"https://cdn.example.com/{quote(key)}?v=1",
    lambda key: f"./{key.upper()}",
    lambda key: quote(key, safe=""),
]
"""Forms in which a row may come to name an orphan during a run."""


@pytest.fixture
def stage(engine: Engine) -> Iterator[Callable[..., Stage]]:
    """Sets a world up."""
    with theatre(engine) as set_up:
        yield set_up


def judge(stage: Stage, report: orphan_cleanup.Report | None, seen: Counter[str]) -> None:
    """The oracle: nothing that is referenced is gone, and what is said is so."""
    world, where = stage.world, f"seed {stage.world.seed}\n{stage.world}"
    gone = set(world.objects) - set(stage.s3.keys(world.bucket))
    lost = gone - world.orphans
    assert not lost, f"deleted though referenced, excluded or ambiguous: {sorted(lost)[:3]}, {where}"
    # A row that comes after the last reading before a deletion cannot be seen; its window is one part.
    seen["worlds"] += 1
    seen["crashes"] += stage.crashes
    if report is None:
        seen["refused"] += 1
        assert not gone, where
        return
    seen["accepted"] += 1
    seen["orphans"] += len(world.orphans - stage.adopted - stage.replaced)
    seen["removed"] += len(gone)
    assert report.deleted_files == len(gone), where
    assert not gone & stage.replaced, f"deleted though uploaded again: {sorted(gone & stage.replaced)[:3]}, {where}"
    for source, column in zip(report.references, world.columns, strict=True):
        assert source.values == source.matched + source.outside + source.unmatched
        if column.kind != "html" and not stage.adopted:
            values = sum(bool(one.strip("\0\u200b\ufeff \t\n\r\xa0")) for one in column.strings)
            assert (source.values, source.unmatched) == (values, column.missing), f"{source}, {where}"


def test_worlds_as_they_are(stage: Callable[[int], Stage], seeded: Seeded) -> None:
    seen: Counter[str] = Counter()
    for seed, _ in seeded(range(SEEDS)):
        one = stage(seed)
        judge(one, one.to_the_end(), seen)

    print(dict(seen))  # noqa: T201 - what was reached
    assert seen["accepted"] > SEEDS // 4
    assert seen["refused"] > SEEDS // 20
    assert seen["removed"] >= 0.95 * seen["orphans"]


def test_worlds_that_change_while_they_are_cleaned(stage: Callable[[int], Stage], seeded: Seeded) -> None:
    """A row that is written before the last reading keeps its file in any form; one that comes later, in a usual form.

    Rows and uploads come right before some write of the run; the run may die at others, before or after they are done.
    """
    seen: Counter[str] = Counter()
    for seed, rng in seeded(range(1000, 1000 + SEEDS)):
        one = stage(seed, clean=seed % 2 == 0)
        events = {rng.randint(1, 20): rng.choice([one.adopt, one.replace]) for _ in range(rng.randint(1, 5))}
        deaths = {rng.randint(1, 30) for _ in range(rng.randint(0, 3))}
        after = rng.random() < 0.5
        happen, die = happening(events), dying(deaths)
        one.s3.before_write = happen if after else both(happen, die)
        one.s3.after_write = die if after else lambda number, key: None
        report = one.to_the_end()
        one.s3.before_write = one.s3.after_write = lambda number, key: None
        judge(one, report, seen)
        lost = one.adopted & set(one.world.objects) - set(one.s3.keys(one.world.bucket))
        assert not lost, f"deleted though a row came to name it: {sorted(lost)[:3]}, seed {seed}\n{one.world}"
        seen["adopted"] += len(one.adopted)
        seen["replaced"] += len(one.replaced)

    print(dict(seen))  # noqa: T201 - what was reached
    assert seen["crashes"] > SEEDS // 3
    assert min(seen["adopted"], seen["replaced"], seen["accepted"]) > SEEDS // 3
    assert seen["removed"] >= 0.9 * seen["orphans"]


def happening(events: dict[int, Callable[[Sequence[Callable[[str], str]]], None]]) -> Callable[[int, str], None]:
    """The events, each right before a write of that number or the next one that is not a deletion itself."""

    def act(number: int, key: str) -> None:
        if not key.startswith("runs/"):
            return
        early = "candidates-" in key or "references-" in key or "listed-" in key
        for due in [one for one in events if one <= number]:
            events.pop(due)(ADOPTIONS if early else ADOPTIONS[:1])

    return act


def dying(deaths: set[int]) -> Callable[[int, str], None]:
    """A crash at each write of such a number."""

    def act(number: int, _key: str) -> None:
        if number in deaths:
            raise Crash

    return act


def both(*actions: Callable[[int, str], None]) -> Callable[[int, str], None]:
    """One after the other."""

    def act(number: int, key: str) -> None:
        for action in actions:
            action(number, key)

    return act


def test_a_crash_at_each_single_write(stage: Callable[[int], Stage]) -> None:
    """Before it and after it, in one world after the other until every write of a run has been one."""
    seen: Counter[str] = Counter()
    number = 0
    while seen["crashes"] == number * 2:  # the last run came to its end before its crash
        number += 1
        for after in (False, True):
            one = stage(209, clean=True)
            die = dying({number})
            one.s3.before_write = (lambda number, key: None) if after else die
            one.s3.after_write = die if after else lambda number, key: None
            judge(one, one.to_the_end(), seen)
            assert set(one.s3.keys(one.world.bucket)) >= set(one.world.objects) - one.world.orphans

    assert number > 9
    assert seen["removed"] == seen["orphans"] > 0
