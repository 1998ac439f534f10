"""`lamplighter.cloud.reader`: what is made of services' answers that no local cloud gives. The others: integration."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from lamplighter.cloud import reader
from lamplighter.cloud.inventory import Inventory
from lamplighter.kernel.cloud import Limits
from tests.inventories import NOW


def read(needs: str, service: str, **answers: dict[str, Any]) -> Inventory:
    """What is read of one field where a service answers each operation once, as given."""
    clients: dict[str, Any] = {name: boto3.client(name) for name in ("ec2", service)}
    with Stubber(clients[service]) as stub:
        for operation, answer in answers.items():
            stub.add_response(operation, answer)
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
