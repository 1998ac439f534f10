"""Prices that are kept in the archive bucket between scans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.stub import Stubber

from lamplighter.cloud.prices import FRESH, kept
from tests import price_list
from tests.inventories import NOW, instance, inventory, volume

KEY = "cloud/prices/eu-west-1.json"
LINUX = inventory(instances=(instance(type="m5.large"),))


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"archive-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def stub(aws_account: None) -> Iterator[Stubber]:
    with Stubber(boto3.client("pricing", region_name="us-east-1")) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def answer(stub: Stubber, usd: str = "0.1080000000") -> None:
    stub.add_response("get_products", price_list.page(price_list.instance("m5.large", "RunInstances", usd)))


def test_the_api_is_asked_once_a_week_for_what_is_new(s3: Any, bucket: str, stub: Stubber) -> None:
    answer(stub)
    first = kept(LINUX, s3=s3, bucket=bucket, now=NOW, pricing=lambda: stub.client)
    again = kept(LINUX, s3=s3, bucket=bucket, now=NOW + FRESH / 2, pricing=lambda: stub.client)

    stub.add_response("get_products", price_list.page(*price_list.GP3))
    more = inventory(instances=LINUX.instances, volumes=(volume(),))
    grown = kept(more, s3=s3, bucket=bucket, now=NOW + FRESH / 2, pricing=lambda: stub.client)

    answer(stub, "0.1000000000")
    renewed = kept(LINUX, s3=s3, bucket=bucket, now=NOW + FRESH, pricing=lambda: stub.client)

    prices = [one.instance(LINUX.instances[0]) for one in (first, again, grown, renewed)]
    assert [price and round(price.usd / 730, 3) for price in prices] == [0.108, 0.108, 0.108, 0.1]
    assert grown.answered == NOW
    assert json.loads(s3.get_object(Bucket=bucket, Key=KEY)["Body"].read())["answers"] == renewed.answers


@pytest.mark.parametrize("document", [b"", b"not JSON", b"{}"])
def test_a_spoilt_document_is_asked_for_anew(s3: Any, bucket: str, stub: Stubber, document: bytes) -> None:
    s3.put_object(Bucket=bucket, Key=KEY, Body=document)
    answer(stub)

    here = kept(LINUX, s3=s3, bucket=bucket, now=NOW, pricing=lambda: stub.client)

    assert json.loads(s3.get_object(Bucket=bucket, Key=KEY)["Body"].read())["answers"] == here.answers


def test_a_denied_api_and_a_missing_bucket_fail_nothing(s3: Any, stub: Stubber) -> None:
    stub.add_client_error("get_products", "AccessDeniedException")
    denied = kept(LINUX, s3=s3, bucket="nowhere", now=NOW, pricing=lambda: stub.client).address()
    answer(stub)
    unkept = kept(LINUX, s3=s3, bucket="nowhere", now=NOW, pricing=lambda: stub.client).address()

    assert denied and denied.source.endswith("(AWS Pricing API: AccessDeniedException)")
    assert unkept and unkept.source.endswith("(AWS Pricing API: its answers were not kept: NoSuchBucket)")


def test_what_was_not_answered_is_not_kept(s3: Any, bucket: str, stub: Stubber) -> None:
    stub.add_client_error("get_products", "AccessDeniedException")

    kept(LINUX, s3=s3, bucket=bucket, now=NOW, pricing=lambda: stub.client)

    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
