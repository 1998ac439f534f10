"""`lamplighter.cloud.checks.open_ports` (REQUIREMENTS C10)."""

from __future__ import annotations

from typing import Any

import pytest

from lamplighter.cloud.checks.open_ports import NAMED, check
from lamplighter.cloud.inventory import Interface, Permission
from tests.inventories import TAGS, group, inventory, judged, permission

SSH = {"protocol": "tcp", "from_port": 22, "to_port": 22, "cidr": "0.0.0.0/0"}


def interface(id: str = "eni-1", **said: Any) -> Interface:
    return Interface(**{"id": id, "type": "interface", "security_groups": ("sg-1",), **said})


def evidence(*ingress: Permission, **said: Any) -> Any:
    (finding,) = judged(check, inventory(security_groups=(group(*ingress),), **said)).findings
    return finding.evidence


def test_none() -> None:
    judgement = judged(check, inventory())
    assert (judgement.findings, judgement.unknown, judgement.judged) == ((), (), {"open_ports"})


@pytest.mark.parametrize(
    "clean",
    [
        permission("tcp", "22", "203.0.113.7/32", "10.0.0.0/8", "2001:db8::/32"),
        permission("tcp", "443", "0.0.0.0/0", "::/0"),
        permission("tcp", "8022", "0.0.0.0/0"),
        permission("icmp", "8-0", "0.0.0.0/0"),
        permission("icmp", "22", "0.0.0.0/0"),  # type 22, not port 22
        permission("icmpv6", "", "::/0"),
        permission("50", "", "0.0.0.0/0"),
        permission("-1", "", groups=("sg-2",)),
        permission("tcp", "22", prefix_lists=("pl-office",)),
        permission("tcp", "443", prefix_lists=("pl-unread",)),
    ],
    ids=str,
)
def test_clean(clean: Permission) -> None:
    world = inventory(security_groups=(group(clean),), prefix_lists={"pl-office": ("203.0.113.0/24",)})
    judgement = judged(check, world)
    assert (judgement.findings, judgement.unknown) == ((), ())


@pytest.mark.parametrize(
    ("open_to_all", "ports"),
    [
        (permission("tcp", "22", "0.0.0.0/0"), [22]),
        (permission("udp", "11211", "0.0.0.0/0"), [11211]),
        (permission("tcp", "20-25", "0.0.0.0/0"), [21, 22, 23, 25]),
        (permission("tcp", "5432", "::/0"), [5432]),
        (permission("tcp", "3306", "0.0.0.0/1", "128.0.0.0/1"), [3306]),
        (permission("tcp", "3389", prefix_lists=("pl-world",)), [3389]),
    ],
    ids=str,
)
def test_offending(open_to_all: Permission, ports: list[int]) -> None:
    seen = evidence(open_to_all, prefix_lists={"pl-world": ("198.51.100.0/24", "0.0.0.0/0")})
    assert seen["sensitive_ports"] == ports
    sources = [{"cidr": cidr} for cidr in open_to_all.cidrs] + [
        {"prefix_list": one} for one in open_to_all.prefix_lists
    ]
    said = {"protocol": open_to_all.protocol, "from_port": open_to_all.from_port, "to_port": open_to_all.to_port}
    assert seen["permissions"] == [{**said, **source} for source in sources]


def test_all_protocols_open_all_ports() -> None:
    seen = evidence(permission("-1", "", "::/0"))
    assert seen["permissions"] == [{"protocol": "-1", "from_port": None, "to_port": None, "cidr": "::/0"}]
    assert {22, 3389, 50070} < set(seen["sensitive_ports"])


def test_the_evidence_is_what_may_be_revoked_and_nothing_beside() -> None:
    """FAILURES 14: remediation removed valid rules (automated-security-response-on-aws #246)."""
    seen = evidence(
        permission("tcp", "22", "203.0.113.7/32", "0.0.0.0/0", "10.0.0.0/8", groups=("sg-2",), prefix_lists=("pl-1",)),
        permission("tcp", "443", "0.0.0.0/0"),
        permission("tcp", "5432", "10.0.0.0/8", groups=("sg-3",)),
        permission("icmp", "8-0", "0.0.0.0/0"),
        prefix_lists={"pl-1": ("203.0.113.0/24",)},
    )
    assert seen["permissions"] == [SSH]


