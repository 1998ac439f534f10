"""The checks, one small file each: its module is named as the check is, and exports `check`."""

from __future__ import annotations

from typing import Final

from lamplighter.cloud.check import Check
from lamplighter.cloud.checks import (
    missing_tags,
    open_ports,
    outdated_images,
    public_instances,
    unencrypted_volumes,
)

WASTE: Final[tuple[Check, ...]] = ()
"""What costs money and serves nobody (REQUIREMENTS C2-C6)."""

SECURITY: Final[tuple[Check, ...]] = (
    unencrypted_volumes.check,
    public_instances.check,
    open_ports.check,
    outdated_images.check,
    missing_tags.check,
)
"""What is exposed, outdated or nobody's (REQUIREMENTS C8-C12)."""

BY_ID: Final = {check.id: check for check in (*WASTE, *SECURITY)}
