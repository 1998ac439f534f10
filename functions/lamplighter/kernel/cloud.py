"""What owners say about their cloud: which accounts, what counts as waste or risk, what may be done about it.

Settings of the domain `cloud`. Plain dataclasses, which pydantic validates where they come from outside (`Settings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from annotated_types import Gt, Interval, MaxLen, MinLen

_STRICT: Final = {"extra": "forbid"}
"""For pydantic: an unknown name is an error."""

type Account = Annotated[str, MinLen(12), MaxLen(12)]
"""Twelve digits."""
ActionId = Literal["tag", "stop", "snapshot_and_delete", "delete_snapshot", "revoke", "add_tags"]
type Days = Annotated[int, Interval(ge=1, le=36_500)]
"""A century at most: no date is reckoned beyond the calendar's end."""
type Port = Annotated[int, Interval(ge=1, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as waste or risk; REQUIREMENTS' numbers are the defaults."""

    __pydantic_config__ = _STRICT

    idle_cpu_percent: Annotated[float, Gt(0)] = 5
    """An instance whose CPU stays below is idle (C2)."""
    idle_memory_percent: Annotated[float, Gt(0)] = 10
    """An instance whose memory stays below is idle (C3)."""
    idle_days: Annotated[int, Interval(ge=1, le=60)] = 7
    """For how long it has to (C2, C3); for load balancers and NAT gateways too."""
    stopped_days: Days = 30
    """Stopped for as long, an instance is waste (C4)."""
    unattached_days: Days = 14
    """Unattached for as long, a volume is waste (C5)."""
    snapshot_days: Days = 90
    """An older snapshot that nothing uses is waste (C6)."""
    image_days: Days = 365
    """An instance on an older image runs outdated software (C11)."""
    coverage: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """The share of the expected datapoints below which nothing is concluded from a metric (C2)."""
    public_allowed_tag: Annotated[str, MinLen(1)] = "public-allowed"
    """The tag of an instance that may have a public address (C9)."""
    required_tags: tuple[Annotated[str, MinLen(1)], ...] = ("Owner", "Environment", "CostCenter")
    """Tags that instances, volumes and snapshots have to have (C12)."""
    owner_tag: Annotated[str, MinLen(1)] = "Owner"
    """The tag that says whose a resource is; totals are per owner (C7)."""
    sensitive_ports: tuple[Port, ...] = (
        *(21, 22, 23, 25, 135, 445, 1433, 1521, 2049, 2375, 2376, 3306, 3389, 4333, 5432, 5500, 5601, 5900),
        *(6379, 6443, 8020, 9092, 9200, 9300, 10250, 11211, 27017, 50070),
    )
    """TCP and UDP ports that must not be open to everybody (C10)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Accounts that are scanned in the same regions, through a role of the same name (C17)."""

    __pydantic_config__ = _STRICT

    accounts: Annotated[tuple[Account, ...], MinLen(1)]
    regions: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)]
    role: str | None = None
    """The name of the role in each that is assumed; None is the function's own role, for the account it runs in."""
    external_id: str | None = None
    """What the roles' trust policy asks for (sts:ExternalId)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What is done about the findings of one check (C13)."""

    __pydantic_config__ = _STRICT

    action: ActionId
    after_days: Annotated[int, Interval(ge=0, le=36_500)] = 7
    """Days between the mark that announces it and the action."""
    apply: bool = False
    """False only previews: nothing is marked and nothing is done."""
    ramp: bool = True
    """Whether the first runs in earnest are limited (S3)."""
    max_actions: Annotated[int, Interval(ge=1, le=10_000)] = 50
    """How many resources one run acts upon at most; the others' turn comes with the next."""
    max_share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Where more of the resources offend than this share, nothing is done: that is rather a mistake than waste."""
    values: dict[str, str] | None = None
    """Of `add_tags`: the tags and what they are where they are missing."""
