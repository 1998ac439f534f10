"""One region as it is now: which of its resources offend, and what is to be done about each (REQUIREMENTS C13).

Read by the same calls and put to the same checks as in a scan. `cloud_actions` asks for it twice: for its plan, and
once more before it acts upon anything there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from lamplighter.cloud import reader
from lamplighter.cloud.check import Basis, Finding, judge, wanted
from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.cloud.inventory import Inventory, Tags
from lamplighter.cloud.marks import Case, Decision, decide, key_of
from lamplighter.cloud.prices import Prices
from lamplighter.cloud.remedies import ACTIONS
from lamplighter.cloud.remedies.action import Offence, Place, Step
from lamplighter.cloud.store import findings_store
from lamplighter.kernel.cloud import Limits, Remedy

_COUNTED: Final = (
    *("instances", "volumes", "snapshots", "security_groups"),
    *("addresses", "nat_gateways", "load_balancers"),
)
"""Of what a check needs, that which it can find something about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is known of a region, and what its owners want done."""

    place: Place
    remedies: Mapping[str, Remedy]
    """By check."""
    limits: Limits
    exemptions: Exemptions
    findings: Mapping[tuple[str, str], Finding]
    """By check and resource, as all that follows."""
    unknown: Mapping[tuple[str, str], str]
    """Why nothing is known, of a resource or (`*`) of all."""
    judged: frozenset[str]
    """The checks that could look."""
    tags: Mapping[str, Tags]
    """Of each of its resources."""
    counts: Mapping[str, int]
    """How many of them each check can find something about."""
    open_since: Mapping[tuple[str, str], datetime]
    """The stored findings that are open, by check and resource, and since when."""

    @classmethod
    def read(cls, place: Place, *, remedies: Mapping[str, Remedy], limits: Limits, exemptions: Exemptions) -> Judged:
        """A region at `place.now`.

        Raises:
            Permanent: nothing may be read there, or what is stored of it cannot be.
            Retryable: nothing can be read there now.
            DatabaseUnavailable: nobody knows what has been found there.
        """
        checks, here = [BY_ID[check] for check in remedies], {"account": place.account, "region": place.region}
        inventory = reader.read(place.clients, **here, now=place.now, limits=limits, needs=wanted(checks))
        known, prices = findings_store().known(**here, now=place.now), Prices.from_file(place.region)
        basis = Basis(now=place.now, limits=limits, prices=prices, unattached_since=known.first_sights)
        judgement = judge(inventory, basis, checks)
        return cls(
            place=place,
            remedies=remedies,
            limits=limits,
            exemptions=exemptions,
            findings={(one.check, one.resource_id): one for one in judgement.findings},
            unknown={(one.check, one.resource_id): one.reason for one in judgement.unknown},
            judged=judgement.judged,
            tags=dict(_tags(inventory)),
            counts={check.id: _counted(inventory, check.needs) for check in checks},
            open_since=known.open_since,
        )

    def decisions(self, check: str) -> list[tuple[str, Decision]]:
        """What is to be done about each resource that offends, that nobody can judge, or that is marked: the oldest
        marks first."""
        found = {resource_id for one, resource_id in (*self.findings, *self.unknown) if one == check}
        marked = {resource_id for resource_id, tags in self.tags.items() if key_of(check) in tags}
        decided = [(resource_id, self.decide(check, resource_id)) for resource_id in (found | marked) - {"*"}]
        return sorted(decided, key=lambda one: (one[1].mark.after.isoformat() if one[1].mark else "", one[0]))

    def decide(self, check: str, resource_id: str) -> Decision:
        """What is to be done about a resource."""
        if resource_id not in self.tags:
            return Decision(step="keep", reason="Its tags are not known, and one of them might say to keep it.")
        finding = self.findings.get((check, resource_id))
        reasons = [self.unknown[key] for key in ((check, resource_id), (check, "*")) if key in self.unknown]
        verdict: Literal["offends", "unknown", "in_order"] = "offends" if finding else "in_order"
        if reasons or check not in self.judged:
            verdict = "unknown"
        exemption = self.exemptions.covering(finding, self.place.now) if finding else None
        case = Case(
            verdict=verdict,
            tags=self.tags[resource_id],
            reason=" ".join(reasons),
            open_since=self.open_since.get((check, resource_id)),
            exempted=f"An exception covers it: {exemption.reason}" if exemption else None,
        )
        return decide(case, check, self.remedies[check], now=self.place.now, stack=os.environ["STACK_NAME"])

    def look(self, check: str, resource_id: str, now: datetime) -> Step:
        """Look at a resource that is due by itself: what its action would do now. Raises as `Action.look`."""
        offence = Offence(
            resource_id=resource_id,
            tags=self.tags[resource_id],
            evidence=self.findings[check, resource_id].evidence,
            remedy=self.remedies[check],
            limits=self.limits,
        )
        return ACTIONS[self.remedies[check].action].look(replace(self.place, now=now), offence)


def _tags(inventory: Inventory) -> Iterator[tuple[str, Tags]]:
    for name in _COUNTED:
        yield from ((resource.id, resource.tags) for resource in getattr(inventory, name))


def _counted(inventory: Inventory, needs: Sequence[str]) -> int:
    return sum(len(getattr(inventory, name)) for name in needs if name in _COUNTED)
