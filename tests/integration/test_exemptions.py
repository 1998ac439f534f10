"""`lamplighter.cloud.exemptions`: the document in the archive bucket."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from lamplighter.cloud.exemptions import KEY, Exemptions, load
from lamplighter.kernel.errors import Permanent

GOOD = {"check": "open_ports", "resource": "sg-1", "reason": "The bastion", "owner": "ada", "expires": "2026-12-31"}


@pytest.fixture
def archive(s3: Any) -> str:
    name = f"archive-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


def test_no_document_is_no_exceptions(s3: Any, archive: str) -> None:
    assert load(s3, archive) == Exemptions()


def test_a_document(s3: Any, archive: str) -> None:
    s3.put_object(Bucket=archive, Key=KEY, Body=json.dumps({"exceptions": [GOOD]}).encode())
    assert [exemption.as_json() for exemption in load(s3, archive).entries] == [GOOD]


def test_a_bad_document_is_not_none(s3: Any, archive: str) -> None:
    """Nothing may be acted upon while it is not known what is excepted."""
    s3.put_object(Bucket=archive, Key=KEY, Body=b'{"exceptions": [{"check": "open_ports"}]}')
    with pytest.raises(
        Permanent, match=r"^In s3://archive-.*/cloud/exceptions\.json: exceptions\[0\]\.resource is missing"
    ):
        load(s3, archive)


def test_what_cannot_be_read_is_not_none(s3: Any) -> None:
    with pytest.raises(Permanent, match=r"^s3://elsewhere/cloud/exceptions\.json cannot be read: .*NoSuchBucket"):
        load(s3, "elsewhere")
