"""What stands between an action and a table: rights, row security, indexes. Read from the catalogue, never from rows.

`describe` reads, `faults` judges. Both serve the preflight alone: a run finds out by acting (REQUIREMENTS O4, S6).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from sqlalchemy import Connection

type Right = Literal["SELECT", "INSERT", "UPDATE", "DELETE"]

BIG: Final = 10_000
"""Rows of a table from which on a missing index is a fault."""
GRANTED: Final = 20
"""Tables that a GRANT names."""
NAMED: Final = 3
"""Partitions, columns and schemas that a sentence names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A table that holds rows: the one that is named, or a partition of it."""

    name: str
    """Quoted for SQL, with its schema."""
    schema: str
    """Quoted for SQL."""
    usage: bool
    """Whether the user may use its schema."""
    rights: frozenset[str]
    """On the whole table."""
    any_update: bool
    """Whether the user may update some column."""
    hides_rows: bool
    """Whether row-level security hides rows from the user, or would."""
    unidentified: frozenset[str]
    """Of DELETE and UPDATE, what a publication publishes while the table has no replica identity: it is refused."""
    columns: Mapping[str, frozenset[str]]
    """What the user may do with each column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """A foreign key of another table to this one, or of this one to itself."""

    name: str
    table: str
    """That refers, as the database shows it."""
    columns: Sequence[str]
    indexed: bool
    """Whether an index of the referring table begins with these columns."""
    readable: bool
    rows: float
    """Of the referring table, estimated; -1 where the database has no estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A table as the catalogue has it."""

    name: str
    """Quoted for SQL, with its schema."""
    kind: str
    """`pg_class.relkind`: r, p, v, m, f."""
    user: str
    """Who asks, quoted for SQL."""
    rows: float
    """Estimated, partitions included; -1 where the database has no estimate."""
    bytes: int
    """Of the heaps, estimated."""
    parts: Sequence[Part]
    """The table first, then its partitions."""
    keys: Sequence[ForeignKey]
    leading: frozenset[str]
    """Columns that an index of the table begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an action needs of a table."""

    whole: frozenset[Right] = frozenset()
    """Rights on the whole table: those on all of its columns do not cover `ctid`."""
    select: Collection[str] = ()
    """Columns that are read."""
    update: Collection[str] = ()
    """Columns that are updated."""
    locks: bool = False
    """Whether rows are locked, which takes UPDATE of any one column."""
    direct: bool = False
    """Whether partitions are named themselves, which the rights on the parent do not cover."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What stands in the way."""

    sentence: str
    advice: str
    refuses: bool = field(default=True, kw_only=True)
    """Whether the action is refused; False: it is slow."""
    hides: bool = field(default=False, kw_only=True)
    """Whether a preview is refused, too."""


