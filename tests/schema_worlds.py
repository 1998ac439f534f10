"""Generated worlds for the retention rules: schemas, rows, other users, crashes, and an oracle that knows the answer.

A world is one table with a rule, the tables that refer to it, and what happens meanwhile. `World` is pure Python: what
is due, and what of it the database keeps, follows from its rows. `Stage` makes it in Postgres, runs the rule and names
what is not as it must be (REQUIREMENTS S8, S9, K11).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Literal
from unittest.mock import patch
from uuid import UUID

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

from lamplighter.kernel import database, retention
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.retention import Applied, Archive, ClockUnit, Delete, Parent, Rule, Set, batches

NOW: Final = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
KEEP: Final = timedelta(days=30)
CUTOFF: Final = NOW - KEEP
MICROSECOND: Final = timedelta(microseconds=1)
PATIENT: Final = timedelta(seconds=20)
"""A batch's time: on a busy machine no statement is late, and none is cut down for it."""

MADE: Final = 500
JOINED: Final = 700
"""Added to a row's number, the numbers of rows that other users make on its account."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
SECOND, MILLISECOND, DAY = timedelta(seconds=1), timedelta(milliseconds=1), timedelta(days=1)
PEOPLE: Final = 12
"""Parents are called 1, 2, ...; up to this number some are there."""
NO_PARENT: Final = (None, 0, -1)

type Clock = datetime | date | int | Literal["infinity", "-infinity"] | None
type Key = tuple[object, ...]
type Act = Literal["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]

ACTS: Final[tuple[Act, ...]] = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT")
KEEPING: Final = ("NO ACTION", "RESTRICT")
DEFERRED: Final = ("", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED")


@dataclass
class Row:
    """A row of the rule's table; `n` is what it is called here, whatever its key."""

    n: int
    key: Key
    clock: Clock
    state: str
    parent: Key
    """The key of the row of the same table that it refers to."""
    who: int | None = None
    """Whose row it is: a parent of another table, without a foreign key."""


@dataclass
class Child:
    """A table whose rows refer to the rule's."""

    name: str
    act: Act
    deferred: str
    is_partitioned: bool
    is_indexed: bool
    rows: list[Key]


@dataclass
class Change:
    """What another user does between two batches; `at` counts the times that the run asked whether to stop."""

    at: int
    kind: Literal["young", "due", "child", "delete", "hold", "new", "join", "adopt", "birth", "death"]
    n: int


@dataclass
class World:
    """One seed's world."""

    seed: int
    schema: str
    table: str
    types: tuple[str, ...]
    """Of the key's columns."""
    columns: tuple[str, ...]
    clock_type: str
    clock_unit: ClockUnit
    by_spans: bool
    partitions: int
    action: Delete | Archive | Set
    where: str
    rows: list[Row]
    own: Act | None
    own_deferred: str
    default: Key | None
    """Of the columns that refer to the table itself, for SET DEFAULT."""
    children: list[Child]
    trigger: Literal["soft", "raise", "log"] | None
    every: int
    """The trigger raises for each row whose number this divides."""
    rewrite: bool
    archived: set[int]
    """Rows whose key is in the archive already."""
    ceiling: int | None
    changes: list[Change]
    crash: tuple[Literal["before", "after", "lost"], int] | None
    """At which statement, and whether it was done."""
    is_timeless: bool = False
    """The rule has no clock."""
    people: set[int] | None = None
    """The parents that there are, where the rule is about orphans."""

    @property
    def rule(self) -> Rule:
        """The rule under test."""
        return Rule(
            name="r", table=f"{self.schema}.{self.table}", clock=None if self.is_timeless else "the At",
            clock_unit="timestamp" if self.is_timeless else self.clock_unit, keep=KEEP, where=self.where,
            action=self.action, key=self.columns[0],
            orphan_of=None if self.people is None else Parent(table=f"{self.schema}.people", column="who", key="n"),
        )  # fmt: skip

    @property
    def is_lost(self) -> bool:
        """Whether there are no parents at all, and rows that refer to some."""
        return self.people is not None and not self.people and any(row.who not in NO_PARENT for row in self.rows)

    def spell(self, moment: datetime) -> Clock:
        """A moment as the clock has it."""
        if self.clock_unit in ("seconds", "milliseconds"):
            return (moment - EPOCH) // (SECOND if self.clock_unit == "seconds" else MILLISECOND)
        return moment.date() if self.clock_type == "date" else moment

    def is_over(self, clock: Clock) -> bool:
        """Whether all that a clock's value stands for is old enough, and it is no mark for something else."""
        try:
            match clock:
                case int():
                    step = SECOND if self.clock_unit == "seconds" else MILLISECOND
                    begin = EPOCH + clock * step
                case datetime():
                    begin, step = clock, MICROSECOND
                case date():
                    begin, step = datetime.combine(clock, time(), UTC), DAY
                case _:
                    return False
            return begin >= EARLIEST and begin + step <= CUTOFF
        except OverflowError:
            return False

    def is_due(self, row: Row) -> bool:
        """Whether the rule is to act on a row."""
        orphaned = self.people is None or (
            row.who not in NO_PARENT and row.who not in self.people and bool(self.people)
        )
        return (self.is_timeless or self.is_over(row.clock)) and self.holds(row.state) and orphaned

    def holds(self, state: str) -> bool:
        """The rule's `where`."""
        return self.where == "true" or state != "keep"

    def due(self) -> set[int]:
        """Rows that the rule is to act on."""
        return {row.n for row in self.rows if self.is_due(row)}

    def referring(self) -> dict[int, set[int]]:
        """For each row the other rows of the table that refer to it."""
        by_key = {row.key: row.n for row in self.rows}
        found: dict[int, set[int]] = {row.n: set() for row in self.rows}
        for row in self.rows:
            if self.own and row.parent in by_key and by_key[row.parent] != row.n:
                found[by_key[row.parent]].add(row.n)
        return found

    def referred(self, *acts: str) -> set[int]:
        """Rows that rows of other tables refer to by keys of these kinds."""
        refs = {ref for child in self.children if child.act in acts for ref in child.rows}
        return {row.n for row in self.rows if row.key in refs}

    def forbidden(self) -> bool:
        """Whether rows that are not due would change with due ones."""
        if isinstance(self.action, Set):
            return False
        due = self.due()
        mine = self.own in ("CASCADE", "SET NULL", "SET DEFAULT") and any(self.referring()[n] - due for n in due)
        return bool(due & self.referred("CASCADE", "SET NULL", "SET DEFAULT")) or mine

    def blocked(self) -> set[int]:
        """Due rows that the database refuses to change."""
        due = self.due()
        found = {n for n in due if self.trigger == "raise" and n % self.every == 0}
        if isinstance(self.action, Set):
            return found
        if isinstance(self.action, Archive):
            found |= due & self.archived
        found |= due & self.referred(*KEEPING)
        if self.own not in (*KEEPING, "CASCADE"):
            return found
        referring = self.referring()
        found |= {n for n in due if referring[n] - due}
        while more := {n for n in due - found if referring[n] & found}:
            found |= more
        return found


