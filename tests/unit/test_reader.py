"""`lamplighter.cloud.reader`: what is made of services' answers that no local cloud gives. The others: integration."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.stub import Stubber

from lamplighter.cloud import reader
from lamplighter.kernel.cloud import Limits
from tests.inventories import NOW


def test_a_log_group_has_a_class() -> None:
    clients: dict[str, Any] = {name: boto3.client(name) for name in ("ec2", "logs")}
    made = {"creationTime": int(NOW.timestamp() * 1000)}
    groups = [{"logGroupName": "old", **made}, {"logGroupName": "new", "logGroupClass": "DELIVERY", **made}]
    with Stubber(clients["logs"]) as stub:
        stub.add_response("describe_log_groups", {"logGroups": groups}, {"limit": 50})
        held = reader.read(
            clients.__getitem__,
            account="111122223333",
            region="us-east-1",
            now=NOW,
            limits=Limits(),
            needs=frozenset({"log_groups"}),
        )

    assert [(one.id, one.log_class) for one in held.log_groups] == [("old", "STANDARD"), ("new", "DELIVERY")]
