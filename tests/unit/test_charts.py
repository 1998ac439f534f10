"""The charts' geometry, read back from the SVG; and that whatever they show is only text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.charts import (
    BOTTOM,
    LABEL,
    LEFT,
    LINE_HEIGHT,
    LINE_WIDTH,
    RIGHT,
    TOP,
    VALUE,
    WIDTH,
    Bar,
    bars,
    line,
    tick_step,
)
from lamplighter.kernel.markup import Markup, join, tag

SVG = "{http://www.w3.org/2000/svg}"
START = datetime(2026, 8, 24, tzinfo=UTC)
DAY = timedelta(days=1)


def money(value: float) -> str:
    return f"${value:g}"


def drawn(*values: float) -> ET.Element:
    """A bar chart of these values, parsed."""
    return ET.fromstring(bars("By kind", [Bar(label=f"kind {v}", value=v, text=money(v)) for v in values]))


def points(*values: float, step: timedelta = DAY) -> list[tuple[float, float]]:
    """Where a line of these values, a step apart, goes through."""
    chart = ET.fromstring(line("Over time", [(START + n * step, v) for n, v in enumerate(values)], money))
    [path] = chart.findall(f"{SVG}polyline")
    pairs = [pair.split(",") for pair in path.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_bars_are_as_long_as_their_values_are_large() -> None:
    rectangles = drawn(40, 20, 10, 0).findall(f".//{SVG}rect")
    room = WIDTH - LABEL - VALUE
    assert [float(each.attrib["width"]) for each in rectangles] == [room, room / 2, room / 4, 1]
    assert {each.attrib["x"] for each in rectangles} == {str(LABEL)}
    tops = [float(each.attrib["y"]) for each in rectangles]
    assert tops == sorted(tops) and len(set(tops)) == 4


def test_bars_of_nothing_are_still_a_chart() -> None:
    assert drawn().findall(f".//{SVG}rect") == []
    assert [each.attrib["width"] for each in drawn(0, 0).findall(f".//{SVG}rect")] == ["1.0", "1.0"]


def test_a_line_goes_from_edge_to_edge_and_from_the_floor_up() -> None:
    found = points(0, 50, 100)
    assert [x for x, _ in found] == [LEFT, (LEFT + LINE_WIDTH - RIGHT) / 2, LINE_WIDTH - RIGHT]
    assert found[0][1] == LINE_HEIGHT - BOTTOM
    assert found[2][1] == TOP
    assert found[1][1] == pytest.approx((found[0][1] + found[2][1]) / 2, abs=0.1)


def test_moments_are_as_far_apart_as_they_were() -> None:
    chart = line("Over time", [(START, 1), (START + DAY, 1), (START + 4 * DAY, 1)], money)
    [path] = ET.fromstring(chart).findall(f"{SVG}polyline")
    x = [float(pair.split(",")[0]) for pair in path.attrib["points"].split()]
    assert (x[2] - x[0]) == pytest.approx(4 * (x[1] - x[0]), abs=0.5)


@pytest.mark.parametrize("value", [0, 5])
def test_one_point_alone_is_a_dot(value: float) -> None:
    [(x, y)] = points(value)
    assert x == LINE_WIDTH - RIGHT
    assert TOP <= y <= LINE_HEIGHT - BOTTOM


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30))
def test_a_line_stays_inside_whatever_it_shows(values: list[float]) -> None:
    for x, y in points(*values):
        assert LEFT - 0.1 <= x <= LINE_WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= y <= LINE_HEIGHT - BOTTOM + 0.1


@pytest.mark.parametrize(
    ("highest", "step"), [(0, 1), (1, 0.5), (4, 1), (9, 5), (100, 50), (11_441, 5000), (0.03, 0.01)]
)
def test_steps_are_round(highest: float, step: float) -> None:
    assert tick_step(highest) == pytest.approx(step)


@given(st.floats(1e-3, 1e12))
def test_there_are_few_steps_and_more_than_one(highest: float) -> None:
    assert 1.5 < highest / tick_step(highest) <= 4.001


@pytest.mark.parametrize(
    ("days", "dates"),
    [
        (0, ["24 Aug 00:00"]),
        (0.25, ["24 Aug 00:00", "24 Aug 06:00"]),
        (1, ["24 Aug", "25 Aug"]),
        (2, ["24 Aug", "25 Aug", "26 Aug"]),
        (90, ["24 Aug", "15 Sep", "08 Oct", "30 Oct", "22 Nov"]),
    ],
)
def test_the_time_axis_names_few_days_and_none_twice(days: float, dates: list[str]) -> None:
    chart = ET.fromstring(line("Over time", [(START, 1), (START + days * DAY, 2)], money))
    labels = [each.text for each in chart.findall(f"{SVG}text") if each.text and not each.text.startswith("$")]
    assert labels == dates


def test_a_chart_says_in_words_what_it_shows() -> None:
    chart = drawn(40, 20)
    assert chart.attrib["role"] == "img"
    assert chart.attrib["aria-label"] == "By kind. kind 40: $40; kind 20: $20"
    [title] = chart.findall(f"{SVG}title")
    assert title.text == "By kind"
    over = ET.fromstring(line("Over time", [(START, 1), (START + DAY, 2)], money))
    assert over.attrib["aria-label"] == "Over time. From $1 on 24 August 2026 to $2 on 25 August 2026."


HOSTILE = "\"><script>alert(1)</script>&'{}"


def test_whatever_a_chart_shows_is_text() -> None:
    chart = ET.fromstring(bars(HOSTILE, [Bar(label=HOSTILE, value=1, text=HOSTILE)]))
    assert {each.tag.removeprefix(SVG) for each in chart.iter()} == {"svg", "title", "desc", "g", "text", "rect"}
    assert f"{HOSTILE}: {HOSTILE}" in [each.text for each in chart.iter(f"{SVG}title")]


def test_markup_escapes_all_but_markup() -> None:
    assert tag("td", "<b>", Markup("<i></i>"), 3, class_="a b", aria_label=HOSTILE, title=None) == (
        '<td class="a b" aria-label="&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#x27;{}">'
        "&lt;b&gt;<i></i>3</td>"
    )
    assert join("a", Markup("<br>"), "<") == "a<br>&lt;"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
