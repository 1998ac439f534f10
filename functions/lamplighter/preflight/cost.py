"""The preflight of the bill: what the stack costs at rest, and what its network needs (REQUIREMENTS P3)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from lamplighter.kernel.no_database import has_database
from lamplighter.kernel.preflight import Item, Look, Severity


def part(look: Look) -> Iterator[Item]:
    """An item on the month at rest, and one on the endpoints of a VPC."""
    month = _month()
    usd = "usd" if has_database(look.environment) else "usd_without_database"
    items = [{"item": one["item"], "usd": one[usd]} for one in month["items"]]
    yield Item(
        severity=Severity.NOTE,
        name="cost at rest",
        sentence=f"A month of the default schedules costs about {month[usd]:,.2f} USD while nothing else happens. "
        f"Not in it: {month['not_in_it']}.",
        facts={"usd": month[usd], "items": items, "source": month["source"]},
    )
    if not look.environment.get("IN_VPC"):
        return
    needed = list(endpoints(month, secret=bool(look.environment.get("DATABASE_SECRET_ARN"))))
    dollars = sum(one["usd_a_zone"] for one in needed)
    yield Item(
        severity=Severity.NOTE,
        name="cost of the network",
        sentence=f"Functions run in a VPC. Without a NAT gateway ({month['nat_gateway_usd']:,.2f} USD a month) they "
        f"need interface endpoints for {dollars:,.2f} USD a month in each availability zone, and the free gateways for "
        "DynamoDB and S3.",
        facts={"endpoints": needed, "nat_gateway_usd": month["nat_gateway_usd"], "source": month["endpoints_source"]},
    )


def endpoints(month: dict[str, Any], *, secret: bool) -> Iterator[dict[str, Any]]:
    """The endpoints that the deployment needs: that of Secrets Manager only where a secret names the database."""
    return (one for one in month["endpoints"] if secret or one["service"] != "Secrets Manager")


def _month() -> dict[str, Any]:
    """Figures of docs/operations.md; a test compares the two."""
    found: dict[str, Any] = json.loads((files("lamplighter.preflight") / "month.json").read_text())
    return found
