"""Lists a bucket page by page in constant memory, as fast as the pages come.

boto3 spends most of a listing on turning XML into dictionaries and times into datetimes (11 000 keys a second). Here
a hook takes the objects out of the response before boto3 parses it; signing, retries, paging and errors stay boto3's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import unquote_plus

from lamplighter.kernel.errors import Permanent

MAX_KEY_BYTES: Final = 1024
"""Of UTF-8: the longest key that S3 takes."""
PAGES_A_BATCH: Final = 4
"""Pages of up to 1000 keys that are handed on together, while the next ones are fetched."""

_OBJECT: Final = re.compile(  # possessive (*+) where it can be: twice as fast
    r"<Contents><Key>([^<]*+)</Key><LastModified>(\d{4}-\d\d-\d\dT[\d:.]++Z)</LastModified>"
    r"<ETag>(?:&quot;|\")?([^<&\"]*+)(?:&quot;|\")?</ETag>(?:<Checksum[^>]*+>[^<]*+</[^>]*+>)*+<Size>(\d++)</Size>"
    r"(?:<StorageClass>[^<]*+</StorageClass></Contents>)?"
)
"""An object as S3 writes it. Pages of a server that writes otherwise are left to boto3."""

type Listed = tuple[str, str, str, str]
"""An object: key; when it was last modified, in UTC (`2026-11-22T03:00:00.000Z`, sorts as text); ETag without quotes;
size in bytes, in decimal digits. A bare tuple of text, because a scan makes a million of them."""


def batches(s3: Any, bucket: str, prefix: str, *, after: str = "") -> Iterator[list[Listed]]:
    """The objects of `bucket` whose keys begin with `prefix`, in S3's order (UTF-8 bytes), from behind the key `after`.

    While the caller works on a batch, a thread fetches the next.

    Args:
        s3: a boto3 client; only its configuration is used.

    Raises:
        Permanent: the bucket does not exist, or may not be listed.
        botocore.exceptions.ClientError: any other refusal.
    """
    import boto3

    client = boto3.client("s3", config=s3.meta.config)  # of our own: the hook changes what its answers look like
    # By this name it comes before botocore's own `before-parse.s3.*`, which parses every page for an error in disguise.
    client.meta.events.register("before-parse.*.ListObjectsV2", _take_objects)
    request = {"Bucket": bucket, "Prefix": prefix} | ({"StartAfter": after} if after else {})
    with ThreadPoolExecutor(1, thread_name_prefix="listing") as thread:
        coming = thread.submit(_fetch, client, request)
        while True:
            objects, token = coming.result()
            if token:
                coming = thread.submit(_fetch, client, request | {"ContinuationToken": token})
            yield objects
            if not token:
                return


def look(s3: Any, bucket: str, key: str) -> Listed | None:
    """The object at `key` as it is now, if there is one; asked by listing, which needs no right to read objects.

    Raises:
        Permanent: the bucket cannot be listed.
    """
    if not is_key(key):
        return None
    page = _list(s3, Bucket=bucket, Prefix=key, MaxKeys=1)  # a key comes before all that begin with it
    return next((_from_boto(entry) for entry in page.get("Contents", ()) if entry["Key"] == key), None)


def is_key(text: str) -> bool:
    """Whether S3 takes a text as a key, or as a prefix of keys."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold
        return False
    return 0 < size <= MAX_KEY_BYTES


def _fetch(client: Any, request: dict[str, str]) -> tuple[list[Listed], str | None]:
    objects: list[Listed] = []
    token: str | None = None
    for _ in range(PAGES_A_BATCH):
        page = _list(client, **request)
        objects += page["Listed"] if "Listed" in page else map(_from_boto, page.get("Contents", ()))
        token = page.get("NextContinuationToken")
        if not token:
            break
        request = request | {"ContinuationToken": token}
    return objects, token


def _list(client: Any, **request: Any) -> Any:
    from botocore.exceptions import ClientError, ParamValidationError

    bucket = request["Bucket"]
    try:
        return client.list_objects_v2(**request)
    except ParamValidationError:
        raise Permanent(f"bucket: {bucket!r} is not the name of a bucket.") from None
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            raise Permanent(f"bucket: there is no bucket named {bucket}.") from None
        if status == 403:
            raise Permanent(
                f"bucket: {bucket} may not be listed ({code}); the function's role needs s3:ListBucket on it."
            ) from None
        if code in {"InvalidBucketName", "PermanentRedirect"}:
            raise Permanent(f"bucket: {bucket} cannot be listed from here ({code}).") from None
        raise


def _take_objects(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's `before-parse` hook: what it puts in the second dictionary is added to the parsed response."""
    if response_dict["status_code"] >= 300:
        return
    body: bytes = response_dict["body"]
    start, end = body.find(b"<Contents>"), body.rfind(b"</Contents>")
    if start < 0:
        return
    found = _OBJECT.findall(body[start:end].decode())
    keys = "".join([one[0] for one in found])
    if len(found) != body.count(b"<Contents>") or "&#" in keys:
        return  # not as expected: boto3 reads it, slowly
    if "&" in keys or "%" in keys or "+" in keys:
        encoded = b"<EncodingType>url</EncodingType>" in body
        found = [(_decoded(key, encoded), *rest) for key, *rest in found]
    customized_response_dict["Listed"] = found
    response_dict["body"] = body[:start] + body[end + len(b"</Contents>") :]


def _decoded(key: str, encoded: bool) -> str:
    key = html.unescape(key)
    return unquote_plus(key) if encoded else key


def _from_boto(entry: dict[str, Any]) -> Listed:
    modified = entry["LastModified"].strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return entry["Key"], modified, entry["ETag"].strip('"'), str(entry["Size"])
