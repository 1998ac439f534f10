"""The deployed stack as the end-to-end tests see it: its functions, its table, its buckets, its database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Self
from uuid import uuid4

from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from lamplighter.kernel.deletion import Entry, ManifestAddress, entries, verified
from lamplighter.kernel.job import tick
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.dynamo import DynamoStore
from lamplighter.kernel.ledger.ledger import Ledger, utc_now
from lamplighter.kernel.ledger.row import Job, Policy, job_key, to_text
from lamplighter.kernel.ledger.waits import moment_of
from local.stack import LocalAws

LONG_AGO = "2020-01-01T00:00:00.000Z"


def eventually[T](probe: Callable[[], T | None], *, within: float = 90.0, every: float = 0.1) -> T:
    """What `probe` answers as soon as that is true; fails when it is not within so many seconds.

    They are many, for they are waited for only where something is wrong, and a machine may be slow.
    """
    end = time.monotonic() + within
    while not (answer := probe()):
        assert time.monotonic() < end, f"not within {within} s: last answer {answer!r}"
        time.sleep(every)
    return answer


class FunctionFailed(Exception):
    """A function's own error."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(f"{type_}: {message}")


class AdminStore(DynamoStore):
    """The ledger's table with the account's own rights."""

    def __init__(self, table: str, dynamodb: Any) -> None:
        super().__init__(table)
        self._dynamodb = dynamodb

    @property
    def _client(self) -> Any:
        return self._dynamodb


