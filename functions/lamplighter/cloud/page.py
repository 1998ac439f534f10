"""The report as one page for people: no scripts, nothing from elsewhere; light and dark, wide and narrow, on paper."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from lamplighter.cloud.blind_spots import LATE
from lamplighter.cloud.charts import Bar, bars, line
from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.reported import Changes, FailedRegion, ReportedFinding, Total, WasteReport
from lamplighter.cloud.store import Section
from lamplighter.kernel.markup import Markup, document, join, tag

ROWS: Final = 50
"""Findings of each section that the page shows; findings.csv has all."""
BARS: Final = 8
"""Of each chart; the rest is one more."""
REASONS: Final = 40
"""Reasons why something could not be judged that the page shows; report.json has all."""
FAILURES: Final = 10
"""Reasons why regions could not be scanned that the page shows; report.json has all."""
REGIONS: Final = 5
"""Regions that it names for each."""
OVER_TIME: Final = "Dollars a month over time"
SECTIONS: Final[tuple[Section, ...]] = ("waste", "security", "exempted")
_EVIDENCE: Final = 160
"""Characters of a piece of evidence that are shown."""
_ELSEWHERE: Final = frozenset({"price_source"})
"""Evidence that the page's end tells of."""

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:")

SEVERITIES: Final = ("critical", "high", "medium", "low", "informational")

type Column = tuple[str, str, Callable[[ReportedFinding], object]]
"""What stands above it, its class, and what it says of a finding."""


def render(report: WasteReport, findings: Mapping[Section, Sequence[ReportedFinding]]) -> str:
    """The page; `findings` are those of each of `SECTIONS` to show, the first `ROWS`."""
    body = tag(
        "body",
        _head(report),
        _warnings(report),
        _figures(report),
        _charts(report),
        _findings(report, findings),
        _unknown(report),
        _foot(report),
    )
    return document(f"Cloud cost and security, {_day(report.generated_at)}", body)


def dollars(value: float) -> str:
    """An amount of money: cents only where they matter."""
    return f"${value:,.2f}" if abs(value) < 100 and round(value, 2) != round(value) else f"${value:,.0f}"


def _head(report: WasteReport) -> Markup:
    when = report.generated_at.strftime("%d %B %Y, %H:%M UTC")
    return tag("header", tag("h1", "Cloud cost and security"), tag("p", f"{when} · {report.job_type} {report.job_id}"))


def _warnings(report: WasteReport) -> Markup:
    """What a reader has to know before the figures: what they leave out."""
    if not (report.regions_failed or report.remarks):
        return Markup("")
    told = (tag("li", sentence) for sentence in (*report.remarks, *_failures(report.regions_failed)))
    return tag("section", tag("h2", "Not the whole picture"), tag("ul", *told), class_="warning", id="warnings")


def _failures(failed: Sequence[FailedRegion]) -> Iterator[str]:
    """A sentence for each account and reason, which is often that of all of its regions."""
    regions = defaultdict[tuple[str, str], list[str]](list)
    for one in failed:
        regions[one.account, one.reason].append(one.region)
    groups = list(regions.items())
    for (account, reason), there in groups[:FAILURES]:
        named = ", ".join(there[:REGIONS]) + (f" and {len(there) - REGIONS:,} others" if len(there) > REGIONS else "")
        what = (
            "it is what an earlier scan saw, if one did"
            if len(there) == 1
            else "them is what earlier scans saw, if any did"
        )
        yield f"{account} {named} could not be scanned; what is said of {what}. {reason}"
    if rest := sum(len(there) for _, there in groups[FAILURES:]):
        yield f"{rest:,} more could not be scanned; report.json says which, and why."


def _figures(report: WasteReport) -> Markup:
    totals, changes, exempted = report.totals, report.changes, report.exempted
    concern = {total.name: total.findings for total in totals.concern}
    unknown = sum(one.resources for one in report.unknown)
    moves = f"{changes.opened:,} new, {changes.reopened:,} reopened, {changes.resolved:,} resolved"
    since = f"since {_moment(changes.since)}" if changes.since else ""
    return tag(
        "div",
        _card(dollars(totals.all.monthly_usd), "a month for what seems to be waste", _trend(changes, totals.all)),
        _card(dollars(totals.all.weighed_usd), "a month, weighed by how sure the checks are"),
        _card(f"{totals.all.findings:,}", f"findings, on {totals.all.resources:,} resources", moves, since),
        _card(f"{concern.get('security', 0):,}", "of them on security"),
        _card(f"{unknown:,}", "could not be judged; why is told below"),
        _card(
            f"{exempted.findings:,}", f"accepted by exceptions, {dollars(exempted.monthly_usd)} a month, in no total"
        ),
        class_="cards",
    )


def _trend(changes: Changes, now: Total) -> str:
    if changes.monthly_usd_before is None or changes.since is None:
        return ""
    more = round(now.monthly_usd - changes.monthly_usd_before, 2)
    if not more:
        return f"as on {_moment(changes.since)}"
    arrow, than = ("▲", "more") if more > 0 else ("▼", "less")
    return f"{arrow} {dollars(abs(more))} {than} than on {_moment(changes.since)}"


