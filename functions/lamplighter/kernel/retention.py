"""Retention: a rule says which rows of a table are too old, one engine deletes, archives or marks them.

    Rule(name="downloads", table="handled_downloads", clock="timestamp", keep=timedelta(days=14), action=Delete())

`preview` counts what `apply` would change, `simulate` what it would under another `keep`; all ask one predicate
(`_predicate`). What is due follows from the rows alone, so a run that was stopped or killed is resumed by a new one.

`apply` changes a batch with each statement, and each statement is a transaction of its own that takes about
`AIM * target`, holds its locks no longer, and waits at most `LOCK_WAIT` for a row that somebody else holds:

- Batches are spans of time where the planner would find the rows by an index, and ranges of blocks where it would read
  the table, or where there are so many rows without order that each span would visit the same blocks again.
- A batch is first tried as it is, and given up when it meets a locked row; only then is it repeated with `FOR UPDATE
  SKIP LOCKED`, which writes each row twice and is half as fast. A skipped row is taken the next time.
- A batch that takes too long is cancelled by the server and halved. One that the database refuses (a foreign key, a
  trigger) is halved until the refused rows stand alone; they are reported and the others go on.

PostgreSQL 14 or newer. This module imports SQLAlchemy only where it is used.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import randrange
from typing import TYPE_CHECKING, Any, Final, Literal

from lamplighter.kernel.errors import Permanent, Retryable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError

TARGET: Final = timedelta(milliseconds=100)
"""How long a batch may hold its locks, by default; no statement takes more than twice as long."""
LOCK_WAIT: Final = timedelta(milliseconds=10)
"""A batch gives up after this when somebody holds one of its rows."""
PREVIEW_TIMEOUT: Final = timedelta(seconds=60)
"""How long counting may take; it locks nothing."""
MAX_SKEW: Final = timedelta(minutes=5)
"""By how much the database's clock may differ from ours."""
NAMED_FAILURES: Final = 100
"""Failures that are spelled out; the others are counted."""
ISOLATED: Final = 16
"""Refused rows that are searched for in one batch. Where there are more, what is left around them waits."""
WINDOW: Final = 50_000
"""With fewer rows than this, a span in which some are refused or locked is searched row by row."""
START_COST: Final = 1_500
"""Of the first span, as the planner reckons: some 20 ms where the table is in memory."""
START_BLOCKS: Final = 64
MAX_BLOCKS: Final = 2048
"""Of a range: 16 MB, for blocks without old rows cost little, and the next ones may be full of them."""
GROWTH: Final = 4
"""A batch is at most so many times as large as the one before."""
VISITS: Final = 2
"""Rows of a block: from here on it is cheaper to read the block once than to come for each of them."""
AIM: Final = 0.45
"""The share of the target that a batch is made to take: the next one may be slower. The server cancels it at the
target; the commit, which has to bring to disk what the batch changed, comes on top."""
MICROSECOND: Final = timedelta(microseconds=1)

type Stop = Literal["cancelled", "out_of_time", "ceiling"] | None
type Trouble = Literal["late", "locked", "refused"]


# -- rules -----------------------------------------------------------------------------------------------------------


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


# -- answers ---------------------------------------------------------------------------------------------------------


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


# -- what is due -----------------------------------------------------------------------------------------------------


def preview(engine: Engine, rule: Rule, *, now: datetime, keep: timedelta) -> Candidates:
    """What `apply` would change (REQUIREMENTS K11); locks nothing.

    Args:
        engine: of `kernel.database`.
        rule: what to count.
        now: the present moment, aware.
        keep: the retention in force, at least the rule's floor.

    Raises:
        Permanent: `keep` is below the floor, table and rule do not fit, or counting takes too long.
        Retryable: somebody has locked the whole table.
        DatabaseUnavailable: the database is down.
    """
    [found] = _count(engine, rule, [_cutoff(rule, now, keep)])
    return found


