"""The preflight of the cleanup: what each retention rule, and `plans`, would touch today and what stands in the way.

Each rule is looked at in read-only transactions of its own, so that one that fails stops no other. Counting is bounded
by `COUNTING`; beyond it the planner's estimate stands, and the item says so (REQUIREMENTS O4, S4, S6, S8).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter import rules
from lamplighter.deletion import ramp
from lamplighter.kernel import inspection
from lamplighter.kernel.errors import Permanent, Retryable, Unfit
from lamplighter.kernel.inspection import Description, Fault, Needs
from lamplighter.kernel.preflight import (
    Item,
    Look,
    Severity,
    amount,
    counted,
    explained,
    failures,
    not_reached,
    period,
    sentence,
    storage_price,
)
from lamplighter.kernel.retention import Archive, Candidates, Rule, Set, count
from lamplighter.kernel.retention.table import (
    Dependants,
    Table,
    alias,
    demand_unit,
    dependants_not_due,
    examine,
    execute,
    parameters_of,
    quoted,
    spelled,
    trouble_with,
)
from lamplighter.library import plans, rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

COUNTING: Final = timedelta(seconds=10)
"""How long counting what is due may take, for each rule."""
LOOKING: Final = timedelta(seconds=10)
"""How long a statement on the catalogue may take, and one on a foreign key."""
RESERVE: Final = timedelta(seconds=30)
"""Of the preflight's time, what counting leaves to the rest: with less left, rules are estimated only."""
RATES: Final = (39_503, 735_819)
"""Rows a second that retention deleted: 20 000 of 2 000 000 shuffled rows, and 1 000 000 in date order."""
RATES_FROM: Final = "bench/README.md, Purge: 39 503 to 735 819 rows/s on two cores; triggers and wide rows are slower"
ESTIMATED: Final = "estimated by the planner"


def part(look: Look) -> Iterator[Item]:
    """An item for each rule, with its faults before it."""
    if look.engine is None:
        yield Item(
            severity=Severity.NOTE,
            name="retention.rules",
            sentence="The retention rules were not looked at, because there is no database to look into.",
        )
        return
    try:
        found = rules.in_force(look.settings)
    except Permanent as error:
        yield Item(
            severity=Severity.BLOCKED,
            name="retention.rules",
            sentence=sentence(str(error)),
            advice="Correct the settings.",
        )
        return
    for rule in found.values():
        yield from _rule(look, rule)
    yield from _plans(look)
    try:
        yield from _recognised(look)
    except failures() as error:
        yield Item(
            severity=Severity.WARNING,
            name="retention.rules",
            sentence=f"Tables of well-known applications could not be looked for. {explained(error)}",
            advice="Correct what the sentence names.",
        )


def _rule(look: Look, rule: Rule) -> Iterator[Item]:
    name = f"retention.rules.{rule.name}"
    applied = rules.applied(rule.name, look.settings)
    if look.left() < RESERVE / 3:
        yield not_reached(name)
        return
    try:
        yield from _looked_at(look, rule, name=name, applied=applied)
    except failures() as error:
        words = f"The rule could not be looked at. {_why(rule, error)}"
        yield Item(
            severity=Severity.of_fault(applied=applied),
            name=name,
            sentence=_sentence(rule, str(error)) if isinstance(error, Permanent) else words,
            advice="Correct what the sentence names, then run the preflight again.",
        )


def _why(rule: Rule, error: Exception) -> str:
    from sqlalchemy.exc import DBAPIError

    if isinstance(error, DBAPIError) and trouble_with(error) == "locked":
        return f"Another session has locked {rule.table}; try again later."
    if isinstance(error, DBAPIError) and trouble_with(error) == "late":
        return f"Looking at {rule.table} takes more than {LOOKING.seconds} s."
    return explained(error)