EVENTS: Final = (
    "errors",
    "complete runs",
    "rows refused",
    "rows skipped",
    "rows held",
    "rows kept by rows of their table",
    "runs of several batches",
    "runs that met the ceiling",
    "runs by spans",
    "runs over partitions",
    "crashes, before",
    "crashes, after",
    "crashes, lost",
    "crashes between batches",
    *(f"changes, {kind}" for kind in ("young", "due", "child", "delete", "new", "join", "adopt", "birth", "death")),
    *(f"rows that went by a clock of {unit}" for unit in ("timestamp", "date", "seconds", "milliseconds")),
    "orphans that went",
    "orphans that went without a clock",
    "worlds that lost all parents",
    *(f"runs, {action}" for action in ("Delete", "Archive", "Set")),
    *(f"due rows that went after rows of theirs, {act}" for act in ACTS),
)
"""What some thousand worlds have to come to."""


# -- the generator ---------------------------------------------------------------------------------------------------


def build(seed: int) -> World:
    """The world of a seed."""
    chance = random.Random(seed)
    other = random.Random(f"clocks and parents of {seed}")
    pick = chance.choice
    schema = pick(["w", "w", 'the "W:orld" one'])
    types = pick([("bigint",), ("uuid",), ("text",), ("text",), ("int", "text"), ("uuid", "smallint")])
    columns = tuple(pick([f"k{n}", f'key "{n}" :of', f"Key{n}"]) for n in range(len(types)))
    count = chance.randint(0, 26)
    share = pick([0.3, 0.7, 0.95])
    rows = [
        Row(
            n=n,
            key=tuple(_value(kind, n, chance) for kind in types),
            clock=_old(chance) if chance.random() < share else _not_due(chance),
            state=pick(["done", "done", "done", "it's :keep", "keep"]),
            parent=(None,) * len(types),
        )
        for n in range(1, count + 1)
    ]
    own: Act | None = pick([None, None, "NO ACTION", "NO ACTION", "RESTRICT", "RESTRICT", *ACTS[2:]])
    world = World(
        seed=seed, schema=schema, table=pick(["things", "things", 'Weird "Name"', "it's :t"]), types=types,
        columns=columns, clock_type=pick(["timestamptz", "timestamp"]), clock_unit="timestamp",
        by_spans=chance.random() < 0.4,
        partitions=pick([0, 0, 0, 2, 3]), action=pick([Delete(), Delete(), Delete(), Archive(f"{schema}.attic"),
        Set({"note": "old"})]), where=pick(["true", "state <> 'keep'", "state NOT IN ('keep') -- it's"]), rows=rows,
        own=own, own_deferred=pick(DEFERRED) if own != "RESTRICT" else "", default=None, children=[],
        trigger=pick([None, None, None, "raise", "log", "log"]) if chance.random() < 0.94 else "soft",
        every=pick([3, 4, 7]), rewrite=chance.random() < 0.03, archived=set(), ceiling=None, changes=[], crash=None,
    )  # fmt: skip
    _set_clocks(world, other)
    if other.random() < 0.35:
        _make_orphans(world, other)
    if own:
        _tie(world, chance)
    for number in range(pick([0, 0, 1, 1, 2])):
        world.children.append(_child(world, number, chance))
    if isinstance(world.action, Archive) and chance.random() < 0.3:
        world.archived = {row.n for row in rows if chance.random() < 0.1}
    if chance.random() < 0.3:
        world.ceiling = chance.randint(0, count + 2)
    fate = chance.random()
    if fate < 0.3 and rows:
        kinds: list[Any] = ["young", "due", "child", "delete", "hold", "new", "join"]
        kinds += ["adopt", "birth", "death"] * 2 if world.people else []
        world.changes = [
            Change(at=chance.randint(2, 6), kind=pick(kinds), n=pick(rows).n) for _ in range(chance.randint(1, 3))
        ]
    elif fate < 0.6:
        world.crash = pick(["before", "after", "lost"]), chance.randint(1, 30)
    return world


