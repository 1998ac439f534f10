"""A course log is known by its headings, in any language and order (REQUIREMENTS D1)."""

from __future__ import annotations

import pytest

from lamplighter.uploads import headings
from lamplighter.uploads.headings import COLUMNS, NotALog

LANGUAGES = [line.split("|") for line in headings._HEADINGS.strip().splitlines()]


@pytest.mark.parametrize("row", LANGUAGES, ids=lambda row: row[0] + "-" + row[1])
def test_every_language_is_recognised(row: list[str]) -> None:
    assert headings.read(row).positions == tuple(range(9))
    assert headings.recognised(row) == 9


def test_no_heading_means_two_columns() -> None:
    meanings = {
        (headings.normalised(heading), column)
        for row in LANGUAGES
        for column, heading in zip(COLUMNS, row, strict=True)
    }
    names = [name for name, _ in meanings]
    assert len(names) == len(set(names))


def test_order_case_apostrophes_and_other_columns_do_not_matter() -> None:
    row = [
        "Heure ",
        "COURSE",
        "Nom complet de l\u2019utilisateur",
        "nom de l\u2019événement",
        "Composant",
        "Contexte de l'événement",
    ]
    found = headings.read(row)
    assert found.width == 6
    assert found.positions == (0, 2, None, 5, 4, 3, None, None, None)


def test_of_two_alike_the_first_counts() -> None:
    assert headings.read([*COLUMNS, "Component"]).positions[4] == 4


def test_what_is_no_log_is_told_what_it_lacks() -> None:
    with pytest.raises(NotALog) as refusal:
        headings.read(["Time", "User full name", "Event name", "Grade"])
    assert str(refusal.value) == (
        "not a Moodle course log: no column is Event context or Component; "
        "the columns are 'Time', 'User full name', 'Event name', 'Grade'."
    )


def test_a_refusal_stays_short() -> None:
    with pytest.raises(NotALog) as refusal:
        headings.read(["x" * 1_000] * 1_000)
    assert len(str(refusal.value)) < 1_200
    assert "and 988 more" in str(refusal.value)


def test_languages_that_write_the_year_first_are_known() -> None:
    assert [row[0] for row in LANGUAGES if headings.read(row).year_first] == ["Ordua", "Laikas", "時間", "시", "时间"]
