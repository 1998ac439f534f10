"""`lamplighter.cloud.exposure`: who everybody is, and what the world can reach."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud.exposure import attachments, entrances, families, ports, unread
from lamplighter.cloud.inventory import Interface, LoadBalancer, Permission
from tests.inventories import NOW, instance, inventory, permission

EVERYBODY = [
    ["0.0.0.0/0"],
    ["::/0"],
    ["2000::/3"],  # all that is given out of IPv6
    ["0.0.0.0/1", "128.0.0.0/1"],
    ["2000::/4", "3000::/4"],
    ["64.0.0.0/2"],
    ["16.0.0.0/4"],
    ["32.0.0.0/5", "40.0.0.0/5"],
    ["2600::/12"],  # ARIN's
]
CROWD = [f"{first}.0.0.0/8" for first in range(20, 36)]
SOMEBODY = [
    [],
    ["203.0.113.7/32"],
    ["17.0.0.0/8"],  # Apple's
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"],
    ["224.0.0.0/3"],  # multicast and reserved: nobody's
    ["fc00::/7", "fe80::/10", "8000::/1"],  # nothing on the internet
    ["2001:db8::/32"],
    ["2608::/13"],  # a department of defence's
    CROWD[:-1],
    ["0.0.0.0/4"],  # two of its sixteen /8s are private
]
ALMOST = [*CROWD[:-1], *map(str, ip_network(CROWD[-1]).address_exclude(ip_network("35.7.0.0/16")))]
PRIVATE = [
    "0.7.0.0/16",
    "10.7.0.0/16",
    "100.64.0.0/16",
    "127.0.0.0/16",
    "169.254.0.0/16",
    "172.31.0.0/16",
    "192.168.0.0/16",
]


@pytest.mark.parametrize("ranges", [*EVERYBODY, CROWD], ids=" ".join)
def test_everybody_need_not_be_written_as_such(ranges: list[str]) -> None:
    found = entrances(permission("tcp", "22", *ranges), {})
    assert list(found) == ranges
    assert set(found.values()) == {ip_network(ranges[0]).version}
    assert entrances(permission("tcp", "22", prefix_lists=("pl-1",)), {"pl-1": tuple(ranges)}).keys() == {"pl-1"}


@pytest.mark.parametrize("ranges", SOMEBODY, ids=" ".join)
def test_somebody_is_not_everybody(ranges: list[str]) -> None:
    assert not entrances(permission("tcp", "22", *ranges), {"pl-1": ("0.0.0.0/0",)})
    assert not entrances(permission("tcp", "22", prefix_lists=("pl-1",)), {"pl-1": tuple(ranges)})


def test_private_addresses_do_not_count() -> None:
    for private in PRIVATE:
        assert not entrances(permission("tcp", "22", *ALMOST, private), {})
    assert entrances(permission("tcp", "22", *ALMOST, "35.7.0.0/16"), {})


def test_a_group_is_not_everybody() -> None:
    assert not entrances(permission("-1", "", groups=("sg-2",)), {})


@pytest.mark.parametrize("everybody", EVERYBODY, ids=" ".join)
@pytest.mark.parametrize("somebody", [["203.0.113.7/32", "10.0.0.0/8", "2001:db8::/32"], ["17.0.0.0/8"]], ids=" ".join)
def test_a_narrow_range_beside_everybody_is_kept(everybody: list[str], somebody: list[str]) -> None:
    """FAILURES 14: remediation removed valid rules (automated-security-response-on-aws #246)."""
    found = entrances(permission("tcp", "22", *somebody, *everybody, prefix_lists=("pl-1",)), {"pl-1": tuple(somebody)})
    assert list(found) == everybody


def test_what_is_left_when_the_widest_is_gone_is_not_everybody() -> None:
    """All but the private ranges, as people write it."""
    world = [
        *(
            "0.0.0.0/5",
            "8.0.0.0/7",
            "11.0.0.0/8",
            "12.0.0.0/6",
            "16.0.0.0/4",
            "32.0.0.0/3",
            "64.0.0.0/2",
            "128.0.0.0/3",
        ),
        *("160.0.0.0/5", "168.0.0.0/6", "172.0.0.0/12", "172.32.0.0/11", "173.0.0.0/8", "174.0.0.0/7", "176.0.0.0/4"),
        *("192.0.0.0/9", "192.128.0.0/11", "193.0.0.0/8", "194.0.0.0/7", "196.0.0.0/6", "200.0.0.0/5", "208.0.0.0/4"),
    ]
    found = entrances(permission("tcp", "22", *world), {})
    assert {"16.0.0.0/4", "64.0.0.0/2", "208.0.0.0/4"} <= found.keys()
    assert not entrances(permission("tcp", "22", *(one for one in world if one not in found)), {})


def test_a_list_that_could_not_be_read_is_named() -> None:
    both = permission("tcp", "22", "0.0.0.0/0", prefix_lists=("pl-1", "pl-2"))
    assert unread(both, {"pl-1": ()}) == ["pl-2"]
    assert entrances(both, {"pl-1": ()}) == {"0.0.0.0/0": 4}


@pytest.mark.parametrize(
    ("opener", "expected"),
    [
        (permission("tcp", "22"), range(22, 23)),
        (permission("udp", "20-25"), range(20, 26)),
        (permission("tcp", "0-65535"), range(65536)),
        (permission("-1", ""), range(65536)),
        (permission("-1", "22"), range(65536)),  # EC2 takes no ports with -1, others give them all the same
        (permission("tcp", ""), range(65536)),
        (Permission(protocol="tcp", from_port=-1, to_port=-1), range(65536)),
        (permission("6", "22"), range(22, 23)),  # as IANA numbers them
        (permission("17", "53"), range(53, 54)),
        (permission("58", "22"), range(0)),
        (permission("icmp", "8-0"), range(0)),
        (permission("icmpv6", "22"), range(0)),
        (permission("50", ""), range(0)),
    ],
    ids=str,
)
def test_ports(opener: Permission, expected: range) -> None:
    assert list(ports(opener)) == list(expected)


@given(first=st.integers(0, 65535), length=st.integers(0, 65535), port=st.integers(0, 65535))
def test_a_range_has_both_of_its_ends(first: int, length: int, port: int) -> None:
    last = min(first + length, 65535)
    opened = ports(Permission(protocol="tcp", from_port=first, to_port=last))
    assert (port in opened) == (first <= port <= last)
    assert first in opened
    assert last in opened


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "expected"),
    [
        ([], [], set()),
        (["54.1.2.3"], [], {4}),
        ([], ["2600:1f18::1"], {6}),
        ([], ["fd00::1"], set()),  # unique local: EC2 has those, too
        (["54.1.2.3"], ["fd00::1", "2600:1f18::1"], {4, 6}),
    ],
)
def test_how_the_world_can_address_something(ipv4: list[str], ipv6: list[str], expected: set[int]) -> None:
    assert families(ipv4, ipv6) == expected


