"""The settings of `make up`: everything is applied and may be overridden, and no ramp holds anything back.

A deployment of an owner's begins with none of this: there each rule, source and check only previews until it is named.
"""

from __future__ import annotations

from typing import Any, Final

OWNERS: Final = (
    "downloads",
    "onboarding_requests",
    "deleted_accounts",
    "sessions",
    "tokens",
    "plans",
    "audit_log",
)
"""What of the retention is the owner's, and not Lamplighter's own."""


def applied(**more: Any) -> dict[str, Any]:
    """The section `retention` with all of the owner's rules applied; `more` goes into each."""
    return {"rules": {name: {"apply": True} | more for name in OWNERS}}


LOCAL: Final[dict[str, Any]] = {
    "allow_override": True,
    "media": {"apply": True, "ramp": False},
    "retention": applied(ramp=False),
}
