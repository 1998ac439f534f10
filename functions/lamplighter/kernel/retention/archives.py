"""Whether a table keeps another table's rows whole: what an archive must be, by the types of its columns.

PostgreSQL converts a value to the column's type as it stores it, and some conversions round or cut without an error
("Type Conversion", 10.4; "Numeric Types", 8.1; "Date/Time Types", 8.5). The row that was whole is then deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_TYPE: Final = re.compile(
    r"(?P<base>[a-z ]+?)(?:\((?P<first>\d+)(?:,(?P<scale>-?\d+))?\))?(?: with(?:out)? time zone)?"
)
_INTEGERS: Final = frozenset({"smallint", "integer", "bigint"})
_ROUNDS: Final = {
    "numeric": _INTEGERS | {"real", "double precision"},
    "double precision": _INTEGERS | {"real", "numeric"},
    "real": _INTEGERS | {"numeric"},
    "bigint": frozenset({"real", "double precision"}),
    "integer": frozenset({"real"}),
    "timestamp": frozenset({"date", "time"}),
}
"""By type, the types that take its values and do not keep them."""
_FINEST: Final = 6
"""Digits of a second that a time has unless its type says fewer."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an archive."""

    type: str
    """As `format_type` says it."""
    is_generated: bool
    is_required: bool
    """Whether a row has to bring a value: there is no default, and it takes no null."""


def faults(
    columns: Mapping[str, str], archive: Mapping[str, Column], *, unlike: frozenset[str], fills: bool
) -> Iterator[tuple[str, str]]:
    """The columns by which an archive does not keep rows with these columns, and what is wrong with each.

    Args:
        columns: of the rows, with their types; the archive has them all.
        archive: its columns.
        unlike: columns whose values the archive's column takes by no cast.
        fills: whether a trigger may bring values that are missing.
    """
    for name, type_ in columns.items():
        if archive[name].is_generated:
            yield name, "is generated, and takes no value"
        elif name in unlike or not keeps(type_, archive[name].type):
            yield name, f"is of type {archive[name].type}, which does not keep values of type {type_}"
    for name, column in archive.items():
        if name not in columns and column.is_required and not fills:
            yield name, "takes no null and has no default, and the rows have no such column"


def keeps(mine: str, theirs: str) -> bool:
    """Whether a column of type `theirs` stores each value of type `mine` as it is, or refuses it."""
    one, other = (_TYPE.fullmatch(type_.removesuffix("[]")) for type_ in (mine, theirs))
    if mine == theirs or not one or not other:
        return True
    if other["base"] in _ROUNDS.get(one["base"], ()):
        return False
    if one["base"] != other["base"] or other["first"] is None:
        return True
    if one["base"] == "numeric":
        return one["scale"] is not None and int(one["scale"]) <= int(other["scale"])
    if one["base"] in ("timestamp", "time", "interval"):
        return int(one["first"] or _FINEST) <= int(other["first"])
    return True
