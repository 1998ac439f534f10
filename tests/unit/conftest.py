"""What the unit tests share: a clock that is told the time, and the environment of a function."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from lamplighter.kernel.ledger.ledger import Ledger
from tests.memory_store import MemoryStore


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def tick(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class FakeContext:
    """Lambda's context, with ten minutes left unless told otherwise."""

    aws_request_id = "request"
    function_name = "test"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:test"

    def __init__(self, left: timedelta = timedelta(minutes=10)) -> None:
        self._left = left

    def get_remaining_time_in_millis(self) -> int:
        return int(self._left.total_seconds() * 1000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore, clock: FakeClock) -> Ledger:
    return Ledger(store, clock=clock)


@pytest.fixture(autouse=True)
def function_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A function's variables, and no way to AWS or a database: no deployment has written settings."""
    monkeypatch.setattr("lamplighter.kernel.settings.stored", lambda: None)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "STACK_NAME": "lamplighter",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "JOBS_TABLE": "jobs",
        "POWERTOOLS_SERVICE_NAME": "lamplighter",
        "POWERTOOLS_METRICS_NAMESPACE": "Lamplighter",
    }.items():
        monkeypatch.setenv(name, value)
    yield
