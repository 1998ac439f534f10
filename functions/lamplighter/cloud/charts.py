"""Charts as inline SVG: bars, and a line over time. Pure; colours are those of the page's style sheet.

Each has a title and a description that says all of its values, for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from lamplighter.kernel.markup import Markup, join, tag

WIDTH: Final = 460
ROW: Final = 26
LABEL: Final = 160
"""Of a bar chart, in units of its view box: how wide it is, how high a row, how wide the labels' column."""
VALUE: Final = 90
"""How much is left for the values, right of the longest bar."""
LABEL_LENGTH: Final = 21
"""Characters of a label that fit; the whole is its tooltip."""

LINE_WIDTH: Final = 960
LINE_HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 14, 30
"""A line chart's margins, which hold the axes' labels."""
TICKS: Final = 4
"""About how many lines a line chart's value axis has."""
NOTHING: Final = 1e-6
"""What is less is nothing to a line chart."""
DATES: Final = 5
"""How many dates its time axis has, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: how long it is, what stands beside it, and its class in the style sheet."""

    label: str
    value: float
    text: str
    kind: str = ""


def bars(title: str, shown: Sequence[Bar]) -> Markup:
    """Horizontal bars, in the order given. Values are 0 or more."""
    longest = max((bar.value for bar in shown), default=0) or 1
    room = WIDTH - LABEL - VALUE
    rows = []
    for number, bar in enumerate(shown):
        top, length = number * ROW, room * bar.value / longest
        rows.append(
            tag(
                "g",
                tag("title", f"{bar.label}: {bar.text}"),
                tag("text", shortened(bar.label), x=LABEL - 8, y=top + 17, text_anchor="end", class_="label"),
                tag(
                    "rect",
                    x=LABEL,
                    y=top + 4,
                    width=f"{max(length, 1):.1f}",
                    height=ROW - 8,
                    rx=2,
                    class_=f"bar {bar.kind}".strip(),
                ),
                tag("text", bar.text, x=f"{LABEL + length + 6:.1f}", y=top + 17, class_="value"),
            )
        )
    told = "; ".join(f"{bar.label}: {bar.text}" for bar in shown)
    return _chart(title, told, WIDTH, max(len(shown), 1) * ROW, *rows)


def line(title: str, points: Sequence[tuple[datetime, float]], text: Callable[[float], str]) -> Markup:
    """Values over time, oldest first, from 0 up; `text` says a value. One point alone is a dot.

    Raises:
        ValueError: there is no point.
    """
    (start, _), (end, latest) = points[0], points[-1]
    step = tick_step(max(value for _, value in points))
    highest = step * math.ceil(max(*(value for _, value in points), step) / step)
    span = (end - start) or timedelta(seconds=1)

    def x(at: datetime) -> float:
        return LEFT + (LINE_WIDTH - LEFT - RIGHT) * ((at - start) / span if end > start else 1)

    def y(value: float) -> float:
        return LINE_HEIGHT - BOTTOM - (LINE_HEIGHT - TOP - BOTTOM) * value / highest

    floor = y(0)
    path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
    grid = [
        join(
            tag("line", x1=LEFT, x2=LINE_WIDTH - RIGHT, y1=f"{y(value):.1f}", y2=f"{y(value):.1f}", class_="grid"),
            tag("text", text(value), x=LEFT - 8, y=f"{y(value) + 4:.1f}", text_anchor="end", class_="label"),
        )
        for value in (step * number for number in range(round(highest / step) + 1))
    ]
    dates = [
        tag("text", date, x=f"{x(at):.1f}", y=LINE_HEIGHT - 8, text_anchor=anchor, class_="label")
        for at, anchor, date in _dates(start, end)
    ]
    return _chart(
        title,
        f"From {text(points[0][1])} on {start:%d %B %Y} to {text(latest)} on {end:%d %B %Y}.",
        LINE_WIDTH,
        LINE_HEIGHT,
        *grid,
        *dates,
        tag("polygon", points=f"{x(start):.1f},{floor:.1f} {path} {x(end):.1f},{floor:.1f}", class_="area"),
        tag("polyline", points=path, class_="line"),
        tag("circle", tag("title", text(latest)), cx=f"{x(end):.1f}", cy=f"{y(latest):.1f}", r=4, class_="dot"),
    )


def tick_step(highest: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides 0 to `highest` into about `TICKS` parts."""
    if highest < NOTHING:
        return 1
    rough = highest / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def shortened(label: str) -> str:
    """As much of a label as fits."""
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _dates(start: datetime, end: datetime) -> list[tuple[datetime, str, str]]:
    """What the time axis names: when, where its text is anchored, and the text; no day twice."""
    days = (end.date() - start.date()).days
    if days < 1:
        hours = [(start, "start", f"{start:%d %b %H:%M}"), (end, "end", f"{end:%d %b %H:%M}")]
        return hours if end > start else hours[1:]
    parts = min(DATES - 1, days)
    inner = [(start + (end - start) * part / parts, "middle") for part in range(1, parts)]
    return [(at, anchor, f"{at:%d %b}") for at, anchor in ((start, "start"), *inner, (end, "end"))]


def _chart(title: str, told: str, width: int, height: int, *content: Markup) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", told),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. {told}",
        class_="chart",
    )
