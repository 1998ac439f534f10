"""The ramp of earned trust: how much the first earnest runs over a scope may act on (REQUIREMENTS S3).

The first earnest run acts on at most `FIRST_OBJECTS`, `FIRST_ROWS` or `FIRST_RESOURCES`. The limit rises tenfold 24
hours after a run began that acted on at least one item, unless that run was undone. After an undo, or when the scope's
definition changes, it starts again. Previews, refused runs and failed runs never raise it.

    allowance = ramp.open(ramp.table(), scope, run=job_id, definition=..., now=now, first=FIRST_ROWS, ceiling=None)
    rows = act_on_at_most(allowance.reserve(1000))     # None means no limit
    allowance.acted(rows)                              # once, at the end of a run that completed

A run has one allowance, however often it is continued or retried: the first call of `open` fixes it, and `reserve`
counts what all attempts used. A run that has a plan keeps the allowance in its plan and does not need `reserve`.

Two kinds of items in the jobs table hold the state: `trust#<scope>`, and `trust#<scope>#<job id>` with the allowance of
one run, which expires after `RUN_KEPT`. Each write is conditional on what was read. An item that cannot be read as
`Trust` counts as none: the scope starts at the first step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from uuid import uuid4

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.ledger.row import from_text, to_text

if TYPE_CHECKING:
    from lamplighter.kernel.settings import RuleSettings

logger = Logger(child=True)

FIRST_OBJECTS: Final = 100
FIRST_ROWS: Final = 1_000
FIRST_RESOURCES: Final = 3

FACTOR: Final = 10
"""By how much the limit rises."""
STEP: Final = timedelta(hours=24)
"""How long a limit stays after the first run that acted under it."""
MAX_RAISES: Final = 12
"""No item asks for more: a larger limit in the table is damage."""
SKEW: Final = timedelta(minutes=5)
"""By how much the clocks of two runs may differ. A moment further ahead means that a clock went backwards."""
LATE: Final = timedelta(hours=1)
"""How much earlier than its plan a run may count as begun."""
RUN_KEPT: Final = timedelta(days=90)
"""How long the allowance of a run is kept: as long as the ledger keeps its row."""
LONGEST: Final = 1_000
"""Characters of a scope; of a longer one the key holds a hash. DynamoDB takes 2 048 bytes."""
TRIES: Final = 8
"""Writes that lose against another run before the run gives up."""


# -- the rule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a scope has earned."""

    definition: str
    """`definition_of` what the scope means."""
    limit: int
    """Items that a run may act on; 0 after an undo: the next run starts again."""
    since: datetime
    """When this limit began to apply."""
    acted_at: datetime | None = None
    """When the first run began that acted under this limit and completed."""
    epoch: str = field(default_factory=lambda: uuid4().hex)
    """New with each change of the limit, so that a run raises only the limit that it ran under."""


def definition_of(facts: Mapping[str, Any]) -> str:
    """A hash of what a scope means. `facts` are JSON-able; their order does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def allowed(
    trust: Trust | None, *, definition: str, now: datetime, first: int, ceiling: int | None
) -> tuple[Trust, int]:
    """What a run that begins now may act on, and the trust that it runs under.

    Args:
        trust: what the scope has earned, None for nothing.
        definition: `definition_of` the scope as it is now.
        now: when the run begins.
        first: the limit of the first step.
        ceiling: the configured limit, or None.
    """
    if trust is None or trust.definition != definition or not _is_step(trust.limit, first) or _is_ahead(trust, now):
        trust = Trust(definition=definition, limit=first, since=now)
    elif (
        trust.acted_at is not None
        and now - trust.acted_at >= STEP
        and (ceiling is None or trust.limit < ceiling)
        and _is_step(trust.limit * FACTOR, first)
    ):
        trust = Trust(definition=definition, limit=trust.limit * FACTOR, since=now)
    return trust, trust.limit if ceiling is None else min(trust.limit, ceiling)


def _is_step(limit: int, first: int) -> bool:
    return any(limit == first * FACTOR**raises for raises in range(MAX_RAISES + 1))


def _is_ahead(trust: Trust, now: datetime) -> bool:
    return max(trust.since, trust.acted_at or trust.since) > now + SKEW


def acted(trust: Trust, items: int, now: datetime) -> Trust:
    """The trust after a run completed that began at `now` and acted on so many items."""
    return replace(trust, acted_at=now) if items > 0 and trust.acted_at is None else trust


def undone(trust: Trust, now: datetime) -> Trust:
    """The trust after an undo restored something: the next run starts again."""
    return Trust(definition=trust.definition, limit=0, since=now)


# -- the store -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the table holds of a scope."""

    trust: Trust | None
    """None where there is no item, or a damaged one."""
    version: str | None
    """What a write is conditional on: the item's version, None where it has none."""


