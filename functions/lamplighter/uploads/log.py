"""Reads a Moodle course log from blocks of bytes: finds its encoding, delimiter and columns, and gives batches of rows.

A file may be far larger than the memory. What its beginning does not tell (is text that is pure ASCII so far UTF-8 or
cp1252? is 12/03/24 in March?) is guessed, and a guess that proves wrong raises `Misread`: the reader begins again.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from lamplighter.uploads import headings
from lamplighter.uploads.headings import NotALog
from lamplighter.uploads.times import Misread, Order, Times

BATCH: Final = 300
"""Rows of a batch: enough that the work is done by whole columns, few enough to stay in the processor's cache."""

BATCH_TEXT: Final = 1 << 20
"""Characters after which a batch is closed, however few its rows."""

STEP: Final = 20
"""Rows that are read before the text of a batch is measured."""

LONGEST_LINE: Final = 1 << 20
"""Characters after which a line is cut; nothing of a log comes near, and without an end it would fill the memory."""

SAMPLE: Final = 1 << 16
"""Bytes of the beginning that the encoding is told by."""

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16-be"),
)
_FALLBACK: Final = "cp1252"
"""What a browser takes Latin-1 for, and what it is a part of (WHATWG, "Encoding")."""

_DELIMITERS: Final = ",;\t"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that could not be understood."""

    line: int
    """In which it begins, from 1."""
    problem: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some rows of a log, by columns: nine tuples of the same length, in the order of `headings.COLUMNS`."""

    columns: tuple[Sequence[str], ...]
    """Times are in ISO-8601."""
    bad: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0])


class Log:
    """A log as it is read.

    Args:
        blocks: the file's bytes, in order; none is empty.
        encoding: a codec, where an earlier reading has told that its guess was wrong.
        order: how dates are written, likewise.

    Raises:
        NotALog: it has not the columns of one, or is no text.
    """

    def __init__(self, blocks: Iterable[bytes], *, encoding: str | None = None, order: Order | None = None) -> None:
        blocks = iter(blocks)
        first = next(blocks, b"")
        if not first:
            raise NotALog("not a Moodle course log: the file is empty.")
        if first.startswith(b"PK\x03\x04"):
            raise NotALog("not a Moodle course log: this is a zip or Excel file; export the log as CSV.")
        self.encoding, codec, mark = _encoding_of(first[:SAMPLE])
        if encoding:
            self.encoding = codec = encoding
        self._text = _Text(chain([first[len(mark) :]], blocks), codec, sure=bool(mark or encoding))
        lines = chain.from_iterable(self._text)
        self._line = 0
        heading_line = self._first_line(lines)
        self.delimiter = max(_DELIMITERS, key=lambda one: headings.recognised(_split(heading_line, one)))
        self.header = headings.read(_split(heading_line, self.delimiter))
        orders: tuple[Order, Order] = ("ymd", "dmy") if self.header.year_first else ("dmy", "mdy")
        self._times = Times(order, None) if order else Times(*orders)
        self._reader = csv.reader(lines, delimiter=self.delimiter)

    @property
    def replaced(self) -> int:
        """Characters so far that the encoding does not have, and that were replaced by U+FFFD."""
        return self._text.replaced

    def __iter__(self) -> Iterator[Batch]:
        """The rows, in batches.

        Raises:
            Misread: a guess about the file has proved wrong.
        """
        above = self._line  # the lines before the reader's first
        while True:
            begun = above + self._reader.line_num
            rows: list[list[str]] = []
            cut = None
            enough = self._text.characters + BATCH_TEXT
            try:
                while len(rows) < BATCH and self._text.characters < enough:
                    before = len(rows)
                    rows.extend(islice(self._reader, min(STEP, BATCH - before)))
                    if len(rows) == before:
                        break
            except csv.Error as error:  # a quote that opens and does not close; the rows before it are in `rows`
                ended = above + self._reader.line_num
                cut = f"{error}; the rows up to line {ended} belong to it, perhaps because of a stray quote"
            if not rows and cut is None:
                return
            yield self._batch(rows, begun, cut)

    def _first_line(self, lines: Iterator[str]) -> str:
        """The headings: the first line that is not empty, nor Excel's `sep=;`."""
        for line in lines:
            self._line += 1
            if line.strip() and not line.lower().startswith("sep="):
                return line
        raise NotALog("not a Moodle course log: the file has no line with text.")

    def _batch(self, rows: list[list[str]], begun: int, cut: str | None) -> Batch:
        if cut is None and not self._text.nul and set(map(len, rows)) == {self.header.width}:
            columns = self._columns(rows)
            if "" not in columns[0]:
                return Batch(columns=columns)
        good, bad, following = self._judged(rows, begun)
        if cut is not None:
            bad.append(BadRow(line=following, problem=cut, content=""))
        return Batch(columns=self._columns(good), bad=tuple(bad))

    def _columns(self, rows: list[list[str]]) -> tuple[Sequence[str], ...]:
        if not rows:
            return ((),) * len(headings.COLUMNS)
        fields = tuple(zip(*rows, strict=True))
        lacking = ("",) * len(rows)
        time, *others = (lacking if place is None else fields[place] for place in self.header.positions)
        return self._times.read(time), *others

    def _judged(self, rows: list[list[str]], begun: int) -> tuple[list[list[str]], list[BadRow], int]:
        """The good rows, the bad ones, and the line after the last."""
        place = self.header.positions[0]
        assert place is not None
        times = iter(self._times.read([row[place] for row in rows if len(row) == self.header.width]))
        good, bad = [], []
        line = begun + 1
        for row in rows:
            problem = None
            if not row:
                pass
            elif len(row) != self.header.width:
                problem = f"{len(row)} fields, not {self.header.width}"
            elif not next(times):
                problem = f"the time {row[place]!r} cannot be understood"
            elif any("\0" in field for field in row):
                problem = "a NUL character"
            else:
                good.append(row)
            if problem:
                bad.append(BadRow(line=line, problem=problem, content=self.delimiter.join(row)))
            line += 1 + sum(field.count("\n") for field in row)
        return good, bad, line


