"""The machinery against AWS's own semantics: settings, alerts, schedules, dispatch, history."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from lamplighter.jobs import dispatcher, history, schedule_watch, schedules
from lamplighter.kernel import aws, settings
from lamplighter.kernel.database import system_logs
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.ledger.dynamo import DynamoStore, to_item
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy
from lamplighter.kernel.notify import alert, resolve
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeContext


@pytest.fixture(autouse=True)
def function_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STACK_NAME": "lamplighter",
        "SCHEDULE_GROUP": "lamplighter",
        "EVENT_BUS": "lamplighter",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "POWERTOOLS_SERVICE_NAME": "lamplighter",
        "POWERTOOLS_METRICS_NAMESPACE": "Lamplighter",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def alerts(jobs_table: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The alerts that were published since the last look."""
    topic = aws.client("sns").create_topic(Name="alerts")["TopicArn"]
    monkeypatch.setenv("ALERTS_TOPIC_ARN", topic)
    return _subscription(topic)


def _queue(name: str) -> tuple[str, str]:
    """A queue that everybody may send to: its URL and ARN."""
    sqs = aws.client("sqs")
    anyone = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": "*"}]}
    url = sqs.create_queue(QueueName=name, Attributes={"Policy": json.dumps(anyone)})["QueueUrl"]
    return url, sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def _drain(url: str) -> list[dict[str, Any]]:
    sqs, bodies = aws.client("sqs"), []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages"):
        for message in messages:
            bodies.append(json.loads(message["Body"]))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return bodies


def _subscription(topic: str) -> Callable[[], list[dict[str, Any]]]:
    url, arn = _queue("alerts")
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    return lambda: _drain(url)


# --- settings (K4, P2) -----------------------------------------------------------------------------------------------


def test_the_document_in_the_jobs_table_is_in_force(jobs_table: str) -> None:
    assert settings.load() == settings.Settings()
    item = {"pk": {"S": settings.KEY}, "document": {"S": '{"media": {"max_delete_gb": 2.5}}'}, "sha256": {"S": "x"}}
    aws.client("dynamodb").put_item(TableName=jobs_table, Item=item)
    assert settings.load().media.max_delete_gb == 2.5


def test_a_table_that_is_not_there_stops_the_job_instead_of_guessing(
    aws_account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS_TABLE", "gone")
    with pytest.raises(Retryable, match="The settings cannot be read from the table gone"):
        settings.load()


# --- alerts (K9) -----------------------------------------------------------------------------------------------------


def test_a_condition_that_lasts_is_told_of_once_until_it_ends(alerts: Any) -> None:
    assert alert("disk", subject="Disk full", message="Really.") is True
    assert alert("disk", subject="Disk full", message="Really.") is False
    assert alert("other", subject="Other", message="Too.") is True
    assert [(told["Subject"], told["Message"]) for told in alerts()] == [
        ("[lamplighter] Disk full", "Really."),
        ("[lamplighter] Other", "Too."),
    ]
    assert resolve("disk") is True
    assert resolve("disk") is False
    assert alert("disk", subject="Disk full", message="Again.") is True


# --- schedules (A6, K12) ---------------------------------------------------------------------------------------------


@pytest.fixture
def schedule(jobs_table: str) -> dict[str, Any]:
    scheduler = aws.client("scheduler")
    scheduler.create_schedule_group(Name="lamplighter")
    for name in ("orphan-cleanup", "schedule-watch"):
        scheduler.create_schedule(
            Name=f"lamplighter-{name}",
            GroupName="lamplighter",
            ScheduleExpression="rate(24 hours)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={
                "Arn": "arn:aws:lambda:us-east-1:000000000000:function:nothing",
                "RoleArn": "arn:aws:iam::000000000000:role/nothing",
                "Input": json.dumps({"schedule": name}),
                "RetryPolicy": {"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 300},
            },
        )
    return lambda: scheduler.get_schedule(GroupName="lamplighter", Name="lamplighter-orphan-cleanup")


def switch(action: str, name: str = "orphan-cleanup") -> dict[str, Any]:
    return schedules.handler({"schedule": name, "action": action}, FakeContext())


def test_stopping_and_starting_a_schedule_is_idempotent(schedule: Any) -> None:
    """REQUIREMENTS A6."""
    before = schedule()
    assert switch("stop") == {"schedule": "orphan-cleanup", "enabled": False, "changed": True}
    assert switch("stop")["changed"] is False
    assert schedule()["State"] == "DISABLED"
    assert switch("start") == {"schedule": "orphan-cleanup", "enabled": True, "changed": True}
    assert switch("start")["changed"] is False
    after = schedule()
    assert {key: after[key] for key in ("State", "ScheduleExpression", "Target")} == {
        key: before[key] for key in ("State", "ScheduleExpression", "Target")
    }


def test_starting_applies_the_interval_in_force(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_SCAN_INTERVAL_HOURS", "6")
    assert switch("start")["changed"] is True
    assert schedule()["ScheduleExpression"] == "rate(6 hours)"


def test_a_schedule_whose_setting_is_off_is_not_started(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_ENABLED", "false")
    with pytest.raises(Permanent, match=r"while the setting media\.enabled is false"):
        switch("start")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"schedule": "nonesuch", "action": "stop"}, "there is no schedule 'nonesuch'"),
        ({"schedule": "orphan-cleanup", "action": "pause"}, "action: .*'start' or 'stop'"),
        ({"schedule": "orphan-cleanup"}, "action: is missing"),
        ({"schedule": "orphan-cleanup", "action": "stop", "when": "now"}, "when: is not known here"),
    ],
)
def test_a_bad_request_to_switch_is_one_sentence(schedule: Any, event: dict[str, str], said: str) -> None:
    with pytest.raises(Permanent, match=said):
        schedules.handler(event, FakeContext())


