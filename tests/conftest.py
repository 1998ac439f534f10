"""What all tests share: Hypothesis judges what the code does, and not how fast the machine is just then."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from xdist.workermanage import NodeManager

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """An interrupted worker has servers to stop, for which xdist's ten seconds may be too few."""
    NodeManager.EXIT_TIMEOUT = 60
