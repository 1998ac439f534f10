"""Reading the ledger's DynamoDB stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import json_object, shown
from lamplighter.kernel.ledger.dynamo import from_item
from lamplighter.kernel.ledger.row import Job


def records_of(event: object) -> list[dict[str, Any]]:
    """The records of a batch that the stream delivers.

    Raises:
        Permanent: the event is none.
    """
    records = json_object(event, "a batch of the job table's stream").get("Records")
    if not isinstance(records, list) or not all(map(_is_record, records)):
        raise Permanent(f"Records: takes a list of stream records with their images, got {shown(records)}.")
    return records


def _is_record(record: object) -> bool:
    match record:
        case {"eventID": str(), "dynamodb": {"SequenceNumber": str(), **images}}:
            return all(isinstance(images.get(name, {}), dict) for name in ("OldImage", "NewImage"))
    return False


def change_of(record: Mapping[str, Any]) -> tuple[Job | None, Job | None]:
    """The job row before and after a stream record (NEW_AND_OLD_IMAGES); None where there was, or is, none."""
    images = record["dynamodb"]
    old, new = images.get("OldImage"), images.get("NewImage")
    return (from_item(old) if old else None), (from_item(new) if new else None)
