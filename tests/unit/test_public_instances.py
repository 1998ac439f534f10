"""`lamplighter.cloud.checks.public_instances` (REQUIREMENTS C9)."""

from __future__ import annotations

from typing import Any

import pytest

from lamplighter.cloud.checks.public_instances import check
from lamplighter.cloud.inventory import Permission
from tests.inventories import TAGS, group, instance, inventory, judged, permission

PUBLIC = {"public_addresses": ("54.1.2.3",), "security_groups": ("sg-1",)}


def test_none() -> None:
    assert not judged(check, inventory()).findings


@pytest.mark.parametrize(
    "said",
    [{}, {"ipv6_addresses": ("fd00::1", "fe80::1")}, *({**PUBLIC, "tags": {"public-allowed": v}} for v in ("yes", ""))],
    ids=str,
)
def test_clean(said: dict[str, Any]) -> None:
    assert not judged(check, inventory(instances=(instance(**said),))).findings


@pytest.mark.parametrize(
    "said",
    [
        PUBLIC,
        {"ipv6_addresses": ("fd00::1", "2600:1f18::1")},
        *({**PUBLIC, "state": state} for state in ("pending", "stopping", "stopped")),
        *({**PUBLIC, "tags": {"public-allowed": value}} for value in ("no", "False", " 0 ", "off")),
        {**PUBLIC, "tags": {"Public-Allowed": "yes"}},  # another tag, to AWS
    ],
    ids=str,
)
def test_offending(said: dict[str, Any]) -> None:
    (finding,) = judged(check, inventory(instances=(instance(**said),))).findings
    assert finding.resource_id == "i-1"
    assert finding.evidence["public_addresses"] == list(said.get("public_addresses", ()))
    assert finding.evidence["ipv6_addresses"] == ["2600:1f18::1"][: "ipv6_addresses" in said]
    assert finding.evidence["tag"] == {"public-allowed": said.get("tags", {}).get("public-allowed")}


def test_the_tag_is_a_setting() -> None:
    allowed = instance(**PUBLIC, tags={**TAGS, "exposed": "by design"})
    assert judged(check, inventory(instances=(allowed,))).findings
    assert not judged(check, inventory(instances=(allowed,)), public_allowed_tag="exposed").findings


@pytest.mark.parametrize(
    ("permission", "ingress", "opened", "severity"),
    [
        (permission("tcp", "443", "0.0.0.0/0"), "open", ["tcp 443"], "high"),
        (permission("udp", "8000-8080", "10.0.0.0/8", "0.0.0.0/1"), "open", ["udp 8000-8080"], "high"),
        (permission("-1", "", "0.0.0.0/0"), "open", ["all 0-65535"], "high"),
        (permission("tcp", "22", "203.0.113.7/32"), "closed", [], "medium"),
        (permission("tcp", "443", "::/0"), "closed", [], "medium"),  # its address is IPv4
        (permission("icmp", "8-0", "0.0.0.0/0"), "closed", [], "medium"),
        (permission("-1", "", groups=("sg-1",)), "closed", [], "medium"),
        (permission("tcp", "22", prefix_lists=("pl-1",)), "unknown", [], "high"),
    ],
    ids=str,
)
def test_severity_is_by_who_may_come_in(permission: Permission, ingress: str, opened: list[str], severity: str) -> None:
    world = inventory(instances=(instance(**PUBLIC),), security_groups=(group(permission), group(id="sg-2")))
    (finding,) = judged(check, world).findings
    seen = finding.evidence
    assert (seen["ingress"], seen["open_to_everybody"], finding.severity) == (ingress, opened, severity)


def test_a_group_that_was_not_read_may_let_anybody_in() -> None:
    world = inventory(instances=(instance(**PUBLIC),), gaps={"security_groups": "UnauthorizedOperation"})
    (finding,) = judged(check, world).findings
    assert (finding.evidence["ingress"], finding.severity) == ("unknown", "high")


def test_unread_instances() -> None:
    judgement = judged(check, inventory(gaps={"instances": "UnauthorizedOperation"}))
    assert (judgement.judged, [unknown.resource_id for unknown in judgement.unknown]) == (frozenset(), ["*"])
