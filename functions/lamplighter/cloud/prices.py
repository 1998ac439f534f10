"""What resources cost a month at list prices, in dollars: on demand, before discounts, credits and tax.

There are two sources, and each price says which it is from: the AWS Pricing API, asked once a week for what is there
(`kept`), and a dated file beside this module for all else. The file has the prices of us-east-1; those of other
regions are estimated by a factor. What neither knows has no price: none is better than a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Final

from lamplighter.cloud.inventory import Instance, Inventory, LoadBalancer, LogGroup, NatGateway, Snapshot, Volume

HOURS: Final = 730
"""Of a month, as AWS's own calculator counts."""
GIB: Final = 2**30
GP3_IOPS: Final = 3_000
GP3_THROUGHPUT: Final = 125
"""What every gp3 volume has at no extra charge, in operations and in MiB a second ("General Purpose SSD volumes")."""
FRESH: Final = timedelta(days=7)
"""How long an answer of the Pricing API is used."""

OPERATIONS: Final[Mapping[str, str]] = {
    "Linux/UNIX": "RunInstances",
    "Red Hat BYOL Linux": "RunInstances:00g0",
    "Red Hat Enterprise Linux": "RunInstances:0010",
    "Red Hat Enterprise Linux with HA": "RunInstances:1010",
    "SQL Server Enterprise": "RunInstances:0100",
    "SQL Server Standard": "RunInstances:0004",
    "SQL Server Web": "RunInstances:0200",
    "SUSE Linux": "RunInstances:000g",
    "Ubuntu Pro": "RunInstances:0g00",
    "Windows": "RunInstances:0002",
    "Windows BYOL": "RunInstances:0800",
    "Windows with SQL Server Enterprise": "RunInstances:0102",
    "Windows with SQL Server Standard": "RunInstances:0006",
    "Windows with SQL Server Web": "RunInstances:0202",
}
"""Under which operation the price list has each platform ("AMI billing information fields")."""

_SIZES: Final[Mapping[str, float]] = {
    "nano": 1 / 16,
    "micro": 1 / 8,
    "small": 1 / 4,
    "medium": 1 / 2,
    "large": 1,
    "xlarge": 2,
    **{f"{n}xlarge": 2 * n for n in (2, 3, 4, 6, 8, 9, 10, 12, 16, 18, 24, 32, 48)},
}
"""What the sizes of a family cost, in that of its `large`."""

_USAGE: Final[Mapping[str, tuple[str, int]]] = {
    **{f"VolumeUsage.{kind}": (f"volume {kind} gb", 1) for kind in ("gp2", "gp3", "io2", "st1", "sc1")},
    "VolumeUsage": ("volume standard gb", 1),
    "VolumeUsage.piops": ("volume io1 gb", 1),
    "VolumeP-IOPS.piops": ("volume io1 iops", 1),
    "VolumeP-IOPS.gp3": ("volume gp3 iops", 1),
    "VolumeP-IOPS.io2": ("volume io2 iops", 1),
    "VolumeP-IOPS.io2.tier2": ("volume io2 tier2", 1),
    "VolumeP-IOPS.io2.tier3": ("volume io2 tier3", 1),
    "VolumeP-Throughput.gp3": ("volume gp3 throughput", 1024),  # listed by the GiB/s, bought by the MiB/s
    "SnapshotUsage": ("snapshot standard", 1),
    "SnapshotArchiveStorage": ("snapshot archive", 1),
}
"""Of which item a usage type of EBS is the price, and for how many of its units."""

type Answers = Mapping[str, Mapping[str, float]]
"""What the Pricing API said: by question (`questions`), the dollars for a unit of each item that it knows."""


@dataclass(frozen=True, slots=True)
class Price:
    """What something costs a month."""

    usd: float
    source: str
    """Where that is from, in words."""