class _Text:
    """The lines of an encoded file, a list for each of its blocks; every kind of line end becomes a line feed.

    Args:
        blocks: bytes; an empty one ends the file.
        codec: what decodes them; where it cannot, U+FFFD takes the place.
        sure: whether nothing else may be tried, even if all was ASCII before the first byte that is not UTF-8.
    """

    def __init__(self, blocks: Iterable[bytes], codec: str, *, sure: bool) -> None:
        self._blocks = blocks
        self._decoder = codecs.getincrementaldecoder(codec)()
        self._ascii_so_far = not sure
        self.characters = 0
        """Given out so far."""
        self.nul = False
        """Whether there was a NUL so far."""
        self.replaced = 0

    def __iter__(self) -> Iterator[list[str]]:
        unified = io.IncrementalNewlineDecoder(self._decoder, translate=True)
        rest = ""
        for block in chain(self._blocks, [b""]):
            text = rest + self._decoded(unified, block)
            end = text.rfind("\n") + 1
            if not block or len(text) - end > LONGEST_LINE:
                end = len(text)
            rest = text[end:]
            self.characters += end
            yield io.StringIO(text[:end]).readlines()

    def _decoded(self, unified: io.IncrementalNewlineDecoder, block: bytes) -> str:
        try:
            text = unified.decode(block, final=not block)
        except UnicodeDecodeError:
            if self._ascii_so_far:
                raise Misread(encoding=_FALLBACK) from None
            self._decoder.errors = "replace"
            text = unified.decode(block, final=not block)
        if self._decoder.errors == "replace":
            self.replaced += text.count("\ufffd")
        self._ascii_so_far = self._ascii_so_far and text.isascii()
        self.nul = self.nul or "\0" in text
        return text


def _encoding_of(sample: bytes) -> tuple[str, str, bytes]:
    """The encoding's name, its codec, and the mark that the file begins with."""
    for mark, name, codec in _MARKS:
        if sample.startswith(mark):
            return name, codec, mark
    half = len(sample) // 2
    if sample[1::2].count(0) > half * 0.4:
        return "utf-16-le", "utf-16-le", b""
    if sample[0::2].count(0) > half * 0.4:
        return "utf-16-be", "utf-16-be", b""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # its last character may be cut
    except UnicodeDecodeError:
        return _FALLBACK, _FALLBACK, b""
    return "utf-8", "utf-8", b""


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])
