"""The preflight as one page for people, beginning with the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from lamplighter.kernel.markup import Markup, document, join, tag
from lamplighter.kernel.preflight import Item, Severity, Verdict

if TYPE_CHECKING:
    from lamplighter.preflight.preflight import Document, Section

ROWS: Final = 200
"""Items of each section that the page shows; the JSON document has all."""
SHOWN: Final = 4_000
"""Characters of the proposals that the page shows."""

_BADGES: Final = {Severity.BLOCKED: "critical", Severity.WARNING: "high", Severity.NOTE: "informational"}
"""The class of each severity in the style sheet."""
_MEANING: Final = {
    Verdict.READY: "Nothing stands in the way of what the settings say.",
    Verdict.WARNINGS: "What is applied works. Read the warnings before you apply more.",
    Verdict.BLOCKED: "Something that the settings apply, or that Lamplighter needs, would be refused.",
}
_ORDER: Final = (Severity.BLOCKED, Severity.WARNING, Severity.NOTE)


def render(report: Document) -> str:
    """The page."""
    body = tag(
        "body",
        _head(report),
        _verdict(report),
        *(_section(section) for section in report.sections if section.items),
        _proposals(report),
        _foot(),
    )
    return document(f"Preflight: {report.verdict}", body)


def _head(report: Document) -> Markup:
    when = report.generated_at.strftime("%d %B %Y, %H:%M UTC")
    return tag("header", tag("h1", f"Preflight: {report.verdict}"), tag("p", f"{when} · {report.job_id}"))


def _verdict(report: Document) -> Markup:
    counts = report.counts
    cards = tag(
        "div",
        *(
            tag("div", tag("div", f"{number:,}", class_="figure"), tag("p", words, class_="soft"), class_="card")
            for number, words in (
                (counts.blocked, "blocked: would be refused"),
                (counts.warnings, "warnings: fail or surprise once applied"),
                (counts.notes, "notes: what would be touched, and what it costs"),
            )
        ),
        class_="cards",
    )
    urgent = [item for section in report.sections for item in section.items if item.severity is Severity.BLOCKED]
    words = tag("p", _MEANING[report.verdict])
    if not urgent:
        return join(tag("section", words, id="verdict"), cards)
    first = tag("ul", *(tag("li", tag("b", item.name), " ", item.sentence) for item in urgent[:10]))
    more = tag("p", f"{len(urgent) - 10:,} more are below.", class_="soft") if len(urgent) > 10 else Markup("")
    return join(tag("section", words, first, more, class_="warning", id="verdict"), cards)


def _section(section: Section) -> Markup:
    name = section.title.lower().replace(" ", "-")
    above = tag("tr", *(tag("th", label, scope="col") for label in ("What", "Severity", "What is so", "What to do")))
    ordered = sorted(section.items, key=lambda item: _ORDER.index(item.severity))
    table = tag("table", tag("thead", above), tag("tbody", *_rows(ordered[:ROWS])))
    more = len(ordered) - ROWS
    return tag(
        "section",
        tag("h2", section.title, " ", tag("span", f"{len(ordered):,}", class_="soft"), id=f"{name}-title"),
        tag("div", table, class_="scroll", role="region", tabindex=0, aria_labelledby=f"{name}-title"),
        *([tag("p", f"{more:,} more are in the JSON document.", class_="soft")] if more > 0 else []),
        id=name,
        class_="long",
    )


def _rows(items: Iterable[Item]) -> Iterator[Markup]:
    for item in items:
        yield tag(
            "tr",
            tag("th", _name(item.name), scope="row", class_="wide finding"),
            tag("td", tag("span", item.severity, class_=f"badge {_BADGES[item.severity]}"), data_label="Severity"),
            tag("td", item.sentence, class_="wide evidence", data_label="What is so"),
            tag("td", item.advice, class_="wide resource", data_label="What to do"),
        )


def _name(name: str) -> Markup:
    """A name that breaks behind its dots."""
    first, *rest = name.split(".")
    return join(first, *(join(".", Markup("<wbr>"), one) for one in rest))


def _proposals(report: Document) -> Markup:
    if not report.settings:
        return Markup("")
    text = json.dumps(report.settings, indent=1, ensure_ascii=False)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}\n... (the JSON document has all)"
    return tag(
        "section",
        tag("h2", "Settings to start from"),
        tag(
            "p", "A valid document of settings that applies nothing. Set apply to true, name by name, after a preview."
        ),
        tag("div", tag("pre", shown), class_="scroll", role="region", tabindex=0, aria_label="Settings to start from"),
        id="settings",
    )


def _foot() -> Markup:
    return tag(
        "section",
        tag("h2", "How to read this"),
        tag(
            "p",
            "Blocked is what the settings apply, or what Lamplighter itself needs, and what would be refused today. A "
            "warning fails or surprises once it is applied. Rows that are counted are exact as of the moment above. "
            "What is estimated says so. A sample proves nothing about the values that it leaves out.",
        ),
        tag("p", "The preflight only read. Numbers behind each sentence are in the JSON document next to this page."),
        id="reading",
    )
