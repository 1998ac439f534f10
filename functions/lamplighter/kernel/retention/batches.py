"""The engine: which rows a batch looks at, how large the next one may be, and one run through a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from random import randrange, shuffle
from typing import TYPE_CHECKING, Any, Final

from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.retention.chains import Chains, Groups, Node, array_of, in_order
from lamplighter.kernel.retention.clock import Clock
from lamplighter.kernel.retention.rule import Applied, Archive, Delete, Rule, Set, Stop
from lamplighter.kernel.retention.table import (
    HOW,
    Keeper,
    Leaf,
    Table,
    Trouble,
    alias,
    cast_values,
    execute,
    facts_of,
    is_referred,
    look,
    parameters_of,
    quoted,
    spelled,
    trouble_with,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

TARGET: Final = timedelta(milliseconds=100)
"""How long a batch may hold its locks, by default; no statement takes more than twice as long."""
LOCK_WAIT: Final = timedelta(milliseconds=10)
"""A batch gives up after this when somebody holds one of its rows."""
NAMED_FAILURES: Final = 100
"""Failures that are spelled out; the others are counted."""
ISOLATED: Final = 16
"""When so many single rows failed in succession, a batch is searched no further."""
SEARCHED: Final = 10_000
"""Single rows that a run tries in vain. After that a part of a batch that fails waits for the next run."""
CHAINED: Final = 200_000
"""Rows that wait for others of their table and are remembered, some 300 bytes each. The rest waits for the next run."""
START_ROWS: Final = 500
"""In the first batch of rows that waited."""
WHOLE: Final = 0
"""In place of a leaf's oid: the rule's table with its partitions."""
WAITING: Final = -1
"""In place of a keeper's number: only due rows of the table refer to the row."""
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


# -- places: which rows a batch looks at -----------------------------------------------------------------------------

POSITIONS: Final = 2048
"""Positions that are reckoned for a block; even one of 32 kB has fewer rows."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The rows stored from one position up to another; a row's position is `block * POSITIONS + offset`."""

    first: int
    end: int

    sql = "ctid >= CAST(:first AS tid) AND ctid < CAST(:end AS tid)"

    def parameters(self) -> dict[str, object]:
        return {"first": _tid(self.first), "end": _tid(self.end)}

    def halves(self) -> tuple[Blocks, ...]:
        middle = (self.first + self.end) // 2
        return (Blocks(self.first, middle), Blocks(middle, self.end)) if middle > self.first else ()