def _looked_at(look: Look, rule: Rule, *, name: str, applied: bool) -> Iterator[Item]:
    fault = Severity.of_fault(applied=applied)
    with look.reading(statement=LOOKING) as connection:
        oid = inspection.locate(connection, rule.table)
        if oid is None:
            yield _missing_table(connection, rule, name=name, applied=applied)
            return
        description = inspection.describe(connection, oid)
        found = list(inspection.faults(description, needs_of(rule)))
        found += inspection.unindexed(description, rule.clock)
        if not isinstance(rule.action, Set):
            found += inspection.unreadable_referrers(description)
        if isinstance(rule.action, Archive) and (into := inspection.locate(connection, rule.action.into)) is not None:
            needed = Needs(whole=frozenset({"INSERT"}))
            found += inspection.faults(inspection.describe(connection, into), needed)
        for one in found:
            yield _item(name, one, fault)
        if not description.parts[0].usage:
            return
        table, reasons = examine(connection, rule, is_readable=not any(one.hides for one in found))
    for reason in reasons:
        is_other = isinstance(reason, Unfit) and rule.name in rules.RULES and not applied
        yield Item(
            severity=Severity.NOTE if is_other else fault,
            name=name,
            sentence=_sentence(rule, str(reason)),
            advice="The default rule is for another table of this name, and does nothing. Add a rule of your own."
            if is_other
            else "Change the rule, or the table.",
        )
    if table is None:
        return
    if rule.orphan_of and not rule.clock and not isinstance(rule.action, Set):
        yield Item(
            severity=Severity.WARNING,
            name=name,
            sentence=f"The rule has no clock: a row of {rule.table} that is committed before its parent in "
            f"{rule.orphan_of.table} is an orphan until then.",
            advice="Give the rule a clock, and keep_days that are longer than an application takes to write both.",
        )
    if table.triggers:
        yield Item(
            severity=Severity.WARNING,
            name=name,
            sentence=f"Triggers of {rule.table} fire when the rule acts: {', '.join(table.triggers)}.",
            advice="Read them before you apply the rule. A run compares each batch with what is due, and stops with an "
            "error that names the table where a trigger does otherwise.",
        )
    if any(one.hides for one in found):
        for key in table.dependants:  # which rows are due cannot be seen, for the reason that stands above
            yield Item(
                severity=Severity.WARNING,
                name=name,
                sentence=f"Whether the {_described(rule, key)} changes rows that are not due cannot be seen yet.",
                advice="Grant the rights that are missing, then run the preflight again.",
            )
        return
    yield from _cascades(look, rule, table, name=name, fault=fault)
    yield _touched(look, rule, _due(look, rule, table), description, name=name, applied=applied)


def needs_of(rule: Rule) -> Needs:
    """The rights that a rule takes on its table, as docs/grants.sql grants them."""
    if isinstance(rule.action, Set):
        return Needs(whole=frozenset({"SELECT"}), update=tuple(rule.action.values), direct=True)
    return Needs(whole=frozenset({"SELECT", "DELETE"}), locks=True, direct=True)


def _missing_table(connection: Connection, rule: Rule, *, name: str, applied: bool) -> Item:
    others = inspection.elsewhere(connection, rule.table)
    hint = f" There is one in the schema {', '.join(others)}, which the search path does not have." if others else ""
    return Item(
        severity=Severity.BLOCKED if applied else Severity.NOTE,
        name=name,
        sentence=sentence(f"There is no table {rule.table} in the database, so the rule does nothing") + hint,
        advice="Remove `apply`, or correct the table of the rule." if applied else "",
    )


def _item(name: str, fault: Fault, severity: Severity) -> Item:
    return Item(
        severity=severity if fault.refuses else Severity.WARNING,
        name=name,
        sentence=sentence(fault.sentence),
        advice=fault.advice,
    )


def _cascades(look: Look, rule: Rule, table: Table, *, name: str, fault: Severity) -> Iterator[Item]:
    """Foreign keys that would change rows which are not due."""
    from sqlalchemy.exc import DBAPIError

    for one in table.dependants:
        if look.left() < RESERVE:
            yield not_reached(name)
            return
        try:
            with look.reading(statement=LOOKING) as connection:
                _whole(connection, rule.keep)
                found = dependants_not_due(connection, rule, table, look.now - rule.keep, one)
        except (DBAPIError, Permanent, Retryable) as error:
            late = isinstance(error, DBAPIError) and trouble_with(error) == "late"
            why = f"it takes more than {LOOKING.seconds} s" if late else explained(error)
            yield Item(
                severity=Severity.WARNING,
                name=name,
                sentence=sentence(
                    f"Whether the {_described(rule, one)} changes rows that are not due could not be seen: {why}"
                ),
                advice=f"Grant SELECT on {one.table}, and create an index on {', '.join(one.columns)} of it.",
            )
            continue
        if found:
            yield Item(
                severity=fault,
                name=name,
                sentence=_sentence(rule, found),
                advice=f"Add a rule for {one.table} that runs first, or change the foreign key. Until then a run is "
                "refused.",
            )


