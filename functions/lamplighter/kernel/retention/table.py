"""A rule's table as the database describes it, the one predicate over it, and what the database's errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from lamplighter.kernel.errors import NO_TABLE, UNFIT, NoTable, Permanent, Retryable, Unfit
from lamplighter.kernel.retention import archives
from lamplighter.kernel.retention.archives import Column
from lamplighter.kernel.retention.clock import EARLIEST, Clock, accepted, clock_of, other_unit
from lamplighter.kernel.retention.rule import Archive, Parent, Rule, Set
from lamplighter.kernel.retention.where import bound

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

type Trouble = Literal["late", "locked", "refused"]


def _predicate(rule: Rule, columns: Mapping[str, str], clock: Clock | None, *, whole: bool = False) -> str:
    """The one condition of preview, count and action. `columns` are the table's, with their types.

    For the `whole` table the database may join the parents.
    """
    conditions = [f"({bound(rule.where)}\n)"]  # the line's end closes a comment
    if clock:
        conditions = [clock.due, *conditions]
    if rule.orphan_of:
        conditions.append(_orphaned(rule, rule.orphan_of, whole=whole))
    if isinstance(rule.action, Set):
        differs = (f"{quoted(name)} IS DISTINCT FROM {value}" for name, value in cast_values(rule.action, columns))
        conditions.append(f"({' OR '.join(differs)})")
    return " AND ".join(conditions)


def _orphaned(rule: Rule, parent: Parent, *, whole: bool = False) -> str:
    """In SQL, whether a row's parent is gone. Without any parents no row is an orphan: they were lost, or not restored
    yet.
    """
    other = quoted("parent" if alias(rule) != "parent" else "other")
    column = f"{quoted(alias(rule))}.{quoted(parent.column)}"
    parents = f"{spelled(parent.table)} AS {other}"
    # OFFSET 0: each row looks its parent up by an index. A join would read all parents for each batch.
    one_by_one = "" if whole else " OFFSET 0"
    gone = f"NOT EXISTS (SELECT FROM {parents} WHERE {other}.{quoted(parent.key)} = {column}{one_by_one})"
    return f"{_refers(parent, quoted(alias(rule)))} AND EXISTS (SELECT FROM {parents}) AND {gone}"


_NO_PARENT: Final = "'', '0', '-1', '00000000-0000-0000-0000-000000000000'"
"""How applications write that a row has no parent, where they do not write NULL."""


def _refers(parent: Parent, row: str) -> str:
    """In SQL, whether a row names a parent."""
    column = f"{row}.{quoted(parent.column)}"
    return f"{column} IS NOT NULL AND CAST({column} AS text) NOT IN ({_NO_PARENT})"


def cast_values(action: Set, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each column and its value, cast to the column's type: otherwise 0.1 and a real would differ for ever."""
    for n, name in enumerate(action.values):
        yield name, f"CAST(:value{n} AS {columns[name]})"


def parameters_of(rule: Rule, table: Table, cutoff: datetime) -> dict[str, object]:
    """What the predicate takes."""
    due = {"due": table.clock.value(cutoff)} if table.clock else {}
    return {"cutoff": cutoff, **due, **_values(rule)}


