"""Reads the columns that name objects, each value as text, in one snapshot a reading.

A table is read by ranges of its blocks: `json_agg` over a TID range scan gives a megabyte of values as one text, which
is four times as fast as fetching rows and keeps no cursor on the server. Views, foreign tables and servers before
PostgreSQL 14 are read by a cursor. Both in one transaction that is repeatable-read and read-only: ranges read in
separate snapshots lost 15 to 21 % of the rows of a table that was updated meanwhile.

What cannot be read in full fails the reading in one sentence (REQUIREMENTS S6, K14): a partial view would call
referenced files orphans.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.media import documents

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult

    from lamplighter.kernel.media import Reference

STEP_BYTES: Final = 2**20
"""What a range of blocks holds, with its TOAST: 32 blocks of TOASTed rows made 31 MB of JSON."""
FETCHED: Final = 5000
"""Rows a cursor fetches at a time."""
FETCHED_DOCUMENTS: Final = 100
"""The same of JSON and HTML."""
STATEMENT_TIMEOUT: Final = timedelta(minutes=5)
"""Of one range or one fetch; the first fetch of a view may have to sort."""
TID_RANGES_SINCE: Final = 140_000

type _Kind = Literal["text", "array", "json", "html"]

_TEXT: Final = frozenset({"text", "varchar", "bpchar", "citext"})
_JSON: Final = frozenset({"json", "jsonb"})


@dataclass(frozen=True, slots=True)
class Batch:
    """Values of one column."""

    column: int
    """Its position among the references."""
    values: list[str]
    hints: list[str]
    """Texts that keep what they name and are not counted: of JSON and HTML, what has no extension of a media file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceColumn:
    """A reference column as the catalogue has it."""

    position: int
    reference: Reference
    source: str
    """The relation, quoted for SQL."""
    expression: str
    """What gives its values as text."""
    kind: _Kind
    leaves: tuple[_Leaf, ...]
    """The tables that hold its rows; none: it is read by a cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """One heap."""

    oid: int
    name: str
    """Quoted for SQL."""
    file: int
    """The file that held it as of the snapshot; another one now means that it was rewritten since."""


def read(connection: Connection, references: Sequence[Reference], *, max_lag: timedelta) -> Generator[Batch]:
    """All values of the columns as of one moment, NULL left out.

    Args:
        connection: outside of a transaction; the iterator holds one until it is exhausted or closed. A thread of its
            own uses the connection meanwhile, so nothing else may.
        references: the columns.
        max_lag: how far behind its primary a standby may be.

    Raises:
        Permanent: a table or column does not exist, is of another type, or cannot be read in full.
        Retryable: a lock was not to be had, or the server cancelled the reading: start it over.
    """
    from lamplighter.kernel.database import bound_statements, one_snapshot, whole_view

    with connection.begin():
        one_snapshot(connection)
        bound_statements(connection, statement=STATEMENT_TIMEOUT)
        whole_view(connection, max_lag=max_lag)
        columns = []
        for position, reference in enumerate(references):
            with _explained(reference):
                columns.append(_identify(connection, position, reference))
                _open(connection, columns[-1])
        for column in columns:
            with _explained(column.reference):  # closed over the yields: nothing of the caller's is a DBAPIError
                found = _ranges(connection, column) if column.leaves else _fetches(connection, column)
                with closing(_ahead(found)) as batches:
                    for texts in batches:
                        yield _batch(column, texts)


def identified(connection: Connection, position: int, reference: Reference, *, max_lag: timedelta) -> SourceColumn:
    """The column, once it is certain that it can be read in full; reads no value. In the caller's transaction.

    Raises:
        Permanent: it does not exist, is of another type, or cannot be read in full.
        Retryable: somebody has locked the table.
    """
    from lamplighter.kernel.database import whole_view

    whole_view(connection, max_lag=max_lag)
    with _explained(reference):
        column = _identify(connection, position, reference)
        _open(connection, column)
    return column


# -- the catalogue ---------------------------------------------------------------------------------------------------


def _identify(connection: Connection, position: int, reference: Reference) -> SourceColumn:
    from sqlalchemy import text

    quoted = connection.dialect.identifier_preparer.quote_identifier
    source = ".".join(quoted(part) for part in reference.table.split(".", 1))
    found = connection.execute(
        text(
            "SELECT c.oid, c.relkind::text, (SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = c.oid"
            " AND a.attname = :name AND a.attnum > 0 AND NOT a.attisdropped) AS type"
            " FROM pg_class AS c WHERE c.oid = to_regclass(:source) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
        ),
        {"source": source, "name": reference.column},
    ).one_or_none()
    if found is None:
        raise Permanent(f"references: there is no table {reference.table} in the database.")
    if found.type is None:
        raise Permanent(f"references: the table {reference.table} has no column {reference.column}.")
    base, array, type_name = _base_type(connection, found.type)
    kind = _kind(reference, base, array, type_name)
    return SourceColumn(
        position=position,
        reference=reference,
        source=source,
        expression=_expression(reference, quoted(reference.column), array=array),
        kind=kind,
        leaves=_leaves(connection, found.oid, quoted) if found.relkind in "rpm" else (),
    )


def _base_type(connection: Connection, oid: int) -> tuple[str, bool, str]:
    """What domains and arrays come down to; whether there is an array; the type as its owner calls it."""
    from sqlalchemy import text

    array, shown = False, ""
    while True:
        one = connection.execute(
            text(
                "SELECT typname, typtype::text, typbasetype, typelem, typcategory::text, format_type(oid, NULL) AS name"
                " FROM pg_type WHERE oid = :oid"
            ),
            {"oid": oid},
        ).one()
        shown = shown or one.name
        if one.typtype == "d":
            oid = one.typbasetype
        elif one.typcategory == "A" and one.typelem and not array:
            array, oid = True, one.typelem
        else:
            return ("enum" if one.typtype == "e" else one.typname), array, shown


def _kind(reference: Reference, base: str, array: bool, type_name: str) -> _Kind:
    """How the values are read.

    Raises:
        Permanent: they cannot be, as what they are declared to be.
    """
    readable: tuple[_Kind, ...] = ()
    if base in _TEXT:
        readable = ("array",) if array else ("text", "html", "json")
    elif base in _JSON and not array:
        readable = ("json",)
    if not readable:
        raise Permanent(
            f"references: {reference} is of type {type_name}; a column of text, varchar, char, citext, a domain over "
            "them, text[], json or jsonb is needed."
        )
    if reference.kind not in {None, *readable}:
        raise Permanent(
            f"references: {reference} is of type {type_name}, which can be read as {' or '.join(readable)}, not as "
            f"{reference.kind}."
        )
    return reference.kind or readable[0]


def _expression(reference: Reference, column: str, *, array: bool) -> str:
    """What selects the values as text, a row each."""
    if array:
        return f"unnest({column}::text[])"
    if reference.path is not None:
        path = reference.path.replace("\\", r"\\").replace("'", "''")
        return f"jsonb_path_query({column}::jsonb, E'{path}')::text"
    return f"{column}::text"


def _leaves(connection: Connection, oid: int, quoted: Any) -> tuple[_Leaf, ...]:
    """The heaps below a table, if each can be read by ranges of blocks."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "WITH RECURSIVE below AS (SELECT CAST(:oid AS oid) AS oid"
            "  UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN below ON below.oid = i.inhparent)"
            " SELECT c.oid, n.nspname, c.relname, c.relfilenode, c.relkind IN ('r', 'm') AND a.amname = 'heap'"
            "  AND has_table_privilege(c.oid, 'SELECT') AND (c.oid = :oid OR NOT c.relrowsecurity)"
            "  AND current_setting('server_version_num')::int >= :since AS by_blocks"
            " FROM below JOIN pg_class AS c USING (oid) JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " LEFT JOIN pg_am AS a ON a.oid = c.relam WHERE c.relkind <> 'p' ORDER BY c.oid"
        ),
        {"oid": oid, "since": TID_RANGES_SINCE},
    ).all()
    if not all(row.by_blocks for row in rows):
        return ()
    return tuple(
        _Leaf(oid=row.oid, name=f"{quoted(row.nspname)}.{quoted(row.relname)}", file=row.relfilenode) for row in rows
    )


