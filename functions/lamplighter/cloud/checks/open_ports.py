"""Security groups that let everybody in to sensitive ports, over IPv4 or IPv6 (REQUIREMENTS C10).

The evidence names exactly the permissions and sources that are at fault, and none beside them: they are what may be
revoked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lamplighter.cloud.check import Basis, Check, Found, Severity, Unknown
from lamplighter.cloud.exposure import Family, attachments, entrances, ports, unread
from lamplighter.cloud.inventory import Inventory, Permission, SecurityGroup

type Exposure = Literal["public", "unknown", "private", "unattached"]

SEVERITY: Final[dict[Exposure, Severity]] = {
    "public": "critical",
    "unknown": "high",
    "private": "medium",
    "unattached": "low",
}
"""By what the group is attached to: something that the world can address by the open family, or not; `unknown` where
network interfaces could not be read. The hole is certain all the same, and is told of."""
NAMED: Final = 20
"""So many of what it is attached to are named in the evidence."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A permission, and the source of it by which everybody comes in."""

    permission: Permission
    source: str
    family: Family

    def evidence(self) -> dict[str, Any]:
        """It alone, in the terms in which it may be revoked."""
        return {
            "protocol": self.permission.protocol,
            "from_port": self.permission.from_port,
            "to_port": self.permission.to_port,
            "prefix_list" if self.source in self.permission.prefix_lists else "cidr": self.source,
        }


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every group with a hole. One that has none, but names a prefix list that could not be read, is unknown."""
    attached = attachments(inventory)
    for group in inventory.security_groups:
        judged = [permission for permission in group.ingress if _sensitive(permission, basis)]
        holes = [
            Hole(permission, source, family)
            for permission in judged
            for source, family in entrances(permission, inventory.prefix_lists).items()
        ]
        unknown = sorted({name for permission in judged for name in unread(permission, inventory.prefix_lists)})
        if holes:
            evidence = _evidence(inventory, group, holes, attached.get(group.id, {}))
            opened = set[int]().union(*(_sensitive(hole.permission, basis) for hole in holes))
            evidence |= {"sensitive_ports": sorted(opened), "unread_prefix_lists": unknown}
            if evidence["exposure"] == "unknown":
                evidence["not_read"] = f"interfaces: {inventory.gaps['interfaces']}"
            severity = SEVERITY[evidence["exposure"]]
            yield Found(resource_id=group.id, tags=group.tags, evidence=evidence, severity=severity)
        elif unknown:
            why = inventory.gaps.get("prefix_lists", "it could not be read")
            yield Unknown(resource_id=group.id, reason=f"Whom {', '.join(unknown)} lets in is not known: {why}.")


def _sensitive(permission: Permission, basis: Basis) -> set[int]:
    """The sensitive ports that a permission opens, to whomever."""
    opened = ports(permission)
    return {port for port in basis.limits.sensitive_ports if port in opened}


def _evidence(
    inventory: Inventory, group: SecurityGroup, holes: Sequence[Hole], users: Mapping[str, frozenset[Family]]
) -> dict[str, Any]:
    families = {hole.family for hole in holes}
    exposed = sorted(user for user, reachable in users.items() if reachable & families)
    return {
        "group_name": group.name,
        "vpc_id": group.vpc_id,
        "permissions": [hole.evidence() for hole in holes],
        "exposure": _exposure(inventory, bool(users), bool(exposed)),
        "exposed_through": exposed[:NAMED],
        "attached_to": sorted(users)[:NAMED],
        "attachments": len(users),
    }


def _exposure(inventory: Inventory, used: bool, exposed: bool) -> Exposure:
    if exposed:
        return "public"
    if "interfaces" in inventory.gaps:
        return "unknown"
    return "private" if used else "unattached"


check = Check(
    id="open_ports",
    title="A security group lets everybody in to a sensitive port",
    advice="Revoke the sources named here, and let in known addresses only.",
    kind="exposure",
    severity="critical",
    resource_type="AwsEc2SecurityGroup",
    needs=("security_groups",),
    helped_by=("prefix_lists", "interfaces", "instances", "load_balancers"),
    find=find,
)