def _values(rule: Rule) -> dict[str, object]:
    values = rule.action.values.values() if isinstance(rule.action, Set) else ()
    return {f"value{n}": value for n, value in enumerate(values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A table that holds rows itself: the rule's own, or a partition of it."""

    name: str
    """Quoted for SQL."""
    blocks: int
    oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependants:
    """A foreign key by which the database changes other rows together with the rule's."""

    name: str
    table: str
    """That refers to the rule's table, as it is shown."""
    quoted_table: str
    columns: Sequence[str]
    keys: Sequence[str]
    """The columns of the rule's table that they refer to."""
    action: str
    """`ON DELETE CASCADE`, say."""
    own: bool
    """Whether the table refers to itself."""
    oids: frozenset[int]
    """Of the table that refers, and of its partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """A foreign key by which rows of other tables, or of the rule's own, keep a row.

    It is one for which the database refuses to delete a row while others refer to it, or one of the rule's table to
    itself of any kind: the rows that refer to others go before them.
    """

    name: str
    table: str
    """That refers to the rule's table, as it is shown."""
    own: bool
    """Whether the table refers to itself."""
    action: str
    """ON DELETE."""
    leaves: frozenset[int]
    """The tables whose rows the key can refer to."""
    any_refers: str
    """In SQL, whether another row refers to the row."""
    keeps: str
    """In SQL, whether a row refers to it that will not go: of another table, or of this one and not due."""
    edges: str
    """In SQL, the join condition of a row `kept` and a row `referrer`; empty unless `own`."""
    kept: str
    """In SQL, the columns of `kept` that `edges` needs, after a comma."""
    referrers: str
    """In SQL, the table `referrer` with its columns for `edges`."""

    @property
    def chains(self) -> bool:
        """Whether a row has to wait until the due rows have gone that refer to it."""
        return self.own and self.action in ("NO ACTION", "RESTRICT", "CASCADE")

    @property
    def spared(self) -> str:
        """In SQL, whether a batch leaves a row out."""
        return self.any_refers if self.chains or not self.own else self.keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the database says about a rule's table."""

    columns: Mapping[str, str]
    """Their types, by name."""
    leaves: Sequence[Leaf]
    clock: Clock | None
    predicate: str
    whole_predicate: str
    """The same, quicker where it is asked of all rows at once."""
    now: datetime
    """By the database's clock."""
    oids: frozenset[int]
    """Of the table and its partitions."""
    partitioned: int | None
    """The table's own oid if it has partitions, which may be detached or dropped during a run."""
    into: frozenset[int]
    """Of the table that rows are archived into, and its partitions."""
    triggers: Sequence[str]
    """That fire when the rule acts, and may do otherwise than it says."""
    dependants: Sequence[Dependants]
    keepers: Sequence[Keeper]
    """Of rows that the rule deletes; those of tables that we may read."""
    referring: frozenset[int]
    """All tables that refer to the rule's."""
    parents: frozenset[int]
    """Of the table that an `orphan_of` names, and its partitions."""

    @property
    def is_watched(self) -> bool:
        """Whether each batch has to be compared with what it should have done."""
        return bool(self.triggers or self.dependants)


_LOOK: Final = """
    WITH RECURSIVE tree AS (
        SELECT CAST(to_regclass(:table) AS oid) AS oid
        UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid WHERE NOT inhdetachpending
    ), into_tree AS (
        SELECT CAST(to_regclass(:into) AS oid) AS oid
        UNION SELECT inhrelid FROM pg_inherits JOIN into_tree ON inhparent = into_tree.oid WHERE NOT inhdetachpending
    ), stored AS (  -- a domain as the type that it is made of
        SELECT pg_attribute.*, CASE typtype WHEN 'd' THEN format_type(typbasetype, typtypmod)
            ELSE format_type(atttypid, atttypmod) END AS stored
        FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
        WHERE attrelid IN (to_regclass(:table), to_regclass(:into)) AND attnum > 0 AND NOT attisdropped
    ), leaf AS (
        SELECT pg_class.oid, nspname, relname, relkind,
            CASE relkind WHEN 'r' THEN pg_relation_size(pg_class.oid) ELSE 0 END
                / CAST(current_setting('block_size') AS int) AS blocks
        FROM tree JOIN pg_class USING (oid) JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relkind <> 'p'
    ), concerned AS (
        SELECT oid, CAST(:event AS int) AS event FROM tree UNION ALL SELECT oid, 4 FROM into_tree
    )
    SELECT clock_timestamp() AS now, to_regclass(:table) IS NOT NULL AS found,
        (SELECT json_object_agg(attname, format_type(atttypid, atttypmod) ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped) AS columns,
        (SELECT json_agg(attname) FROM pg_attribute
            WHERE attrelid = to_regclass(:table) AND attnum > 0 AND attnotnull) AS required,
        (SELECT json_agg(attname) FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0
            AND (attgenerated <> '' OR attidentity = 'a')) AS generated,
        (SELECT json_object_agg(attname, stored) FROM stored WHERE attrelid = to_regclass(:table)) AS stored_columns,
        (SELECT json_object_agg(attname, json_build_array(stored, attgenerated <> '',
                attnotnull AND NOT atthasdef AND attidentity = '')) FROM stored
            WHERE attrelid = to_regclass(:into)) AS into_columns,
        (SELECT json_agg(attname) FROM pg_attribute AS mine JOIN pg_attribute AS theirs USING (attname)
                JOIN pg_type AS one ON one.oid = mine.atttypid JOIN pg_type AS other ON other.oid = theirs.atttypid
            WHERE mine.attrelid = to_regclass(:table) AND theirs.attrelid = to_regclass(:into)
                AND mine.attnum > 0 AND theirs.attnum > 0 AND one.oid <> other.oid AND other.typcategory <> 'S'
                AND 'd' NOT IN (one.typtype, other.typtype) AND 'A' NOT IN (one.typcategory, other.typcategory)
                AND NOT EXISTS (SELECT FROM pg_cast WHERE castsource = one.oid AND casttarget = other.oid
                    AND castcontext <> 'e')) AS unlike,
        (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE pg_class.oid = to_regclass(:into)) AS into_schema,
        (SELECT json_agg(json_build_array(nspname, relname, relkind, blocks, CAST(oid AS bigint)) ORDER BY relname)
            FROM leaf) AS leaves,
        (SELECT json_agg(CAST(oid AS bigint)) FROM tree) AS oids,
        (SELECT CAST(oid AS bigint) FROM pg_class WHERE oid = to_regclass(:table) AND relkind = 'p') AS partitioned,
        (SELECT json_agg(CAST(oid AS bigint)) FROM into_tree WHERE oid IS NOT NULL) AS into_oids,
        (SELECT json_agg(json_build_array(rulename, CAST(CAST(ev_class AS regclass) AS text)) ORDER BY rulename)
            FROM pg_rewrite JOIN concerned ON ev_class = concerned.oid
            WHERE ev_enabled IN ('O', 'A')
                AND ev_type = CAST(CASE event WHEN 4 THEN '3' WHEN 8 THEN '4' ELSE '2' END AS "char")
        ) AS rules,
        (SELECT json_agg(DISTINCT CAST(tgname AS text)) FROM pg_trigger JOIN concerned ON tgrelid = concerned.oid
            WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND (tgtype & event) > 0) AS triggers,
        (SELECT json_agg(json_build_object(
                'name', conname, 'table', CAST(CAST(conrelid AS regclass) AS text),
                'oid', CAST(conrelid AS bigint), 'schema', nspname, 'relation', relname, 'kind', relkind,
                'own', conrelid IN (SELECT oid FROM tree),
                'how', CASE CAST(:event AS int) WHEN 8 THEN confdeltype ELSE confupdtype END,
                'readable', has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(conrelid, 'SELECT')
                    AND NOT row_security_active(conrelid),
                'partitions', (SELECT json_agg(CAST(relid AS bigint)) FROM pg_partition_tree(conrelid)),
                'leaves', (SELECT json_agg(CAST(relid AS bigint)) FROM (
                    SELECT confrelid UNION SELECT CAST(relid AS oid) FROM pg_partition_tree(confrelid)) AS of(relid)),
                'operators', (SELECT json_agg(json_build_array(operators.nspname, oprname) ORDER BY n)
                    FROM unnest(conpfeqop) WITH ORDINALITY AS k(equal, n) JOIN pg_operator ON pg_operator.oid = equal
                    JOIN pg_namespace AS operators ON operators.oid = oprnamespace),
                'columns', (SELECT json_agg(attname ORDER BY n) FROM unnest(conkey) WITH ORDINALITY AS k(attnum, n)
                    JOIN pg_attribute USING (attnum) WHERE attrelid = conrelid),
                'keys', (SELECT json_agg(attname ORDER BY n) FROM unnest(confkey) WITH ORDINALITY AS k(attnum, n)
                    JOIN pg_attribute USING (attnum) WHERE attrelid = confrelid)) ORDER BY conname)
            FROM pg_constraint AS refers JOIN pg_class ON pg_class.oid = conrelid
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE contype = 'f' AND confrelid IN (SELECT oid FROM tree)
                AND NOT EXISTS (SELECT FROM pg_constraint AS whole WHERE whole.oid = refers.conparentid
                    AND whole.confrelid IN (SELECT oid FROM tree))
        ) AS refers
"""

_DELETES, _UPDATES = 8, 16
"""Events as `pg_trigger.tgtype` has them."""
HOW: Final = {"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
"""How the database changes rows together with those that they refer to."""
_KEEPING: Final = {"a": "NO ACTION", "r": "RESTRICT"}


def look(connection: Connection, rule: Rule) -> Table:
    """The rule's table, once it is certain that the rule fits it.

    Raises:
        Permanent: it does not fit; the first reason.
    """
    table, reasons = examine(connection, rule)
    for reason in reasons:
        raise reason
    assert table is not None, "a rule that fits has a table"
    return table


def examine(connection: Connection, rule: Rule, *, is_readable: bool = True) -> tuple[Table | None, list[Permanent]]:
    """The rule's table, and the reasons why the rule does not fit it. None: not even counting is possible.

    With `is_readable` false nothing is asked for which the user needs SELECT.
    """
    into = rule.action.into if isinstance(rule.action, Archive) else ""
    event = _UPDATES if isinstance(rule.action, Set) else _DELETES
    asked = {"table": _plain(rule.table), "into": _plain(into) if into else "", "event": event}
    row = execute(connection, _LOOK, asked).one()
    reasons, table = list(_misfits(rule, row)), None
    if not reasons:
        try:
            table = _table(connection, rule, row, event, is_readable=is_readable)
        except Permanent as reason:
            reasons.append(reason)
    reasons += [
        Permanent(
            f"{rule.name}: the rewrite rule {name} of the table {owner} does otherwise than the retention rule says; "
            "nothing was touched."
        )
        for name, owner in row.rules or ()
    ]
    return table, reasons


_LENGTH: Final = re.compile(r"(?:character|bit)(?: varying)?\((\d+)\)")
"""Types that a cast to them cuts a value to."""


def _misfits(rule: Rule, row: Any) -> Iterator[Permanent]:
    """Why the rule's table cannot be read as the rule says."""
    into = rule.action.into if isinstance(rule.action, Archive) else ""
    if not row.found:
        yield NoTable(f"{rule.name}: there is no table {rule.table} in the database.")
        return
    yield from _inside(rule, "table", rule.table, {schema for schema, *_ in row.leaves or ()})
    if into:
        yield from _inside(rule, "action", into, {row.into_schema})
    if unfit := [name for _, name, kind, *_ in row.leaves or () if kind != "r"]:
        yield Unfit(f"{rule.name}: {', '.join(unfit)} is no ordinary or partitioned table.")
    columns: dict[str, str] = row.columns or {}
    values = rule.action.values if isinstance(rule.action, Set) else {}
    parent = rule.orphan_of
    for column in (rule.key, *([rule.clock] if rule.clock else []), *values, *([parent.column] if parent else [])):
        if column not in columns:
            hint = " Give the rule a key." if column == rule.key else ""
            yield Unfit(f"{rule.name}: the table {rule.table} has no column {column}.{hint}")
    if required := [column for column in row.required or () if values.get(column, "") is None]:
        yield Permanent(f"{rule.name}: the column {required[0]} of {rule.table} takes no null.")
    if generated := [column for column in row.generated or () if column in values]:
        yield Permanent(f"{rule.name}: the column {generated[0]} of {rule.table} is generated, and takes no value.")
    if rule.clock in columns and not clock_of(quoted(rule.clock), rule.clock_unit, columns[rule.clock]):
        integers = columns[rule.clock] in ("integer", "bigint") and rule.clock_unit in ("timestamp", "date")
        hint = " Is its clock_unit seconds or milliseconds?" if integers else ""
        yield Unfit(
            f"retention.rules.{rule.name}.clock: the column {rule.clock} of {rule.table} is of type "
            f"{columns[rule.clock]}; the clock_unit {rule.clock_unit} takes {accepted(rule.clock_unit)}.{hint}"
        )
    if isinstance(rule.action, Archive):
        yield from _unlike_archive(rule, rule.action, row)
    for column, value in values.items():
        length = _LENGTH.fullmatch(columns.get(column, ""))
        if length and value is not None and len(str(value)) > int(length[1]):  # a cast would cut it off
            yield Permanent(
                f"retention.rules.{rule.name}.action: the column {column} of {rule.table} takes at most {length[1]} "
                f"characters, got {len(str(value))}."
            )


def _unlike_archive(rule: Rule, action: Archive, row: Any) -> Iterator[Permanent]:
    """Why a table does not keep the rows that are archived into it."""
    columns: dict[str, str] = row.columns or {}
    if {*(row.oids or ())} & {*(row.into_oids or ())}:
        yield Permanent(f"{rule.name}: the table {action.into} holds the rows that are to be archived into it.")
    elif row.into_columns is None:
        yield Permanent(f"{rule.name}: there is no table {action.into} to archive into.")
    elif missing := [column for column in columns if column not in row.into_columns]:
        yield Permanent(f"{rule.name}: the table {action.into} lacks {', '.join(missing)} of {rule.table}.")
    else:
        archive = {name: Column(*facts) for name, facts in row.into_columns.items()}
        unlike = frozenset(row.unlike or ())
        stored: dict[str, str] = row.stored_columns
        for column, fault in archives.faults(stored, archive, unlike=unlike, fills=bool(row.triggers)):
            yield Permanent(f"retention.rules.{rule.name}.action: the column {column} of {action.into} {fault}.")


def _table(connection: Connection, rule: Rule, row: Any, event: int, *, is_readable: bool) -> Table:
    """The table of a rule that has no misfits.

    Raises:
        Permanent: the database does not take a part of the rule.
    """
    columns: dict[str, str] = row.columns or {}
    values = rule.action.values if isinstance(rule.action, Set) else {}
    parent = rule.orphan_of
    clock = clock_of(quoted(rule.clock), rule.clock_unit, columns[rule.clock]) if rule.clock else None
    leaves = [
        Leaf(name=f"ONLY {quoted(schema)}.{quoted(name)}", blocks=blocks, oid=oid)
        for schema, name, _, blocks, oid in row.leaves or ()
    ]
    parents = _parents(connection, rule, parent, row.oids) if parent and is_readable else frozenset()
    if is_readable:
        _demand_sound(connection, rule, columns)
    predicate = _predicate(rule, columns, clock)
    refers = row.refers or ()
    return Table(
        columns=columns,
        leaves=leaves,
        clock=clock,
        predicate=predicate,
        whole_predicate=_predicate(rule, columns, clock, whole=True),
        now=row.now,
        oids=frozenset(row.oids or ()),
        partitioned=row.partitioned,
        into=frozenset(row.into_oids or ()),
        triggers=row.triggers or (),
        dependants=[
            _dependants(one)
            for one in refers
            if one["how"] in HOW and (event == _DELETES or {*values} & {*one["keys"]})
        ],
        keepers=[
            _keeper(one, rule, predicate)
            for one in refers
            if event == _DELETES and one["readable"] and (one["how"] in _KEEPING or one["own"])
        ],
        referring=frozenset(one["oid"] for one in refers),
        parents=parents,
    )


def _inside(rule: Rule, field: str, table: str, schemas: set[str]) -> Iterator[Permanent]:
    """That a name without a schema means a table of Lamplighter's: the application's of that name is another one.

    The search path begins with the schema that is called as the database user, and the user may be `lamplighter`.
    """
    from lamplighter.kernel.database import SCHEMA

    if "." not in table and SCHEMA in schemas:
        yield Permanent(
            f"retention.rules.{rule.name}.{field}: {table} is found in the schema {SCHEMA}, which is Lamplighter's "
            f"own. Name the schema, as in public.{table}."
        )


_LOOK_AT_PARENT: Final = """
    WITH RECURSIVE tree AS (
        SELECT CAST(to_regclass(:parent) AS oid) AS oid
        UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid WHERE NOT inhdetachpending
    )
    SELECT to_regclass(:parent) IS NOT NULL AS found,
        (SELECT bool_and(relkind IN ('r', 'p')) FROM pg_class JOIN tree USING (oid)) AS is_table,
        (SELECT json_agg(CAST(oid AS bigint)) FROM tree) AS oids,
        (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE pg_class.oid = to_regclass(:parent)) AS schema,
        EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(:parent) AND attnum > 0 AND NOT attisdropped
            AND attname = :key) AS has_key
"""


def _parents(connection: Connection, rule: Rule, parent: Parent, own: Sequence[int]) -> frozenset[int]:
    """The oids of the parent's table, once it is certain that it says which rows are orphans."""
    row = execute(connection, _LOOK_AT_PARENT, {"parent": _plain(parent.table), "key": parent.key}).one()
    if not row.found:
        raise NoTable(f"{rule.name}: there is no table {parent.table} in the database.")
    for reason in _inside(rule, "orphan_of", parent.table, {row.schema}):
        raise reason
    if not row.is_table:  # a view may hide parents, a materialized one lacks the newest
        raise Permanent(f"{rule.name}: the parent {parent.table} is no ordinary or partitioned table.")
    if not row.has_key:
        raise Permanent(f"{rule.name}: the parent {parent.table} has no column {parent.key}.")
    if {*own} & {*row.oids}:
        raise Permanent(f"{rule.name}: the parent {parent.table} is the rule's own table.")
    some = f"SELECT FROM {spelled(rule.table)} AS {quoted(alias(rule))} WHERE {_refers(parent, quoted(alias(rule)))}"
    lost = f"SELECT NOT EXISTS (SELECT FROM {spelled(parent.table)}) AND EXISTS ({some})"  # noqa: S608
    if execute(connection, lost, {}).scalar_one():
        raise Permanent(
            f"{rule.name}: the parent {parent.table} has no rows, so every row of {rule.table} would be an orphan; "
            "nothing was touched."
        )
    return frozenset(row.oids)


def _demand_sound(connection: Connection, rule: Rule, columns: Mapping[str, str]) -> None:
    """The database takes each part of the rule by itself.

    `where` has to stand without the parentheses that it is put into: so it cannot end them. It is
    asked with a parameter: then the server takes one statement only.

    Raises:
        Permanent: it does not; the sentence names the field.
    """
    from sqlalchemy.exc import DBAPIError

    row = f"FROM {spelled(rule.table)} AS {quoted(alias(rule))} WHERE"
    parts = {"where": f"EXPLAIN SELECT CAST(:cutoff AS timestamptz) {row} {bound(rule.where)}"}
    if rule.orphan_of:
        parts["orphan_of"] = f"EXPLAIN SELECT {row} {_orphaned(rule, rule.orphan_of)}"
    if isinstance(rule.action, Set):
        parts["action"] = f"SELECT {', '.join(value for _, value in cast_values(rule.action, columns))}"
    parameters = {"cutoff": EARLIEST, **_values(rule)}
    for field, query in parts.items():
        try:
            execute(connection, query, parameters)
        except DBAPIError as error:
            facts = facts_of(error)
            state = str(facts.get("C", ""))
            if state.startswith(_UNSOUND) and state not in _NOT_OF_A_PART:
                kind = Unfit if state in UNFIT else Permanent
                raise kind(f"retention.rules.{rule.name}.{field}: {facts['M']}.") from error
            raise


def _keeper(found: Mapping[str, Any], rule: Rule, predicate: str) -> Keeper:
    row, own = quoted(alias(rule)), found["own"]
    whole = "" if found["kind"] == "p" else "ONLY "  # the key holds for no table that inherits
    table = f"{whole}{quoted(found['schema'])}.{quoted(found['relation'])}"
    columns, keys, operators = found["columns"], found["keys"], found["operators"]
    equal = [f"OPERATOR({quoted(schema)}.{name})" for schema, name in operators]
    shown = ", ".join(f"{quoted(column)} AS f{n}" for n, column in enumerate(columns))
    # A rule's `where` may name its table: what asks about another row of it stands in a query of its own.
    due = f"({predicate}) IS TRUE" if own else "false"
    referrers = f'(SELECT tableoid AS t, ctid AS c, {shown}, {due} AS due FROM {table} AS {row}) AS "referrer"'  # noqa: S608

    def joined(names: Iterable[str], other: str) -> str:
        pairs = enumerate(zip(names, equal, strict=True))
        same = [f'{name} {operator} "referrer".f{n}' for n, (name, operator) in pairs]
        return " AND ".join([*same, f'("referrer".t, "referrer".c) <> {other}'] if own else same)

    condition = joined((f"{row}.{quoted(key)}" for key in keys), f"({row}.tableoid, {row}.ctid)")
    # OFFSET 0: each row looks its referrers up by an index. A join would read the whole referring table for each batch.
    exists = f"EXISTS (SELECT FROM {referrers} WHERE {condition}"
    return Keeper(
        name=found["name"],
        table=found["table"],
        own=own,
        action=(_KEEPING | HOW)[found["how"]],
        leaves=frozenset(found["leaves"]),
        any_refers=f"{exists} OFFSET 0)",
        keeps=f'{exists} AND NOT "referrer".due OFFSET 0)',
        edges=joined((f'"kept".k{n}' for n in range(len(keys))), '("kept".t, "kept".c)'),
        kept="".join(f", {quoted(key)} AS k{n}" for n, key in enumerate(keys)),
        referrers=referrers,
    )


def _dependants(found: Mapping[str, Any]) -> Dependants:
    return Dependants(
        name=found["name"],
        table=found["table"],
        quoted_table=f"{quoted(found['schema'])}.{quoted(found['relation'])}",
        columns=found["columns"],
        keys=found["keys"],
        action=HOW[found["how"]],
        own=found["own"],
        oids=frozenset((found["oid"], *(found["partitions"] or ()))),
    )


def demand_no_dependants(connection: Connection, rule: Rule, table: Table, cutoff: datetime) -> None:
    """Nothing but what is due changes with what is due (REQUIREMENTS S8).

    Raises:
        Unfit: a foreign key would delete or change other rows too; names their table.
    """
    for one in table.dependants:
        if sentence := dependants_not_due(connection, rule, table, cutoff, one):
            raise Unfit(sentence)


def dependants_not_due(
    connection: Connection, rule: Rule, table: Table, cutoff: datetime, one: Dependants
) -> str | None:
    """That the foreign key would delete or change rows that are not due, as a sentence, or None."""
    due = f"FROM {spelled(rule.table)} AS {quoted(alias(rule))} WHERE {table.predicate}"
    columns, keys = (", ".join(map(quoted, names)) for names in (one.columns, one.keys))
    other = f"AND ({table.predicate}) IS NOT TRUE" if one.own else ""  # what is due goes anyway
    name = quoted(alias(rule) if one.own else one.table)
    depending = f"FROM {one.quoted_table} AS {name} WHERE ({columns}) IN (SELECT {keys} {due}) {other}"
    query = f"SELECT EXISTS (SELECT {depending})"  # identifiers are quoted
    if not execute(connection, query, parameters_of(rule, table, cutoff)).scalar_one():
        return None
    verb = "update" if isinstance(rule.action, Set) else "delete"
    return (
        f"{rule.name}: rows of {one.table} that are not due depend on due rows of {rule.table} (foreign key "
        f"{one.name}, ON {verb.upper()} {one.action}); nothing was touched. Add a rule for {one.table} that "
        "runs first, or change the foreign key."
    )


def demand_unit(connection: Connection, rule: Rule, table: Table) -> None:
    """Some value of the clock is a moment in the declared unit, if any is in the other one.

    With the wrong unit no row is ever due, and a preview of none looks like a table that is clean.

    Raises:
        Permanent: the clock counts in the other unit.
    """
    clock = table.clock
    other = other_unit(clock) if clock else None
    if not clock or not other:
        return
    some = f"SELECT FROM {spelled(rule.table)} AS {quoted(alias(rule))} WHERE"
    query = f"SELECT NOT EXISTS ({some} {clock.is_plausible}) AND EXISTS ({some} {other.is_plausible})"
    if execute(connection, query, {}).scalar_one():
        right = "milliseconds" if rule.clock_unit == "seconds" else "seconds"
        raise Permanent(
            f"retention.rules.{rule.name}.clock_unit: {rule.clock} of {rule.table} has no moment between 1990 and 2200 "
            f"in {rule.clock_unit}, but has some in {right}; nothing was touched."
        )


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


_REFERRED: Final = ("23503", "23001")
"""A foreign key is violated: NO ACTION, RESTRICT."""
_READ_ONLY: Final = "25006"
_NOT_IN_STATE: Final = "55000"
"""The table has to be set up otherwise: it publishes deletions and has no replica identity, for instance."""
_LATE: Final = "57014"
_LOCKED: Final = ("55P03", "40P01", "40001")
"""A lock was not to be had, a deadlock, a serialization failure."""
_REFUSED: Final = ("09", "22", "23", "27", "44", "P0")
"""SQLSTATE classes that one row can cause: triggers, bad data, constraints, check options, RAISE."""
_SYNTAX: Final = "42601"
_UNSOUND: Final = ("0A", "22", "42", "54", "P0")
"""SQLSTATE classes of an expression that the database does not take: features, data, names and types, size, RAISE."""
_NOT_OF_A_PART: Final = (NO_TABLE, "42501")
"""Of these, what the whole rule has to do with: a table is missing, rights are."""


def trouble_with(error: DBAPIError) -> Trouble | None:
    """What is wrong with a batch, or None when the error is not about its rows."""
    state = str(facts_of(error).get("C", ""))
    if state == _LATE:
        return "late"
    if state in _LOCKED:
        return "locked"
    return "refused" if state.startswith(_REFUSED) else None


def is_referred(error: DBAPIError) -> bool:
    """Whether a foreign key refused a batch."""
    return facts_of(error).get("C") in _REFERRED


def named(rule: Rule, error: DBAPIError) -> Exception:
    """The error for the caller: a rule that does not fit (syntax, names, rights) is permanent, a lock passes."""
    facts, trouble = facts_of(error), trouble_with(error)
    state = str(facts.get("C", ""))
    if state == NO_TABLE:
        return NoTable(f"{rule.name}: {facts['M']}.")
    sentence = None
    if state == _SYNTAX:  # of all that a statement is made of, only this is SQL of the owner's
        sentence = f"retention.rules.{rule.name}.where: {facts['M']}."
    elif state.startswith("42"):
        sentence = f"{rule.name}: {facts['M']}."
    elif trouble == "refused":  # the message may hold values of the row
        reason = re.sub(r'"[^"]*"', "...", str(facts["M"]))
        sentence = f"retention.rules.{rule.name}.where: fails on a row of {rule.table}: {reason} (SQLSTATE {state})."
    elif state == _READ_ONLY:
        sentence = f"{rule.name}: the database is read-only, a standby for instance; connect to the primary."
    elif state == _NOT_IN_STATE:
        sentence = f"{rule.name}: {facts['M']}."
    elif trouble == "late":
        sentence = (
            f"{rule.name}: looking at {rule.table} takes too long. Do the clock, and the columns that refer to the "
            "table, have indexes?"
        )
    elif trouble == "locked":
        return Retryable(f"{rule.name}: somebody has locked {rule.table}; try again later.")
    kind = Unfit if state in UNFIT and trouble != "refused" else Permanent
    return kind(sentence) if sentence else error


def facts_of(error: DBAPIError) -> Mapping[str, object]:
    """The fields of PostgreSQL's error message."""
    facts = error.orig.args[0] if error.orig and error.orig.args else None
    return facts if isinstance(facts, dict) else {}
