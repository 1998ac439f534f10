"""The preflight of the audit archive: what it would move today, and the rights that it takes (REQUIREMENTS O4, E1)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from lamplighter.admin.audit_archive import cutoff
from lamplighter.kernel import inspection
from lamplighter.kernel.inspection import Needs
from lamplighter.kernel.preflight import Item, Look, Severity, counted, explained, failures, sentence
from lamplighter.kernel.retention.table import trouble_with

NAME: Final = "retention.rules.audit_log"
TABLE: Final = "audit_log"
COUNTING: Final = timedelta(seconds=10)


def part(look: Look) -> Iterator[Item]:
    """An item on the phase `audit_log`, with its faults before it."""
    if look.engine is None:
        return  # the item on the retention rules says so
    given = look.settings.rule("audit_log")
    fault = Severity.of_fault(applied=given.apply)
    try:
        with look.reading(statement=COUNTING) as connection:
            oid = inspection.locate(connection, TABLE)
            if oid is None:
                yield Item(
                    severity=Severity.BLOCKED if given.apply else Severity.NOTE,
                    name=NAME,
                    sentence=f"There is no table {TABLE} in the database, so nothing is archived.",
                    advice="Remove `apply`." if given.apply else "",
                )
                return
            table = inspection.describe(connection, oid)
        if missing := sorted({"id", "created_at"} - table.parts[0].columns.keys()):
            yield Item(
                severity=fault,
                name=NAME,
                sentence=f"The table {TABLE} has no column {', '.join(missing)}.",
                advice="The phase fits another table; do not apply it.",
            )
            return
        found = [*inspection.faults(table, Needs(whole=frozenset({"SELECT", "DELETE"})))]
        for one in (*found, *inspection.unindexed(table, "created_at")):
            severity = fault if one.refuses else Severity.WARNING
            yield Item(severity=severity, name=NAME, sentence=sentence(one.sentence), advice=one.advice)
        if not any(one.hides for one in found):
            yield _touched(look, applied=given.apply, before=cutoff(look.now, given.keep_days or 0))
    except failures() as error:
        yield Item(
            severity=fault,
            name=NAME,
            sentence=f"The phase could not be looked at. {explained(error)}",
            advice="Correct what the sentence names, then run the preflight again.",
        )


def _touched(look: Look, *, applied: bool, before: Any) -> Item:
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    facts: dict[str, Any] = {"applied": applied, "before": before.isoformat()}
    query = text(
        f"SELECT count(*) AS rows, min(created_at) AS oldest FROM {TABLE}"  # noqa: S608 - a constant
        " WHERE created_at < :before AND created_at > '-infinity'"
    )
    try:
        with look.reading(statement=COUNTING) as connection:
            row = connection.execute(query, {"before": before}).one()
        facts |= {"rows": row.rows, "oldest": row.oldest and row.oldest.isoformat()}
        due = f"{counted(row.rows, 'row')} of days before {before:%Y-%m-%d} would move to the archive"
    except DBAPIError as error:
        if trouble_with(error) != "late":
            raise
        due = f"what is due could not be counted within {COUNTING.seconds} s"
    proposal = {"retention": {"rules": {"audit_log": {"apply": False}}}} if facts.get("rows") and not applied else None
    return Item(
        severity=Severity.NOTE,
        name=NAME,
        sentence=sentence(f"The phase {'is applied' if applied else 'only previews'}; {due}"),
        advice="Preview the phase, then set `apply` to true." if proposal else "",
        facts=facts,
        settings=proposal,
    )