class Granted(NamedTuple):
    """The allowance of a run, as its first attempt got it."""

    limit: int
    used: int
    epoch: str
    """Of the trust that the run began under."""


class Table(Protocol):
    """Where trust is kept."""

    def read(self, scope: str) -> Stored:
        """The scope's item, consistently."""
        ...

    def write(self, scope: str, trust: Trust, *, version: str | None) -> bool:
        """Write the item if its version is still this one; False if it is not."""
        ...

    def grant(self, scope: str, run: str, limit: int, *, epoch: str, expires: datetime) -> Granted:
        """Give the run an allowance unless it has one; answers the one that it has."""
        ...

    def use(self, scope: str, run: str, items: int, *, limit: int) -> bool:
        """Count `items` as used by the run, unless that exceeds `limit`. Negative `items` are returned."""
        ...


@dataclass(slots=True, kw_only=True)
class Allowance:
    """What one run may act on, in all of its attempts."""

    limit: int | None
    """Items; None means no limit."""
    used: int
    """By earlier attempts and by this one, as reserved."""
    _table: Table = field(repr=False)
    _scope: str
    _run: str
    _now: datetime
    _trust: Trust | None
    """What the scope has earned; None where the ramp does not apply."""
    _epoch: str
    """Of the trust that the run began under."""

    @property
    def left(self) -> int | None:
        """Items that the run may still act on; None means no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)

    def reserve(self, items: int) -> int:
        """Reserves up to `items` before the run acts on them; answers how many, 0 when the allowance is used up.

        A crash leaves them used: what an attempt did without recording it counts.
        """
        if self.limit is None:
            return items
        for _ in range(TRIES):
            items = min(items, self.limit - self.used)
            if items <= 0:
                return 0
            if self._table.use(self._scope, self._run, items, limit=self.limit):
                self.used += items
                return items
            self.used = self._table.grant(
                self._scope, self._run, self.limit, epoch=self._epoch, expires=self._now + RUN_KEPT
            ).used
        return 0

    def reserve_all(self) -> int | None:
        """Reserves what is left; None means no limit."""
        return None if self.left is None else self.reserve(self.left)

    def give_back(self, items: int) -> None:
        """Returns what was reserved and certainly not acted on."""
        if self.limit is not None and items > 0 and self._table.use(self._scope, self._run, -items, limit=self.limit):
            self.used -= items

    def acted(self, items: int) -> None:
        """Records that the run completed and acted on so many items. Not for failed, refused or cancelled runs."""
        if self._trust is None or self.limit != self._trust.limit:
            return  # under a lower ceiling it has not shown what it does under this limit
        for _ in range(TRIES):
            found = self._table.read(self._scope)
            if found.trust is None or found.trust.epoch != self._epoch:
                return  # it was undone, raised or redefined since this run began
            after = acted(found.trust, items, self._now)
            if after == found.trust or self._table.write(self._scope, after, version=found.version):
                return
        logger.warning("the ramp was not raised: other runs kept writing", extra={"scope": self._scope})


def open(
    table: Table,
    scope: str,
    *,
    run: str,
    definition: str,
    now: datetime,
    first: int,
    ceiling: int | None,
    applies: bool = True,
) -> Allowance:
    """The allowance of an earnest run. Call it once the governor accepted the run, before the first action.

    Args:
        table: `table()`.
        scope: `of_objects`, `of_rule` or `of_check`.
        run: the job's id, the same in each attempt.
        definition: `definition_of` the scope.
        now: when the run began; see `began`.
        first: the limit of the first step.
        ceiling: the configured limit, or None.
        applies: False where the settings lift the ramp; the ceiling still holds.

    Raises:
        Permanent: the table may not be read or written.
        Retryable: the table cannot be reached now, or other runs keep writing.
    """
    trust, limit = (
        (None, ceiling)
        if not applies
        else _opened(table, scope, definition=definition, now=now, first=first, ceiling=ceiling)
    )
    used, epoch = 0, ""
    if limit is not None:
        granted = table.grant(scope, run, limit, epoch=trust.epoch if trust else "", expires=now + RUN_KEPT)
        limit, used, epoch = min(limit, granted.limit), granted.used, granted.epoch
    return Allowance(limit=limit, used=used, _table=table, _scope=scope, _run=run, _now=now, _trust=trust, _epoch=epoch)


def _opened(
    table: Table, scope: str, *, definition: str, now: datetime, first: int, ceiling: int | None
) -> tuple[Trust, int]:
    for _ in range(TRIES):
        found = table.read(scope)
        trust, limit = allowed(found.trust, definition=definition, now=now, first=first, ceiling=ceiling)
        if trust == found.trust or table.write(scope, trust, version=found.version):
            return trust, limit
    raise Retryable(f"The ramp of {scope} is written by other runs all the time; nothing was touched.")


def look(
    table: Table,
    scope: str,
    *,
    definition: str,
    now: datetime,
    first: int,
    ceiling: int | None,
    applies: bool = True,
) -> int | None:
    """What an earnest run that begins now would be allowed; for previews, writes nothing. Arguments as `open`."""
    if not applies:
        return ceiling
    _, limit = allowed(table.read(scope).trust, definition=definition, now=now, first=first, ceiling=ceiling)
    return limit


def reset(table: Table, scope: str, now: datetime) -> None:
    """The scope starts again. An undo calls it right before it restores the first item of a run of the scope.

    Raises:
        Permanent: the table may not be read or written.
        Retryable: the table cannot be reached now, or other runs keep writing.
    """
    for _ in range(TRIES):
        found = table.read(scope)
        if found.trust is None:
            return  # nothing was earned
        if table.write(scope, undone(found.trust, now), version=found.version):
            return
    raise Retryable(f"The ramp of {scope} is written by other runs all the time; nothing was restored.")


def held_back(planned: int, limit: int | None) -> int:
    """How many of the planned items the ramp or the ceiling holds back."""
    return 0 if limit is None else max(0, planned - limit)


# -- scopes ----------------------------------------------------------------------------------------------------------


def of_objects(archive_scope: str) -> str:
    """The scope of a bucket and folder, from the scope of its manifests (`Archive.scope`)."""
    return f"objects/{archive_scope}"


def of_rule(rule: str) -> str:
    """The scope of a retention rule, or of another job that changes the owner's rows."""
    return f"rows/{rule}"


