"""`lamplighter.cloud.reader`: what is made of services' answers that no local cloud gives. The others: integration."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.stub import Stubber

from lamplighter.cloud import health, reader
from lamplighter.cloud.answers import UnexpectedAnswer
from lamplighter.cloud.inventory import Inventory
from lamplighter.kernel.cloud import Limits
from lamplighter.kernel.errors import Permanent, Retryable
from tests.inventories import NOW


def read(needs: str, service: str, **answers: dict[str, Any]) -> Inventory:
    """What is read of one field where a service answers each operation once, as given."""
    clients: dict[str, Any] = {name: boto3.client(name) for name in ("ec2", service)}
    with Stubber(clients[service]) as stub:
        for operation, answer in answers.items():
            stub.add_response(operation, answer)
        return read_by(clients, needs)


def read_by(clients: dict[str, Any], needs: str) -> Inventory:
    """What is read of one field by these clients."""
    return reader.read(
        clients.__getitem__,
        account="111122223333",
        region="us-east-1",
        now=NOW,
        limits=Limits(),
        needs=frozenset({needs}),
    )


def test_a_log_group_has_a_class() -> None:
    made = {"creationTime": int(NOW.timestamp() * 1000)}
    groups = [{"logGroupName": "old", **made}, {"logGroupName": "new", "logGroupClass": "DELIVERY", **made}]
    held = read("log_groups", "logs", describe_log_groups={"logGroups": groups})

    assert [(one.id, one.log_class) for one in held.log_groups] == [("old", "STANDARD"), ("new", "DELIVERY")]


@pytest.mark.parametrize(
    ("zones", "site"),
    [
        ([{"ZoneName": "us-east-1a"}, {"ZoneName": "us-east-1b"}], "us-east-1a"),
        ([{"ZoneName": "us-east-1-bos-1a"}], "us-east-1-bos-1a"),
        ([{"ZoneName": "us-east-1a", "OutpostId": "op-1"}], "op-1"),
        ([], ""),
    ],
)
def test_a_load_balancer_is_where_its_zones_are(zones: list[dict[str, str]], site: str) -> None:
    made = {"LoadBalancerArn": "arn", "LoadBalancerName": "web", "Type": "application", "CreatedTime": NOW}
    tags = {"TagDescriptions": [{"ResourceArn": "arn", "Tags": [{"Key": "Owner", "Value": "ada"}]}]}
    described = {"LoadBalancers": [made | {"AvailabilityZones": zones}]}
    held = read("load_balancers", "elbv2", describe_load_balancers=described, describe_tags=tags)

    assert [one.site for one in held.load_balancers] == [site]


# -- answers that are not as they are documented (FAILURES 8) ----------------------------------------------------------

GROUP = '"logGroupName": "old", "creationTime": 1759320000000'
BALANCER = (
    "<LoadBalancerArn>arn</LoadBalancerArn><LoadBalancerName>web</LoadBalancerName><Type>application</Type>"
    "<CreatedTime>2026-10-01T12:00:00Z</CreatedTime>"
)


def balancers(content: str) -> str:
    """As Elastic Load Balancing writes it."""
    operation = "DescribeLoadBalancers"
    return f"<{operation}Response><{operation}Result>{content}</{operation}Result></{operation}Response>"


def answering(service: str, body: str) -> Any:
    """A client whose requests are all answered so, with status 200, below botocore's parsing."""
    client = boto3.client(service, config=Config(retries={"total_max_attempts": 1}))
    raw = SimpleNamespace(stream=lambda **_: iter([body.encode()]))

    def answer(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, 200, {}, raw)

    client.meta.events.register(f"before-send.{client.meta.service_model.service_id.hyphenize()}.*", answer)
    return client


@pytest.mark.parametrize(
    ("needs", "service", "body", "sentence"),
    [
        ("log_groups", "logs", "{}", "DescribeLogGroups: the answer has no logGroups."),
        ("log_groups", "logs", '{"logGroups": null}', "DescribeLogGroups: the answer has no logGroups."),
        ("log_groups", "logs", "<html>Sign in</html>", "DescribeLogGroups: the answer has no logGroups."),
        (
            "log_groups",
            "logs",
            '{"logGroups": [{"logGroupName": "old"}]}',
            "DescribeLogGroups: old has no creationTime.",
        ),
        ("log_groups", "logs", '{"logGroups": [{"creationTime": 1}]}', "DescribeLogGroups: one has no logGroupName."),
        (
            "log_groups",
            "logs",
            f'{{"logGroups": [{{{GROUP.replace("1759320000000", "1e300")}}}]}}',
            "DescribeLogGroups: old has a creationTime that is no moment: 1e+300.",
        ),
        (
            "load_balancers",
            "elbv2",
            "<html><p>Sign in</p></html>",
            "DescribeLoadBalancers: the answer cannot be read (KeyError('DescribeLoadBalancersResult')).",
        ),
        ("load_balancers", "elbv2", balancers(""), "DescribeLoadBalancers: the answer has no LoadBalancers."),
        *(
            (
                "load_balancers",
                "elbv2",
                balancers(
                    f"<LoadBalancers><member>{re.sub(f'<{name}>[^<]*</{name}>', '', BALANCER)}</member></LoadBalancers>"
                ),
                f"DescribeLoadBalancers: {'one' if name == 'LoadBalancerArn' else 'arn'} has no {name}.",
            )
            for name in ("LoadBalancerArn", "LoadBalancerName", "Type", "CreatedTime")
        ),
    ],
)
def test_what_is_another_answer_is_a_gap_with_its_operation_item_and_element(
    needs: str, service: str, body: str, sentence: str
) -> None:
    clients = {"ec2": boto3.client("ec2"), service: answering(service, body)}
    with pytest.raises((Permanent, Retryable)) as refused:
        read_by(clients, needs)
    assert str(refused.value) == f"Nothing of account 111122223333 can be read in us-east-1: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the answer has no InstanceStatuses"),
        ("<instanceStatusSet><item><systemStatus/></item></instanceStatusSet>", "one has no InstanceId"),
        ("<instanceStatusSet><item><instanceId>i-1</instanceId></item></instanceStatusSet>", "i-1 has no status check"),
        (
            "<instanceStatusSet><item><instanceId>i-1</instanceId><systemStatus/></item></instanceStatusSet>",
            "the answer cannot be read",
        ),
    ],
)
def test_a_status_that_is_not_told_is_not_known(content: str, sentence: str) -> None:
    for root in ("DescribeInstanceStatusResponse", "html"):
        with pytest.raises(UnexpectedAnswer, match=rf"^DescribeInstanceStatus: {sentence}"):
            health.statuses(answering("ec2", f"<{root}>{content}</{root}>"))
