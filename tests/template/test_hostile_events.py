"""Whatever a function of the stack is called with, it refuses it in one sentence, permanently (REQUIREMENTS K14)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import JobHandler
from lamplighter.kernel.ledger.ledger import Ledger
from tests.memory_store import MemoryStore
from tests.template.project import Function, Project
from tests.unit.conftest import FakeContext

FUNCTIONS: Final = Project().functions
EACH_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.job)
NOW: Final = datetime(2026, 1, 31, 3, tzinfo=UTC)
LIMIT: Final = 320
"""Characters of a sentence."""
LONG: Final = "x" * 1_000_000


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


EVENTS: Final[dict[str, Any]] = {
    "a number": 5,
    "null": None,
    "a text": "x",
    "a list": [],
    "a truth": True,
    "a list of objects": [{}],
    "an attempt alone": {"attempt": 1},
    "an id that is a number": {"job_id": 7},
    "an attempt that is a text": {"job_id": "x", "attempt": "1", "continuation": None},
    "an attempt that is a truth": {"job_id": "x", "attempt": True, "continuation": 0},
    "an attempt of nothing": {"job_id": "", "attempt": 1, "continuation": 0},
    "an attempt of NUL": {"job_id": "\0", "attempt": 1, "continuation": 0},
    "an attempt of much": {"job_id": LONG, "attempt": 10**400, "continuation": 0},
    "an attempt and more": {"job_id": "x", "attempt": 1, "continuation": 0, "more": 1},
    "an unknown field": {"nonesuch": 1},
    "many unknown fields": {f"nonesuch{n}": n for n in range(2000)},
    "a long name": {LONG: 1},
    "a long value": {"nonesuch": LONG},
    "a name of no text": {"\u202e\n\x1b[31m": 1},
    "half a pair": {"nonesuch": "\ud800"},
    "half a pair as a name": {"\ud800": 1},
    "NUL": {"nonesuch": "\0"},
    "depth": {"nonesuch": deep(5000)},
    "infinity": {"nonesuch": float("inf")},
    "a step of no text": {"step": []},
    "an unknown step": {"step": "nonesuch"},
    "records of no list": {"Records": 5},
    "records of no records": {"Records": [5, None, {}]},
    "a record of nothing": {"Records": [{"eventID": "1", "dynamodb": {}}]},
    "a record of no image": {"Records": [{"eventID": "1", "dynamodb": {"SequenceNumber": "1", "NewImage": 5}}]},
    "a request of nothing": {"version": "2.0", "requestContext": {}, "headers": {}},
    "a request of numbers": {"version": "2.0", "rawPath": 5, "headers": {"a": 1}, "requestContext": {"http": 5}},
    "an upload of nothing": {"detail": {"bucket": {}, "object": {}}, "time": 5},
    "cursors of no lanes": {"cursors": {"nonesuch": {}}},
    "cursors of no keys": {"cursors": {"due/0": {"pk": 5}}},
    "cursors of no object": {"cursors": 5},
}

STEPS: Final[dict[str, Any]] = {
    "begin alone": {"step": "begin"},
    "begin with numbers": {"step": "begin", "input": 5, "execution": 5, "started": 5},
    **{
        f"begin {name}": {"step": "begin", "input": told, "execution": "arn:1", "started": NOW.isoformat()}
        for name, told in {
            "a number": 5,
            "null": None,
            "no type": {},
            "a type of no text": {"job_type": []},
            "an unknown type": {"job_type": LONG},
            "an attempt of text": {"job_type": "cleanup", "job_id": "x", "attempt": "1", "continuation": None},
            "an attempt of null": {"job_type": "waste_scan", "job_id": None, "attempt": 1, "continuation": 0},
            "an attempt of none": {"job_type": "cleanup", "job_id": "x", "attempt": 1, "continuation": 0},
            "phases of no list": {"job_type": "cleanup", "phases": "stale_jobs"},
            "unknown phases": {"job_type": "cleanup", "phases": [LONG, "\ud800", "x"]},
            "many unknown phases": {"job_type": "cleanup", "phases": [f"nonesuch{n}" for n in range(2000)]},
            "depth": {"job_type": "cleanup", "phases": deep(5000)},
        }.items()
    },
    **{
        f"begin at {started}": {
            "step": "begin",
            "input": {"job_type": name},
            "execution": "arn:1",
            "started": started,
        }
        for started in ("", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "2026-01-31T03:00:00")
        for name in ("cleanup", "waste_scan")
    },
    **{
        f"{step} of {name}": {"step": step, "state": state}
        for step in ("finish", "pass_over", "divide", "gather")
        for name, state in {
            "nothing": None,
            "a number": 5,
            "an object": {},
            "no job": {"job_id": "x", "attempt": 1, "continuation": 0, "job_type": "nonesuch", "left": []},
            "no phase": {"job_id": "x", "attempt": 1, "continuation": 0, "job_type": "waste_scan", "left": []},
        }.items()
    },
    "lost nothing": {"step": "lost"},
    "lost a number": {"step": "lost", "share": 5},
    "a state of no list": {"left": 5},
    "a state of no phase": {"job_id": "x", "attempt": 1, "continuation": 0, "job_type": "cleanup", "left": []},
    "a phase of no job": {
        "job_id": "\0",
        "attempt": 1,
        "continuation": 0,
        "job_type": "cleanup",
        "left": [{"name": "plans", "function": "cleanup", "span": [0, 1]}],
    },
    "a preview that acts": {"phase": "plans", "dry_run": False},
    "a preview of no phase": {"phase": LONG, "dry_run": True},
    "a preview of a number": {"phase": 5, "dry_run": True},
}

TICKS: Final[dict[str, Any]] = {
    **{
        f"a tick of {at!r:.30}": {"schedule": "sweep", "scheduled_time": at}
        for at in (
            "0001-01-01T00:00:00Z",
            "0001-01-01T00:00:00+14:00",
            "1969-07-20T20:17:40Z",
            "1999-12-31T23:59:59Z",
            "2025-12-31T03:00:00Z",
            "2026-02-01T03:00:01Z",
            "2099-01-01T00:00:00Z",
            "9999-12-31T23:59:59-14:00",
            "2026-01-31T03:00:00",
            "2026-01-31",
            "soon",
            "",
            LONG,
            5,
            20260131,
            1.5,
            None,
            True,
            [],
            {},
        )
    },
    **{
        f"a tick of the schedule {name!r:.30}": {"schedule": name, "scheduled_time": NOW.isoformat()}
        for name in (5, None, True, [], {}, "", LONG, "a b", "a\nb", "\ud800")
    },
    "a tick of no schedule": {"scheduled_time": NOW.isoformat()},
    "a tick of no time": {"schedule": "sweep"},
    "a tick with an unknown field": {"schedule": "sweep", "scheduled_time": NOW.isoformat(), "nonesuch": 1},
}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """The ledger that functions find, in memory; there is no AWS and no database, so who asks for one fails."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "DATABASE_", "LAMPLIGHTER_", "SETTINGS_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "STACK_NAME": "lamplighter",
        "POWERTOOLS_SERVICE_NAME": "lamplighter",
        "POWERTOOLS_METRICS_NAMESPACE": "Lamplighter",
    }.items():
        monkeypatch.setenv(name, value)
    store = MemoryStore()
    monkeypatch.setattr(Ledger, "from_environment", lambda: Ledger(store, clock=lambda: NOW))
    return store