def of_check(check: str, account: str) -> str:
    """The scope of a check's remedy in an account."""
    return f"cloud/{check}/{account}"


def of_rows(rule: str, definition: Mapping[str, Any], given: RuleSettings) -> dict[str, Any]:
    """What `open` and `look` take for the owner's rows.

    Args:
        rule: the name of the rule, or of another phase that changes rows.
        definition: what it means: its table, clock and `where`.
        given: its settings.
    """
    return {
        "table": table(),
        "scope": of_rule(rule),
        "definition": definition_of(definition),
        "first": FIRST_ROWS,
        "ceiling": given.max_rows,
        "applies": given.ramp,
    }


def began(job_id: str, now: datetime) -> datetime:
    """When a run began as far as the ramp is concerned: the moment in its id, but at most `LATE` before `now`.

    The id of a scheduled run holds the scheduled moment. With a schedule of once a day the limit therefore rises every
    day, even where a run comes to its plan some seconds earlier than the run before.
    """
    from ulid import ULID

    try:
        return min(max(ULID.from_str(job_id).datetime, now - LATE), now)
    except ValueError:
        return now


# -- DynamoDB --------------------------------------------------------------------------------------------------------


def table() -> Table:
    """The jobs table of the environment."""
    return DynamoTable(os.environ["JOBS_TABLE"])