def interface(**said: Any) -> Interface:
    return Interface(**{"id": "eni-1", "type": "interface", "security_groups": ("sg-1",), **said})


def balancer(**said: Any) -> LoadBalancer:
    return LoadBalancer(id="lb", name="lb", type="application", created_at=NOW, security_groups=("sg-1",), **said)


def test_an_interface_has_its_own_groups_and_addresses() -> None:
    """An instance's second, private interface is not exposed by what the first one has."""
    outside = interface(instance_id="i-1", public_addresses=("54.1.2.3",))
    inside = interface(id="eni-2", instance_id="i-1", security_groups=("sg-2",))
    whole = instance(security_groups=("sg-1", "sg-2"), public_addresses=("54.1.2.3",))
    assert attachments(inventory(interfaces=(outside, inside), instances=(whole,))) == {
        "sg-1": {"i-1": {4}},
        "sg-2": {"i-1": set()},
    }


def test_an_instance_counts_as_a_whole_where_interfaces_are_not_known() -> None:
    whole = instance(security_groups=("sg-1",), ipv6_addresses=("2600:1f18::1",))
    assert attachments(inventory(instances=(whole,))) == {"sg-1": {"i-1": {6}}}


def test_what_else_uses_a_group() -> None:
    world = inventory(
        interfaces=(interface(ipv6_addresses=("2600:1f18::1",)),), load_balancers=(balancer(internet_facing=True),)
    )
    assert attachments(world) == {"sg-1": {"eni-1": {6}, "lb": {4}}}
    assert attachments(inventory(load_balancers=(balancer(internet_facing=False),))) == {"sg-1": {"lb": set()}}
