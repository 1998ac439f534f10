"""`lamplighter.cloud.exemptions` (REQUIREMENTS C13)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from lamplighter.cloud.check import Finding
from lamplighter.cloud.checks.open_ports import check
from lamplighter.cloud.exemptions import Exemptions
from lamplighter.kernel.errors import Permanent
from tests.inventories import NOW, group, inventory, judged, permission

GOOD = {"check": "open_ports", "resource": "sg-1", "reason": "The bastion", "owner": "ada", "expires": "2026-12-31"}
EVERYWHERE = {**GOOD, "resource": "*"}


def document(*entries: Any) -> str:
    return json.dumps({"exceptions": entries})


@pytest.fixture
def finding() -> Finding:
    (found,) = judged(check, inventory(security_groups=(group(permission("tcp", "22", "::/0")),))).findings
    return found


@pytest.mark.parametrize(
    "entry",
    [
        GOOD,
        EVERYWHERE,
        {**GOOD, "resource": "sg-?"},
        {**GOOD, "account": "111122223333", "region": "eu-west-1"},
    ],
    ids=str,
)
def test_an_exception_covers(finding: Finding, entry: dict[str, str]) -> None:
    exemption = Exemptions.parse(document(entry)).covering(finding, NOW)
    assert exemption
    assert exemption.as_json() == entry
    assert exemption.expires == date(2026, 12, 31)


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD, "check": "public_instances"},
        {**GOOD, "resource": "sg-2"},
        {**GOOD, "resource": "sg-"},
        {**GOOD, "resource": "SG-*"},
        {**EVERYWHERE, "account": "444455556666"},
        {**EVERYWHERE, "region": "eu-west-2"},
        {**EVERYWHERE, "expires": "2026-11-21"},
    ],
    ids=str,
)
def test_an_exception_does_not_cover(finding: Finding, entry: dict[str, str]) -> None:
    assert Exemptions.parse(document(entry)).covering(finding, NOW) is None


def test_an_id_with_the_letters_of_a_pattern_is_an_id_too(finding: Finding) -> None:
    odd = replace(finding, resource_id="a[b]*")
    assert Exemptions.parse(document({**GOOD, "resource": "a[b]*"})).covering(odd, NOW)


def test_no_exceptions(finding: Finding) -> None:
    assert Exemptions().covering(finding, NOW) is None
    assert Exemptions.parse(document()) == Exemptions()


def test_an_exception_ends_with_its_day_in_utc(finding: Finding) -> None:
    exemptions = Exemptions.parse(document(GOOD))
    midnight = datetime(2027, 1, 1, tzinfo=UTC)
    last = midnight - timedelta(microseconds=1)
    assert exemptions.covering(finding, last)
    assert exemptions.covering(finding, last.astimezone(timezone(timedelta(hours=13))))  # where it is 1 January
    assert exemptions.covering(finding, midnight) is None
    assert (exemptions.expired(last), exemptions.expired(midnight)) == ((), exemptions.entries)


def test_an_expired_exception_hides_none_that_is_in_force(finding: Finding) -> None:
    exemptions = Exemptions.parse(document({**GOOD, "expires": "2026-01-31"}, {**EVERYWHERE, "owner": "grace"}))
    covering = exemptions.covering(finding, NOW)
    assert covering
    assert covering.owner == "grace"
    assert [one.owner for one in exemptions.expired(NOW)] == ["ada"]
    assert exemptions.remark(NOW) == "Expired exceptions (1): open_ports sg-1 (ada, 2026-01-31)."
    assert Exemptions.parse(document(GOOD)).remark(NOW) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"^The exceptions are not a JSON document: Expecting value: line 1 column 1 \(char 0\)\.$"),
        (b"\xff\xfe\xff", "not a JSON document"),
        ('{"exceptions": [], "exceptions": []}', "two fields of one name among exceptions, exceptions"),
        ("[]", r'take a JSON object of one field: {"exceptions": \[\.\.\.\]}\.$'),
        ("{}", "take a JSON object of one field"),
        ('{"exceptions": [], "version": 1}', "take a JSON object of one field"),
        ('{"exceptions": {}}', r"^exceptions takes a list, got {}\.$"),
        (document(GOOD, "sg-1"), r'^exceptions\[1\] takes an object, got "sg-1"\.$'),
        (
            document({**GOOD, "until": "2027-01-31"}),
            r"^exceptions\[0\] has no field until \(known: check, resource, account, region, reason, owner, expires\)",
        ),
        (
            document({**GOOD, "check": "open_port"}),
            r"^exceptions\[0\]\.check takes the id of a check \(.*open_ports.*\)",
        ),
        (document({**GOOD, "resource": ""}), r"^exceptions\[0\]\.resource takes an id, or a pattern"),
        (document({**GOOD, "account": 111122223333}), r"\.account takes twelve digits, got 111122223333\.$"),
        (document({**GOOD, "account": None}), r"\.account takes twelve digits, got null\.$"),
        (document({**GOOD, "region": "eu-west-*"}), r'\.region takes a region such as eu-west-1, got "eu-west-\*"\.$'),
        (
            document({**GOOD, "expires": "31.12.2026"}),
            r'\.expires takes a date such as 2027-01-31, got "31\.12\.2026"\.$',
        ),
        (document({**GOOD, "expires": "2026-02-30"}), r"\.expires takes a date"),
        (document({**GOOD, "expires": "2026-12-31T00:00:00Z"}), r"\.expires takes a date"),
        *(
            (document({**GOOD, name: " "}), rf"^exceptions\[0\]\.{name} takes .*, got \" \"\.$")
            for name in ("reason", "owner")
        ),
        *(
            (document({k: v for k, v in GOOD.items() if k != name}), rf"^exceptions\[0\]\.{name} is missing: it takes ")
            for name in GOOD
        ),
    ],
)
def test_a_bad_document_is_refused_as_a_whole(text: str | bytes, sentence: str) -> None:
    with pytest.raises(Permanent, match=sentence):
        Exemptions.parse(text)
