"""Claims between stacks that clean one bucket (REQUIREMENTS S10; FAILURES 25)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.deletion import claims
from lamplighter.deletion.claims import KEY, Stack, claim, look, overlap
from lamplighter.kernel.errors import Permanent, Retryable
from tests.integration.media_world import before

DAY = timedelta(days=1)
ONE = Stack(name="one", account="111111111111", region="eu-west-1")
TWO = Stack(name="two", account="222222222222", region="eu-west-1")


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"media-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def now() -> datetime:
    """Shortly after S3 stores what a test writes: S3 has a clock of its own."""
    return datetime.now(UTC) + timedelta(minutes=1)


@pytest.fixture
def writes(s3: Any) -> Iterator[list[str]]:
    """How each attempt to write the claim object was conditional."""
    seen: list[str] = []
    end = before(s3, "PutObject", lambda params: seen.append("IfMatch" if "IfMatch" in params else "IfNoneMatch"))
    yield seen
    end()


def stored(s3: Any, bucket: str) -> list[dict[str, str]]:
    return list(json.loads(s3.get_object(Bucket=bucket, Key=KEY)["Body"].read())["claims"])


def store(s3: Any, bucket: str, *claims: dict[str, Any]) -> None:
    s3.put_object(Bucket=bucket, Key=KEY, Body=json.dumps({"claims": claims}).encode())


def stored_claim(stack: Stack, folder: str, renewed_at: datetime) -> dict[str, Any]:
    who = {"stack": stack.name, "account": stack.account, "region": stack.region}
    return who | {"folder": folder, "renewed_at": renewed_at.isoformat()}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", True),
        ("", "a/", True),
        ("a/", "", True),
        ("a/", "a/", True),
        ("a/", "a/b/", True),
        ("a/b/", "a/", True),
        ("a/", "ab/", False),
        ("a/b/", "a/c/", False),
        ("a/", "b/", False),
        ("a/", "A/", False),
    ],
)
def test_folders_overlap_where_one_contains_the_other(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected


FOLDERS = st.lists(st.sampled_from("ab"), max_size=3).map(lambda parts: "".join(f"{part}/" for part in parts))


@given(one=FOLDERS, other=FOLDERS, key=st.lists(st.sampled_from("ab"), max_size=3).map("/".join))
def test_an_object_in_two_folders_means_that_they_overlap(one: str, other: str, key: str) -> None:
    if f"{key}.jpg".startswith(one) and f"{key}.jpg".startswith(other):
        assert overlap(one, other)


def test_the_second_stack_is_refused_with_the_name_of_the_first(s3: Any, bucket: str, now: datetime) -> None:
    claim(s3, bucket, "uploads/", stack=ONE, now=now)

    with pytest.raises(Permanent) as refused:
        claim(s3, bucket, "uploads/2026/", stack=TWO, now=now)

    assert "The stack one (account 111111111111, eu-west-1) cleans the folder uploads/" in str(refused.value)
    assert "Nothing was deleted." in str(refused.value)
    assert look(s3, bucket, "", stack=TWO, now=now) in str(refused.value).replace(
        "folder uploads/2026/", "whole bucket"
    )
    claim(s3, bucket, "other/", stack=TWO, now=now)
    claim(s3, bucket, "uploads/", stack=ONE, now=now)
    assert [one["stack"] for one in stored(s3, bucket)] == ["one", "two"]


def test_stacks_of_one_name_in_two_accounts_are_two(s3: Any, bucket: str, now: datetime) -> None:
    namesake = Stack(name="one", account="333333333333", region="eu-west-1")
    claim(s3, bucket, "", stack=ONE, now=now)

    with pytest.raises(Permanent, match="account 111111111111"):
        claim(s3, bucket, "", stack=namesake, now=now)


def test_a_preview_reports_and_writes_nothing(s3: Any, bucket: str, now: datetime) -> None:
    assert look(s3, bucket, "", stack=ONE, now=now) is None
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    claim(s3, bucket, "", stack=ONE, now=now)
    etag = s3.head_object(Bucket=bucket, Key=KEY)["ETag"]

    assert look(s3, bucket, "", stack=ONE, now=now + 2 * DAY) is None
    assert "The stack one" in str(look(s3, bucket, "a/", stack=TWO, now=now))
    assert s3.head_object(Bucket=bucket, Key=KEY)["ETag"] == etag


def test_a_claim_is_renewed_at_most_once_a_day(s3: Any, bucket: str, now: datetime, writes: list[str]) -> None:
    for hours in (0, 1, 23):
        claim(s3, bucket, "", stack=ONE, now=now + timedelta(hours=hours))
    assert writes == ["IfNoneMatch"]

    claim(s3, bucket, "", stack=ONE, now=now + DAY)
    assert writes == ["IfNoneMatch", "IfMatch"]


def test_a_claim_is_void_after_30_days(s3: Any, bucket: str, now: datetime) -> None:
    claim(s3, bucket, "", stack=ONE, now=now)
    stored_at = s3.head_object(Bucket=bucket, Key=KEY)["LastModified"]

    with pytest.raises(Permanent, match=f"wait until {stored_at + 30 * DAY:%Y-%m-%d}"):
        claim(s3, bucket, "", stack=TWO, now=stored_at + 30 * DAY - timedelta(seconds=1))
    assert look(s3, bucket, "", stack=TWO, now=now + 30 * DAY) is None
    claim(s3, bucket, "", stack=TWO, now=now + 30 * DAY)

    assert [one["stack"] for one in stored(s3, bucket)] == ["two"]


def test_a_claim_of_the_future_ends_30_days_after_it_was_stored(s3: Any, bucket: str, now: datetime) -> None:
    store(s3, bucket, stored_claim(ONE, "a/", datetime(2999, 1, 1, tzinfo=UTC)))
    assert look(s3, bucket, "", stack=TWO, now=now + 29 * DAY)
    assert look(s3, bucket, "", stack=TWO, now=now + 30 * DAY) is None

    claim(s3, bucket, "b/", stack=TWO, now=now)  # writes the object again, and the claim with it

    (first, _) = stored(s3, bucket)
    assert first["renewed_at"] < f"{now:%Y-%m-%dT%H:%M:%S}Z"


def test_a_stack_whose_base_path_changed_frees_its_old_folder(s3: Any, bucket: str, now: datetime) -> None:
    claim(s3, bucket, "old/", stack=ONE, now=now)
    claim(s3, bucket, "new/", stack=ONE, now=now)

    assert [one["folder"] for one in stored(s3, bucket)] == ["new/"]
    claim(s3, bucket, "old/", stack=TWO, now=now)


def test_a_run_over_another_folder_keeps_the_configured_one(s3: Any, bucket: str, now: datetime) -> None:
    claim(s3, bucket, "uploads/", stack=ONE, now=now)
    claim(s3, bucket, "uploads/2026/", stack=ONE, now=now, also=["uploads/"])

    assert [one["folder"] for one in stored(s3, bucket)] == ["uploads/", "uploads/2026/"]
    with pytest.raises(Permanent, match="cleans the folder uploads/"):
        claim(s3, bucket, "uploads/2025/", stack=TWO, now=now)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"claims": 5}',
        b'{"claims": [5]}',
        b'{"claims": [{"stack": "one"}]}',
        json.dumps({"claims": [stored_claim(ONE, "no-slash", datetime(2026, 1, 1, tzinfo=UTC))]}).encode(),
        json.dumps({"claims": [stored_claim(ONE, "a/", datetime(2026, 1, 1))]}).encode(),
        b"\xff\xfe",
        b"[" * (claims.SIZE_LIMIT + 1),
        b"[" * claims.SIZE_LIMIT,
        b'{"claims": []}' + b" " * claims.SIZE_LIMIT + b"and more",
    ],
)
def test_an_object_that_is_no_list_of_claims_is_one_sentence(s3: Any, bucket: str, now: datetime, body: bytes) -> None:
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)

    with pytest.raises(Permanent, match=rf"{KEY} of {bucket} is not a list of claims: delete it"):
        claim(s3, bucket, "", stack=ONE, now=now)
    assert "is not a list of claims" in str(look(s3, bucket, "", stack=ONE, now=now))
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == body


def test_names_in_a_claim_are_flattened_and_cut(s3: Any, bucket: str, now: datetime) -> None:
    """The sentence goes into a row, which takes no half of a surrogate pair, and into an alert."""
    forged = Stack(name="shop\ud800\n\u202eprod" * 999, account="1", region="x")
    store(s3, bucket, stored_claim(forged, "a\udfff\r\n" * 999 + "/", now))

    with pytest.raises(Permanent) as refused:
        claim(s3, bucket, "", stack=ONE, now=now)
    for said in (str(refused.value), str(look(s3, bucket, "", stack=ONE, now=now))):
        assert said.isprintable()
        assert len(said.encode()) < 2000


@pytest.mark.parametrize(
    ("operation", "permission"), [("get_object", "allow s3:GetObject"), ("put_object", "allow s3:PutObject")]
)
def test_a_missing_permission_is_named(
    s3: Any, bucket: str, now: datetime, monkeypatch: pytest.MonkeyPatch, operation: str, permission: str
) -> None:
    def denied(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)

    monkeypatch.setattr(s3, operation, denied)

    with pytest.raises(Permanent, match=permission):
        claim(s3, bucket, "", stack=ONE, now=now)


@pytest.mark.parametrize("there", [False, True])
def test_of_stacks_that_claim_at_once_one_wins(s3: Any, bucket: str, now: datetime, there: bool) -> None:
    if there:
        claim(s3, bucket, "elsewhere/", stack=ONE, now=now)
    stacks = [Stack(name=f"s{number}", account="1", region="r") for number in range(6)]

    def attempt(stack: Stack) -> bool:
        try:
            claim(s3, bucket, "uploads/", stack=stack, now=now)
        except (Permanent, Retryable):
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, stacks))

    assert sum(won) == 1
    holders = [one["stack"] for one in stored(s3, bucket) if one["folder"] == "uploads/"]
    assert holders == [stacks[won.index(True)].name]


def test_a_lost_race_is_decided_by_what_the_winner_wrote(s3: Any, bucket: str, now: datetime) -> None:
    def win(params: Any) -> None:
        end()
        claim(s3, bucket, "uploads/", stack=TWO, now=now)

    end = before(s3, "PutObject", win)
    with pytest.raises(Permanent, match="The stack two"):
        claim(s3, bucket, "", stack=ONE, now=now)


def test_the_stack_of_a_function_has_the_account_and_region_of_its_topic() -> None:
    found = Stack.of_environment(
        {"STACK_NAME": "one", "ALERTS_TOPIC_ARN": "arn:aws-cn:sns:eu-west-1:111111111111:one-alerts"}
    )

    assert found == ONE
