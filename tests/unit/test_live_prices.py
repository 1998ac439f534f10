"""Prices of the AWS Pricing API: what is asked, what is understood, and what happens when it does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectTimeoutError
from botocore.stub import Stubber

from lamplighter.cloud import prices
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import FRESH, Prices, live, questions, restored, stored
from tests import price_list
from tests.inventories import DAY, NOW, instance, inventory, snapshot, volume

LINUX = instance(type="m5.large")
ALL = inventory(instances=(LINUX,), volumes=(volume(),), snapshots=(snapshot(),))
ANSWERS = (
    price_list.page(price_list.instance("m5.large", "RunInstances", "0.1080000000")),
    price_list.page(*price_list.SNAPSHOTS),
    price_list.page(*price_list.GP3),
)
TODAY = "AWS Pricing API, 2026-11-22"


@pytest.fixture(scope="module")
def client() -> Any:
    return boto3.client("pricing", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")


@pytest.fixture
def stub(client: Any) -> Iterator[Stubber]:
    """Answers by botocore's own model of the API, in the order in which they were added."""
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def filters(**fields: str) -> dict[str, Any]:
    said = {"regionCode": "eu-west-1", "locationType": "AWS Region", **fields}
    return {
        "ServiceCode": "AmazonEC2",
        "Filters": [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in said.items()],
    }


def asked(stub: Stubber, here: Inventory, **said: Any) -> Prices:
    return live(here, now=NOW, pricing=lambda: stub.client, **said)


def no_client() -> Any:
    raise AssertionError("nothing was to be asked")


def test_each_kind_of_thing_is_asked_about_once() -> None:
    here = inventory(
        instances=(
            LINUX,
            instance("i-2", type="m5.large"),
            instance("i-3", type="m5.large", platform="Windows"),
            instance("i-4", type="c5.large", lifecycle="spot"),
            instance("i-5", type="c5.large", tenancy="host"),
            instance("i-6", type="c5.large", platform="BeOS"),
        ),
        volumes=(volume(), volume("vol-2"), volume("vol-3", type="gp2"), volume("vol-4", type="io2")),
    )

    assert sorted(questions(here)) == [
        "instance m5.large Linux/UNIX",
        "instance m5.large Windows",
        "volume gp2",
        "volume gp3",
        "volume io2",
    ]
    assert questions(inventory()) == set()


def test_what_a_gp2_volume_would_cost_as_gp3_is_asked_too() -> None:
    assert questions(inventory(volumes=(volume(type="gp2"),))) == {"volume gp2", "volume gp3"}


def test_the_answers_are_the_prices(stub: Stubber) -> None:
    instances = filters(instanceType="m5.large", operation="RunInstances", tenancy="Shared", capacitystatus="Used")
    stub.add_response("get_products", ANSWERS[0], instances)
    stub.add_response("get_products", ANSWERS[1], filters(productFamily="Storage Snapshot"))
    stub.add_response("get_products", ANSWERS[2], filters(volumeApiName="gp3"))

    here = asked(stub, ALL)

    paid = {
        "instance": here.instance(LINUX),
        "volume": here.volume(volume(size_gb=100, iops=4000, throughput=225)),
        "snapshot": here.snapshot(snapshot(size_gb=100)),
        "archived": here.snapshot(snapshot(size_gb=100, tier="archive")),
    }
    assert {name: (round(price.usd, 6), price.source) for name, price in paid.items() if price} == {
        "instance": (0.108 * 730, TODAY),
        "volume": (18.7, TODAY),
        "snapshot": (5.1, TODAY),
        "archived": (1.26, TODAY),
    }


def test_an_answer_may_have_pages(stub: Stubber) -> None:
    stub.add_response("get_products", price_list.page(*price_list.GP3[:2], more="more"))
    stub.add_response(
        "get_products", price_list.page(price_list.GP3[2]), filters(volumeApiName="gp3") | {"NextToken": "more"}
    )

    here = asked(stub, inventory(volumes=(volume(),)))

    assert here.answers["volume gp3"].keys() == {"volume gp3 gb", "volume gp3 iops", "volume gp3 throughput"}


