"""The report on cloud cost and security, made from findings in a real Postgres and in S3, written to S3."""

from __future__ import annotations

import json
import random
import tracemalloc
from html.parser import HTMLParser
from typing import Any

from sqlalchemy import Engine

from lamplighter.cloud.report import COLUMNS, RESOLVED_FOR
from lamplighter.cloud.reported import FailedRegion, Point
from lamplighter.cloud.totals import counted, monthly_total
from tests.integration.reports_world import DAY, HOUR, NOW, Reports
from tests.integration.store_world import PostgresWorld

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&{}'


def sums(totals: list[Any]) -> dict[str, tuple[int, float]]:
    return {total.name: (total.findings, total.monthly_usd) for total in totals}


# -- totals ------------------------------------------------------------------------------------------------------------


def test_nothing_found_is_a_report_all_the_same(reports: Reports) -> None:
    report = reports.generate()
    assert (report.totals.all.findings, report.totals.all.monthly_usd, report.totals.kind) == (0, 0, [])
    assert report.trend == [Point(at=NOW, monthly_usd=0)]
    document = reports.document(report)
    assert (document.findings, document.exempted_findings) == ([], [])
    assert reports.lines(report) == []
    assert reports.stored() == [f"reports/cloud/2026-11-22/01JOB/061000/{name}" for name in DOCUMENTS]
    assert_well_formed(reports.read(report.documents["html"]))


DOCUMENTS = ["findings.csv", "report.html", "report.json"]


def test_findings_are_totalled_along_each_dimension(reports: Reports) -> None:
    reports.find("vol-1", monthly_usd=10.0, confidence=0.5)
    reports.find("vol-2", monthly_usd=5.5, owner=None, region="us-east-1", account="222222222222")
    reports.find("i-1", check="idle_cpu", kind="idle_instance", monthly_usd=100.0, owner="bob", severity="medium")
    reports.find("vol-3", check="unencrypted_volumes", kind="encryption", monthly_usd=None, score=None, owner="bob")
    totals = reports.generate().totals
    assert (totals.all.findings, totals.all.resources, totals.all.monthly_usd) == (4, 4, 115.5)
    assert totals.all.weighed_usd == 110.5
    assert sums(totals.concern) == {"waste": (3, 115.5), "security": (1, 0)}
    assert sums(totals.kind) == {"idle_instance": (1, 100), "unattached_volume": (2, 15.5), "encryption": (1, 0)}
    assert sums(totals.owner) == {"bob": (2, 100), "ann": (1, 10), "nobody": (1, 5.5)}
    assert sums(totals.region) == {"eu-west-1": (3, 110), "us-east-1": (1, 5.5)}
    assert sums(totals.account) == {"111111111111": (3, 110), "222222222222": (1, 5.5)}
    assert sums(totals.severity) == {"medium": (1, 100), "low": (3, 15.5)}
    assert [total.name for total in totals.kind] == ["idle_instance", "unattached_volume", "encryption"]


def test_a_resources_dollars_are_counted_once(reports: Reports) -> None:
    """An instance that is idle by CPU and by memory is not wasted twice."""
    reports.find("i-1", check="idle_cpu", kind="idle_instance", monthly_usd=70.0, confidence=0.6)
    reports.find("i-1", check="idle_memory", kind="idle_memory", monthly_usd=70.0, confidence=0.9)
    reports.find("i-1", check="other", kind="other", monthly_usd=20.0)
    reports.find("i-1", check="idle_cpu", kind="idle_instance", monthly_usd=70.0, region="us-east-1")
    reports.find("i-1", check="missing_tags", kind="tags", monthly_usd=None)
    report = reports.generate()
    assert (report.totals.all.findings, report.totals.all.resources, report.totals.all.monthly_usd) == (5, 2, 140)
    assert report.totals.all.weighed_usd == 133
    for totals in (report.totals.kind, report.totals.owner, report.totals.region, report.totals.severity):
        assert sum(total.monthly_usd for total in totals) == 140
    assert sum(float(line["counted_usd"]) for line in reports.lines(report)) == 140
    counted = {(one.region, one.check): one.counted_usd for one in reports.document(report).findings}
    assert {what for what, usd in counted.items() if usd} == {("eu-west-1", "idle_memory"), ("us-east-1", "idle_cpu")}


