"""The report's page: how amounts are spelled, and that its colours can be read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lamplighter.cloud.page import BARS, FAILURES, SECTIONS, SEVERITIES, _told, dollars, render
from lamplighter.cloud.reported import (
    Changes,
    FailedRegion,
    Point,
    ReportedFinding,
    Total,
    Totals,
    Unknowns,
    WasteReport,
)

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)


def total(name: str, usd: float = 0, findings: int = 1) -> Total:
    return Total(name=name, findings=findings, resources=findings, monthly_usd=usd, weighed_usd=usd)


def report(**values: Any) -> WasteReport:
    """One of nothing, if not told otherwise."""
    totals = {name: [] for name in ("concern", "kind", "owner", "region", "account", "severity")}
    given = {
        "job_id": "01JOB",
        "job_type": "waste_scan",
        "generated_at": NOW,
        "totals": Totals(**{"all": total("all", findings=0), **totals, **values.pop("totals", {})}),
        "exempted": total("all", findings=0),
        "changes": Changes(since=None, opened=0, reopened=0, resolved=0, monthly_usd_before=None),
        "trend": [Point(at=NOW, monthly_usd=0)],
        "unknown": [],
        "regions_failed": [],
        "remarks": [],
        "price_sources": [],
        "documents": {},
    }
    return WasteReport.model_validate(given | values)


def page(*waste: ReportedFinding, **values: Any) -> str:
    return render(report(**values), {section: list(waste) if section == "waste" else [] for section in SECTIONS})


def text(html: str) -> str:
    return re.sub("<.*?>", "", html)


def finding(**values: Any) -> ReportedFinding:
    """One of waste, seen just now and a hundred days ago first."""
    given = {
        "id": 1,
        "status": "open",
        "account": "111122223333",
        "region": "eu-west-1",
        "check": "idle_cpu",
        "kind": "idle_instance",
        "title": "The CPU of an instance is idle",
        "severity": "medium",
        "resource_type": "AwsEc2Instance",
        "resource_id": "i-1",
        "owner": None,
        "evidence": {},
        "exemption": None,
        "monthly_usd": 70,
        "counted_usd": 70,
        "confidence": 0.9,
        "score": 63,
        "since": None,
        "resolved_at": None,
        "first_seen": NOW - timedelta(days=100),
        "last_seen": NOW,
        "reopened_at": None,
        "times_reopened": 0,
    }
    return ReportedFinding.model_validate(given | values)


@pytest.mark.parametrize(
    ("amount", "told"),
    [(0, "$0"), (0.004, "$0"), (3, "$3"), (3.6, "$3.60"), (99.99, "$99.99"), (99.999, "$100"), (1234.56, "$1,235")],
)
def test_amounts_have_cents_only_where_they_matter(amount: float, told: str) -> None:
    assert dollars(amount) == told


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [(10, 25.5, "▲ $15.50 more than on"), (25.5, 10, "▼ $15.50 less than on"), (10, 10.001, "as on 21 Nov 2026 06:10")],
)
def test_the_headline_says_how_it_changed(before: float, now: float, told: str) -> None:
    changes = Changes(since=NOW.replace(day=21), opened=0, reopened=0, resolved=0, monthly_usd_before=before)
    assert told in page(changes=changes, totals={"all": total("all", now)})


def test_charts_show_the_most_expensive_and_the_rest_as_one() -> None:
    assert "others" not in page(totals={"owner": [total(f"owner {n}", 100 - n) for n in range(BARS + 1)]})
    many = page(totals={"owner": [total(f"owner {n}", 10) for n in range(BARS + 5)]})
    assert "5 others: $50" in many
    assert f"owner {BARS - 1}:" in many and f"owner {BARS}:" not in many


def test_evidence_is_spelled_as_people_write() -> None:
    evidence = {
        "vpc_id": "vpc-1",
        "permissions": [{"cidr": "0.0.0.0/0", "from_port": 22}, {"cidr": "::/0", "from_port": None}],
        "public": True,
        "highest_percent": 2.5,
        "unread": [],
        "tag": {"public-allowed": None},
        "price_source": "told elsewhere",
        "long": "x" * 500,
    }
    told = re.sub("<.*?>", "", _told(evidence))
    assert told == (
        f"highest percent 2.5; long {'x' * 159}…; permissions cidr 0.0.0.0/0, from port 22, cidr ::/0; public yes; "
        "vpc id vpc-1"
    )


def test_moments_in_evidence_are_days() -> None:
    evidence = {"at": "2026-05-06T12:26:12.438452+00:00", "id": "2026-05-06", "odd": "2026-99-99T12:26:12"}
    assert text(_told(evidence)) == "at 06 May 2026; id 2026-05-06; odd 2026-99-99T12:26:12"


def test_evidence_that_belongs_together_stands_together() -> None:
    as_stored = {"type": "m5.large", "datapoints_seen": 27, "highest_percent": 2.5, "datapoints_expected": 28}
    told = "datapoints expected 28; datapoints seen 27; highest percent 2.5; type m5.large"
    assert text(_told(as_stored)) == told


def test_a_finding_says_what_to_do_about_it_where_its_check_is_known() -> None:
    told = text(page(finding(evidence={"highest_percent": 2.5})))
    assert "Ask its owner what it is for; stop it, or give it a smaller type.highest percent 2.5" in told
    assert "highest percent 2.5" in text(page(finding(check="of_old", evidence={"highest_percent": 2.5})))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ">100 days<"),
        ({"since": NOW - timedelta(days=400)}, ">400 days<"),
        ({"reopened_at": NOW - timedelta(days=1), "times_reopened": 1}, ">1 day</time> "),
        ({"last_seen": NOW - timedelta(hours=47)}, ">100 days</time></td>"),
        ({"last_seen": NOW - timedelta(days=3)}, "last seen 19 November 2026"),
    ],
)
def test_a_finding_says_how_long_it_has_been_open_and_that_nobody_has_seen_it_of_late(
    values: dict[str, Any], told: str
) -> None:
    """C14: one that was reopened yesterday has not been open since it was first seen."""
    assert told in page(finding(**values))


def test_dollars_that_another_finding_of_the_resource_has_are_told_apart() -> None:
    assert "in another finding" not in page(finding())
    assert "in another finding" in page(finding(counted_usd=0))
    assert "in another finding" not in page(finding(monthly_usd=0, counted_usd=0))


def test_regions_that_failed_for_one_reason_are_told_of_together() -> None:
    gone = [FailedRegion(account="111122223333", region=f"r-{n}", reason="The role is gone.") for n in range(7)]
    assert (
        "111122223333 r-0, r-1, r-2, r-3, r-4 and 2 others could not be scanned; what is said of them is what earlier "
        "scans saw, if any did. The role is gone."
    ) in page(regions_failed=gone)
    each = [FailedRegion(account="111122223333", region=f"r-{n}", reason=f"Error {n}.") for n in range(500)]
    told = page(regions_failed=each)
    assert told.count("could not be scanned; what is said of it is") == FAILURES
    assert "490 more could not be scanned; report.json says which, and why." in told


def test_how_much_could_not_be_judged_stands_among_the_first_figures() -> None:
    reasons = [Unknowns(check="idle_cpu", reason=f"Reason {n}.", resources=600, examples=[]) for n in range(2)]
    assert "1,200could not be judged; why is told below" in text(page(unknown=reasons))


def test_every_cell_has_its_heading_for_narrow_screens_where_it_stands_by_itself() -> None:
    html = page(finding(), unknown=[Unknowns(check="idle_cpu", reason="None.", resources=1, examples=["a"])])
    headings = set(re.findall(r"<th[^>]*>([^<]*)</th>", html))
    cells = re.findall(r"<td([^>]*)>", html)
    assert len(cells) == 10
    assert all(re.findall('data-label="(.*?)"', cell)[0] in headings for cell in cells)


def test_there_is_no_trend_before_the_second_report() -> None:
    assert "Over time" not in page()
    assert "From the second report on." in page()
    assert "polyline" in page(trend=[Point(at=NOW.replace(day=1), monthly_usd=3), Point(at=NOW, monthly_usd=2)])


def luminance(colour: str) -> float:
    """Relative luminance ("Web Content Accessibility Guidelines 2.2")."""
    digits = colour.lstrip("#")
    whole = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
    parts = [int(whole[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", page(), re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", light if scheme == "light" else dark))
    pairs = [(ink, behind) for ink in ("ink", "soft") for behind in ("page", "card", "warn")]
    pairs += [("on", severity) for severity in SEVERITIES]
    for text, behind in pairs:
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    assert contrast(colours["accent"], colours["card"]) >= 3  # of graphics