@dataclass(frozen=True, slots=True)
class Span:
    """The rows whose clock is from one moment up to another, both on a step of the clock."""

    clock: Clock
    first: datetime
    end: datetime

    @property
    def sql(self) -> str:
        return self.clock.within

    def parameters(self) -> dict[str, object]:
        return {"first": self.clock.value(self.first), "end": self.clock.value(self.end)}

    def halves(self) -> tuple[Span, ...]:
        middle = self.clock.floor(self.first + (self.end - self.first) / 2)
        if not self.first < middle < self.end:
            return ()
        return Span(self.clock, self.first, middle), Span(self.clock, middle, self.end)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows one by one."""

    tids: Sequence[str]

    sql = "ctid = ANY (CAST(:tids AS tid[]))"

    def parameters(self) -> dict[str, object]:
        return {"tids": array_of(self.tids)}

    def halves(self) -> tuple[Rows, ...]:
        middle = len(self.tids) // 2
        return (Rows(self.tids[:middle]), Rows(self.tids[middle:])) if middle else ()


type Place = Blocks | Span | Rows | Groups


def _tid(position: int) -> str:
    block, offset = divmod(position, POSITIONS)
    return f"({block},{offset})"


# -- a run -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
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


class _TooMany(Exception):
    """A batch would change more rows than the ceiling leaves."""


class _Unsplittable(Exception):
    """One moment has more rows than can be dealt with at once."""


class _Detached(Exception):
    """A partition was detached or dropped during the run."""


@dataclass(slots=True, kw_only=True)
class Work:
    """One run of `apply`, and what it has done so far."""

    connection: Connection
    rule: Rule
    table: Table
    cutoff: datetime
    stop: Callable[[], Stop]
    progress: Callable[[int, str], None]
    ceiling: int | None
    counted: Callable[[int], None]
    target: timedelta
    rows: int = 0
    batches: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: int = 0
    late: int = 0
    """Single rows that took too long."""
    searched: int = 0
    """Single rows that were tried in vain."""
    sparing: bool = False
    """Whether batches leave out the rows that others refer to, since the database refused one because of them."""
    waiting: list[Node] = field(default_factory=list)
    """Rows that only due rows of the table refer to."""
    stopped: Stop = None

    def run(self) -> Applied:
        """Goes through the leaves, one after the other, and then through the rows that had to wait for others."""
        before = -1
        while self.rows != before:
            before = self.rows
            self._go_through()
            # The rows that a foreign key sets to NULL or to a default are stored elsewhere now: all are visited again.
            if self.stopped or not self._moves:
                break
            with self._transaction():
                self.table = look(self.connection, self.rule)
        return Applied(
            rows=self.rows,
            batches=self.batches,
            stopped="ceiling" if self.rows == self.ceiling else self.stopped,
            failed=self.failed,
            failures=tuple(self.failures),
            skipped=self.skipped,
        )

    def _go_through(self) -> None:
        """Counts anew what stays, for rows may have moved since."""
        self.failed = self.skipped = self.late = 0
        self.failures, self.waiting = [], []
        for number, leaf in enumerate(self.table.leaves):
            if leaf.blocks:
                self._walk_attached(leaf, number)
            if self.stopped:
                return
        if self.waiting and not self._stops():
            self._follow_chains()

    def _walk_attached(self, leaf: Leaf, number: int) -> None:
        """Goes through a leaf, unless it is detached or dropped meanwhile: its rows are no longer the table's."""
        from sqlalchemy.exc import DBAPIError

        counts = self._counts()
        try:
            self._walk(leaf, number)
        except _Detached:
            self._count_again_from(counts)
        except DBAPIError:
            with self._transaction():
                if not self._is_detached(leaf):
                    raise
            self._count_again_from(counts)

    def _is_detached(self, leaf: Leaf) -> bool:
        """Whether a partition has left the table since the run looked, by the catalogue itself, not by a snapshot."""
        if self.table.partitioned is None or leaf.oid in (WHOLE, self.table.partitioned):
            return False
        query = (
            "SELECT NOT EXISTS (SELECT FROM pg_partition_ancestors(CAST(CAST(:leaf AS oid) AS regclass)) AS above(oid)"
            " WHERE CAST(CAST(above.oid AS oid) AS bigint) = :table)"
        )
        asked = {"leaf": leaf.oid, "table": self.table.partitioned}
        return bool(execute(self.connection, query, asked).scalar_one())

    def _counts(self) -> tuple[int, int, int, int]:
        """What has been counted of the rows that stay."""
        return self.failed, len(self.failures), self.skipped, len(self.waiting)

    def _count_again_from(self, counts: tuple[int, int, int, int]) -> None:
        self.failed, failures, self.skipped, waiting = counts
        del self.failures[failures:], self.waiting[waiting:]

    def _walk(self, leaf: Leaf, number: int) -> None:
        cost = self._cost(leaf)
        if cost is None:
            self._walk_blocks(leaf, number)
        elif (clock := self.table.clock) and (oldest := self._oldest(leaf, clock)):
            counts = self._counts()
            try:
                self._walk_spans(leaf, number, clock, oldest, cost)
            except _Unsplittable:  # the leaf is walked again, and what stays in it is counted again
                self._count_again_from(counts)
                self._walk_blocks(leaf, number)

    def _cost(self, leaf: Leaf) -> float | None:
        """What the planner reckons for finding the rows by an index; None where reading the whole leaf is cheaper.

        That is where the planner itself would read it, and where the rows are many and in no order: each batch would
        come to the same blocks again.
        """
        if not self.table.clock:
            return None
        query = f"EXPLAIN (FORMAT JSON) SELECT FROM {self._from(leaf)} WHERE {self.table.predicate} FOR UPDATE"
        with self._transaction():
            [plan] = execute(self.connection, query, self._parameters()).scalar_one()
        rows, cost = plan["Plan"]["Plan Rows"], plan["Plan"]["Total Cost"]
        scans = {node["Node Type"] for node in _nodes(plan["Plan"]) if node.get("Alias") == alias(self.rule)}
        again_and_again = "Bitmap Heap Scan" in scans and rows > VISITS * leaf.blocks
        return None if again_and_again or "Seq Scan" in scans else float(cost)

    def _oldest(self, leaf: Leaf, clock: Clock) -> datetime | None:
        """The first clock that is due."""
        oldest_of = clock.moment(f"min({clock.name})")
        query = f"SELECT {oldest_of} FROM {self._from(leaf)} WHERE {self.table.predicate}"  # noqa: S608
        with self._transaction():
            oldest: datetime | None = execute(self.connection, query, self._parameters()).scalar_one()
        return oldest

    def _walk_spans(self, leaf: Leaf, number: int, clock: Clock, oldest: datetime, cost: float) -> None:
        """One span of time after the other, the oldest first; the newest where rows refer to others of their table, for
        those others are usually older.
        """
        oldest = clock.floor(oldest)  # a count may have a fraction
        whole = (clock.floor(self.cutoff) - oldest) // clock.step
        pace = Pace(size=whole * min(1.0, START_COST / cost), goal=self._goal(), limit=whole)
        done = 0
        while done < whole and not self._stops():
            size = min(max(1, round(pace.size)), whole - done)
            first = oldest + (whole - done - size if self._chaining else done) * clock.step
            self._change(leaf, Span(clock, first, first + size * clock.step), pace, size)
            done += size
            self._tell(number, done / whole)

    def _walk_blocks(self, leaf: Leaf, number: int) -> None:
        """All blocks, from any one on and round: runs that are stopped early must not all end at the same place."""
        pace = Pace(size=START_BLOCKS, goal=self._goal(), limit=MAX_BLOCKS)
        start, done = randrange(leaf.blocks), 0  # noqa: S311
        while done < leaf.blocks and not self._stops():
            first = (start + done) % leaf.blocks
            size = min(max(1, int(pace.size)), leaf.blocks - max(first, done))
            self._change(leaf, Blocks(first * POSITIONS, (first + size) * POSITIONS), pace, size)
            done += size
            self._tell(number, done / leaf.blocks)

    def _change(self, leaf: Leaf, whole: Place, pace: Pace, size: float, chains: Chains | None = None) -> None:
        """One batch; where it takes too long or the database refuses it, in parts.

        Args:
            leaf: the table.
            whole: the batch.
            pace: learns what the batch took, and from one that took too long.
            size: of the batch, in the pace's unit.
            chains: says which groups of rows still go, if the batch has groups.
        """
        from sqlalchemy.exc import DBAPIError

        pending, in_succession = [whole], 0
        while pending and not self._stops():
            place: Place | None = pending.pop()
            if chains and isinstance(place, Groups):
                place = chains.going(place)
            if not place:
                continue
            began, before = time.perf_counter(), self.rows
            try:
                complete = self._take(leaf, place)
            except DBAPIError as error:
                trouble = trouble_with(error)
                if trouble is None:
                    raise
                if trouble == "late":
                    pace.halve()
                if self._is_over(leaf, trouble, error, first=place is whole):
                    pending.append(place)
                    continue
                parts = self._parts(leaf, place, trouble)
                if parts and (trouble == "late" or (in_succession < ISOLATED and self.searched < SEARCHED)):
                    pending += reversed(parts)
                    continue
                in_succession += not parts
                self._give_up(leaf, place, trouble, error, is_single=not parts)
                if chains and isinstance(place, Groups):
                    chains.held.update(place.nodes())
            else:
                if place is whole:
                    pace.learn(size, time.perf_counter() - began)
                in_succession = in_succession if self.rows == before else 0
                if not complete:
                    self._count_rest(leaf, place)

    def _is_over(self, leaf: Leaf, trouble: Trouble, error: DBAPIError, *, first: bool) -> bool:
        """Whether the same batch can be tried again: a lock on the table has gone, or rows that others refer to are
        left out from now on.
        """
        if trouble == "locked":
            return first and self._waits_for_tables()
        return trouble == "refused" and is_referred(error) and self._begins_to_spare(leaf)

    def _take(self, leaf: Leaf, place: Place) -> bool:
        """Changes the rows of a place that are due, in one transaction.

        Returns:
            Whether none of them is left to count.

        Raises:
            DBAPIError: nothing was changed.
            _Detached: the place's partition has left the table; nothing was changed.
            Permanent: the rows did not change as they should; nothing of this batch was changed.
        """
        from sqlalchemy.exc import DBAPIError

        spared = "".join(f" AND NOT {one.spared}" for one in self._keepers(leaf)) if self._spares(leaf) else ""
        try:
            if self._do(leaf, place, spared):
                return not spared
        except DBAPIError as error:
            if trouble_with(error) != "locked":
                raise
        most = None if self.ceiling is None else self.ceiling - self.rows
        before = self.rows
        self._do(leaf, place, spared, f" LIMIT {'ALL' if most is None else most} FOR UPDATE SKIP LOCKED")
        return self.rows - before == most

    def _do(self, leaf: Leaf, place: Place, spared: str = "", chosen: str = "") -> bool:
        """One batch: of all rows of the place that are due and not `spared`, or of those that are `chosen`. False where
        that would have been more than the ceiling leaves: nothing was changed.
        """
        level = "REPEATABLE READ" if self._needs_snapshot else "READ COMMITTED"
        try:
            with self._transaction(statement=self.target, lock=LOCK_WAIT, level=level):
                if self.table.is_watched:
                    changed = self._change_watched(leaf, place, spared, chosen)
                else:
                    changed = self._change_rows(leaf, self._where(leaf, place, spared, chosen), place)
                if changed and self._is_detached(leaf):  # asked now: what the batch has locked cannot be detached
                    raise _Detached
                if self.ceiling is not None and self.rows + changed > self.ceiling:
                    raise _TooMany
                self.counted(changed)  # before the commit, whose answer may be lost
        except _TooMany:
            return False
        self.rows += changed
        self.batches += 1
        return True

    @contextmanager
    def _transaction(
        self,
        *,
        statement: timedelta | None = None,
        lock: timedelta | None = None,
        level: str = "READ COMMITTED",
    ) -> Iterator[None]:
        """A transaction in which statements see all rows or fail (REQUIREMENTS S6), reckon in UTC, and give up in time.

        All settings end with the transaction: a pooler may give the next one another session, and this one to others.
        No trigger and no foreign key waits for the commit: what is counted before it is certain.
        """
        from lamplighter.kernel.database import LOCK_TIMEOUT, STATEMENT_TIMEOUT

        limits = (("statement_timeout", statement or STATEMENT_TIMEOUT), ("lock_timeout", lock or LOCK_TIMEOUT))
        sets = (f"SET LOCAL {name} = '{limit / timedelta(milliseconds=1):.0f}ms'" for name, limit in limits)
        view = ("SET LOCAL row_security = off", "SET LOCAL TimeZone = 'UTC'")
        begin = (f"SET TRANSACTION ISOLATION LEVEL {level}", *view, *sets)
        with self.connection.begin():
            execute(self.connection, "; ".join((*begin, "SET CONSTRAINTS ALL IMMEDIATE")), {})
            try:
                yield
            except Exception:
                raise
            except BaseException:
                self.connection.invalidate()  # it may be in the middle of a statement
                raise

    @property
    def _needs_snapshot(self) -> bool:
        """Whether a batch sees one moment only: to compare counts, or a row with rows of other tables.

        At READ COMMITTED, PostgreSQL looks at a row that was just changed together with the other tables as they were
        before. A row that got a new parent would still be an orphan ("Transaction Isolation", 13.2.1).
        """
        return self.table.is_watched or self.rule.reads_tables

    def _where(self, leaf: Leaf, place: Place, spared: str, chosen: str) -> str:
        if not chosen:
            return place.sql + spared
        rows = f"FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate}{spared}{chosen}"
        if isinstance(place, Groups):
            return f"{place.sql} AND (tableoid, ctid) IN (SELECT tableoid, ctid {rows})"
        return f"ctid = ANY (ARRAY(SELECT ctid {rows}))"

    def _change_rows(self, leaf: Leaf, where: str, place: Place) -> int:
        due = f"{where} AND {self.table.predicate}"
        delete = f"DELETE FROM {self._from(leaf)} WHERE {due}"  # noqa: S608
        match self.rule.action:
            case Delete():
                statement = delete
            case Set() as action:
                values = ", ".join(
                    f"{quoted(name)} = {value}" for name, value in cast_values(action, self.table.columns)
                )
                statement = f"UPDATE {self._from(leaf)} SET {values} WHERE {due}"  # noqa: S608
            case Archive(into):
                columns = ", ".join(map(quoted, self.table.columns))
                statement = (
                    f"WITH moved AS ({delete} RETURNING {columns}), kept AS (INSERT INTO {spelled(into)} ({columns})"  # noqa: S608
                    f" OVERRIDING SYSTEM VALUE SELECT {columns} FROM moved) SELECT count(*) FROM moved"
                )
        result = execute(self.connection, statement, self._parameters() | place.parameters())
        changed: int = result.scalar_one() if isinstance(self.rule.action, Archive) else result.rowcount
        return changed

    # -- compare: what triggers and foreign keys made of it (REQUIREMENTS S8) -----------------------------------------

    def _change_watched(self, leaf: Leaf, place: Place, spared: str, chosen: str) -> int:
        """Changes rows inside a transaction and compares what happened with what the rule says.

        What a trigger inserts or updates in tables without such a foreign key, or truncates, is not seen.

        Raises:
            Permanent: due rows stayed, other rows of the table were deleted or updated, or rows of another table were
                deleted, or updated where a foreign key of it cascades.
        """
        due, before = self._count(leaf, place), self._writes()
        wanted, rows = due, place
        if spared or chosen:
            node = "CAST(tableoid AS bigint), CAST(ctid AS text)"
            query = f"SELECT {node} FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate}"  # noqa: S608
            parameters = self._parameters() | place.parameters()
            nodes = [(oid, tid) for oid, tid in execute(self.connection, query + spared + chosen, parameters)]
            if not nodes:
                return 0
            wanted, rows = len(nodes), Groups([nodes])
        changed = self._change_rows(leaf, rows.sql, rows)
        gone, writes = due - self._count(leaf, place), self._writes() - before
        own, depending = self.table.oids, {oid for one in self.table.dependants for oid in one.oids}
        deleted, updated = (sum(writes[oid, kind] for oid in own) for kind in ("deleted", "updated"))
        # A key of the table to itself that sets to NULL changes due rows, and stores them in other blocks.
        moves = self._moves
        match self.rule.action:
            case Set():
                agrees = gone == changed and not deleted
            case _:
                agrees = deleted == changed and (moves or (gone == changed and not updated))
        if isinstance(self.rule.action, Archive):
            agrees = agrees and changed == sum(writes[oid, "inserted"] for oid in self.table.into)
        if changed != wanted or not agrees:
            raise self._disagreement(f"of {wanted} due rows, {changed} changed")
        for (oid, kind), count in writes.items():
            if count and oid not in own and (kind == "deleted" or (kind == "updated" and oid in depending)):
                raise self._disagreement(f"{count} rows of {self._name(oid)} would be {kind}, which are not due")
        return changed

    def _disagreement(self, what: str) -> Permanent:
        causes = ", ".join([*self.table.triggers, *(one.name for one in self.table.dependants)])
        return Permanent(
            f"{self.rule.name}: what {self.rule.table} did is not what the rule says: {what} (look at {causes}). "
            f"This batch was rolled back; {self.rows} rows were changed before."
        )

    def _count(self, leaf: Leaf, place: Place) -> int:
        """How many rows of a place are due, inside the transaction."""
        query = f"SELECT count(*) FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate}"  # noqa: S608
        return int(execute(self.connection, query, self._parameters() | place.parameters()).scalar_one())

    def _writes(self) -> Counter[tuple[int, str]]:
        """Rows that were inserted, updated and deleted, by table, as the session has counted them up to now."""
        query = (
            "SELECT CAST(relid AS bigint) AS oid, n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_del AS deleted"
            " FROM pg_stat_xact_user_tables WHERE n_tup_ins + n_tup_upd + n_tup_del > 0"
        )
        rows = execute(self.connection, query, {}).all()
        return Counter(
            {(row.oid, kind): getattr(row, kind) for row in rows for kind in ("inserted", "updated", "deleted")}
        )

    def _name(self, oid: int) -> str:
        query = "SELECT CAST(CAST(CAST(:oid AS bigint) AS regclass) AS text)"
        return str(execute(self.connection, query, {"oid": oid}).scalar_one())

    # -- what a batch leaves -----------------------------------------------------------------------------------------

    def _parts(self, leaf: Leaf, place: Place, trouble: Trouble) -> Sequence[Place]:
        """What to try instead of a place; empty when it is a single row."""
        if isinstance(place, Rows | Groups):
            return place.halves()
        if trouble != "late":
            tids = self._read(leaf, place, "CAST(ctid AS text)", limit=WINDOW)
            if len(tids) < WINDOW:
                shuffle(tids)  # what is refused often stands together, and must not hide what stands behind it
                return Rows(tids).halves()
        if halves := place.halves():
            return halves
        if isinstance(place, Span):
            raise _Unsplittable
        return ()

    def _give_up(self, leaf: Leaf, place: Place, trouble: Trouble, error: DBAPIError, *, is_single: bool) -> None:
        """Passes a single row over, or a group that goes only whole; or a part that is searched no further.

        Raises:
            Permanent: several took too long by themselves: it is not the rows.
        """
        keys = self._read(leaf, place, f"CAST({quoted(self.rule.key)} AS text)")
        self.searched += is_single
        if not keys or trouble == "locked" or not is_single:
            self.skipped += len(keys)
            return
        self._refuse(len(keys), keys, str(facts_of(error).get("M", "")))
        if trouble == "late":
            self.late += 1
            if self.late == ISOLATED:
                raise Permanent(
                    f"{self.rule.name}: changing a single row takes more than {self.target}. Do the foreign keys "
                    f"that refer to {self.rule.table} have indexes?"
                )

    def _refuse(self, count: int, keys: Iterable[str | None], reason: str) -> None:
        """Counts rows that stay, and spells the first ones out."""
        self.failed += count
        named = (f"{self.rule.table} {self.rule.key}={key}: {reason}" for key in keys)
        self.failures += islice(named, NAMED_FAILURES - len(self.failures))

    def _count_rest(self, leaf: Leaf, place: Place) -> None:
        """Counts what is still due in a place, by the reason why it stayed."""
        keepers = self._keepers(leaf)
        cases = [f"WHEN {one.keeps} THEN {number}" for number, one in enumerate(keepers)]
        # What is free by now was not when the batch looked: rows that refer to it went with the batch.
        rest = WAITING if self._spares(leaf) and any(one.chains for one in keepers) else "NULL"
        why = f"CASE {' '.join(cases)} ELSE {rest} END" if cases else "CAST(NULL AS int)"
        key = f"CAST({quoted(self.rule.key)} AS text)"
        query = (
            "SELECT why, count(*) AS rows, (array_agg(key))[1 : :named] AS keys,"  # noqa: S608
            f" CASE why WHEN {WAITING} THEN array_agg(tid) END AS tids FROM ("
            f"SELECT {why} AS why, {key} AS key, CAST(ctid AS text) AS tid"
            f" FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate}) AS rest GROUP BY why"
        )
        limit = {"named": NAMED_FAILURES}
        with self._transaction():
            found = execute(self.connection, query, self._parameters() | place.parameters() | limit).all()
        for one in found:
            if one.why is None:
                self.skipped += one.rows
            elif one.why == WAITING:
                room = CHAINED - len(self.waiting)
                self.waiting += [(leaf.oid, tid) for tid in one.tids[:room]]
                self.skipped += max(0, one.rows - room)
            else:
                self._refuse(one.rows, one.keys, _reason(keepers[one.why]))
        self.sparing = self.sparing and any(one.why is not None for one in found)

    def _begins_to_spare(self, leaf: Leaf) -> bool:
        """Leaves out from now on what others refer to; False where that is so already, or cannot help."""
        begins = not self._spares(leaf) and bool(self._keepers(leaf))
        self.sparing = self.sparing or begins
        return begins

    def _spares(self, leaf: Leaf) -> bool:
        """Whether a batch leaves out what others refer to: always where the database would change rows of the table
        together with others. It must not change one that is not due, and an archive would not get them.
        """
        return self.sparing or any(one.action in HOW.values() for one in self._keepers(leaf))

    @property
    def _moves(self) -> bool:
        """Whether the database changes rows of the table, and thereby stores them elsewhere, when others go."""
        return any(one.own and one.action != "CASCADE" for one in self.table.dependants)

    def _keepers(self, leaf: Leaf) -> list[Keeper]:
        if leaf.oid == WHOLE:  # all that chain have been looked at
            return [one for one in self.table.keepers if one.own and not one.chains]
        return [one for one in self.table.keepers if leaf.oid in one.leaves]

    # -- rows that refer to one another (REQUIREMENTS S9) -------------------------------------------------------------

    @property
    def _chaining(self) -> list[Keeper]:
        return [one for one in self.table.keepers if one.chains]

    def _follow_chains(self) -> None:
        """Deletes the rows that only due rows referred to, each after those that refer to it."""
        name = self.table.leaves[0].name if len(self.table.oids) == 1 else spelled(self.rule.table)
        whole = Leaf(name=name, blocks=0, oid=WHOLE)
        self.sparing = False
        chains = Chains(self._referrers(whole))
        pace = Pace(size=START_ROWS, goal=self._goal())
        batch: list[list[Node]] = []
        rows = 0
        for group in in_order(chains.referrers):
            if rows and rows + len(group) > self._room(pace):
                self._change(whole, Groups(batch), pace, rows, chains)
                batch, rows = [], 0
                self.progress(100, f"{self.rows} rows of {self.rule.table}")
                if self._stops():
                    return
            if not chains.lets_go(group):
                continue
            if self.ceiling is not None and rows + len(group) > self.ceiling - self.rows:
                self.skipped += len(group)  # they go together or not at all
                chains.held.update(group)
                continue
            batch.append(group)
            rows += len(group)
        if batch:
            self._change(whole, Groups(batch), pace, rows, chains)
        if chains.kept and not self.stopped:
            keys = self._read(whole, Groups([chains.kept]), f"CAST({quoted(self.rule.key)} AS text)")
            self._refuse(len(keys), keys, _reason(*self._chaining))

    def _room(self, pace: Pace) -> float:
        """How many rows the next batch may have."""
        return pace.size if self.ceiling is None else min(pace.size, self.ceiling - self.rows)

    def _referrers(self, leaf: Leaf) -> dict[Node, set[Node]]:
        """The rows that waited and are still due, and for each the rows of the table that refer to it."""
        found: dict[Node, set[Node]] = {}
        place = Groups([self.waiting])
        for keeper in self._chaining:
            leaves = ", ".join(map(str, keeper.leaves))
            query = (
                'SELECT CAST("kept".t AS bigint), CAST("kept".c AS text),'  # noqa: S608
                ' CAST("referrer".t AS bigint), CAST("referrer".c AS text) FROM ('
                f"SELECT tableoid AS t, ctid AS c{keeper.kept} FROM {self._from(leaf)}"
                f' WHERE {place.sql} AND {self.table.predicate}) AS "kept" LEFT JOIN {keeper.referrers}'
                f' ON {keeper.edges} AND CAST("kept".t AS bigint) IN ({leaves})'
            )
            with self._transaction():
                rows = execute(self.connection, query, self._parameters() | place.parameters())
                for oid, tid, other_oid, other_tid in rows:
                    others = found.setdefault((oid, tid), set())
                    if other_oid is not None:
                        others.add((other_oid, other_tid))
        return found

    # -- tables that somebody has locked -----------------------------------------------------------------------------

    def _waits_for_tables(self) -> bool:
        """Waits for who has locked a whole table that a batch needs, holding nothing; False if nobody has.

        Raises:
            Retryable: it takes longer than `LOCK_TIMEOUT`.
        """
        from lamplighter.kernel.database import LOCK_TIMEOUT

        until = time.monotonic() + LOCK_TIMEOUT.total_seconds()
        waited = False
        while table := self._locked_table():
            if time.monotonic() >= until:
                raise Retryable(
                    f"{self.rule.name}: somebody has locked {table}; try again later. {self.rows} rows of "
                    f"{self.rule.table} were changed before."
                )
            waited = True
            time.sleep(LOCK_WAIT.total_seconds())
        return waited

    def _locked_table(self) -> str | None:
        """A table that somebody has locked, or is about to, in a way that no batch can pass."""
        query = (
            "SELECT CAST(CAST(relation AS regclass) AS text) FROM pg_locks WHERE locktype = 'relation'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (CAST(relation AS bigint) = ANY (:changed) AND mode IN ('ShareLock', 'ShareRowExclusiveLock',"
            " 'ExclusiveLock', 'AccessExclusiveLock')"
            " OR CAST(relation AS bigint) = ANY (:read) AND mode IN ('ExclusiveLock', 'AccessExclusiveLock')"
            " OR CAST(relation AS bigint) = ANY (:parents) AND mode = 'AccessExclusiveLock') LIMIT 1"
        )
        tables = {
            "changed": [*(self.table.oids | self.table.into)],
            "read": [*self.table.referring],
            "parents": [*self.table.parents],
        }
        with self._transaction():
            found: str | None = execute(self.connection, query, tables).scalar_one_or_none()
        return found

    def _read(self, leaf: Leaf, place: Place, what: str, limit: int | None = None) -> list[Any]:
        """Asks about the rows of a place that are due."""
        query = f"SELECT {what} FROM {self._from(leaf)} WHERE {place.sql} AND {self.table.predicate} LIMIT :limit"  # noqa: S608
        parameters = self._parameters() | place.parameters() | {"limit": limit}
        with self._transaction():
            return list(execute(self.connection, query, parameters).scalars())

    def _from(self, leaf: Leaf) -> str:
        return f"{leaf.name} AS {quoted(alias(self.rule))}"

    def _parameters(self) -> dict[str, object]:
        return parameters_of(self.rule, self.table, self.cutoff)

    def _goal(self) -> float:
        return AIM * self.target.total_seconds()

    def _stops(self) -> bool:
        """Whether to stop, and if so, why."""
        self.stopped = "ceiling" if self.rows == self.ceiling else self.stop()
        return self.stopped is not None

    def _tell(self, number: int, done: float) -> None:
        percent = int(100 * (number + done) / len(self.table.leaves))
        self.progress(percent, f"{self.rows} rows of {self.rule.table}")


def _reason(*keepers: Keeper) -> str:
    """Why a row stays."""
    names = ", ".join(one.name for one in keepers)
    if keepers[0].own:
        return f"a row that stays refers to it (foreign key {names})."
    return f"rows of {keepers[0].table} still refer to it (foreign key {names})."


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