def test_what_is_exempted_is_apart_and_in_no_total(reports: Reports) -> None:
    exemption = {"check": "*", "resource": "vol-1", "reason": "a spare", "owner": "ann", "expires": "2027-01-31"}
    reports.find("vol-1", monthly_usd=10.0, exemption=exemption)
    reports.find("vol-1", check="gp2_volumes", monthly_usd=2.0)
    reports.find("vol-2", monthly_usd=3.0)
    report = reports.generate()
    assert (report.totals.all.findings, report.totals.all.monthly_usd) == (2, 5)
    assert (report.exempted.findings, report.exempted.monthly_usd) == (1, 10)
    document = reports.document(report)
    assert [one.resource_id for one in document.findings] == ["vol-1", "vol-2"]
    [exempted] = document.exempted_findings
    assert exempted.exemption and exempted.exemption.reason == "a spare"
    [line] = [line for line in reports.lines(report) if line["exemption_reason"]]
    assert (line["exemption_owner"], line["exemption_expires"]) == ("ann", "2027-01-31")
    page = reports.read(report.documents["html"])
    assert all(word in page for word in ("a spare", "2027-01-31"))


def test_an_exception_that_has_expired_since_the_scan_exempts_nothing(reports: Reports) -> None:
    exemption = {"reason": "a spare", "owner": "ann", "expires": "2026-11-22"}  # that day included
    reports.find("vol-1", exemption=exemption)
    assert reports.generate("01A").exempted.findings == 1
    tomorrow = reports.generate("01B", now=NOW + DAY)
    assert (tomorrow.exempted.findings, tomorrow.totals.all.findings) == (0, 1)
    reports.kept.change(None, status="resolved", resolved_at=NOW + 25 * HOUR)
    assert reports.generate("01C", now=NOW + 2 * DAY).changes.resolved == 1, "it was in the total before"


def test_the_totals_are_those_of_the_rule(reports: Reports) -> None:
    """What the database adds up is what `totals.counted` says."""
    some = random.Random(4)
    for n in range(150):
        reports.find(
            f"i-{n % 40}",
            check=f"check_{n // 40}",
            kind=some.choice(["one", "two"]),
            region=some.choice(["eu-west-1", "us-east-1"]),
            monthly_usd=some.choice([None, 0.0, 5.25, 70.0]),
            confidence=some.choice([0.5, 1.0]),
        )
    report = reports.generate()
    findings = sorted(reports.document(report).findings, key=lambda finding: finding.check)
    assert report.totals.all.monthly_usd == monthly_total(findings)
    for total in report.totals.kind:
        assert total.monthly_usd == sum(one.monthly_usd or 0 for one in counted(findings) if one.kind == total.name)
    assert [one.id for one in findings if one.counted_usd] == [one.id for one in counted(findings) if one.monthly_usd]


def test_what_is_resolved_is_not_reported(reports: Reports) -> None:
    reports.find("vol-1", status="resolved", resolved_at=NOW - HOUR)
    report = reports.generate()
    assert report.totals.all.findings == 0
    assert reports.document(report).findings == []


# -- from one report to the next ---------------------------------------------------------------------------------------


def test_a_report_says_what_changed_since_the_last_one(reports: Reports) -> None:
    reports.find("vol-1", monthly_usd=10.0)
    reports.find("vol-2", monthly_usd=20.0)
    reports.find("vol-3", status="resolved", resolved_at=NOW - DAY)
    first = reports.generate("01A")
    assert first.changes.since is None
    assert (first.changes.opened, first.changes.reopened, first.changes.resolved) == (2, 0, 1)
    later = NOW + 6 * HOUR
    reports.find("vol-4", monthly_usd=1.0, first_seen=later, last_seen=later)
    reports.kept.change("vol-1", status="resolved", resolved_at=later)
    reports.kept.change("vol-3", status="open", resolved_at=None, reopened_at=later, times_reopened=1)
    reports.generate("01S", now=NOW + HOUR, job_type="security_enforcement")
    second = reports.generate("01B", now=later)
    changes = second.changes
    assert (changes.since, changes.monthly_usd_before) == (NOW, 30)
    assert (changes.opened, changes.reopened, changes.resolved) == (1, 1, 1)
    assert [(point.at, point.monthly_usd) for point in second.trend] == [(NOW, 30), (later, 31)]


def test_the_trend_is_of_ninety_days_and_of_the_same_job_type(reports: Reports) -> None:
    for number, age in enumerate((91 * DAY, 89 * DAY, 2 * HOUR, HOUR)):
        reports.kept.put_report(f"01{number}", "waste_scan", NOW - age, number)
    reports.kept.put_report("01S", "security_enforcement", NOW - DAY, 9)
    trend = reports.generate().trend
    assert [(point.at, point.monthly_usd) for point in trend] == [(NOW - 89 * DAY, 1), (NOW - HOUR, 3), (NOW, 0)]


