"""Objects in memory, for tests: what of S3 the archives use, conditional writes included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from botocore.exceptions import ClientError


class MemoryS3:
    """One bucket's objects by key, whatever the bucket is called."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_object(
        self, *, Key: str, Body: bytes, IfNoneMatch: str | None = None, IfMatch: str | None = None, **_: Any
    ) -> None:
        there = self.objects.get(Key)
        if (IfNoneMatch and there is not None) or (IfMatch and (there is None or _etag(there) != IfMatch)):
            raise _error("PreconditionFailed", 412, "PutObject")
        self.objects[Key] = bytes(Body)

    def get_object(self, *, Key: str, **_: Any) -> dict[str, Any]:
        if Key not in self.objects:
            raise _error("NoSuchKey", 404, "GetObject")
        return {"Body": BytesIO(self.objects[Key]), "ETag": _etag(self.objects[Key])}

    def get_paginator(self, operation: str) -> MemoryS3:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, *, Prefix: str, **_: Any) -> Iterator[dict[str, Any]]:
        """A key a page, in S3's order."""
        for key in sorted(self.objects):
            if key.startswith(Prefix):
                yield {"Contents": [{"Key": key}]}


def _etag(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def _error(code: str, status: int, operation: str) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)