class Deployed:
    """The stack."""

    def __init__(self, aws: LocalAws) -> None:
        self.aws = aws
        self.name = aws.stack_name
        self._clients: dict[str, Any] = {}
        outputs = aws.outputs()
        self.table = outputs["JobsTableName"]
        self.media = outputs["MediaBucketName"]
        self.archive = outputs["ArchiveBucketName"]
        self.uploads = outputs["UploadsBucketName"]
        self.topic = outputs["AlertsTopicArn"]
        self.failures_url = outputs["FailuresQueueUrl"]
        self.bus = outputs["EventBusName"]
        self.group = outputs["ScheduleGroupName"]
        self.parameter = outputs["SettingsParameterName"]
        self.api_url = aws.api_url()
        self.media_settings: dict[str, Any] = {}
        """Of the section `media`, what holds in the SSM parameter unless a test says otherwise."""
        self.ledger = Ledger(AdminStore(self.table, self.client("dynamodb")))

    def client(self, service: str) -> Any:
        """The account's own client of a service."""
        if service not in self._clients:
            self._clients[service] = self.aws.client(service)
        return self._clients[service]

    @cached_property
    def engine(self) -> Engine:
        """The stack's database; each connection is a new one, for the server may have been stopped in between."""
        return create_engine(self.aws.database_url.replace("postgresql:", "postgresql+pg8000:"), poolclass=NullPool)

    def sql(self, statement: str, *rows: Mapping[str, Any], **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own; with `rows`, it runs once for each."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), list(rows) or values)
            return list(result) if result.returns_rows else []

    # -- functions ---------------------------------------------------------------------------------------------------

    def invoke(self, function: str, event: Any) -> Any:
        """Call a function with a JSON value and wait for its answer.

        Raises:
            FunctionFailed: it raised, or was killed.
        """
        answer = self.client("lambda").invoke(FunctionName=f"{self.name}-{function}", Payload=json.dumps(event))
        payload = json.loads(answer["Payload"].read() or "null")
        if "FunctionError" in answer:
            raise FunctionFailed(payload.get("errorType", ""), payload.get("errorMessage", ""))
        return payload

    def clean(self, **params: Any) -> dict[str, Any]:
        """Run the orphan cleanup by hand."""
        answer: dict[str, Any] = self.invoke("orphan-cleanup", params)
        return answer

    def check(self) -> dict[str, Any]:
        """One pass of the timeout checker."""
        answer: dict[str, Any] = self.invoke("timeout-checker", {})
        return answer

    def configure(self, function: str, **configuration: Any) -> dict[str, Any]:
        """Change a function's configuration, which also drops its warm process; what was changed, as it was before."""
        client, name = self.client("lambda"), f"{self.name}-{function}"
        before = client.get_function_configuration(FunctionName=name)
        client.update_function_configuration(FunctionName=name, **configuration)
        client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
        return {key: before[key] for key in configuration}

    @contextmanager
    def configured(self, function: str, **configuration: Any) -> Iterator[None]:
        """A function configured otherwise for a while."""
        before = self.configure(function, **configuration)
        try:
            yield
        finally:
            self.configure(function, **before)

    @contextmanager
    def overriding(self, function: str, **variables: str) -> Iterator[None]:
        """A function with other variables for a while."""
        client, name = self.client("lambda"), f"{self.name}-{function}"
        before = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        with self.configured(function, Environment={"Variables": before | variables}):
            yield

    @contextmanager
    def with_settings(self, document: Mapping[str, Any]) -> Iterator[None]:
        """These settings in the SSM parameter for a while, in force at once; over those of the deployment."""
        self.put_settings(document)
        try:
            yield
        finally:
            self.put_settings({})

    def document(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A document, with what holds unless it says otherwise."""
        return {**document, "media": self.media_settings | document.get("media", {})}

    def put_settings(self, document: Mapping[str, Any]) -> None:
        """Put the SSM parameter and apply it. The schedule that a changed interval starts stands still again."""
        value = json.dumps(self.document(document))
        self.client("ssm").put_parameter(Name=self.parameter, Value=value, Overwrite=True)
        self.invoke("settings", {})
        self.invoke("schedules", {"schedule": "orphan-cleanup", "action": "stop"})

    def logs(self, function: str, about: str) -> list[dict[str, Any]]:
        """A function's structured log lines that hold a word."""
        pages = (
            self.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=f"/aws/lambda/{self.name}-{function}")
        )
        lines = (event["message"] for page in pages for event in page["events"])
        return [json.loads(line) for line in lines if line.startswith("{") and about in line]

    # -- schedules ---------------------------------------------------------------------------------------------------

    def stand_still(self) -> None:
        """Stop all schedules but those of the machinery, and let what they started end.

        So nothing runs in a test that the test has not started, at whatever hour that is.
        """
        pages = self.client("scheduler").get_paginator("list_schedules").paginate(GroupName=self.group)
        names = {schedule["Name"].removeprefix(f"{self.name}-") for page in pages for schedule in page["Schedules"]}
        for name in names - {"timeout-checker", "schedule-watch"}:
            assert self.invoke("schedules", {"schedule": name, "action": "stop"})["enabled"] is False
        states = self.client("stepfunctions")
        for name in ("cleanup", "cloud"):
            arn = self.machine_arn(name)
            eventually(
                lambda arn=arn: not states.list_executions(stateMachineArn=arn, statusFilter="RUNNING")["executions"]
            )

    def ticked(self, schedule: str) -> tuple[Job, dict[str, str]]:
        """Let a schedule tick once, in a moment: its row, once that has ended, and what the tick said."""
        scheduler = self.client("scheduler")
        before = scheduler.get_schedule(GroupName=self.group, Name=f"{self.name}-{schedule}")
        wanted = ("Name", "GroupName", "ScheduleExpression", "State", "FlexibleTimeWindow", "Target")
        as_it_was = {key: before[key] for key in wanted}
        once = later(seconds=3).strftime("%Y-%m-%dT%H:%M:%S")
        said = {"schedule": schedule, "scheduled_time": f"{once}Z"}
        job_id = tick(**said, now=utc_now())["job_id"]
        scheduler.update_schedule(**as_it_was | {"ScheduleExpression": f"at({once})", "State": "ENABLED"})
        try:
            eventually(lambda: self.ledger.store.get(job_id))
            row = self.becomes(job_id, "completed", "failed")
        finally:
            scheduler.update_schedule(**as_it_was)
        return row, said

    def note(self, schedule: str) -> dict[str, Any] | None:
        """When a schedule last had a completed run, as the schedule watch has it."""
        key = {"pk": {"S": f"SCHEDULE#{schedule}"}}
        item: dict[str, Any] | None = self.client("dynamodb").get_item(TableName=self.table, Key=key).get("Item")
        return item

    def machine_arn(self, name: str) -> str:
        """The ARN of a state machine."""
        machines = self.client("stepfunctions").list_state_machines()["stateMachines"]
        (arn,) = [one["stateMachineArn"] for one in machines if one["name"] == f"{self.name}-{name}"]
        return str(arn)

    # -- ledger ------------------------------------------------------------------------------------------------------

    def seed(self, job_type: str, **values: Any) -> Job:
        """A new pending job, released at once unless `run_at` lies ahead; retries follow without a wait.

        A value named as a field of `Policy` goes there.
        """
        of_policy = {name: values.pop(name) for name in list(values) if name in Policy.__dataclass_fields__}
        policy = Policy(**{"timeout": timedelta(hours=1), "backoff_base": timedelta(0)} | of_policy)
        return self.ledger.submit(self.ledger.new_job(job_type, policy, **values))

    def backdate(self, job_id: str, **times: str) -> None:
        """Pretend that a live job's deadline has passed, or whatever `times` name."""
        times = times or {"expires_at": LONG_AGO, "deadline_at": LONG_AGO}
        self.client("dynamodb").update_item(
            TableName=self.table,
            Key={"pk": {"S": job_key(job_id)}},
            UpdateExpression="SET " + ", ".join(f"{name} = :{name}" for name in times),
            ConditionExpression="attribute_exists(pk)",
            ExpressionAttributeValues={f":{name}": {"S": value} for name, value in times.items()},
        )

    def becomes(self, job_id: str, *statuses: str, checking: bool = False) -> Job:
        """The row once it has one of these statuses; `checking` runs the timeout checker until then."""

        def probe() -> Job | None:
            if checking:
                self.check()
            job = self.ledger.get(job_id)
            return job if job.status in statuses else None

        return eventually(probe)

    def settled(self, job_id: str) -> Job:
        """The row of an overdue job once it is so no more; the stream begins a pass too, which may be the first."""

        def probe() -> Job | None:
            self.check()
            job = self.ledger.get(job_id)
            moment = moment_of(job)
            return job if moment is None or moment > utc_now() else None

        return eventually(probe)

    def of_type(self, job_type: str) -> list[Job]:
        """The newest hundred jobs of a type."""
        return newest(self.ledger.store, job_type, limit=100)

    def history(self, job_id: str, *, rows: int = 0) -> list[Any]:
        """The job's rows in system_logs, oldest first, once there are so many."""

        def probe() -> tuple[list[Any]] | None:
            statement = "SELECT * FROM lamplighter.system_logs WHERE job_id = :id ORDER BY created_at, message DESC"
            found = self.sql(statement, id=job_id)
            return (found,) if len(found) >= rows else None

        return eventually(probe)[0]

    def records(self, job_id: str) -> list[dict[str, Any]]:
        """What the table's stream holds of a job's row, in the form in which Lambda gets it."""
        streams = self.client("dynamodbstreams")
        arn = self.client("dynamodb").describe_table(TableName=self.table)["Table"]["LatestStreamArn"]
        found = []
        for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]:
            place: str | None = streams.get_shard_iterator(
                StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            while place:
                page = streams.get_records(ShardIterator=place, Limit=1000)
                found += [r for r in page["Records"] if r["dynamodb"]["Keys"]["pk"]["S"] == job_key(job_id)]
                place = page.get("NextShardIterator") if page["Records"] else None
        return [json.loads(json.dumps(record, default=str)) for record in found]

    # -- media -------------------------------------------------------------------------------------------------------

    def put(self, *keys: str, body: bytes = b"x") -> None:
        """Objects in the media bucket."""
        s3 = self.client("s3")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: s3.put_object(Bucket=self.media, Key=key, Body=body), keys))

    def keys(self, prefix: str) -> set[str]:
        """What the media bucket holds below a prefix."""
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.media, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", ())}

    def outcomes(self, address: Mapping[str, str]) -> dict[str, Entry]:
        """What a manifest says of each key, once its hash is proven."""
        manifest = verified(self.client("s3"), ManifestAddress.model_validate(address))
        return {entry.key: entry for entry in entries(self.client("s3"), self.archive, manifest)}