def _value(kind: str, n: int, chance: random.Random) -> object:
    if kind == "uuid":
        return UUID(int=chance.getrandbits(128))
    if kind == "text":
        return chance.choice([f"k{n}", f"it's {n}", f'"{n}" :x \\', f"{n} ☃"])
    return n + 1000 * (kind == "bigint")


def _made(types: tuple[str, ...], seed: int) -> Key:
    """The key of a row that another user makes; its number is the seed."""
    chance = random.Random(seed)
    return tuple(_value(kind, seed, chance) for kind in types)


def _old(chance: random.Random) -> datetime:
    return CUTOFF - chance.choice([MICROSECOND, timedelta(days=1), timedelta(days=chance.randint(2, 900))])


def _not_due(chance: random.Random) -> Clock:
    return chance.choice([None, "infinity", "-infinity", CUTOFF, NOW, NOW + timedelta(days=9)])


def _set_clocks(world: World, chance: random.Random) -> None:
    """Turns the clocks into those of another type, and some into marks that are no moments."""
    fate = chance.random()
    if fate < 0.15:
        world.clock_type, world.clock_unit = "date", chance.choice(["date", "timestamp"])
    elif fate < 0.3:
        world.clock_type, world.clock_unit = chance.choice(["integer", "bigint"]), "seconds"
    elif fate < 0.45:
        world.clock_type, world.clock_unit = "bigint", "milliseconds"
    marks: list[Clock] = [datetime(1, 1, 1, tzinfo=UTC), EPOCH, EARLIEST - MICROSECOND, EARLIEST]
    is_count = world.clock_unit in ("seconds", "milliseconds")
    if is_count:
        marks = [0, -1, 1, 2**31 - 1, (CUTOFF - 900 * DAY - EPOCH) // SECOND]
    if world.clock_unit == "milliseconds":
        marks.append(9_999_999_999_999_999)
    for row in world.rows:
        if isinstance(row.clock, datetime):
            row.clock = world.spell(row.clock)
        elif is_count:
            row.clock = None
        if chance.random() < 0.05 and (is_count or world.clock_type != "date"):
            row.clock = chance.choice(marks)
            if is_count and world.clock_unit == "seconds" and row.clock == marks[-1]:
                row.clock = 0  # in seconds, that is a moment


def _make_orphans(world: World, chance: random.Random) -> None:
    """A table of parents, some of whom are gone."""
    world.people = {n for n in range(1, PEOPLE + 1) if chance.random() < chance.choice([0.2, 0.6])}
    if chance.random() < 0.06:
        world.people = set()
    world.is_timeless = chance.random() < 0.4
    for row in world.rows:
        row.who = chance.choice([*NO_PARENT, *range(1, PEOPLE + 1), *range(1, PEOPLE + 1)])


def _tie(world: World, chance: random.Random) -> None:
    """Lets rows refer to others of their table: in chains, trees and rings, and some with a NULL in the reference."""
    rows, due = world.rows, world.due()
    form = chance.choice(["chain", "tree", "ring", "any"])
    often = chance.choice([0.3, 0.7, 1.0])
    spared = chance.random() < 0.7
    for row in rows:
        if chance.random() > often or (spared and row.n not in due):
            continue
        if form == "ring":
            others = [other for other in rows if (other.n - 1) // 3 == (row.n - 1) // 3]
            target = others[(others.index(row) + 1) % len(others)]
        elif form == "chain":
            target = rows[max(row.n - 2, 0)]
        else:
            target = chance.choice(rows[: row.n] if form == "tree" else rows)
        row.parent = target.key
        if len(row.key) > 1 and chance.random() < 0.1:
            row.parent = (*target.key[:-1], None)
    stay = [row for row in rows if row.n not in due]
    if world.own == "SET DEFAULT" and stay and chance.random() < 0.5:
        world.default = chance.choice(stay).key


def _child(world: World, number: int, chance: random.Random) -> Child:
    act = chance.choice([*KEEPING, *KEEPING, *ACTS])
    due, rows = world.due(), []
    for row in world.rows:
        if chance.random() > chance.choice([0.1, 0.4]) or (
            act not in KEEPING and row.n in due and chance.random() < 0.9
        ):
            continue
        rows.append((*row.key[:-1], None) if len(row.key) > 1 and chance.random() < 0.2 else row.key)
    return Child(
        name=chance.choice([f"part{number}", f'Part "{number}" :of']), act=act,
        deferred=chance.choice(DEFERRED) if act != "RESTRICT" else "", is_partitioned=chance.random() < 0.2,
        is_indexed=chance.random() < 0.5, rows=rows,
    )  # fmt: skip


# -- in Postgres -----------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process was ended."""


@dataclass
class Seen:
    """What worlds came to, and what was wrong with them."""

    count: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[int]] = field(default_factory=dict)
    """Seeds, by what went wrong in them."""

    def add(self, other: Seen) -> None:
        """Count another one in."""
        self.count += other.count
        for what, seeds in other.faults.items():
            self.faults.setdefault(what, []).extend(seeds)


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage on the database that `lamplighter.kernel.database` finds: a block or a short span is a batch there."""
    other = create_engine(
        "postgresql+pg8000://",
        creator=lambda: database._connect(database.address({"DATABASE_URL": _url()})),
        poolclass=NullPool,
    )
    few = {"START_BLOCKS": 1, "MAX_BLOCKS": 1, "START_COST": 4, "START_ROWS": 3}
    with patch.multiple(batches, **few), patch.object(retention, "MAX_SKEW", timedelta.max):
        yield Stage(database.engine(), other)


def _url() -> str:
    import os

    return os.environ["DATABASE_URL"]


@dataclass
class Stage:
    """Where worlds are played, one after the other."""

    engine: Engine
    other: Engine
    """Of other users."""
    seen: Seen = field(default_factory=Seen)

    def play(self, world: World) -> None:
        """Make the world, run its rule, and see what became of it."""
        play = Play(self, world)
        chance = random.Random(world.seed)
        try:
            with patch.multiple(batches, randrange=chance.randrange, shuffle=chance.shuffle):
                play.run()
        except Exception as error:  # noqa: BLE001 - the others are played all the same
            play.fault(f"{type(error).__name__}: {error}")


@dataclass
class Play:
    """One world on the stage."""

    stage: Stage
    world: World
    touched: set[int] = field(default_factory=set)
    """Rows that another user changed, made, or began to refer to."""
    held: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    new_refs: list[tuple[Child, Key]] = field(default_factory=list)
    young: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    """Rows that got a child that keeps them."""
    joined: dict[int, Key] = field(default_factory=dict)
    """Young rows that began to refer to due ones."""
    counted: int = 0
    statements: int = 0

    def fault(self, what: str) -> None:
        """Something that must not be."""
        self.stage.seen.faults.setdefault(what, []).append(self.world.seed)

    def reached(self, what: str, count: int = 1) -> None:
        """Count what a world is about."""
        self.stage.seen.count[what] += count

    # -- the tables --------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """The world's tables and rows, in place of the last world's."""
        world = self.world
        table, keys = self.name(world.table), ", ".join(map(quote, world.columns))
        refs = ", ".join(f"p{n}" for n in range(len(world.types)))
        defaults = (
            [f" DEFAULT {literal(value)}" for value in world.default] if world.default else [""] * len(world.types)
        )
        columns = [
            *(f"{quote(name)} {kind}" for name, kind in zip(world.columns, world.types, strict=True)),
            f'"the At" {world.clock_type}', "state text", "note text DEFAULT 'new'", "n int", "who int",
            *(f"p{n} {kind}{defaults[n]}" for n, kind in enumerate(world.types)),
            "pad text",
        ]  # fmt: skip
        by = f" PARTITION BY HASH ({quote(world.columns[0])})" if world.partitions else ""
        script = [
            *(f"DROP SCHEMA IF EXISTS {quote(name)} CASCADE" for name in ("w", 'the "W:orld" one')),
            f"CREATE SCHEMA {quote(world.schema)}",
            f"CREATE TABLE {table} ({', '.join(columns)}, PRIMARY KEY ({keys})){by}",
            *(
                f"CREATE TABLE {self.name(f'leaf{n}')} PARTITION OF {table}"
                f" FOR VALUES WITH (MODULUS {world.partitions}, REMAINDER {n})"
                for n in range(world.partitions)
            ),
            f"CREATE TABLE {self.name('log')} (n int)",
            f"CREATE TABLE {self.name('people')} (n int PRIMARY KEY)",
            *(f"INSERT INTO {self.name('people')} VALUES ({n})" for n in world.people or ()),
            f"CREATE TABLE {self.name('attic')} ({', '.join(columns)}, PRIMARY KEY ({keys}))",
        ]
        script += [self.insert(row) for row in world.rows]
        script += [self.insert(row, "attic") for row in world.rows if row.n in world.archived]
        if world.own:
            script.append(
                f"ALTER TABLE {table} ADD CONSTRAINT own FOREIGN KEY ({refs}) REFERENCES {table}"
                f" ON DELETE {world.own}{world.own_deferred}"
            )
        if world.by_spans:
            script.append(f'CREATE INDEX ON {table} ("the At")')
        for child in world.children:
            kinds = ", ".join(f"r{n} {kind}" for n, kind in enumerate(world.types))
            mine = ", ".join(f"r{n}" for n in range(len(world.types)))
            spread = " PARTITION BY HASH (r0)" if child.is_partitioned else ""
            script.append(f"CREATE TABLE {self.name(child.name)} ({kinds}){spread}")
            if child.is_partitioned:
                for n in range(2):
                    script.append(
                        f"CREATE TABLE {self.name(f'{child.name} {n}')} PARTITION OF {self.name(child.name)}"
                        f" FOR VALUES WITH (MODULUS 2, REMAINDER {n})"
                    )
            script += [self.refer(child, ref) for ref in child.rows]
            script.append(
                f"ALTER TABLE {self.name(child.name)} ADD FOREIGN KEY ({mine}) REFERENCES {table}"
                f" ON DELETE {child.act}{child.deferred}"
            )
            if child.is_indexed:
                script.append(f"CREATE INDEX ON {self.name(child.name)} ({mine})")
        script += self.meddlers(table)
        script.append(f"ANALYZE {table}")
        with self.stage.other.begin() as connection:
            connection.exec_driver_sql(";\n".join(script))

    def meddlers(self, table: str) -> Iterator[str]:
        """Triggers and rules."""
        world = self.world
        verb = "UPDATE" if isinstance(world.action, Set) else "DELETE"
        row = "new" if verb == "UPDATE" else "old"
        bodies = {
            "soft": ("BEFORE", "RETURN NULL;"),
            "raise": (
                "BEFORE",
                f"IF mod(old.n, {world.every}) = 0 THEN RAISE EXCEPTION 'on hold'; END IF; RETURN {row};",
            ),
            "log": ("AFTER", f"INSERT INTO {self.name('log')} VALUES (old.n); RETURN {row};"),
        }
        if world.trigger:
            when, body = bodies[world.trigger]
            yield (
                f"CREATE FUNCTION {self.name('act')}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$;"
                f" CREATE TRIGGER meddler {when} {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {self.name('act')}()"
            )
        if world.rewrite:
            yield f"CREATE RULE rewriter AS ON {verb} TO {table} DO INSTEAD NOTHING"

    def insert(self, row: Row, table: str | None = None) -> str:
        """The statement that makes a row."""
        values = [*row.key, row.clock, row.state, "new", row.n, row.who, *row.parent, "x" * 1500]
        return f"INSERT INTO {self.name(table or self.world.table)} VALUES ({', '.join(map(literal, values))})"

    def refer(self, child: Child, ref: Key) -> str:
        """The statement that makes a row of another table."""
        return f"INSERT INTO {self.name(child.name)} VALUES ({', '.join(map(literal, ref))})"

    def name(self, table: str) -> str:
        """Quoted, in the world's schema."""
        return f"{quote(self.world.schema)}.{quote(table)}"

    def contents(self) -> dict[str, Any]:
        """The rows of all tables, the rule's by their number."""
        world = self.world
        refs = ", ".join(f"p{n}" for n in range(len(world.types)))
        keys = ", ".join(map(quote, world.columns))
        query = f'SELECT n, {keys}, CAST("the At" AS text), state, note, who, {refs} FROM '
        with self.stage.other.connect() as connection:
            rows, attic = (
                {row[0]: tuple(row[1:]) for row in connection.exec_driver_sql(query + self.name(table))}
                for table in (world.table, "attic")
            )
            others = {
                child.name: Counter(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {self.name(child.name)}")))
                for child in world.children
            }
            log = Counter(connection.exec_driver_sql(f"SELECT n FROM {self.name('log')}").scalars())
        return {"rows": rows, "attic": attic, "log": log, "children": others}

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it."""
        world = self.world
        self.create()
        self.reached("worlds")
        before = self.contents()
        assert before["rows"].keys() == {row.n for row in world.rows}
        previewed = self.preview()
        with self.stage.other.connect() as connection:
            try:
                applied = self.apply(connection)
            except Crash:
                self.crashed(before)
                return
            except database.DatabaseUnavailable:
                if not world.crash:
                    raise
                self.crashed(before)
                return
            except Permanent as error:
                connection.rollback()
                self.refused(error, before)
                return
            finally:
                with suppress(Exception):
                    connection.rollback()
        after = self.contents()
        if previewed is not None and previewed != len(world.due()):
            self.fault("the preview counts otherwise than the oracle")
        if world.rewrite or (world.forbidden() and not world.changes) or self.is_soft() or world.is_lost:
            self.fault("a run went on that must be an error")
        self.compare(applied, before, after)

    def is_soft(self) -> bool:
        """Whether a trigger keeps what is due."""
        world = self.world
        return world.trigger == "soft" and bool(world.due()) and world.ceiling != 0 and not world.changes

    def preview(self) -> int | None:
        """What the preview counts; None if it is an error."""
        try:
            return retention.preview(self.stage.engine, self.world.rule, now=NOW, keep=KEEP).rows
        except Permanent:
            if not (self.world.rewrite or self.world.forbidden() or self.world.is_lost):
                self.fault("the preview is an error without a reason")
            return None

    def apply(self, connection: Connection, *, again: bool = False) -> Applied:
        """One run of the rule, with what happens meanwhile unless it is a second one."""
        world = self.world
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            for change in world.changes if not again else ():
                if change.at == asked:
                    self.change(change, connection)

        def count(rows: int) -> None:
            self.counted += rows

        with self.plan(), self.crashing(active=not again):
            return retention.apply(
                self.stage.engine, world.rule, now=NOW, keep=KEEP, stop=stop, progress=lambda *_: None,
                ceiling=None if again else world.ceiling, counted=count, target=PATIENT,
            )  # fmt: skip

    @contextmanager
    def plan(self) -> Iterator[None]:
        """The planner finds rows by an index where the world is of spans."""

        def avoid(connection: Any, _record: Any) -> None:
            connection.cursor().execute("SET enable_seqscan = off")
            connection.commit()

        if not self.world.by_spans:
            yield
            return
        self.stage.engine.dispose()
        event.listen(self.stage.engine, "connect", avoid)
        yield
        event.remove(self.stage.engine, "connect", avoid)
        self.stage.engine.dispose()

    @contextmanager
    def crashing(self, *, active: bool) -> Iterator[None]:
        """The process or its connections end at a statement."""
        kind, at = self.world.crash or ("", 0)

        def before(*_: Any) -> None:
            self.statements += 1
            if self.statements != at:
                return
            self.reached(f"crashes, {kind}")
            if kind == "lost":
                self.lose()
            elif kind == "before":
                raise Crash

        def after(*_: Any) -> None:
            if self.statements == at and kind == "after":
                raise Crash

        listeners = [("before_cursor_execute", before), ("after_cursor_execute", after)]
        if not active or not kind:
            yield
            return
        for name, listener in listeners:
            event.listen(self.stage.engine, name, listener)
        try:
            yield
        finally:
            for name, listener in listeners:
                event.remove(self.stage.engine, name, listener)
            self.stage.engine.dispose()

    def lose(self) -> None:
        """The server ends all connections but ours."""
        query = text(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        with self.stage.other.connect() as connection:
            connection.execute(query)

    def change(self, change: Change, connection: Connection) -> None:
        """What another user does, and remembers if the row was there."""
        table, n = self.name(self.world.table), change.n
        [row] = [one for one in self.world.rows if one.n == n]
        made = {"new": MADE + n, "join": JOINED + n}.get(change.kind)
        if n in self.held or made in self.touched:  # a row that went and is made again would be counted twice
            return
        mine = f"WHERE n = {n}"
        as_it_was = f"{mine} AND note = 'new'"
        if change.kind == "hold":
            found = connection.exec_driver_sql(f"SELECT n FROM {table} {as_it_was} FOR UPDATE").all()
            self.held |= {n for _ in found}
            self.touched.add(n)
            self.reached("rows held", len(found))
            return
        clock = {kind: self.world.spell(at) for kind, at in (("young", NOW), ("due", CUTOFF - 2 * DAY))}
        with self.stage.other.begin() as own:
            own.exec_driver_sql("SET LOCAL lock_timeout = '300ms'")
            own.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
            with suppress(Exception), own.begin_nested():
                if change.kind in ("young", "due"):
                    if self.world.is_timeless:
                        return
                    statement = f'UPDATE {table} SET "the At" = {literal(clock[change.kind])} {as_it_was}'
                    if own.exec_driver_sql(statement).rowcount:
                        (self.young.add if change.kind == "young" else self.young.discard)(n)
                elif change.kind == "delete":
                    if self.world.rewrite or self.world.own or self.world.trigger or self.world.children:
                        return
                    self.deleted |= {n for _ in range(own.exec_driver_sql(f"DELETE FROM {table} {mine}").rowcount)}
                elif change.kind == "new":
                    key = _made(self.world.types, MADE + n)
                    old = self.world.spell(CUTOFF - KEEP)
                    own.exec_driver_sql(
                        self.insert(Row(MADE + n, key, old, "done", (None,) * len(key), who=PEOPLE + 1))
                    )
                    self.touched.add(MADE + n)
                elif change.kind == "join":
                    if not self.world.own:
                        return
                    key = _made(self.world.types, JOINED + n)
                    own.exec_driver_sql(self.insert(Row(JOINED + n, key, self.world.spell(NOW), "done", row.key)))
                    self.touched.add(JOINED + n)
                    self.joined[JOINED + n] = row.key
                    if not isinstance(self.world.action, Set):
                        self.kept.add(n)
                elif change.kind in ("adopt", "birth", "death"):
                    self.touched |= self.family(change, own, row)
                elif self.world.children:
                    child = self.world.children[n % len(self.world.children)]
                    own.exec_driver_sql(self.refer(child, row.key))
                    self.new_refs.append((child, row.key))
                    if child.act in KEEPING and not isinstance(self.world.action, Set):
                        self.kept.add(n)
                self.touched.add(n)
                self.reached(f"changes, {change.kind}")

    def family(self, change: Change, own: Connection, row: Row) -> set[int]:
        """What happens to parents: the rows that it concerns."""
        people, table = self.name("people"), self.name(self.world.table)
        who = f"WHERE who = {row.who or 0} AND note = 'new'"
        if change.kind == "adopt":
            found = own.exec_driver_sql(
                f"UPDATE {table} SET who = (SELECT min(n) FROM {people}) WHERE n = {row.n} AND note = 'new' RETURNING n"
            )
            concerned = set(found.scalars())
            self.young |= concerned
        elif row.who in NO_PARENT:
            return set()
        elif change.kind == "birth":
            own.exec_driver_sql(f"INSERT INTO {people} VALUES ({row.who or 0}) ON CONFLICT DO NOTHING")
            concerned = set(own.exec_driver_sql(f"SELECT n FROM {table} {who}").scalars())
            self.young |= concerned
        else:
            least = f"(SELECT count(*) FROM {people}) > 1"
            own.exec_driver_sql(f"DELETE FROM {people} WHERE n = {row.who or 0} AND {least}")
            concerned = set(own.exec_driver_sql(f"SELECT n FROM {table} {who}").scalars())
            self.young -= concerned
        return concerned

    # -- the oracle --------------------------------------------------------------------------------------------------

    def refused(self, error: Permanent, before: dict[str, Any]) -> None:
        """The run ended with an error: it names the table, and rows that are not due are as they were."""
        world, after = self.world, self.contents()
        self.reached("errors")
        if world.table not in str(error).replace('""', '"'):
            self.fault(f"an error that does not name the table: {error}")
        soft = world.trigger == "soft" and bool(world.due())
        expected = world.rewrite or world.forbidden() or soft or bool(self.touched) or world.is_lost
        self.reached("worlds that lost all parents", world.is_lost)
        if not expected:
            self.fault(f"an error without a reason: {error}")
        if not self.touched and after != before:
            self.fault("an error, and something changed")
        self.nothing_else(before, after)

    def crashed(self, before: dict[str, Any]) -> None:
        """After a crash nothing is lost, and the next run does the rest."""
        world = self.world
        middle = self.contents()
        self.nothing_else(before, middle)
        gone = self.gone(before, middle)
        if world.ceiling is not None and (len(gone) > world.ceiling or len(gone) > self.counted):
            self.fault("a crashed run changed more rows than were counted")
        if 0 < len(gone) < len(world.due()):
            self.reached("crashes between batches")
        if world.rewrite or world.forbidden() or world.trigger == "soft" or world.is_lost:
            return
        with self.stage.other.connect() as connection:
            applied = self.apply(connection, again=True)
        after = self.contents()
        self.nothing_else(before, after)
        free = world.due() - world.blocked()
        if self.gone(before, after) != free:
            self.fault("after a crash the next run leaves rows, or takes others")
        if (applied.rows, applied.failed, applied.skipped) != (len(free - gone), len(world.blocked()), 0):
            self.fault("after a crash the next run counts otherwise")

    def gone(self, before: dict[str, Any], after: dict[str, Any]) -> set[int]:
        """The rows that the rule acted on."""
        if isinstance(self.world.action, Set):
            note = 3 + len(self.world.types) - 1
            return {
                n for n, row in after["rows"].items()
                if row[note] == "old" and (n not in before["rows"] or before["rows"][n][note] != "old")
            }  # fmt: skip
        return before["rows"].keys() - after["rows"].keys() - self.deleted

    def nothing_else(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """What must hold however a run ended."""
        world = self.world
        due, gone = world.due(), self.gone(before, after)
        if others := gone - due - self.touched:
            self.fault(f"rows that were not due were changed: {len(others)}")
        if wrong := gone & (self.young | self.kept | self.held):
            self.fault(f"rows that became young, got a child or were held were changed: {len(wrong)}")
        width = len(world.types)
        for n, row in before["rows"].items():
            now = after["rows"].get(n)
            if n in gone or n in self.touched or now is None or now == row:
                continue
            loose = n in due and world.own in ("SET NULL", "SET DEFAULT") and now[:-width] == row[:-width]
            if not loose:
                self.fault("a row changed that was not to")
        for n, parent in self.joined.items():
            if n not in after["rows"] or after["rows"][n][-width:] != parent:
                self.fault("a young row that joined a chain changed")
        wanted = {name: Counter(refs) for name, refs in before["children"].items()}
        for child, key in self.new_refs:
            wanted[child.name][key] += 1
        if after["children"] != wanted:
            self.fault("rows of another table changed")
        if isinstance(world.action, Archive):
            moved = after["attic"].keys() - world.archived
            kept = [
                n for n in moved if n in before["rows"] and after["attic"][n][:-width] != before["rows"][n][:-width]
            ]
            if (moved - self.touched) != (gone - self.touched) or [n for n in kept if n not in self.touched]:
                self.fault("the archive is not what has gone")
        if world.trigger == "log" and not self.touched and set(after["log"]) != gone:
            self.fault("the trigger saw other rows")

    def compare(self, applied: Applied, before: dict[str, Any], after: dict[str, Any]) -> None:
        """A run that ended without an error."""
        world = self.world
        self.nothing_else(before, after)
        due, blocked, gone = world.due(), world.blocked(), self.gone(before, after)
        free = due - blocked
        new = {n for n in self.touched if n > MADE} - after["rows"].keys()
        if applied.rows != len(gone | new):
            self.fault("rows are counted otherwise")
        if world.ceiling is not None and (applied.rows > world.ceiling or self.counted != applied.rows):
            self.fault("more rows than the ceiling, or counted otherwise")
        if (applied.stopped == "ceiling") != (world.ceiling is not None and applied.rows == world.ceiling):
            self.fault("it does not say why it stopped")
        if len(applied.failures) != min(applied.failed, batches.NAMED_FAILURES):
            self.fault("failures are not spelled out")
        said = f"{world.schema}.{world.table} {world.columns[0]}="
        if not all(failure.startswith(said) for failure in applied.failures):
            self.fault("a failure does not name its row")
        affected = self.affected()
        fits = world.ceiling is None or world.own is None  # a ring that is above the ceiling waits
        if applied.stopped is None and fits and (gone - affected) != (free - affected):
            self.fault("due and free rows stay")
        if gone - free - affected:
            self.fault("rows went that are kept")
        waiting = len(due - gone)
        if not self.touched and (applied.failed > len(blocked) or applied.failed + applied.skipped > waiting):
            self.fault("more rows are counted than stay")
        if applied.stopped is None:
            stay = len([n for n in due | self.touched if n in after["rows"] and n not in gone])
            if not self.touched and (applied.failed, applied.skipped) != (len(blocked), 0) and world.ceiling is None:
                self.fault("failed and skipped rows are counted otherwise")
            if abs(stay - applied.failed - applied.skipped) > len(affected):
                self.fault("what stays is counted otherwise")
        self.tell(applied, due, blocked, gone)

    def affected(self) -> set[int]:
        """Rows that another user changed, and those that they refer to."""
        world = self.world
        by_key = {row.key: row.n for row in world.rows}
        parents = {row.n: by_key.get(row.parent) for row in world.rows}
        found, pending = set(self.touched), list(self.touched)
        while pending:
            parent = parents.get(pending.pop())
            if world.own and parent and parent not in found:
                found.add(parent)
                pending.append(parent)
        return found

    def tell(self, applied: Applied, due: set[int], blocked: set[int], gone: set[int]) -> None:
        """What the world was about."""
        world = self.world
        self.reached("complete runs")
        self.reached("rows due", len(due))
        self.reached("rows that went", len(gone))
        if not world.is_timeless:
            unit = "date" if world.clock_type == "date" else world.clock_unit
            self.reached(f"rows that went by a clock of {unit}", len(gone))
        if world.people is not None:
            self.reached("orphans that went", len(gone))
            self.reached("orphans that went without a clock", len(gone) * world.is_timeless)
        self.reached("rows refused", applied.failed)
        self.reached("rows skipped", applied.skipped)
        self.reached("runs of several batches", applied.batches > 1)
        self.reached("runs with refusals", bool(applied.failed))
        self.reached(f"runs, {type(world.action).__name__}")
        self.reached("runs by spans", world.by_spans)
        self.reached("runs over partitions", bool(world.partitions))
        self.reached("runs that met the ceiling", applied.stopped == "ceiling")
        if world.own and not isinstance(world.action, Set):
            referring = world.referring()
            self.reached(f"due rows that went after rows of theirs, {world.own}", sum(bool(referring[n]) for n in gone))
            self.reached("rows kept by rows of their table", sum(bool(referring[n]) for n in blocked))


def quote(name: str) -> str:
    """As SQL quotes a name."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """As SQL spells a value."""
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return f"'{value.replace(tzinfo=None).isoformat()}Z'"
    if isinstance(value, date):
        return f"'{value}'"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