def together(parts: Iterable[Price | None]) -> Price | None:
    """What parts cost together; None where one has no known price."""
    prices = list(parts)
    known = [price for price in prices if price]
    if len(known) < len(prices):
        return None
    sources = dict.fromkeys(price.source for price in known)
    return Price(sum(price.usd for price in known), " and ".join(sources) or "nothing to pay")


def source(price: Price | None) -> str:
    """Where a price is from, for the evidence of a finding."""
    return price.source if price else "no price known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices of one region. Its methods answer None for what has no known price."""

    region: str
    answers: Answers = field(default_factory=dict)
    answered: datetime | None = None
    """When the Pricing API was asked, the first time if it was several times."""
    problem: str | None = None
    """Why the Pricing API did not say more."""

    @classmethod
    def from_file(cls, region: str) -> Prices:
        """Those of the file, without asking anybody."""
        return cls(region=region)

    def instance(self, instance: Instance) -> Price | None:
        """Running: compute and licence, without volumes and traffic.

        None for a spot instance, whose price is the market's, and for a dedicated one, whose host or region is paid.
        """
        if instance.lifecycle or instance.tenancy != "default" or not self._are_of(instance.site):
            return None
        return self._of({_item(instance): HOURS})

    def volume(self, volume: Volume) -> Price | None:
        """Attached or not: its size, and the performance that is paid beside it."""
        kind = f"volume {volume.type}"
        amounts: dict[str, float] = {f"{kind} gb": volume.size_gb}
        iops = volume.iops or 0
        if (volume.iops is None and volume.type in ("io1", "io2")) or not self._are_of(volume.site):
            return None
        if volume.type == "gp3":
            amounts |= {f"{kind} iops": iops - GP3_IOPS}
            amounts |= {f"{kind} throughput": (volume.throughput or 0) - GP3_THROUGHPUT}
        elif volume.type == "io1":
            amounts |= {f"{kind} iops": iops}
        elif volume.type == "io2":
            amounts |= {f"{kind} iops": min(iops, 32_000)}
            amounts |= {f"{kind} tier2": min(iops, 64_000) - 32_000, f"{kind} tier3": iops - 64_000}
        return self._of({item: amount for item, amount in amounts.items() if amount > 0})

    def snapshot(self, snapshot: Snapshot) -> Price | None:
        """All its blocks; in the standard tier the most it can cost, since blocks that others share are paid once."""
        if not self._are_of(snapshot.site):
            return None
        stored = snapshot.size_gb if snapshot.full_bytes is None else snapshot.full_bytes / GIB
        return self._of({f"snapshot {snapshot.tier}": stored})

    def address(self) -> Price | None:
        """A public IPv4 address of Amazon's."""
        return self._of({"address": HOURS})

    def nat_gateway(self, gateway: NatGateway) -> Price | None:
        """One that nothing goes through. None for a regional one, which is in several zones: how many is not read."""
        return None if gateway.regional else self._of({"nat_gateway": HOURS})

    def load_balancer(self, balancer: LoadBalancer) -> Price | None:
        """One that serves nothing: by the hour, without capacity units and addresses."""
        return self._of({f"load_balancer {balancer.type}": HOURS}) if self._are_of(balancer.site) else None

    def log_group(self, group: LogGroup) -> Price | None:
        """What it stores, were it not compressed."""
        return self._of({"log_storage": group.stored_bytes / GIB})

    def _are_of(self, site: str) -> bool:
        """Whether they are those of a site: Local and Wavelength Zones and Outposts have others than their region."""
        return not site or site[:-1] == self.region

    def _of(self, amounts: Mapping[str, float]) -> Price | None:
        rates = ((self._rate(item), amount) for item, amount in amounts.items())
        return together(Price(rate.usd * amount, rate.source) if rate else None for rate, amount in rates)

    def _rate(self, item: str) -> Price | None:
        """A unit of an item."""
        for rates in self.answers.values():
            if item in rates:
                return Price(rates[item], f"AWS Pricing API, {self.answered:%Y-%m-%d}")
        usd = _on_file(item, self.region)
        if usd is None:
            return None
        file = _file()
        estimated = "" if self.region == file["region"] else " estimated by region factor"
        problem = f" (AWS Pricing API: {self.problem})" if self.problem else ""
        return Price(usd, f"price file of {file['date']}, {self.region}{estimated}{problem}")