def test_doing_it_again_says_the_same_and_writes_over_nothing(reports: Reports) -> None:
    reports.find("vol-1", check="unencrypted_volumes", evidence={"encrypted": False})
    reports.find("vol-2")
    first = reports.generate()
    documents = {key: reports.read(key) for key in reports.stored()}
    again = reports.generate(now=NOW + DAY)  # the next attempt, after midnight
    assert again.model_copy(update={"documents": first.documents}) == first
    [row] = reports.kept.reports()
    assert (row["created_at"], row["documents"]) == (NOW, again.documents)
    assert not set(again.documents.values()) & set(first.documents.values())
    assert reports.lines(again) == reports.lines(first)
    assert {key: reports.read(key) for key in documents} == documents


def test_a_report_is_kept_as_a_row_that_says_where_its_documents_are(reports: Reports) -> None:
    reports.find("vol-1", monthly_usd=10.0)
    report = reports.generate()
    [row] = reports.kept.reports()
    assert (row["job_id"], row["job_type"], row["created_at"], row["monthly_usd"]) == ("01JOB", "waste_scan", NOW, 10)
    assert row["findings"] == report.totals.all.findings == 1
    assert row["documents"] == report.documents


def test_of_two_attempts_at_once_the_first_moment_stays(reports: Reports) -> None:
    """Changes are counted since the last report: none may come to be after itself."""
    reports.find("vol-1", monthly_usd=10.0)
    report = reports.generate()
    late = report.model_copy(update={"generated_at": NOW + HOUR, "documents": {"json": "s3://elsewhere"}})
    reports.kept.store.keep_report(late)
    [row] = reports.kept.reports()
    assert (row["created_at"], row["documents"]) == (NOW, {"json": "s3://elsewhere"})
    assert reports.kept.store.reported_at("01JOB") == NOW
    assert reports.kept.store.reported_at("01OTHER") is None


# -- what a reader has to know -----------------------------------------------------------------------------------------


def test_what_could_not_be_judged_is_said_whichever_scan_tried(reports: Reports) -> None:
    """The hourly report on security shows the waste, too: that some of it is unknown is not the waste scan's secret."""
    reports.doubt("idle_memory", *(f"i-{n}" for n in range(7)))
    reports.doubt("idle_memory", "i-9", region="us-east-1")
    reports.doubt("old_snapshots", "*", reason="images: refused")
    reports.doubt("a_check_that_was_taken_out", "*")
    failed = FailedRegion(account="222222222222", region="eu-south-1", reason="AccessDenied: the role is gone.")
    report = reports.generate(
        job_type="security_enforcement", regions_failed=[failed], remarks=["The exceptions could not be read."]
    )
    assert [(one.check, one.resources, len(one.examples)) for one in report.unknown] == [
        ("idle_memory", 8, 5),
        ("old_snapshots", 1, 1),
    ]
    assert report.unknown[1].examples == ["111111111111/eu-west-1/*"]
    page = reports.read(report.documents["html"])
    for said in ("No agent.", "images: refused", "eu-south-1", "the role is gone", "The exceptions could not be read."):
        assert said in page
    assert reports.document(report).regions_failed == [failed]


HERE, THERE = ("111111111111", "eu-west-1"), ("222222222222", "us-east-1")


def test_what_is_scanned_no_more_is_in_no_total_and_that_is_said(reports: Reports) -> None:
    """An account that has left must not cost anything for ever; nor may it vanish without a word."""
    gone = {"account": "222222222222", "region": "us-east-1"}
    reports.find("vol-1", monthly_usd=10.0)
    reports.find("vol-2", monthly_usd=500.0, evidence={"price_source": "a price file"}, **gone)
    reports.find("vol-3", monthly_usd=500.0, check="unencrypted_volumes", **gone)
    reports.find("vol-4", status="resolved", resolved_at=NOW - HOUR, **gone)
    reports.doubt("idle_cpu", "i-1", account="222222222222", region="us-east-1")
    for place in (HERE, THERE):
        for check in ("idle_cpu", "open_ports"):
            reports.judged(check, NOW - HOUR, account=place[0], region=place[1])
    report = reports.generate(places=[HERE])
    assert (report.totals.all.findings, report.totals.all.monthly_usd) == (1, 10)
    assert (report.changes.opened, report.changes.resolved) == (1, 0)
    assert (report.unknown, report.price_sources) == ([], [])
    assert report.remarks == [
        "2 open findings are left out: cloud.targets no longer names where they are (222222222222/us-east-1)."
    ]
    assert [one.resource_id for one in reports.document(report).findings] == ["vol-1"]
    assert [line["resource_id"] for line in reports.lines(report)] == ["vol-1"]
    assert not [key for key in reports.stored() if "/asff/" in key]
    back = reports.generate("01BACK", places=[HERE, THERE])
    assert (back.totals.all.findings, back.remarks) == (3, [])