# -- reading ---------------------------------------------------------------------------------------------------------


def _open(connection: Connection, column: SourceColumn) -> None:
    """Locks what is to be read, so that nothing is rewritten or dropped before its turn.

    Raises:
        Retryable: it was rewritten since the snapshot, in which it may look empty.
    """
    from sqlalchemy import text

    if not column.leaves:
        query = f"SELECT {column.expression} FROM {column.source}"  # noqa: S608 - quoted by `_identify`, as all below
        _run(connection, f"DECLARE {_cursor(column)} NO SCROLL CURSOR FOR {query}")
    for leaf in column.leaves:
        _run(connection, f"SELECT {column.expression} FROM ONLY {leaf.name} LIMIT 0")  # noqa: S608
        file = connection.execute(text("SELECT pg_relation_filenode(:oid)"), {"oid": leaf.oid}).scalar_one()
        if file != leaf.file:
            raise Retryable(f"references: {column.reference.table} was rewritten while it was read.")


def _ranges(connection: Connection, column: SourceColumn) -> Iterator[list[str]]:
    from sqlalchemy import text

    for leaf in column.leaves:
        blocks, size = connection.execute(
            text("SELECT pg_relation_size(:oid) / current_setting('block_size')::int, pg_table_size(:oid)"),
            {"oid": leaf.oid},
        ).one()
        step = max(1, blocks * STEP_BYTES // max(size, 1))
        for start in range(0, blocks, step):
            end = f" AND ctid < '({start + step},0)'" if start + step < blocks else ""
            found = _run(
                connection,
                f"SELECT json_agg(x)::text FROM (SELECT {column.expression} AS x FROM ONLY {leaf.name}"  # noqa: S608
                f" WHERE ctid >= '({start},0)'{end}) AS v WHERE x IS NOT NULL",
            ).scalar_one()
            yield json.loads(found) if found else []


def _fetches(connection: Connection, column: SourceColumn) -> Iterator[list[str]]:
    count = FETCHED if column.kind in {"text", "array"} else FETCHED_DOCUMENTS
    while rows := _run(connection, f"FETCH {count} FROM {_cursor(column)}").scalars().all():
        yield [value for value in rows if value is not None]


def _ahead(batches: Iterator[list[str]]) -> Generator[list[str]]:
    """The batches; a thread reads the next one while the caller works on the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="values") as thread:
        coming = thread.submit(next, batches, None)
        while (texts := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield texts


def _run(connection: Connection, statement: str) -> CursorResult[Any]:
    """Without SQLAlchemy's reading of `:name` and `%`, which quoted names may hold."""
    return connection.exec_driver_sql(statement)


def _cursor(column: SourceColumn) -> str:
    return f"lamplighter_values_{column.position}"


@contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    """Turns what the server answers into a sentence, final unless another attempt may fare better."""
    from sqlalchemy.exc import DBAPIError

    from lamplighter.kernel.database import reason

    try:
        yield
    except DBAPIError as error:
        facts = getattr(error.orig, "args", None)
        state = str(facts[0].get("C", "")) if facts and isinstance(facts[0], dict) else ""
        said = reason(error.orig) if error.orig else str(error)
        if state == "42501":
            raise Permanent(
                f"references: {reference} cannot be read in full: {said}. Grant SELECT on it; where row security hides "
                "rows, connect as the table's owner or as a role with BYPASSRLS."
            ) from None
        if state == "55P03":
            raise Retryable(f"references: {reference.table} is locked by another session: {said}.") from None
        if state.startswith("40") or state in {"57014", "42P01", "42703", "XX001"}:
            raise Retryable(f"references: reading {reference} was interrupted ({said}): it starts over.") from None
        if not state:
            raise
        raise Permanent(f"references: {reference} cannot be read: {said}.") from None


# -- what a text holds -----------------------------------------------------------------------------------------------


def _batch(column: SourceColumn, texts: list[str]) -> Batch:
    if column.kind == "html":
        found = list(documents.in_markup(texts))
    elif column.kind == "json":
        whole = column.reference.path is None
        found = list(documents.in_json(texts) if whole else documents.at_path(texts))
    else:
        return Batch(column.position, texts, [])
    return Batch(
        column.position, [text for text, counted in found if counted], [text for text, counted in found if not counted]
    )
