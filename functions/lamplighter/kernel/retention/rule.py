"""What a rule says, and what counting and changing answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from lamplighter.kernel.retention.where import BadWhere, check, reads_tables

type Stop = Literal["cancelled", "out_of_time", "ceiling"] | None
type ClockUnit = Literal["timestamp", "date", "seconds", "milliseconds"]
"""How the values of a clock are read: moments, UTC days, or counts since 1970-01-01T00:00:00Z."""


@dataclass(frozen=True, slots=True)
class Delete:
    """The rows are deleted."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The rows are moved to another table, which has at least the same columns, of types that keep their values."""

    into: str
    """`table` or `schema.table`."""


@dataclass(frozen=True, slots=True)
class Set:
    """The rows stay and get these values; one that has them all is not changed again."""

    values: Mapping[str, object]
    """By column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The table that the rows of a rule refer to, with or without a foreign key (REQUIREMENTS C16)."""

    table: str
    """`table` or `schema.table`."""
    column: str
    """Of the rule's table: it names the parent. A row with NULL, 0, -1, an empty text or the nil UUID is no orphan."""
    key: str = "id"
    """The column of the parent that it names."""


class BadRule(ValueError):
    """A rule contradicts itself."""

    def __init__(self, name: str, field: str, reason: str) -> None:
        super().__init__(f"{name}: {field} {reason}.")
        self.field = field
        """The field of the rule that is at fault."""
        self.reason = reason
        """What is wrong with it, without the name and the full stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which rows of a table are too old, and what becomes of them.

    A row is due when its clock is more than `keep` before now, its parent is gone, and `where` holds. A clock that is
    NULL, infinite or before 1990 is never due.

    Raises:
        BadRule: the rule contradicts itself.
    """

    name: str
    table: str
    """`table` or `schema.table`, as the database spells it; partitions are included."""
    clock: str | None
    """The column that says from when the row ages. None, for a `Set` or an `orphan_of` only: age does not matter."""
    clock_unit: ClockUnit = "timestamp"
    """How the clock's values are read. `timestamp` reads a timestamp (without time zone: in UTC) or a date. A date
    stands for its whole UTC day, an integer for its whole second or millisecond: a row is due when that is over."""
    keep: timedelta = timedelta(0)
    """How long a row is kept unless the settings say otherwise."""
    floor: timedelta = timedelta(0)
    """No setting and no caller can keep rows for less."""
    where: str = "true"
    """What else must hold: one SQL expression over the row, which reads other tables inside EXISTS only. `:cutoff` is
    the moment before which clocks are due, a `timestamptz`."""
    orphan_of: Parent | None = None
    """Only rows whose parent is gone are due."""
    action: Delete | Archive | Set
    key: str = "id"
    """The column by which a report names a row."""

    def __post_init__(self) -> None:
        if self.clock is None and self.orphan_of is None and not isinstance(self.action, Set):
            raise BadRule(self.name, "clock", "takes a column: only a set or an orphan_of can do without a clock")
        if self.clock is None and self.clock_unit != "timestamp":
            raise BadRule(self.name, "clock_unit", "takes a clock, too")
        if self.floor < timedelta(0):
            raise BadRule(self.name, "floor", "takes at least 0 days")
        if self.keep < self.floor:
            least, got = self.floor / timedelta(days=1), self.keep / timedelta(days=1)
            raise BadRule(self.name, "keep", f"takes at least {least:.4g} days, got {got:.4g}")
        if self.orphan_of and self.orphan_of.table == self.table:
            raise BadRule(self.name, "orphan_of", "takes another table than the rule's own")
        match self.action:
            case Set(values) if fixed := values.keys() & {self.key, self.clock}:
                raise BadRule(
                    self.name, "action", f"sets {', '.join(sorted(map(str, fixed)))}, the rule's key or clock"
                )
            case Set(values) if not values:
                raise BadRule(self.name, "action", "takes at least one column to set")
            case Archive(into) if into == self.table:
                raise BadRule(self.name, "action", "archives rows into the table that they are in")
        if self.clock is None and self.orphan_of is None and self.where == "true":
            raise BadRule(self.name, "where", "takes a condition: without it, a clock and an orphan_of it is every row")
        try:
            check(self.where)
        except BadWhere as error:
            raise BadRule(self.name, "where", str(error)) from None

    @property
    def reads_tables(self) -> bool:
        """Whether other tables say what is due."""
        return self.orphan_of is not None or reads_tables(self.where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What is due."""

    rows: int
    bytes: int
    """Of the rows as stored, without indexes and free space."""
    oldest: datetime | None
    """The first clock among them; None without rows or without a clock."""
    newest: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is due under the keep in force, and what would be under another."""

    current: Candidates
    proposed: Candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a run did and why it stopped; `stopped` is None when it came to the end."""

    rows: int
    batches: int
    stopped: Stop
    failed: int
    """Rows that the database refused to change."""
    failures: tuple[str, ...]
    """The first `NAMED_FAILURES` of them, each with its key and the database's reason."""
    skipped: int
    """Rows left for the next run: held by somebody, or among too many that are refused."""
