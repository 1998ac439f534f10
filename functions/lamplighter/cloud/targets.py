"""Where the cloud jobs look: accounts and regions, and the way into each (REQUIREMENTS C17).

The setting `cloud.targets` says it; without it, the account and the region that the stack itself is in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lamplighter.cloud import access
from lamplighter.kernel.cloud import Targets
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.settings import Settings

if TYPE_CHECKING:
    from lamplighter.cloud.access import Clients

MOST: Final = 500
"""Regions of accounts, in all: what becomes of each has to fit a state of the state machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One region of one account, and whose role is assumed there; None is the function's own."""

    account: str
    region: str
    role_arn: str | None = None
    external_id: str | None = None

    def enter(self, session_name: str) -> Clients:
        """The clients there. Raises as `access.clients`."""
        return access.clients(
            self.region, role_arn=self.role_arn, external_id=self.external_id, session_name=session_name
        )


def items(settings: Settings) -> list[dict[str, Any]]:
    """Every region of every account, as the items of a scan. They hold no secret: an execution's history shows them."""
    return [{"account": account, "region": region} for account, region, _ in checked(settings)]


def find(settings: Settings, account: str, region: str) -> Target:
    """The way into a region of an account, by the settings of this moment.

    Raises:
        Permanent: it is no target, or none any more, or AWS has no such region.
    """
    for known_account, known_region, targets in checked(settings):
        if (account, region) == (known_account, known_region):
            role = targets.role if targets else None
            return Target(
                account=account,
                region=region,
                role_arn=f"arn:{_partition(region)}:iam::{account}:role/{role}" if role else None,
                external_id=targets.external_id if targets else None,
            )
    raise Permanent(f"cloud.targets: {account}/{region} is none of them.")


def checked(settings: Settings) -> list[tuple[str, str, Targets | None]]:
    """Account, region and what the setting says of them.

    Raises:
        Permanent: one stands there twice, or needs a role and has none, or they are too many.
    """
    found = list(_all(settings))
    if len(found) > MOST:
        raise Permanent(f"cloud.targets: takes at most {MOST} regions of accounts, got {len(found)}.")
    seen = set[tuple[str, str]]()
    for account, region, targets in found:
        if (account, region) in seen:
            raise Permanent(f"cloud.targets: {account}/{region} stands there twice.")
        seen.add((account, region))
        # Without a role the function's own would read this account, and call what it finds the other's.
        if targets and not targets.role and account != own().account:
            raise Permanent(f"cloud.targets: {account} needs a role, for the stack is in {own().account}.")
    return found


def _all(settings: Settings) -> Iterator[tuple[str, str, Targets | None]]:
    if not settings.cloud.targets:
        yield own().account, own().region, None
    for targets in settings.cloud.targets:
        for account in targets.accounts:
            for region in targets.regions:
                yield account, region, targets


def own() -> Target:
    """Where the stack itself is."""
    return Target(account=os.environ["ACCOUNT_ID"], region=os.environ["AWS_REGION"])


def _partition(region: str) -> str:
    """Which of AWS's separate clouds a region is in: `aws`, `aws-cn`, `aws-us-gov`."""
    from botocore.exceptions import UnknownRegionError
    from botocore.session import Session

    try:
        return str(Session().get_partition_for_region(region))
    except UnknownRegionError:
        raise Permanent(f"cloud.targets: AWS has no region called {region}.") from None
