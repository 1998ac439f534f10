"""What all tests share: how Hypothesis judges, and how the seed of a failure is told.

Hypothesis judges what the code does, not how fast the machine is at the moment, and prints how to repeat a failure.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from xdist.workermanage import NodeManager

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")
# For tests.mutants: the same examples each time, and the first failure does.
phases = (Phase.explicit, Phase.generate)
settings.register_profile("mutants", settings.default, phases=phases, derandomize=True, database=None)


def pytest_configure(config: pytest.Config) -> None:
    """An interrupted worker has servers to stop, for which xdist's ten seconds may be too few."""
    NodeManager.EXIT_TIMEOUT = 60


Seeded = Callable[[Iterable[int]], Iterator[tuple[int, random.Random]]]


@pytest.fixture
def seeded() -> Seeded:
    """Gives each of some seeds, and random numbers by it; a failure shows the seed that was in use, the last one."""

    def each(seeds: Iterable[int]) -> Iterator[tuple[int, random.Random]]:
        for seed in seeds:
            sys.stdout.write(f"seed {seed}\n")  # pytest shows it with a failure alone
            yield seed, random.Random(seed)

    return each