_FIND: Final = """
    SELECT pg_class.oid FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = :schema AND relname = :name AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_VISIBLE: Final = """
    SELECT oid FROM pg_class WHERE oid = to_regclass(quote_ident(:name)) AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_ELSEWHERE: Final = """
    SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = :name AND relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname !~ '^(pg_|information_schema$)'
    ORDER BY nspname LIMIT 4
"""
_DESCRIBE: Final = """
    WITH RECURSIVE tree AS (
        SELECT CAST(:oid AS oid) AS oid
        UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid WHERE NOT inhdetachpending
    ), part AS (
        SELECT pg_class.oid, quote_ident(nspname) AS schema, quote_ident(relname) AS relation, relnamespace, relkind,
            relreplident, reltuples, relpages
        FROM tree JOIN pg_class USING (oid) JOIN pg_namespace ON pg_namespace.oid = relnamespace
    ), published AS MATERIALIZED (
        SELECT CAST(to_regclass(quote_ident(schemaname) || '.' || quote_ident(tablename)) AS oid) AS oid, "right"
        FROM pg_publication_tables JOIN pg_publication USING (pubname),
            LATERAL (VALUES ('DELETE', pubdelete), ('UPDATE', pubupdate)) AS of("right", is_published)
        WHERE is_published
    )
    SELECT CAST(quote_ident(current_user) AS text) AS user,
        (SELECT CAST(relkind AS text) FROM part WHERE oid = CAST(:oid AS oid)) AS kind,
        (SELECT CASE WHEN bool_and(reltuples < 0) THEN -1 ELSE sum(greatest(reltuples, 0)) END
            FROM part WHERE relkind <> 'p') AS rows,
        (SELECT sum(CAST(relpages AS bigint)) * CAST(current_setting('block_size') AS int)
            FROM part WHERE relkind <> 'p') AS bytes,
        (SELECT json_agg(json_build_object(
                'name', schema || '.' || relation, 'schema', schema,
                'usage', has_schema_privilege(relnamespace, 'USAGE'),
                'rights', (SELECT json_agg(asked) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS asked
                    WHERE has_table_privilege(part.oid, asked)),
                'any_update', has_any_column_privilege(part.oid, 'UPDATE'),
                'hides_rows', row_security_active(part.oid),
                'unidentified', (SELECT json_agg(DISTINCT "right") FROM published
                    WHERE published.oid IN (part.oid, CAST(:oid AS oid)) AND relkind = 'r' AND relreplident <> 'f'
                        AND pg_get_replica_identity_index(part.oid) IS NULL),
                'columns', (SELECT json_object_agg(attname, array_to_json(ARRAY(
                        SELECT asked FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS asked
                        WHERE has_column_privilege(part.oid, attnum, asked))))
                    FROM pg_attribute WHERE attrelid = part.oid AND attnum > 0 AND NOT attisdropped)
            ) ORDER BY part.oid <> CAST(:oid AS oid), part.oid) FROM part) AS parts,
        (SELECT json_agg(json_build_object(
                'name', conname, 'table', CAST(CAST(conrelid AS regclass) AS text),
                'columns', (SELECT json_agg(attname ORDER BY n) FROM unnest(conkey) WITH ORDINALITY AS k(attnum, n)
                    JOIN pg_attribute USING (attnum) WHERE attrelid = conrelid),
                'indexed', EXISTS (SELECT FROM pg_index WHERE indrelid = conrelid AND indisvalid AND indpred IS NULL
                    AND (string_to_array(CAST(indkey AS text), ' ')::int2[])[1:cardinality(conkey)] @> conkey
                    AND (string_to_array(CAST(indkey AS text), ' ')::int2[])[1:cardinality(conkey)] <@ conkey),
                'readable', has_schema_privilege(refers.relnamespace, 'USAGE')
                    AND has_table_privilege(conrelid, 'SELECT') AND NOT row_security_active(conrelid),
                'rows', CASE refers.relkind WHEN 'p' THEN (
                        SELECT CASE WHEN bool_and(reltuples < 0) THEN -1 ELSE sum(greatest(reltuples, 0)) END
                        FROM pg_partition_tree(conrelid) AS leaf JOIN pg_class ON pg_class.oid = leaf.relid
                        WHERE isleaf)
                    ELSE refers.reltuples END
            ) ORDER BY conname)
            FROM pg_constraint JOIN pg_class AS refers ON refers.oid = conrelid
            WHERE contype = 'f' AND confrelid IN (SELECT oid FROM tree)
                AND NOT EXISTS (SELECT FROM pg_constraint AS whole WHERE whole.oid = pg_constraint.conparentid)
        ) AS keys,
        (SELECT json_agg(DISTINCT attname) FROM pg_index JOIN pg_attribute
                ON attrelid = indrelid AND attnum = (string_to_array(CAST(indkey AS text), ' ')::int2[])[1]
            WHERE indrelid = CAST(:oid AS oid) AND indisvalid AND indpred IS NULL) AS leading
"""


def locate(connection: Connection, table: str) -> int | None:
    """The oid of `table` or `schema.table`, whether or not the user may use its schema; None: there is none."""
    schema, dot, name = table.partition(".")
    query, asked = (_FIND, {"schema": schema, "name": name}) if dot else (_VISIBLE, {"name": table})
    oid: int | None = _execute(connection, query, asked).scalar_one_or_none()
    return oid


def elsewhere(connection: Connection, table: str) -> list[str]:
    """Schemas with a table of this name that the search path does not have; for `schema.table` none."""
    if "." in table:
        return []
    return list(_execute(connection, _ELSEWHERE, {"name": table}).scalars())


def describe(connection: Connection, oid: int) -> Description:
    """The table of this oid."""
    row = _execute(connection, _DESCRIBE, {"oid": oid}).one()
    parts = [
        Part(
            name=one["name"],
            schema=one["schema"],
            usage=one["usage"],
            rights=frozenset(one["rights"] or ()),
            any_update=one["any_update"],
            hides_rows=one["hides_rows"],
            unidentified=frozenset(one["unidentified"] or ()),
            columns={name: frozenset(rights) for name, rights in (one["columns"] or {}).items()},
        )
        for one in row.parts
    ]
    return Description(
        name=parts[0].name,
        kind=row.kind,
        user=row.user,
        rows=float(row.rows if row.rows is not None else -1),
        bytes=int(row.bytes or 0),
        parts=parts,
        keys=[ForeignKey(**one) for one in row.keys or ()],
        leading=frozenset(row.leading or ()),
    )


