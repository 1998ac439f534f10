"""What comes from outside is flat and short in an alert, wherever one is raised."""

from __future__ import annotations

import ast
import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from lamplighter.cloud import cloud_actions
from lamplighter.cloud.checks import BY_ID
from lamplighter.jobs import dispatcher, schedule_watch, settings_document
from lamplighter.kernel import notify
from lamplighter.kernel.deletion import Entry
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy
from lamplighter.kernel.schedules import Schedule
from tests.unit.conftest import FakeContext

HOSTILE: Final = "i-0\r\nSubject: pay\u2028now\x1b[31m\u202egpj.exe\u200b\ufeff\u2066\U000e0041\ud800\x00" + "ü" * 5_000
"""A name that writes lines, colours, turns its direction, hides text and is long."""
FUNCTIONS: Final = Path(__file__).parents[2] / "functions"


class Cloud:
    """DynamoDB, SNS and SSM as alerts use them."""

    def __init__(self) -> None:
        self.published: list[dict[str, str]] = []
        self.exceptions = SimpleNamespace()

    def client(self, _: str) -> Any:
        return self

    def get_item(self, **_: Any) -> dict[str, Any]:
        return {}

    def put_item(self, **_: Any) -> None: ...

    def delete_item(self, **_: Any) -> dict[str, Any]:
        return {}

    def publish(self, **told: str) -> None:
        self.published.append(told)

    def get_paginator(self, _: str) -> Any:
        bad = {"Version": 1, "Value": json.dumps({HOSTILE: HOSTILE})}
        return SimpleNamespace(paginate=lambda **_: [{"Parameters": [bad]}])


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud = Cloud()
    monkeypatch.setattr(notify, "client", cloud.client)
    monkeypatch.setattr("lamplighter.kernel.aws.client", cloud.client)
    monkeypatch.setenv("ALERTS_TOPIC_ARN", "arn:topic")
    return cloud


def by_the_dispatcher(_: pytest.MonkeyPatch, ledger: Ledger) -> None:
    policy = Policy(timeout=timedelta(minutes=5), critical=True, max_attempts=1)
    job = ledger.start(ledger.new_job("sweep", policy))
    failed = ledger.fail_as(job, HOSTILE, HOSTILE, stack_trace=f"line 1\nline 2\n{HOSTILE}\nnow pay")
    dispatcher.announce(replace(failed, job_type=HOSTILE))


def by_the_watch(monkeypatch: pytest.MonkeyPatch, _: Ledger) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    silent = Schedule(name=HOSTILE, enabled=True, expression="rate(1 hour)", changed_at=long_ago)
    monkeypatch.setattr(schedule_watch, "schedules", lambda: [silent])
    monkeypatch.setattr(schedule_watch, "last_completed_runs", lambda names: {})
    schedule_watch.handler({}, FakeContext())


def by_the_settings(monkeypatch: pytest.MonkeyPatch, _: Ledger) -> None:
    monkeypatch.setenv("SETTINGS_PARAMETER", "/lamplighter/settings")
    monkeypatch.setattr(settings_document, "_put", lambda *_: True)
    given = settings_document._Given(deployed="{}", override=json.dumps({HOSTILE: HOSTILE}))
    settings_document._refuse({}, given, f"In the SSM parameter: {HOSTILE} is not a setting.")


def by_the_actions(_: pytest.MonkeyPatch, __: Ledger) -> None:
    said = {"step": "mark", "reason": "", "mark": HOSTILE, "owner": HOSTILE}
    entries = [Entry(key=f"{HOSTILE}/eu-west-1/{check}/{HOSTILE}", facts=said) for check in [*BY_ID][:3]] * 200
    actions: Any = SimpleNamespace(
        _archive=SimpleNamespace(plan_part=lambda part: entries),
        _untouched=lambda entry, refused: False,
        _run=SimpleNamespace(job_id="01KB2T5V8Q4W3N6E7R8T9Y0Z1A"),
    )
    cloud_actions.Actions._announce(actions, SimpleNamespace(parts=1), {})  # type: ignore[arg-type]


SITES: Final[dict[str, Callable[[pytest.MonkeyPatch, Ledger], None]]] = {
    "jobs/dispatcher.py": by_the_dispatcher,
    "jobs/schedule_watch.py": by_the_watch,
    "jobs/settings_document.py": by_the_settings,
    "cloud/cloud_actions.py": by_the_actions,
}
"""Each place that raises an alert, and how it comes to one."""


def test_these_are_all_places_that_raise_alerts() -> None:
    found = []
    for path in sorted((FUNCTIONS / "lamplighter").rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [
            path.relative_to(FUNCTIONS / "lamplighter").as_posix()
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == "alert"
        ]
        named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "publish"]
        assert not named or path.name == "notify.py", f"{path} sends by itself"
    assert sorted(found) == sorted(SITES)


@pytest.mark.parametrize("site", SITES)
def test_what_comes_from_outside_is_flat_and_short(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, site: str
) -> None:
    SITES[site](monkeypatch, ledger)
    (told,) = cloud.published
    assert 0 < len(told["Subject"]) <= 100
    assert told["Subject"].isascii()
    assert told["Subject"].isprintable()
    assert len(told["Message"].encode()) < 256 * 1024
    assert {unicodedata.category(each) for each in told["Message"] if each != "\n"} & {"Cc", "Cf", "Cs", "Zl"} == set()
    for line in told["Message"].split("\n"):
        assert len(line) <= notify.LINE
        assert not line.startswith(("Subject", "now", "pay")), line
    assert "ü" * (notify.NAME + 1) not in told["Message"] or site in ("jobs/dispatcher.py", "jobs/settings_document.py")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("i-0123", "i-0123"),
        ("a\nb\r\nc\td", "a b  c d"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        ("pay\u200bpal\ufeff", "paypal"),
        ("\U000e0041a", "a"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("half \ud800", "half \ufffd"),
        ("Zürich 🚀", "Zürich 🚀"),
        ("x" * 300, "x" * 253 + "..."),
    ],
)
def test_text_is_flattened(text: str, shown: str) -> None:
    assert notify.flat(text) == shown