def _sentence(rule: Rule, message: str) -> str:
    """A message of retention without the name of the rule, and without its words on a run."""
    own = message.removeprefix(f"{rule.name}: ").removeprefix(f"retention.rules.{rule.name}.")
    words = own.partition("; nothing was touched")[0]
    starts = words.startswith(("the ", "there ", "rows "))  # anything else is the owner's name of something
    return sentence(words[:1].upper() + words[1:] if starts else words)


def _described(rule: Rule, key: Dependants) -> str:
    verb = "UPDATE" if isinstance(rule.action, Set) else "DELETE"
    return f"foreign key {key.name} of {key.table} (ON {verb} {key.action})"


def _whole(connection: Connection, keep: timedelta) -> None:
    from lamplighter.kernel.database import whole_view

    whole_view(connection, max_lag=keep)


def _due(look: Look, rule: Rule, table: Table) -> Candidates | int:
    """What is due today, counted where that takes little time; else how many rows the planner expects."""
    from sqlalchemy.exc import DBAPIError

    cutoff = look.now - rule.keep
    if look.left() > RESERVE + COUNTING:
        try:
            with look.reading(statement=COUNTING) as connection:
                _whole(connection, rule.keep)
                found = count(connection, rule, table, cutoff)
                if not found.rows:
                    demand_unit(connection, rule, table)
                return found
        except DBAPIError as error:
            if trouble_with(error) != "late":
                raise
    with look.reading(statement=LOOKING) as connection:
        query = f"EXPLAIN (FORMAT JSON) SELECT FROM {spelled(rule.table)} AS {_alias(rule)} WHERE {table.predicate}"
        plan = execute(connection, query, parameters_of(rule, table, cutoff)).scalar_one()
        plan = json.loads(plan) if isinstance(plan, str) else plan
        return int(plan[0]["Plan"]["Plan Rows"])


def _alias(rule: Rule) -> str:
    return quoted(alias(rule))


def _touched(look: Look, rule: Rule, due: Candidates | int, table: Description, *, name: str, applied: bool) -> Item:
    """What the rule would touch today."""
    verb = "changes" if isinstance(rule.action, Set) else "archives" if isinstance(rule.action, Archive) else "deletes"
    found = None if isinstance(due, int) else due
    number = due if isinstance(due, int) else due.rows
    words = [f"The rule {'is applied' if applied else 'only previews'}. Due today: {counted(number, 'row')}"]
    if table.rows >= max(number, 1):
        words.append(f" of about {table.rows:,.0f}")
    if found is None:
        words.append(f" ({ESTIMATED}, since counting takes more than {COUNTING.seconds} s)")
    elif found.rows:
        words.append(f", {amount(found.bytes)}")
    if found and found.oldest and found.newest:
        words.append(f", from {found.oldest:%Y-%m-%d} to {found.newest:%Y-%m-%d}")
    words.append(".")
    facts: dict[str, Any] = {
        "applied": applied,
        "rows": number,
        "rows_are": "counted" if found else ESTIMATED,
        "bytes": found and found.bytes,
        "oldest": found and found.oldest and found.oldest.isoformat(),
        "newest": found and found.newest and found.newest.isoformat(),
        "table_rows_estimated": None if table.rows < 0 else int(table.rows),
        "table_bytes_estimated": table.bytes,
        "partitions": len(table.parts) - 1,
    }
    if found and (price := storage_price(look.host)):
        facts |= {"storage_usd_a_month": round(found.bytes / 1e9 * price.usd, 4), "storage_price": price.source}
        if (worth := found.bytes / 1e9 * price.usd) >= 0.01:
            words.append(f" Storage for them costs {worth:,.2f} USD a month; deleted rows make room for new ones.")
    if number:
        first, why = _first_run(look, rule, number)
        facts |= {"first_run_rows": first, "first_run_limit": why}
        first = number if first is None else first
        facts |= _duration(first)
        words.append(f" The next run in earnest {verb} {counted(first, 'row')} ({why}), in {_how_long(first)}.")
    proposal = {"retention": {"rules": {rule.name: {"apply": False}}}} if number and not applied else None
    return Item(
        severity=Severity.NOTE,
        name=name,
        sentence="".join(words),
        advice="Preview the rule, then set `apply` to true." if proposal else "",
        facts=facts,
        settings=proposal,
    )


def _first_run(look: Look, rule: Rule, due: int) -> tuple[int | None, str]:
    """How many rows the next run in earnest may touch, None where that is unknown, and why."""
    limits = rows.ramp_of(rule, look.settings)
    if not limits:
        return due, "Lamplighter's own rows have no ramp"
    try:
        limit = ramp.look(now=look.now, **limits)
    except (Permanent, Retryable) as error:
        return None, f"the ramp could not be read: {explained(error)}"
    if limit is None:
        return due, "the ramp is lifted"
    return min(limit, due), f"at most {limit:,} by the ramp or max_rows"


