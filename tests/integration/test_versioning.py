"""No earnest run without the undo that is promised (REQUIREMENTS S5; FAILURES 25)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from lamplighter.deletion.versioning import demand_versioned, problem
from lamplighter.kernel.errors import Permanent


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"media-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


def version(s3: Any, bucket: str, status: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})


def test_a_versioned_bucket_is_accepted(s3: Any, bucket: str) -> None:
    version(s3, bucket, "Enabled")

    assert problem(s3, bucket) is None
    demand_versioned(s3, bucket)


@pytest.mark.parametrize(("status", "sentence"), [(None, "is off"), ("Suspended", "is suspended")])
def test_another_bucket_is_refused_unless_the_owner_does_without_undo(
    s3: Any, bucket: str, status: str | None, sentence: str
) -> None:
    if status:
        version(s3, bucket, "Enabled")
        version(s3, bucket, status)

    with pytest.raises(Permanent, match=f"Versioning of {bucket} {sentence}.*Nothing was deleted.*allow_unversioned"):
        demand_versioned(s3, bucket)
    assert sentence in str(problem(s3, bucket))
    demand_versioned(s3, bucket, allow_unversioned=True)


def test_mfa_delete_is_refused(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"Status": "Enabled", "MFADelete": "Enabled"}
    monkeypatch.setattr(s3, "get_bucket_versioning", lambda **_: answer)

    with pytest.raises(Permanent, match="has MFA delete"):
        demand_versioned(s3, bucket)


@pytest.mark.parametrize(
    ("code", "sentence"), [("AccessDenied", "allow s3:GetBucketVersioning"), ("NoSuchBucket", "There is no bucket")]
)
def test_a_bucket_that_cannot_be_asked_is_refused(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    def fail(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "no"}}, "GetBucketVersioning")

    monkeypatch.setattr(s3, "get_bucket_versioning", fail)

    with pytest.raises(Permanent, match=sentence):
        demand_versioned(s3, bucket)