class DynamoTable:
    """Trust in the jobs table."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, scope: str) -> Stored:
        """As `Table.read`."""
        answer = self._call("GetItem", client("dynamodb").get_item, Key=_key(scope), ConsistentRead=True)
        item = answer.get("Item")
        if item is None:
            return Stored(trust=None, version=None)
        version = item.get("version", {}).get("S")
        try:
            return Stored(trust=_trust(item), version=version)
        except (KeyError, ValueError, TypeError, AttributeError):
            logger.error("an item of the ramp is damaged: its scope starts again", extra={"scope": scope})
            return Stored(trust=None, version=version)

    def write(self, scope: str, trust: Trust, *, version: str | None) -> bool:
        """As `Table.write`."""
        item = _key(scope) | {
            "definition": {"S": trust.definition},
            "limit": {"N": str(trust.limit)},
            "since": {"S": to_text(trust.since)},
            "epoch": {"S": trust.epoch},
            "version": {"S": uuid4().hex},
        }
        if trust.acted_at is not None:
            item["acted_at"] = {"S": to_text(trust.acted_at)}
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(version)"}
        if version is not None:
            condition = {
                "ConditionExpression": "version = :version",
                "ExpressionAttributeValues": {":version": {"S": version}},
            }
        return self._call("PutItem", client("dynamodb").put_item, Item=item, **condition) is not _LOST

    def grant(self, scope: str, run: str, limit: int, *, epoch: str, expires: datetime) -> Granted:
        """As `Table.grant`."""
        answer = self._call(
            "UpdateItem",
            client("dynamodb").update_item,
            Key=_key(scope, run),
            UpdateExpression=(
                "SET granted = if_not_exists(granted, :limit), used = if_not_exists(used, :none),"
                " epoch = if_not_exists(epoch, :epoch), #ttl = :ttl"
            ),
            ExpressionAttributeNames={"#ttl": "ttl"},
            ExpressionAttributeValues={
                ":limit": {"N": str(limit)},
                ":none": {"N": "0"},
                ":epoch": {"S": epoch},
                ":ttl": {"N": str(int(expires.timestamp()))},
            },
            ReturnValues="ALL_NEW",
        )
        item = answer["Attributes"]
        try:
            return Granted(int(item["granted"]["N"]), int(item["used"]["N"]), item["epoch"]["S"])
        except (KeyError, ValueError):
            logger.error("the allowance of a run is damaged: it acts on nothing", extra={"scope": scope, "run": run})
            return Granted(0, 0, "")

    def use(self, scope: str, run: str, items: int, *, limit: int) -> bool:
        """As `Table.use`."""
        answer = self._call(
            "UpdateItem",
            client("dynamodb").update_item,
            Key=_key(scope, run),
            UpdateExpression="SET used = used + :items",
            ConditionExpression="used <= :most",
            ExpressionAttributeValues={":items": {"N": str(items)}, ":most": {"N": str(limit - max(items, 0))}},
        )
        return answer is not _LOST

    def _call(self, operation: str, call: Any, **arguments: Any) -> dict[str, Any]:
        """The answer, or `_LOST` where the condition failed.

        Raises:
            Permanent: the call is not allowed, or there is no such table.
            Retryable: it failed for another reason.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = call(TableName=self._name, **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ConditionalCheckFailedException":
                return _LOST
            if code in {"AccessDeniedException", "ResourceNotFoundException"}:
                raise Permanent(
                    f"The ramp needs dynamodb:{operation} on the table {self._name} ({code}); nothing was touched."
                ) from error
            raise Retryable(f"The ramp cannot use the table {self._name} now: {error}") from error
        except BotoCoreError as error:
            raise Retryable(f"The ramp cannot use the table {self._name} now: {error}") from error
        return answer


_LOST: Final[dict[str, Any]] = {}


def _key(scope: str, *run: str) -> dict[str, Any]:
    if len(scope) > LONGEST:
        scope = hashlib.sha256(scope.encode()).hexdigest()
    return {"pk": {"S": "#".join(("trust", scope, *run))}}


def _trust(item: Mapping[str, Any]) -> Trust:
    """Raises KeyError, ValueError, TypeError or AttributeError if the item is damaged."""
    acted_at = item.get("acted_at")
    return Trust(
        definition=item["definition"]["S"],
        limit=int(item["limit"]["N"]),
        since=_moment(item["since"]),
        acted_at=None if acted_at is None else _moment(acted_at),
        epoch=item["epoch"]["S"],
    )


def _moment(value: Mapping[str, str]) -> datetime:
    moment = from_text(value["S"])
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return moment
