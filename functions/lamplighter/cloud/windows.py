"""What the window of a metric lets a check conclude: every datapoint counts, too few say nothing (REQUIREMENTS C2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from lamplighter.cloud.check import Basis, Found, Unknown
from lamplighter.cloud.inventory import Instance, Inventory, Series
from lamplighter.cloud.prices import source


def shortfall(series: Series, basis: Basis) -> str | None:
    """Why a series says too little, in a sentence; None where it says enough."""
    if len(series.values) >= basis.limits.coverage * series.expected:
        return None
    return (
        f"datapoints in {len(series.values)} of the {series.expected} parts of {basis.limits.idle_days} days, "
        f"at least {basis.limits.coverage:.0%} are needed"
    )


def coverage(series: Series) -> float:
    """The share of the window that is known, from 0 to 1."""
    return len(series.values) / series.expected


def evidence(series: Series, basis: Basis) -> dict[str, Any]:
    """How much of the window is known."""
    return {
        "window_days": basis.limits.idle_days,
        "datapoints_seen": len(series.values),
        "datapoints_expected": series.expected,
    }


def idle_instances(
    inventory: Inventory, basis: Basis, *, metric: Mapping[str, Series], limit: float, absent: str, weight: float = 1.0
) -> Iterator[Found | Unknown]:
    """The running instances of which a metric was below `limit` percent throughout the window.

    Confidence is `weight` times the share of the window that is known, times 1 for what was at 0 throughout, falling
    to a half for what touched the limit.

    Args:
        metric: by instance, the highest value of each part of the window.
        absent: why an instance that has no such series is unknown.
    """
    for instance in inventory.instances:
        if instance.state != "running":
            continue
        series = metric.get(instance.id)
        if series is None:
            yield Unknown(resource_id=instance.id, reason=absent)
        elif any(value >= limit for value in series.known):
            continue  # one busy hour is enough, however little else is known
        elif reason := _too_young(instance, basis) or shortfall(series, basis):
            yield Unknown(resource_id=instance.id, reason=reason)
        else:
            price = basis.prices.instance(instance)
            highest = max(series.known)
            yield Found(
                resource_id=instance.id,
                tags=instance.tags,
                evidence={
                    "type": instance.type,
                    "highest_percent": round(highest, 3),
                    "mean_of_highs_percent": round(sum(series.values) / len(series.values), 3),
                    "limit_percent": limit,
                    **evidence(series, basis),
                    "price_source": source(price),
                },
                monthly_usd=price.usd if price else None,
                confidence=weight * coverage(series) * (1 - 0.5 * highest / limit),
            )


def _too_young(instance: Instance, basis: Basis) -> str | None:
    """What was started within the window cannot have been idle for as long."""
    running = basis.now - instance.launched_at
    if running >= timedelta(days=basis.limits.idle_days):
        return None
    return f"started {max(running.days, 0)} days ago, {basis.limits.idle_days} are needed"


def silence(resource_id: str, created_at: datetime, inventory: Inventory, basis: Basis) -> Series | Unknown | None:
    """The series of what served nothing throughout the window; None for what served something or is younger."""
    if basis.now - created_at < timedelta(days=basis.limits.idle_days):
        return None
    series = inventory.traffic.get(resource_id)
    if series is None:
        return Unknown(resource_id=resource_id, reason="no datapoint of its traffic")
    if any(series.known):
        return None
    reason = shortfall(series, basis)
    return Unknown(resource_id=resource_id, reason=reason) if reason else series
