"""Retention: a rule says which rows of a table are too old, one engine deletes, archives or marks them.

    Rule(name="downloads", table="handled_downloads", clock="timestamp", keep=timedelta(days=14), action=Delete())

The rules in force come from `lamplighter.rules`: defaults, and those of the settings.

`preview` counts what `apply` would change, `simulate` what it would under another `keep`; all ask one predicate
(`table.py`). What is due follows from the rows alone, so a run that was stopped or killed is resumed by a new one.

`apply` changes a batch with each statement, and each statement is a transaction of its own that takes about
`AIM * target`, holds its locks no longer, and waits at most `LOCK_WAIT` for a row that somebody else holds:

- Batches are spans of time where the planner would find the rows by an index, and ranges of blocks where it would read
  the table, or where there are so many rows without order that each span would visit the same blocks again.
- A batch is first tried as it is, and given up when it meets a locked row; only then is it repeated with `FOR UPDATE
  SKIP LOCKED`, which writes each row twice and is half as fast. A skipped row is taken the next time.
- A batch that takes too long is cancelled by the server and halved.
- A batch that a foreign key refuses is repeated without the rows that other rows still refer to; these are counted and
  reported (REQUIREMENTS S9). Due rows that refer to one another go after their referrers, within the rule's own table
  only (`chains.py`). A row that is not due keeps the due rows that it refers to.
- A batch that is refused for another reason (a trigger) is halved until the refused rows stand alone. The search is
  bounded by `ISOLATED` and `SEARCHED`; what it leaves waits for the next run.
- A lock on a whole table is waited for up to `LOCK_TIMEOUT`, with nothing held, and then ends the run.

PostgreSQL 14 or newer. Nothing here imports SQLAlchemy before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.retention.batches import TARGET, Work
from lamplighter.kernel.retention.clock import Clock
from lamplighter.kernel.retention.rule import (
    Applied,
    Archive,
    BadRule,
    Candidates,
    ClockUnit,
    Delete,
    Parent,
    Rule,
    Set,
    Simulation,
    Stop,
)
from lamplighter.kernel.retention.table import (
    Table,
    alias,
    demand_no_dependants,
    demand_unit,
    execute,
    look,
    named,
    parameters_of,
    quoted,
    spelled,
    trouble_with,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = [
    "Applied",
    "Archive",
    "BadRule",
    "Candidates",
    "ClockUnit",
    "Delete",
    "Parent",
    "Rule",
    "Set",
    "Simulation",
    "Stop",
    "apply",
    "preview",
    "simulate",
]

PREVIEW_TIMEOUT: Final = timedelta(seconds=60)
"""How long counting may take; it locks nothing."""
MAX_SKEW: Final = timedelta(minutes=5)
"""By how much the database's clock may differ from ours."""


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
    [found] = _count(engine, rule, [_cutoff(rule, now, keep)], max_lag=keep)
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
    current = rule.keep if current is None else current
    cutoffs = [_cutoff(rule, now, current), _cutoff(rule, now, keep)]
    before, after = _count(engine, rule, cutoffs, timeout, max_lag=min(current, keep))
    return Simulation(current=before, proposed=after)


def _cutoff(rule: Rule, now: datetime, keep: timedelta) -> datetime:
    if keep < rule.floor:
        raise Permanent(f"{rule.name}: rows are kept for at least {rule.floor}, not {keep}.")
    try:
        return now - keep
    except OverflowError:
        raise Permanent(f"{rule.name}: {keep} before {now} is before the calendar begins.") from None


def _count(
    engine: Engine,
    rule: Rule,
    cutoffs: Sequence[datetime],
    timeout: timedelta = PREVIEW_TIMEOUT,
    *,
    max_lag: timedelta,
) -> list[Candidates]:
    from sqlalchemy.exc import DBAPIError

    from lamplighter.kernel.database import bound_statements, one_snapshot, whole_view

    with engine.connect() as connection, connection.begin():
        one_snapshot(connection)
        bound_statements(connection, statement=timeout)
        try:
            whole_view(connection, max_lag=max_lag)
            table = look(connection, rule)
            for cutoff in cutoffs:
                demand_no_dependants(connection, rule, table, cutoff)
            found = [count(connection, rule, table, cutoff) for cutoff in cutoffs]
            if not any(one.rows for one in found):
                demand_unit(connection, rule, table)
        except DBAPIError as error:
            if trouble_with(error) == "late":
                raise Permanent(
                    f"{rule.name}: counting takes more than {timeout.seconds} s; an index on the clock helps"
                    f"{f', and one on {rule.orphan_of.key} of {rule.orphan_of.table}' if rule.orphan_of else ''}."
                ) from error
            raise named(rule, error) from error
    return found


def count(connection: Connection, rule: Rule, table: Table, cutoff: datetime) -> Candidates:
    """What of the rule's table is due before `cutoff`, by the predicate of the action.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refuses, or it takes too long.
    """
    sizes = " + ".join(f"coalesce(pg_column_size({quoted(name)}), 0)" for name in table.columns)
    query = (
        f"SELECT count(*) AS rows, coalesce(sum({sizes}), 0) AS bytes,"  # noqa: S608 - identifiers are quoted
        f" {_extreme('min', table.clock)} AS oldest, {_extreme('max', table.clock)} AS newest"
        f" FROM {spelled(rule.table)} AS {quoted(alias(rule))} WHERE {table.whole_predicate}"
    )
    row = execute(connection, query, parameters_of(rule, table, cutoff)).one()
    return Candidates(rows=row.rows, bytes=int(row.bytes), oldest=row.oldest, newest=row.newest)


def _extreme(aggregate: str, clock: Clock | None) -> str:
    return clock.moment(f"{aggregate}({clock.name})") if clock else "CAST(NULL AS timestamptz)"


def apply(
    engine: Engine,
    rule: Rule,
    *,
    now: datetime,
    keep: timedelta,
    stop: Callable[[], Stop],
    progress: Callable[[int, str], None],
    ceiling: int | None = None,
    counted: Callable[[int], None] = lambda _: None,
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
        ceiling: how many rows may be changed at most.
        counted: told the rows of each batch right before they are committed.
        target: how long a batch may hold its locks; no statement takes more than twice as long.

    Raises:
        Permanent: `keep` is below the floor, table and rule do not fit, or the clocks differ: nothing was touched. Or
            the database does otherwise than the rule says, see `batches.Work`: that batch was rolled back.
        Retryable: somebody has locked the whole table, or one that refers to it, for longer than `LOCK_TIMEOUT`.
        DatabaseUnavailable: the database is down, or went away; what was changed stays changed.
    """
    from lamplighter.kernel.database import whole_view

    cutoff = _cutoff(rule, now, keep)
    with engine.connect() as connection, _named_errors(rule):
        with connection.begin():
            whole_view(connection, max_lag=keep)
            table = look(connection, rule)
            demand_no_dependants(connection, rule, table, cutoff)
        if abs(table.now - now) > MAX_SKEW:
            raise Permanent(
                f"{rule.name}: the database's clock says {table.now:%Y-%m-%d %H:%M:%S}, ours {now:%Y-%m-%d %H:%M:%S} "
                "(UTC): nothing was touched."
            )
        work = Work(
            connection=connection,
            rule=rule,
            table=table,
            cutoff=cutoff,
            stop=stop,
            progress=progress,
            ceiling=ceiling,
            counted=counted,
            target=target,
        )
        return work.run()


@contextmanager
def _named_errors(rule: Rule) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as error:
        raise named(rule, error) from error