def test_where_nobody_has_looked_for_days_or_ever_is_said(reports: Reports) -> None:
    """A schedule that is off, a region that fails each time: what is said of it is old, or nothing."""
    elsewhere = [("111111111111", f"eu-north-{n}") for n in range(5)]
    reports.judged("idle_cpu", NOW - 10 * DAY)
    reports.judged("idle_memory", NOW - 3 * DAY)
    reports.judged("open_ports", NOW - 2 * DAY)
    for account, region in elsewhere:
        reports.judged("idle_cpu", NOW, account=account, region=region)
    told = reports.generate(places=[HERE, *elsewhere])
    assert told.remarks == [
        "Nobody has looked for waste in 111111111111/eu-west-1 since 19 November 2026.",
        "Nobody has looked for risks yet in 111111111111/eu-north-0, 111111111111/eu-north-1,"
        " 111111111111/eu-north-2 and 2 others.",
    ]
    failed = [FailedRegion(account=account, region=region, reason="No.") for account, region in (HERE, *elsewhere)]
    again = reports.generate("01B", places=[HERE, *elsewhere], regions_failed=failed)
    assert len(again.remarks) == 1, "what this scan failed to read is said once"
    assert again.remarks[0].startswith("Nobody has looked for risks yet")


def test_the_source_of_prices_is_said(reports: Reports) -> None:
    for n in range(3):
        source = "AWS Price List, 2026-11-01" if n else "the price file of 2026-10-01"
        reports.find(f"vol-{n}", evidence={"price_source": source})
    reports.find("i-1", evidence={"price_source": None})
    report = reports.generate()
    assert [(one.source, one.findings) for one in report.price_sources] == [
        ("AWS Price List, 2026-11-01", 2),
        ("the price file of 2026-10-01", 1),
    ]
    assert "the price file of 2026-10-01" in reports.read(report.documents["html"])


# -- documents ---------------------------------------------------------------------------------------------------------


def test_the_csv_is_safe_to_open_in_a_spreadsheet(reports: Reports) -> None:
    reports.find("=cmd|' /C calc'!A1", owner="@SUM(1)", title="-2+3", evidence={"=1": 'a "quoted",\r\nline', "ü": "😀"})
    report = reports.generate()
    raw = reports.read(report.documents["csv"])
    assert raw.startswith(",".join(COLUMNS) + "\r\n") and raw.endswith("\r\n")
    [line] = reports.lines(report)
    assert (line["resource_id"], line["owner"], line["title"]) == ("'=cmd|' /C calc'!A1", "'@SUM(1)", "'-2+3")
    assert json.loads(line["evidence"]) == {"=1": 'a "quoted",\r\nline', "ü": "😀"}
    assert reports.document(report).findings[0].resource_id == "=cmd|' /C calc'!A1"


def test_what_is_hostile_is_only_text_on_the_page(reports: Reports) -> None:
    exemption = {"reason": HOSTILE, "owner": HOSTILE, "expires": "2027-01-31"}
    evidence = {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}, "price_source": HOSTILE}
    values: dict[str, Any] = {"owner": HOSTILE, "title": HOSTILE, "kind": HOSTILE, "evidence": evidence}
    reports.find(HOSTILE, region=HOSTILE, account=HOSTILE, **values)
    reports.find(HOSTILE, check="unencrypted_volumes", **values)
    reports.find("vol-1", exemption=exemption, **values)
    reports.doubt("idle_cpu", HOSTILE, reason=HOSTILE, account=HOSTILE, region=HOSTILE)
    failed = FailedRegion(account=HOSTILE, region=HOSTILE, reason=HOSTILE)
    report = reports.generate(regions_failed=[failed], remarks=[HOSTILE])
    page = assert_well_formed(reports.read(report.documents["html"]))
    assert not {"script", "img", "iframe", "link"} & page.names
    assert page.text.count(HOSTILE) > 15


