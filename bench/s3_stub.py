"""A listing server for the benches: one bucket of made-up images, its pages written in advance, no latency.

Speaks as much of S3 as boto3 and rclone need to list a bucket, and keeps what is put, so that a whole cleanup can run
against it. `python -m bench.s3_stub <objects>` prints its port.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from bisect import bisect_right
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "media"
PAGE = 1000
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>media</Name><Prefix></Prefix><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType>"
)


def key(n: int) -> str:
    """The n-th key, in S3's order."""
    return f"media/2026/{n // 10_000:03}/camera-{n // 100 % 100:02}/recording-{n:08}.jpg"


def is_orphan(n: int) -> bool:
    """One in twenty, scattered."""
    return n * 7919 % 20 == 3


def _entry(n: int) -> str:
    return (
        f"<Contents><Key>{key(n)}</Key><LastModified>2026-01-{n % 28 + 1:02}T10:20:30.000Z</LastModified>"
        f"<ETag>&quot;{n:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{200_000 + n % 1000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


class Stub:
    """The bucket's answers."""

    def __init__(self, objects: int) -> None:
        self._keys = [key(n) for n in range(objects)]
        self._pages = [self._page(start, objects) for start in range(0, objects, PAGE)]
        self._written: dict[str, bytes] = {}

    def _page(self, start: int, objects: int) -> bytes:
        end = min(start + PAGE, objects)
        more = (
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>"
            if end < objects
            else "<IsTruncated>false</IsTruncated>"
        )
        body = f"{_HEAD}<KeyCount>{end - start}</KeyCount>{more}"
        return (body + "".join(map(_entry, range(start, end))) + "</ListBucketResult>").encode()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Status and content."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = unquote(url.path)
        if method == "PUT":
            self._written[path] = body
            return 200, b""
        if method == "GET" and path in self._written:
            return 200, self._written[path]
        if path.strip("/") != BUCKET:
            listed = f"{_HEAD}<IsTruncated>false</IsTruncated></ListBucketResult>".encode()
            return (200, listed) if "list-type" in query else (404, b"<Error><Code>NoSuchKey</Code></Error>")
        if "versioning" in query:
            return 200, b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        if query.get("max-keys") == "1":  # is this key there?
            prefix = query["prefix"]
            at = bisect_right(self._keys, prefix) - 1
            found = _entry(at) if at >= 0 and self._keys[at] == prefix else ""
            return 200, f"{_HEAD}<IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()
        return 200, self._pages[int(query.get("continuation-token", 0)) // PAGE]


async def serve(objects: int) -> None:
    """Until killed."""
    stub = Stub(objects)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *headers = head.split("\r\n")
                method, target, _ = request.split(" ")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
                if fields.get("expect", "").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                status, content = stub.answer(method, target, body)
                etag = hashlib.md5(body).hexdigest() if method == "PUT" else "0"
                writer.write(
                    f'HTTP/1.1 {status} OK\r\nContent-Type: application/xml\r\nETag: "{etag}"\r\n'
                    f"Content-Length: {len(content)}\r\n\r\n".encode()
                )
                writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
