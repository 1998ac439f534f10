"""The zip of results: its tables, and that no spreadsheet runs what is in them (REQUIREMENTS D1)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zipfile import ZipFile

import pytest

from lamplighter.uploads import results as results_module
from lamplighter.uploads.headings import COLUMNS
from lamplighter.uploads.log import BadRow, Batch
from lamplighter.uploads.results import Results, Summary, TooVaried, harmless

AT = datetime(2026, 1, 31, 3, tzinfo=UTC)


class Unseekable(io.RawIOBase):
    """What a multipart upload is to the zip."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def row(day: int, user: str, component: str = "Quiz", name: str = "Viewed") -> tuple[str, ...]:
    return (f"2024-03-{day:02}T10:00:00", user, "-", "Course: 1", component, name, 'He said "1,2"', "web", "10.0.0.1")


def batch(*rows: tuple[str, ...], bad: Sequence[BadRow] = ()) -> Batch:
    return Batch(columns=tuple(zip(*rows, strict=True)) if rows else ((),) * 9, bad=tuple(bad))


def written(*batches: Batch) -> tuple[Summary, dict[str, list[list[str]]], ZipFile]:
    out = Unseekable()
    with Results(out, at=AT) as results:
        for one in batches:
            results.add(one)
        summary = results.summary(encoding="utf-8", delimiter=",")
        results.finish(summary)
    archive = ZipFile(io.BytesIO(bytes(out.data)))
    assert archive.testzip() is None
    tables = {
        name: list(csv.reader(io.StringIO(archive.read(name).decode(), newline="")))
        for name in archive.namelist()
        if name.endswith(".csv")
    }
    return summary, tables, archive


def test_the_tables_tell_who_did_what() -> None:
    summary, tables, archive = written(
        batch(row(3, "Zoë"), row(2, "Ana"), row(1, "Zoë", "Forum")), batch(row(4, "Ana"), row(5, "-", "System"))
    )
    assert tables["log.csv"][0] == list(COLUMNS)
    assert tables["log.csv"][1] == [*row(3, "Zoë")[:2], "", *row(3, "Zoë")[3:]]
    assert len(tables["log.csv"]) == 6
    assert tables["activity_by_component.csv"] == [
        ["Component", "Events", "Users", "First event", "Last event"],
        ["Quiz", "3", "2", "2024-03-02T10:00:00", "2024-03-04T10:00:00"],
        ["Forum", "1", "1", "2024-03-01T10:00:00", "2024-03-01T10:00:00"],
        ["System", "1", "0", "2024-03-05T10:00:00", "2024-03-05T10:00:00"],
    ]
    assert tables["activity_by_user.csv"] == [
        ["User full name", "Events", "First event", "Last event"],
        ["Ana", "2", "2024-03-02T10:00:00", "2024-03-04T10:00:00"],
        ["Zoë", "2", "2024-03-01T10:00:00", "2024-03-03T10:00:00"],
    ]
    assert json.loads(archive.read("summary.json")) == summary.model_dump(mode="json")
    assert (summary.rows, summary.bad_rows, summary.users, summary.events_of_nobody, summary.components) == (
        5,
        0,
        2,
        1,
        3,
    )
    assert (summary.first_time, summary.last_time) == ("2024-03-01T10:00:00", "2024-03-05T10:00:00")
    assert "bad_rows.csv" not in tables


def test_the_same_log_gives_the_same_zip() -> None:
    first, second = (written(batch(row(3, "Zoë"), row(2, "Ana")))[2] for _ in range(2))
    assert [(info.filename, info.CRC, info.date_time) for info in first.infolist()] == [
        (info.filename, info.CRC, info.date_time) for info in second.infolist()
    ]


FORMULAS = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u00a0=1",
    "\uff1d1",
    "\uff0d1",
    '=HYPERLINK("x")',
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_field_is_a_formula(formula: str) -> None:
    """OWASP, "CSV Injection": in every table, the names and what is bad included."""
    bad = BadRow(line=9, problem=f"the time {formula!r} cannot be understood", content=f"{formula},{formula}")
    _, tables, archive = written(batch((row(1, formula)[0], *[formula] * 8), bad=[bad]))
    fields = {field for table in tables.values() for line in table for field in line}
    assert f"'{formula}" in fields
    assert f"'{formula},{formula}" in fields
    assert not {field for field in fields if field.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20")} - {""}
    text = archive.read("log.csv").decode()
    assert all(line.startswith('"') for line in text.split("\r\n") if line and not formula.startswith(("\r", "\n")))


@pytest.mark.parametrize("value", ["", "Ana", "a=b", "1-2", "user@example.org", "''", "-"])
def test_what_is_harmless_stays(value: str) -> None:
    assert harmless(value) == ("" if value == "-" else value)


def test_bad_rows_are_all_listed_and_some_are_named() -> None:
    bad = [BadRow(line=line, problem="5 fields, not 9", content="x" * 5_000) for line in range(2, 252)]
    summary, tables, _ = written(batch(row(1, "Ana"), bad=bad[:50]), batch(bad=bad[50:]))
    assert summary.bad_rows == 250
    assert [detail.line for detail in summary.bad_row_details] == list(range(2, 102))
    assert [line[0] for line in tables["bad_rows.csv"]] == ["Line", *map(str, range(2, 252))]
    assert tables["bad_rows.csv"][1] == ["2", "5 fields, not 9", "x" * 2_000]


@pytest.mark.parametrize(("limit", "what"), [("MOST_USERS", "users"), ("MOST_COMPONENTS", "components")])
def test_more_than_the_memory_holds_is_refused(limit: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, limit, 2)
    with Results(Unseekable(), at=AT) as results:
        results.add(batch(row(1, "a", "a"), row(1, "b", "b")))
        with pytest.raises(TooVaried, match=f"more than 2 {what}"):
            results.add(batch(row(1, "c", "c")))


def test_names_longer_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "MOST_CHARACTERS", 10)
    with Results(Unseekable(), at=AT) as results:
        results.add(batch(row(1, "0123456789", "a"), row(1, "0123456789", "a")))
        with pytest.raises(TooVaried, match="The names of users have over 10 characters"):
            results.add(batch(row(1, "b", "a")))


def test_more_pairs_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "MOST_PAIRS", 2)
    with Results(Unseekable(), at=AT) as results, pytest.raises(TooVaried, match="more than 2 pairs"):
        results.add(batch(row(1, "a", "a"), row(1, "b", "b"), row(1, "a", "b")))
