"""Times of Moodle's logs, in the formats of its language packs (REQUIREMENTS D1)."""

from __future__ import annotations

from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.uploads.times import Misread, Order, Times, parse

AFTERNOON = "2024-03-12T14:05:00"

WRITTEN: dict[str, tuple[str, Order]] = {
    "en": ("12/03/24, 14:05", "dmy"),
    "en, on the screen": ("12 March 2024, 2:05 PM", "dmy"),
    "en_us": ("03/12/24, 14:05", "mdy"),
    "en_us, on the screen": ("March 12 2024, 2:05 PM", "mdy"),
    "es": ("12/03/2024 14:05", "dmy"),
    "es, on the screen": ("12 de marzo de 2024, 14:05", "dmy"),
    "es, with p. m.": ("12/03/2024 2:05 p. m.", "dmy"),
    "de": ("12.03.2024 14:05", "dmy"),
    "de, accurate": ("12. März 2024, 14:05:00", "dmy"),
    "fr": ("12 mars 24, 14:05", "dmy"),
    "it": ("12/03/2024 14:05", "dmy"),
    "pt": ("12/03/24 às 14:05", "dmy"),
    "pt, on the screen": ("12 de março de 2024 às 14:05", "dmy"),
    "pt_br, 14:05 PM": ("12 março 2024, 14:05 PM", "dmy"),
    "gl": ("12/ 03/2024, 14:05", "dmy"),
    "nl, on the screen": ("12 maart 2024, 14:05", "dmy"),
    "pl": ("12/03/2024, 14:05", "dmy"),
    "ru": ("12 марта 2024, 14:05", "dmy"),
    "uk": ("12.03.24, 14:05", "dmy"),
    "ar": ("12/03/24، 14:05", "dmy"),
    "sv": ("2024-03-12 14:05", "dmy"),
    "eu": ("2024/03/12  14:05", "ymd"),
    "lt": ("24/03/12, 14:05", "ymd"),
    "ja": ("24年 03月 12日 14:05", "ymd"),
    "ko": ("2024/03/12 14:05", "ymd"),
    "zh_cn": ("2024年03月12日 14:05", "ymd"),
    "ISO-8601": ("2024-03-12T14:05:00", "dmy"),
}


@pytest.mark.parametrize(("text", "order"), WRITTEN.values(), ids=WRITTEN.keys())
def test_a_time_is_understood_in_every_language(text: str, order: Order) -> None:
    assert parse(text, order) == AFTERNOON


def test_seconds_midnight_and_noon() -> None:
    assert parse("12/03/24, 14:05:09", "dmy") == "2024-03-12T14:05:09"
    assert parse("12/03/24, 12:05 AM", "dmy") == "2024-03-12T00:05:00"
    assert parse("12/03/24, 12:05 pm", "dmy") == "2024-03-12T12:05:00"


@pytest.mark.parametrize(
    "abbreviated",
    ["12 févr. 24, 14:05", "12 feb 2024 14:05", "12 Feb 24, 14:05", "12 fev. 2024 às 14:05", "12 февр. 2024, 14:05"],
)
def test_a_month_may_be_abbreviated(abbreviated: str) -> None:
    assert parse(abbreviated, "dmy") == "2024-02-12T14:05:00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "yesterday",
        "14:05",
        "12/03/24",
        "31/02/24, 14:05",
        "12/03/24, 24:05",
        "12/03/24/1, 14:05",
        "1 jui 24, 1:00",
    ],
)
def test_what_is_no_time_is_not_guessed(text: str) -> None:
    """`jui` may be June or July."""
    assert parse(text, "dmy") is None


def test_the_day_comes_first_until_a_row_proves_otherwise() -> None:
    times = Times("dmy", "mdy")
    assert times.read(["05/03/24, 10:00"]) == ["2024-03-05T10:00:00"]
    with pytest.raises(Misread) as misread:
        times.read(["05/03/24, 10:00", "03/25/24, 10:00"])
    assert misread.value.order == "mdy"
    assert Times("mdy", None).read(["05/03/24, 10:00", "03/25/24, 10:00"]) == [
        "2024-05-03T10:00:00",
        "2024-03-25T10:00:00",
    ]


def test_once_proven_an_impossible_date_is_a_bad_one() -> None:
    times = Times("dmy", "mdy")
    assert times.read(["25/03/24, 10:00"]) == ["2024-03-25T10:00:00"]
    assert times.read(["03/25/24, 10:00"]) == [""]


@given(st.lists(st.tuples(st.sampled_from(["12/03/24", "31/02/24", "", "12 mars 24,"]), st.times(), st.booleans())))
def test_a_column_is_read_as_each_of_its_times(rows: list[tuple[str, time, bool]]) -> None:
    """Days and times that were seen before are not parsed again."""
    texts = [f"{day} {clock:%H:%M:%S}" if seconds else f"{day} {clock:%H:%M}" for day, clock, seconds in rows]
    assert Times("dmy", None).read(texts) == [parse(text, "dmy") or "" for text in texts]


def test_few_times_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamplighter.uploads.times.KEPT", 3)
    times = Times("dmy", None)
    for start in range(0, 40, 2):
        texts = [f"12/03/24 14:{minute:02}" for minute in range(start, start + 5)]
        assert times.read(texts) == [parse(text, "dmy") for text in texts]