def simulate(
    engine: Engine,
    rule: Rule,
    *,
    now: datetime,
    keep: timedelta,
    current: timedelta | None = None,
    timeout: timedelta = PREVIEW_TIMEOUT,
) -> Simulation:
    """What would be due if `keep` were so, beside what is due under `current` (the rule's own unless given).

    Both are counted in one snapshot, in at most `timeout` each; nothing is locked. Raises as `preview` does.
    """
    cutoffs = [_cutoff(rule, now, rule.keep if current is None else current), _cutoff(rule, now, keep)]
    before, after = _count(engine, rule, cutoffs, timeout)
    return Simulation(current=before, proposed=after)


def _cutoff(rule: Rule, now: datetime, keep: timedelta) -> datetime:
    if keep < rule.floor:
        raise Permanent(f"{rule.name}: rows are kept for at least {rule.floor}, not {keep}.")
    try:
        return now - keep
    except OverflowError:
        raise Permanent(f"{rule.name}: {keep} before {now} is before the calendar begins.") from None


def _count(
    engine: Engine, rule: Rule, cutoffs: Sequence[datetime], timeout: timedelta = PREVIEW_TIMEOUT
) -> list[Candidates]:
    from sqlalchemy.exc import DBAPIError

    from lamplighter.kernel.database import bound_statements

    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection:
        bound_statements(connection, statement=timeout)
        try:
            table = _look(connection, rule)
            clock = _quoted(rule.clock) if rule.clock else "NULL"
            sizes = " + ".join(f"coalesce(pg_column_size({_quoted(name)}), 0)" for name in table.columns)
            query = (
                f"SELECT count(*) AS rows, coalesce(sum({sizes}), 0) AS bytes,"  # noqa: S608 - identifiers are quoted
                f" CAST(min({clock}) AS timestamptz) AS oldest, CAST(max({clock}) AS timestamptz) AS newest"
                f" FROM {_name(rule.table)} AS {_quoted(_alias(rule))} WHERE {table.predicate}"
            )
            found = [_execute(connection, query, _parameters(rule, cutoff)).one() for cutoff in cutoffs]
        except DBAPIError as error:
            if _trouble(error) == "late":
                raise Permanent(
                    f"{rule.name}: counting takes more than {timeout.seconds} s; an index on the clock helps."
                ) from error
            raise _named(rule, error) from error
    return [Candidates(rows=row.rows, bytes=int(row.bytes), oldest=row.oldest, newest=row.newest) for row in found]


def _predicate(rule: Rule, columns: Mapping[str, str]) -> str:
    """The one condition of preview, count and action. `columns` are the table's, with their types."""
    conditions = [f"({rule.where}\n)"]  # the line's end closes a comment
    if rule.clock:
        clock = _quoted(rule.clock)
        conditions = [f"{clock} > '-infinity'", f"{clock} < :cutoff", *conditions]
    if isinstance(rule.action, Set):
        differs = (f"{_quoted(name)} IS DISTINCT FROM {value}" for name, value in _values(rule.action, columns))
        conditions.append(f"({' OR '.join(differs)})")
    return " AND ".join(conditions)


def _values(action: Set, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each column and its value, cast to the column's type: otherwise 0.1 and a real would differ for ever."""
    for n, name in enumerate(action.values):
        yield name, f"CAST(:value{n} AS {columns[name]})"


def _parameters(rule: Rule, cutoff: datetime) -> dict[str, object]:
    values = rule.action.values.values() if isinstance(rule.action, Set) else ()
    return {"cutoff": cutoff} | {f"value{n}": value for n, value in enumerate(values)}


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """A table that holds rows itself: the rule's own, or a partition of it."""

    name: str
    """Quoted for SQL."""
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What the database says about a rule's table."""

    columns: Mapping[str, str]
    """Their types, by name."""
    leaves: Sequence[_Leaf]
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


def _look(connection: Connection, rule: Rule) -> _Table:
    """The rule's table, once it is certain that the rule fits it."""
    into = rule.action.into if isinstance(rule.action, Archive) else ""
    row = _execute(connection, _LOOK, {"table": _plain(rule.table), "into": _plain(into) if into else ""}).one()
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
        _Leaf(name=f"{_quoted(schema)}.{_quoted(name)}", blocks=blocks) for schema, name, _, blocks in row.leaves or ()
    ]
    return _Table(columns=columns, leaves=leaves, predicate=_predicate(rule, columns), now=row.now)


