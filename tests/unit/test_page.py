"""The report's page: how amounts are spelled, and that its colours can be read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from lamplighter.cloud.page import BARS, SECTIONS, SEVERITIES, _told, dollars, render
from lamplighter.cloud.reported import Changes, Point, Total, Totals, WasteReport

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


def page(**values: Any) -> str:
    return render(report(**values), {section: [] for section in SECTIONS})


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
        "vpc id vpc-1; permissions cidr 0.0.0.0/0, from port 22, cidr ::/0; public yes; highest percent 2.5; "
        f"long {'x' * 159}…"
    )


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
