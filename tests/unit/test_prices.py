"""Prices: the file's, the Pricing API's, and none rather than a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.cloud import prices as module
from lamplighter.cloud.inventory import LoadBalancer, LogGroup, NatGateway
from lamplighter.cloud.prices import HOURS, Prices
from tests.inventories import NOW, instance, snapshot, volume

FILE = Path(module.__file__).with_suffix(".json")
HERE = Prices.from_file("us-east-1")
GATEWAY = NatGateway(id="nat-1", state="available", created_at=NOW)


def hourly(type_: str, region: str = "us-east-1", **said: Any) -> float | None:
    price = Prices.from_file(region).instance(instance(type=type_, **said))
    return round(price.usd / HOURS, 6) if price else None


@pytest.mark.parametrize(
    ("type_", "usd"),
    [
        ("t3.nano", 0.0052),
        ("t2.small", 0.023),
        ("m5.large", 0.096),
        ("m5.24xlarge", 4.608),
        ("m5.metal", 4.608),
        ("c7g.medium", 0.03625),
        ("r6i.32xlarge", 8.064),
        ("g5.12xlarge", 5.672),
        ("p3.2xlarge", 3.06),
    ],
)
def test_an_instance_costs_what_its_size_does(type_: str, usd: float) -> None:
    assert hourly(type_) == pytest.approx(usd)


@pytest.mark.parametrize(
    "type_", ["m5.nano", "m5.48xlarge", "t3.4xlarge", "c6g.metal", "q1.large", "m5", "", "u-6tb1.metal"]
)
def test_a_type_that_is_not_known_has_no_price(type_: str) -> None:
    assert hourly(type_) is None


def test_a_licence_is_paid_by_the_processor_and_the_same_everywhere() -> None:
    linux, windows = hourly("m5.xlarge", "sa-east-1"), hourly("m5.xlarge", "sa-east-1", platform="Windows")

    assert linux and windows
    assert windows - linux == pytest.approx(4 * 0.046)
    assert hourly("m5.large", platform="Windows") == pytest.approx(0.188)
    assert hourly("m5.large", platform="Windows BYOL") == pytest.approx(0.096)


@pytest.mark.parametrize(
    ("type_", "platform"),
    [("m5.large", "Red Hat Enterprise Linux"), ("t3.large", "Windows"), ("m5.metal", "Windows"), ("m5.large", "BeOS")],
)
def test_a_licence_that_is_not_known_has_no_price(type_: str, platform: str) -> None:
    assert hourly(type_, platform=platform) is None


def test_another_region_is_estimated_and_says_so() -> None:
    there = Prices.from_file("eu-west-1").instance(instance(type="m5.large"))

    assert there
    assert there.usd / HOURS == pytest.approx(0.107, abs=0.0005)
    assert there.source == "price file of 2026-11-22, eu-west-1 estimated by region factor"


@pytest.mark.parametrize(
    ("type_", "known"),
    [("m5.large", True), ("g4dn.xlarge", True), ("m5a.large", False), ("r8gd.large", False), ("a1.large", False)],
)
def test_where_a_processor_is_cheaper_than_the_factor_says_there_is_no_price(type_: str, known: bool) -> None:
    """Graviton and AMD cost a third less in Mumbai, most of them."""
    assert (hourly(type_, "ap-south-1") is not None) == known
    assert hourly(type_, "eu-west-1") is not None


@pytest.mark.parametrize("type_", ["trn1.2xlarge", "x1.16xlarge", "i3.large"])
def test_a_kind_without_a_factor_of_its_own_has_that_of_the_general_ones(type_: str) -> None:
    factors = json.loads(FILE.read_text())["regions"]["eu-west-1"]
    here, there = hourly(type_), hourly(type_, "eu-west-1")

    assert here and there
    assert there / here == pytest.approx(factors["m"], rel=1e-4)


ELSEWHERE = [
    "us-east-1-bos-1a",  # a Local Zone
    "us-east-1-wl1-bos-wlz-1",  # a Wavelength Zone
    "arn:aws:outposts:us-east-1:111122223333:outpost/op-1",
]


@pytest.mark.parametrize(("site", "known"), [("", True), ("us-east-1f", True), *((one, False) for one in ELSEWHERE)])
def test_what_is_not_in_the_region_itself_does_not_cost_what_it_would_there(site: str, known: bool) -> None:
    balancer = LoadBalancer(id="arn", name="web", type="network", internet_facing=False, created_at=NOW, site=site)
    prices = (
        HERE.instance(instance(site=site)),
        HERE.volume(volume(site=site)),
        HERE.snapshot(snapshot(site=site)),
        HERE.load_balancer(balancer),
    )

    assert [price is not None for price in prices] == [known] * 4


def test_an_unknown_region_has_no_price() -> None:
    nowhere = Prices.from_file("eu-atlantis-1")

    assert nowhere.instance(instance()) is None
    assert nowhere.volume(volume()) is None
    assert nowhere.address() is None


@pytest.mark.parametrize(
    ("said", "usd"),
    [
        ({"type": "gp3", "size_gb": 100}, 8),
        ({"type": "gp3", "size_gb": 100, "iops": 3000, "throughput": 125}, 8),
        ({"type": "gp3", "size_gb": 100, "iops": 4000, "throughput": 225}, 8 + 5 + 4),
        ({"type": "gp2", "size_gb": 100, "iops": 300}, 10),
        ({"type": "io1", "size_gb": 100, "iops": 1000}, 12.5 + 65),
        ({"type": "io2", "size_gb": 100, "iops": 1000}, 12.5 + 65),
        ({"type": "io2", "size_gb": 100, "iops": 70_000}, 12.5 + 32_000 * 0.065 + 32_000 * 0.0455 + 6_000 * 0.03185),
        ({"type": "st1", "size_gb": 1000}, 45),
        ({"type": "sc1", "size_gb": 1000}, 15),
        ({"type": "standard", "size_gb": 100}, 5),
    ],
)
def test_a_volume_costs_its_size_and_the_performance_beside_it(said: dict[str, Any], usd: float) -> None:
    price = HERE.volume(volume(**said))

    assert price
    assert price.usd == pytest.approx(usd)
    assert price.source == "price file of 2026-11-22, us-east-1"


@pytest.mark.parametrize("said", [{"type": "gp4"}, {"type": "io1"}, {"type": "io2", "iops": None}])
def test_a_volume_of_which_not_enough_is_known_has_no_price(said: dict[str, Any]) -> None:
    assert HERE.volume(volume(**said)) is None


@pytest.mark.parametrize(
    ("said", "usd"),
    [
        ({"size_gb": 100}, 5),
        ({"size_gb": 100, "full_bytes": 10 * 2**30}, 0.5),
        ({"size_gb": 100, "full_bytes": 0}, 0),
        ({"size_gb": 100, "tier": "archive"}, 1.25),
    ],
)
def test_a_snapshot_costs_its_blocks(said: dict[str, Any], usd: float) -> None:
    price = HERE.snapshot(snapshot(**said))

    assert price
    assert price.usd == pytest.approx(usd)


def test_what_is_paid_by_the_hour_or_by_what_it_stores() -> None:
    balancer = LoadBalancer(id="arn", name="web", type="gateway", internet_facing=False, created_at=NOW)
    group = LogGroup(id="/aws", created_at=NOW, stored_bytes=10 * 2**30, retention_days=None)

    prices = HERE.address(), HERE.nat_gateway(GATEWAY), HERE.load_balancer(balancer), HERE.log_group(group)

    assert [price and round(price.usd, 4) for price in prices] == [3.65, 32.85, 9.125, 0.3]


@given(st.sampled_from(["gp2", "gp3", "io1", "io2", "st1", "sc1", "standard"]), st.integers(1, 65_536), st.data())
def test_more_never_costs_less(kind: str, size: int, data: st.DataObject) -> None:
    iops = data.draw(st.integers(100, 256_000))
    less = HERE.volume(volume(type=kind, size_gb=size, iops=iops, throughput=125))
    more = HERE.volume(volume(type=kind, size_gb=size + 1, iops=iops + 1, throughput=126))

    assert less and more and 0 < less.usd < more.usd


def test_the_file_is_small_and_whole() -> None:
    """The CLI reads it on each run."""
    document = json.loads(FILE.read_text())

    assert FILE.stat().st_size < 16_384
    for families in document["families"].values():
        usd, smallest, largest = families
        assert usd > 0
        assert module._SIZES[smallest] <= module._SIZES[largest]
    factors = {"t", "m", "c", "r", "volume", "snapshot", "nat_gateway", "load_balancer", "log_storage"}
    for region, said in document["regions"].items():
        assert set(said) - {"unknown"} == factors, region
        assert all(0.8 < said[factor] < 2.2 for factor in factors), region
    assert set(document["regions"]["us-east-1"].values()) == {1}


def test_prices_are_had_without_pydantic_and_boto3() -> None:
    code = (
        "import sys, lamplighter.cloud.prices; print(*(sys.modules.keys() & {'pydantic', 'boto3', 'botocore', 'json'}))"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=FILE.parents[2], capture_output=True, text=True, check=True).stdout.split()

    assert set(loaded) <= {"json"}
