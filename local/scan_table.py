"""A scan for people: money first, then risk, then what could not be judged and why, and what all of it took."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from rich.text import Text

from local.console import console, say, table

if TYPE_CHECKING:
    from lamplighter.cloud.check import Finding, Severity
    from local.scan import Scan

SHOWN: Final = 10
"""Findings that are shown one by one, of money and of risk; the JSON has all."""
STYLES: Final[dict[Severity, str]] = {
    "critical": "bold red",
    "high": "red",
    "medium": "yellow",
    "low": "",
    "informational": "dim",
}
"""Of severities."""


def show(scan: Scan) -> None:
    """Print it, in colour on a terminal."""
    looked_at = ", ".join(region for region in scan.regions if region not in scan.errors)
    console.print(f"Account {scan.account}, {looked_at}", style="bold")
    several = len(scan.regions) > 1
    _money([one for one in scan.findings if one.monthly_usd is not None], several)
    _risks([one for one in scan.findings if one.monthly_usd is None], several)
    if not scan.findings:
        say("\nNothing was found.")
    if scan.exempted:
        _heading("Somebody answers for")
        table(
            ("check", "resource", "region", "owner", "until", "reason"),
            [(one.check, _id(one), one.region, why.owner, why.expires, why.reason) for one, why in scan.exempted],
        )
    if scan.expired:
        _heading("Exceptions that have expired")
        table(
            ("check", "resource", "owner", "until", "reason"),
            [(one.check, one.resource, one.owner, one.expires, one.reason) for one in scan.expired],
        )
    if scan.unknown:
        _heading("Could not be judged")
        reasons = Counter((one.check, one.reason, one.resource_id == "*") for one in scan.unknown)
        table(
            ("resources", "check", "why"),
            [("all" if every else times, check, why) for (check, why, every), times in reasons.most_common(SHOWN)],
            right=("resources",),
        )
        _and_more(len(reasons), "reasons")
    if scan.errors:
        _heading("Could not be looked at")
        table(("region", "why"), list(scan.errors.items()))
    console.print(f"\n{scan.api_calls} API calls, {scan.seconds:.1f} seconds; nothing was changed.")


def _money(findings: list[Finding], several: bool) -> None:
    """What is worth most first, by check and one by one, each with its region where there are several."""
    from lamplighter.cloud.totals import monthly_total

    if not findings:
        return
    _heading(f"${monthly_total(findings):,.2f} a month could be saved, each resource counted once")
    say(
        "Estimates at list prices, on demand, before discounts and tax. How sure: which share of it is likely to be "
        "saved. In the JSON, price_source says where a price is from."
    )
    checks = sorted(_by_check(findings), key=lambda some: -monthly_total(some))
    table(
        ("$ a month", "findings", "check", "what"),
        [(f"{monthly_total(some):,.2f}", len(some), some[0].check, some[0].title) for some in checks],
        right=("$ a month", "findings"),
        whole=("check",),
    )
    table(
        ("$ a month", "sure", "check", "resource", *_region("region", several), "owner"),
        [
            (f"{one.monthly_usd:,.2f}", f"{one.confidence:.0%}", one.check, _id(one), *_region(one.region, several),
             one.owner or "")
            for one in findings[:SHOWN]
        ],
        right=("$ a month", "sure"),
    )  # fmt: skip
    _and_more(len(findings), "findings")


def _risks(findings: list[Finding], several: bool) -> None:
    """What is worst first, likewise."""
    if not findings:
        return
    _heading("Risks")
    table(
        ("worst", "findings", "check", "what"),
        [(_severity(some[0]), len(some), some[0].check, some[0].title) for some in _by_check(findings)],
        right=("findings",),
    )
    table(
        ("severity", "check", "resource", *_region("region", several), "owner"),
        [
            (_severity(one), one.check, _id(one), *_region(one.region, several), one.owner or "")
            for one in findings[:SHOWN]
        ],
    )
    _and_more(len(findings), "findings")


def _by_check(findings: list[Finding]) -> list[list[Finding]]:
    """The findings of each check, in the order of the first of each."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.check].append(finding)
    return list(groups.values())


def _severity(finding: Finding) -> Text:
    return Text(finding.severity, style=STYLES[finding.severity])


def _region(cell: str, several: bool) -> tuple[str, ...]:
    """A cell of the column of regions, which is left out where there is one region only."""
    return (cell,) if several else ()


def _id(finding: Finding) -> str:
    """As short as it can be told from others: without what all ARNs have, a load balancer by its kind and name."""
    id = finding.resource_id
    if not id.startswith("arn:"):
        return id
    id = id.split(":", 5)[5]
    return "/".join(id.split("/")[1:3]) if id.startswith("loadbalancer/") else id


def _heading(text: str) -> None:
    console.print(f"\n{text}", style="bold blue", highlight=False)


def _and_more(count: int, what: str) -> None:
    if count > SHOWN:
        console.print(f"... and {count - SHOWN} more {what}: --format json lists all.", style="dim")
