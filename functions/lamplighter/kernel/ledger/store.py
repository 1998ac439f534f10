"""The ledger's table in DynamoDB: fenced conditional writes, sparse sharded indexes, singleton locks.

Each write says what it expects of the row it read (`FENCE`), so a writer that was overtaken changes nothing. The
in-memory store of the tests keeps the same contract and runs through the same test suite.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from itertools import batched
from typing import TYPE_CHECKING, Any, Final, Protocol

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.row import FIELDS, SHARDS, Job, Status, decode, encode, job_key, to_text

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

logger = Logger(child=True)

FENCE: Final = ("status", "attempt", "continuation", "released")
"""What every write demands to find unchanged (REQUIREMENTS K2)."""

BATCH: Final = 25
"""Statements of one BatchExecuteStatement (Amazon DynamoDB, "BatchExecuteStatement")."""

CONFLICT_WAITS: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds before another try of a write that met another one; a write takes some ten milliseconds."""

Cursor = dict[str, Any]
"""Where a page ended: give it back to get the next one. JSON-able."""


class DuplicateJob(Exception):
    """The job exists already; the row is unchanged."""


class LockHeld(Exception):
    """The singleton's lock belongs to another job."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of an index query."""

    jobs: tuple[Job, ...]
    next: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row's old and new version; `unchanged` names attributes beside the fence that must be as read."""

    old: Job
    new: Job
    unchanged: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of one change among many."""

    WRITTEN = "written"
    LOST = "lost"
    ERROR = "errors"


class Store(Protocol):
    """What the ledger needs of its table."""

    def create(self, job: Job, *, instead_of: str | None = None) -> None:
        """Write a new row, and take its lock if the type is a singleton (from job `instead_of`, if given).

        Raises:
            DuplicateJob: the job_id exists.
            LockHeld: another job holds the lock.
        """
        ...

    def get(self, job_id: str) -> Job | None:
        """The row as of now (strongly consistent), or None."""
        ...

    def apply(self, change: Change) -> Job:
        """Write the difference and return the row as it then is; a singleton's end frees its lock in the same write.

        Raises:
            LostLease: the row is not as `change.old` says.
        """
        ...

    def apply_many(self, changes: Sequence[Change]) -> list[Outcome]:
        """Write many differences, each on its own and fenced like `apply`; one's failure does not stop the rest."""
        ...

    def expired(self, shard: int, now: datetime, *, limit: int, cursor: Cursor | None = None) -> Page:
        """Live jobs of a shard whose `expires_at` has come, longest overdue first; nothing else is read."""
        ...

    def due(self, shard: int, now: datetime, *, limit: int, cursor: Cursor | None = None) -> Page:
        """Waiting jobs of a shard whose `run_at` has come, longest due first."""
        ...

    def finished(
        self, status: Status, shard: int, before: datetime, *, limit: int, cursor: Cursor | None = None
    ) -> Page:
        """Jobs of a terminal status and shard that finished before a moment, oldest first."""
        ...

    def of_type(self, job_type: str, *, limit: int, cursor: Cursor | None = None) -> Page:
        """Jobs of a type, newest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a change writes: attributes set, removed, and lists that only grow."""

    set: dict[str, Any]
    remove: tuple[str, ...]
    append: dict[str, list[Any]]


_GROWING: Final = ("errors", "rescues")


def difference(change: Change) -> Difference:
    """The attributes in which the two versions differ. A growing list is appended to, so a row read through an
    index, which lacks its older entries, can still be changed."""
    names = [name for name in FIELDS if getattr(change.old, name) is not getattr(change.new, name)]
    old, new = encode(change.old, names), encode(change.new, names)
    append = {name: new[name][len(old[name]) :] for name in _GROWING if len(new.get(name, ())) > len(old.get(name, ()))}
    return Difference(
        set={name: value for name, value in new.items() if name not in _GROWING and old.get(name) != value},
        remove=tuple(name for name in old if name not in new),
        append=append,
    )


def expectation(change: Change) -> dict[str, Any]:
    """The attributes and values that the row must still have."""
    names = (*FENCE, *change.unchanged)
    old = encode(change.old, FENCE)
    return {name: old[name] for name in names}


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
        if not job.policy.singleton:
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

    def apply(self, change: Change) -> Job:
        update = self._update(change)
        if _frees_lock(change):
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
        plain = [index for index, change in enumerate(changes) if not _frees_lock(change)]
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

    def expired(self, shard: int, now: datetime, *, limit: int, cursor: Cursor | None = None) -> Page:
        return self._query(
            "by_deadline", ("live_shard", "expires_at"), f"live#{shard}", until=now, limit=limit, cursor=cursor
        )

    def due(self, shard: int, now: datetime, *, limit: int, cursor: Cursor | None = None) -> Page:
        return self._query("by_due", ("due_shard", "run_at"), f"due#{shard}", until=now, limit=limit, cursor=cursor)

    def finished(
        self, status: Status, shard: int, before: datetime, *, limit: int, cursor: Cursor | None = None
    ) -> Page:
        return self._query(
            "by_status", ("status_shard", "finished_at"), f"{status}#{shard}", until=before, limit=limit, cursor=cursor
        )

    def of_type(self, job_type: str, *, limit: int, cursor: Cursor | None = None) -> Page:
        return self._query(
            "by_type", ("job_type", "created_at"), job_type, until=None, limit=limit, cursor=cursor, newest_first=True
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
        newest_first: bool = False,
    ) -> Page:
        names = {"#key": keys[0]}
        values: dict[str, Any] = {":value": {"S": value}}
        condition = "#key = :value"
        if until is not None:
            names["#sort"], values[":until"] = keys[1], {"S": to_text(until)}
            condition += " AND #sort <= :until"
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


def lock_key(job_type: str) -> str:
    """The partition key of a singleton type's lock (REQUIREMENTS K3)."""
    return f"LOCK#{job_type}"


def shards() -> range:
    """All shards of the sharded indexes."""
    return range(SHARDS)


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


def _frees_lock(change: Change) -> bool:
    return change.old.policy.singleton and change.new.status.terminal and not change.old.status.terminal


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


def lost(change: Change) -> LostLease:
    """The error of a change whose row had moved on."""
    old = change.old
    return LostLease(
        f"Job {old.job_id} moved on from {old.status} at attempt {old.attempt}.{old.continuation}: nothing was changed."
    )
