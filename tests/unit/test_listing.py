"""`lamplighter.media.listing` reads what boto3 reads, from whatever a server writes."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.errors import Permanent
from lamplighter.media import listing
from lamplighter.media.extensions import is_media
from lamplighter.media.listing import Listed, batches

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


class Raw:
    """A response's body as urllib3 hands it over."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Any:
        yield self._body


class Server:
    """Answers ListObjectsV2 with prepared pages, below botocore's parsing."""

    def __init__(self, *pages: str, status: int = 200) -> None:
        self.pages = list(pages)
        self.status = status
        self.asked: list[str] = []

    def client(self) -> Any:
        client = boto3.client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(retries={"max_attempts": 1}),
        )
        client.meta.events.register("before-send.s3.ListObjectsV2", self.answer)
        return client

    def answer(self, request: Any, **_: Any) -> AWSResponse:
        self.asked.append(request.url)
        page = self.pages.pop(0)
        return AWSResponse(request.url, self.status, {"Content-Type": "application/xml"}, Raw(page.encode()))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The listing of a server's bucket."""
    return lambda server, **options: read(server, monkeypatch, **options)


def read(server: Server, monkeypatch: pytest.MonkeyPatch, **options: str) -> list[Listed]:
    client = server.client()
    monkeypatch.setattr(boto3, "client", lambda *_args, **_options: client)
    return [one for batch in batches(client, "bucket", "prefix/", **options) for one in batch]


def page(*objects: str, more: str = "", encoding: str = "<EncodingType>url</EncodingType>") -> str:
    truncated = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>"
    tail = truncated if more else "<IsTruncated>false</IsTruncated>"
    return f"{HEAD}<Name>bucket</Name><KeyCount>1</KeyCount>{encoding}{tail}{''.join(objects)}</ListBucketResult>"


def written(
    key: str,
    *,
    quotes: str = "&quot;",
    extra: str = "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>",
    time: str = ".000Z",
) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05{time}</LastModified>"
        f"<ETag>{quotes}0f-2{quotes}</ETag>{extra}<Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@given(keys=st.lists(KEYS, min_size=1, max_size=5), style=st.sampled_from(["plus", "percent", "entities"]))
def test_any_key_is_read_as_boto3_reads_it(keys: list[str], style: str) -> None:
    spell = {"plus": lambda k: quote_plus(k, safe="/"), "percent": quote, "entities": escape}[style]
    encoding = "" if style == "entities" else "<EncodingType>url</EncodingType>"
    text = page(*(written(spell(key)) for key in keys), encoding=encoding)

    with pytest.MonkeyPatch.context() as patch:
        ours = read(Server(text), patch)
    theirs = Server(text).client().list_objects_v2(Bucket="bucket")["Contents"]

    assert [key for key, *_ in ours] == [entry["Key"] for entry in theirs] == keys
    assert ours[0][1:] == ("2026-01-02T03:04:05.000Z", "0f-2", "7")


@pytest.mark.parametrize(
    "strange",
    [
        written("a.jpg", extra="<Owner><ID>1</ID></Owner>"),
        written("a.jpg", time="+00:00"),
        written("&#97;.jpg"),
        "<Contents><Size>7</Size><Key>a.jpg</Key><ETag>0f-2</ETag>"
        "<LastModified>2026-01-02T03:04:05Z</LastModified></Contents>",
    ],
)
def test_a_page_written_otherwise_than_s3_writes_it_is_read_all_the_same(listed: Any, strange: str) -> None:
    assert listed(Server(page(strange))) == [("a.jpg", "2026-01-02T03:04:05.000Z", "0f-2", "7")]


def test_pages_follow_each_other_by_their_tokens(listed: Any) -> None:
    tokens = ["t/1=", "t/2=", "t/3=", "t/4=", "t/5=", ""]
    server = Server(*(page(written(f"{n}.jpg"), more=token) for n, token in enumerate(tokens)))

    assert [key for key, *_ in listed(server, after="prefix/0")] == [f"{n}.jpg" for n in range(6)]
    assert ["start-after=prefix%2F0" in url for url in server.asked] == [True] * 6
    assert [
        f"continuation-token={quote(token, safe='')}" in url
        for token, url in zip(tokens, server.asked[1:], strict=False)
    ] == [True] * 5


def test_an_empty_page_is_an_empty_bucket(listed: Any) -> None:
    assert listed(Server(page())) == []


def test_an_error_sent_with_a_200_is_no_empty_bucket(listed: Any) -> None:
    """FAILURES 8: what cannot be read must never look like an answer."""
    error = "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"

    with pytest.raises(ClientError, match=r"500|InternalError"):
        listed(Server(*[error] * 10))


def test_a_page_that_breaks_off_is_asked_for_again(listed: Any) -> None:
    whole = page(written("a.jpg"), written("b.jpg"))

    assert [key for key, *_ in listed(Server(whole[: whole.index("b.jpg")], whole))] == ["a.jpg", "b.jpg"]


def test_a_bucket_that_does_not_exist_is_named(listed: Any) -> None:
    error = "<Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>"

    with pytest.raises(Permanent, match="bucket: there is no bucket named bucket"):
        listed(Server(error, status=404))


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        ("AccessDenied", 403, r"bucket: bucket may not be listed \(AccessDenied\); .* needs s3:ListBucket on it\."),
        ("AllAccessDisabled", 403, r"bucket: bucket may not be listed \(AllAccessDisabled\)"),
        ("InvalidBucketName", 400, r"bucket: bucket cannot be listed from here \(InvalidBucketName\)\."),
    ],
)
def test_a_bucket_that_may_not_be_listed_is_one_final_sentence(
    listed: Any, code: str, status: int, sentence: str
) -> None:
    error = f"<Error><Code>{code}</Code><Message>no</Message></Error>"

    with pytest.raises(Permanent, match=sentence):
        listed(Server(*[error] * 10, status=status))


def test_botocore_does_not_parse_the_objects_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """What made listing twice as fast; an event's name decides it."""
    seen: list[bytes] = []
    server = Server(page(written("a.jpg")))
    client = server.client()
    client.meta.events.register_first(
        "before-parse.s3.*", lambda response_dict, **_: seen.append(response_dict["body"])
    )
    monkeypatch.setattr(boto3, "client", lambda *_args, **_options: client)

    assert len(next(iter(batches(client, "bucket", "")))) == 1
    assert b"Contents" not in seen[0]


def test_a_key_too_long_for_s3_is_not_asked_for() -> None:
    assert listing.look(None, "bucket", "ä" * 513) is None
    assert listing.look(None, "bucket", "") is None
    assert listing.look(None, "bucket", "img/\ud800.jpg") is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b.jpg", True),
        ("a/b.JPEG", True),
        ("clip.Mp4", True),
        ("a.jpg/", False),
        ("a.jpg/b", False),
        ("jpg", False),
        ("a.txt", False),
        ("a.ts", False),
        ("a.jpg.part", False),
        ("nul\0.jpg", False),
    ],
)
def test_only_known_images_and_videos_are_ever_touched(key: str, expected: bool) -> None:
    assert is_media(key) is expected
