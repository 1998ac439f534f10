"""What findings cost together: each resource once, however many checks found it (REQUIREMENTS C7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Costs(Protocol):
    """What a finding has that a total needs."""

    @property
    def account(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def resource_id(self) -> str: ...
    @property
    def monthly_usd(self) -> float | None: ...
    @property
    def confidence(self) -> float: ...


def counted[F: Costs](findings: Collection[F]) -> list[F]:
    """The findings whose dollars may be added up, in their order; so may any group of them, by kind, owner or region.

    A resource that several checks found counts by the highest figure, of equal ones by the surest: an instance that is
    idle by CPU and by memory is paid once.
    """
    best: dict[tuple[str, str, str], F] = {}
    for finding in findings:
        resource = (finding.account, finding.region, finding.resource_id)
        if finding.monthly_usd is not None and (resource not in best or _rank(finding) > _rank(best[resource])):
            best[resource] = finding
    chosen = {id(finding) for finding in best.values()}
    return [finding for finding in findings if id(finding) in chosen]


def monthly_total(findings: Collection[Costs]) -> float:
    """Dollars a month, each resource counted once."""
    return sum(finding.monthly_usd or 0.0 for finding in counted(findings))


def _rank(finding: Costs) -> tuple[float, float]:
    return finding.monthly_usd or 0.0, finding.confidence
