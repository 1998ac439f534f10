"""An account with offending resources, their stored findings, and runs that act on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

import boto3
from botocore.client import BaseClient
from sqlalchemy import Engine, text

from lamplighter.cloud import cloud_actions, cloud_undo
from lamplighter.cloud.remedies.outcomes import Report
from lamplighter.kernel.cloud import Remedy
from lamplighter.kernel.deletion import Entry, entries, verified
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Status, new_job_id
from lamplighter.kernel.settings import Settings, parse
from tests.integration.media_world import ScriptedRun, Stop

REGION: Final = "us-east-1"
DAY: Final = timedelta(days=1)
LIMITS: Final = {"unattached_days": 1, "snapshot_days": 1, "idle_days": 1}
"""The least that the settings take, so that a day makes old what the tests make now."""


class Died(BaseException):
    """The process was killed."""


class Account:
    """What the tests of the actions arrange and look at."""

    def __init__(self, s3: Any, engine: Engine, account: str) -> None:
        self.s3 = s3
        self.engine = engine
        self.account = account
        self.ec2 = boto3.client("ec2")
        self.now = datetime.now(UTC) + DAY + timedelta(hours=1)
        self.archive = f"archive-{uuid4().hex}"
        s3.create_bucket(Bucket=self.archive)
        sqs, sns = boto3.client("sqs"), boto3.client("sns")
        self._sqs, self._mailbox = sqs, sqs.create_queue(QueueName="mailbox")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self._mailbox, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        sqs.set_queue_attributes(QueueUrl=self._mailbox, Attributes={"Policy": document})
        self.topic = sns.create_topic(Name="alerts")["TopicArn"]
        sns.subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn)
        self.ledger = Ledger.from_environment()

    # -- what offends ------------------------------------------------------------------------------------------------

    def found(self, check: str, resource_id: str, *, ago: timedelta = 30 * DAY, status: str = "open") -> str:
        """Store a finding, as a scan would have so long ago."""
        self.sql(
            "INSERT INTO lamplighter.findings (account_id, region, check_id, resource_id, resource_type, kind, title,"
            " severity, confidence, status, first_seen_at, last_seen_at, resolved_at, job_id)"
            " VALUES (:account, :region, :check, :id, 'Other', 'kind', 'title', 'low', 1, :status,"
            " :at, :at, :resolved, 'job')",
            account=self.account,
            region=REGION,
            check=check,
            id=resource_id,
            status=status,
            at=self.now - ago,
            resolved=self.now if status == "resolved" else None,
        )
        return resource_id

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def group(self, *permissions: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> str:
        """A security group that lets in what these permissions say."""
        tagged = {"TagSpecifications": [{"ResourceType": "security-group", "Tags": _listed(tags)}]} if tags else {}
        made: str = self.ec2.create_security_group(GroupName=uuid4().hex, Description="test", **tagged)["GroupId"]
        for permission in permissions:
            self.ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=[permission])
        return made

    def open_group(self, **tags: str) -> str:
        """One that lets everybody in by SSH, with a finding."""
        return self.found("open_ports", self.group(ssh("0.0.0.0/0"), tags=tags))

    def idle_instance(self, type_: str = "t3.micro", **tags: str) -> str:
        """A running instance whose processor has hardly done a thing, with a finding."""
        image = self.ec2.describe_images(Owners=["self"])["Images"] or [self._image()]
        tagged = [{"ResourceType": "instance", "Tags": _listed(tags)}] if tags else []
        made = self.ec2.run_instances(
            ImageId=image[0]["ImageId"], MinCount=1, MaxCount=1, InstanceType=type_, TagSpecifications=tagged
        )
        instance: str = made["Instances"][0]["InstanceId"]
        boto3.client("cloudwatch").put_metric_data(
            Namespace="AWS/EC2",
            MetricData=[
                {
                    "MetricName": "CPUUtilization",
                    "Dimensions": [{"Name": "InstanceId", "Value": instance}],
                    "Timestamp": self.now - timedelta(hours=hours),
                    "Value": 1.0,
                }
                for hours in range(60)
            ],
        )
        return self.found("idle_cpu", instance)

    def _image(self) -> dict[str, str]:
        return {"ImageId": self.ec2.register_image(Name=uuid4().hex, RootDeviceName="/dev/xvda")["ImageId"]}

    def unattached_volume(self, **tags: str) -> str:
        """A volume that has been unattached for long, with a finding."""
        tagged = [{"ResourceType": "volume", "Tags": _listed(tags)}] if tags else []
        made = self.ec2.create_volume(
            AvailabilityZone=f"{REGION}a",
            Size=20,
            VolumeType="gp3",
            Iops=4000,
            Throughput=250,
            Encrypted=True,
            TagSpecifications=tagged,
        )
        self.sql(
            "INSERT INTO lamplighter.unattached_volumes VALUES (:account, :region, :id, :at)",
            account=self.account,
            region=REGION,
            id=made["VolumeId"],
            at=self.now - 30 * DAY,
        )
        return self.found("unattached_volumes", made["VolumeId"])

    def old_snapshot(self, **tags: str) -> str:
        """A snapshot that nothing uses, with a finding."""
        volume = self.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1)["VolumeId"]
        tagged = [{"ResourceType": "snapshot", "Tags": _listed(tags)}] if tags else []
        made = self.ec2.create_snapshot(VolumeId=volume, TagSpecifications=tagged)
        return self.found("old_snapshots", made["SnapshotId"])

    def clear(self) -> None:
        """Forget all findings and most of what they are about."""
        self.sql("DELETE FROM lamplighter.findings")
        for reservation in self.ec2.describe_instances()["Reservations"]:
            self.ec2.terminate_instances(InstanceIds=[one["InstanceId"] for one in reservation["Instances"]])
        for group in self.ec2.describe_security_groups()["SecurityGroups"]:
            if group["GroupName"] != "default":
                self.ec2.delete_security_group(GroupId=group["GroupId"])
        for id_, volume in self.volumes().items():
            if volume["State"] == "available":
                self.ec2.delete_volume(VolumeId=id_)

    def written_to(self, volume: str, at: datetime) -> None:
        """What CloudWatch says of a volume that was attached then."""
        written = {"MetricName": "VolumeWriteOps", "Value": 7, "Timestamp": at}
        dimensions = [{"Name": "VolumeId", "Value": volume}]
        data = [written | {"Dimensions": dimensions}]
        boto3.client("cloudwatch").put_metric_data(Namespace="AWS/EBS", MetricData=data)

    def retain(self, kind: str = "EBS_SNAPSHOT", **said: Any) -> None:
        """A rule of the Recycle Bin."""
        period = {"RetentionPeriodValue": 14, "RetentionPeriodUnit": "DAYS"}
        boto3.client("rbin").create_rule(ResourceType=kind, RetentionPeriod=period, **said)

    def forget_rules(self) -> None:
        """The Recycle Bin keeps no snapshot that is deleted from now on."""
        rbin = boto3.client("rbin")
        for rule in rbin.list_rules(ResourceType="EBS_SNAPSHOT")["Rules"]:
            rbin.delete_rule(Identifier=rule["Identifier"])

    # -- what is there -----------------------------------------------------------------------------------------------

    def tags(self, resource_id: str) -> dict[str, str]:
        """Of a resource."""
        found = self.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [resource_id]}])["Tags"]
        return {tag["Key"]: tag["Value"] for tag in found}

    def tag(self, resource_id: str, **tags: str) -> None:
        """Write tags, as an owner does."""
        self.ec2.create_tags(Resources=[resource_id], Tags=_listed(tags))

    def state(self, instance: str) -> str:
        """Of an instance."""
        found = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return str(found["State"]["Name"])

    def ingress(self, group: str) -> set[tuple[Any, ...]]:
        """Protocol, ports and source of each rule of a group."""
        return {
            (
                rule["IpProtocol"],
                rule.get("FromPort"),
                rule.get("ToPort"),
                rule.get("CidrIpv4") or rule.get("CidrIpv6") or rule.get("PrefixListId"),
            )
            for rule in self.rules(group)
        }

    def rules(self, group: str) -> list[Any]:
        """The rules by which a group lets somebody in, as EC2 has them."""
        found = self.ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
        return [rule for rule in found["SecurityGroupRules"] if not rule["IsEgress"]]

    def volumes(self) -> dict[str, dict[str, Any]]:
        """All that are there."""
        return {volume["VolumeId"]: volume for volume in self.ec2.describe_volumes()["Volumes"]}

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """All of the account's own."""
        found = self.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        return {snapshot["SnapshotId"]: snapshot for snapshot in found}

    def mail(self) -> list[str]:
        """What has come to the alerts topic since the last look."""
        found = self._sqs.receive_message(QueueUrl=self._mailbox, MaxNumberOfMessages=10).get("Messages", ())
        for message in found:
            self._sqs.delete_message(QueueUrl=self._mailbox, ReceiptHandle=message["ReceiptHandle"])
        return [str(json.loads(message["Body"])["Message"]) for message in found]

    # -- runs --------------------------------------------------------------------------------------------------------

    def job(self, job_id: str = "", *, job_type: str = "scan", dry_run: bool = False, **values: Any) -> Job:
        """The row of a run."""
        return Job(
            job_id=job_id or new_job_id(self.now, uuid4().bytes[:10]),
            job_type=job_type,
            status=Status.RUNNING,
            policy=Policy(timeout=timedelta(minutes=15)),
            created_at=self.now,
            run_at=self.now,
            dry_run=dry_run,
            **values,
        )

    def attempt(
        self,
        job: Job,
        remedies: Mapping[str, Remedy],
        *,
        stops: Mapping[int, Stop] | None = None,
        once_planned: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> Report | Unfinished:
        """A run as far as it comes; `once_planned` happens when its plan is made and nothing is done yet."""
        chosen = {"cloud_limits": LIMITS, "cloud_remedies": dict(remedies)} | settings
        run = _Run(self, once_planned, job, settings=parse(chosen, source="a test"), now=self.now, stops=stops or {})
        outcome = cloud_actions.body(run)
        assert isinstance(outcome, Report | Unfinished)
        return outcome

    def act(self, check: str, action: str, *, job: Job | None = None, **said: Any) -> Report:
        """A run to its end, in earnest unless told otherwise, with one remedy that waits no time."""
        settings = {name: said.pop(name) for name in list(said) if name.startswith(("cloud_", "once_"))}
        remedy = Remedy(**{"action": action, "after_days": 0, "apply": True} | said)
        report = self.attempt(job or self.job(), {check: remedy}, **settings)
        assert isinstance(report, Report)
        return report

    def outcomes(self, report: Report) -> dict[str, Entry]:
        """What the run's manifest says, by resource."""
        assert report.manifest
        manifest = verified(self.s3, report.manifest)
        return {entry.key.split("/", 3)[3]: entry for entry in entries(self.s3, self.archive, manifest)}

    def undo(self, done: Report | str, job: Job | None = None, **params: Any) -> Report:
        """Take a run back, by its report or its job, in earnest unless told otherwise."""
        given: dict[str, Any] = {"job_id": done}
        if isinstance(done, Report):
            assert done.manifest
            given = {"manifest": done.manifest.key, "sha256": done.manifest.sha256}
        given = {"dry_run": False} | given | params
        run = ScriptedRun(job or self.job(), settings=Settings(), now=self.now, stops={})
        undone = cloud_undo.handler.body(run, cloud_undo.handler.validated(given))
        assert isinstance(undone, Report)
        return undone


class _Run(ScriptedRun):
    """A run of an account, whose time is that of the account."""

    def __init__(self, account: Account, once_planned: Callable[[], None], *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._account = account
        self._once_planned = once_planned

    def now(self) -> datetime:
        return self._account.now

    def stop(self) -> Stop:
        answer = super().stop()
        if self.asked == 2:  # of the plan of its one region it was asked before
            self._once_planned()
        return answer


_WRITES: Final = ("Create", "Delete", "Put", "Stop", "Start", "Revoke", "Authorize", "Restore", "Publish")


@contextmanager
def writes(*, dies_after: int | None = None) -> Iterator[list[str]]:
    """The writing calls made to AWS so far, in order; the process dies after so many of them."""
    made: list[str] = []
    call: Callable[..., Any] = BaseClient._make_api_call  # type: ignore[attr-defined]

    def counted(client: Any, operation: str, request: Any) -> Any:
        answer = call(client, operation, request)
        if operation.startswith(_WRITES):
            made.append(operation)
            if len(made) == dies_after:
                raise Died
        return answer

    with patch.object(BaseClient, "_make_api_call", counted):
        yield made


@contextmanager
def answering(operation: str, answer: Mapping[str, Any]) -> Iterator[None]:
    """AWS answers an operation like this."""
    call: Callable[..., Any] = BaseClient._make_api_call  # type: ignore[attr-defined]

    def answered(client: Any, asked: str, request: Any) -> Any:
        return answer if asked == operation else call(client, asked, request)

    with patch.object(BaseClient, "_make_api_call", answered):
        yield


@contextmanager
def repeating(operation: str) -> Iterator[None]:
    """AWS is asked for an operation twice: the first answer is lost on its way."""
    call: Callable[..., Any] = BaseClient._make_api_call  # type: ignore[attr-defined]

    def repeated(client: Any, asked: str, request: Any) -> Any:
        if asked == operation:
            call(client, asked, request)
        return call(client, asked, request)

    with patch.object(BaseClient, "_make_api_call", repeated):
        yield


def ssh(*ranges: str) -> dict[str, Any]:
    """A permission for SSH from these ranges."""
    v4 = [{"CidrIp": one} for one in ranges if ":" not in one]
    v6 = [{"CidrIpv6": one} for one in ranges if ":" in one]
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": v4, "Ipv6Ranges": v6}


def _listed(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in (tags or {}).items()]
