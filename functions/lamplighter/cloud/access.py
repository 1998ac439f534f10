"""Ways into one region of one account: boto3's clients by service, with the caller's own credentials or a role's.

An assumed role's credentials last an hour, which nothing here that uses them does; so nothing refreshes them.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from lamplighter.kernel.errors import Permanent, Retryable

CONCURRENCY: Final = 8
"""How many requests may be under way at a time; more takes memory, and is throttled sooner."""

CONNECT_TIMEOUT: Final = 3
READ_TIMEOUT: Final = 30
"""Seconds that a request waits for a connection, and for an answer."""
ATTEMPTS: Final = 6
STS_ATTEMPTS: Final = 3
"""How often a request is sent at most. Fewer for STS: an account that cannot be entered is reported soon."""

_TOO_FAST: Final = {
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "RequestThrottled"),
    *("BandwidthLimitExceeded", "LimitExceededException", "SlowDown", "EC2ThrottledException", "ThrottledException"),
}
"""Error codes of requests that came faster than the service takes them."""

_creating = threading.Lock()


class Clients:
    """The clients of one region of one account, made when first asked for; any thread may ask for them and use them.

    They retry adaptively: after a throttle a client slows all that it sends down (botocore, "Adaptive retry mode").
    """

    def __init__(self, session: Any, region: str, sent: Sent) -> None:
        self.region = region
        self._session = session
        self._sent = sent
        self._clients: dict[str, Any] = {}

    def __call__(self, service: str) -> Any:
        """The client of `service`, by boto3's name of it."""
        from botocore.config import Config

        with _creating:  # creating one is not thread-safe (boto3, "Multithreading with clients")
            if service not in self._clients:
                self._clients[service] = self._session.create_client(
                    service,
                    region_name=self.region,
                    config=Config(
                        connect_timeout=CONNECT_TIMEOUT,
                        read_timeout=READ_TIMEOUT,
                        retries={
                            "mode": "adaptive",
                            "total_max_attempts": {"sts": STS_ATTEMPTS}.get(service, ATTEMPTS),
                        },
                        max_pool_connections=CONCURRENCY,
                    ),
                )
            return self._clients[service]

    @property
    def calls(self) -> int:
        """How many requests were sent: each page is one, each retry, and assuming the role."""
        return self._sent.total

    def elsewhere(self, region: str) -> Clients:
        """The same account's clients in another region; requests are counted together."""
        return Clients(self._session, region, self._sent)


class Sent:
    """Counts the requests of all clients of an account, from any thread."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, **_: Any) -> None:
        """botocore's `before-send` hook."""
        with self._lock:
            self.total += 1


def clients(region: str, *, role_arn: str | None = None, external_id: str | None = None, session_name: str) -> Clients:
    """The clients of `region`: in the caller's own account, or in the one whose role is assumed.

    Args:
        external_id: what the role's trust policy asks for (sts:ExternalId).
        session_name: who the account's CloudTrail says was there: the job.

    Raises:
        Permanent: the role cannot be assumed; says which, and why.
        Retryable: STS cannot be reached, or did not answer in time.
    """
    sent = Sent()
    own = Clients(_session(sent), region, sent)
    if role_arn is None:
        return own
    return Clients(_session(sent, **_assumed(own, role_arn, external_id, session_name)), region, sent)


def own_region() -> str | None:
    """The caller's, from the environment or the profile.

    Raises:
        Permanent: there is no such profile, or the configuration cannot be read.
    """
    from botocore.exceptions import BotoCoreError

    try:
        region: str | None = _session(Sent()).get_config_variable("region")
    except BotoCoreError as error:
        raise Permanent(f"The AWS configuration is not usable: {error}") from error
    return region


def regions() -> frozenset[str]:
    """All regions in which EC2 is, as far as this version of botocore knows."""
    session = _session(Sent())
    partitions = session.get_available_partitions()
    return frozenset(region for each in partitions for region in session.get_available_regions("ec2", each))


def failures() -> tuple[type[Exception], ...]:
    """What a call ends with that was refused, did not come through, or has an answer that cannot be understood."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return ClientError, BotoCoreError, ResponseParserError, ValueError


def is_passing(error: Exception) -> bool:
    """Whether what failed may go well later: throttled, unreachable, broken off, or an error of the service's own."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500) or error.response["Error"]["Code"] in _TOO_FAST
    return isinstance(error, ConnectionError | HTTPClientError | ResponseParserError)


def _assumed(clients: Clients, role_arn: str, external_id: str | None, session_name: str) -> dict[str, str]:
    request = {"RoleArn": role_arn, "RoleSessionName": session_name[:64], "DurationSeconds": 3600}
    try:
        answer = clients("sts").assume_role(**request, **({"ExternalId": external_id} if external_id else {}))
    except failures() as error:
        if is_passing(error):
            raise Retryable(f"The role {role_arn} could not be assumed now: {error}") from error
        how = "with the external id that is set" if external_id else "without an external id"
        raise Permanent(f"The role {role_arn} cannot be assumed {how}: {error}") from error
    credentials = answer["Credentials"]
    return {
        "access_key": credentials["AccessKeyId"],
        "secret_key": credentials["SecretAccessKey"],
        "token": credentials["SessionToken"],
    }


def _session(sent: Sent, **credentials: str) -> Any:
    from botocore.session import Session

    session = Session()
    session.register_component("data_loader", _loader())
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
    session.register("before-send", sent)
    if credentials:
        session.set_credentials(**credentials)
    return session


def _moment(value: Any) -> datetime:
    """Of an answer's timestamp: the seconds that CloudWatch counts in at once, all else as botocore reads it."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    from botocore.utils import parse_timestamp

    moment: datetime = parse_timestamp(value)
    return moment


@cache
def _loader() -> Any:
    """Keeps what is known of services for all sessions."""
    from botocore.loaders import Loader

    from lamplighter.cloud.descriptions import PiecewiseLoader

    own = os.environ.get("AWS_DATA_PATH")
    return Loader(own.split(os.pathsep) if own else None, file_loader=PiecewiseLoader())
