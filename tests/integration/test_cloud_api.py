"""What the API tells of findings and of the reports on them (REQUIREMENTS C7, C14)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from ulid import ULID

from tests.api_requests import get, problem
from tests.integration.reports_world import DAY, HOUR, NOW, Reports

pytestmark = pytest.mark.usefixtures("function_variables")


@pytest.fixture
def function_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STACK_NAME": "lamplighter", "POWERTOOLS_SERVICE_NAME": "lamplighter"}.items():
        monkeypatch.setenv(name, value)


def resources(**query: Any) -> list[str]:
    """The resources of a page of findings."""
    answer = get("/api/cloud/findings", **query)
    assert answer.status == 200, answer.body
    return [finding["resource_id"] for finding in answer.body["findings"]]


def read_through(path: str, what: str, **query: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        body = get(path, **query, **cursor).body
        found += body[what]
        assert len(body[what]) <= query["limit"]
        if body["next"] is None:
            return found
        cursor = {"cursor": body["next"]}


def test_nothing_found_is_an_empty_page(reports: Reports) -> None:
    assert get("/api/cloud/findings").body == {"findings": [], "next": None}
    assert get("/api/cloud/reports").body == {"reports": [], "next": None}


def test_the_most_expensive_come_first_or_the_newest(reports: Reports) -> None:
    reports.find("vol-cheap", monthly_usd=1.0, first_seen=NOW - HOUR)
    reports.find("vol-free", monthly_usd=None, first_seen=NOW)
    reports.find("vol-dear", monthly_usd=9.5, first_seen=NOW - DAY)
    assert resources() == ["vol-dear", "vol-cheap", "vol-free"]
    assert resources(order="newest") == ["vol-free", "vol-cheap", "vol-dear"]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "resolved"},
        {"severity": "critical"},
        {"check": "open_ports"},
        {"kind": "open_port"},
        {"account": "222222222222"},
        {"region": "us-east-1"},
        {"owner": "bob & co/ü"},
        {"exempted": "true"},
    ],
    ids=lambda query: next(iter(query)),
)
def test_findings_are_filtered(reports: Reports, query: dict[str, str]) -> None:
    [(name, value)] = query.items()
    wanted: dict[str, Any] = {name: value}
    if name == "exempted":
        wanted = {"exemption": {"reason": "a spare", "owner": "ann", "expires": "2999-12-31"}}
    check = wanted.pop("check", "unattached_volumes")
    reports.find("vol-other")
    reports.find("vol-wanted", check=check, **wanted)
    assert resources(**query) == ["vol-wanted"]


def test_pages_give_each_finding_once_however_many_are_alike(reports: Reports) -> None:
    for n in range(23):
        price = None if n % 5 == 0 else 0.1 + 0.2 * (n % 3)
        reports.find(f"vol-{n:02}", monthly_usd=price, first_seen=NOW + (1 + n % 4) * timedelta(microseconds=1))
    for order in ("cost", "newest"):
        found = read_through("/api/cloud/findings", "findings", order=order, limit=4)
        assert sorted(one["resource_id"] for one in found) == [f"vol-{n:02}" for n in range(23)]
        keys = [one["monthly_usd"] or -1 if order == "cost" else one["first_seen"] for one in found]
        assert keys == sorted(keys, reverse=True)


def test_a_finding_is_shown_with_all_there_is_of_it(reports: Reports) -> None:
    exemption = {"check": "open_ports", "reason": "the bastion", "owner": "ann", "expires": "2999-12-31"}
    reports.find("sg-1", check="open_ports", evidence={"port": 22}, exemption=exemption, since=NOW - DAY)
    [listed] = get("/api/cloud/findings").body["findings"]
    shown = get(f"/api/cloud/findings/{listed['id']}").body
    assert shown == listed
    assert shown["evidence"] == {"port": 22}
    assert shown["exemption"] == exemption
    assert (shown["check"], shown["since"], shown["job_id"]) == ("open_ports", "2026-11-21T06:10:00Z", "01SCAN")


def test_an_exception_that_has_expired_since_the_scan_exempts_nothing(reports: Reports) -> None:
    """C13; as in the report."""
    exemption = {"check": "open_ports", "reason": "the bastion", "owner": "ann", "expires": "2020-01-31"}
    reports.find("sg-1", check="open_ports", exemption=exemption)
    assert (resources(exempted="true"), resources(exempted="false")) == ([], ["sg-1"])
    [listed] = get("/api/cloud/findings").body["findings"]
    assert listed["exemption"] is None
    assert get(f"/api/cloud/findings/{listed['id']}").body == listed


def test_a_finding_that_is_not_there_is_not_found(reports: Reports) -> None:
    assert problem(get("/api/cloud/findings/4711"))[:2] == (404, "not-found")


def test_reports_are_listed_newest_first_with_what_they_came_to(reports: Reports) -> None:
    reports.find("vol-1", monthly_usd=12.5)
    jobs = [str(ULID()) for _ in range(5)]
    for n, job_id in enumerate(jobs):
        reports.generate(job_id, now=NOW + n * HOUR)
    reports.generate(str(ULID()), now=NOW, job_type="security_enforcement")
    found = read_through("/api/cloud/reports", "reports", job_type="waste_scan", limit=2)
    assert [one["job_id"] for one in found] == jobs[::-1]
    assert {(one["monthly_usd"], one["findings"]) for one in found} == {(12.5, 1)}
    assert found[0]["documents"]["html"].endswith(f"/{jobs[4]}/101000/report.html")
    assert len(read_through("/api/cloud/reports", "reports", limit=4)) == 6


@pytest.mark.parametrize(
    ("path", "at_fault"),
    [
        ("findings?status=closed", "query.status"),
        ("findings?severity=bad", "query.severity"),
        ("findings?limit=101", "query.limit"),
        ("findings?account=1", "query.account"),
        ("findings?owner=a%00b", "query.owner"),
        ("findings?acount=111111111111", "query.acount"),
        ("findings?cursor=nonsense", "query.cursor"),
        ("findings?cursor=" + quote("W05hTiwxXQ"), "query.cursor"),
        ("findings?cursor=ü", "query.cursor"),
        ("reports?cursor=WzEsIlxcdTAwMDAiXQ", "query.cursor"),
        ("findings/nobody", "path.finding_id"),
        ("findings/99999999999999999999", "path.finding_id"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(reports: Reports, path: str, at_fault: str) -> None:
    answer = get(f"/api/cloud/{path}")
    assert problem(answer)[:2] == (422, "invalid-request")
    assert [error["field"] for error in answer.body["errors"]] == [at_fault]
