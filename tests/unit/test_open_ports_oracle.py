"""`lamplighter.cloud.checks.open_ports` against an oracle that tries it out: packet by packet, port by port.

The oracle knows neither ranges of ports nor networks: it sends a packet from one address of each part of the internet
to each sensitive port, and everybody may come in if enough of them do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final

from hypothesis import assume, given
from hypothesis import strategies as st

from lamplighter.cloud.checks.open_ports import check
from lamplighter.cloud.inventory import Inventory, Permission, SecurityGroup
from lamplighter.kernel.cloud import Limits
from tests.inventories import group, inventory, judged

type Lists = Mapping[str, tuple[str, ...]]

SENSITIVE: Final = Limits().sensitive_ports
PARTS: Final = {4: 10, 6: 13}
"""An address stands for a part of the internet that is as wide as this prefix; ranges are wider, or far narrower."""
EVERYBODY: Final = {4: 1 << (10 - 4), 6: 1 << (13 - 12)}
"""So many parts: a sixteenth of IPv4, a /12 of IPv6."""
WITHIN: Final = 0x1234
"""Which address of a part; none of those that the registries set apart inside of a part."""


def internet() -> dict[int, list[int]]:
    """One public address for each part, by family."""
    four = (IPv4Address((part << 22) + WITHIN) for part in range(1 << 10))
    six = (IPv6Address((part << 115) + WITHIN) for part in range(1 << 10, 1 << 11))  # 2000::/3
    return {
        4: [int(one) for one in four if one.is_global and not one.is_multicast],
        6: [int(one) for one in six if one.is_global],
    }


INTERNET: Final = internet()


def senders(ranges: Iterable[str], family: int) -> frozenset[int]:
    """The addresses that come from these ranges."""
    return frozenset[int]().union(*(_senders(cidr) for cidr in ranges if ip_network(cidr).version == family))


@cache
def _senders(cidr: str) -> frozenset[int]:
    network = ip_network(cidr)
    first, last = int(network.network_address), int(network.broadcast_address)
    return frozenset(sender for sender in INTERNET[network.version] if first <= sender <= last)


def takes(permission: Permission, port: int) -> bool:
    """Whether a TCP or UDP packet to this port is let in, from somewhere."""
    if permission.protocol == "-1":
        return True
    assert permission.from_port is not None
    assert permission.to_port is not None
    return permission.protocol in {"tcp", "udp"} and permission.from_port <= port <= permission.to_port


def sources(permission: Permission, lists: Lists) -> dict[str, tuple[str, ...]]:
    return {cidr: (cidr,) for cidr in permission.cidrs} | {
        name: lists.get(name, ()) for name in permission.prefix_lists
    }


def everybody(permission: Permission, lists: Lists, family: int) -> bool:
    ranges = (one for those in sources(permission, lists).values() for one in those)
    count = len(senders(ranges, family))
    # Where private ranges make out less than a part, a hair's breadth decides, which this is too coarse for.
    assume(family == 6 or abs(count - EVERYBODY[family]) > 1)
    return count >= EVERYBODY[family]


def without(permission: Permission, names: set[str]) -> Permission:
    return replace(
        permission,
        cidrs=tuple(one for one in permission.cidrs if one not in names),
        prefix_lists=tuple(one for one in permission.prefix_lists if one not in names),
    )


def networks(bits: int, *widths: int) -> st.SearchStrategy[str]:
    kind = IPv4Address if bits == 32 else IPv6Address

    def network(pair: tuple[int, int]) -> str:
        width, number = pair
        return f"{kind(number >> (bits - width) << (bits - width))}/{width}"

    return st.tuples(st.sampled_from(widths), st.integers(0, (1 << bits) - 1)).map(network)


four = st.one_of(
    st.sampled_from(["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8"]),
    networks(32, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    networks(32, 24, 32),
)
six = st.one_of(
    st.sampled_from(["::/0", "2000::/3", "fc00::/7"]),
    networks(128, 1, 2, 3, 4, 8, 11, 12, 13),
    networks(128, 48, 128),
)


def some(cidrs: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(cidrs, max_size=6, unique=True).map(tuple)


near_sensitive = st.sampled_from(SENSITIVE).flatmap(lambda port: st.integers(port - 2, port + 2))
ends = st.tuples(near_sensitive, near_sensitive | st.integers(0, 65535)).map(sorted)
LISTS: Final = ("pl-1", "pl-2", "pl-unread")


@st.composite
def permissions(draw: st.DrawFn) -> Permission:
    protocol = draw(st.sampled_from(["tcp", "tcp", "udp", "-1", "icmp", "icmpv6", "50"]))
    first, last = draw(ends) if protocol != "-1" else (None, None)
    return Permission(
        protocol=protocol,
        from_port=first,
        to_port=last,
        cidrs=draw(some(four | six)),
        prefix_lists=draw(st.lists(st.sampled_from(LISTS), max_size=2, unique=True).map(tuple)),
        groups=draw(st.sampled_from([(), ("sg-2",)])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Inventory:
    ingress = draw(
        st.lists(permissions(), max_size=4, unique_by=lambda one: (one.protocol, one.from_port, one.to_port))
    )
    lists = {name: draw(some(four) | some(six)) for name in LISTS[:2]}  # a list is of one family
    return inventory(security_groups=(group(*ingress),), prefix_lists=lists)


def named(evidence: Mapping[str, Any], permission: Permission) -> set[str]:
    """The sources of a permission that the evidence says are at fault."""
    key = (permission.protocol, permission.from_port, permission.to_port)
    return {
        hole.get("cidr") or hole["prefix_list"]
        for hole in evidence["permissions"]
        if (hole["protocol"], hole["from_port"], hole["to_port"]) == key
    }


def open_by(group: SecurityGroup, lists: Lists) -> Iterator[tuple[Permission, int, int]]:
    """Permission, family and port of every way in for everybody."""
    for permission in group.ingress:
        for family in (4, 6):
            if everybody(permission, lists, family):
                yield from ((permission, family, port) for port in SENSITIVE if takes(permission, port))


@given(world=worlds())
def test_it_finds_what_everybody_can_reach(world: Inventory) -> None:
    (judged_group,) = world.security_groups
    ways = list(open_by(judged_group, world.prefix_lists))
    unread = any(
        "pl-unread" in permission.prefix_lists and any(takes(permission, port) for port in SENSITIVE)
        for permission in judged_group.ingress
    )
    judgement = judged(check, world)

    assert bool(judgement.findings) == bool(ways)
    assert bool(judgement.unknown) == (unread and not ways)
    for finding in judgement.findings:
        assert finding.evidence["sensitive_ports"] == sorted({port for _, _, port in ways})
        assert finding.evidence["unread_prefix_lists"] == ["pl-unread"] * unread


@given(world=worlds())
def test_to_revoke_what_it_names_is_enough_and_not_too_much(world: Inventory) -> None:
    """FAILURES 14: remediation removed valid rules (automated-security-response-on-aws #246)."""
    (judged_group,) = world.security_groups
    for finding in judged(check, world).findings:
        mended = [without(one, named(finding.evidence, one)) for one in judged_group.ingress]
        assert not judged(check, replace(world, security_groups=(group(*mended),))).findings
        assert not list(open_by(group(*mended), world.prefix_lists))
        for permission in judged_group.ingress:
            for family in (4, 6):
                held = sources(permission, world.prefix_lists)
                width = {name: len(senders(ranges, family)) for name, ranges in held.items()}
                at_fault = {name for name in named(finding.evidence, permission) if width[name]}
                assert bool(at_fault) == (
                    family in {way for _, way, _ in open_by(group(permission), world.prefix_lists)}
                )
                if at_fault:
                    narrowest = min(width[name] for name in at_fault)
                    assert all(width[name] <= narrowest for name in width.keys() - at_fault)
                    spared = {name for name in at_fault if width[name] == narrowest}
                    assert everybody(without(permission, at_fault - spared), world.prefix_lists, family)
