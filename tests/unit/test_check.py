"""`lamplighter.cloud.check`: how what checks find becomes findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lamplighter.cloud import checks
from lamplighter.cloud.check import Basis, Check, Found, Unknown, score, wanted
from lamplighter.cloud.inventory import Inventory
from tests.inventories import DAY, NOW, TAGS, inventory, judged, volume


def check(*yielded: Found | Unknown, **said: Any) -> Check:
    def find(_inventory: Inventory, _basis: Basis) -> Iterator[Found | Unknown]:
        yield from yielded

    usual: dict[str, Any] = {
        "title": "A thing is wrong",
        "advice": "Mend it.",
        "kind": "things",
        "severity": "medium",
        "needs": ("volumes",),
    }
    return Check(id="things", resource_type="AwsEc2Volume", find=find, **{**usual, **said})


def test_a_finding_has_what_the_check_says_where_the_resource_says_nothing_else() -> None:
    found = Found(resource_id="vol-1", tags=TAGS, evidence={})
    (finding,) = judged(check(found), inventory()).findings
    assert (finding.account, finding.region, finding.owner) == ("111122223333", "eu-west-1", "ada")
    assert (finding.severity, finding.resource_type) == ("medium", "AwsEc2Volume")

    own = replace(found, severity="critical", resource_type="AwsEc2Instance", tags={"Owner": ""})
    (finding,) = judged(check(own), inventory()).findings
    assert (finding.severity, finding.resource_type, finding.owner) == ("critical", "AwsEc2Instance", None)


def test_a_check_is_not_asked_without_what_it_needs() -> None:
    offender = check(Found(resource_id="vol-1", tags={}, evidence={}))
    judgement = judged(offender, inventory(gaps={"volumes": "AccessDenied", "images": "AccessDenied"}))
    assert (judgement.findings, judgement.judged) == ((), frozenset())
    (unknown,) = judgement.unknown
    assert (unknown.resource_id, unknown.reason) == ("*", "volumes: AccessDenied")


def test_a_check_is_asked_without_what_only_helps_it() -> None:
    offender = check(Found(resource_id="vol-1", tags={}, evidence={}), helped_by=("images",))
    judgement = judged(offender, inventory(gaps={"images": "AccessDenied"}))
    assert [finding.resource_id for finding in judgement.findings] == ["vol-1"]
    assert (judgement.unknown, judgement.judged) == ((), {"things"})
    assert wanted([offender, check(needs=("instances",))]) == {"volumes", "images", "instances"}


def test_what_cannot_be_judged_is_neither_found_nor_in_order() -> None:
    judgement = judged(check(Unknown(resource_id="vol-1", reason="Nobody knows.")), inventory(volumes=(volume(),)))
    assert (judgement.findings, judgement.judged) == ((), {"things"})
    assert [(unknown.resource_id, unknown.reason) for unknown in judgement.unknown] == [("vol-1", "Nobody knows.")]


@pytest.mark.parametrize(
    ("age_days", "weighed"), [(None, 5.0), (0, 5.0), (73, 6.0), (365, 10.0), (3650, 10.0), (-1, 5.0)]
)
def test_dollars_are_weighed_by_confidence_and_age(age_days: int | None, weighed: float) -> None:
    since = None if age_days is None else NOW - age_days * DAY
    found = Found(resource_id="vol-1", tags={}, evidence={}, monthly_usd=10, confidence=0.5, since=since)
    assert score(found, NOW) == pytest.approx(weighed)


def test_what_has_no_price_has_no_score() -> None:
    assert score(Found(resource_id="vol-1", tags={}, evidence={}), NOW) is None


@pytest.mark.parametrize("check", checks.BY_ID.values(), ids=lambda check: check.id)
def test_each_check_is_named_as_its_module_and_names_fields_that_there_are(check: Check) -> None:
    assert check.find.__module__ == f"{checks.__name__}.{check.id}"
    assert {*check.needs, *check.helped_by} <= set(Inventory.__dataclass_fields__) - {"account", "region", "gaps"}
    assert not set(check.needs) & set(check.helped_by)
    assert check.needs
