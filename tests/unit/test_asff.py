"""Findings as Security Hub takes them: what botocore's model of it demands, and what only its documentation does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import botocore.session
import pytest
from botocore.validate import ParamValidator

from lamplighter.cloud import asff
from lamplighter.cloud.checks import SECURITY
from lamplighter.cloud.reported import Exemption, ReportedFinding

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
LIMITS: Final[Mapping[str, int]] = {
    "Id": 512,
    "ProductArn": 2048,
    "ProductName": 128,
    "GeneratorId": 512,
    "AwsAccountId": 12,
    "Title": 256,
    "Description": 1024,
}
"""Characters, as the documentation of `AwsSecurityFinding` has them; each takes one at least."""
NAMESPACE: Final = "Software and Configuration Checks/"
RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

request = botocore.session.get_session().get_service_model("securityhub").operation_model("BatchImportFindings")


def finding(**values: Any) -> ReportedFinding:
    """One on security, open if not told otherwise."""
    given = {
        "id": 1,
        "status": "open",
        "account": "111122223333",
        "region": "eu-west-1",
        "check": "open_ports",
        "kind": "open_port",
        "title": "A port is open to the world",
        "severity": "critical",
        "resource_type": "AwsEc2SecurityGroup",
        "resource_id": "sg-0a1b2c3d",
        "owner": "ann",
        "monthly_usd": None,
        "counted_usd": 0,
        "confidence": 1,
        "score": None,
        "since": None,
        "first_seen": NOW - timedelta(days=3),
        "last_seen": NOW,
        "resolved_at": None,
        "reopened_at": None,
        "times_reopened": 0,
        "exemption": None,
        "evidence": {"port": 22, "cidrs": ["0.0.0.0/0"]},
    }
    return ReportedFinding.model_validate(given | values)


def assert_importable(document: dict[str, Any]) -> None:
    """Security Hub would take it."""
    report = ParamValidator().validate({"Findings": [document]}, request.input_shape)
    assert not report.has_errors(), report.generate_report()
    for name, limit in LIMITS.items():
        assert 1 <= len(document[name]) <= limit, name
    assert re.fullmatch(r"\d{12}", document["AwsAccountId"])
    assert document["SchemaVersion"] == "2018-10-08"
    for name in ("CreatedAt", "UpdatedAt", "FirstObservedAt", "LastObservedAt"):
        assert RFC_3339.fullmatch(document[name]), name
    assert document["CreatedAt"] <= document["UpdatedAt"]
    assert document["Types"] and all(each.startswith(NAMESPACE) and each.count("/") <= 2 for each in document["Types"])
    assert document["FindingProviderFields"]["Types"] == document["Types"]
    assert document["Severity"]["Label"] in ("INFORMATIONAL", "LOW", "MEDIUM", "HIGH", "CRITICAL")
    assert 0 <= document["Confidence"] <= 100
    assert document["RecordState"] in ("ACTIVE", "ARCHIVED")
    [resource] = document["Resources"]
    assert 1 <= len(resource["Region"]) <= 16
    assert 1 <= len(resource["Type"]) <= 256
    assert resource["Id"]
    for pairs, length in ((document["ProductFields"], 2048), (resource.get("Details", {"Other": {}})["Other"], 1024)):
        assert len(pairs) <= 50
        for key, value in pairs.items():
            assert 1 <= len(key) <= 128
            assert 1 <= len(value) <= length
            assert key.strip() and value.strip()


def test_a_finding_is_importable() -> None:
    document = asff.document(finding())
    assert_importable(document)
    assert document["Id"] == "lamplighter/111122223333/eu-west-1/open_ports/sg-0a1b2c3d"
    assert document["ProductArn"] == "arn:aws:securityhub:eu-west-1:111122223333:product/111122223333/default"
    assert document["Resources"][0]["Id"] == "arn:aws:ec2:eu-west-1:111122223333:security-group/sg-0a1b2c3d"
    assert document["Resources"][0]["Details"]["Other"] == {"port": "22", "cidrs": '["0.0.0.0/0"]'}
    assert document["FindingProviderFields"]["Severity"] == {"Label": "CRITICAL", "Original": "critical"}
    assert (document["RecordState"], document["Compliance"]) == ("ACTIVE", {"Status": "FAILED"})


@pytest.mark.parametrize("check", SECURITY, ids=lambda check: check.id)
def test_the_findings_of_each_check_are(check: Any) -> None:
    values = {"check": check.id, "kind": check.kind, "title": check.title, "severity": check.severity}
    document = asff.document(finding(resource_type=check.resource_type, **values))
    assert_importable(document)
    assert document["Remediation"] == {"Recommendation": {"Text": check.advice}}
    assert 1 <= len(check.advice) <= 512


@pytest.mark.parametrize(
    "values",
    [
        {"evidence": {}, "owner": None},
        {"evidence": {"": "x", " ": "x", "empty": "", "blank": " \n", "none": None, "false": False, "zero": 0}},
        {"evidence": {f"{'k' * 200}{n}": "v" * 5_000 for n in range(80)}},
        {"resource_id": "/aws/lambda/" + "x" * 600, "resource_type": "Other", "title": "t" * 400},
        {"region": "cn-northwest-1"},
        {"region": "us-gov-west-1", "confidence": 0.123456},
        {"owner": "ü😀" * 3_000},
        {"check": "one_that_was_taken_out"},
    ],
    ids=["bare", "blank", "much", "long", "china", "government", "owner", "unknown check"],
)
def test_whatever_was_found(values: dict[str, Any]) -> None:
    assert_importable(asff.document(finding(**values)))


def test_what_is_resolved_is_archived() -> None:
    document = asff.document(finding(status="resolved", last_seen=NOW - timedelta(hours=1), resolved_at=NOW))
    assert_importable(document)
    assert (document["RecordState"], document["Compliance"]) == ("ARCHIVED", {"Status": "PASSED"})
    assert document["UpdatedAt"] == "2026-11-22T06:10:00.000Z"


def test_what_is_exempted_is_archived_and_says_why() -> None:
    """`Workflow` would not do: an import cannot change it, and a suppressed finding would never come back."""
    exemption = Exemption(reason="a bastion", owner="ann", expires="2027-01-31")
    document = asff.document(finding(exemption=exemption))
    assert_importable(document)
    assert (document["RecordState"], document["Workflow"]) == ("ARCHIVED", {"Status": "NEW"})
    assert document["ProductFields"]["lamplighter/exemption-reason"] == "a bastion"


def test_ids_are_stable_and_of_one_finding_each() -> None:
    later = {"id": 7, "last_seen": NOW + timedelta(days=1), "severity": "low", "evidence": {}}
    assert asff.document(finding())["Id"] == asff.document(finding(**later))["Id"]
    long = "x" * 600
    others: list[dict[str, Any]] = [
        {"resource_id": "sg-1"},
        {"check": "missing_tags"},
        {"region": "us-east-1"},
        {"account": "444455556666"},
        {"resource_id": f"{long}1"},
        {"resource_id": f"{long}2"},
    ]
    assert len({asff.document(finding(**values))["Id"] for values in ({}, *others)}) == 7


@pytest.mark.parametrize(
    ("resource", "arn"),
    [
        ("i-0a", "arn:aws:ec2:eu-west-1:111122223333:instance/i-0a"),
        ("vol-0a", "arn:aws:ec2:eu-west-1:111122223333:volume/vol-0a"),
        ("snap-0a", "arn:aws:ec2:eu-west-1::snapshot/snap-0a"),
        ("arn:aws:some:thing", "arn:aws:some:thing"),
        ("my-name", "my-name"),
    ],
)
def test_a_resource_is_named_by_its_arn_where_that_is_known(resource: str, arn: str) -> None:
    assert asff.document(finding(resource_id=resource))["Resources"][0]["Id"] == arn


def test_batches_are_of_one_account_and_region_each() -> None:
    found = [finding(account=account, region=region) for account, region, n in PLACES for _ in range(n)]
    made = list(asff.batches(found))
    assert [(name, len(batch["Findings"])) for name, batch in made] == [
        ("111122223333/eu-west-1/0001", 100),
        ("111122223333/eu-west-1/0002", 100),
        ("111122223333/eu-west-1/0003", 1),
        ("111122223333/us-east-1/0001", 2),
        ("444455556666/eu-west-1/0001", 3),
    ]
    for _, batch in made:
        assert not ParamValidator().validate(batch, request.input_shape).has_errors()
    assert list(asff.batches([])) == []


PLACES: Final = (
    ("111122223333", "eu-west-1", 201),
    ("111122223333", "us-east-1", 2),
    ("444455556666", "eu-west-1", 3),
)