def faults(table: Description, needs: Needs) -> Iterator[Fault]:
    """What stands in the way of an action: rights and row security, of the table and of what it names itself."""
    parts = table.parts if needs.direct else table.parts[:1]
    closed = sorted({part.schema for part in parts if not part.usage})
    if closed:
        yield Fault(
            f"The user {table.user} may not use the schema {', '.join(closed[:NAMED])}",
            f"GRANT USAGE ON SCHEMA {', '.join(closed)} TO {table.user};",
            hides=not parts[0].usage,
        )
    for right in sorted(needs.whole):
        if lacking := [part.name for part in parts if right not in part.rights]:
            hides = right == "SELECT" and "SELECT" not in parts[0].rights
            yield _missing(right, lacking, table.user, hides=hides)
    for right, columns in (("SELECT", needs.select), ("UPDATE", needs.update)):
        for column in columns:
            if lacking := [part.name for part in parts if column in part.columns and right not in part.columns[column]]:
                yield _missing(f"{right} ({_quoted(column)})", lacking, table.user)
    if needs.locks and (lacking := [part.name for part in parts if not part.any_update]):
        example = next(iter(table.parts[0].columns), "id")
        yield _missing(f"UPDATE ({_quoted(example)})", lacking, table.user, "UPDATE of any one column")
    changes = {*needs.whole, *(["UPDATE"] if needs.update else [])}
    if refused := [part.name for part in table.parts if part.unidentified & changes]:
        yield Fault(
            f"A publication publishes changes of {_listed(refused)}, which has no replica identity, so the server "
            "refuses them",
            f"Add a primary key; or ALTER TABLE {refused[0]} REPLICA IDENTITY FULL;",
        )
    if hidden := [part.name for part in parts if part.hides_rows]:
        yield Fault(
            f"Row-level security of {_listed(hidden)} hides rows from the user {table.user}",
            f"ALTER ROLE {table.user} BYPASSRLS; or connect as the owner of the table.",
            hides=parts[0].hides_rows,
        )


def unindexed(table: Description, clock: str | None) -> Iterator[Fault]:
    """Indexes that a large table lacks: on the clock, and on the columns that refer to it."""
    if clock is not None and table.rows >= BIG and clock not in table.leading:
        yield Fault(
            f"No index of {table.name} begins with the clock {clock}: each run reads about {table.rows:,.0f} rows",
            f"CREATE INDEX CONCURRENTLY ON {table.name} ({_quoted(clock)});"
            + (" On a partitioned table, create it on each partition." if table.kind == "p" else ""),
            refuses=False,
        )
    for key in table.keys:
        if not key.indexed and key.rows >= BIG:
            yield Fault(
                f"No index of {key.table} begins with {', '.join(key.columns)} (foreign key {key.name}): for each row "
                f"that goes the database reads about {key.rows:,.0f} rows",
                f"CREATE INDEX CONCURRENTLY ON {key.table} ({', '.join(map(_quoted, key.columns))});",
                refuses=False,
            )


def unreadable_referrers(table: Description) -> Iterator[Fault]:
    """Tables that refer to this one and that the user may not read, so that refused rows are found one by one."""
    for key in table.keys:
        if not key.readable:
            yield Fault(
                f"The user {table.user} cannot read {key.table}, whose foreign key {key.name} refers to {table.name}: "
                "rows that it keeps are found by trying",
                f"GRANT SELECT ON {key.table} TO {table.user};",
                refuses=False,
            )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _missing(right: str, tables: Sequence[str], user: str, shown: str | None = None, *, hides: bool = False) -> Fault:
    more = " (and the other partitions)" if len(tables) > GRANTED else ""
    return Fault(
        f"The user {user} has no right to {shown or right} on {_listed(tables)}",
        f"GRANT {right} ON {', '.join(tables[:GRANTED])}{more} TO {user};",
        hides=hides,
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} other partitions" if more > 0 else "")


def _execute(connection: Connection, sql: str, parameters: Mapping[str, Any]) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), parameters)
