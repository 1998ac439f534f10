"""Marks: how an owner is told what will be done about a resource, and what is done when nobody objects (C13).

A mark is a tag on the resource itself:

    lamplighter:idle_cpu = stop after 2026-11-29T09:15Z

A run that finds it says so first and acts in a later one, once the moment has passed, the finding has been open for as
many days by our own records, the resource still offends, and the mark is what we wrote. All that is decided here, by
one function without side effects.

An owner has the last word: `lamplighter:keep`, with whatever value, is never touched; a mark that somebody rewrote is
not acted upon; one that was removed is written anew, with a new date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Self, get_args

from lamplighter.cloud.inventory import Tags
from lamplighter.kernel.cloud import ActionId, Remedy

PREFIX: Final = "lamplighter:"
KEEP: Final = f"{PREFIX}keep"
"""The tag of what is never touched."""
STACK_TAG: Final = "aws:cloudformation:stack-name"

_FORM: Final = "%Y-%m-%dT%H:%MZ"
_FOUND: Final = "found"
"""Begins the mark of what is marked and no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a mark says: which action, and not before when; to the minute, as it is written."""

    action: str
    after: datetime

    @classmethod
    def of(cls, remedy: Remedy, now: datetime) -> Self:
        """The mark of what is found now."""
        minute = now.astimezone(UTC).replace(second=0, microsecond=0)
        waits = timedelta(days=remedy.after_days) if remedy.action != "tag" else timedelta()
        return cls(action=remedy.action, after=minute + waits)

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """The mark that a tag's value is, or None for what we would not have written."""
        head, _, moment = value.rpartition(" ")
        action = "tag" if head == _FOUND else head.removesuffix(" after")
        try:
            mark = cls(action=action, after=datetime.strptime(moment, _FORM).replace(tzinfo=UTC))
        except ValueError:
            return None
        return mark if str(mark) == value and action in get_args(ActionId) else None

    def __str__(self) -> str:
        return f"{_FOUND if self.action == 'tag' else f'{self.action} after'} {self.after.strftime(_FORM)}"


def key_of(check: str) -> str:
    """The key of the tag by which a check's findings are marked."""
    return PREFIX + check


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of one resource as one check sees it."""

    verdict: Literal["offends", "unknown", "in_order"]
    """Of the check, put to the resource as it is now."""
    tags: Tags
    reason: str = ""
    """Why nothing is known."""
    open_since: datetime | None = None
    """Since when the stored finding has been open; None where there is none."""
    exempted: str | None = None
    """The exception that covers it, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done about a resource now."""

    step: Literal["mark", "wait", "act", "unmark", "keep", "none"]
    """`keep`: it offends, or nobody knows, and it is not touched. `none`: it is in order, and is not marked."""
    reason: str = ""
    """Why it is kept or waits, in a sentence."""
    mark: Mark | None = None
    """The mark that it gets, or has."""


def decide(case: Case, check: str, remedy: Remedy, *, now: datetime, stack: str) -> Decision:
    """What is to be done about a resource.

    Args:
        case: the resource.
        check: the check's id.
        remedy: what its owner wants done.
        now: aware UTC.
        stack: the name of the stack that we are part of.
    """
    written = case.tags.get(key_of(check))
    mark = Mark.parse(written) if written is not None else None
    reason = excluded(case.tags, stack) or (case.reason if case.verdict == "unknown" else None)
    if reason is not None:
        return Decision(step="keep", reason=reason, mark=mark)
    if case.verdict == "in_order" or case.exempted:
        untouched = Decision(step="keep" if case.exempted else "none", reason=case.exempted or "")
        return replace(untouched, step="unmark", mark=mark) if mark else untouched
    if case.open_since is None:
        return Decision(step="keep", reason="No scan has stored it as an open finding yet.", mark=mark)
    if written is not None and not mark:
        return Decision(step="keep", reason=f"Somebody rewrote its mark: {key_of(check)} is {written!r}.")
    if not mark or mark.action != remedy.action:
        return Decision(step="mark", mark=Mark.of(remedy, now))
    return _due(mark, case.open_since, remedy, now)


def _due(mark: Mark, open_since: datetime, remedy: Remedy, now: datetime) -> Decision:
    if remedy.action == "tag":
        return Decision(step="wait", reason="It is marked.", mark=mark)
    due = max(mark.after, open_since + timedelta(days=remedy.after_days))
    if now < due:
        return Decision(step="wait", reason=f"Its time comes at {due.strftime(_FORM)}.", mark=mark)
    return Decision(step="act", mark=mark)


def excluded(tags: Mapping[str, str], stack: str) -> str | None:
    """Why a resource with such tags is never touched, in a sentence, or None.

    FAILURES 14: a stack that cleaned up deleted itself.
    """
    if KEEP in tags:
        return f"It is tagged {KEEP}."
    if tags.get(STACK_TAG) == stack:
        return f"It belongs to the stack {stack}, which this is a part of."
    return None
