"""Reading the ledger's DynamoDB stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamplighter.kernel.ledger.dynamo import from_item
from lamplighter.kernel.ledger.row import Job


def change_of(record: Mapping[str, Any]) -> tuple[Job | None, Job | None]:
    """The job row before and after a stream record (NEW_AND_OLD_IMAGES); None where there was, or is, none."""
    images = record["dynamodb"]
    old, new = images.get("OldImage"), images.get("NewImage")
    return (from_item(old) if old else None), (from_item(new) if new else None)