@dataclass(kw_only=True)
class Ended:
    """What has become of an execution."""

    status: str
    output: Any
    error: str
    cause: str


class Machine:
    """A deployed state machine. It is started with the first of its job types unless another one is named."""

    def __init__(self, stack: Deployed, name: str, job_types: Sequence[str]) -> None:
        self.stack = stack
        self.job_types = job_types
        self.states = stack.client("stepfunctions")
        self.arn = stack.machine_arn(name)

    def start(self, **given: Any) -> str:
        """Start an execution; its ARN."""
        given = {"job_type": self.job_types[0]} | given
        return str(self.states.start_execution(stateMachineArn=self.arn, input=json.dumps(given))["executionArn"])

    def end(self, arn: str) -> Ended:
        """What became of an execution, once it has ended."""

        def probe() -> Ended | None:
            told = self.told(arn)
            return None if told.status == "RUNNING" else told

        return eventually(probe)

    def told(self, arn: str) -> Ended:
        """What has become of an execution so far."""
        told = self.states.describe_execution(executionArn=arn)
        output = json.loads(told["output"]) if told["status"] == "SUCCEEDED" else None
        return Ended(status=told["status"], output=output, error=told.get("error") or "", cause=told.get("cause") or "")

    def together(self, turnstile: Turnstile, **given: Any) -> tuple[Ended, Job]:
        """Start two executions at once, neither of which gets past the turnstile before one has been refused; what
        became of that one, and the row of the other, the only one that was made, once it has ended."""
        before = {job.job_id for kind in self.job_types for job in self.stack.of_type(kind)}
        with ThreadPoolExecutor(2) as pool:
            arns = list(pool.map(lambda _: self.start(**given), range(2)))

        def probe() -> Ended | None:
            ended = [self.told(arn) for arn in arns]
            return next((one for one in ended if one.error == "AlreadyRunning"), None)

        refused = eventually(probe)
        turnstile.release()
        (row,) = [job for job in self.stack.of_type(self.job_types[0]) if job.job_id not in before]
        # One that waited for longer than it waits for locks is tried again.
        return refused, self.stack.becomes(row.job_id, "completed", "failed", checking=True)

    def run(self, **given: Any) -> Any:
        """The output of an execution that succeeds."""
        ended = self.end(self.start(**given))
        assert ended.status == "SUCCEEDED", ended
        return ended.output

    def row(self, arn: str) -> Job:
        """The row that an execution made, once it has."""

        def probe() -> Job | None:
            found = (job for kind in self.job_types for job in self.stack.of_type(kind) if job.execution_arn == arn)
            return next(found, None)

        return eventually(probe)