def test_what_was_not_asked_or_not_answered_is_from_the_file(stub: Stubber) -> None:
    stub.add_response("get_products", price_list.page())

    here = asked(stub, inventory(instances=(LINUX,)))

    for price in (here.instance(LINUX), here.volume(volume()), here.address()):
        assert price
        assert price.source == "price file of 2026-11-22, eu-west-1 estimated by region factor"


def test_two_prices_for_one_thing_are_no_answer(stub: Stubber) -> None:
    two = (price_list.instance("m5.large", "RunInstances", usd) for usd in ("0.108", "0.2"))
    stub.add_response("get_products", price_list.page(*two))

    assert asked(stub, inventory(instances=(LINUX,))).answers == {"instance m5.large Linux/UNIX": {}}


@pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException"])
def test_a_refusal_leaves_the_rest_to_the_file_which_says_why(stub: Stubber, code: str) -> None:
    stub.add_response("get_products", ANSWERS[0])
    stub.add_client_error("get_products", code)

    here = asked(stub, ALL)

    instance_price, volume_price = here.instance(LINUX), here.volume(volume())
    assert instance_price and instance_price.source == TODAY
    assert volume_price and volume_price.source.endswith(f"estimated by region factor (AWS Pricing API: {code})")


@pytest.mark.parametrize(
    ("pricing", "why"),
    [
        (lambda: (_ for _ in ()).throw(ConnectTimeoutError(endpoint_url="https://pricing")), "ConnectTimeoutError"),
        (lambda: None, "not understood: AttributeError("),
    ],
)
def test_an_api_that_is_not_there_fails_nothing(pricing: Callable[[], Any], why: str) -> None:
    here = live(ALL, now=NOW, pricing=pricing)

    price = here.instance(LINUX)
    assert price and f"(AWS Pricing API: {why}" in price.source


@pytest.mark.parametrize("document", ["", "{}", "[]", '{"product": {"attributes": {}}}', "null"])
def test_a_document_that_is_not_understood_fails_nothing(stub: Stubber, document: str) -> None:
    stub.add_response("get_products", price_list.page(document))

    here = asked(stub, inventory(volumes=(volume(),)))

    price = here.volume(volume())
    assert price and price.source.startswith("price file")


def test_fresh_answers_are_not_asked_for_again() -> None:
    known = Prices(
        region="eu-west-1", answers={"instance m5.large Linux/UNIX": {"instance m5.large Linux/UNIX": 1}}, answered=NOW
    )
    here = inventory(instances=(LINUX,))

    again = live(here, now=NOW + FRESH - timedelta(seconds=1), pricing=no_client, known=known)

    assert again == known


def test_stale_answers_are_asked_for_again(stub: Stubber) -> None:
    stub.add_response("get_products", ANSWERS[0])
    known = Prices(region="eu-west-1", answers={"instance m5.large Linux/UNIX": {}}, answered=NOW - FRESH)

    again = asked(stub, inventory(instances=(LINUX,)), known=known)

    assert again.answered == NOW
    assert again.answers["instance m5.large Linux/UNIX"] == {"instance m5.large Linux/UNIX": 0.108}


def test_stale_answers_are_better_than_none(stub: Stubber) -> None:
    stub.add_client_error("get_products", "AccessDeniedException")
    item = "instance m5.large Linux/UNIX"
    known = Prices(region="eu-west-1", answers={item: {item: 0.5}}, answered=NOW - 30 * DAY)

    price = asked(stub, inventory(instances=(LINUX,)), known=known).instance(LINUX)

    assert price and (price.usd, price.source) == (365, "AWS Pricing API, 2026-10-23")


def test_answers_outlive_being_stored() -> None:
    known = Prices(
        region="eu-west-1", answers={"snapshots": {"snapshot standard": 0.05}, "volume gp4": {}}, answered=NOW
    )

    assert restored(stored(known), "eu-west-1") == known


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"answered": 1, "answers": {}}',
        b'{"answered": "2026-11-22T12:00Z", "answers": {"a": 1}}',
        b'{"answered": "2026-11-22", "answers": {}}',
    ],
)
def test_a_document_that_is_no_such_one_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):
        restored(document, "eu-west-1")


def test_the_api_is_asked_where_it_is() -> None:
    assert prices.api().meta.region_name in boto3.Session().get_available_regions("pricing")
