"""The end-to-end tests' own local AWS: it runs beside a `make up`, enforces IAM, and is gone when the tests end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from local.stack import FIRST_PORT, ROOT, LocalAws


@pytest.fixture(scope="session")
def aws() -> Iterator[LocalAws]:
    """The deployed and migrated stack. LOCAL_TEST_PORT is the first of its three ports."""
    local = LocalAws(
        directory=ROOT / ".local" / "e2e", first_port=int(os.environ.get("LOCAL_TEST_PORT") or FIRST_PORT + 50)
    )
    local.stop()  # what an interrupted session left
    try:
        local.start()
        local.deploy()
        yield local
    finally:
        local.stop()
