"""Clocks: how the values of a column stand for moments, and how SQL compares the two without hiding the column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal

from lamplighter.kernel.retention.rule import ClockUnit

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
"""No row of a backend is older. An earlier clock is a mark such as 0 or 0001-01-01, or it counts in another unit."""
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
"""No moment that a backend writes is later, unless it counts in another unit."""

type Kind = Literal["timestamptz", "date", "bigint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The column by which rows age. A value stands for `step`, from its moment on."""

    name: str
    """Quoted for SQL."""
    kind: Kind
    """As which type the column is compared."""
    step: timedelta

    @property
    def due(self) -> str:
        """In SQL, whether a value is over by the parameter `due`. NULL, -infinity and what is too early are not."""
        earliest = self.value(EARLIEST)
        text = str(earliest) if isinstance(earliest, int) else f"'{EARLIEST:%Y-%m-%d}'"
        return f"{self.name} >= {text} AND {self.name} < {self._parameter('due')}"

    @property
    def within(self) -> str:
        """In SQL, whether a value is between the parameters `first` and `end`, the latter excluded."""
        return f"{self.name} >= {self._parameter('first')} AND {self.name} < {self._parameter('end')}"

    @property
    def is_plausible(self) -> str:
        """In SQL, whether a value is a moment that a backend may well have written."""
        return f"{self.name} >= {self.value(EARLIEST)} AND {self.name} < {self.value(LATEST)}"

    def value(self, moment: datetime) -> datetime | date | int:
        """The value that stands for a moment, rounded down."""
        if self.kind == "bigint":
            return (moment - EPOCH) // self.step
        return moment.astimezone(UTC).date() if self.kind == "date" else moment

    def floor(self, moment: datetime) -> datetime:
        """The beginning of the value that stands for a moment."""
        return EPOCH + (moment - EPOCH) // self.step * self.step

    def moment(self, value: str) -> str:
        """In SQL, the moment that a value stands for, as a timestamptz; the session's time zone is UTC."""
        if self.kind == "bigint":
            return f"to_timestamp({value} / {timedelta(seconds=1) / self.step:.1f})"
        return f"CAST({value} AS timestamptz)"

    def _parameter(self, name: str) -> str:
        return f"CAST(:{name} AS {self.kind})"


_COUNTS: Final[Mapping[str, timedelta]] = {
    "seconds": timedelta(seconds=1),
    "milliseconds": timedelta(milliseconds=1),
}


def clock_of(name: str, unit: ClockUnit, column_type: str) -> Clock | None:
    """The clock that a column of this type is in this unit; None where it is none.

    Args:
        name: of the column, quoted for SQL.
        unit: as the rule declares it.
        column_type: as `format_type` says it.
    """
    if step := _COUNTS.get(unit):
        is_count = column_type in ("integer", "bigint", "double precision") or column_type.startswith("numeric")
        return Clock(name=name, kind="bigint", step=step) if is_count else None
    if column_type == "date":
        return Clock(name=name, kind="date", step=timedelta(days=1))
    if unit == "timestamp" and column_type.startswith("timestamp"):
        return Clock(name=name, kind="timestamptz", step=timedelta(microseconds=1))
    return None


def other_unit(clock: Clock) -> Clock | None:
    """The same column, counted in the other unit; None where it is no count."""
    others = {_COUNTS["seconds"]: _COUNTS["milliseconds"], _COUNTS["milliseconds"]: _COUNTS["seconds"]}
    return replace(clock, step=others[clock.step]) if clock.kind == "bigint" else None


def accepted(unit: ClockUnit) -> str:
    """What a clock of this unit takes, to go on with in a sentence."""
    if unit in _COUNTS:
        return f"{unit} since 1970 as integer, bigint, numeric or double precision"
    return "a date" if unit == "date" else "a timestamp, with or without time zone, or a date"
