"""What a rule says, and what counting and changing answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

type Stop = Literal["cancelled", "out_of_time", "ceiling"] | None


@dataclass(frozen=True, slots=True)
class Delete:
    """The rows are deleted."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The rows are moved to another table, which has at least the same columns."""

    into: str
    """`table` or `schema.table`."""


@dataclass(frozen=True, slots=True)
class Set:
    """The rows stay and get these values; one that has them all is not changed again."""

    values: Mapping[str, object]
    """By column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which rows of a table are too old, and what becomes of them.

    A row is due when its clock is a finite moment more than `keep` before now and `where` holds. A clock of NULL or
    infinity is never due.

    Raises:
        ValueError: the rule contradicts itself.
    """

    name: str
    table: str
    """`table` or `schema.table`, as the database spells it; partitions are included."""
    clock: str | None
    """The column that says from when the row ages, a timestamp (without time zone: in UTC). None, for `Set` only: age
    does not matter."""
    keep: timedelta = timedelta(0)
    """How long a row is kept unless the settings say otherwise."""
    floor: timedelta = timedelta(0)
    """No setting and no caller can keep rows for less."""
    where: str = "true"
    """What else must hold, in SQL; `:cutoff` is the moment before which clocks are due. A literal colon before a letter
    is written `\\:`."""
    action: Delete | Archive | Set
    key: str = "id"
    """The column by which a report names a row."""

    def __post_init__(self) -> None:
        if self.clock is None and not isinstance(self.action, Set):
            raise ValueError(f"{self.name}: only a Set can do without a clock.")
        if not timedelta(0) <= self.floor <= self.keep:
            raise ValueError(f"{self.name}: takes a keep of at least its floor, and a floor of at least 0.")
        open_ones = 0
        for mark in re.findall(r"[()]", re.sub(r"'[^']*'|\"[^\"]*\"|--.*", "", self.where)):
            open_ones += 1 if mark == "(" else -1
            if open_ones < 0:  # it would end the parenthesis that every `where` stands in, and the clock with it
                raise ValueError(f"{self.name}: where closes a parenthesis that it has not opened.")


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