def _card(figure: str, *sentences: str) -> Markup:
    told = (tag("p", sentence, class_="soft") for sentence in sentences if sentence)
    return tag("div", tag("div", figure, class_="figure"), *told, class_="card")


def _charts(report: WasteReport) -> Markup:
    totals = report.totals
    by = [
        tag("div", tag("h3", f"Dollars a month by {name}"), _bars(f"Dollars a month by {name}", found))
        for name, found in (("kind", totals.kind), ("owner", totals.owner), ("region", totals.region))
    ]
    counted = [
        Bar(label=total.name, value=total.findings, text=f"{total.findings:,}", kind=total.name)
        for total in sorted(totals.severity, key=lambda total: SEVERITIES.index(total.name))
    ]
    severities = bars("Findings by severity", counted) if counted else _remark("None.")
    points = [(point.at, point.monthly_usd) for point in report.trend]
    return tag(
        "section",
        tag("h2", "At a glance"),
        tag("div", *by, tag("div", tag("h3", "Findings by severity"), severities), class_="charts"),
        tag("h3", OVER_TIME),
        _over_time(points) if len(points) > 1 else _remark("From the second report on."),
        id="charts",
    )


def _over_time(points: Sequence[tuple[datetime, float]]) -> Markup:
    chart = line(OVER_TIME, points, dollars)
    return tag("div", chart, class_="scroll latest", role="region", tabindex=0, aria_label=OVER_TIME)


def _bars(title: str, totals: Sequence[Total]) -> Markup:
    """The most expensive, and the rest as one; those that cost nothing have no bar."""
    priced = [total for total in totals if total.monthly_usd > 0]
    if not priced:
        return _remark("Nothing has a price.")
    most = priced if len(priced) <= BARS + 1 else priced[:BARS]
    shown = [
        Bar(label=total.name.replace("_", " "), value=total.monthly_usd, text=dollars(total.monthly_usd))
        for total in most
    ]
    if rest := priced[len(most) :]:
        value = sum(total.monthly_usd for total in rest)
        shown.append(Bar(label=f"{len(rest)} others", value=value, text=dollars(value)))
    return bars(title, shown)


def _findings(report: WasteReport, findings: Mapping[Section, Sequence[ReportedFinding]]) -> Markup:
    concern = {total.name: total.findings for total in report.totals.concern}
    now = report.generated_at
    resource: Column = ("Resource", "wide resource", _resource)
    what: Column = ("Finding", "wide finding", lambda finding: join(finding.title, " ", _soft(finding.check)))
    severity: Column = ("Severity", "", lambda finding: _badge(finding.severity))
    owner: Column = ("Owner", "wide", lambda finding: finding.owner or _soft("nobody"))
    age: Column = ("Open for", "number", lambda finding: _age(finding, now))
    sure: Column = ("Confidence", "number", lambda finding: f"{finding.confidence:.0%}")
    why: Column = ("What to do, and by what evidence", "wide evidence", _why)
    money: tuple[Column, ...] = (
        ("A month", "number", _price),
        ("Score", "number", lambda finding: "" if finding.score is None else f"{finding.score:,.0f}"),
    )
    exemption: tuple[Column, ...] = (
        ("Reason", "wide", lambda finding: finding.exemption and finding.exemption.reason),
        ("Answers for it", "wide", lambda finding: finding.exemption and finding.exemption.owner),
        ("Until", "number", lambda finding: finding.exemption and finding.exemption.expires),
    )
    return join(
        _table(
            "waste",
            "Waste",
            findings["waste"],
            concern.get("waste", 0),
            (resource, what, *money, sure, age, owner, why),
        ),
        _table(
            "security",
            "Security",
            findings["security"],
            concern.get("security", 0),
            (resource, what, severity, sure, age, owner, why),
        ),
        _table(
            "exempted",
            "Accepted by exceptions",
            findings["exempted"],
            report.exempted.findings,
            (resource, what, severity, *exemption, ("A month", "number", _price)),
        ),
    )


def _table(name: str, title: str, findings: Sequence[ReportedFinding], count: int, columns: Sequence[Column]) -> Markup:
    heading = tag("h2", title, " ", _soft(f"{count:,}"), id=f"{name}-title")
    if not findings:
        return tag("section", heading, _remark("None."), id=name)
    above = tag("tr", *(tag("th", label, scope="col", class_=kind or None) for label, kind, _ in columns))
    rows = (tag("tr", *_cells(finding, columns)) for finding in findings)
    table = tag("table", tag("thead", above), tag("tbody", *rows))
    more = count - len(findings)
    return tag(
        "section",
        heading,
        tag("div", table, class_="scroll", role="region", tabindex=0, aria_labelledby=f"{name}-title"),
        *([_remark(f"{more:,} more are in findings.csv.")] if more > 0 else []),
        id=name,
        class_="long",
    )


def _cells(finding: ReportedFinding, columns: Sequence[Column]) -> Iterable[Markup]:
    for number, (label, kind, say) in enumerate(columns):
        content = say(finding)
        told = {"data_label": label} if number else {"scope": "row"}
        yield tag("td" if number else "th", "" if content is None else content, class_=kind or None, **told)


