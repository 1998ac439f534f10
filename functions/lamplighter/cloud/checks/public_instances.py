"""Instances with a public address that nobody has allowed them (REQUIREMENTS C9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from lamplighter.cloud.check import Basis, Check, Found, Severity
from lamplighter.cloud.exposure import Family, entrances, families, is_global, ports, unread
from lamplighter.cloud.inventory import Instance, Inventory, Permission, SecurityGroup

type Ingress = Literal["open", "unknown", "closed"]

SEVERITY: Final[dict[Ingress, Severity]] = {"open": "high", "unknown": "high", "closed": "medium"}
"""Whether its security groups let everybody in to any TCP or UDP port, by a family of its public addresses."""
NO: Final = frozenset({"no", "false", "0", "off"})
"""Values of the tag that allow nothing, in whatever case; any other value allows it, an empty one too."""


@dataclass(frozen=True, slots=True)
class Doors:
    """What a security group opens to everybody."""

    opened: frozenset[tuple[Family, str]]
    """By which family, and to what: `tcp 22`."""
    unread: bool
    """Whether it names a prefix list that could not be read."""

    @classmethod
    def of(cls, group: SecurityGroup, prefix_lists: Mapping[str, tuple[str, ...]]) -> Doors:
        """As far as TCP and UDP go."""
        permissions = [permission for permission in group.ingress if ports(permission)]
        opened = {(way, _named(one)) for one in permissions for way in entrances(one, prefix_lists).values()}
        return cls(frozenset(opened), any(unread(one, prefix_lists) for one in permissions))


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every instance with a public IPv4 or a global IPv6 address, whatever its state."""
    tag = basis.limits.public_allowed_tag
    doors = {group.id: Doors.of(group, inventory.prefix_lists) for group in inventory.security_groups}
    for instance in inventory.instances:
        ipv6 = [address for address in instance.ipv6_addresses if is_global(address)]
        if not (instance.public_addresses or ipv6) or _allowed(instance, tag):
            continue
        ingress, opened = _ingress(instance, doors)
        evidence: dict[str, Any] = {
            "public_addresses": list(instance.public_addresses),
            "ipv6_addresses": ipv6,
            "state": instance.state,
            "tag": {tag: instance.tags.get(tag)},
            "ingress": ingress,
            "open_to_everybody": opened,
        }
        yield Found(resource_id=instance.id, tags=instance.tags, evidence=evidence, severity=SEVERITY[ingress])


def _allowed(instance: Instance, tag: str) -> bool:
    return tag in instance.tags and instance.tags[tag].strip().lower() not in NO


def _ingress(instance: Instance, doors: Mapping[str, Doors]) -> tuple[Ingress, list[str]]:
    """Whether everybody may come in, and where."""
    addressed = families(instance.public_addresses, instance.ipv6_addresses)
    known = [doors[group] for group in instance.security_groups if group in doors]
    opened = {where for one in known for family, where in one.opened if family in addressed}
    if opened:
        return "open", sorted(opened)
    if len(known) < len(instance.security_groups) or any(one.unread for one in known):
        return "unknown", []
    return "closed", []


def _named(permission: Permission) -> str:
    """Such as `tcp 22` or `tcp 8000-8080`."""
    first, last = ports(permission)[0], ports(permission)[-1]
    protocol = "all" if permission.protocol == "-1" else permission.protocol
    return f"{protocol} {first}" if first == last else f"{protocol} {first}-{last}"


check = Check(
    id="public_instances",
    title="An instance has a public address and is not allowed one",
    advice="Put it behind a load balancer or into a private subnet; or tag it as allowed.",
    kind="exposure",
    severity="high",
    resource_type="AwsEc2Instance",
    needs=("instances",),
    helped_by=("security_groups", "prefix_lists"),
    find=find,
)
