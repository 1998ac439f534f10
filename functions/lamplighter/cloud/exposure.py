"""What the world can reach: whom a permission of a security group lets in, by what ports, and to what.

Everybody need not be written `0.0.0.0/0`: its two halves are as wide, and so is a prefix list that holds it. A
permission lets everybody in if its sources together have as many public addresses as `EVERYBODY` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import collapse_addresses, ip_address, ip_network
from itertools import chain
from typing import Any, Final, Literal

from lamplighter.cloud.inventory import Inventory, Permission

type Family = Literal[4, 6]
"""IPv4 or IPv6."""
type Network = Any
"""`IPv4Network` or `IPv6Network`: ipaddress has no name for either."""

EVERYBODY: Final[Mapping[Family, int]] = {4: 1 << (32 - 4), 6: 1 << (128 - 12)}
"""So many public addresses, and no single organisation is meant: a sixteenth of IPv4; of IPv6 a /12, what a regional
registry is given (IANA, "IPv6 Global Unicast Address Assignments")."""

_UNICAST: Final[Mapping[Family, tuple[Network, ...]]] = {
    4: (ip_network("0.0.0.0/1"), ip_network("128.0.0.0/2"), ip_network("192.0.0.0/3")),
    6: (ip_network("2000::/3"),),
}
_PRIVATE: Final[Mapping[Family, tuple[Network, ...]]] = {
    4: (
        ip_network("0.0.0.0/8"),
        ip_network("10.0.0.0/8"),
        ip_network("100.64.0.0/10"),
        ip_network("127.0.0.0/8"),
        ip_network("169.254.0.0/16"),
        ip_network("172.16.0.0/12"),
        ip_network("192.168.0.0/16"),
    ),
    6: (),
}
"""Where in `_UNICAST` nothing on the internet is (IANA, "IPv4 Special-Purpose Address Registry")."""

_ALL_PORTS: Final = range(65536)
_WITH_PORTS: Final = {"tcp", "udp", "6", "17"}
"""TCP and UDP, by name and by number (IANA, "Protocol Numbers")."""


def ports(permission: Permission) -> range:
    """The TCP and UDP ports that it opens: all with protocol -1; with ICMP and what else there is, none."""
    if permission.protocol == "-1":
        return _ALL_PORTS
    if permission.protocol not in _WITH_PORTS:
        return range(0)
    first, last = permission.from_port, permission.to_port
    if first is None or last is None or first < 0:
        return _ALL_PORTS
    return range(first, last + 1)


def entrances(permission: Permission, prefix_lists: Mapping[str, tuple[str, ...]]) -> dict[str, Family]:
    """The sources, ranges or prefix lists, by which it lets everybody in.

    They are the widest ones, down to the width below which what is left no longer is everybody; so an office's range
    beside `0.0.0.0/0` is none. A list, always of one family, counts as empty where it could not be read: see `unread`.
    """
    sources: dict[str, tuple[str, ...]] = {cidr: (cidr,) for cidr in permission.cidrs}
    sources |= {name: prefix_lists.get(name, ()) for name in permission.prefix_lists}
    found: dict[str, Family] = {}
    for family in EVERYBODY:
        left = sources
        while _is_everybody(tuple(chain.from_iterable(left.values())), family):
            widths = {name: _addresses(ranges, family) for name, ranges in left.items()}
            widest = max(widths.values())
            found |= {name: family for name, width in widths.items() if width == widest}
            left = {name: ranges for name, ranges in left.items() if widths[name] < widest}
    return found


def unread(permission: Permission, prefix_lists: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The prefix lists that it names and that could not be read: nobody knows whom they let in."""
    return [name for name in permission.prefix_lists if name not in prefix_lists]


def _is_everybody(ranges: tuple[str, ...], family: Family) -> bool:
    """Most permissions are narrow, which the lengths of their prefixes tell in a twentieth of the time."""
    at_most = sum(_at_most(cidr, family) for cidr in ranges)
    return at_most >= EVERYBODY[family] and _addresses(ranges, family) >= EVERYBODY[family]


def _at_most(cidr: str, family: Family) -> int:
    """How many addresses of a family a range holds, private ones too."""
    if (":" in cidr) != (family == 6):
        return 0
    return 1 << ((32 if family == 4 else 128) - int(cidr.rpartition("/")[2]))


@lru_cache(maxsize=4096)
def _addresses(ranges: tuple[str, ...], family: Family) -> int:
    """How many public addresses of a family the ranges hold together."""
    networks: list[Network] = [network for network in map(_network, ranges) if network.version == family]
    return sum(
        _overlap(network, _UNICAST[family]) - _overlap(network, _PRIVATE[family])
        for network in collapse_addresses(networks)
    )


def _network(cidr: str) -> Network:
    return ip_network(cidr, strict=False)


def _overlap(network: Network, blocks: Iterable[Network]) -> int:
    """Of two networks that overlap, one lies in the other."""
    return sum(min(network.num_addresses, block.num_addresses) for block in blocks if network.overlaps(block))


def families(public_addresses: Iterable[str], ipv6_addresses: Iterable[str]) -> frozenset[Family]:
    """By which of IPv4 and IPv6 the world can address what has these addresses."""
    found: set[Family] = {4} if any(public_addresses) else set()
    if any(is_global(address) for address in ipv6_addresses):
        found.add(6)
    return frozenset(found)


def is_global(ipv6_address: str) -> bool:
    """Whether it is an address on the internet, and not a unique local one."""
    return ip_address(ipv6_address).is_global


def attachments(inventory: Inventory) -> Mapping[str, Mapping[str, frozenset[Family]]]:
    """What each security group is attached to, by id, and by which families the world can address that.

    A network interface of an instance counts as the instance, with that interface's own addresses. An instance none of
    whose interfaces was read counts with all of its addresses.
    """
    interfaces = inventory.interfaces
    seen = {interface.instance_id for interface in interfaces}
    uses = chain(
        (
            (one.instance_id or one.id, one.security_groups, families(one.public_addresses, one.ipv6_addresses))
            for one in interfaces
        ),
        (
            (one.id, one.security_groups, families(one.public_addresses, one.ipv6_addresses))
            for one in inventory.instances
            if one.id not in seen
        ),
        (
            (one.id, one.security_groups, frozenset[Family]({4} if one.internet_facing else ()))
            for one in inventory.load_balancers  # that it has IPv6, too, its interfaces tell
        ),
    )
    found: defaultdict[str, defaultdict[str, frozenset[Family]]] = defaultdict(lambda: defaultdict(frozenset))
    for user, groups, reachable in uses:
        for group in groups:
            found[group][user] |= reachable
    return found
