"""Resources and inventories as checks see them: what a test does not say is in order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from lamplighter.cloud.check import Basis, Check, Judgement, judge
from lamplighter.cloud.inventory import Image, Instance, Inventory, Permission, SecurityGroup, Series, Snapshot, Volume
from lamplighter.cloud.prices import Prices
from lamplighter.kernel.cloud import Limits

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TAGS = {"Owner": "ada", "Environment": "test", "CostCenter": "7"}


def instance(id: str = "i-1", **said: Any) -> Instance:
    """A running instance that was started yesterday."""
    usual: dict[str, Any] = {"type": "t3.micro", "state": "running", "launched_at": NOW - DAY, "image_id": "ami-1"}
    return Instance(id=id, **{**usual, "tags": TAGS, **said})


def volume(id: str = "vol-1", **said: Any) -> Volume:
    """An encrypted volume of 8 GiB that is attached to i-1."""
    usual: dict[str, Any] = {"type": "gp3", "size_gb": 8, "state": "in-use", "encrypted": True, "instances": ("i-1",)}
    return Volume(id=id, **{**usual, "created_at": NOW - DAY, "tags": TAGS, **said})


def snapshot(id: str = "snap-1", **said: Any) -> Snapshot:
    """An encrypted snapshot of vol-1, made yesterday."""
    usual: dict[str, Any] = {"volume_id": "vol-1", "size_gb": 8, "started_at": NOW - DAY, "encrypted": True}
    return Snapshot(id=id, **{**usual, "tags": TAGS, **said})


def image(id: str = "ami-1", **said: Any) -> Image:
    """An available image of somebody else, made yesterday, that goes out of use in a year."""
    usual: dict[str, Any] = {"name": "linux", "owned": False, "state": "available", "created_at": NOW - DAY}
    return Image(id=id, **{**usual, "deprecated_at": NOW + 365 * DAY, **said})


def permission(protocol: str = "tcp", ports: str = "22", *cidrs: str, **said: Any) -> Permission:
    """`ports` such as `22` or `20-25`; empty for none."""
    first, _, last = ports.partition("-")
    numbers = (
        {"from_port": int(first), "to_port": int(last or first)} if ports else {"from_port": None, "to_port": None}
    )
    return Permission(protocol=protocol, cidrs=cidrs, **numbers, **said)


def group(*ingress: Permission, id: str = "sg-1", **said: Any) -> SecurityGroup:
    """A security group that lets in what `ingress` says."""
    return SecurityGroup(id=id, ingress=ingress, **{"name": "web", "vpc_id": "vpc-1", "tags": TAGS, **said})


def inventory(**said: Any) -> Inventory:
    """Of one region in which there is nothing but what is said."""
    return Inventory(account="111122223333", region="eu-west-1", read_at=NOW, **said)


def judged(
    check: Check, inventory: Inventory, *, unattached_since: dict[str, datetime] | None = None, **limits: Any
) -> Judgement:
    """What one check says of an inventory, `NOW`, under `limits`, at the prices of the file."""
    prices = Prices.from_file(inventory.region)
    basis = Basis(now=NOW, limits=Limits(**limits), prices=prices, unattached_since=unattached_since)
    return judge(inventory, basis, [check])


def series(*values: float, expected: int = 28) -> Series:
    """What a metric said in seven days; a single value is that of each of their parts."""
    return Series(expected=expected, values=values * expected if len(values) == 1 else values)


def silent(judgement: Judgement) -> bool:
    """Whether a check says that all is in order."""
    return not judgement.findings and not judgement.unknown