def test_which_ports_are_sensitive_is_a_setting() -> None:
    world = inventory(security_groups=(group(permission("tcp", "22", "0.0.0.0/0"), permission("udp", "53", "::/0")),))
    (finding,) = judged(check, world, sensitive_ports=(53, 8080)).findings
    assert finding.evidence["sensitive_ports"] == [53]


@pytest.mark.parametrize(
    ("cidr", "interfaces", "exposure", "severity"),
    [
        ("0.0.0.0/0", [], "unattached", "low"),
        ("0.0.0.0/0", [interface(security_groups=("sg-2",), public_addresses=("54.1.2.3",))], "unattached", "low"),
        ("0.0.0.0/0", [interface()], "private", "medium"),
        ("0.0.0.0/0", [interface(), interface("eni-2", public_addresses=("54.1.2.3",))], "public", "critical"),
        ("::/0", [interface(ipv6_addresses=("2600:1f18::1",))], "public", "critical"),
        ("::/0", [interface(ipv6_addresses=("fd00::1",))], "private", "medium"),
        ("::/0", [interface(public_addresses=("54.1.2.3",))], "private", "medium"),
        ("0.0.0.0/0", [interface(ipv6_addresses=("2600:1f18::1",))], "private", "medium"),
    ],
)
def test_severity_is_by_real_exposure(cidr: str, interfaces: list[Interface], exposure: str, severity: str) -> None:
    ssh = group(permission("tcp", "22", cidr))
    (finding,) = judged(check, inventory(security_groups=(ssh,), interfaces=tuple(interfaces))).findings
    assert (finding.evidence["exposure"], finding.severity) == (exposure, severity)


def test_through_what_it_is_exposed() -> None:
    interfaces = [interface(f"eni-{number:03}", public_addresses=("54.1.2.3",)) for number in range(50)]
    inside = interface("eni-inside", instance_id="i-1")
    seen = evidence(permission("tcp", "22", "0.0.0.0/0"), interfaces=(*interfaces, inside))
    assert seen["attachments"] == 51
    assert seen["exposed_through"] == seen["attached_to"] == [f"eni-{number:03}" for number in range(NAMED)]


def test_a_hole_is_told_of_though_nobody_knows_what_it_leads_to() -> None:
    gaps = {"interfaces": "UnauthorizedOperation"}
    world = inventory(security_groups=(group(permission("tcp", "22", "0.0.0.0/0")),), gaps=gaps)
    (finding,) = judged(check, world).findings
    assert (finding.severity, finding.evidence["exposure"]) == ("high", "unknown")
    assert finding.evidence["not_read"] == "interfaces: UnauthorizedOperation"


def test_a_list_that_could_not_be_read_is_unknown() -> None:
    office, other = permission("tcp", "22", "10.0.0.0/8", prefix_lists=("pl-1", "pl-2")), permission("tcp", "80")
    world = inventory(security_groups=(group(office, other), group(other, id="sg-2")), prefix_lists={"pl-2": ()})
    judgement = judged(check, world)
    assert not judgement.findings
    (unknown,) = judgement.unknown
    assert (unknown.resource_id, unknown.reason) == ("sg-1", "Whom pl-1 lets in is not known: it could not be read.")


def test_no_list_could_be_read() -> None:
    """Groups that name none are judged all the same."""
    listed = group(permission("tcp", "22", prefix_lists=("pl-1",)), id="sg-2")
    world = inventory(
        security_groups=(group(permission("tcp", "22", "0.0.0.0/0")), listed), gaps={"prefix_lists": "Throttling"}
    )
    judgement = judged(check, world)
    assert [finding.resource_id for finding in judgement.findings] == ["sg-1"]
    assert [unknown.reason for unknown in judgement.unknown] == ["Whom pl-1 lets in is not known: Throttling."]


def test_an_open_group_with_an_unread_list_is_found_and_says_so() -> None:
    seen = evidence(permission("tcp", "22", "0.0.0.0/0", prefix_lists=("pl-1",)))
    assert (seen["permissions"], seen["unread_prefix_lists"]) == ([SSH], ["pl-1"])


def test_unread_groups() -> None:
    judgement = judged(check, inventory(gaps={"security_groups": "UnauthorizedOperation"}))
    assert (judgement.judged, [unknown.resource_id for unknown in judgement.unknown]) == (frozenset(), ["*"])


def test_a_group_has_its_owner() -> None:
    (finding,) = judged(check, inventory(security_groups=(group(permission("tcp", "22", "::/0")),))).findings
    assert (finding.owner, finding.resource_type) == (TAGS["Owner"], "AwsEc2SecurityGroup")