def test_the_watch_alerts_once_on_a_silent_schedule_and_again_after_it_recovered(
    schedule: Any, alerts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUIREMENTS K12."""
    now = [datetime.now(UTC)]
    monkeypatch.setattr(schedule_watch, "utc_now", lambda: now[0])

    def watch() -> list[str]:
        overdue: list[str] = schedule_watch.handler({}, FakeContext())["overdue"]
        return overdue

    assert watch() == []
    now[0] += timedelta(hours=24, minutes=16)
    assert watch() == watch() == ["orphan-cleanup"]
    (told,) = alerts()
    assert told["Message"] == "orphan-cleanup is due at rate(24 hours), but it never ran."
    dispatcher.note("orphan-cleanup", now[0].isoformat(timespec="milliseconds"))
    assert watch() == []
    now[0] += timedelta(days=2)
    assert watch() == ["orphan-cleanup"]
    assert len(alerts()) == 1


def test_the_last_completed_run_only_moves_forward(jobs_table: str) -> None:
    for at in ("2026-01-02T00:00:00.000Z", "2026-01-03T00:00:00.000Z", "2026-01-01T00:00:00.000Z"):
        dispatcher.note("sweep", at)
    assert schedule_watch.last_completed_runs(["sweep", "other"]) == {"sweep": datetime(2026, 1, 3, tzinfo=UTC)}


# --- dispatch and history (K9) ---------------------------------------------------------------------------------------


def records(changes: list[tuple[Job | None, Job | None]]) -> dict[str, Any]:
    """The stream's event for these changes."""

    def images(old: Job | None, new: Job | None) -> dict[str, Any]:
        found = {"OldImage": old, "NewImage": new}
        return {name: to_item(job) for name, job in found.items() if job}

    return {
        "Records": [
            {
                "eventID": str(number),
                "eventName": "MODIFY",
                "eventSource": "aws:dynamodb",
                "dynamodb": {"SequenceNumber": str(number), **images(old, new)},
            }
            for number, (old, new) in enumerate(changes)
        ]
    }


def life(policy: Policy) -> tuple[Ledger, list[tuple[Job | None, Job | None]]]:
    changes: list[tuple[Job | None, Job | None]] = []
    return Ledger(MemoryStore(lambda old, new: changes.append((old, new)))), changes


def test_a_job_for_a_worker_outside_is_put_on_the_bus(jobs_table: str) -> None:
    events, (url, arn) = aws.client("events"), _queue("worker")
    events.create_event_bus(Name="lamplighter")
    events.put_rule(Name="jobs", EventBusName="lamplighter", EventPattern='{"source": ["lamplighter"]}')
    events.put_targets(Rule="jobs", EventBusName="lamplighter", Targets=[{"Id": "1", "Arn": arn}])
    ledger, changes = life(Policy(timeout=timedelta(minutes=30)))
    job = ledger.submit(
        ledger.new_job("sync", Policy(timeout=timedelta(minutes=30), target="bus"), payload={"library": 7})
    )
    assert dispatcher.handler(records(changes), FakeContext()) == {"batchItemFailures": []}
    (message,) = _drain(url)
    assert message["detail-type"] == "Job released"
    assert message["detail"] == {
        "job_id": job.job_id,
        "attempt": 1,
        "continuation": 0,
        "job_type": "sync",
        "payload": {"library": 7},
    }


def test_a_record_that_fails_does_not_take_the_others_with_it(jobs_table: str, alerts: Any) -> None:
    policy = Policy(timeout=timedelta(minutes=30), target="lambda:does-not-exist")
    ledger, changes = life(policy)
    ledger.submit(ledger.new_job("lost", policy))
    critical = Policy(timeout=timedelta(minutes=30), critical=True)
    job = ledger.start(ledger.new_job("backup", critical))
    ledger.fail(job, Permanent("the disk is full"))
    event = records(changes)
    assert dispatcher.handler(event, FakeContext()) == {"batchItemFailures": [{"itemIdentifier": "0"}]}
    dispatcher.handler(event, FakeContext())  # the stream delivers it all again
    (told,) = alerts()
    assert told["Subject"] == "[lamplighter] backup failed"
    assert "Permanent: the disk is full" in told["Message"]


def test_the_history_is_written_once_however_often_the_stream_delivers(engine: Engine) -> None:
    ledger, changes = life(Policy(timeout=timedelta(minutes=30)))
    job = ledger.start(ledger.new_job("sync", Policy(timeout=timedelta(minutes=30)), payload={"ü": 1}))
    ledger.complete(job, {"synced": 3})
    event = records(changes)
    for _ in range(2):
        assert history.handler(event, FakeContext()) == {"batchItemFailures": []}
    with engine.begin() as connection:
        rows = connection.execute(select(system_logs).order_by(system_logs.c.created_at)).all()
    assert [(row.job_id, row.job_type, row.level) for row in rows] == [(job.job_id, "sync", "INFO")] * 2
    assert {row.message for row in rows} == {"started, attempt 1 of 3", "completed"}
    assert [row.details["result"] for row in rows if row.message == "completed"] == [{"synced": 3}]


def test_a_character_that_postgres_cannot_hold_does_not_stop_the_history(engine: Engine) -> None:
    ledger, changes = life(Policy(timeout=timedelta(minutes=30)))
    ledger.fail(ledger.start(ledger.new_job("sync", Policy(timeout=timedelta(minutes=30)))), Permanent("a\0b"))
    history.handler(records(changes), FakeContext())
    with engine.begin() as connection:
        (row,) = connection.execute(select(system_logs).where(system_logs.c.level == "ERROR")).all()
    assert row.details["errors"][0]["message"] == "a\ufffdb"


def test_removals_of_finished_jobs_concern_neither_consumer_of_the_stream(engine: Engine) -> None:
    """The mappings filter them out; should one come all the same, nothing is started, told or written again."""
    ledger, changes = life(Policy(timeout=timedelta(minutes=30)))
    policy = Policy(timeout=timedelta(minutes=30), target="lambda:does-not-exist", critical=True)
    failed = ledger.fail(ledger.start(ledger.new_job("backup", policy)), Permanent("no"))
    done = ledger.complete(ledger.start(ledger.new_job("sync", policy, schedule="sync")), None)
    changes.clear()
    ledger.store.remove_many([failed, done])
    assert [new for _, new in changes] == [None, None]
    for consumer in (dispatcher.handler, history.handler):
        assert consumer(records(changes), FakeContext()) == {"batchItemFailures": []}
    with engine.begin() as connection:
        assert connection.execute(select(system_logs)).all() == []


def test_a_database_that_is_down_makes_the_batch_come_again(engine: Engine) -> None:
    ledger, changes = life(Policy(timeout=timedelta(minutes=30)))
    ledger.start(ledger.new_job("sync", Policy(timeout=timedelta(minutes=30))))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE lamplighter.system_logs RENAME TO gone"))
    with pytest.raises(Exception, match="system_logs"):
        history.handler(records(changes), FakeContext())


def test_a_row_of_the_table_reads_as_the_stream_shows_it(jobs_table: str) -> None:
    ledger = Ledger(DynamoStore(jobs_table))
    job = ledger.start(ledger.new_job("sync", Policy(timeout=timedelta(minutes=30)), payload={"a": [1, "ü"]}))
    raw = aws.client("dynamodb").get_item(TableName=jobs_table, Key={"pk": {"S": f"JOB#{job.job_id}"}})["Item"]
    assert raw == to_item(job)
