"""The audit log's archive in S3: what lies where, and how it proves to be whole.

    audit/2026/08/2026-08-24.jsonl.gz      a day's rows, a JSON object a line, the oldest first
    audit/2026/08/2026-08-24.1.jsonl.gz    rows of that day that came, or were changed, after it was archived
    audit-chain/00000124.json              `Link`, one for each object, numbered in the order of archiving

A link has the count and the hashes of its object and the hash of the link before it, so nothing is altered, taken away
or put in between without breaking the chain. A number is claimed by a conditional write: two runs cannot both append.
What no link names was never archived. Objects expire by the bucket's lifecycle; links, which hold no rows, are kept.

Only the standard library, and a boto3 client that is given: what reads the archive back may run anywhere.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final

from lamplighter.kernel.errors import Permanent

OBJECTS: Final = "audit/"
LINKS: Final = "audit-chain/"

READ: Final = 1 << 20
"""Bytes of an object that are read from S3 at once."""
PIECE: Final = 1 << 18
"""Bytes of rows that are handed on, or deleted, at once: some thousand rows, some twenty milliseconds of locks."""
GZIP: Final = 31
"""zlib's `wbits` for a gzip stream without a time in it: the same rows make the same object."""


class Damaged(Permanent):
    """The archive is not what was written; the message names the day or the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What an object holds."""

    rows: int
    rows_sha256: str
    """Of the lines, uncompressed."""
    bytes: int
    """Of the object, compressed."""
    sha256: str
    """Of the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One archived object, and what it was appended to."""

    number: int
    """From 0."""
    day: str
    """The UTC day of the rows: 2026-08-24."""
    key: str
    contents: Contents
    archived_at: str
    """ISO-8601."""
    previous: str | None
    """SHA-256 of the link before; None for the first."""

    @property
    def body(self) -> bytes:
        """The link as it is stored."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @property
    def sha256(self) -> str:
        """What the next link has as `previous`."""
        return hashlib.sha256(self.body).hexdigest()


def link_of(body: bytes, number: int) -> Link:
    """The link that was stored under a number.

    Raises:
        Damaged: it is none, or another's.
    """
    try:
        values = json.loads(body)
        link = Link(**values | {"contents": Contents(**values["contents"])})
    except (ValueError, TypeError, KeyError):
        raise Damaged(f"Link {number} of the audit archive is not a link.") from None
    if link.body != body or link.number != number:
        raise Damaged(f"Link {number} of the audit archive ({link.day}) is not what was written.")
    return link


def object_key(day: date, part: int) -> str:
    """Where part `part` of a day's rows lies; the first is 0."""
    return f"{day_prefix(day)}{f'{part}.' if part else ''}jsonl.gz"


def day_prefix(day: date) -> str:
    """What the keys of a day's objects begin with."""
    text = day.isoformat()
    return f"{OBJECTS}{text[:4]}/{text[5:7]}/{text}."


class Meter:
    """Counts and hashes what an object is made of."""

    def __init__(self) -> None:
        self.rows = self.bytes = 0
        self._rows, self._object = hashlib.sha256(), hashlib.sha256()

    def unpacked(self, rows: bytes) -> None:
        """Some of its lines."""
        self.rows += rows.count(b"\n")
        self._rows.update(rows)

    def packed(self, data: bytes) -> None:
        """Some of its bytes."""
        self.bytes += len(data)
        self._object.update(data)

    @property
    def contents(self) -> Contents:
        """All that has passed."""
        return Contents(
            rows=self.rows, rows_sha256=self._rows.hexdigest(), bytes=self.bytes, sha256=self._object.hexdigest()
        )


class Chain:
    """The archive in a bucket."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def head(self) -> Link | None:
        """The newest link, or None in an empty archive. Raises Damaged."""
        numbers = self.numbers()
        return self.link(numbers[-1]) if numbers else None

    def numbers(self) -> list[int]:
        """The numbers of all links, ascending."""
        names = (key.removeprefix(LINKS).removesuffix(".json") for key in self._keys(LINKS))
        return sorted(int(name) for name in names if name.isdecimal())

    def link(self, number: int) -> Link:
        """A link as it was written. Raises Damaged."""
        answer = self._s3.get_object(Bucket=self._bucket, Key=_link_key(number))
        return link_of(answer["Body"].read(), number)

    def append(self, link: Link) -> bool:
        """Store the newest link; False if its number is taken by another."""
        from botocore.exceptions import ClientError

        try:
            self._s3.put_object(Bucket=self._bucket, Key=_link_key(link.number), Body=link.body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return self.link(link.number) == link  # boto3 sends it again when the answer gets lost
        return True

    def parts(self, day: date) -> int:
        """How many objects there are of a day, those that no link names included."""
        return sum(1 for _ in self._keys(day_prefix(day)))

    def pieces(self, key: str, meter: Meter) -> Iterator[bytes]:
        """The lines of an object, whole ones, some at a time; `meter` measures them as they pass.

        Raises:
            Missing: there is no such object.
            Damaged: it is not the gzip of lines.
        """
        body = _opened(self._s3, self._bucket, key)
        return whole_lines(unpacked(iter(lambda: body.read(READ), b""), meter, key), key)

    def _keys(self, prefix: str) -> Iterator[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return (entry["Key"] for page in pages for entry in page.get("Contents", ()))


class Missing(Damaged):
    """An object is not there (any more)."""


def unpacked(chunks: Iterable[bytes], meter: Meter, key: str) -> Iterator[bytes]:
    """What gzip's chunks hold, at most `PIECE` at a time.

    Raises:
        Damaged: they are not one whole gzip stream.
    """
    gzip = zlib.decompressobj(GZIP)
    try:
        for chunk in chunks:
            meter.packed(chunk)
            rest, piece = chunk, b""
            while rest or len(piece) == PIECE:
                piece = gzip.decompress(rest, PIECE)
                rest = gzip.unconsumed_tail
                meter.unpacked(piece)
                yield piece
                if gzip.eof:
                    break
            if gzip.unused_data:
                break
    except zlib.error as error:
        raise Damaged(f"{key} is damaged: {error}.") from None
    if not gzip.eof or gzip.unused_data:
        raise Damaged(f"{key} is damaged: it {'has something after its end' if gzip.eof else 'ends too soon'}.")


def whole_lines(pieces: Iterable[bytes], key: str) -> Iterator[bytes]:
    """The same bytes, parted where lines end.

    Raises:
        Damaged: the last line does not end.
    """
    begun: list[bytes] = []
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end:
            yield b"".join((*begun, piece[:end]))
            begun = []
        begun.append(piece[end:])
    if any(begun):
        raise Damaged(f"{key} is damaged: its last line does not end.")


def _link_key(number: int) -> str:
    return f"{LINKS}{number:08}.json"


def _opened(s3: Any, bucket: str, key: str) -> Any:
    from botocore.exceptions import ClientError

    try:
        return s3.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        raise Missing(f"{key} is not in the archive.") from None
