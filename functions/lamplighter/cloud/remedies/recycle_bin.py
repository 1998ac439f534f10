"""The Recycle Bin: what keeps a deleted snapshot for a while, so that its deletion can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lamplighter.cloud.inventory import Tags
from lamplighter.cloud.remedies.action import Gone, Place, absence_as_gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A retention rule for snapshots that is in force."""

    id: str
    days: int
    tags: tuple[tuple[str, str | None], ...]
    """It covers what has one of these; none is the whole region."""
    excluded: tuple[tuple[str, str | None], ...]
    """Of a rule for the region: it does not cover what has one of these; None for a value is any."""

    @classmethod
    def parse(cls, rule: Mapping[str, Any]) -> Self:
        """A rule as GetRule gives it."""
        return cls(
            id=rule["Identifier"],
            days=rule["RetentionPeriod"]["RetentionPeriodValue"],
            tags=_pairs(rule.get("ResourceTags")),
            excluded=_pairs(rule.get("ExcludeResourceTags")),
        )

    def covers(self, tags: Tags) -> bool:
        """Whether a snapshot with such tags is kept (Recycle Bin, "How it works")."""
        if self.tags:  # what one without a value matches AWS does not say: an empty one at least
            return any(tags.get(key) == (value or "") for key, value in self.tags)
        return not any(key in tags and value in {None, tags[key]} for key, value in self.excluded)


def covering(place: Place, tags: Tags) -> Rule | None:
    """The rule that keeps a deleted snapshot with such tags the longest, or None: it would be gone for good."""
    if "recycle_bin" not in place.seen:
        place.seen["recycle_bin"] = list(_rules(place))
    found = [rule for rule in place.seen["recycle_bin"] if rule.covers(tags)]
    return max(found, key=lambda rule: rule.days, default=None)


def unchanged(place: Place, rule_id: str) -> bool:
    """Whether a rule that `covering` gave is in force as it was then."""
    try:
        with absence_as_gone():
            rule = place.clients("rbin").get_rule(Identifier=rule_id)
    except Gone:
        return False
    return rule["Status"] == "available" and Rule.parse(rule) in place.seen["recycle_bin"]


def _rules(place: Place) -> Iterator[Rule]:
    rbin = place.clients("rbin")
    for page in rbin.get_paginator("list_rules").paginate(ResourceType="EBS_SNAPSHOT"):
        for summary in page.get("Rules", ()):
            rule = rbin.get_rule(Identifier=summary["Identifier"])
            if rule["Status"] == "available":
                yield Rule.parse(rule)


def _pairs(tags: list[dict[str, str]] | None) -> tuple[tuple[str, str | None], ...]:
    return tuple((tag["ResourceTagKey"], tag.get("ResourceTagValue")) for tag in tags or ())
