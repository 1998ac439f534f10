"""Alerts to the SNS topic, at most about once for each key: a condition that lasts is told of once.

Names, tags and errors come from outside. They are flattened and cut before they enter an alert: else a tag could write
lines, hide text or turn its direction in a mail that comes from the owner's own stack.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.ledger.ledger import utc_now

logger = Logger(child=True)
QUIET: Final = timedelta(days=7)
"""How long a key stays told; a condition that still lasts then is told of again."""

NAME: Final = 256
"""Characters of a name or tag in an alert; a tag's value has no more (AWS, "Tag naming limits and requirements")."""
LINE: Final = 2_000
MESSAGE: Final = 60_000
"""Characters of a line and of a message; SNS takes 256 KiB, and a character has up to four bytes ("Publish")."""
SUBJECT: Final = 100
"""Characters of a subject, all of them printable ASCII (SNS, "Publish")."""


def alert(key: str, *, subject: str, message: str | Iterable[str]) -> bool:
    """Publish an alert unless one with `key` went out within `QUIET`; whether it was published.

    Marked after it is sent: a crash in between repeats it, which is better than losing it.

    Args:
        key: names the condition.
        subject: what is the matter; it is flattened and cut.
        message: one line, or several; each is flattened and cut.
    """
    dynamodb, table = client("dynamodb"), os.environ["JOBS_TABLE"]
    now = int(utc_now().timestamp())
    told = dynamodb.get_item(TableName=table, Key={"pk": {"S": f"ALERT#{key}"}}, ConsistentRead=True).get("Item")
    if told and int(told["ttl"]["N"]) > now:
        return False
    lines = [message] if isinstance(message, str) else message
    text = cut("\n".join(flat(line, LINE) for line in lines), MESSAGE)
    logger.error(flat(subject), extra={"alert": key, "detail": text})
    client("sns").publish(
        TopicArn=os.environ["ALERTS_TOPIC_ARN"],
        Subject=flat(f"[{os.environ['STACK_NAME']}] {subject}", SUBJECT).encode("ascii", "replace").decode(),
        Message=text,
    )
    until = now + int(QUIET.total_seconds())
    dynamodb.put_item(TableName=table, Item={"pk": {"S": f"ALERT#{key}"}, "ttl": {"N": str(until)}})
    return True


def flat(text: str, limit: int = NAME) -> str:
    """Text from outside as part of one line: control characters and line ends become spaces, what is not seen goes.

    What goes is Unicode's category Cf: overrides of the direction, zero-width characters, tags.
    """
    if not text.isprintable():
        text = "".join(_SEEN.get(unicodedata.category(each), each) for each in text)
    return cut(text, limit)


_SEEN: Final = {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "\ufffd"}
"""What stands for a character, by its category."""


def cut(text: str, limit: int) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def resolve(key: str) -> bool:
    """Forget that `key` was told of, since its condition ended; whether it had been told of."""
    gone = client("dynamodb").delete_item(
        TableName=os.environ["JOBS_TABLE"], Key={"pk": {"S": f"ALERT#{key}"}}, ReturnValues="ALL_OLD"
    )
    return "Attributes" in gone
