"""The end-to-end tests' own local AWS: it runs beside a `make up`, enforces IAM, and is gone when the tests end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final
from uuid import uuid4

import pytest

from local.settings import applied
from local.stack import ROOT, LocalAws
from tests.e2e.deployed import Deployed, Mailbox, Shelf
from tests.ports import free_ports

SETTINGS: Final = {
    "jobs": {"retry_base_seconds": 1, "retry_cap_seconds": 1},
    "media": {"apply": True, "ramp": False, "min_age_hours": 0, "quarantine_hours": 0, "max_orphan_share": 1},
    "retention": applied(ramp=False),
}
"""Retries are due at once; the rules and the orphan cleanup act, on files of any age. Nothing may be overridden: a test
that needs other settings has them for a while (`Deployed.with_settings`)."""


@pytest.fixture(scope="session")
def aws() -> Iterator[LocalAws]:
    """The deployed and migrated stack; retries are due at once. LOCAL_TEST_PORT names the first of its three ports."""
    port = int(os.environ.get("LOCAL_TEST_PORT") or free_ports())
    local = LocalAws(directory=ROOT / ".local" / "e2e", first_port=port)
    signal.signal(signal.SIGTERM, _as_interrupt)  # else the servers would outlive us
    local.stop()  # what a killed session left
    try:
        local.start()
        local.deploy(SETTINGS)
        yield local
    finally:
        local.stop()


@pytest.fixture(scope="session")
def stack(aws: LocalAws) -> Deployed:
    """The stack, and what tests do with it; its schedules stand still until a test lets one tick."""
    stack = Deployed(aws)
    stack.stand_still()
    return stack


@pytest.fixture(scope="session")
def alerts(stack: Deployed) -> Mailbox:
    """A subscriber of the alerts topic."""
    mailbox = Mailbox(stack, "e2e-alerts")
    stack.client("sns").subscribe(TopicArn=stack.topic, Protocol="sqs", Endpoint=mailbox.arn)
    return mailbox


@pytest.fixture
def job_type() -> str:
    """A job type of the test's own."""
    return f"e2e_{uuid4().hex[:12]}"


@pytest.fixture
def shelf(stack: Deployed) -> Iterator[Shelf]:
    """A folder of media and its references, of the test's own."""
    with Shelf(stack) as shelf:
        yield shelf


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread; the test ends when it has."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