def handler_of(function: Function) -> Any:
    return importlib.import_module(function.module).handler


def refusal(function: Function, event: Any, store: MemoryStore) -> str:
    """The sentence of the refusal; nothing is recorded."""
    with pytest.raises(Permanent) as refused:
        handler_of(function)(event, FakeContext())
    sentence = str(refused.value)
    assert 10 < len(sentence) <= LIMIT, sentence[: 2 * LIMIT]
    assert sentence.isprintable(), sentence
    assert sentence.endswith("."), sentence
    assert "Traceback" not in sentence
    assert (store.items, store.locks) == ({}, {})
    return sentence


def test_there_is_a_function_of_each_kind() -> None:
    assert len(FUNCTIONS) >= 19
    assert sum(isinstance(handler_of(function), JobHandler) for function in FUNCTIONS) >= 4


@EACH_FUNCTION
def test_a_hostile_event_is_refused_in_one_sentence(function: Function, store: MemoryStore) -> None:
    for name, event in EVENTS.items():
        assert refusal(function, event, store), name


@EACH_FUNCTION
def test_a_hostile_step_is_refused_in_one_sentence(function: Function, store: MemoryStore) -> None:
    for name, event in STEPS.items():
        assert refusal(function, event, store), name


TIMED: Final = [one for one in FUNCTIONS if one.job not in ("timeout-checker", "schedule-watch")]
"""The two others take ticks, and read nothing of them."""


@pytest.mark.parametrize("function", TIMED, ids=lambda function: function.job)
def test_a_hostile_tick_is_refused_in_one_sentence(function: Function, store: MemoryStore) -> None:
    for name, event in TICKS.items():
        assert refusal(function, event, store), name


@pytest.mark.parametrize("function", ["cleanup", "cloud-scan"])
def test_a_hostile_tick_begins_no_execution(function: str, store: MemoryStore) -> None:
    (found,) = [one for one in FUNCTIONS if one.job == function]
    job_type = {"cleanup": "token_cleanup", "cloud-scan": "waste_scan"}[function]
    for name, tick in TICKS.items():
        told = {"job_type": job_type} | tick
        event = {"step": "begin", "input": told, "execution": "arn:1", "started": NOW.isoformat()}
        assert refusal(found, event, store), name


JOBS: Final = [function for function in FUNCTIONS if isinstance(handler_of(function), JobHandler)]


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.job)
@pytest.mark.parametrize(
    "value", [5, None, [], {}, True, -1, 1e400, "x" * 200_000, "\0", "\ud800", [LONG], {LONG: 1}, 10**400]
)
def test_each_parameter_is_refused_or_kept(function: Function, store: MemoryStore, value: Any) -> None:
    """Either one sentence and no row, or a row that has ended: none is left to be tried again for its parameters."""
    handler = handler_of(function)
    for name in handler.params.model_fields:
        store.items.clear()
        store.locks.clear()
        try:
            new = handler.new_job(Ledger(store, clock=lambda: NOW), _settings(), {name: value})
        except Permanent as refused:
            assert len(str(refused)) <= LIMIT + 100, refused
            assert str(refused).isprintable()
        else:
            assert len(str(new.payload)) < 110_000


def _settings() -> Any:
    from lamplighter.kernel.settings import Settings

    return Settings()


def test_a_tick_of_now_is_taken(store: MemoryStore) -> None:
    """What is refused above is refused for what is wrong with it."""
    from lamplighter.kernel.job import tick

    for at in (NOW, NOW - timedelta(days=29), NOW + timedelta(hours=23)):
        assert tick("sweep", at.isoformat(), now=NOW)["schedule"] == "sweep"
