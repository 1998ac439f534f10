"""Findings as AWS Security Hub takes them: the AWS Security Finding Format, in batches of BatchImportFindings.

Only findings on security: Security Hub bills each finding that it is sent, and has no type for waste. Each batch is of
one account and region, because a custom integration may import only an account's own findings, in their region
("BatchImportFindings", AWS Security Hub API Reference). A finding keeps its `Id` for ever, so importing it again
updates it. What is resolved or exempted is archived; Security Hub leaves `Workflow` to its users after a finding was
first imported, so that is not what says it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import batched, groupby
from typing import Any, Final

from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.reported import ReportedFinding

BATCH: Final = 100
"""Findings of a batch; it may have 6 MB ("Guidelines for using the BatchImportFindings API"), which is far more than
so many have."""

_BEST_PRACTICES: Final = "Software and Configuration Checks/AWS Security Best Practices"
_REACHABLE: Final = f"{_BEST_PRACTICES}/Network Reachability"
_TYPES: Final[Mapping[str, str]] = {
    "public_instances": _REACHABLE,
    "open_ports": _REACHABLE,
    "outdated_images": "Software and Configuration Checks/Patch Management",
}
"""By check, where not best practices ("Types taxonomy for ASFF")."""

_ARNS: Final[Mapping[str, str]] = {
    "i": "{account}:instance/{id}",
    "vol": "{account}:volume/{id}",
    "sg": "{account}:security-group/{id}",
    "snap": ":snapshot/{id}",
}
"""How ARNs of EC2's resources end, by what their ids begin with ("Actions, resources, and condition keys for Amazon
EC2")."""

_ID_LIMIT: Final = 512
_TITLE_LIMIT: Final = 256
_DESCRIPTION_LIMIT: Final = 1024
_PAIRS_LIMIT: Final = 50
_KEY_LIMIT: Final = 128
_VALUE_LIMIT: Final = 1024


def batches(findings: Iterable[ReportedFinding]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of BatchImportFindings, each with its name `<account>/<region>/<number>`; `findings` come by account
    and region."""
    for (account, region), group in groupby(findings, key=lambda finding: (finding.account, finding.region)):
        for number, batch in enumerate(batched(group, BATCH, strict=False), start=1):
            yield f"{account}/{region}/{number:04}", {"Findings": [document(each) for each in batch]}


def document(finding: ReportedFinding) -> dict[str, Any]:
    """A finding as an `AwsSecurityFinding`."""
    severity = {"Label": finding.severity.upper(), "Original": finding.severity}
    types = [_TYPES.get(finding.check, _BEST_PRACTICES)]
    confidence = round(finding.confidence * 100)
    gone, partition = finding.status == "resolved", _partition(finding.region)
    hub = f"arn:{partition}:securityhub:{finding.region}:{finding.account}"
    own = f"lamplighter/{finding.account}/{finding.region}/{finding.check}/{finding.resource_id}"
    return {
        "SchemaVersion": "2018-10-08",
        "Id": own if len(own) <= _ID_LIMIT else f"lamplighter/{hashlib.sha256(own.encode()).hexdigest()}",
        "ProductArn": f"{hub}:product/{finding.account}/default",
        "ProductName": "Lamplighter",
        "GeneratorId": f"lamplighter/{finding.check}",
        "AwsAccountId": finding.account,
        "CreatedAt": _moment(finding.first_seen),
        "UpdatedAt": _moment(finding.resolved_at or finding.last_seen),
        "FirstObservedAt": _moment(finding.since or finding.first_seen),
        "LastObservedAt": _moment(finding.last_seen),
        "Title": _cut(finding.title, _TITLE_LIMIT),
        "Description": _cut(_description(finding), _DESCRIPTION_LIMIT),
        "Types": types,
        "Severity": severity,
        "Confidence": confidence,
        "FindingProviderFields": {"Confidence": confidence, "Severity": severity, "Types": types},
        **({"Remediation": {"Recommendation": {"Text": check.advice}}} if (check := BY_ID.get(finding.check)) else {}),
        "Compliance": {"Status": "PASSED" if gone else "FAILED"},
        "Workflow": {"Status": "NEW"},
        "RecordState": "ARCHIVED" if gone or finding.exemption else "ACTIVE",
        "ProductFields": _fields(finding),
        "Resources": [
            {
                "Type": finding.resource_type,
                "Id": _resource(finding),
                "Partition": partition,
                "Region": finding.region,
                **({"Details": {"Other": evidence}} if (evidence := _pairs(finding.evidence)) else {}),
            }
        ],
    }


def _description(finding: ReportedFinding) -> str:
    seen = "; ".join(f"{name}: {value}" for name, value in _pairs(finding.evidence).items())
    return f"{finding.title}: {finding.resource_id}. {seen}".strip()


def _fields(finding: ReportedFinding) -> dict[str, str]:
    exemption = finding.exemption
    return _pairs(
        {
            "lamplighter/check": finding.check,
            "lamplighter/kind": finding.kind,
            "lamplighter/owner": finding.owner,
            "lamplighter/exemption-reason": exemption and exemption.reason,
            "lamplighter/exemption-owner": exemption and exemption.owner,
            "lamplighter/exemption-expires": exemption and exemption.expires,
        }
    )


def _pairs(values: Mapping[str, Any]) -> dict[str, str]:
    """As a map of text to text may have them: neither key nor value is blank or long."""
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    filled = [(name, value) for name, value in told.items() if name.strip() and value.strip() and value != "null"]
    return {_cut(name, _KEY_LIMIT): _cut(value, _VALUE_LIMIT) for name, value in filled[:_PAIRS_LIMIT]}


def _resource(finding: ReportedFinding) -> str:
    """The resource's ARN, where it is known how its kind's looks; its id otherwise."""
    kind, dash, _ = finding.resource_id.partition("-")
    if dash and kind in _ARNS:
        end = _ARNS[kind].format(account=finding.account, id=finding.resource_id)
        return f"arn:{_partition(finding.region)}:ec2:{finding.region}:{end}"
    return finding.resource_id


def _partition(region: str) -> str:
    for beginning, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region.startswith(beginning):
            return partition
    return "aws"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
