"""What a run that acts, or takes back, tells of each resource: in the manifest an `Entry`, in its report an `Item`.

The key of such an entry is `account/region/check/resource`; a load balancer's name has slashes of its own. Its facts:

    step      what was decided (`cloud.marks`)
    outcome   what the resource is once that is done
    action    the remedy's
    reason    why it is kept, waits or failed
    mark      the mark that it gets, has or loses
    written   what the plan found in the mark's place
    owner     by its tags
    state     of what is acted upon: what the action saw and undo needs
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from lamplighter.kernel.deletion import Entry, ManifestAddress, Tally
from lamplighter.kernel.job import Report as JobReport

NAMED: Final = 50
"""Resources that the report spells out; the manifest has all."""
UNTOUCHED: Final = frozenset({"waiting", "kept"})
"""Outcomes of what there is no news of."""
UNCHANGED: Final = UNTOUCHED | {
    *("refused", "failed", "already_gone", "snapshot_pending"),
    *("already_restored", "changed_since", "not_restorable"),
}


class Item(BaseModel):
    """A resource, and what became of it (K11)."""

    account: str
    region: str
    check: str
    resource_id: str
    outcome: str
    """`marked`, `unmarked`, `waiting`, `kept`, `refused`, `failed`, `already_gone`, or what an action made of it, such
    as `stopped`; of an undo `restored`, `already_restored`, `changed_since` or `not_restorable`; in a preview
    `would_be_...`."""
    detail: str = ""
    """The mark, or why it is kept or failed."""
    owner: str | None = None


class Report(JobReport):
    """What a run found to do, and did."""

    outcomes: dict[str, int] = {}
    """How many resources came to which outcome."""
    items: list[Item] = []
    """The first `NAMED` of those that there is news of."""
    errors: list[str] = []
    """Failures, regions that could not be read, checks that the governor refused."""
    held_by_ramp: int = 0
    """Resources that are due and wait because the first runs of a check in an account act upon few (S3)."""
    dry_run: bool
    manifest: ManifestAddress | None = None
    """What `cloud_undo` stands on, and what names every resource."""

    def counts(self) -> tuple[int, int]:
        """Resources that were changed; bytes do not matter here."""
        changed = [n for name, n in self.outcomes.items() if name not in UNCHANGED and not name.startswith("would_be")]
        return sum(changed), 0


class Where(NamedTuple):
    """What an entry is about."""

    account: str
    region: str
    check: str
    resource_id: str

    @property
    def key(self) -> str:
        """Of the entry."""
        return "/".join(self)


def where(entry: Entry) -> Where:
    """What an entry is about."""
    return Where(*entry.key.split("/", 3))


def facts(entry: Entry) -> dict[str, Any]:
    """What an entry says, see above."""
    return dict(entry.facts or {})


def with_facts(entry: Entry, outcome: str = "", **said: Any) -> Entry:
    """The entry with other facts, and an outcome."""
    return replace(entry, facts=facts(entry) | said, outcome=outcome)


def item(entry: Entry) -> Item:
    """An entry as a report spells it out."""
    said = facts(entry)
    detail = entry.error or said["reason"] or said["mark"] or ""
    return Item(**where(entry)._asdict(), outcome=entry.outcome, detail=detail, owner=said["owner"])


def report(
    tally: Tally,
    told: Iterable[Entry],
    *,
    errors: list[str],
    dry_run: bool,
    manifest: ManifestAddress | None,
    held: int = 0,
) -> Report:
    """The report of a run, as far as it has come.

    Args:
        tally: of all entries.
        told: these entries.
        errors: beside those of single resources.
        held: resources that the ramp holds back.
    """
    news = (item(entry) for entry in told if entry.outcome not in UNTOUCHED)
    failures = [*errors, *tally.failures]
    return Report(
        status="completed_with_errors" if failures or tally.count["not_restorable"] else "completed",
        outcomes=dict(tally.count),
        items=list(islice(news, NAMED)),
        errors=failures,
        held_by_ramp=held,
        dry_run=dry_run,
        manifest=manifest,
    )
