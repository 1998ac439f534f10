"""Writes the results of a log into a zip, as they come: the memory it takes does not grow with the log.

    log.csv                     the rows, cleaned: UTF-8, English headings, ISO-8601 times, `-` for nobody left empty
    activity_by_component.csv   events, users, first and last event of each component, most active first
    activity_by_user.csv        the same of each user
    bad_rows.csv                every row that could not be understood, with its line and why
    summary.json                `Summary`

A spreadsheet runs what looks like a formula, and the names in a log are its users' own. So each field is quoted, and
one that begins as a formula does gets an apostrophe before it (`kernel.spreadsheet`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import batched
from operator import itemgetter
from typing import IO, Any, Final, Self
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pydantic import BaseModel

from lamplighter.kernel import spreadsheet
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.spreadsheet import FORMULA
from lamplighter.uploads.headings import COLUMNS
from lamplighter.uploads.log import BATCH, BadRow, Batch

COMPRESSION: Final = 3
"""Level of deflate: a log shrinks to an eighth or less; the usual 6 takes twice the time for a sixth less."""

_SUSPICIOUS: Final = FORMULA | frozenset(" \v\f\u00a0\u3000")
"""What a value begins with that has to be looked at."""

NAMED_BAD_ROWS: Final = 100
"""Bad rows that the summary spells out; bad_rows.csv has all."""
SHOWN: Final = 2_000
"""Characters of a bad row that are kept."""

MOST_USERS: Final = 100_000
MOST_COMPONENTS: Final = 10_000
MOST_PAIRS: Final = 500_000
MOST_CHARACTERS: Final = 10_000_000
"""Different users, components, pairs of the two, and characters of names that are counted: what the memory holds."""


class TooVaried(Permanent):
    """The log names more users or components than are counted."""


class BadRowDetail(BaseModel):
    """A bad row in the summary."""

    line: int
    problem: str


class Summary(BaseModel):
    """A log in numbers."""

    rows: int = 0
    """Good ones."""
    bad_rows: int = 0
    bad_row_details: list[BadRowDetail] = []
    """The first `NAMED_BAD_ROWS`."""
    users: int = 0
    events_of_nobody: int = 0
    """Rows that name no user: what Moodle did by itself."""
    components: int = 0
    first_time: str | None = None
    """Local times of whoever exported the log: it does not say its zone."""
    last_time: str | None = None
    encoding: str = ""
    delimiter: str = ""
    replaced_characters: int = 0
    """Bytes that are no text in the encoding; U+FFFD stands for them."""


class _Activity:
    """Events, first and last time by name."""

    def __init__(self, kind: str, most: int) -> None:
        self._kind = kind
        self._most = most
        self._characters = 0
        self.events: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.last: dict[str, str] = {}

    def add(self, names: Sequence[str], times: Sequence[str]) -> None:
        self.events.update(names)
        for name, time in {*zip(names, times, strict=True)}:
            if name not in self.first:
                self._characters += len(name)
                self.first[name] = self.last[name] = time
            elif time < self.first[name]:
                self.first[name] = time
            elif time > self.last[name]:
                self.last[name] = time
        if len(self.events) > self._most:
            raise TooVaried(f"The log names more than {self._most} {self._kind}, which is more than are counted.")
        if self._characters > MOST_CHARACTERS:
            raise TooVaried(f"The names of {self._kind} have over {MOST_CHARACTERS} characters: is this column names?")

    def ranked(self) -> Iterator[tuple[str, int, str, str]]:
        """Name, events, first and last time, most events first."""
        for name in sorted(self.events, key=lambda name: (-self.events[name], name)):
            yield name, self.events[name], self.first[name], self.last[name]


class Results:
    """The zip, written to `out`, which need not be able to seek; leaving the context ends it.

    Args:
        out: where the bytes go.
        at: the time that the zip's files bear.
    """

    def __init__(self, out: io.RawIOBase, *, at: datetime) -> None:
        self._at = at
        self._users = _Activity("users", MOST_USERS)
        self._components = _Activity("components", MOST_COMPONENTS)
        self._users_of: dict[str, set[str]] = {}
        self._pairs = 0
        self.rows = 0
        self.bad_rows = 0
        self._bad_row_details: list[BadRowDetail] = []
        with ExitStack() as ending:
            self._zip = ending.enter_context(ZipFile(out, "w", ZIP_DEFLATED, compresslevel=COMPRESSION))
            self._log = ending.enter_context(self._zip.open(self._entry("log.csv"), "w", force_zip64=True))
            # Entries come one after the other, and log.csv is open till the end; compressed, bad rows fit the disk.
            self._bad_file = ending.enter_context(tempfile.TemporaryFile())
            self._bad = ending.enter_context(gzip.open(self._bad_file, "wb", compresslevel=1))
            self._ending = ending.pop_all()
        self._write(self._log, [COLUMNS])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def add(self, batch: Batch) -> None:
        """Write and count some rows.

        Raises:
            TooVaried: more users or components than are counted.
        """
        if batch:
            times, *others = batch.columns
            columns = [times, *map(_harmless, others)]
            users, components = columns[1], columns[4]
            self._users.add(users, times)
            self._components.add(components, times)
            for component, user in {*zip(components, users, strict=True)}:
                known = self._users_of.setdefault(component, set())
                if user and user not in known:
                    known.add(user)
                    self._pairs += 1
            if self._pairs > MOST_PAIRS:
                raise TooVaried(f"The log has more than {MOST_PAIRS} pairs of user and component: split it.")
            self._log.write(_csv(columns))
            self.rows += len(batch)
        if batch.bad:
            self._add_bad(batch.bad)

    def _add_bad(self, bad: Sequence[BadRow]) -> None:
        if not self.bad_rows:
            self._write(self._bad, [("Line", "Problem", "Row")])
        self.bad_rows += len(bad)
        for row in bad[: NAMED_BAD_ROWS - len(self._bad_row_details)]:
            self._bad_row_details.append(BadRowDetail(line=row.line, problem=row.problem))
        self._write(self._bad, ((row.line, row.problem, harmless(row.content[:SHOWN])) for row in bad))

    def summary(self, **values: Any) -> Summary:
        """What was added, in numbers; `values` are those of `Summary` that are not counted here."""
        return Summary(
            rows=self.rows,
            bad_rows=self.bad_rows,
            bad_row_details=self._bad_row_details,
            users=len(self._users.events.keys() - {""}),
            events_of_nobody=self._users.events[""],
            components=len(self._components.events),
            first_time=min(self._components.first.values(), default=None),
            last_time=max(self._components.last.values(), default=None),
            **values,
        )

    def finish(self, summary: Summary) -> None:
        """Write what is known at the end."""
        self._log.close()
        self._write_table(
            "activity_by_component.csv",
            ("Component", "Events", "Users", "First event", "Last event"),
            ((name, events, len(self._users_of[name]), *span) for name, events, *span in self._components.ranked()),
        )
        self._write_table(
            "activity_by_user.csv",
            ("User full name", "Events", "First event", "Last event"),
            (row for row in self._users.ranked() if row[0]),
        )
        if self.bad_rows:
            self._bad.close()
            self._bad_file.seek(0)
            entry = self._entry("bad_rows.csv")
            with self._zip.open(entry, "w", force_zip64=True) as out, gzip.open(self._bad_file) as bad:
                shutil.copyfileobj(bad, out)
        self._zip.writestr(self._entry("summary.json"), json.dumps(summary.model_dump(mode="json"), indent=2))

    def _entry(self, name: str) -> ZipInfo:
        entry = ZipInfo(name, date_time=self._at.timetuple()[:6])
        entry.compress_type = ZIP_DEFLATED
        return entry

    def _write_table(self, name: str, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
        with self._zip.open(self._entry(name), "w", force_zip64=True) as entry:
            self._write(entry, [header])
            for some in batched(rows, BATCH, strict=False):
                self._write(entry, some)

    @staticmethod
    def _write(entry: IO[bytes] | gzip.GzipFile, rows: Iterable[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
        entry.write(text.getvalue().encode("utf-8", "replace"))


_FIRST: Final = itemgetter(slice(1))


def _harmless(column: Sequence[str]) -> Sequence[str]:
    """The values as `harmless` makes them; most columns of most batches need nothing."""
    if _SUSPICIOUS.isdisjoint(map(_FIRST, column)):
        return column
    made = {value: harmless(value) for value in {*column}}
    return [made[value] for value in column]


def harmless(value: str) -> str:
    """A value of which no spreadsheet makes a formula; Moodle's `-`, which stands for none, is left empty."""
    return "" if value == "-" else spreadsheet.harmless(value)


def _csv(columns: Sequence[Sequence[str]]) -> bytes:
    """Rows of text, every field quoted, as csv.writer writes them at a third of the speed."""
    quoted = [
        [value.replace('"', '""') for value in column] if '"' in "".join(column) else column for column in columns
    ]
    lines = map('","'.join, zip(*quoted, strict=True))
    return ('"' + '"\r\n"'.join(lines) + '"\r\n').encode("utf-8", "replace")
