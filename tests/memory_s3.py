"""S3 in memory, behind real boto3 clients: versioned buckets, conditional requests, and a process that dies at a write.

What a client sends is answered before it leaves the process. `tests/integration/test_references.py` and the others run
on an S3 server; this is for many small worlds in little time, and for crashes at each single write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config

_PAGE = 1000
_XMLNS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Crash(BaseException):
    """The process dies here."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object, or a delete marker, which has no body."""

    id: str
    body: bytes | None
    modified: datetime

    @property
    def etag(self) -> str:
        """Without quotes."""
        return hashlib.md5(self.body or b"").hexdigest()


@dataclass
class MemoryS3:
    """Buckets, their keys, and the versions of each, the newest last."""

    buckets: dict[str, dict[str, list[Version]]] = field(default_factory=dict)
    page: int = _PAGE
    """Keys in a page of a listing."""
    before_write: Callable[[int, str], None] = lambda number, key: None
    """Called before the n-th write of an object's bytes or a deletion."""
    after_write: Callable[[int, str], None] = lambda number, key: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    writes: int = 0
    deleted: list[str] = field(default_factory=list)
    """Keys of the objects that were deleted."""
    _ids: Any = field(default_factory=lambda: count(1))

    def put(self, bucket: str, key: str, body: bytes = b"x", *, modified: datetime | None = None) -> None:
        """An object, as if somebody else had written it."""
        version = Version(f"v{next(self._ids)}", body, modified or self.now())
        self.buckets.setdefault(bucket, {}).setdefault(key, []).append(version)

    def keys(self, bucket: str) -> list[str]:
        """What the bucket holds, in S3's order."""
        return sorted((key for key, some in self.buckets[bucket].items() if some[-1].body is not None), key=str.encode)

    def look(self, bucket: str, key: str) -> tuple[str, str, str, str] | None:
        """The object at `key` as `lamplighter.media.listing.look` gives it."""
        now = self.buckets[bucket].get(key, [None])[-1]  # type: ignore[list-item]
        if now is None or now.body is None:
            return None
        return key, f"{now.modified:%Y-%m-%dT%H:%M:%S}.000Z", now.etag, str(len(now.body))

    def client(self) -> Any:
        """A client of this S3."""
        client = boto3.session.Session().client(
            "s3",
            region_name="us-east-1",
            endpoint_url="http://memory.invalid",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 0},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        client.meta.events.register("before-send.s3", self._answer)
        return client

    # -- requests

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        parts = urlsplit(request.url)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        held = self.buckets.get(bucket)
        if held is None and request.method == "PUT" and not key:
            self.buckets[bucket] = {}
            return _response(request.url, 200, b"")
        if held is None:
            return _response(request.url, 404, _error("NoSuchBucket"))
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        body = body.encode() if isinstance(body, str) else body
        match request.method:
            case "GET" if not key:
                status, text = 200, self._of_bucket(held, query)
            case "POST" if "delete" in query:
                status, text = 200, self._delete_many(held, body)
            case "PUT":
                return self._put(request.url, held, key, body, headers)
            case "DELETE":
                return self._delete_one(request.url, held, key, headers, query)
            case _:
                return self._get(request.url, held, key)
        return _response(request.url, status, text)

    def _of_bucket(self, held: dict[str, list[Version]], query: dict[str, str]) -> str:
        if "versioning" in query:
            return "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        prefix = query.get("prefix", "")
        if "versions" in query:
            return self._versions(held, prefix)
        after = query.get("continuation-token") or query.get("start-after") or ""
        keys = [
            key for key, some in held.items() if some[-1].body is not None and key.startswith(prefix) and key > after
        ]
        keys.sort(key=str.encode)
        most = min(int(query.get("max-keys", self.page)), self.page)
        page, more = keys[:most], len(keys) > most
        entries = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{held[key][-1].modified:%Y-%m-%dT%H:%M:%S}.000Z"
            f"</LastModified><ETag>&quot;{held[key][-1].etag}&quot;</ETag><Size>{len(held[key][-1].body or b'')}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"<KeyCount>{len(page)}</KeyCount>{entries}</ListBucketResult>"
        )

    def _versions(self, held: dict[str, list[Version]], prefix: str) -> str:
        entries = ""
        for key in sorted((key for key in held if key.startswith(prefix)), key=str.encode):
            for number, one in enumerate(reversed(held[key])):
                name = "DeleteMarker" if one.body is None else "Version"
                etag = "" if one.body is None else f"<ETag>&quot;{one.etag}&quot;</ETag>"
                entries += (
                    f"<{name}><Key>{escape(quote(key))}</Key><VersionId>{one.id}</VersionId>{etag}<IsLatest>"
                    f"{str(number == 0).lower()}</IsLatest><LastModified>{one.modified:%Y-%m-%dT%H:%M:%S}.000Z"
                    f"</LastModified></{name}>"
                )
        return f"<ListVersionsResult><EncodingType>url</EncodingType>{entries}</ListVersionsResult>"

    def _get(self, url: str, held: dict[str, list[Version]], key: str) -> AWSResponse:
        now = held.get(key, [None])[-1]  # type: ignore[list-item]
        if now is None or now.body is None:
            return _response(url, 404, _error("NoSuchKey"))
        headers = {"ETag": f'"{now.etag}"', "Last-Modified": f"{now.modified:%a, %d %b %Y %H:%M:%S} GMT"}
        return _response(url, 200, now.body, headers)

    def _put(
        self, url: str, held: dict[str, list[Version]], key: str, body: bytes, headers: dict[str, str]
    ) -> AWSResponse:
        now = held.get(key, [None])[-1]  # type: ignore[list-item]
        there = now is not None and now.body is not None
        if headers.get("if-none-match") == "*" and there:
            return _response(url, 412, _error("PreconditionFailed"))
        if (wanted := headers.get("if-match")) and not (there and now and wanted.strip('"') == now.etag):
            return _response(url, 412 if there else 404, _error("PreconditionFailed" if there else "NoSuchKey"))
        with self._write(key):
            version = Version(f"v{next(self._ids)}", body, self.now())
            held.setdefault(key, []).append(version)
        return _response(url, 200, b"", {"ETag": f'"{version.etag}"'})

    def _delete_one(
        self, url: str, held: dict[str, list[Version]], key: str, headers: dict[str, str], query: dict[str, str]
    ) -> AWSResponse:
        code, marker = self._mark(held, key, headers.get("if-match", "").strip('"'))
        if code:
            return _response(url, 412, _error(code))
        return _response(url, 204, b"", {"x-amz-version-id": marker, "x-amz-delete-marker": "true"})

    def _delete_many(self, held: dict[str, list[Version]], body: bytes) -> str:
        answers = ""
        for one in ElementTree.fromstring(body).findall(f"{_XMLNS}Object"):
            key = one.findtext(f"{_XMLNS}Key") or ""
            code, marker = self._mark(held, key, (one.findtext(f"{_XMLNS}ETag") or "").strip('"'))
            if code:
                answers += f"<Error><Key>{escape(key)}</Key><Code>{code}</Code></Error>"
            else:
                answers += (
                    f"<Deleted><Key>{escape(key)}</Key><DeleteMarker>true</DeleteMarker>"
                    f"<DeleteMarkerVersionId>{marker}</DeleteMarkerVersionId></Deleted>"
                )
        return f"<DeleteResult>{answers}</DeleteResult>"

    def _mark(self, held: dict[str, list[Version]], key: str, etag: str) -> tuple[str | None, str]:
        """Lay a delete marker over the object, if it still has that ETag."""
        now = held.get(key, [None])[-1]  # type: ignore[list-item]
        if etag and (now is None or now.body is None or now.etag != etag):
            return "PreconditionFailed", ""
        with self._write(key):
            marker = Version(f"m{next(self._ids)}", None, self.now())
            held.setdefault(key, []).append(marker)
            self.deleted.append(key)
        return None, marker.id

    def _write(self, key: str) -> _Write:
        self.writes += 1
        return _Write(self, self.writes, key)


@dataclass(frozen=True, slots=True)
class _Write:
    s3: MemoryS3
    number: int
    key: str

    def __enter__(self) -> None:
        self.s3.before_write(self.number, self.key)

    def __exit__(self, *_: object) -> None:
        self.s3.after_write(self.number, self.key)


class _Raw:
    """A response's body as urllib3 hands it over."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: Any, **__: Any) -> Any:
        """All of it."""
        yield self._body

    def read(self, *_: Any, **__: Any) -> bytes:
        """All of it, once."""
        body, self._body = self._body, b""
        return body


def _response(url: str, status: int, body: str | bytes, headers: dict[str, str] | None = None) -> AWSResponse:
    content = body.encode() if isinstance(body, str) else body
    return AWSResponse(url, status, {"Content-Length": str(len(content))} | (headers or {}), _Raw(content))


def _error(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
