"""Ways into other accounts: what a role is asked with, and whose credentials are used (REQUIREMENTS C17)."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from lamplighter.cloud import access
from lamplighter.cloud.access import Clients
from lamplighter.kernel.errors import Permanent, Retryable

ROLE = "arn:aws:iam::111122223333:role/lamplighter"


class Sts:
    """Lets the role be assumed, unless it is to fail."""

    def __init__(self, error: ClientError | None = None) -> None:
        self.error = error
        self.asked: list[dict[str, Any]] = []

    def assume_role(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        if self.error:
            raise self.error
        return {"Credentials": {"AccessKeyId": "theirs", "SecretAccessKey": "secret", "SessionToken": "token"}}


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Sts:
    own = Sts()
    monkeypatch.setattr(Clients, "__call__", lambda self, service: own)
    return own


def enter(**given: Any) -> Clients:
    return access.clients("eu-west-1", session_name="job", **given)


def key(entered: Clients) -> str:
    return str(entered._session.get_credentials().access_key)


def test_a_role_is_assumed_with_its_external_id(sts: Sts) -> None:
    entered = enter(role_arn=ROLE, external_id="ours")
    assert sts.asked == [
        {"RoleArn": ROLE, "RoleSessionName": "job", "DurationSeconds": 3600, "ExternalId": "ours"},
    ]
    assert (key(entered), entered.region) == ("theirs", "eu-west-1")


def test_without_an_external_id_none_is_sent(sts: Sts) -> None:
    enter(role_arn=ROLE)
    assert "ExternalId" not in sts.asked[0]


def test_without_a_role_the_stacks_own_credentials_are_used(sts: Sts) -> None:
    assert (key(enter()), sts.asked) == ("none", [])


@pytest.mark.parametrize(
    ("code", "status", "error", "said"),
    [
        ("AccessDenied", 403, Permanent, "cannot be assumed with the external id that is set"),
        ("Throttling", 400, Retryable, "could not be assumed now"),
        ("InternalFailure", 500, Retryable, "could not be assumed now"),
    ],
)
def test_a_role_that_cannot_be_assumed_is_named(
    sts: Sts, code: str, status: int, error: type[Exception], said: str
) -> None:
    answer: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    sts.error = ClientError(answer, "AssumeRole")
    with pytest.raises(error, match=f"{ROLE} {said}"):
        enter(role_arn=ROLE, external_id="ours")


def test_a_profile_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """`local.scan` reads the caller's own configuration."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(Permanent, match=r"The AWS configuration is not usable: .*nobody"):
        access.own_region()


def test_every_request_is_counted_and_sts_gives_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says how many there were: each retry is one, whichever client of the account sent it."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)
    monkeypatch.setattr("botocore.retries.bucket.TokenBucket.acquire", lambda self, amount=1, block=True: True)
    entered = enter()
    with pytest.raises(EndpointConnectionError):
        entered("sts").get_caller_identity()
    assert entered.calls == access.STS_ATTEMPTS
    with pytest.raises(EndpointConnectionError):
        entered.elsewhere("us-east-2")("ec2").describe_regions()
    assert entered.calls == access.STS_ATTEMPTS + access.ATTEMPTS
