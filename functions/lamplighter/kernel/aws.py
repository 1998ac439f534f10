"""AWS clients, made when first asked for and kept: creating one costs more than most calls made with it."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

_creating = threading.Lock()


def client(service: str) -> Any:
    """The process's boto3 client of `service`, with bounded waits and the standard retries.

    Any thread may use it (clients are thread-safe, creating one is not; boto3, "Multithreading with clients").
    """
    with _creating:
        return _client(service)


@cache
def _client(service: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,  # type: ignore[call-overload]
        config=Config(
            connect_timeout=3,
            read_timeout=20,
            retries={"mode": "standard", "max_attempts": 4},
            max_pool_connections=16,
            tcp_keepalive=True,
            # botocore's own check takes a sixth of a batched write's time, and DynamoDB checks again.
            parameter_validation=service != "dynamodb",
        ),
    )