def _resource(finding: ReportedFinding) -> Markup:
    """Of an ARN, what is not in the line below."""
    arn = finding.resource_id.split(":", 5)
    told = arn[5] if arn[0] == "arn" and len(arn) == 6 else finding.resource_id
    return join(tag("span", told, title=finding.resource_id), _soft(f"{finding.account} {finding.region}"))


def _price(finding: ReportedFinding) -> object:
    if finding.monthly_usd is None:
        return _soft("no price")
    counted = finding.counted_usd > 0 or not finding.monthly_usd
    return (
        dollars(finding.monthly_usd)
        if counted
        else join(dollars(finding.monthly_usd), " ", _soft("in another finding"))
    )


def _age(finding: ReportedFinding, now: datetime) -> Markup:
    """How long it has been open without a break, and what is odd about that."""
    since = finding.since or finding.reopened_at or finding.first_seen
    days = max((now - since).days, 0)
    told = "today" if days == 0 else "1 day" if days == 1 else f"{days:,} days"
    again = join(" ", _soft(f"reopened {_times(finding.times_reopened)}")) if finding.times_reopened else ""
    old = join(" ", _soft(f"last seen {_day(finding.last_seen)}")) if now - finding.last_seen > LATE else ""
    return join(tag("time", told, datetime=since.isoformat(), title=f"since {_moment(since)}"), again, old)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _why(finding: ReportedFinding) -> Markup:
    advice = BY_ID[finding.check].advice if finding.check in BY_ID else ""
    return join(tag("p", advice) if advice else "", tag("p", _told(finding.evidence)))


def _told(evidence: Mapping[str, Any]) -> Markup:
    """Evidence as `name value`, by name, for Postgres keeps no order; what is empty says nothing."""
    said = []
    for name, value in sorted(evidence.items()):
        text = "" if name in _ELSEWHERE else _plain(value)
        if text:
            shown = text if len(text) <= _EVIDENCE else f"{text[: _EVIDENCE - 1]}…"
            said.append(join(tag("b", name.replace("_", " ")), " ", shown))
    return Markup("; ".join(said))


def _plain(value: object) -> str:
    """A value of JSON as people write it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(filter(None, map(_plain, value)))
        case dict():
            told = ((name.replace("_", " "), _plain(each)) for name, each in value.items())
            return ", ".join(f"{name} {each}" for name, each in told if each)
        case str() if _MOMENT.match(value):
            with suppress(ValueError):
                return _day(datetime.fromisoformat(value).astimezone(UTC))
    return str(value)


def _unknown(report: WasteReport) -> Markup:
    count = sum(one.resources for one in report.unknown)
    heading = tag("h2", "Could not be judged ", _soft(f"{count:,}"), id="unknown-title")
    if not report.unknown:
        return tag("section", heading, _remark("None."), id="unknown")
    above = tag("tr", *(tag("th", label, scope="col") for label in ("Check", "Why", "Resources", "Such as")))
    rows = (
        tag(
            "tr",
            tag("th", one.check, scope="row"),
            tag("td", one.reason, class_="wide", data_label="Why"),
            tag("td", f"{one.resources:,}", class_="number", data_label="Resources"),
            tag("td", ", ".join(one.examples), class_="wide", data_label="Such as"),
        )
        for one in report.unknown[:REASONS]
    )
    more = len(report.unknown) - REASONS
    return tag(
        "section",
        heading,
        tag("p", "Neither waste nor in order: what is not known is not counted, and nothing is done about it."),
        tag(
            "div",
            tag("table", tag("thead", above), tag("tbody", *rows)),
            class_="scroll",
            role="region",
            tabindex=0,
            aria_labelledby="unknown-title",
        ),
        *([_remark(f"{more:,} more reasons are in report.json.")] if more > 0 else []),
        id="unknown",
        class_="long",
    )


def _foot(report: WasteReport) -> Markup:
    sources = (tag("li", f"{one.source}: {one.findings:,}") for one in report.price_sources)
    return tag(
        "section",
        tag("h2", "How to read this"),
        tag(
            "p",
            "Dollars are US dollars a month. A resource is counted once, with its most expensive finding. The score, "
            "what to look at first, is dollars weighed by confidence, and up to twice as much for what has lasted a "
            "year.",
        ),
        tag("p", "Where prices are from, and how many findings they price:") if report.price_sources else Markup(""),
        tag("ul", *sources) if report.price_sources else Markup(""),
        tag("p", "All findings, with all of their evidence, are in findings.csv and report.json beside this page."),
        id="reading",
    )


def _badge(severity: str) -> Markup:
    return tag("span", severity, class_=f"badge {severity}")


def _soft(text: str) -> Markup:
    return tag("span", text, class_="soft")


def _remark(text: str) -> Markup:
    return tag("p", text, class_="soft")


def _day(moment: datetime) -> str:
    return f"{moment:%d %B %Y}"


def _moment(moment: datetime) -> str:
    return f"{moment:%d %b %Y %H:%M}"
