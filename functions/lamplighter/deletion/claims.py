"""Claims: which stack cleans which folder of a bucket, so that no two stacks clean the same files (REQUIREMENTS S10).

A stack's references say nothing about the files of another stack. So the bucket itself holds a claim object,
`.lamplighter/claim.json`:

    {"claims": [{"stack": "lamplighter", "account": "111122223333", "region": "eu-west-1",
                 "folder": "uploads/", "renewed_at": "2026-11-22T03:00:00.000Z"}]}

Earnest runs write and renew it (`claim`), at most once a day for a folder; previews only read it (`look`). A claim is
void 30 days after it was renewed. Two folders overlap when one contains the other, segment by segment.

Each write is conditional on the object that was read. The clock of another stack may be wrong, so a claim counts from
`renewed_at` or from when S3 stored the object, whichever is earlier.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Self

from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.ledger.row import from_text, to_text
from lamplighter.kernel.notify import flat

KEY: Final = ".lamplighter/claim.json"
VOID_AFTER: Final = timedelta(days=30)
RENEWED_AFTER: Final = timedelta(days=1)
SIZE_LIMIT: Final = 1 << 20
"""Bytes of a claim object; a larger one is not ours."""
TRIES: Final = 5
"""Writes that lose against another stack before the run gives up."""

_CHANGED: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_ABSENT: Final = frozenset({"NoSuchKey", "404"})
_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack, as the claims name it. One that is removed and deployed again is the same stack."""

    name: str
    account: str
    region: str

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The stack of this function: its name, and account and region as the ARN of its own alerts topic has them."""
        _, _, _, region, account, _ = environment["ALERTS_TOPIC_ARN"].split(":", 5)
        return cls(name=environment["STACK_NAME"], account=account, region=region)

    def __str__(self) -> str:
        return flat(f"{self.name} (account {self.account}, {self.region})")  # others write the claim object, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A stack cleans a folder."""

    stack: Stack
    folder: str
    """Empty for the whole bucket, or ending with a slash."""
    renewed_at: datetime


class _Read(NamedTuple):
    claims: list[Claim]
    etag: str | None
    """Of the claim object; None where there is none."""


def overlap(one: str, other: str) -> bool:
    """Whether two folders have objects in common. Both are empty or end with a slash."""
    return one.startswith(other) or other.startswith(one)


def claim(s3: Any, bucket: str, folder: str, *, stack: Stack, now: datetime, also: Collection[str] = ()) -> None:
    """Claim a folder for an earnest run, before it deletes anything.

    Args:
        s3: the client.
        bucket: whose objects are to be deleted.
        folder: the run's, empty for the whole bucket, or ending with a slash.
        stack: the run's.
        now: the present moment.
        also: folders that the stack cleans too, such as the configured one during a run over another. Its claims to any
            other folder end here, so a stack whose `base_path` changed frees the folder that it had before.

    Raises:
        Permanent: another stack cleans the folder, or the claim object cannot be read or written; nothing was touched.
        Retryable: other stacks keep writing the claim object.
    """
    for _ in range(TRIES):
        read = _read(s3, bucket, now)
        if problem := _taken(read.claims, bucket, folder, stack, now):
            raise Permanent(f"{problem} Nothing was deleted.")
        after = _after(read.claims, folder, stack, now, also)
        if after == read.claims or _written(s3, bucket, after, read.etag):
            return
    raise Retryable(f"Other stacks keep writing {KEY} in {bucket}; nothing was deleted.")


def look(s3: Any, bucket: str, folder: str, *, stack: Stack, now: datetime) -> str | None:
    """Why an earnest run would be refused, as a sentence, or None. For previews; writes nothing."""
    try:
        return _taken(_read(s3, bucket, now).claims, bucket, folder, stack, now)
    except Permanent as error:
        return str(error)


def _taken(claims: list[Claim], bucket: str, folder: str, stack: Stack, now: datetime) -> str | None:
    for one in claims:
        if one.stack != stack and not _is_void(one, now) and overlap(one.folder, folder):
            return (
                f"The stack {one.stack} cleans {_named(one.folder)} of {bucket}, which overlaps with {_named(folder)}: "
                f"give each stack a folder of its own, or wait until {one.renewed_at + VOID_AFTER:%Y-%m-%d}, when its "
                "claim ends unless it runs again."
            )
    return None


def _after(claims: list[Claim], folder: str, stack: Stack, now: datetime, also: Collection[str]) -> list[Claim]:
    """The claims once the stack has claimed the folder; the same list where nothing has to be written."""
    own = [one for one in claims if one.stack == stack]
    kept = [one for one in own if one.folder == folder or (one.folder in also and not _is_void(one, now))]
    fresh = any(one.folder == folder and now - one.renewed_at < RENEWED_AFTER for one in kept)
    if fresh and kept == own:
        return claims
    others = [one for one in claims if one.stack != stack and not _is_void(one, now)]
    renewed = Claim(stack=stack, folder=folder, renewed_at=now)
    return [*others, *(one for one in kept if one.folder != folder), renewed]


def _is_void(one: Claim, now: datetime) -> bool:
    return now - one.renewed_at >= VOID_AFTER


def _named(folder: str) -> str:
    return f"the folder {flat(folder)}" if folder else "the whole bucket"


def _read(s3: Any, bucket: str, now: datetime) -> _Read:
    """The claims of a bucket; no claim counts as renewed later than S3 stored it, or than now."""
    from botocore.exceptions import ClientError

    try:
        answer = s3.get_object(Bucket=bucket, Key=KEY)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _ABSENT:
            return _Read([], None)
        if code in _DENIED:
            raise Permanent(f"{KEY} of {bucket} cannot be read: allow s3:GetObject on it, and s3:ListBucket.") from None
        raise
    try:
        if answer["ContentLength"] > SIZE_LIMIT:
            raise ValueError
        claims = [_claim(one) for one in json.loads(answer["Body"].read())["claims"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Permanent(
            f"{KEY} of {bucket} is not a list of claims: delete it once you know that no other stack cleans the bucket."
        ) from None
    latest = min(answer["LastModified"], now)
    return _Read([replace(one, renewed_at=min(one.renewed_at, latest)) for one in claims], answer["ETag"])


def _claim(stored: Mapping[str, Any]) -> Claim:
    """Raises ValueError, TypeError or KeyError if it is none."""
    texts = [stored[name] for name in ("stack", "account", "region", "folder", "renewed_at")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    name, account, region, folder, renewed_at = texts
    moment = from_text(renewed_at)
    if moment.tzinfo is None or (folder and not folder.endswith("/")):
        raise ValueError
    return Claim(stack=Stack(name=name, account=account, region=region), folder=folder, renewed_at=moment)


def _written(s3: Any, bucket: str, claims: list[Claim], etag: str | None) -> bool:
    """Whether the claims were written over what was read."""
    from botocore.exceptions import ClientError

    stored = [
        {
            "stack": one.stack.name,
            "account": one.stack.account,
            "region": one.stack.region,
            "folder": one.folder,
            "renewed_at": to_text(one.renewed_at),
        }
        for one in claims
    ]
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    body = json.dumps({"claims": stored}, indent=1).encode()
    try:
        s3.put_object(Bucket=bucket, Key=KEY, Body=body, ContentType="application/json", **condition)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _CHANGED | _ABSENT:
            return False
        if code in _DENIED:
            raise Permanent(
                f"{KEY} of {bucket} cannot be written: allow s3:PutObject on it. Nothing was deleted."
            ) from None
        raise
    return True
