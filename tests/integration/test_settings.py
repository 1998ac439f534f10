"""The effective document: what it is made of, who refuses it, when the schedules follow (REQUIREMENTS K4, P2)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import EndpointConnectionError

from lamplighter.jobs import settings as settings_job
from lamplighter.jobs import settings_document, timeout_checker
from lamplighter.jobs.settings_document import KEY, Applied, apply_settings
from lamplighter.kernel import aws, settings
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.settings import MAX_BYTES, Settings, SettingsError
from local.stack import ROOT
from tests.integration.test_machinery import _subscription
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeContext

PARAMETER = "/lamplighter/settings"


class Stack:
    """The table, the parameter, the schedules and the alerts of a stack."""

    def __init__(self, table: str, alerts: Callable[[], list[dict[str, Any]]]) -> None:
        self.table = table
        self.alerts = alerts
        self.archive = f"archive-{uuid4().hex}"

    def put(self, value: Any) -> None:
        """What an operator puts into the SSM parameter."""
        text = value if isinstance(value, str) else json.dumps(value)
        aws.client("ssm").put_parameter(Name=PARAMETER, Type="String", Value=text, Overwrite=True)

    def put_object(self, value: Any, key: str = "settings.json") -> str:
        """An object of the archive bucket; its address."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        aws.client("s3").put_object(Bucket=self.archive, Key=key, Body=body)
        return f"s3://{self.archive}/{key}"

    def item(self) -> dict[str, str]:
        raw = aws.client("dynamodb").get_item(TableName=self.table, Key={"pk": {"S": KEY}})["Item"]
        return {name: next(iter(value.values())) for name, value in raw.items()}

    def schedule(self, name: str) -> str:
        found = aws.client("scheduler").get_schedule(GroupName="lamplighter", Name=f"lamplighter-{name}")
        return f"{found['State']} {found['ScheduleExpression']}"

    def switch(self, name: str, state: str, expression: str | None = None) -> None:
        """What an operator does to a schedule."""
        scheduler, at = aws.client("scheduler"), {"GroupName": "lamplighter", "Name": f"lamplighter-{name}"}
        found = scheduler.get_schedule(**at)
        wanted = {key: found[key] for key in ("ScheduleExpression", "FlexibleTimeWindow", "Target")}
        wanted["ScheduleExpression"] = expression or wanted["ScheduleExpression"]
        scheduler.update_schedule(**at, **wanted, State=state)


