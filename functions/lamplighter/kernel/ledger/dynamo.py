"""The ledger's table in DynamoDB."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from itertools import batched
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.row import Job, Status, decode, encode, job_key, to_text
from lamplighter.kernel.ledger.store import (
    WAIT_KEY,
    Change,
    Cursor,
    DuplicateJob,
    LockHeld,
    Outcome,
    Page,
    difference,
    expectation,
    frees_lock,
    lock_key,
    lost,
    removal_expectation,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

logger = Logger(child=True)

BATCH: Final = 25
"""Statements of one BatchExecuteStatement (Amazon DynamoDB, "BatchExecuteStatement")."""

READ_BATCH: Final = 100
"""Rows of one BatchGetItem (Amazon DynamoDB, "BatchGetItem")."""

READ_WAIT: Final = 0.1
"""Seconds before rows that were throttled are asked for again."""

CONFLICT_WAITS: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds before another try of a write that met another one; a write takes some ten milliseconds."""


class DynamoStore:
    """The store over the table named `table`."""

    def __init__(self, table: str) -> None:
        self.table = table

    @cached_property
    def _client(self) -> DynamoDBClient:
        dynamodb: DynamoDBClient = client("dynamodb")
        dynamodb.meta.events.register("before-parse.dynamodb.Query", _take_page, unique_id="page")
        return dynamodb

    def create(self, job: Job, *, instead_of: str | None = None) -> None:
        put: dict[str, Any] = {
            "TableName": self.table,
            "Item": to_item(job),
            "ConditionExpression": "attribute_not_exists(pk)",
        }
        if not job.holds_lock:
            try:
                _undisturbed(lambda: self._client.put_item(**put))
            except self._client.exceptions.ConditionalCheckFailedException:
                raise DuplicateJob(job.job_id) from None
            return
        lock: dict[str, Any] = {
            "TableName": self.table,
            "Item": {"pk": {"S": lock_key(job.job_type)}, "holder": {"S": job.job_id}},
            "ConditionExpression": "attribute_not_exists(pk)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if instead_of:
            lock["ConditionExpression"] = "attribute_not_exists(pk) OR holder = :old"
            lock["ExpressionAttributeValues"] = {":old": {"S": instead_of}}
        try:
            self._transact(_part("Put", put), _part("Put", lock))
        except self._client.exceptions.TransactionCanceledException as error:
            row, held = _reasons(error)
            if row.get("Code") == "ConditionalCheckFailed":
                raise DuplicateJob(job.job_id) from None
            if held.get("Code") == "ConditionalCheckFailed":
                raise LockHeld(held["Item"]["holder"]["S"]) from None
            raise

    def get(self, job_id: str) -> Job | None:
        answer = self._client.get_item(TableName=self.table, Key={"pk": {"S": job_key(job_id)}}, ConsistentRead=True)
        return from_item(answer["Item"]) if "Item" in answer else None

    def statuses(self, job_ids: Collection[str]) -> dict[str, Status]:
        found: dict[str, Status] = {}
        wanted: list[Any] = [{"pk": {"S": job_key(job_id)}} for job_id in job_ids]
        while wanted:
            asked: Any = {
                "Keys": wanted[:READ_BATCH],
                "ConsistentRead": True,
                "ProjectionExpression": "job_id, #status",
                "ExpressionAttributeNames": {"#status": "status"},
            }
            answer = self._client.batch_get_item(RequestItems={self.table: asked})
            found |= {item["job_id"]["S"]: Status(item["status"]["S"]) for item in answer["Responses"][self.table]}
            unprocessed: Any = answer["UnprocessedKeys"]
            left = unprocessed.get(self.table, {}).get("Keys", [])
            if left:
                time.sleep(READ_WAIT)
            wanted = [*left, *wanted[READ_BATCH:]]
        return found

    def apply(self, change: Change) -> Job:
        update = self._update(change)
        if frees_lock(change):
            return self._apply_and_unlock(change, update)
        try:
            answer = _undisturbed(lambda: self._client.update_item(**update, ReturnValues="ALL_NEW"))
        except self._client.exceptions.ConditionalCheckFailedException:
            raise lost(change) from None
        return from_item(answer["Attributes"])

    def _apply_and_unlock(self, change: Change, update: dict[str, Any]) -> Job:
        unlock = {
            "TableName": self.table,
            "Key": {"pk": {"S": lock_key(change.old.job_type)}},
            "ConditionExpression": "attribute_not_exists(pk) OR holder = :me",
            "ExpressionAttributeValues": {":me": {"S": change.old.job_id}},
        }
        try:
            self._transact(_part("Update", update), _part("Delete", unlock))
        except self._client.exceptions.TransactionCanceledException as error:
            row, _ = _reasons(error)
            if row.get("Code") == "ConditionalCheckFailed":
                raise lost(change) from None
            raise
        return change.new

    def _transact(self, *parts: Any) -> None:
        _undisturbed(lambda: self._client.transact_write_items(TransactItems=parts))

    def _update(self, change: Change) -> dict[str, Any]:
        diff, expected = difference(change), expectation(change)
        names: dict[str, str] = {}
        values: dict[str, Any] = {}

        def placed(name: str, value: Any, role: str) -> tuple[str, str]:
            names[f"#{name}"], values[f":{role}_{name}"] = name, value
            return f"#{name}", f":{role}_{name}"

        sets = ["{} = {}".format(*placed(name, value, "new")) for name, value in diff.set.items()]
        for name, tail in diff.append.items():
            place, value = placed(name, tail, "tail")
            sets.append(f"{place} = list_append({place}, {value})")
        names |= {f"#{name}": name for name in diff.remove}
        expression = ("SET " + ", ".join(sets) if sets else "") + (
            " REMOVE " + ", ".join(f"#{name}" for name in diff.remove) if diff.remove else ""
        )
        condition = " AND ".join("{} = {}".format(*placed(name, value, "old")) for name, value in expected.items())
        return {
            "TableName": self.table,
            "Key": {"pk": {"S": job_key(change.old.job_id)}},
            **({"UpdateExpression": expression} if expression else {}),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {name: _typed(value) for name, value in values.items()},
        }

    def apply_many(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        plain = [index for index, change in enumerate(changes) if not frees_lock(change)]
        for group in batched(plain, BATCH, strict=False):
            outcomes |= zip(group, self._apply_batch([changes[index] for index in group]), strict=True)
        for index in range(len(changes)):
            if index not in outcomes:  # a transaction of its own
                outcomes[index] = self._apply_single(changes[index])
        return [outcomes[index] for index in range(len(changes))]

    def _apply_batch(self, changes: Sequence[Change]) -> list[Outcome]:
        statements: list[Any] = [self._statement(change) for change in changes]
        answers = self._client.batch_execute_statement(Statements=statements)["Responses"]
        outcomes = []
        for change, answer in zip(changes, answers, strict=True):
            match answer.get("Error", {}).get("Code"):
                case None:
                    outcomes.append(Outcome.WRITTEN)
                case "ConditionalCheckFailed":
                    outcomes.append(Outcome.LOST)
                case _:  # throttled, most likely: on its own it has the client's backoff
                    outcomes.append(self._apply_single(change))
        return outcomes

    def remove_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        statements: list[Any] = [self._removal(job) for job in jobs]
        outcomes = []
        for group in batched(zip(jobs, statements, strict=True), BATCH, strict=False):
            answers = self._client.batch_execute_statement(Statements=[statement for _, statement in group])
            for (job, statement), answer in zip(group, answers["Responses"], strict=True):
                match answer.get("Error", {}).get("Code"):
                    case None:
                        outcomes.append(Outcome.WRITTEN)
                    case "ConditionalCheckFailed":
                        outcomes.append(Outcome.LOST)
                    case _:  # throttled, most likely: on its own it has the client's backoff
                        outcomes.append(self._remove_single(job, statement))
        return outcomes

    def _removal(self, job: Job) -> dict[str, Any]:
        expected = removal_expectation(job)
        clauses = [f'"{name}" IS MISSING' if value is None else f'"{name}" = ?' for name, value in expected.items()]
        values = [job_key(job.job_id), *(value for value in expected.values() if value is not None)]
        return {
            "Statement": f'DELETE FROM "{self.table}" WHERE pk = ? AND {" AND ".join(clauses)}',  # noqa: S608 - names of ours
            "Parameters": [_typed(value) for value in values],
        }

    def _remove_single(self, job: Job, statement: dict[str, Any]) -> Outcome:
        try:
            _undisturbed(lambda: self._client.execute_statement(**statement))
        except self._client.exceptions.ConditionalCheckFailedException:
            return Outcome.LOST
        except self._client.exceptions.ClientError:
            logger.exception("a row could not be removed", extra={"job_id": job.job_id})
            return Outcome.ERROR
        return Outcome.WRITTEN

    def _apply_single(self, change: Change) -> Outcome:
        try:
            self.apply(change)
        except LostLease:
            return Outcome.LOST
        except self._client.exceptions.ClientError:
            logger.exception("a row could not be written", extra={"job_id": change.old.job_id})
            return Outcome.ERROR
        return Outcome.WRITTEN

    def _statement(self, change: Change) -> dict[str, Any]:
        diff, expected = difference(change), expectation(change)
        clauses = [f'SET "{name}" = ?' for name in diff.set]
        clauses += [f'SET "{name}" = list_append("{name}", ?)' for name in diff.append]
        clauses += [f'REMOVE "{name}"' for name in diff.remove]
        where = "".join(f' AND "{name}" = ?' for name in expected)
        parameters = [*diff.set.values(), *diff.append.values(), job_key(change.old.job_id), *expected.values()]
        return {
            "Statement": f'UPDATE "{self.table}" {" ".join(clauses)} WHERE pk = ?{where}',
            "Parameters": [_typed(value) for value in parameters],
        }

    def expired(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        keys = ("live_shard", "expires_at")
        return self._query("by_deadline", keys, f"live#{shard}", since=since, until=until, limit=limit, cursor=cursor)

    def due(
        self, shard: int, until: datetime, *, limit: int, cursor: Cursor | None = None, since: datetime | None = None
    ) -> Page:
        keys = ("due_shard", "run_at")
        return self._query("by_due", keys, f"due#{shard}", since=since, until=until, limit=limit, cursor=cursor)

    def reserve_wait(self, until: datetime, *, earliest: datetime) -> bool:
        try:
            self._client.update_item(
                TableName=self.table,
                Key={"pk": {"S": WAIT_KEY}},
                UpdateExpression="SET #until = :until",
                ConditionExpression="attribute_not_exists(#until) OR #until > :until OR #until < :earliest",
                ExpressionAttributeNames={"#until": "until"},
                ExpressionAttributeValues={":until": {"S": to_text(until)}, ":earliest": {"S": to_text(earliest)}},
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def free_wait(self, until: datetime) -> None:
        with suppress(self._client.exceptions.ConditionalCheckFailedException):
            self._client.update_item(
                TableName=self.table,
                Key={"pk": {"S": WAIT_KEY}},
                UpdateExpression="REMOVE #until",
                ConditionExpression="#until = :until",
                ExpressionAttributeNames={"#until": "until"},
                ExpressionAttributeValues={":until": {"S": to_text(until)}},
            )

    def finished(
        self, status: Status, shard: int, before: datetime, *, limit: int, cursor: Cursor | None = None
    ) -> Page:
        return self._query(
            "by_status", ("status_shard", "finished_at"), f"{status}#{shard}", until=before, limit=limit, cursor=cursor
        )

    def of_type(
        self,
        partition: str,
        *,
        limit: int,
        cursor: Cursor | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page:
        return self._query(
            "by_type",
            ("job_type", "created_at"),
            partition,
            since=since,
            until=until,
            limit=limit,
            cursor=cursor,
            newest_first=True,
        )

    def _query(
        self,
        index: str,
        keys: tuple[str, str],
        value: str,
        *,
        until: datetime | None,
        limit: int,
        cursor: Cursor | None,
        since: datetime | None = None,
        newest_first: bool = False,
    ) -> Page:
        names = {"#key": keys[0]}
        values: dict[str, Any] = {":value": {"S": value}}
        condition = "#key = :value"
        bounds = {f":{name}": {"S": to_text(at)} for name, at in (("since", since), ("until", until)) if at is not None}
        if bounds:
            names["#sort"] = keys[1]
            values |= bounds
            # A key condition takes one comparison of the sort key.
            condition += {
                (":since", ":until"): " AND #sort BETWEEN :since AND :until",
                (":since",): " AND #sort >= :since",
                (":until",): " AND #sort <= :until",
            }[tuple(bounds)]
        start: dict[str, Any] = {"ExclusiveStartKey": cursor} if cursor else {}
        answer = self._client.query(
            TableName=self.table,
            IndexName=index,
            KeyConditionExpression=condition,
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
            Limit=limit,
            ScanIndexForward=not newest_first,
            **start,
        )
        return Page(jobs=tuple(map(from_item, answer["Items"])), next=answer.get("LastEvaluatedKey"))


def _take_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's `before-parse` hook: takes the page as its JSON has it, which botocore would walk value by value to
    the same end. What is put into the second dictionary is added to the parsed response."""
    if response_dict["status_code"] == 200:
        customized_response_dict |= json.loads(response_dict["body"])
        response_dict["body"] = b"{}"


def from_item(item: dict[str, Any]) -> Job:
    """The job of a DynamoDB item (or stream image), typed values and all."""
    return decode({name: _untyped(value) for name, value in item.items()})


def to_item(job: Job) -> dict[str, Any]:
    """The DynamoDB item of a job."""
    return {name: _typed(value) for name, value in encode(job).items()}


# boto3 has its own pair of these, which would import boto3 where a stream record is only read, and take twice the time.
def _typed(value: Any) -> dict[str, Any]:
    """A value of `encode` as DynamoDB spells it."""
    match value:
        case str():
            return {"S": value}
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case list():
            return {"L": [_typed(each) for each in value]}
    return {"M": {name: _typed(each) for name, each in value.items()}}


def _untyped(value: dict[str, Any]) -> Any:
    """What `_typed` spelled."""
    ((kind, content),) = value.items()
    match kind:
        case "S" | "BOOL":
            return content
        case "N":
            return int(content)
        case "L":
            return [_untyped(each) for each in content]
    return {name: _untyped(each) for name, each in content.items()}


def _part(kind: str, request: dict[str, Any]) -> Any:
    return {kind: request}


def _reasons(error: Any) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = error.response["CancellationReasons"]
    return reasons


def _undisturbed[T](write: Callable[[], T]) -> T:
    """The answer to `write`, tried again while another write of the same rows is under way.

    DynamoDB does not queue such a write but rejects it, and boto3 does not retry it (Amazon DynamoDB, "Transaction
    conflict handling"). It says nothing of the row: a lease is lost only when a condition fails.
    """
    from botocore.exceptions import ClientError

    for wait in CONFLICT_WAITS:
        try:
            return write()
        except ClientError as error:
            reasons = {reason.get("Code") for reason in error.response.get("CancellationReasons", ())}
            if (
                error.response["Error"]["Code"] != "TransactionConflictException"
                and "TransactionConflict" not in reasons
            ):
                raise
        time.sleep(wait)
    return write()
