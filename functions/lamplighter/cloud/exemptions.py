"""Exceptions: findings that their owners answer for, why, and until when (REQUIREMENTS C13).

One JSON document, `cloud/exceptions.json` in the archive bucket, or a file that a scan by hand is given:

    {"exceptions": [{"check": "open_ports", "resource": "sg-0a1b*", "account": "111122223333", "region": "eu-west-1",
                     "reason": "The bastion; its users have keys", "owner": "ada", "expires": "2027-01-31"}]}

`account` and `region` may be left out. A finding that is covered is kept, is no alert, and is never acted upon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import Any, Final

from lamplighter.cloud import checks
from lamplighter.cloud.check import Finding
from lamplighter.kernel.errors import Permanent

KEY: Final = "cloud/exceptions.json"
"""Of the document in the archive bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """One exception."""

    check: str
    resource: str
    """An id, or a pattern of ids with `*` and `?`."""
    account: str | None = None
    region: str | None = None
    reason: str
    owner: str
    expires: date
    """Until the end of this day, in UTC."""

    def covers(self, finding: Finding) -> bool:
        """Whether it is about this finding, expired or not."""
        return (
            finding.check == self.check
            and self.account in (None, finding.account)
            and self.region in (None, finding.region)
            and (finding.resource_id == self.resource or fnmatchcase(finding.resource_id, self.resource))
        )

    def expired(self, now: datetime) -> bool:
        """Whether its last day is over; `now` is aware."""
        return now.astimezone(UTC).date() > self.expires

    def as_json(self) -> dict[str, str]:
        """As it stands in the document."""
        return {name: str(value) for name in FIELDS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Exemptions:
    """All exceptions of a document."""

    entries: tuple[Exemption, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes) -> Exemptions:
        """What a document says.

        Raises:
            Permanent: it is no such document; names the entry and the field at fault, and what that takes.
        """
        try:
            document = json.loads(text, object_pairs_hook=_object)
        except ValueError as error:
            raise Permanent(f"The exceptions are not a JSON document: {error}.") from None
        if not isinstance(document, dict) or document.keys() != {"exceptions"}:
            raise Permanent('The exceptions take a JSON object of one field: {"exceptions": [...]}.')
        if not isinstance(document["exceptions"], list):
            raise Permanent(f"exceptions takes a list, got {json.dumps(document['exceptions'])}.")
        return cls(tuple(_entry(raw, f"exceptions[{number}]") for number, raw in enumerate(document["exceptions"])))

    def covering(self, finding: Finding, now: datetime) -> Exemption | None:
        """The first that is in force and is about this finding."""
        return next((one for one in self.entries if one.covers(finding) and not one.expired(now)), None)

    def expired(self, now: datetime) -> tuple[Exemption, ...]:
        """Those that cover nothing any more, for owners to renew or remove."""
        return tuple(one for one in self.entries if one.expired(now))

    def remark(self, now: datetime) -> str | None:
        """How many have expired, and which; None where none has."""
        named = [f"{one.check} {one.resource} ({one.owner}, {one.expires})" for one in self.expired(now)]
        return f"Expired exceptions ({len(named)}): {', '.join(named)}." if named else None


def load(s3: Any, bucket: str) -> Exemptions:
    """The exceptions of this deployment; none where there is no document.

    Raises:
        Permanent: they cannot be read or understood. What is excepted is not known then: nothing may be acted upon.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from lamplighter.kernel.deletion import read

    place = f"s3://{bucket}/{KEY}"
    try:
        body = read(s3, bucket, KEY)
    except (BotoCoreError, ClientError) as error:
        raise Permanent(f"{place} cannot be read: {error}") from error
    try:
        return Exemptions() if body is None else Exemptions.parse(body)
    except Permanent as error:
        raise Permanent(f"In {place}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that stands twice would hide what it said first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has two fields of one name among {', '.join(name for name, _ in pairs)}")
    return found


def _entry(raw: Any, place: str) -> Exemption:
    if not isinstance(raw, dict):
        raise Permanent(f"{place} takes an object, got {json.dumps(raw)}.")
    if unknown := raw.keys() - FIELDS.keys():
        raise Permanent(f"{place} has no field {min(unknown)} (known: {', '.join(FIELDS)}).")
    values: dict[str, Any] = {}
    for name, (takes, read) in FIELDS.items():
        if name in raw:
            values[name] = read(raw[name]) if isinstance(raw[name], str) else None
            if values[name] is None:
                raise Permanent(f"{place}.{name} takes {takes}, got {json.dumps(raw[name])}.")
        elif name not in OPTIONAL:
            raise Permanent(f"{place}.{name} is missing: it takes {takes}.")
    return Exemption(**values)


def _text(value: str) -> str | None:
    return value if value.strip() else None


def _like(pattern: str) -> Callable[[str], str | None]:
    return lambda value: value if re.fullmatch(pattern, value) else None


def _date(value: str) -> date | None:
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None


FIELDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "check": (f"the id of a check ({', '.join(checks.BY_ID)})", lambda value: value if value in checks.BY_ID else None),
    "resource": ("an id, or a pattern such as sg-0a1b*", _text),
    "account": ("twelve digits", _like(r"[0-9]{12}")),
    "region": ("a region such as eu-west-1", _like(r"[a-z]+(-[a-z]+)+-[0-9]+")),
    "reason": ("a sentence", _text),
    "owner": ("who answers for it", _text),
    "expires": ("a date such as 2027-01-31", _date),
}
"""By name: what it takes, and what reads it, None for what it does not take."""
OPTIONAL: Final = frozenset({"account", "region"})
