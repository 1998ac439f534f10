"""The checks, one small file each: its module is named as the check is, and exports `check`."""

from __future__ import annotations

from typing import Final

from lamplighter.cloud.check import Check
from lamplighter.cloud.checks import (
    gp2_volumes,
    idle_cpu,
    idle_load_balancers,
    idle_memory,
    idle_nat_gateways,
    log_groups_without_retention,
    missing_tags,
    old_snapshots,
    open_ports,
    outdated_images,
    public_instances,
    stopped_instances,
    unassociated_addresses,
    unattached_volumes,
    unencrypted_volumes,
)

WASTE: Final[tuple[Check, ...]] = (
    idle_cpu.check,
    idle_memory.check,
    stopped_instances.check,
    unattached_volumes.check,
    old_snapshots.check,
    unassociated_addresses.check,
    idle_load_balancers.check,
    idle_nat_gateways.check,
    log_groups_without_retention.check,
    gp2_volumes.check,
)
"""What costs money and serves nobody (REQUIREMENTS C2-C6), and what users of such tools ask for next."""

SECURITY: Final[tuple[Check, ...]] = (
    unencrypted_volumes.check,
    public_instances.check,
    open_ports.check,
    outdated_images.check,
    missing_tags.check,
)
"""What is exposed, outdated or nobody's (REQUIREMENTS C8-C12)."""

BY_ID: Final = {check.id: check for check in (*WASTE, *SECURITY)}
