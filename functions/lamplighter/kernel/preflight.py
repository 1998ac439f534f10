"""What a preflight says: items with a severity, and the verdict that follows from them (REQUIREMENTS O4).

A domain has a module `preflight` with `part(look: Look) -> Iterator[Item]`. The job `preflight` runs those of
`catalogue.PREFLIGHTS`. A part only reads. What it cannot read is an item, and the other parts run all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from lamplighter.kernel.errors import Permanent, Retryable, unreadable
from lamplighter.kernel.notify import flat
from lamplighter.kernel.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

SENTENCE: Final = 1_000
"""Characters of a sentence: names of tables and objects are the owner's, and may be long."""
LOCK: Final = timedelta(seconds=1)
"""How long a statement waits for a table that somebody has locked."""


class Severity(StrEnum):
    """How bad an item is."""

    BLOCKED = "blocked"
    """What the settings apply, or what Lamplighter itself needs, would be refused."""
    WARNING = "warning"
    """It works today, or only previews; it fails or surprises once the settings apply it."""
    NOTE = "note"
    """Nothing is wrong."""

    @classmethod
    def of_fault(cls, *, applied: bool) -> Severity:
        """Of what would refuse an action: blocked where the settings apply it."""
        return cls.BLOCKED if applied else cls.WARNING


class Verdict(StrEnum):
    """What the items say together."""

    READY = "ready"
    WARNINGS = "ready with warnings"
    BLOCKED = "blocked"


class Item(BaseModel):
    """One thing that an owner has to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    name: str
    """What it is about, as the settings call it: `retention.rules.sessions`, `media.references`, a bucket."""
    sentence: str
    advice: str = ""
    """What to do; empty where there is nothing to do."""
    facts: dict[str, Any] = {}
    """Numbers behind the sentence, JSON-able."""
    settings: dict[str, Any] | None = None
    """A valid document of settings to start from. It never applies anything by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a part of the preflight may use."""

    settings: Settings
    now: datetime
    engine: Engine | None
    """None where there is no database, or it cannot be reached; an item of the job says why."""
    host: str
    """Of the database; empty where there is none."""
    s3: Any
    environment: Mapping[str, str]
    left: Callable[[], timedelta]
    """How much time is left for the whole preflight; none once the run is to stop."""

    @contextmanager
    def reading(self, *, statement: timedelta) -> Iterator[Connection]:
        """A read-only transaction whose statements take at most so long, and that waits at most `LOCK` for a lock."""
        from lamplighter.kernel.database import bound_statements, one_snapshot

        assert self.engine is not None, "a part asks whether there is a database"
        with self.engine.connect() as connection:  # rolls back at the end, also what a statement has ended already
            one_snapshot(connection)
            bound_statements(connection, statement=statement, lock=LOCK)
            yield connection


@dataclass(frozen=True, slots=True)
class Price:
    """What a GB (10^9 bytes) of storage costs a month."""

    usd: float
    source: str


RDS_STORAGE: Final = Price(
    0.115, "Amazon RDS for PostgreSQL Pricing, gp3, one zone, us-east-1; deleting shrinks no volume"
)
AURORA_STORAGE: Final = Price(0.10, "Amazon Aurora Pricing, Standard, us-east-1")
S3_STORAGE: Final = Price(0.023, "Amazon S3 Pricing, Standard, first 50 TB, us-east-1")


def storage_price(host: str) -> Price | None:
    """What the database's storage costs, if its host says that AWS bills it; None where that is unknown."""
    if not re.search(r"\.rds\.amazonaws\.com(\.cn)?$", host):
        return None
    return AURORA_STORAGE if ".cluster-" in host else RDS_STORAGE


def not_reached(name: str) -> Item:
    """That the time was over before something was looked at."""
    return Item(
        severity=Severity.WARNING,
        name=name,
        sentence="This was not looked at, because the time of the preflight was over.",
        advice="Preview the job itself, or name fewer rules and columns.",
    )


type Part = Callable[[Look], Iterable[Item]]


def verdict(severities: Collection[Severity]) -> Verdict:
    """What items of these severities say together."""
    if Severity.BLOCKED in severities:
        return Verdict.BLOCKED
    return Verdict.WARNINGS if Severity.WARNING in severities else Verdict.READY


def explained(error: BaseException) -> str:
    """An error in one sentence, without a stack trace and without values of rows."""
    from sqlalchemy.exc import DBAPIError

    if lookup := unreadable(error):
        return str(lookup)
    if isinstance(error, DBAPIError):
        from lamplighter.kernel.database import reason

        return sentence(f"The database answers: {reason(error.orig or error)}")
    return sentence(str(error) or type(error).__name__)


def sentence(text: str) -> str:
    """One line of bounded length that ends with a full stop."""
    return f"{flat(text, SENTENCE).strip().rstrip('.')}."


def failures() -> tuple[type[Exception], ...]:
    """What looking may end with: refusals of AWS or the database, and our own sentences."""
    from botocore.exceptions import BotoCoreError, ClientError
    from sqlalchemy.exc import SQLAlchemyError

    return (Permanent, Retryable, BotoCoreError, ClientError, SQLAlchemyError)


def amount(size: float) -> str:
    """Bytes as people read them, in units of 1 000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes any size")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def period(seconds: float) -> str:
    """A duration as people read it; below a second, that."""
    if seconds < 1:
        return "less than a second"
    for unit, size in (("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 2 * size:
            return counted(round(seconds / size), unit)
    return counted(round(seconds), "second")