def _plain(table: str) -> str:
    """`schema.table` with both quoted; the first dot ends the schema."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))


def _name(table: str) -> str:
    return _plain(table).replace(":", r"\:")  # SQLAlchemy would take a colon for a parameter


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""').replace(":", r"\:") + '"'


def _alias(rule: Rule) -> str:
    """By what name `where` may call the table, whichever partition it is."""
    return rule.table.split(".", 1)[-1]


def _execute(connection: Connection, sql: str, parameters: Mapping[str, object]) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), parameters)


# -- errors ----------------------------------------------------------------------------------------------------------

_LATE: Final = "57014"
_LOCKED: Final = ("55P03", "40P01", "40001")
"""A lock was not to be had, a deadlock, a serialization failure."""
_REFUSED: Final = ("09", "22", "23", "27", "44", "P0")
"""SQLSTATE classes that one row can cause: triggers, bad data, constraints, check options, RAISE."""


def _trouble(error: DBAPIError) -> Trouble | None:
    """What is wrong with a batch, or None when the error is not about its rows."""
    state = str(_facts(error).get("C", ""))
    if state == _LATE:
        return "late"
    if state in _LOCKED:
        return "locked"
    return "refused" if state.startswith(_REFUSED) else None


def _named(rule: Rule, error: DBAPIError) -> Exception:
    """The error for the caller: a rule that does not fit (syntax, names, rights) is permanent, a lock passes."""
    facts = _facts(error)
    if str(facts.get("C", "")).startswith("42"):
        return Permanent(f"{rule.name}: {facts['M']}.")
    if _trouble(error) == "locked":
        return Retryable(f"{rule.name}: somebody has locked {rule.table}; try again later.")
    return error


def _facts(error: DBAPIError) -> Mapping[str, object]:
    """The fields of PostgreSQL's error message."""
    facts = error.orig.args[0] if error.orig and error.orig.args else None
    return facts if isinstance(facts, dict) else {}


# -- places: which rows a batch looks at -----------------------------------------------------------------------------

POSITIONS: Final = 2048
"""Positions that are reckoned for a block; even one of 32 kB has fewer rows."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The rows stored from one position up to another; a row's position is `block * POSITIONS + offset`."""

    first: int
    end: int

    sql = "ctid >= CAST(:first AS tid) AND ctid < CAST(:end AS tid)"

    def parameters(self) -> dict[str, object]:
        return {"first": _tid(self.first), "end": _tid(self.end)}

    def halves(self) -> tuple[_Blocks, ...]:
        middle = (self.first + self.end) // 2
        return (_Blocks(self.first, middle), _Blocks(middle, self.end)) if middle > self.first else ()


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows whose clock is from one moment up to another."""

    clock: str
    first: datetime
    end: datetime

    @property
    def sql(self) -> str:
        return f"{self.clock} >= :first AND {self.clock} < :end"

    def parameters(self) -> dict[str, object]:
        return {"first": self.first, "end": self.end}

    def halves(self) -> tuple[_Span, ...]:
        middle = self.first + (self.end - self.first) / 2
        if not self.first < middle < self.end:
            return ()
        return _Span(self.clock, self.first, middle), _Span(self.clock, middle, self.end)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows one by one."""

    tids: Sequence[str]

    sql = "ctid = ANY (CAST(:tids AS tid[]))"

    def parameters(self) -> dict[str, object]:
        return {"tids": '{"' + '","'.join(self.tids) + '"}'}

    def halves(self) -> tuple[_Rows, ...]:
        middle = len(self.tids) // 2
        return (_Rows(self.tids[:middle]), _Rows(self.tids[middle:])) if middle else ()


type _Place = _Blocks | _Span | _Rows


def _tid(position: int) -> str:
    block, offset = divmod(position, POSITIONS)
    return f"({block},{offset})"


