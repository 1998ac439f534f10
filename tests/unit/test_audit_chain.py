"""The audit archive's chain without AWS: its links, its numbers, its objects (REQUIREMENTS E1)."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from lamplighter.admin.audit_chain import (
    Chain,
    Contents,
    Damaged,
    Link,
    Meter,
    link_of,
    object_key,
    unpacked,
    whole_lines,
)
from tests.memory_s3 import MemoryS3

CONTENTS = Contents(rows=2, rows_sha256="a" * 64, bytes=9, sha256="b" * 64)
FIRST = Link(
    number=0,
    day="2026-08-24",
    key="audit/2026/08/2026-08-24.jsonl.gz",
    contents=CONTENTS,
    archived_at="x",
    previous=None,
)


@pytest.fixture
def chain() -> Chain:
    return Chain(MemoryS3(buckets={"archive": {}}).client(), "archive")


def test_a_link_reads_back_as_it_was_written() -> None:
    assert link_of(FIRST.body, 0) == FIRST


STORED = b"""{
 "number": 0,
 "day": "2026-08-24",
 "key": "audit/2026/08/2026-08-24.jsonl.gz",
 "contents": {
  "rows": 2,
  "rows_sha256": "%s",
  "bytes": 9,
  "sha256": "%s"
 },
 "archived_at": "x",
 "previous": null
}
""" % (b"a" * 64, b"b" * 64)


def test_a_link_that_is_in_an_archive_already_is_still_one() -> None:
    """Were it spelled otherwise by now, every archive of before would count as damaged."""
    assert link_of(STORED, 0) == FIRST


@pytest.mark.parametrize(
    "body",
    [
        FIRST.body.replace(b"\n", b" "),
        FIRST.body + b"\n",
        replace(FIRST, number=1).body,
        json.dumps({"number": 0}).encode(),
        b"nothing",
    ],
    ids=["spelled otherwise", "longer", "of another number", "half", "no JSON"],
)
def test_a_link_is_what_was_written_or_it_is_damaged(body: bytes) -> None:
    with pytest.raises(Damaged, match="Link 0 of the audit archive"):
        link_of(body, 0)


def test_a_number_is_claimed_once(chain: Chain) -> None:
    """Two runs that append at once: one of them has to look again."""
    other = replace(FIRST, day="2026-08-25")
    assert chain.append(FIRST)
    assert not chain.append(other)
    assert (chain.head(), chain.numbers()) == (FIRST, [0])
    assert chain.append(FIRST), "its own, whose answer was lost"


def test_a_link_names_the_one_before_it(chain: Chain) -> None:
    second = replace(FIRST, number=1, previous=FIRST.sha256)
    assert chain.append(FIRST) and chain.append(second)
    head = chain.head()
    assert head is not None and head.previous == FIRST.sha256
    assert second.sha256 != replace(second, previous=None).sha256


LINES = b'{"id": 1}\n{"id": 2}\n'
WHOLE = gzip.compress(LINES, mtime=0)


def read(data: bytes, meter: Meter | None = None) -> bytes:
    return b"".join(whole_lines(unpacked([data], meter or Meter(), "a day"), "a day"))


def test_an_object_is_measured_as_it_is_read() -> None:
    meter = Meter()
    assert read(WHOLE, meter) == LINES
    assert (meter.rows, meter.bytes) == (2, len(WHOLE))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (WHOLE[:-1], "ends too soon"),
        (WHOLE[:12], "ends too soon"),
        (WHOLE + b"more", "something after its end"),
        (WHOLE + WHOLE, "something after its end"),
        (b"no gzip", "is damaged: Error"),
        (gzip.compress(LINES[:-1], mtime=0), "its last line does not end"),
    ],
)
def test_a_damaged_object_is_told(data: bytes, said: str) -> None:
    with pytest.raises(Damaged, match=f"a day is damaged: .*{said}|a day {said}"):
        read(data)


def test_parts_of_a_day_have_keys_of_their_own() -> None:
    from datetime import date

    keys = [object_key(date(2026, 8, 24), part) for part in range(3)]
    assert keys == [f"audit/2026/08/2026-08-24.{part}jsonl.gz" for part in ("", "1.", "2.")]