@dataclass
class Shelf:
    """A folder of the media bucket and a table of references to it, both a test's own. The settings name the table."""

    stack: Deployed
    name: str = field(default_factory=lambda: f"e2e_{uuid4().hex[:12]}")

    def key(self, name: str) -> str:
        """The key of an object in the folder."""
        return f"{self.name}/{name}"

    def put(self, *names: str, body: bytes = b"x") -> set[str]:
        """Objects in the folder; their keys."""
        keys = {self.key(name) for name in names}
        self.stack.put(*keys, body=body)
        return keys

    def refer(self, *names: str) -> None:
        """Rows that name objects of the folder."""
        self.stack.sql(
            f"INSERT INTO {self.name} (storage_key) VALUES (:key)", *({"key": self.key(name)} for name in names)
        )

    def keys(self) -> set[str]:
        """What the folder holds."""
        return self.stack.keys(self.name + "/")

    @property
    def params(self) -> dict[str, Any]:
        """What makes a cleanup one of this folder, in earnest."""
        return {"base_path": self.name, "references": [self.reference()], "dry_run": False}

    def reference(self, **declared: Any) -> dict[str, Any]:
        """The column of references, and what is declared of it."""
        return {"table": self.name, "column": "storage_key"} | declared

    def clean(self, **params: Any) -> dict[str, Any]:
        """A cleanup of the folder."""
        return self.stack.clean(**self.params | params)

    def __enter__(self) -> Self:
        self.stack.sql(f"CREATE TABLE {self.name} (storage_key text)")
        self.stack.sql(f"CREATE INDEX ON {self.name} (storage_key)")
        self.stack.media_settings = {"references": [self.reference()]}
        self.stack.put_settings({})
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs():  # what a test that failed has left would hold the lock against the next
            if not job.status.terminal:
                self.stack.ledger.cancel(job.job_id)
                self.stack.backdate(job.job_id)
        self.stack.media_settings = {}
        self.stack.put_settings({})
        self.stack.sql(f"DROP TABLE {self.name}")

    def jobs(self) -> list[Job]:
        """The cleanups of the folder, the newest first."""
        return [job for job in self.stack.of_type("orphan_cleanup") if job.payload.get("base_path") == f"{self.name}/"]


