"""What every store of findings keeps, and how a scan's word is put before it is stored (REQUIREMENTS C14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter.cloud.check import Finding, Undetermined
from lamplighter.cloud.checks import SECURITY
from lamplighter.cloud.reported import Total, Totals, Unknowns
from lamplighter.kernel.history import without_nul

if TYPE_CHECKING:
    from lamplighter.cloud.exemptions import Exemptions

REASON: Final = 500
"""Characters that are kept of why something could not be judged."""

TREND: Final = timedelta(days=90)
TREND_STEP: Final = timedelta(hours=6)
"""Of the reports in so long, the last one is a point of the trend."""
NO_OWNER: Final = "nobody"
"""The name of resources without an owner in the totals, as earlier reports have it."""
EXAMPLES: Final = 5
"""Resources that are named for each reason why something could not be judged."""
SECURITY_CHECKS: Final = [check.id for check in SECURITY]
NOTHING: Final = Total(name="all", findings=0, resources=0, monthly_usd=0, weighed_usd=0)

UNWATCHED: Final = timedelta(days=2)
"""In so long without a look a volume may well have been attached, and detached again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a scan changed."""

    opened: int = 0
    reopened: int = 0
    still_open: int = 0
    resolved: int = 0
    exempted: int = 0
    """Of those that it found."""
    superseded: frozenset[str] = frozenset()
    """Checks that a later scan had judged already: nothing was recorded about them."""


def by_reason(unknown: Iterable[Undetermined]) -> list[dict[str, Any]]:
    """What could not be judged, as `check_id`, `reason` and the ids of the `resources`."""
    resources = defaultdict[tuple[str, str], list[str]](list)
    for one in unknown:
        resources[one.check, one.reason[:REASON]].append(one.resource_id)
    rows: list[dict[str, Any]] = without_nul(
        [{"check_id": check, "reason": reason, "resources": ids} for (check, reason), ids in resources.items()]
    )
    return rows


def stored(finding: Finding, exemptions: Exemptions | None, now: datetime) -> dict[str, Any]:
    """The fields that a store keeps of a finding, without those of its lifecycle."""
    exemption = exemptions.covering(finding, now) if exemptions else None
    row: dict[str, Any] = without_nul(
        {
            "check_id": finding.check,
            "resource_id": finding.resource_id,
            "resource_type": finding.resource_type,
            "kind": finding.kind,
            "title": finding.title,
            "severity": finding.severity,
            "owner": finding.owner,
            "monthly_usd": finding.monthly_usd,
            "confidence": finding.confidence,
            "score": finding.score,
            "since": finding.since.isoformat() if finding.since else None,
            "evidence": dict(finding.evidence),
            "exemption": exemption.as_json() if exemption else None,
        }
    )
    return row


def added_up(found: Mapping[str, Sequence[Total]]) -> Totals:
    """The totals by dimension as a report has them."""
    return Totals(
        all=found["all"][0] if found.get("all") else NOTHING,
        **{name: list(found.get(name, ())) for name in Totals.model_fields if name != "all"},
    )


def merged(rows: Iterable[Mapping[str, Any]]) -> list[Unknowns]:
    """What could not be judged, by check and reason over all places; the most frequent first.

    `rows` have `check`, `reason`, the number of `resources` and `examples` of them, `EXAMPLES` at most.
    """
    found: dict[tuple[str, str], Unknowns] = {}
    for row in rows:
        before = found.get((row["check"], row["reason"]))
        examples = [*(before.examples if before else ()), *row["examples"]][:EXAMPLES]
        resources = row["resources"] + (before.resources if before else 0)
        found[row["check"], row["reason"]] = Unknowns(
            check=row["check"], reason=row["reason"], resources=resources, examples=examples
        )
    return sorted(found.values(), key=lambda one: (-one.resources, one.check, one.reason))
