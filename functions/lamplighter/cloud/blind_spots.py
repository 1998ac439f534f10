"""What a report does not show, in sentences: where nothing is scanned any more, and where nobody has looked of late.

A report is on all that is open, whichever scan found it, so what another scan has not done for days is its business,
too: a schedule that is off, a role that has been gone for a week, a region that was added a minute ago.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

type Concern = Literal["waste", "security"]
type Place = tuple[str, str]
"""Account and region."""

LATE: Final = timedelta(days=2)
"""What has not been looked at for longer is told of: some scans may fail, of waste as many as eight."""
NAMED: Final = 3
"""Places that a sentence names."""
_SOUGHT: Final[Mapping[Concern, str]] = {"waste": "waste", "security": "risks"}


def left_out(findings: Mapping[Place, int]) -> Iterator[str]:
    """Open findings where nothing is scanned any more, by place."""
    if findings:
        count = sum(findings.values())
        told = "1 open finding is" if count == 1 else f"{count:,} open findings are"
        whose = "it is" if count == 1 else "they are"
        yield f"{told} left out: cloud.targets no longer names where {whose} ({_named(sorted(findings))})."


def unwatched(
    expected: Collection[tuple[Concern, Place]], looked: Mapping[tuple[Concern, Place], datetime], at: datetime
) -> Iterator[str]:
    """Where nobody has looked for long, or ever.

    Args:
        expected: what ought to be looked for, and where.
        looked: when that was last done; aware, as `at` is.
    """
    since = defaultdict[tuple[Concern, str], list[Place]](list)
    for concern, place in expected:
        last = looked.get((concern, place))
        if last is None or at - last > LATE:
            since[concern, f"{last.astimezone(UTC):%d %B %Y}" if last else ""].append(place)
    for (concern, day), places in since.items():
        yet, then = ("", f" since {day}") if day else (" yet", "")
        yield f"Nobody has looked for {_SOUGHT[concern]}{yet} in {_named(places)}{then}."


def _named(places: Sequence[Place]) -> str:
    named = [f"{account}/{region}" for account, region in places[:NAMED]]
    if len(places) > NAMED + 1:
        return f"{', '.join(named)} and {len(places) - NAMED:,} others"
    return ", ".join(f"{account}/{region}" for account, region in places)