def _duration(number: int) -> dict[str, Any]:
    slow, fast = RATES
    return {"seconds_from": round(number / fast, 1), "seconds_to": round(number / slow, 1), "rates": RATES_FROM}


def _how_long(number: int) -> str:
    slow, fast = (period(number / rate) for rate in RATES)
    return slow if slow == fast else f"{fast} to {slow} at the rates of the bench"


RECOGNISED: Final[Mapping[str, tuple[str, frozenset[str], Mapping[str, Any]]]] = {
    "django_sessions": (
        "django_session",
        frozenset({"session_key", "session_data", "expire_date"}),
        {"key": "session_key", "clock": "expire_date", "keep_days": 0},
    ),
    "laravel_sessions": (
        "sessions",
        frozenset({"id", "payload", "last_activity"}),
        {"clock": "last_activity", "clock_unit": "seconds", "keep_days": 7},
    ),
    "rails_sessions": (
        "sessions",
        frozenset({"id", "session_id", "data", "updated_at"}),
        {"clock": "updated_at", "keep_days": 30},
    ),
}
"""Rules for tables of well-known applications, by a name: the table, columns that it has, and the rule."""

_FIND: Final = """
    SELECT nspname AS schema, relname AS table, pg_table_is_visible(pg_class.oid) AS visible,
        (SELECT array_agg(CAST(attname AS text)) FROM pg_attribute
            WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped) AS columns
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = ANY (:names) AND relkind IN ('r', 'p') AND nspname !~ '^(pg_|information_schema$)'
    ORDER BY nspname, relname
"""


def _recognised(look: Look) -> Iterator[Item]:
    """Rules that the settings may add, for tables that have the name and the columns of a well-known application's."""
    named = {given.table for given in look.settings.retention.rules.values()}
    with look.reading(statement=LOOKING) as connection:
        found = execute(connection, _FIND, {"names": sorted({table for table, _, _ in RECOGNISED.values()})}).all()
    for one in found:
        table = one.table if one.visible else f"{one.schema}.{one.table}"
        for name, (known, columns, rule) in RECOGNISED.items():
            if one.table != known or not columns <= {*one.columns} or {table, f"{one.schema}.{one.table}"} & named:
                continue
            yield Item(
                severity=Severity.NOTE,
                name=f"retention.rules.{name}",
                sentence=f"{table} has the columns of {name.replace('_', ' ')}, and no rule is about it.",
                advice="Add the proposed rule if it is. keep_days has to be longer than your sessions live.",
                settings={"retention": {"rules": {name: {"table": table, **rule, "apply": False}}}},
            )


def _plans(look: Look) -> Iterator[Item]:
    """The phase `plans`, which is no rule."""
    applied = look.settings.rule("plans").apply
    name, table = "retention.rules.plans", str(plans.DEFINITION["table"])
    fault = Severity.of_fault(applied=applied)
    try:
        with look.reading(statement=LOOKING) as connection:
            oid = inspection.locate(connection, table)
            if oid is None:
                yield Item(
                    severity=Severity.BLOCKED if applied else Severity.NOTE,
                    name=name,
                    sentence=f"There is no table {table} in the database, so the phase does nothing.",
                    advice="Remove `apply`." if applied else "",
                )
                return
            description = inspection.describe(connection, oid)
        missing = sorted({"id", "status", "job_id", "updated_at"} - description.parts[0].columns.keys())
        if missing:
            yield Item(
                severity=fault,
                name=name,
                sentence=f"The table {table} has no column {', '.join(missing)}.",
                advice="The phase fits another table; do not apply it.",
            )
        needs = Needs(select=("id", "status", "job_id", "updated_at"), update=("status", "updated_at"))
        found = list(inspection.faults(description, needs))
        for one in found:
            yield _item(name, one, fault)
        if not missing and not found:
            with look.reading(statement=LOOKING) as connection:
                plans.demand_fitting(connection, look.now)
    except failures() as error:
        yield Item(
            severity=fault,
            name=name,
            sentence=f"The phase could not be looked at. {explained(error)}",
            advice="Correct what the sentence names, then run the preflight again.",
        )
        return
    yield Item(
        severity=Severity.NOTE,
        name=name,
        sentence=f"The phase {'is applied' if applied else 'only previews'}. The ledger knows which plans are stuck; "
        "the preview of the phase counts them.",
    )
