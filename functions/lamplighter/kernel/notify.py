"""Alerts to the SNS topic, at most about once for each key: a condition that lasts is told of once."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.ledger.ledger import utc_now

logger = Logger(child=True)
QUIET: Final = timedelta(days=7)
"""How long a key stays told; a condition that still lasts then is told of again."""


def alert(key: str, *, subject: str, message: str) -> bool:
    """Publish an alert unless one with `key` went out within `QUIET`; whether it was published.

    Marked after it is sent: a crash in between repeats it, which is better than losing it.
    """
    dynamodb, table = client("dynamodb"), os.environ["JOBS_TABLE"]
    now = int(utc_now().timestamp())
    told = dynamodb.get_item(TableName=table, Key={"pk": {"S": f"ALERT#{key}"}}, ConsistentRead=True).get("Item")
    if told and int(told["ttl"]["N"]) > now:
        return False
    logger.error(subject, extra={"alert": key, "detail": message})
    client("sns").publish(
        TopicArn=os.environ["ALERTS_TOPIC_ARN"],
        Subject=f"[{os.environ['STACK_NAME']}] {subject}"[:100],
        Message=message,
    )
    until = now + int(QUIET.total_seconds())
    dynamodb.put_item(TableName=table, Item={"pk": {"S": f"ALERT#{key}"}, "ttl": {"N": str(until)}})
    return True


def resolve(key: str) -> bool:
    """Forget that `key` was told of, since its condition ended; whether it had been told of."""
    gone = client("dynamodb").delete_item(
        TableName=os.environ["JOBS_TABLE"], Key={"pk": {"S": f"ALERT#{key}"}}, ReturnValues="ALL_OLD"
    )
    return "Attributes" in gone
