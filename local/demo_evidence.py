"""What the demo reads back from the stack, beside the answers of the jobs themselves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal

from local.stack import LocalAws

if TYPE_CHECKING:
    from lamplighter.kernel.schedules import Schedule

_HEARTBEATS: Final = {"timeout-checker": "CheckerHeartbeat", "schedule-watch": "ScheduleWatchHeartbeat"}
"""The metrics by which the schedules show themselves that are no ledger jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A deployed stack, looked at from outside."""

    aws: LocalAws
    outputs: Mapping[str, str]

    def manifest(self, address: Mapping[str, str]) -> list[dict[str, Any]]:
        """All entries of a manifest."""
        s3 = self.aws.client("s3")
        manifest = json.loads(s3.get_object(Bucket=address["bucket"], Key=address["key"])["Body"].read())
        parts = (s3.get_object(Bucket=address["bucket"], Key=part["key"])["Body"].read() for part in manifest["parts"])
        return [json.loads(line) for part in parts for line in gzip.decompress(part).splitlines()]

    def missing(self, address: Mapping[str, str]) -> list[str]:
        """The references without a file that a manifest names."""
        body = self.aws.client("s3").get_object(Bucket=address["bucket"], Key=address["key"])["Body"].read()
        return [one["value"] for one in json.loads(body)["missing"]]

    def effective_settings(self) -> dict[str, Any]:
        """The document in force, as jobs read it."""
        key = {"pk": {"S": "settings#effective"}}
        item = self.aws.client("dynamodb").get_item(TableName=self.outputs["JobsTableName"], Key=key)["Item"]
        document: dict[str, Any] = json.loads(item["document"]["S"])
        return document

    def schedules(self) -> Iterator[tuple[str, str, str, str]]:
        """Name, expression, state and last run of each schedule."""
        group = self.outputs["ScheduleGroupName"]
        for listed in self.aws.client("scheduler").list_schedules(GroupName=group)["Schedules"]:
            schedule = self.schedule(listed["Name"].removeprefix(f"{self.aws.stack_name}-"))
            if schedule.name in _HEARTBEATS:
                last = self._last_heartbeat(schedule.name)
            else:
                completed = self.last_completed(schedule.name)
                last = f"{completed:%Y-%m-%d %H:%M} (completed)" if completed else None
            state = "enabled" if schedule.enabled else "disabled"
            yield schedule.name, schedule.expression, state, last or "none yet"

    def schedule(self, name: str) -> Schedule:
        """The schedule of this short name."""
        from lamplighter.kernel.schedules import Schedule

        scheduler, group = self.aws.client("scheduler"), self.outputs["ScheduleGroupName"]
        found = scheduler.get_schedule(GroupName=group, Name=f"{self.aws.stack_name}-{name}")
        return Schedule(
            name=name,
            enabled=found["State"] == "ENABLED",
            expression=found["ScheduleExpression"],
            changed_at=found["LastModificationDate"],
        )

    def _last_heartbeat(self, schedule: str) -> str | None:
        points = self._datapoints(_HEARTBEATS[schedule], {"service": self.aws.stack_name}, period=60)
        last = max((point["Timestamp"] for point in points), default=None)
        return f"{last:%Y-%m-%d %H:%M} (heartbeat)" if last else None

    def last_completed(self, schedule: str) -> datetime | None:
        """When a run that this schedule started was last completed."""
        item = (
            self.aws.client("dynamodb")
            .get_item(TableName=self.outputs["JobsTableName"], Key={"pk": {"S": f"SCHEDULE#{schedule}"}})
            .get("Item")
        )
        return datetime.fromisoformat(item["last_completed_at"]["S"]) if item else None

    def checker_passes(self, since: datetime) -> list[tuple[str, ...]]:
        """Of each pass of the timeout checker, by its log: when, expired, retried, failed, released, oldest overdue."""
        pages = (
            self.aws.client("logs")
            .get_paginator("filter_log_events")
            .paginate(
                logGroupName=f"/aws/lambda/{self.aws.stack_name}-timeout-checker",
                startTime=int(since.timestamp() * 1000),
            )
        )
        lines = (event["message"] for page in pages for event in page["events"])
        passes = [json.loads(line) for line in lines if line.startswith("{") and '"pass done"' in line]
        counts = ("expired", "retried", "failed", "released")
        return [
            (one["timestamp"][11:19], *(str(one[name]) for name in counts), f"{one['oldest_overdue_seconds']:.0f} s")
            for one in passes
        ]

    def job_metrics(self) -> Iterator[tuple[str, ...]]:
        """Of each job, by CloudWatch, within the last hours: runs, failures, items, bytes, longest duration."""
        for metric in self.aws.client("cloudwatch").list_metrics(Namespace="Lamplighter", MetricName="Runs")["Metrics"]:
            dimensions = {dimension["Name"]: dimension["Value"] for dimension in metric["Dimensions"]}
            points = {
                name: self._datapoints(name, dimensions, period=3600)
                for name in ("Runs", "Failures", "Items", "Bytes", "Duration")
            }
            total = {name: int(sum(point["Sum"] for point in found)) for name, found in points.items()}
            longest = max(point["Maximum"] for point in points["Duration"])
            counts = (f"{total[name]:,}".replace(",", " ") for name in ("Runs", "Failures", "Items"))
            yield dimensions["job"], *counts, decimal(total["Bytes"]), f"{longest:.1f} s"

    def _datapoints(self, name: str, dimensions: Mapping[str, str], *, period: int) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        points: list[dict[str, Any]] = self.aws.client("cloudwatch").get_metric_statistics(
            Namespace="Lamplighter",
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            StartTime=now - timedelta(hours=12),
            EndTime=now + timedelta(minutes=1),
            Period=period,
            Statistics=["Sum", "Maximum"],
        )["Datapoints"]
        return points


class Alerts:
    """A queue on the alerts topic, emptied at first."""

    def __init__(self, aws: LocalAws, topic: str) -> None:
        self._sqs = aws.client("sqs")
        self.heard: list[tuple[str, str]] = []
        """Subject and message of each."""
        name = f"{aws.stack_name}-demo-alerts"
        arn = f"{topic.replace(':sns:', ':sqs:').rpartition(':')[0]}:{name}"
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._url = self._sqs.create_queue(QueueName=name, Attributes={"Policy": policy})["QueueUrl"]
        aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        self._sqs.purge_queue(QueueUrl=self._url)

    def listen(self) -> list[tuple[str, str]]:
        """All that has come, what came since included."""
        while messages := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                body = json.loads(message["Body"])
                self.heard.append((body.get("Subject") or "", body["Message"]))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return self.heard
