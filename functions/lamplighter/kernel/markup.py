"""HTML and SVG as text in which every value is escaped, unless it is markup already; and the pages made of it.

A page has no scripts and takes nothing from elsewhere. It is for light and dark, wide and narrow screens, and paper.
"""

from __future__ import annotations

import html
from typing import Final

VOID: Final = frozenset({"meta"})
"""Elements without an end."""


class Markup(str):
    """Text that is markup, and stays as it is."""

    __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element. Attributes are spelled with `_` for `-`, and one after `class` or `for`; None leaves one out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>" + ("" if name in VOID else f"{join(*content)}</{name}>"))


def join(*content: object) -> Markup:
    """All of it, one after the other."""
    return Markup("".join(each if isinstance(each, Markup) else html.escape(str(each)) for each in content))


def document(title: str, body: Markup) -> str:
    """A whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        tag("style", STYLE),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


STYLE: Final = Markup("""
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #59637a; --rule: #d9dee7;
  --accent: #2457c5; --area: #2457c522; --warn: #fff4d6; --warn-rule: #b98900;
  --critical: #9b1c31; --high: #b4400f; --medium: #7d5b00; --low: #2d5f8a; --informational: #59637a; --on: #fff }
@media (prefers-color-scheme: dark) { :root { --page: #12151c; --card: #1b202b; --ink: #e6e9f0; --soft: #a3adc2;
  --rule: #333b4d; --accent: #7ea6ff; --area: #7ea6ff26; --warn: #3a3117; --warn-rule: #e0b23c;
  --critical: #ff8fa0; --high: #ffa578; --medium: #f0c95a; --low: #8fc4f2; --informational: #b6bfd1; --on: #12151c } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 0 0 .6rem }
h3 { font-size: .95rem; margin: 0 0 .5rem }
header p, .soft { color: var(--soft) } header p { margin: .2rem 0 1.2rem } p { margin: .4rem 0 }
section, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem 1.1rem;
  margin: 0 0 1rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin-bottom: 1rem }
.cards .card { margin: 0 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem 2rem;
  margin-bottom: 1.2rem }
.figure { font-size: 1.7rem; font-weight: 650; line-height: 1.2; overflow-wrap: anywhere } .card p { margin: .15rem 0 }
.warning { background: var(--warn); border-color: var(--warn-rule) }
svg.chart { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif }
.charts svg { max-width: 460px } .scroll > svg { min-width: 40rem; direction: ltr }
.label { fill: var(--soft) } .value { fill: var(--ink) } .bar, .dot { fill: var(--accent) } .area { fill: var(--area) }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round } .grid { stroke: var(--rule) }
.scroll { overflow-x: auto } .latest { direction: rtl }  /* so that the newest is seen first */
table { border-collapse: collapse; width: 100%; font-size: .87rem }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-top: 1px solid var(--rule) }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap }
tbody th { font-weight: 600 } h2 .soft, th .soft { font-weight: 400 } td .soft, th .soft { display: block }
th .soft { white-space: nowrap } .number .soft { white-space: normal }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.wide { overflow-wrap: anywhere; min-width: 6rem } .finding { min-width: 9rem } .resource { min-width: 14rem }
.evidence { min-width: 16rem }
.evidence p { margin: 0 } .evidence b { color: var(--soft); font-weight: 400 }
.badge { display: inline-block; padding: 0 .45rem; border-radius: 99px; font-size: .78rem; font-weight: 600;
  color: var(--on); background: var(--informational) }
.critical { background: var(--critical) } .high { background: var(--high) } .medium { background: var(--medium) }
.low { background: var(--low) } svg .critical { fill: var(--critical) } svg .high { fill: var(--high) }
svg .medium { fill: var(--medium) } svg .low { fill: var(--low) } svg .informational { fill: var(--informational) }
pre { margin: 0; font-size: .82rem } ul { margin: .3rem 0; padding-left: 1.2rem } li { overflow-wrap: anywhere }
@media screen and (max-width: 44rem) { body { padding: .8rem } section { padding: .8rem }
  .cards { gap: .6rem; grid-template-columns: repeat(2, 1fr) } .figure { font-size: 1.4rem }
  thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden }
  table, tbody, tr, th, td { display: block } tr { border-top: 1px solid var(--rule); padding: .6rem 0 }
  tbody th, td, td.number { border: 0; padding: .1rem 0; min-width: 0; text-align: left; white-space: normal }
  td::before { content: attr(data-label) ": "; color: var(--soft) } td:empty { display: none }
  td .soft { display: inline } }
@media print { @page { margin: 12mm }
  :root { color-scheme: light; --page: #fff; font-size: 10px } body { max-width: none; padding: 0; font-size: 1rem }
  section, .card { break-inside: avoid-page; border-color: #bbb } section.long { break-inside: auto }
  h2 { break-after: avoid }
  thead { display: table-header-group } tr { break-inside: avoid } .scroll { overflow: visible }
  .scroll > svg { min-width: 0 } .wide { min-width: 5rem } .finding { min-width: 8rem } .resource { min-width: 12rem }
  .badge, .bar, .dot, .area, .warning { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
""")
