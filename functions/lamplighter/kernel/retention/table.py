"""A rule's table as the database describes it, the one predicate over it, and what the database's errors mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.retention.rule import Archive, Rule, Set

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

type Trouble = Literal["late", "locked", "refused"]


def _predicate(rule: Rule, columns: Mapping[str, str]) -> str:
    """The one condition of preview, count and action. `columns` are the table's, with their types."""
    conditions = [f"({rule.where}\n)"]  # the line's end closes a comment
    if rule.clock:
        clock = quoted(rule.clock)
        conditions = [f"{clock} > '-infinity'", f"{clock} < :cutoff", *conditions]
    if isinstance(rule.action, Set):
        differs = (f"{quoted(name)} IS DISTINCT FROM {value}" for name, value in cast_values(rule.action, columns))
        conditions.append(f"({' OR '.join(differs)})")
    return " AND ".join(conditions)


def cast_values(action: Set, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each column and its value, cast to the column's type: otherwise 0.1 and a real would differ for ever."""
    for n, name in enumerate(action.values):
        yield name, f"CAST(:value{n} AS {columns[name]})"


def parameters_of(rule: Rule, cutoff: datetime) -> dict[str, object]:
    values = rule.action.values.values() if isinstance(rule.action, Set) else ()
    return {"cutoff": cutoff} | {f"value{n}": value for n, value in enumerate(values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A table that holds rows itself: the rule's own, or a partition of it."""

    name: str
    """Quoted for SQL."""
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the database says about a rule's table."""

    columns: Mapping[str, str]
    """Their types, by name."""
    leaves: Sequence[Leaf]
    predicate: str
    now: datetime
    """By the database's clock."""


_LOOK: Final = """
    WITH RECURSIVE tree AS (
        SELECT CAST(to_regclass(:table) AS oid) AS oid
        UNION ALL SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
    ), leaf AS (
        SELECT nspname, relname, relkind,
            CASE relkind WHEN 'r' THEN pg_relation_size(pg_class.oid) ELSE 0 END
                / CAST(current_setting('block_size') AS int) AS blocks
        FROM tree JOIN pg_class USING (oid) JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relkind <> 'p'
    )
    SELECT clock_timestamp() AS now, to_regclass(:table) IS NOT NULL AS found,
        (SELECT json_object_agg(attname, format_type(atttypid, atttypmod) ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped) AS columns,
        (SELECT json_agg(attname) FROM pg_attribute
            WHERE attrelid = to_regclass(:into) AND attnum > 0 AND NOT attisdropped) AS into_columns,
        (SELECT json_agg(json_build_array(nspname, relname, relkind, blocks) ORDER BY relname) FROM leaf) AS leaves
"""


def look(connection: Connection, rule: Rule) -> Table:
    """The rule's table, once it is certain that the rule fits it."""
    into = rule.action.into if isinstance(rule.action, Archive) else ""
    row = execute(connection, _LOOK, {"table": _plain(rule.table), "into": _plain(into) if into else ""}).one()
    if not row.found:
        raise Permanent(f"{rule.name}: there is no table {rule.table} in the database.")
    if unfit := [name for _, name, kind, _ in row.leaves or () if kind != "r"]:
        raise Permanent(f"{rule.name}: {', '.join(unfit)} is no ordinary or partitioned table.")
    columns: dict[str, str] = row.columns or {}
    values = rule.action.values if isinstance(rule.action, Set) else ()
    for column in (rule.key, *([rule.clock] if rule.clock else []), *values):
        if column not in columns:
            raise Permanent(f"{rule.name}: the table {rule.table} has no column {column}.")
    if rule.clock and not columns[rule.clock].startswith("timestamp"):
        raise Permanent(
            f"{rule.name}: the clock {rule.clock} is of type {columns[rule.clock]}; it takes a timestamp, with or "
            "without time zone."
        )
    if into and row.into_columns is None:
        raise Permanent(f"{rule.name}: there is no table {into} to archive into.")
    if into and (missing := [column for column in columns if column not in row.into_columns]):
        raise Permanent(f"{rule.name}: the table {into} lacks {', '.join(missing)} of {rule.table}.")
    leaves = [
        Leaf(name=f"{quoted(schema)}.{quoted(name)}", blocks=blocks) for schema, name, _, blocks in row.leaves or ()
    ]
    return Table(columns=columns, leaves=leaves, predicate=_predicate(rule, columns), now=row.now)


def _plain(table: str) -> str:
    """`schema.table` with both quoted; the first dot ends the schema."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))


def spelled(table: str) -> str:
    return _plain(table).replace(":", r"\:")  # SQLAlchemy would take a colon for a parameter


def quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""').replace(":", r"\:") + '"'


def alias(rule: Rule) -> str:
    """By what name `where` may call the table, whichever partition it is."""
    return rule.table.split(".", 1)[-1]


def execute(connection: Connection, sql: str, parameters: Mapping[str, object]) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), parameters)


_LATE: Final = "57014"
_LOCKED: Final = ("55P03", "40P01", "40001")
"""A lock was not to be had, a deadlock, a serialization failure."""
_REFUSED: Final = ("09", "22", "23", "27", "44", "P0")
"""SQLSTATE classes that one row can cause: triggers, bad data, constraints, check options, RAISE."""


def trouble_with(error: DBAPIError) -> Trouble | None:
    """What is wrong with a batch, or None when the error is not about its rows."""
    state = str(facts_of(error).get("C", ""))
    if state == _LATE:
        return "late"
    if state in _LOCKED:
        return "locked"
    return "refused" if state.startswith(_REFUSED) else None


def named(rule: Rule, error: DBAPIError) -> Exception:
    """The error for the caller: a rule that does not fit (syntax, names, rights) is permanent, a lock passes."""
    facts = facts_of(error)
    if str(facts.get("C", "")).startswith("42"):
        return Permanent(f"{rule.name}: {facts['M']}.")
    if trouble_with(error) == "locked":
        return Retryable(f"{rule.name}: somebody has locked {rule.table}; try again later.")
    return error


def facts_of(error: DBAPIError) -> Mapping[str, object]:
    """The fields of PostgreSQL's error message."""
    facts = error.orig.args[0] if error.orig and error.orig.args else None
    return facts if isinstance(facts, dict) else {}
