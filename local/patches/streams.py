"""DynamoDB streams to Lambda, delivered as on AWS.

MiniStack polls all mappings in one thread, one after the other, so a slow consumer delays the rest; it retries a
failing batch for ever, and ignores ReportBatchItemFailures, BisectBatchOnFunctionError and MaximumRetryAttempts. Here
every mapping has a thread of its own, and these settings hold.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import dynamodb, lambda_svc

POLL_SECONDS = 0.25  # AWS polls a shard four times a second
RETRY_SECONDS = 1.0

_log = logging.getLogger("streams")
_consumed: set[str] = set()


def apply() -> None:
    consume_each_mapping_in_its_own_thread()


def consume_each_mapping_in_its_own_thread() -> None:
    assert hasattr(lambda_svc, "_poll_dynamodb_streams"), "MiniStack's stream poller has moved"
    lambda_svc._poll_dynamodb_streams = _start_new_consumers


def _start_new_consumers() -> bool:
    for account, region, mapping in lambda_svc._iter_all_esms():
        if ":dynamodb:" in mapping.get("EventSourceArn", "") and mapping["UUID"] not in _consumed:
            _consumed.add(mapping["UUID"])
            threading.Thread(target=_consume, args=(account, region, mapping["UUID"]), daemon=True).start()
    return False


def _consume(account: str, region: str, uuid: str) -> None:
    set_request_account_id(account)
    set_request_region(region)
    position: int | None = None
    while mapping := lambda_svc._esms.get(uuid):
        try:
            position, found = _consume_once(mapping, position)
        except Exception:  # noqa: BLE001 - the next poll tries again
            _log.exception("mapping %s", uuid)
            found = False
        if not found:
            time.sleep(POLL_SECONDS)
    _consumed.discard(uuid)


def _consume_once(mapping: dict[str, Any], position: int | None) -> tuple[int | None, bool]:
    """Deliver the next batch: the position after it, and whether there was one."""
    arn = mapping["EventSourceArn"]
    table_name = arn.split(":table/", 1)[1].split("/", 1)[0]
    table = dynamodb._tables.get(table_name)
    if not table or table.get("LatestStreamArn") != arn:
        return position, False
    horizon = dynamodb.stream_start_position(table_name)
    if position is None:
        latest = mapping.get("StartingPosition", "LATEST") == "LATEST"
        position = dynamodb.stream_end_position(table_name) if latest else horizon
    position = max(position, horizon)
    if not mapping.get("Enabled", True):
        return position, False
    batch = dynamodb.stream_records_since(table_name, position, mapping.get("BatchSize", 100))
    if batch:
        _deliver(mapping, lambda_svc._apply_filter_criteria(batch, mapping))
    return position + len(batch), bool(batch)


def _deliver(mapping: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Invoke until every record is done: succeeded, or given up and recorded at the on-failure destination."""
    retries = mapping.get("MaximumRetryAttempts", -1)
    todo = [(records, 0)]
    while todo:
        batch, attempt = todo.pop(0)
        function, _config = lambda_svc._get_func_record_for_qualifier(mapping["FunctionName"], mapping.get("Qualifier"))
        if not batch or function is None or lambda_svc._esms.get(mapping["UUID"]) is None:
            continue
        result = lambda_svc._execute_function(function, {"Records": batch})
        failed = _first_failed(mapping, batch, result)
        if failed is None:
            continue
        rest = batch[failed:]
        if failed:  # a checkpoint: progress was made, so what is left begins anew
            todo.insert(0, (rest, 0))
        elif len(rest) > 1 and mapping.get("BisectBatchOnFunctionError"):
            half = len(rest) // 2
            todo[:0] = [(rest[:half], attempt), (rest[half:], attempt)]
        elif 0 <= retries <= attempt:
            _give_up(mapping, function, rest, result, "RetryAttemptsExhausted")
        elif _too_old(mapping, rest):
            _give_up(mapping, function, rest, result, "MaxRecordAgeExceeded")
        else:
            time.sleep(RETRY_SECONDS)
            todo.insert(0, (rest, attempt + 1))


def _first_failed(mapping: dict[str, Any], batch: list[dict[str, Any]], result: dict[str, Any]) -> int | None:
    """Index of the first record to be retried; None when all succeeded."""
    if result.get("error"):
        return 0
    if "ReportBatchItemFailures" not in mapping.get("FunctionResponseTypes", []):
        return None
    body = result.get("body")
    answer = json.loads(body) if isinstance(body, str) and body else body
    failures = (answer or {}).get("batchItemFailures") or []
    if not failures:
        return None
    places = {record["dynamodb"]["SequenceNumber"]: place for place, record in enumerate(batch)}
    return min(
        places.get(failure.get("itemIdentifier"), 0) for failure in failures
    )  # an unknown id fails the whole batch


def _too_old(mapping: dict[str, Any], batch: list[dict[str, Any]]) -> bool:
    limit = mapping.get("MaximumRecordAgeInSeconds") or -1
    oldest = min(float(record["dynamodb"]["ApproximateCreationDateTime"]) for record in batch)
    return 0 < limit < time.time() - oldest


def _give_up(mapping: dict[str, Any], function: Any, batch: list[Any], result: dict[str, Any], condition: str) -> None:
    _log.warning("%s gave up %d stream records: %s", mapping["FunctionName"], len(batch), condition)
    lambda_svc._send_ddb_stream_failure_record(mapping, function, batch, mapping["EventSourceArn"], result, condition)