@pytest.fixture
def stack(jobs_table: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    topic = aws.client("sns").create_topic(Name="alerts")["TopicArn"]
    for name, value in {
        "STACK_NAME": "lamplighter",
        "SCHEDULE_GROUP": "lamplighter",
        "SETTINGS_PARAMETER": PARAMETER,
        "ALERTS_TOPIC_ARN": topic,
        "ACCOUNT_ID": "000000000000",
        "AWS_REGION": "us-east-1",
        "DATABASE_HOST": "db.example.com",
        "POWERTOOLS_SERVICE_NAME": "lamplighter",
        "POWERTOOLS_METRICS_NAMESPACE": "Lamplighter",
    }.items():
        monkeypatch.setenv(name, value)
    stack = Stack(jobs_table, _subscription(topic))
    monkeypatch.setenv("ARCHIVE_BUCKET", stack.archive)
    aws.client("s3").create_bucket(Bucket=stack.archive)
    scheduler = aws.client("scheduler")
    scheduler.create_schedule_group(Name="lamplighter")
    for name, expression in (("orphan-cleanup", "rate(24 hours)"), ("upload-cleanup", "rate(60 minutes)")):
        scheduler.create_schedule(
            Name=f"lamplighter-{name}",
            GroupName="lamplighter",
            ScheduleExpression=expression,
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": "arn:aws:lambda:us-east-1:0:function:x", "RoleArn": "arn:aws:iam::0:role/x", "Input": "{}"},
        )
    stack.put("{}")
    yield stack


class Calls:
    """The AWS calls that are made from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        from botocore.client import BaseClient

        real = BaseClient._make_api_call

        def counted(client: Any, operation: str, given: Any) -> Any:
            self.made.append(operation)
            return real(client, operation, given)

        monkeypatch.setattr(BaseClient, "_make_api_call", counted)


# --- What it is made of ----------------------------------------------------------------------------------------------


def test_the_template_and_then_the_parameter_make_the_document(stack: Stack) -> None:
    assert settings.load() == Settings()  # nothing was deployed yet
    deployed = {"jobs": {"retry_base_seconds": 5, "retry_cap_seconds": 50}}
    done = apply_settings(deployed=json.dumps(deployed))
    assert done == Applied(changed=True, sha256=stack.item()["sha256"])
    assert settings.load() == settings.parse(deployed, source="a test")
    stack.put({"retry_base_seconds": 7, "media": {"scan_interval_hours": 6}})
    assert apply_settings().switched == ("orphan-cleanup",)
    item = stack.item()
    assert json.loads(item["document"]) == {
        "jobs": {"retry_base_seconds": 7, "retry_cap_seconds": 50},
        "media": {"scan_interval_hours": 6},
    }
    assert item["sha256"] == settings_document._sha256(item["document"])
    assert item["at"].endswith("+00:00")
    assert settings.load().jobs.retry_base_seconds == 7


def test_the_writer_and_the_reader_mean_one_item() -> None:
    """The writer loads no pydantic, and so not the reader."""
    assert KEY == settings.KEY


def test_what_nobody_changed_costs_one_read_of_each(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.put({"retry_base_seconds": 7})
    apply_settings(deployed="{}")
    calls = Calls(monkeypatch)
    assert apply_settings() == Applied(sha256=stack.item()["sha256"])
    assert calls.made[:2] == ["GetItem", "GetParameter"]
    assert calls.made[2:] == ["GetItem"]  # the test's own


def test_a_large_document_is_an_object_of_the_archive(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.put({"s3": stack.put_object({"jobs": {"retry_base_seconds": 7}})})
    apply_settings(deployed='{"jobs": {"retry_cap_seconds": 50}}')
    assert (settings.load().jobs.retry_base_seconds, settings.load().jobs.retry_cap_seconds) == (7, 50)
    before = stack.item()
    calls = Calls(monkeypatch)
    assert not apply_settings().changed
    assert calls.made == ["GetItem", "GetParameter", "GetObject"]  # which is answered without the object
    assert stack.item() == before
    stack.put_object({"jobs": {"retry_base_seconds": 8}})
    assert apply_settings().changed
    assert settings.load().jobs.retry_base_seconds == 8
    assert apply_settings(deployed="{}").changed  # the other part changes, the object does not
    assert (settings.load().jobs.retry_base_seconds, settings.load().jobs.retry_cap_seconds) == (8, 900)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"s3": "s3://elsewhere/settings.json"},
            "s3 takes the address of an object in the archive bucket, s3://archive/<key>",
        ),
        ({"s3": "s3://archive/"}, "s3 takes the address of an object in the archive bucket"),
        ({"s3": 5}, "s3 takes the address of an object in the archive bucket"),
        ({"s3": "s3://archive/settings.json", "media": {}}, "s3 stands alone; put all settings into the object"),
        ({"s3": "s3://archive/gone.json"}, "s3://archive/gone.json cannot be read (NoSuchKey); is it there?"),
        (
            {"s3": "s3://archive/large.json"},
            "s3://archive/large.json holds 300001 bytes; settings take at most 300000.",
        ),
        ({"s3": "s3://archive/binary"}, "s3://archive/binary is no JSON in UTF-8."),
        (
            {"s3": "s3://archive/bad.json"},
            "In s3://archive/bad.json, which the settings parameter names: nonsense is not a setting",
        ),
        ({"s3": "s3://archive/pointer.json"}, "which the settings parameter names: s3 is not a setting"),
        ({"media": {"references": ["files.key\ud800"]}}, "In the settings: they hold half of a surrogate pair"),
        ("not json", "In the settings parameter: it must hold a JSON object of settings"),
        ("[1]", "In the settings parameter: it must hold a JSON object of settings, not a list."),
        (
            {"retention": {"rules": {"download": {"apply": True}}}},
            "In the settings: retention.rules: download is not a rule",
        ),
        (
            {"cloud": {"remedies": {"open_ports": {"action": "stop"}}}},
            "cloud.remedies.open_ports.action: takes tag or revoke",
        ),
        (
            {"cloud": {"targets": [{"accounts": ["1" * 12], "regions": ["x"]}]}},
            "cloud.targets: 111111111111 needs a role",
        ),
    ],
)
def test_a_bad_document_is_refused_in_one_sentence_wherever_it_comes_from(stack: Stack, value: Any, said: str) -> None:
    stack.put_object(b"x" * (MAX_BYTES + 1), "large.json")
    stack.put_object(b"\xff\xfe", "binary")
    stack.put_object({"nonsense": 1}, "bad.json")
    stack.put_object({"s3": "s3://archive/bad.json"}, "pointer.json")
    if isinstance(value, dict):
        value = json.loads(json.dumps(value).replace("s3://archive/", f"s3://{stack.archive}/"))
    said = said.replace("s3://archive/", f"s3://{stack.archive}/")
    apply_settings(deployed="{}")
    before = stack.item()
    stack.put(value)
    with pytest.raises(SettingsError) as caught:
        settings_job.handler({}, None)
    assert said in str(caught.value)
    assert stack.item()["document"] == before["document"]
    if not isinstance(value, str):
        told = settings_job.handler({"validate": value}, None)
        assert told["valid"] is False
        assert said in told["problem"]


def test_the_parts_together_are_limited_too(stack: Stack) -> None:
    stack.put({"s3": stack.put_object({"media": {"exclude": ["x" * 298_000]}})})
    assert apply_settings(deployed="{}").changed
    with pytest.raises(SettingsError, match=r"^The settings together hold \d+ bytes; they take at most 300000\.$"):
        apply_settings(deployed=json.dumps({"cloud": {"limits": {"owner_tag": "y" * 3000}}}))
    with pytest.raises(SettingsError, match=r"template parameter Settings: it takes at most 4096 characters, got 5000"):
        apply_settings(deployed="{}" + " " * 4998)


def test_validating_writes_nothing(stack: Stack) -> None:
    apply_settings(deployed='{"cloud": {"remedies": {"idle_cpu": {"action": "stop"}}}}')
    before = stack.item()
    assert settings_job.handler({"validate": {"media": {"scan_interval_hours": 6}}}, None) == {"valid": True}
    assert settings_job.handler({"validate": {"cloud": {"remedies": {"idle_cpu": {"apply": True}}}}}, None)["valid"]
    for wrong in (5, None, [], "text"):
        assert "must hold a JSON object of settings" in settings_job.handler({"validate": wrong}, None)["problem"]
    assert stack.item() == before
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(24 hours)"


# --- A bad one at run time -------------------------------------------------------------------------------------------


def test_a_bad_document_keeps_the_last_good_one_and_alerts_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.put({"orphan_cleanup_max_delete_gb": 2.5})
    apply_settings(deployed="{}")
    good = stack.item()
    stack.put({"orphan_cleanup_max_delete_gb": 3, "orphan_cleanup_dry_runn": False})
    refused = apply_settings()
    assert "orphan_cleanup_dry_runn is not a setting" in (refused.refused or "")
    calls = Calls(monkeypatch)
    assert apply_settings() == apply_settings() == Applied(sha256=good["sha256"])
    assert calls.made == ["GetItem", "GetParameter"] * 2  # it is looked at no more
    assert settings.load().media.max_delete_gb == 2.5
    (told,) = stack.alerts()
    assert told["Subject"] == "[lamplighter] A bad settings document was refused"
    assert "In the settings parameter: orphan_cleanup_dry_runn is not a setting" in told["Message"]
    assert f"those of {good['at']} stay in force" in told["Message"]

    stack.put({"nonsense": 1})
    apply_settings()
    assert "nonsense" in stack.alerts()[0]["Message"]  # another one is another alert
    stack.put({"orphan_cleanup_max_delete_gb": 4})
    assert apply_settings().changed
    assert settings.load().media.max_delete_gb == 4
    assert stack.alerts() == []


def test_with_no_good_document_at_all_the_defaults_hold(stack: Stack) -> None:
    stack.put("not json")
    apply_settings()
    apply_settings()
    assert settings.load() == Settings()
    (told,) = stack.alerts()
    assert "the defaults stay in force" in told["Message"]
    stack.put("{}")
    assert apply_settings().changed


def test_a_parameter_that_is_gone_is_told_of_once_and_changes_nothing(stack: Stack) -> None:
    stack.put({"retry_base_seconds": 7})
    apply_settings(deployed="{}")
    aws.client("ssm").delete_parameter(Name=PARAMETER)
    assert "/lamplighter/settings does not exist" in (apply_settings().refused or "")
    assert not apply_settings().changed
    assert settings.load().jobs.retry_base_seconds == 7
    assert len(stack.alerts()) == 1


# --- At a deployment -------------------------------------------------------------------------------------------------


def test_a_bad_document_fails_the_deployment_and_changes_nothing(stack: Stack) -> None:
    apply_settings(deployed='{"jobs": {"retry_base_seconds": 5}}')
    before = stack.item()
    with pytest.raises(SettingsError, match=r"In the template parameter Settings: jobs\.retry_base_seconds: "):
        apply_settings(deployed='{"jobs": {"retry_base_seconds": 0}}')
    stack.put({"nonsense": 1})
    with pytest.raises(SettingsError, match="In the settings parameter: nonsense"):
        apply_settings(deployed='{"jobs": {"retry_base_seconds": 6}}')
    assert stack.item() == before
    assert stack.alerts() == []


def test_the_rollback_of_such_a_deployment_succeeds(stack: Stack) -> None:
    """P1: an operator's bad document must not turn it into ROLLBACK_FAILED."""
    deployed = '{"jobs": {"retry_base_seconds": 5}}'
    apply_settings(deployed=deployed)
    stack.put({"nonsense": 1})
    with pytest.raises(SettingsError):
        apply_settings(deployed='{"jobs": {"retry_base_seconds": 6}}')
    stack.switch("upload-cleanup", "DISABLED")
    done = apply_settings(deployed=deployed)
    assert (done.changed, "nonsense" in (done.refused or "")) == (False, True)
    assert settings.load().jobs.retry_base_seconds == 5
    assert len(stack.alerts()) == 1


def test_an_upgrade_to_a_version_that_refuses_the_settings_in_force_fails(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each job would fail with that sentence."""
    apply_settings(deployed='{"jobs": {"retry_base_seconds": 5}}')
    newer = {"$": Settings.model_validate}
    monkeypatch.setattr(Settings, "model_validate", lambda values: newer["$"]({"gone": 1, **values}))
    with pytest.raises(SettingsError, match="gone is not a setting"):
        apply_settings(deployed='{"jobs": {"retry_base_seconds": 5}}')


# --- The schedules ---------------------------------------------------------------------------------------------------


def test_the_schedules_follow_the_document(stack: Stack) -> None:
    apply_settings(deployed="{}")
    stack.put({"media": {"scan_interval_hours": 6}, "uploads": {"cleanup_interval_seconds": 90}})
    assert apply_settings().switched == ("orphan-cleanup", "upload-cleanup")
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(6 hours)"
    assert stack.schedule("upload-cleanup") == "ENABLED rate(2 minutes)"  # rounded up
    stack.put({"media": {"enabled": False}})
    apply_settings()
    assert stack.schedule("orphan-cleanup") == "DISABLED rate(24 hours)"
    stack.put({"orphan_cleanup_enabled": True})
    apply_settings()
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(24 hours)"


def test_without_a_database_the_orphan_cleanup_stays_off(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_HOST")
    apply_settings(deployed="{}")
    assert stack.schedule("orphan-cleanup").startswith("DISABLED")


def test_what_an_operator_stopped_stays_stopped_until_its_own_settings_change(stack: Stack) -> None:
    """A6: neither a change of other settings nor a deployment starts it."""
    apply_settings(deployed="{}")
    for name in ("orphan-cleanup", "upload-cleanup"):
        stack.switch(name, "DISABLED")
    for _ in range(3):
        assert apply_settings().switched == ()
    stack.put({"retry_base_seconds": 7, "media": {"apply": True, "max_delete_gb": 5}})
    assert (apply_settings().changed, apply_settings().switched) == (True, ())
    assert apply_settings(deployed="{}").switched == ()
    assert apply_settings(deployed='{"jobs": {"retry_cap_seconds": 70}}').switched == ()
    stack.put({"uploads": {"cleanup_interval_seconds": 90}})
    assert apply_settings().switched == ("upload-cleanup",)
    assert stack.schedule("orphan-cleanup") == "DISABLED rate(24 hours)"
    assert stack.schedule("upload-cleanup") == "DISABLED rate(2 minutes)"  # no setting switches it

    stack.put({"media": {"scan_interval_hours": 6}})
    assert apply_settings().switched == ("orphan-cleanup", "upload-cleanup")
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(6 hours)"


def test_a_document_that_is_refused_starts_nothing_and_neither_does_its_correction(stack: Stack) -> None:
    apply_settings(deployed="{}")
    stack.switch("orphan-cleanup", "DISABLED")
    stack.put({"media": {"scan_interval_hours": 0}})
    assert apply_settings().refused
    stack.put({"media": {"scan_interval_hours": 24}})
    assert apply_settings().changed
    assert stack.schedule("orphan-cleanup") == "DISABLED rate(24 hours)"


def test_a_deployment_restores_what_cloudformation_wrote_over(stack: Stack) -> None:
    """An upgrade that changes a schedule's definition gives it the template's interval and state."""
    stack.put({"media": {"enabled": False}, "uploads": {"cleanup_interval_seconds": 90}})
    apply_settings(deployed="{}")
    for name, expression in (("orphan-cleanup", "rate(24 hours)"), ("upload-cleanup", "rate(60 minutes)")):
        stack.switch(name, "ENABLED", expression)
    assert apply_settings(deployed="{}").switched == ("orphan-cleanup", "upload-cleanup")
    assert stack.schedule("orphan-cleanup") == "DISABLED rate(24 hours)"
    assert stack.schedule("upload-cleanup") == "ENABLED rate(2 minutes)"


@pytest.mark.parametrize("deployed", [None, '{"jobs": {"retry_cap_seconds": 60}}'])
def test_what_was_stopped_under_an_earlier_version_stays_stopped(stack: Stack, deployed: str | None) -> None:
    """Its document does not say to what it had brought the schedules."""
    document = '{"jobs":{"retry_cap_seconds":50}}'
    sha256 = settings_document._sha256(document)
    item = {"document": document, "sha256": sha256, "scheduled": sha256, "at": "2026-11-01T00:00:00.000+00:00"}
    item |= {"deployed": document, "inputs": "of then"}
    written = {name: {"S": value} for name, value in item.items()}
    aws.client("dynamodb").put_item(TableName=stack.table, Item={"pk": {"S": KEY}, "version": {"N": "3"}} | written)
    stack.switch("orphan-cleanup", "DISABLED")
    stack.put({"retry_base_seconds": 7})
    assert apply_settings(deployed=deployed).changed
    assert stack.schedule("orphan-cleanup") == "DISABLED rate(24 hours)"
    stack.put({"media": {"scan_interval_hours": 12}})
    apply_settings()
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(12 hours)"


def test_a_schedule_that_could_not_be_switched_is_switched_a_minute_later(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_settings(deployed="{}")
    stack.put({"media": {"scan_interval_hours": 6}})
    with monkeypatch.context() as patch:
        patch.setattr("lamplighter.kernel.schedules.switch", _raise(EndpointConnectionError(endpoint_url="x")))
        with pytest.raises(EndpointConnectionError):
            apply_settings()
    assert settings.load().media.scan_interval_hours == 6
    assert apply_settings().switched == ("orphan-cleanup",)
    assert apply_settings().switched == ()


def _raise(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


# --- Two at once -----------------------------------------------------------------------------------------------------


def test_of_two_writers_the_later_one_starts_over(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow one has read an older parameter; what it would write is not what is in force any more."""
    apply_settings(deployed="{}")
    stack.put({"retry_base_seconds": 7})
    real, raced = settings_document._replace, []

    def slow(*given: Any, **more: Any) -> Any:
        if not raced:
            raced.append(True)
            stack.put({"retry_base_seconds": 8})
            assert apply_settings().changed
        return real(*given, **more)

    monkeypatch.setattr(settings_document, "_replace", slow)
    apply_settings()
    assert raced
    assert settings.load().jobs.retry_base_seconds == 8


def test_a_schedule_is_left_as_the_later_of_two_documents_says(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamplighter.kernel import schedules

    apply_settings(deployed="{}")
    stack.put({"media": {"scan_interval_hours": 6}})
    real, raced = schedules.switch, []

    def slow(name: str, **given: Any) -> bool:
        if not raced:
            raced.append(True)
            stack.put({"media": {"scan_interval_hours": 12}})
            apply_settings()
        return real(name, **given)

    monkeypatch.setattr(schedules, "switch", slow)
    apply_settings()
    assert stack.schedule("orphan-cleanup") == "ENABLED rate(12 hours)"


def test_many_at_once_end_with_one_document(stack: Stack) -> None:
    apply_settings(deployed="{}")
    stack.put({"retry_base_seconds": 7})
    with ThreadPoolExecutor(6) as pool:
        done = [future.result() for future in [pool.submit(apply_settings) for _ in range(6)]]
    assert sum(one.changed for one in done) == 1
    assert settings.load().jobs.retry_base_seconds == 7


# --- Within the checker's pass ---------------------------------------------------------------------------------------


@pytest.fixture
def checker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    from lamplighter.kernel.ledger.ledger import Ledger

    monkeypatch.setattr(Ledger, "from_environment", classmethod(lambda cls: Ledger(MemoryStore())))

    def run(**event: Any) -> dict[str, Any]:
        return timeout_checker.handler(event, FakeContext())

    return run


def test_the_checker_applies_a_change_once_a_minute(stack: Stack, checker: Any) -> None:
    stack.put({"retry_base_seconds": 7})
    checker(waited=True, cursors={})
    checker(waited=False, cursors={"due/0": "done"})  # goes on with a pass that has applied them
    assert settings.load() == Settings()
    checker(waited=False, cursors={})
    assert settings.load().jobs.retry_base_seconds == 7
    stack.put({"retry_base_seconds": 8})
    checker()  # manually
    assert settings.load().jobs.retry_base_seconds == 8


def test_a_pass_is_not_harmed_by_settings_that_cannot_be_read(stack: Stack, checker: Any) -> None:
    aws.client("dynamodb").delete_table(TableName=stack.table)
    assert checker()["finished"] is True


def test_a_pass_waits_for_the_settings_only_so_long(
    stack: Stack, checker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from datetime import timedelta
    from threading import Event

    over = Event()
    monkeypatch.setattr(timeout_checker, "apply_settings", lambda: over.wait(60))
    monkeypatch.setattr(timeout_checker, "SETTINGS_TIME", timedelta(seconds=0.01))
    assert checker()["finished"] is True
    assert not over.is_set()
    over.set()


def test_the_checkers_start_loads_no_pydantic() -> None:
    """It costs half the start, sixty times an hour; what nobody changed does not need it."""
    code = "import sys, lamplighter.jobs.timeout_checker; print('pydantic' in sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT / "functions", capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "False"


def test_a_table_that_cannot_be_read_is_an_error_of_the_moment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_TABLE", "gone")
    with pytest.raises(Retryable, match="The settings cannot be read from the table gone"):
        settings_job.handler({}, None)


def test_a_schedule_that_is_not_there_fails_a_deployment(stack: Stack) -> None:
    aws.client("scheduler").delete_schedule(GroupName="lamplighter", Name="lamplighter-upload-cleanup")
    with pytest.raises(Permanent, match="there is no schedule 'upload-cleanup' in this stack"):
        apply_settings(deployed="{}")
