"""What can be done about findings, one small file for each action, and which action fits which check (C13)."""

from __future__ import annotations

from typing import Final

from lamplighter.cloud.remedies import add_tags, delete_snapshot, revoke, snapshot_and_delete, stop
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.settings import Settings

ACTIONS: Final = {
    action.id: action
    for action in (stop.action, snapshot_and_delete.action, delete_snapshot.action, revoke.action, add_tags.action)
}
"""Beside `tag`, which marks a resource and no more."""

FITTING: Final[dict[str, tuple[str, ...]]] = {
    "idle_cpu": ("tag", "stop"),
    "idle_memory": ("tag", "stop"),
    "stopped_instances": ("tag",),
    "unattached_volumes": ("tag", "snapshot_and_delete"),
    "old_snapshots": ("tag", "delete_snapshot"),
    "unassociated_addresses": ("tag",),
    "idle_load_balancers": ("tag",),
    "idle_nat_gateways": ("tag",),
    "gp2_volumes": ("tag",),
    "unencrypted_volumes": ("tag",),
    "public_instances": ("tag",),
    "open_ports": ("tag", "revoke"),
    "outdated_images": ("tag",),
    "missing_tags": ("tag", "add_tags"),
}
"""Actions by check. A log group's tags are not read, so nobody could keep one: nothing is done about those."""


def checked(settings: Settings) -> None:
    """Raises Permanent if `cloud.remedies` asks for what does not fit; nothing has been touched then."""
    for check, remedy in settings.cloud.remedies.items():
        name = f"cloud.remedies.{check}"
        if check not in FITTING:
            raise Permanent(f"{name}: nothing can be done about that (known: {', '.join(FITTING)}).")
        if remedy.action not in FITTING[check]:
            raise Permanent(f"{name}.action: takes {' or '.join(FITTING[check])}, not {remedy.action}.")
        required = settings.cloud.limits.required_tags
        if remedy.action == "add_tags" and not (remedy.values and remedy.values.keys() <= set(required)):
            raise Permanent(f"{name}.values: takes what some of the required tags ({', '.join(required)}) shall say.")
        if remedy.action != "add_tags" and remedy.values is not None:
            raise Permanent(f"{name}.values: only add_tags takes them.")