class Turnstile:
    """Lets a run through its transactions on a table one at a time.

    A lock on the table stops the run at its next look at the table. To let it pass once, the next lock is queued
    behind the run's own before this one is given up. The run waits for at most `kernel.database.LOCK_TIMEOUT`.

    An orphan cleanup looks at its references once before it lists the bucket, once after, and once for each part of the
    plan, right before it deletes.
    """

    def __init__(self, engine: Engine, table: str) -> None:
        self._engine = engine
        self._table = table
        self._pool = ThreadPoolExecutor(1)
        self.connection: Connection

    def __enter__(self) -> Self:
        self.connection = self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._pool.shutdown()

    def wait(self) -> None:
        """Until the run stands before the lock."""
        eventually(lambda: self._waiting("AccessShareLock"))

    def step(self) -> None:
        """Let the run through, as far as its next look at the table."""
        coming = self._pool.submit(self._lock)
        eventually(lambda: self._waiting("AccessExclusiveLock"), every=0.02)
        self.release()
        self.connection = coming.result(90)
        self.wait()

    def release(self) -> None:
        """Stop no more; what was written over `connection` stays."""
        if not self.connection.closed:
            with suppress(DBAPIError):  # the server may be gone
                self.connection.commit()
            self.connection.close()

    def _lock(self) -> Connection:
        connection = self._engine.connect()
        connection.execute(text(f"LOCK TABLE {self._table} IN ACCESS EXCLUSIVE MODE"))
        return connection

    def _waiting(self, mode: str) -> bool:
        with self._engine.connect() as connection:
            return bool(
                connection.execute(
                    text(
                        "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = :mode"
                        " AND relation = to_regclass(:table)"
                    ),
                    {"mode": mode, "table": self._table},
                ).scalar()
            )


class Mailbox:
    """A queue that gets what is sent to the stack, and remembers it."""

    def __init__(self, stack: Deployed, name: str) -> None:
        self._sqs = stack.client("sqs")
        self.url = self._sqs.create_queue(QueueName=name)["QueueUrl"]
        self.arn = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]
        policy = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": self.arn}
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        self._sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"Policy": document})
        self._bodies: list[str] = []

    def about(self, word: str) -> list[str]:
        """The messages so far that hold a word."""
        while messages := self._sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self._bodies.append(message["Body"])
                self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return [body for body in self._bodies if word in body]


def later(**duration: float) -> datetime:
    """A moment from now."""
    return utc_now() + timedelta(**duration)


def now_text() -> str:
    """The current moment as the ledger writes it."""
    return to_text(datetime.now(UTC))
