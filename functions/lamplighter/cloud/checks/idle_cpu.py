"""Instances whose CPU has nothing to do (REQUIREMENTS C2)."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.cloud import windows
from lamplighter.cloud.check import Basis, Check, Found, Unknown
from lamplighter.cloud.inventory import Inventory


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every running instance whose highest CPU in each part of the window was below the limit.

    It costs what it is billed for running; confidence is `windows.idle_instances`'s.
    """
    return windows.idle_instances(
        inventory,
        basis,
        metric=inventory.cpu,
        limit=basis.limits.idle_cpu_percent,
        absent="no datapoint of CPUUtilization",
    )


check = Check(
    id="idle_cpu",
    title="The CPU of an instance is idle",
    advice="Ask its owner what it is for; stop it, or give it a smaller type.",
    kind="idle_instance",
    severity="medium",
    resource_type="AwsEc2Instance",
    needs=("instances", "cpu"),
    find=find,
)
