"""Instances that use next to none of their memory (REQUIREMENTS C3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lamplighter.cloud import windows
from lamplighter.cloud.check import Basis, Check, Found, Unknown
from lamplighter.cloud.inventory import Inventory

WEIGHT: Final = 0.5
"""An instance that needs little memory may still have much to do: by this alone, half sure at most."""


def find(inventory: Inventory, basis: Basis) -> Iterator[Found | Unknown]:
    """Every running instance whose highest memory in each part of the window was below the limit.

    It costs what it is billed for running; confidence is half of `windows.idle_instances`'s.
    """
    return windows.idle_instances(
        inventory,
        basis,
        metric=inventory.memory,
        limit=basis.limits.idle_memory_percent,
        absent="no CloudWatch agent memory metric",
        weight=WEIGHT,
    )


check = Check(
    id="idle_memory",
    title="The memory of an instance is hardly used",
    advice="Give it a type with less memory.",
    kind="idle_instance",
    severity="low",
    resource_type="AwsEc2Instance",
    needs=("instances", "memory"),
    find=find,
)
