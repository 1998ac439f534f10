"""Reading a course log: encodings, delimiters, bad rows (REQUIREMENTS D1)."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.uploads import log as log_module
from lamplighter.uploads.headings import COLUMNS, NotALog
from lamplighter.uploads.log import BadRow, Log
from lamplighter.uploads.times import Misread

ROW = ("12/03/24, 14:05", "Zoë Pérez", "-", "Course: 1", "System", "Course viewed", "The user, 'x'", "web", "10.0.0.1")


def text_of(*rows: Sequence[str], header: Sequence[str] = COLUMNS, delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([header, *rows])
    return out.getvalue()


def blocks(data: bytes, size: int = 7) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def rows_of(log: Log) -> list[tuple[str, ...]]:
    return [row for batch in log for row in zip(*batch.columns, strict=True)]


def bad_of(log: Log) -> list[BadRow]:
    return [bad for batch in log for bad in batch.bad]


def read(text: str | bytes) -> Log:
    return Log(blocks(text.encode() if isinstance(text, str) else text))


ENCODINGS = {
    "utf-8": ("utf-8", b"", "utf-8"),
    "utf-8-sig": ("utf-8", codecs.BOM_UTF8, "utf-8-sig"),
    "utf-16-le with its mark": ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16-le"),
    "utf-16-be with its mark": ("utf-16-be", codecs.BOM_UTF16_BE, "utf-16-be"),
    "utf-16-le": ("utf-16-le", b"", "utf-16-le"),
    "utf-16-be": ("utf-16-be", b"", "utf-16-be"),
    "Latin-1": ("latin-1", b"", "cp1252"),
}


@pytest.mark.parametrize(("codec", "mark", "name"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_encodings_are_detected(codec: str, mark: bytes, name: str) -> None:
    data = mark + text_of(ROW, ROW).encode(codec)
    log = Log(blocks(data, 1000))
    assert rows_of(log) == [("2024-03-12T14:05:00", *ROW[1:])] * 2
    assert (log.encoding, log.replaced) == (name, 0)


def test_characters_may_lie_across_blocks() -> None:
    data = text_of(ROW, ROW).encode()
    log = Log(iter([data[:40], *blocks(data[40:], 1)]))
    assert [row[1] for row in rows_of(log)] == ["Zoë Pérez"] * 2


def test_latin_1_is_noticed_however_late_it_shows() -> None:
    plain = (*ROW[:1], "Ana", *ROW[2:])
    data = text_of(*[plain] * 2_000, ROW).encode("latin-1")
    log = Log(blocks(data, 4096))
    assert log.encoding == "utf-8"
    with pytest.raises(Misread) as misread:
        rows_of(log)
    assert misread.value.encoding == "cp1252"
    again = Log(blocks(data, 4096), encoding="cp1252")
    assert rows_of(again)[-1][1] == "Zoë Pérez"


def test_a_stray_byte_in_utf_8_is_replaced_and_counted() -> None:
    data = text_of(ROW).encode() + text_of(ROW).encode().splitlines(keepends=True)[1].replace(
        b"Course: 1", b"Course: \xff"
    )
    log = read(data)
    assert [row[3] for row in rows_of(log)] == ["Course: 1", "Course: \ufffd"]
    assert log.replaced == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_are_detected(delimiter: str) -> None:
    log = read(text_of(ROW, delimiter=delimiter))
    assert log.delimiter == delimiter
    assert len(rows_of(log)) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_a_line(end: str) -> None:
    log = read(text_of(ROW, ("nonsense", *ROW[1:]), ROW).replace("\r\n", end))
    assert [(len(batch), [bad.line for bad in batch.bad]) for batch in log] == [(2, [3])]


def test_blank_lines_and_the_line_of_excel_are_passed_over() -> None:
    log = read("\r\nsep=;\r\n" + text_of(ROW, (), ROW, delimiter=";"))
    assert len(rows_of(log)) == 2
    assert not bad_of(read("\r\n" + text_of(ROW, (), ROW)))


def test_bad_rows_are_told_by_their_line() -> None:
    two_lines = (*ROW[:6], "two\nlines", *ROW[7:])
    log = read(text_of(two_lines, ROW[:5], ("soon", *ROW[1:]), (*ROW[:1], "a\0b", *ROW[2:]), ROW))
    (batch,) = log
    assert len(batch) == 2
    assert [(bad.line, bad.problem) for bad in batch.bad] == [
        (4, "5 fields, not 9"),
        (5, "the time 'soon' cannot be understood"),
        (6, "a NUL character"),
    ]
    assert batch.bad[0].content == ",".join(ROW[:5])


def test_lines_are_counted_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "BATCH", 2)
    log = read(text_of(ROW, ROW, ROW, ("soon", *ROW[1:]), ROW, ("later", *ROW[1:])))
    assert [bad.line for bad in bad_of(log)] == [5, 7]


def test_a_quote_that_never_closes_is_one_bad_row() -> None:
    open_quote = '"12/03/24, 14:05,x\r\n' + ",".join(ROW[:1]) * 20_000
    log = read(text_of(ROW, ROW) + open_quote)
    (batch,) = log
    assert len(batch) == 2
    (bad,) = batch.bad
    assert bad.line == 4
    assert bad.problem.startswith("field larger than field limit (131072); the rows up to line 5 belong to it")


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LONGEST_LINE", 100)
    log = Log(blocks(text_of(ROW).encode() + b"x" * 10_000, 50))
    assert len(rows_of(log)) == 1
    log = Log(blocks(text_of(ROW).encode() + b"x" * 10_000, 50))
    assert {len(bad.content) <= 200 for bad in bad_of(log)} == {True}


def test_long_rows_make_small_batches() -> None:
    """What is in memory at a time does not depend on how long the rows are."""
    long = (*ROW[:6], "x" * 100_000, *ROW[7:])
    log = Log(blocks(text_of(*[long] * 60).encode(), 1 << 18))
    sizes = [len(batch) for batch in log]
    assert sum(sizes) == 60
    assert max(sizes) <= log_module.STEP + log_module.BATCH_TEXT // 100_000


def test_columns_that_lack_are_empty() -> None:
    log = read(text_of(("x", *ROW[:2], *ROW[3:6]), header=("Course", *COLUMNS[:2], *COLUMNS[3:6])))
    assert rows_of(log) == [("2024-03-12T14:05:00", ROW[1], "", *ROW[3:6], "", "", "")]


REFUSED = {
    "nothing": (b"", "the file is empty"),
    "blank": (b"\n\n", "no line with text"),
    "a table": (b"a,b\n1,2\n", "no column is Time or User full name or"),
    "a workbook": (b"PK\x03\x04rest", "a zip or Excel file; export the log as CSV"),
    "a picture": (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
        "not a Moodle course log: no column is Time",
    ),
}


@pytest.mark.parametrize(("data", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_log_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(NotALog, match=sentence):
        read(data)


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)


@given(st.lists(st.tuples(*[VALUES] * 8), max_size=8), st.integers(1, 300), st.sampled_from([",", ";", "\t"]))
def test_what_csv_writes_is_read_back(rows: Iterable[tuple[str, ...]], size: int, delimiter: str) -> None:
    written = [(ROW[0], *row) for row in rows]
    log = Log(blocks(text_of(*written, delimiter=delimiter).encode(), size))
    assert rows_of(log) == [("2024-03-12T14:05:00", *row[1:]) for row in written]