def test_the_page_holds_what_it_should(reports: Reports) -> None:
    reports.find("vol-1", monthly_usd=1234.0, score=1500.0, since=NOW - 43 * DAY, evidence={"days_unattached": 43})
    reports.find("vol-2", check="unencrypted_volumes", kind="encryption", severity="high", monthly_usd=None, score=None)
    page = assert_well_formed(reports.read(reports.generate().documents["html"]))
    assert page.ids >= {"charts", "waste", "security", "unknown", "exempted", "reading"}
    assert page.charts == 4  # three of dollars, one of severities; a trend takes two reports
    assert page.tables == {"waste": 1, "security": 1}
    for said in ("$1,234", "43 days", "days unattached 43", "high", "eu-west-1", "2 new"):
        assert said in page.text


def test_the_page_shows_the_first_and_says_how_many_more(reports: Reports) -> None:
    for n in range(53):
        reports.find(f"vol-{n:03}", score=float(n))
    page = reports.read(reports.generate().documents["html"])
    assert page.index("vol-052") < page.index("vol-003")
    assert "vol-002" not in page
    assert "3 more are in findings.csv." in page


def test_security_findings_are_in_batches_for_security_hub(reports: Reports) -> None:
    for n in range(101):
        reports.find(f"vol-{n:03}", check="unencrypted_volumes", monthly_usd=None, score=None)
    reports.find("vol-x", check="unencrypted_volumes", region="us-east-1")
    old = NOW - RESOLVED_FOR
    reports.find("vol-y", check="unencrypted_volumes", region="us-east-1", status="resolved", resolved_at=NOW - HOUR)
    reports.find("vol-z", check="unencrypted_volumes", region="us-east-1", status="resolved", resolved_at=old)
    reports.find("vol-waste")
    report = reports.generate()
    base = "reports/cloud/2026-11-22/01JOB/061000/asff/111111111111"
    keys = [key for key in reports.stored() if "/asff/" in key]
    assert keys == [f"{base}/eu-west-1/0001.json", f"{base}/eu-west-1/0002.json", f"{base}/us-east-1/0001.json"]
    assert [len(json.loads(reports.read(key))["Findings"]) for key in keys] == [100, 1, 2]
    states = [one["RecordState"] for one in json.loads(reports.read(keys[2]))["Findings"]]
    assert states == ["ACTIVE", "ARCHIVED"]
    assert all(key.startswith(report.documents["asff"].removeprefix(f"s3://{reports.bucket}/")) for key in keys)


def test_the_memory_it_takes_does_not_grow_with_the_findings(engine: Engine, s3: Any) -> None:
    """Of Postgres's; a report of what S3 holds has all of it in memory."""
    database = PostgresWorld(engine)
    reports = Reports(s3, database)
    reports.generate("01WARM")
    database.sql(
        "INSERT INTO lamplighter.findings (account_id, region, check_id, resource_id, resource_type, kind, title,"
        " severity, owner, monthly_usd, confidence, score, evidence, status, first_seen_at, last_seen_at, job_id)"
        " SELECT '111111111111', 'eu-west-1', (ARRAY['gp2_volumes', 'unencrypted_volumes'])[1 + mod(i, 2)],"
        " 'vol-' || i, 'AwsEc2Volume', 'volume', 'A title', 'low', 'owner ' || mod(i, 20), 1.25, 0.9, 1,"
        " jsonb_build_object('size', i, 'attached_to', repeat('i-0123456789abcdef0 ', 10)), 'open', :now, :now,"
        " '01SCAN' FROM generate_series(1, 20000) i",
        now=NOW,
    )
    tracemalloc.start()
    report = reports.generate()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.totals.all.findings == len(reports.lines(report)) == 20_000
    assert peak < len(reports.read(report.documents["json"])) / 2


class Page(HTMLParser):
    """What a page is made of."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.ids: set[str] = set()
        self.charts = 0
        self.tables: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.names.add(tag)
        if "id" in told:
            assert told["id"] not in self.ids
            self.ids.add(str(told["id"]))
        assert not {"src", "href", "srcset", "action"} & told.keys(), "nothing comes from elsewhere"
        assert not [name for name in told if name.startswith("on")]
        if tag == "svg":
            self.charts += 1
            assert told["role"] == "img" and told["aria-label"]
        if tag == "th":
            assert told["scope"] in ("row", "col")
        if tag == "table":
            section = [one for one in ("waste", "security", "exempted", "unknown") if one in self.ids][-1]
            self.tables[section] = self.tables.get(section, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def assert_well_formed(html: str) -> Page:
    """The page, each of whose elements ends where it should."""
    assert html.startswith("<!DOCTYPE html>\n")
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page
