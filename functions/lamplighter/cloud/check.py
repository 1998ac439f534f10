"""A check: one question that is asked of an inventory, and how what it finds becomes a finding.

A check is pure: given the same inventory and `Basis` it finds the same. It yields a `Found` for each resource that
offends, and an `Unknown` for each that it cannot judge; what it is silent about is in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from lamplighter.cloud.inventory import Inventory, Tags
from lamplighter.kernel.cloud import Limits

if TYPE_CHECKING:
    from lamplighter.cloud.prices import Prices

type Severity = Literal["informational", "low", "medium", "high", "critical"]
"""As in the AWS Security Finding Format."""

FULL_WEIGHT: Final = timedelta(days=365)
"""Waste that has lasted so long weighs twice what fresh waste does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What checks judge by, beside the inventory."""

    now: datetime
    limits: Limits
    prices: Prices
    """Of the inventory's region."""
    unattached_since: Mapping[str, datetime] | None = None
    """Since when each volume has been seen unattached (C5); None where nobody has kept it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A resource that offends."""

    resource_id: str
    tags: Tags
    evidence: Mapping[str, Any]
    """What it was judged by, JSON-able: numbers seen and the limits they were held against."""
    severity: Severity | None = None
    """Where not the check's own."""
    resource_type: str | None = None
    """Where not the check's own: of checks that look at resources of several types."""
    monthly_usd: float | None = None
    """What it costs a month, in dollars; None for what has no price."""
    confidence: float = 1.0
    """How sure the check is, from 0 to 1."""
    since: datetime | None = None
    """Since when it has offended, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A resource that the check cannot judge, and why, in a sentence."""

    resource_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question."""

    id: str
    title: str
    """What is wrong where it finds something."""
    advice: str
    """What to do about it, in a sentence or two."""
    kind: str
    """What findings are totalled by, such as `idle_instance`."""
    severity: Severity
    resource_type: str
    """In the AWS Security Finding Format's terms, such as `AwsEc2Volume`; `Other` where it has none."""
    needs: tuple[str, ...]
    """The fields of `Inventory` that it cannot do without."""
    helped_by: tuple[str, ...] = ()
    """Those that it looks at, too, and does without where they could not be read: it then says less, and says so."""
    find: Callable[[Inventory, Basis], Iterable[Found | Unknown]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a check found, with all that a reader of it needs."""

    account: str
    region: str
    check: str
    kind: str
    title: str
    severity: Severity
    resource_type: str
    resource_id: str
    owner: str | None
    monthly_usd: float | None
    confidence: float
    score: float | None
    """Dollars, weighed by confidence and age; what to look at first. None for what has no price."""
    since: datetime | None
    evidence: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undetermined:
    """Something that a check could not judge. `resource_id` is `*` where it could not look at all."""

    account: str
    region: str
    check: str
    resource_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the checks say of one inventory."""

    findings: tuple[Finding, ...]
    unknown: tuple[Undetermined, ...]
    judged: frozenset[str]
    """The checks that could look; what they are silent about is in order."""


def wanted(checks: Iterable[Check]) -> frozenset[str]:
    """The fields of `Inventory` that are to be read for `checks`."""
    return frozenset(name for check in checks for name in (*check.needs, *check.helped_by))


def judge(inventory: Inventory, basis: Basis, checks: Iterable[Check]) -> Judgement:
    """Put each check's question to the inventory.

    A check one of whose needs could not be read is not asked: unknown is never in order, and never an offence.
    """
    findings, unknown, judged = list[Finding](), list[Undetermined](), set[str]()
    for check in checks:
        if gaps := [f"{need}: {inventory.gaps[need]}" for need in check.needs if need in inventory.gaps]:
            unknown.append(_undetermined(inventory, check, Unknown(resource_id="*", reason="; ".join(gaps))))
            continue
        judged.add(check.id)
        for found in check.find(inventory, basis):
            if isinstance(found, Unknown):
                unknown.append(_undetermined(inventory, check, found))
            else:
                findings.append(_finding(inventory, basis, check, found))
    return Judgement(findings=tuple(findings), unknown=tuple(unknown), judged=frozenset(judged))


def score(found: Found, now: datetime) -> float | None:
    """Dollars a month times confidence, up to twice that for what has lasted a year (REQUIREMENTS C7)."""
    if found.monthly_usd is None:
        return None
    age = max(now - found.since, timedelta()) if found.since else timedelta()
    return found.monthly_usd * found.confidence * (1 + min(age / FULL_WEIGHT, 1.0))


def _finding(inventory: Inventory, basis: Basis, check: Check, found: Found) -> Finding:
    return Finding(
        account=inventory.account,
        region=inventory.region,
        check=check.id,
        kind=check.kind,
        title=check.title,
        severity=found.severity or check.severity,
        resource_type=found.resource_type or check.resource_type,
        resource_id=found.resource_id,
        owner=found.tags.get(basis.limits.owner_tag) or None,
        monthly_usd=found.monthly_usd,
        confidence=found.confidence,
        score=score(found, basis.now),
        since=found.since,
        evidence=found.evidence,
    )


def _undetermined(inventory: Inventory, check: Check, unknown: Unknown) -> Undetermined:
    return Undetermined(
        account=inventory.account,
        region=inventory.region,
        check=check.id,
        resource_id=unknown.resource_id,
        reason=unknown.reason,
    )
