"""Instances whose image is deprecated, withdrawn or old (REQUIREMENTS C11)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from lamplighter.cloud.check import Basis, Check, Found, Severity
from lamplighter.cloud.inventory import Image, Inventory

type Reason = Literal["gone", "disabled", "deprecated", "old"]

SEVERITY: Final[dict[Reason, Severity]] = {"gone": "high", "disabled": "high", "deprecated": "medium", "old": "low"}
"""By the worst of its reasons. What is gone or disabled cannot be launched again; what is deprecated is not kept up."""


def find(inventory: Inventory, basis: Basis) -> Iterator[Found]:
    """Every instance on such an image. One that is not to be seen is gone: deregistered, or no longer shared."""
    images = {image.id: image for image in inventory.images}
    for instance in inventory.instances:
        image = images.get(instance.image_id)
        reasons = _reasons(image, basis)
        if not reasons:
            continue
        evidence: dict[str, Any] = {"image_id": instance.image_id, "reasons": list(reasons)}
        if image:
            evidence |= {
                "image_name": image.name,
                "image_state": image.state,
                "created_at": image.created_at.isoformat(),
                "deprecated_at": image.deprecated_at and image.deprecated_at.isoformat(),
                "age_days": (basis.now - image.created_at).days,
                "limit_days": basis.limits.image_days,
            }
        yield Found(
            resource_id=instance.id,
            tags=instance.tags,
            evidence=evidence,
            severity=SEVERITY[next(iter(reasons))],
            since=min(filter(None, reasons.values()), default=None),
        )


def _reasons(image: Image | None, basis: Basis) -> dict[Reason, datetime | None]:
    """What is wrong with an image, worst first, and since when, where that is known."""
    if image is None or image.state == "deregistered":
        return {"gone": None}
    reasons = dict[Reason, datetime | None]()
    if image.state == "disabled":
        reasons["disabled"] = None
    if image.deprecated_at and image.deprecated_at <= basis.now:
        reasons["deprecated"] = image.deprecated_at
    outgrown = image.created_at + timedelta(days=basis.limits.image_days)
    if outgrown < basis.now:
        reasons["old"] = outgrown
    return reasons


check = Check(
    id="outdated_images",
    title="An instance runs on an outdated image",
    advice="Replace it by an instance from a current image.",
    kind="outdated_image",
    severity="medium",
    resource_type="AwsEc2Instance",
    needs=("instances", "images"),
    find=find,
)
