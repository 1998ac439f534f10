"""The preflight of the cloud scans: what each remedy would act on, by the findings that are open (REQUIREMENTS O4, S4).

It enters no account. A scan with `dry_run` reads all that a run reads, and so shows the rights to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from lamplighter.cloud import remedies, targets
from lamplighter.cloud.remedies import FITTING
from lamplighter.deletion.ramp import FIRST_RESOURCES
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.preflight import Item, Look, Severity, counted, explained, failures, sentence

COUNTING: Final = timedelta(seconds=10)
RIGHTS: Final = (
    "The preflight enters no account, so it does not know the rights of the roles. `waste_scan` and "
    "`security_enforcement` with dry_run read all that a run reads; only a run that acts shows the rights to change"
)

_OPEN: Final = """
    SELECT check_id AS "check", count(*) AS findings, coalesce(sum(monthly_usd), 0) AS monthly_usd,
        max(last_seen_at) AS last_seen
    FROM lamplighter.findings WHERE status = 'open' AND exemption IS NULL GROUP BY check_id
"""
_JUDGED: Final = "SELECT DISTINCT check_id FROM lamplighter.judged_checks"


class Open(NamedTuple):
    """Open findings of a check that no exemption covers."""

    findings: int
    monthly_usd: float


def part(look: Look) -> Iterator[Item]:
    """An item for each remedy, and one for what only reports."""
    for name, validate in (("cloud.targets", targets.checked), ("cloud.remedies", remedies.checked)):
        try:
            validate(look.settings)
        except Permanent as error:
            yield Item(
                severity=Severity.BLOCKED, name=name, sentence=sentence(str(error)), advice="Correct the settings."
            )
    found, scanned = None, frozenset[str]()
    if look.engine is not None:
        try:
            found, scanned = _open(look)
        except failures() as error:
            yield Item(
                severity=Severity.WARNING,
                name="cloud.findings",
                sentence=f"The open findings cannot be read. {explained(error)}",
                advice="Run the migrations, and docs/grants.sql.",
            )
    given = look.settings.cloud.remedies
    for check in given:
        if check in FITTING:
            yield _remedy(look, check, found, check in scanned)
    yield Item(
        severity=Severity.NOTE,
        name="cloud.remedies",
        sentence=f"{counted(len(FITTING.keys() - given.keys()), 'check')} only report, because cloud.remedies does not "
        f"name them. {RIGHTS}.",
        facts={"only_report": sorted(FITTING.keys() - given.keys())},
    )


def _open(look: Look) -> tuple[Mapping[str, Open], frozenset[str]]:
    """Open findings by check, and the checks that a scan has put to some region."""
    from sqlalchemy import text

    with look.reading(statement=COUNTING) as connection:
        rows = connection.execute(text(_OPEN)).all()
        found = {row.check: Open(row.findings, float(row.monthly_usd)) for row in rows}
        return found, frozenset(connection.execute(text(_JUDGED)).scalars())


def _remedy(look: Look, check: str, found: Mapping[str, Open] | None, is_scanned: bool) -> Item:
    """What a remedy would act on."""
    remedy = look.settings.cloud.remedies[check]
    facts: dict[str, Any] = {"applied": remedy.apply, "action": remedy.action, "after_days": remedy.after_days}
    words = f"The remedy {remedy.action} {'is applied' if remedy.apply else 'only previews'}. "
    if look.engine is None:
        words += "Without a database the findings are in the archive bucket, and the last report counts them."
    elif found is None:
        words += "What it would act on is in the findings, which cannot be read."
    elif not is_scanned:
        words += "No scan has looked yet: run one with dry_run."
    else:
        now = found.get(check, Open(0, 0.0))
        most = min(FIRST_RESOURCES, remedy.max_actions) if remedy.ramp else remedy.max_actions
        facts |= {"findings": now.findings, "monthly_usd": round(now.monthly_usd, 2), "first_run_resources": most}
        words += f"{counted(now.findings, 'finding')} of the last scans are open ({now.monthly_usd:,.2f} USD a month). "
        words += f"The first run in earnest acts on at most {most}, {remedy.after_days} days after it has marked them."
    proposal: dict[str, Any] = {"action": remedy.action, "apply": False}
    if remedy.values:
        proposal["values"] = dict(remedy.values)
    return Item(
        severity=Severity.NOTE,
        name=f"cloud.remedies.{check}",
        sentence=words,
        advice="" if remedy.apply else "Read the preview of a scan, then set `apply` to true.",
        facts=facts,
        settings=None if remedy.apply else {"cloud": {"remedies": {check: proposal}}},
    )
