"""The objects of the uploads bucket: where they lie, reading one in pieces, writing one as it is made, deleting one.

    inputs/<any name>              a log to be processed; gone when its job is final
    outputs/<job_id>/results.zip   what came of it
    outputs/<job_id>/summary.json  the same in numbers

An input is known by its key and ETag: what was put under the same key in the meantime is another input, which is
neither processed nor deleted in its place.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from aws_lambda_powertools import Logger

from lamplighter.kernel.errors import Permanent

logger = Logger(child=True)

INPUTS: Final = "inputs/"
OUTPUTS: Final = "outputs/"

RANGE: Final = 8 << 20
"""Bytes of one request when reading: a connection that breaks costs no more than the attempt's next try."""

PIECE: Final = 1 << 18
"""Bytes given out at a time: text takes up to four times the memory while it is split."""

PART: Final = 8 << 20
"""Bytes of a part when writing; the 10 000 that an object may have hold 80 GB."""

_GONE: Final = frozenset({"NoSuchKey", "NotFound", "404"})
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})


class InputMissing(Permanent):
    """The input is not there any more, or is another one by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An object to be read; `etag` is without quotes."""

    bucket: str
    key: str
    etag: str
    size: int


def results_key(job_id: str) -> str:
    """Where a job's zip lies."""
    return f"{OUTPUTS}{job_id}/results.zip"


def summary_key(job_id: str) -> str:
    """Where a job's report lies; it is written after the zip."""
    return f"{OUTPUTS}{job_id}/summary.json"


def find(s3: Any, bucket: str, key: str, etag: str | None) -> Input:
    """The input under `key`, which must have `etag` if one is given.

    Raises:
        InputMissing: it is not there, or not the same.
    """
    from botocore.exceptions import ClientError

    try:
        head = s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) in _GONE:
            raise InputMissing(f"{key} was deleted or has been processed.") from None
        raise
    found = head["ETag"].strip('"')
    if etag and found != etag:
        raise InputMissing(f"{key} was replaced by a newer upload, which has a job of its own.")
    return Input(bucket=bucket, key=key, etag=found, size=head["ContentLength"])


def read(s3: Any, source: Input) -> Iterator[bytes]:
    """The object's bytes, in pieces.

    Raises:
        InputMissing: it was deleted or replaced in the meantime.
    """
    from botocore.exceptions import ClientError

    for start in range(0, source.size, RANGE):
        end = min(start + RANGE, source.size)
        try:
            answer = s3.get_object(
                Bucket=source.bucket, Key=source.key, Range=f"bytes={start}-{end - 1}", IfMatch=f'"{source.etag}"'
            )
        except ClientError as error:
            if _code(error) in _GONE | _CHANGED:
                raise InputMissing(f"{source.key} was deleted or replaced while it was read.") from None
            raise
        body = answer["Body"].read()
        for piece in range(0, len(body), PIECE):
            yield body[piece : piece + PIECE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object as a listing shows it; `etag` is without quotes."""

    key: str
    etag: str
    size: int
    last_modified: datetime


def listed(s3: Any, bucket: str, prefix: str) -> Iterator[Found]:
    """All objects below a prefix, the marks of empty folders left out."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield Found(
                    key=entry["Key"],
                    etag=entry["ETag"].strip('"'),
                    size=entry["Size"],
                    last_modified=entry["LastModified"],
                )


def content(s3: Any, bucket: str, key: str) -> bytes | None:
    """A small object's bytes, or None where there is none."""
    from botocore.exceptions import ClientError

    try:
        body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if _code(error) in _GONE:
            return None
        raise
    return body


class Nowhere(io.RawIOBase):
    """Takes what a preview would write."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class Upload(io.RawIOBase):
    """An object written by a multipart upload, which is completed when the context ends well and aborted when not, so
    that nobody ever sees a part of it."""

    def __init__(self, s3: Any, bucket: str, key: str, *, content_type: str) -> None:
        self._s3 = s3
        self._place = {"Bucket": bucket, "Key": key}
        self._content_type = content_type
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self.size = 0

    def __enter__(self) -> Self:
        created = self._s3.create_multipart_upload(**self._place, ContentType=self._content_type)
        self._upload = self._place | {"UploadId": created["UploadId"]}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._abort()
            return
        try:
            self._send()
            self._s3.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": self._parts})
        except BaseException:
            self._abort()
            raise

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        if len(self._buffer) >= PART:
            self._send()
        return len(data)

    def _send(self) -> None:
        number = len(self._parts) + 1
        answer = self._s3.upload_part(**self._upload, PartNumber=number, Body=bytes(self._buffer))
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})
        self.size += len(self._buffer)
        self._buffer.clear()

    def _abort(self) -> None:
        """Leave nothing behind; where that fails, the bucket's lifecycle does it within a day."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._s3.abort_multipart_upload(**self._upload)
        except (BotoCoreError, ClientError):
            logger.exception("an upload could not be aborted", extra=self._place)


def delete(s3: Any, bucket: str, key: str, etag: str | None = None) -> str:
    """Delete an object, if it still has `etag` where one is given; what became of it.

    Returns:
        `deleted`, `already gone`, `replaced` (by a newer upload, which stays), or `failed: ...`: nothing is raised,
        because a failed deletion blocks nothing (REQUIREMENTS D3).
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3.delete_object(Bucket=bucket, Key=key, **({"IfMatch": f'"{etag}"'} if etag else {}))
    except (BotoCoreError, ClientError) as error:
        code = _code(error) if isinstance(error, ClientError) else ""
        if code in _GONE:
            return "already gone"
        if code in _CHANGED:
            return "replaced"
        logger.exception("an object could not be deleted", extra={"bucket": bucket, "key": key})
        return f"failed: {error}"
    return "deleted"


def _code(error: Any) -> str:
    return str(error.response["Error"]["Code"])