def api() -> Any:
    """The boto3 client of the Pricing API, which is in three regions only. It gives up soon: there is the file."""
    import boto3
    from botocore.config import Config

    waits = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "max_attempts": 2})
    return boto3.client("pricing", region_name="us-east-1", config=waits)


def kept(inventory: Inventory, *, s3: Any, bucket: str, now: datetime, pricing: Callable[[], Any] = api) -> Prices:
    """The prices that an inventory needs, as the Pricing API says, which is asked only for what it was not this week.

    What it says is kept in `cloud/prices/<region>.json` of `bucket`, for all accounts. Neither a refusal nor an
    outage nor a document that is no such one fails anything: the file answers, and says why.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    key = f"cloud/prices/{inventory.region}.json"
    try:
        known = restored(s3.get_object(Bucket=bucket, Key=key)["Body"].read(), inventory.region)
    except (ClientError, BotoCoreError, ValueError):
        known = Prices.from_file(inventory.region)
    prices = live(inventory, now=now, pricing=pricing, known=known)
    if prices.answers != known.answers or prices.answered != known.answered:
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=stored(prices), ContentType="application/json")
        except (ClientError, BotoCoreError) as error:
            return replace(prices, problem=prices.problem or f"its answers were not kept: {_name(error)}")
    return prices


def live(
    inventory: Inventory, *, now: datetime, pricing: Callable[[], Any] = api, known: Prices | None = None
) -> Prices:
    """The prices that an inventory needs, from the Pricing API (`pricing:GetProducts`): a call for each question.

    What is `known` is not asked again within a week. It fails nothing: from the first call that is refused, does not
    get through, or is not understood, what is known before it and the file answer, and say why.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    known = known or Prices.from_file(inventory.region)
    fresh = known.answered is not None and now - known.answered < FRESH
    answers = dict(known.answers) if fresh else {}
    problem = None
    try:
        if to_ask := sorted(questions(inventory) - answers.keys()):
            client = pricing()
            for question in to_ask:
                answers[question] = _ask(client, inventory.region, question)
    except (ClientError, BotoCoreError) as error:
        problem = _name(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"not understood: {error!r}"
    if not answers:
        return replace(known, problem=problem)
    return Prices(region=inventory.region, answers=answers, answered=known.answered if fresh else now, problem=problem)


def questions(inventory: Inventory) -> frozenset[str]:
    """What to ask the Pricing API for an inventory: `instance <type> <platform>`, `volume <type>`, `snapshots`."""
    instances = {
        _item(instance)
        for instance in inventory.instances
        if instance.platform in OPERATIONS and not instance.lifecycle and instance.tenancy == "default"
    }
    volumes = {f"volume {volume.type}" for volume in inventory.volumes}
    if "volume gp2" in volumes:
        volumes.add("volume gp3")  # what they would cost as such
    return frozenset(instances | volumes | ({"snapshots"} if inventory.snapshots else set()))


def stored(prices: Prices) -> bytes:
    """The answers as a document."""
    assert prices.answered
    return json.dumps({"answered": prices.answered.isoformat(), "answers": prices.answers}, indent=1).encode()


def restored(document: bytes, region: str) -> Prices:
    """The answers of a document that `stored` made.

    Raises:
        ValueError: it is no such document.
    """
    try:
        fields = json.loads(document)
        answers = {
            str(question): {str(item): float(usd) for item, usd in rates.items()}
            for question, rates in fields["answers"].items()
        }
        answered = datetime.fromisoformat(fields["answered"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a document of kept prices: {error!r}") from error
    if answered.tzinfo is None:
        raise ValueError("not a document of kept prices: its moment has no zone")
    return Prices(region=region, answers=answers, answered=answered)


def _item(instance: Instance) -> str:
    return f"instance {instance.type} {instance.platform}"


def _name(error: Exception) -> str:
    """AWS's code of an error, or its class."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    return str(code or type(error).__name__)


def _ask(client: Any, region: str, question: str) -> dict[str, float]:
    """The dollars for a unit of each item that the answer to a question names; empty where it names none."""
    kind, *names = question.split(" ", 2)
    match kind:
        case "instance":
            fields = {
                "instanceType": names[0],
                "operation": OPERATIONS[names[1]],
                "tenancy": "Shared",
                "capacitystatus": "Used",
            }
        case "volume":
            fields = {"volumeApiName": names[0]}
        case _:
            fields = {"productFamily": "Storage Snapshot"}
    filters = [
        {"Type": "TERM_MATCH", "Field": name, "Value": value}
        for name, value in {"regionCode": region, "locationType": "AWS Region", **fields}.items()
    ]
    found: dict[str, set[float]] = {}
    for page in client.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters):
        for document in page["PriceList"]:
            product = json.loads(document)
            usage = product["product"]["attributes"].get("usagetype", "").partition("EBS:")[2]
            item, units = (question, 1) if kind == "instance" else _USAGE.get(usage, (None, 1))
            if item:
                found.setdefault(item, set()).update(usd / units for usd in _on_demand(product))
    # Two prices for one thing are a question put wrongly: no price is better than a wrong one.
    return {item: usd.pop() for item, usd in found.items() if len(usd) == 1}


def _on_demand(product: Mapping[str, Any]) -> set[float]:
    """The prices a unit of a product of the price list, without what is free."""
    terms = product["terms"].get("OnDemand", {}).values()
    dimensions = (dimension for term in terms for dimension in term["priceDimensions"].values())
    return {usd for dimension in dimensions if (usd := float(dimension["pricePerUnit"].get("USD", 0)))}


@cache
def _file() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_bytes())
    return document


@cache
def _on_file(item: str, region: str) -> float | None:
    """The dollars for a unit of an item, None where the file does not know it, or not the region."""
    factors = _file()["regions"].get(region)
    if factors is None:
        return None
    kind, *names = item.split(" ", 2)
    if kind == "instance":
        return _instance_on_file(names[0], names[1], factors)
    usd: Any = _file()[kind]
    for name in names:
        usd = usd.get(name) if isinstance(usd, dict) else None
    return usd * factors.get(kind, 1) if isinstance(usd, int | float) else None


def _instance_on_file(type_: str, platform: str, factors: Mapping[str, Any]) -> float | None:
    """The dollars an hour. The families of a kind (m, c, r, t) have a factor of their own, all others that of m.

    Where the processors (a: AMD, g: Graviton, as a1 is) are so much cheaper that no factor holds, their families are
    unknown. A licence costs the same everywhere, and by the processor: a `large` has two; those of kind t are not in
    proportion.
    """
    file = _file()
    family, _, size = type_.partition(".")
    usd = file["instances"].get(type_)
    if usd is None and family in file["families"] and size in _SIZES:
        large, smallest, largest = file["families"][family]
        if _SIZES[smallest] <= _SIZES[size] <= _SIZES[largest]:
            usd = large * _SIZES[size]
    licence = file["platforms"].get(platform)
    if usd is None or licence is None or (licence and (size not in _SIZES or family.startswith("t"))):
        return None
    generation = family.lstrip(ascii_lowercase)
    kind = family.removesuffix(generation)
    if set("g" if kind == "a" else generation) & set(factors.get("unknown", "")):
        return None
    return float(usd * factors.get(kind, factors["m"]) + (licence * 2 * _SIZES[size] if licence else 0))
