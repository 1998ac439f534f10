"""Whatever the HTTP API hands over, the jobs API answers it, and never with a 500 (REQUIREMENTS K14)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lamplighter import catalogue
from lamplighter.jobs import api
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy
from tests.api_requests import NOBODY, USER, event_of
from tests.memory_s3 import MemoryS3
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "400"))
POLICY: Final = Policy(timeout=timedelta(minutes=30), target="bus")

PATHS: Final = sorted(json.loads(api.document())["paths"])
NAMES: Final = ("limit", "cursor", "status", "trigger", "job_type", "created_since", "created_until", "owner", "order")
AWKWARD: Final = (
    *("", "0", "-1", "1e999", "9" * 5000, "NaN", "null", "true", "\0", "\ud800", "\u202e", "a\nb", "%00", "..", "*"),
    *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-02-30T00:00:00Z"),
    *("2026-01-31T03:00:00.9999999Z", "2026-01-31T24:00:00Z", "WzEsMl0", "e30", "W1tbW1tb", "ü", "x" * 5000),
    *("WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIix7fV0", "WzFlMzA4LDFd", "WzEsOTk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"),
)
texts = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=40), st.sampled_from([NOBODY, *catalogue.NAMES]))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
KNOWN: Final[dict[str, Any]] = {
    "job_type": st.sampled_from([*catalogue.NAMES, "sync", "nonesuch"]),
    "params": st.dictionaries(st.sampled_from(["dry_run", "phases", "job_id", "base_path", "references"]), values),
    "payload": st.dictionaries(texts, values, max_size=3),
    "attempt": st.integers(-1, 3) | values,
    "continuation": st.integers(-1, 1) | values,
    "lease": st.just("A" * 43) | values,
    "progress": st.integers(-1, 101) | values,
    "message": texts,
    "result": values,
    "dry_run": st.booleans() | values,
    "job_id": st.just(NOBODY) | values,
    "rule": texts,
    "keep_days": st.floats() | values,
}
bodies = st.one_of(
    st.none(),
    st.fixed_dictionaries({}, optional=KNOWN).map(json.dumps),
    values.map(json.dumps),
    st.text(max_size=60),
    st.integers(1, 3000).map(lambda depth: "[" * depth),
    st.integers(1, 3000).map(lambda depth: '{"params":' * depth),
)


def filled(path: str, value: str) -> str:
    return "/".join(value if part.startswith("{") else part for part in path.split("/"))


paths = st.one_of(
    st.builds(filled, st.sampled_from(PATHS), texts),
    st.sampled_from(PATHS).map(lambda path: filled(path, NOBODY)),
    st.text(max_size=60).map(lambda rest: f"/{rest}"),
)
events = st.builds(
    lambda method, path, body, query, headers, encoded: (
        event_of(method, "/", body)
        | {"rawPath": path, "isBase64Encoded": encoded}
        | ({"queryStringParameters": query} if query else {})
        | {"headers": {"content-type": "application/json"} | headers}
        | {
            "requestContext": {
                "stage": "$default",
                "http": {"method": method, "path": path},
                "authorizer": {"iam": {"userArn": USER}},
            }
        }
    ),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "", "get", "\ud800"]),
    paths,
    bodies,
    st.dictionaries(st.sampled_from(NAMES) | texts, texts, max_size=3),
    st.dictionaries(
        st.sampled_from(["content-type", "idempotency-key", "accept", "cookie"]) | texts, texts, max_size=2
    ),
    st.booleans(),
)


@pytest.fixture
def ledger(store: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    from lamplighter.cloud.store.s3 import S3Store
    from lamplighter.kernel import database

    memory = MemoryS3()
    memory.buckets["archive"] = {}
    kept = S3Store(memory.client(), "archive", keep_resolved=timedelta(days=365), keep_reports=timedelta(days=365))
    monkeypatch.setattr("lamplighter.catalogue.findings_store", lambda: kept)
    ledger = Ledger(store, clock=clock)
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    for name in ("DATABASE_URL", "DATABASE_SECRET_ARN", "DATABASE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lamplighter.jobs.http.operators.schedules", list)
    monkeypatch.setattr("lamplighter.jobs.schedules.switch", lambda name, **_: False)
    database.engine.cache_clear()
    return ledger


@pytest.fixture(scope="module")
def answered() -> Iterator[Counter[int]]:
    """How often each status was answered; the fuzz came to answers of every kind, else it would be of nothing."""
    counted: Counter[int] = Counter()
    yield counted
    assert {200, 202, 404, 409, 415, 422} <= counted.keys(), counted


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(event=events)
@example(event=event_of("GET", "/api/jobs?created_since=0001-01-01T00:00:00%2B14:00"))
@example(event=event_of("POST", "/api/jobs/run/cleanup") | {"headers": {"content-type": "text/plain"}})
@example(event=event_of("POST", "/api/jobs/run/cleanup") | {"headers": {}})
@example(event=event_of("POST", "/api/jobs/run/cleanup", "{}") | {"headers": {"content-type": "x" * 5000}})
@example(event=event_of("POST", "/api/jobs/run/cleanup", "=") | {"isBase64Encoded": True})
def test_no_request_is_a_server_error(ledger: Ledger, answered: Counter[int], event: dict[str, Any]) -> None:
    if not isinstance(ledger.store, MemoryStore) or len(ledger.store.items) > 50:
        ledger.store = MemoryStore()
    if ledger.store.get(NOBODY) is None:
        ledger.submit(ledger.new_job("sync", POLICY, job_id=NOBODY))
    answer = api.handler(json.loads(json.dumps(event)), FakeContext())
    answered[answer["statusCode"]] += 1
    assert answer["statusCode"] < 500, (answer["body"], event)
    body = json.loads(answer["body"])
    if answer["statusCode"] >= 400:
        assert body["type"].startswith("urn:lamplighter:problem:")
        assert "Traceback" not in body["detail"]
        assert len(body["detail"]) < 4000


hostile = st.one_of(
    values,
    st.fixed_dictionaries(
        {},
        optional={
            "version": values,
            "rawPath": values,
            "headers": values | st.dictionaries(texts, values),
            "queryStringParameters": values | st.dictionaries(texts, values),
            "requestContext": values | st.fixed_dictionaries({}, optional={"http": values, "stage": values}),
            "body": values,
            "isBase64Encoded": values,
        },
    ),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(event=hostile)
def test_what_is_no_request_is_refused_in_one_sentence(ledger: Ledger, event: Any) -> None:
    with pytest.raises(Permanent) as refused:
        api.handler(event, FakeContext())
    assert len(str(refused.value)) <= 300
    assert str(refused.value).isprintable()