# -- the engine ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pace:
    """How large the next batch may be, learnt from what the last ones cost. Sizes are in any unit, costs in seconds."""

    size: float
    goal: float
    """Seconds that a batch should take."""
    limit: float = float("inf")
    cost: float = 0.0
    """Of a unit: the last batch's; but a costly one is forgotten by and by only, for it may come again."""

    def learn(self, size: float, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        self.cost = max(seconds / size, 0.7 * self.cost)
        self.size = min(self.goal / self.cost, GROWTH * size, self.limit)

    def halve(self) -> None:
        """A batch took too long."""
        self.size /= 2


def apply(
    engine: Engine,
    rule: Rule,
    *,
    now: datetime,
    keep: timedelta,
    stop: Callable[[], Stop],
    progress: Callable[[int, str], None],
    ceiling: int | None = None,
    target: timedelta = TARGET,
) -> Applied:
    """Changes what is due, a batch at a time (REQUIREMENTS B4, C16, E1).

    Args:
        engine: of `kernel.database`.
        rule: what to change.
        now: the present moment, aware; the database's clock must not differ by more than `MAX_SKEW`.
        keep: the retention in force, at least the rule's floor.
        stop: asked before each batch why to stop now, or None.
        progress: told how many percent are done, and a sentence.
        ceiling: how many rows may be changed at most; with one, every batch goes the slower way.
        target: how long a batch may hold its locks; no statement takes more than twice as long.

    Raises:
        Permanent: `keep` is below the floor, table and rule do not fit, or the clocks differ: nothing was touched.
        Retryable: somebody has locked the whole table.
        DatabaseUnavailable: the database is down, or went away; what was changed stays changed.
    """
    cutoff = _cutoff(rule, now, keep)
    with engine.connect() as connection, _named_errors(rule):
        table = _look(connection, rule)
        if abs(table.now - now) > MAX_SKEW:
            raise Permanent(
                f"{rule.name}: the database's clock says {table.now:%Y-%m-%d %H:%M:%S}, ours {now:%Y-%m-%d %H:%M:%S} "
                "(UTC): nothing was touched."
            )
        connection.rollback()  # the pool's ping began a transaction, in which no statement would commit by itself
        connection.execution_options(isolation_level="AUTOCOMMIT")
        work = _Work(
            connection=connection,
            rule=rule,
            table=table,
            cutoff=cutoff,
            stop=stop,
            progress=progress,
            ceiling=ceiling,
            target=target,
        )
        return work.run()


@contextmanager
def _named_errors(rule: Rule) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as error:
        raise _named(rule, error) from error


@contextmanager
def _impatient(connection: Connection, target: timedelta) -> Iterator[None]:
    """The connection gives up early; what is left of a batch's time is for its commit."""
    limits = (("statement_timeout", target), ("lock_timeout", LOCK_WAIT))
    sets = (f"SET {name} = '{limit / timedelta(milliseconds=1):.0f}ms'" for name, limit in limits)
    _execute(connection, "; ".join(sets), {})
    try:
        yield
    except BaseException:
        connection.invalidate()  # nobody shall find it impatient, or in the middle of a statement
        raise
    _execute(connection, "RESET statement_timeout; RESET lock_timeout", {})


class _Unsplittable(Exception):
    """One moment has more rows than can be dealt with at once."""


@dataclass(slots=True, kw_only=True)
class _Work:
    """One run of `apply`, and what it has done so far."""

    connection: Connection
    rule: Rule
    table: _Table
    cutoff: datetime
    stop: Callable[[], Stop]
    progress: Callable[[int, str], None]
    ceiling: int | None
    target: timedelta
    rows: int = 0
    batches: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: int = 0
    late: int = 0
    """Single rows that took too long."""
    stopped: Stop = None

    def run(self) -> Applied:
        """Goes through the leaves, one after the other."""
        for number, leaf in enumerate(self.table.leaves):
            if leaf.blocks:
                self._walk(leaf, number)
            if self.stopped:
                break
        return Applied(
            rows=self.rows,
            batches=self.batches,
            stopped="ceiling" if self.rows == self.ceiling else self.stopped,
            failed=self.failed,
            failures=tuple(self.failures),
            skipped=self.skipped,
        )

    def _walk(self, leaf: _Leaf, number: int) -> None:
        cost = self._cost(leaf)
        if cost is None:
            with _impatient(self.connection, self.target):
                self._walk_blocks(leaf, number)
        elif oldest := self._oldest(leaf):
            with _impatient(self.connection, self.target):
                try:
                    self._walk_spans(leaf, number, oldest, cost)
                except _Unsplittable:
                    self._walk_blocks(leaf, number)

    def _cost(self, leaf: _Leaf) -> float | None:
        """What the planner reckons for finding the rows by an index; None where reading the whole leaf is cheaper.

        That is where the planner itself would read it, and where the rows are many and in no order: each batch would
        come to the same blocks again.
        """
        if not self.rule.clock:
            return None
        query = f"EXPLAIN (FORMAT JSON) SELECT FROM {self._from(leaf)} WHERE {self.table.predicate} FOR UPDATE"
        [plan] = _execute(self.connection, query, self._parameters()).scalar_one()
        rows, cost = plan["Plan"]["Plan Rows"], plan["Plan"]["Total Cost"]
        scans = {node["Node Type"] for node in _nodes(plan["Plan"]) if node.get("Alias") == _alias(self.rule)}
        again_and_again = "Bitmap Heap Scan" in scans and rows > VISITS * leaf.blocks
        return None if again_and_again or "Seq Scan" in scans else float(cost)

    def _oldest(self, leaf: _Leaf) -> datetime | None:
        """The first clock that is due."""
        query = f"SELECT CAST(min({self._clock}) AS timestamptz) FROM {self._from(leaf)} WHERE {self.table.predicate}"  # noqa: S608
        oldest: datetime | None = _execute(self.connection, query, self._parameters()).scalar_one()
        return oldest

    def _walk_spans(self, leaf: _Leaf, number: int, oldest: datetime, cost: float) -> None:
        """One span of time after the other, the oldest first."""
        whole = (self.cutoff - oldest) / MICROSECOND
        pace = _Pace(size=whole * min(1.0, START_COST / cost), goal=self._goal(), limit=whole)
        first = oldest
        while first < self.cutoff and not self._stops():
            end = min(first + max(1, round(pace.size)) * MICROSECOND, self.cutoff)
            self._change(leaf, _Span(self._clock, first, end), pace, (end - first) / MICROSECOND)
            first = end
            self._tell(number, (first - oldest) / MICROSECOND / whole)

    def _walk_blocks(self, leaf: _Leaf, number: int) -> None:
        """All blocks, from any one on and round: runs that are stopped early must not all end at the same place."""
        pace = _Pace(size=START_BLOCKS, goal=self._goal(), limit=MAX_BLOCKS)
        start, done = randrange(leaf.blocks), 0  # noqa: S311
        while done < leaf.blocks and not self._stops():
            first = (start + done) % leaf.blocks
            size = min(max(1, int(pace.size)), leaf.blocks - max(first, done))
            self._change(leaf, _Blocks(first * POSITIONS, (first + size) * POSITIONS), pace, size)
            done += size
            self._tell(number, done / leaf.blocks)

    def _change(self, leaf: _Leaf, whole: _Place, pace: _Pace, size: float) -> None:
        """One batch; where it takes too long or the database refuses it, in parts."""
        from sqlalchemy.exc import DBAPIError

        pending, searched = [whole], 0
        while pending and not self._stops():
            place = pending.pop()
            began = time.perf_counter()
            try:
                self._take(leaf, place)
            except DBAPIError as error:
                trouble = _trouble(error)
                if trouble is None:
                    raise
                if trouble == "late":
                    pace.halve()
                parts = self._parts(leaf, place, trouble)
                if not parts:
                    self._give_up(leaf, place, trouble, error)
                    searched += 1
                elif trouble != "refused" or searched < ISOLATED:
                    pending += reversed(parts)
                else:
                    self.skipped += self._left(leaf, place)
            else:
                if place is whole:
                    pace.learn(size, time.perf_counter() - began)

    def _take(self, leaf: _Leaf, place: _Place) -> None:
        """Changes the rows of a place that are due, in one transaction.

        Raises:
            DBAPIError: nothing was changed.
        """
        from sqlalchemy.exc import DBAPIError

        if self.ceiling is None:
            try:
                self._do(leaf, place.sql, place.parameters())
                return
            except DBAPIError as error:
                if _trouble(error) != "locked":
                    raise
        limit = None if self.ceiling is None else self.ceiling - self.rows
        free = (
            f"ctid = ANY (ARRAY(SELECT ctid FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate}"  # noqa: S608
            " LIMIT CAST(:limit AS bigint) FOR UPDATE SKIP LOCKED))"
        )
        changed = self._do(leaf, free, place.parameters() | {"limit": limit})
        if changed != limit:
            self.skipped += self._left(leaf, place)

    def _do(self, leaf: _Leaf, place: str, parameters: dict[str, object]) -> int:
        due = f"{place} AND {self.table.predicate}"
        delete = f"DELETE FROM {self._from(leaf)} WHERE {due}"  # noqa: S608
        match self.rule.action:
            case Delete():
                statement = delete
            case Set() as action:
                values = ", ".join(f"{_quoted(name)} = {value}" for name, value in _values(action, self.table.columns))
                statement = f"UPDATE {self._from(leaf)} SET {values} WHERE {due}"  # noqa: S608
            case Archive(into):
                columns = ", ".join(map(_quoted, self.table.columns))
                statement = (
                    f"WITH moved AS ({delete} RETURNING {columns}), kept AS (INSERT INTO {_name(into)} ({columns})"  # noqa: S608
                    f" OVERRIDING SYSTEM VALUE SELECT {columns} FROM moved) SELECT count(*) FROM moved"
                )
        result = _execute(self.connection, statement, self._parameters() | parameters)
        changed: int = result.scalar_one() if isinstance(self.rule.action, Archive) else result.rowcount
        self.rows += changed
        self.batches += 1
        return changed

    def _parts(self, leaf: _Leaf, place: _Place, trouble: Trouble) -> Sequence[_Place]:
        """What to try instead of a place; empty when it is a single row."""
        if not isinstance(place, _Span):
            return place.halves()
        if trouble != "late":
            tids = self._read(leaf, place, "CAST(ctid AS text)", limit=WINDOW)
            if len(tids) < WINDOW:
                return _Rows(tids).halves()
        if halves := place.halves():
            return halves
        raise _Unsplittable

    def _give_up(self, leaf: _Leaf, place: _Place, trouble: Trouble, error: DBAPIError) -> None:
        """Passes a single row over.

        Raises:
            Permanent: several took too long by themselves: it is not the rows.
        """
        key = self._read(leaf, place, f"CAST({_quoted(self.rule.key)} AS text)", limit=1)
        if not key or trouble == "locked":
            self.skipped += len(key)
            return
        self.failed += 1
        if len(self.failures) < NAMED_FAILURES:
            facts = _facts(error)
            reason = ": ".join(str(facts[name]) for name in ("M", "D") if name in facts)
            self.failures.append(f"{self.rule.table} {self.rule.key}={key[0]}: {reason}")
        if trouble == "late":
            self.late += 1
            if self.late == ISOLATED:
                raise Permanent(
                    f"{self.rule.name}: changing a single row takes more than {self.target}. Do the foreign keys "
                    f"that refer to {self.rule.table} have indexes?"
                )

    def _left(self, leaf: _Leaf, place: _Place) -> int:
        """How many rows of a place are still due."""
        [count] = self._read(leaf, place, "count(*)")
        return int(count)

    def _read(self, leaf: _Leaf, place: _Place, what: str, limit: int | None = None) -> list[Any]:
        """Asks about the rows of a place that are due, on a connection that is not impatient."""
        query = f"SELECT {what} FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate} LIMIT :limit"  # noqa: S608
        with self.connection.engine.connect() as patient:
            return list(_execute(patient, query, self._parameters() | place.parameters() | {"limit": limit}).scalars())

    def _from(self, leaf: _Leaf) -> str:
        return f"ONLY {leaf.name} AS {_quoted(_alias(self.rule))}"

    def _parameters(self) -> dict[str, object]:
        return _parameters(self.rule, self.cutoff)

    @property
    def _clock(self) -> str:
        return _quoted(self.rule.clock or "")

    def _goal(self) -> float:
        return AIM * self.target.total_seconds()

    def _stops(self) -> bool:
        """Whether to stop, and if so, why."""
        self.stopped = "ceiling" if self.rows == self.ceiling else self.stop()
        return self.stopped is not None

    def _tell(self, number: int, done: float) -> None:
        percent = int(100 * (number + done) / len(self.table.leaves))
        self.progress(percent, f"{self.rows} rows of {self.rule.table}")


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
