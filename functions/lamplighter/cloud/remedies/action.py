"""What an action is: how it looks at a resource right before, what it does, and how that is undone.

Each action is one small file. Its functions raise `Kept` for what is not to be touched, `Gone` for what is not there,
and botocore's errors as they come (`failures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lamplighter.cloud.inventory import Tags
from lamplighter.kernel.cloud import Limits, Remedy


class Kept(Exception):
    """It is not touched; says why, in a sentence."""


class Gone(Exception):
    """There is no such resource any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One region of one account, as one run works there."""

    account: str
    region: str
    clients: Callable[[str], Any]
    """Gives the boto3 client of a service."""
    job_id: str
    """Of the run; undo's is the undo's own."""
    now: datetime
    seen: dict[str, Any] = field(default_factory=dict)
    """What was read once for all of the region's resources."""

    @property
    def ec2(self) -> Any:
        """The EC2 client."""
        return self.clients("ec2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """What is to be mended."""

    resource_id: str
    tags: Tags
    """As they are now."""
    evidence: Mapping[str, Any]
    """The finding's, as the check gives it now."""
    remedy: Remedy
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an action does next, and all that decides it."""

    outcome: str
    """What the resource then is, such as `stopped`."""
    state: dict[str, Any]
    """JSON-able: the resource as it is, as far as the action and its undo need it. In any other state it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One way to mend what a check found."""

    id: str
    look: Callable[[Place, Offence], Step]
    """Reads the resource itself: what would be done."""
    act: Callable[[Place, str, Step], dict[str, Any]]
    """Does it; answers the state with what undo needs beside."""
    found: Callable[[Place, str, Step], dict[str, Any] | None]
    """The state, as `act` answers it, if this run has done the step already and never learnt of it."""
    undo: Callable[[Place, str, dict[str, Any], bool], tuple[str, dict[str, Any]]]
    """Takes it back, or (True) says whether that can be done: `restored`, `already_restored`, `changed_since` or
    `not_restorable`, and the state; with `volume_id` where another resource stands in for it, which has no mark."""
    undone: str
    """The outcome that undo takes back."""


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_map(listed: list[dict[str, str]] | None) -> dict[str, str]:
    """Tags as EC2 gives them, by key."""
    return {tag["Key"]: tag["Value"] for tag in listed or ()}


def failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What a call to AWS may end with, and these: failures of one item, which stop no other (K11)."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return (BotoCoreError, ClientError, ResponseParserError, *others)


@contextmanager
def absence_as_gone() -> Iterator[None]:
    """Raises `Gone` where AWS says that there is no such resource."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"].endswith(("NotFound", "NotFoundException")):
            raise Gone from None
        raise


def is_there(read: Callable[[], Any]) -> bool:
    """Whether `read` gives anything, and does not raise `Gone`."""
    try:
        return bool(read())
    except Gone:
        return False
