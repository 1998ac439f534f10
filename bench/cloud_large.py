"""The cloud scan of 1 000, 3 000 and 10 000 instances, and at the rates that AWS allows. `python -m bench.cloud_large`.

The account of `bench.cloud_stub` is repeated 5, 15 and 50 times under other ids, page by page; so what is to be found
is known, and has to be found. The last run is held to AWS's documented rates and waits as long for a page as AWS may
take: it has to fit into the 15 minutes of one Lambda.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import fromstring, tostring

from moto.backends import get_backend

from bench.cloud_scan import Figure, ours, run
from bench.cloud_stub import ACCOUNT, REGION, SIZE, Stub, account, serve
from bench.tables import show

TIMES: Final = (5, 15, 50)
LIMIT_S: Final = 900
PAGE: Final = 1000
METRICS_A_PAGE: Final = 500
PARTS: Final = 29
"""Datapoints of a metric that are asked for: 7 days' parts of 6 hours, and the present one."""
PAGE_S: Final = 1.0
"""What a full page of EC2's is taken to take; AWS says nothing about it."""

SETS: Final = {
    "DescribeInstances": "reservationSet",
    "DescribeVolumes": "volumeSet",
    "DescribeSnapshots": "snapshotSet",
    "DescribeImages": "imagesSet",
    "DescribeSecurityGroups": "securityGroupInfo",
    "DescribeNetworkInterfaces": "networkInterfaceSet",
    "DescribeLaunchTemplateVersions": "launchTemplateVersionSet",
}
"""Where the items of an answer are."""
IDS: Final = re.compile(r"\b(i|vol|snap|sg|eni|ami|lt)-[0-9a-f]{4}([0-9a-f]{13})\b")

THROTTLED: Final = {
    "xml": (
        503,
        b"Content-Type: text/xml\r\n",
        b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>Request limit exceeded.</Message></Error>"
        b"</Errors><RequestID>0</RequestID></Response>",
    ),
    "json": (
        400,
        b"Content-Type: application/x-amz-json-1.0\r\n",
        b'{"__type": "ThrottlingException", "message": "Rate exceeded"}',
    ),
}


@dataclass(slots=True)
class Bucket:
    """Tokens that requests take, and that come back by the second."""

    capacity: float
    refill: float
    left: float
    at: float = 0.0

    @classmethod
    def full(cls, capacity: float, refill: float) -> Bucket:
        return cls(capacity, refill, capacity)

    def take(self, tokens: float, now: float) -> bool:
        """Whether there were as many."""
        self.left, self.at = min(self.capacity, self.left + (now - self.at) * self.refill), now
        if self.left < tokens:
            return False
        self.left -= tokens
        return True


class Large(Stub):
    """The account, so many times; with `rates` no faster than AWS."""

    def __init__(self, times: int, *, rates: bool) -> None:
        super().__init__(specimens=False)
        self._times, self._rates = times, rates
        self._items: dict[bytes, list[str]] = {}
        instances = (one.resource_id for one in self._estate.planted if one.resource_id.startswith("i-"))
        self._own = {id_[6:]: id_ for id_ in instances}
        # Amazon EC2, "Request throttling": each non-mutating operation has a bucket of its own.
        self._buckets = {operation: Bucket.full(100, 20) for operation in SETS}
        # CloudWatch, "Service quotas": 50 and 25 calls a second; at least 90 000 datapoints that are older than hours.
        self._buckets |= {"GetMetricData": Bucket.full(50, 50), "ListMetrics": Bucket.full(25, 25)}
        self._datapoints = Bucket.full(90_000, 90_000)

    async def _respond(
        self, called: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, bytes]:
        _service, _, operation = called.partition(":")
        if self._rates and not self._may(operation, body):
            self._calls["throttled"] += 1
            return THROTTLED["xml" if operation in SETS else "json"]
        if operation in SETS:
            return await self._page(operation, headers, body)
        if operation == "ListMetrics":
            return self._list(json.loads(body))
        if operation == "GetMetricData":
            body = re.sub(rb"\bi-[0-9a-f]{4}([0-9a-f]{13})", lambda one: self._own[one[1].decode()].encode(), body)
        return await super()._respond(called, method, target, headers, body)

    def _may(self, operation: str, body: bytes) -> bool:
        now = time.monotonic()
        if operation == "GetMetricData" and not self._datapoints.take(PARTS * body.count(b"MetricStat"), now):
            return False
        return operation not in self._buckets or self._buckets[operation].take(1, now)

    async def _page(self, operation: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes, bytes]:
        asked = re.sub(rb"&(?:MaxResults|NextToken)=[^&]*", b"", body) + b"&MaxResults=%d" % PAGE
        if asked not in self._items:
            _, _, answer = await self._ask_moto("POST", "/", headers, asked)
            found = fromstring(re.sub(r' xmlns="[^"]*"', "", answer.decode(), count=1)).find(SETS[operation])
            self._items[asked] = [] if found is None else [tostring(one, encoding="unicode") for one in found]
        items, (size, start) = self._items[asked], (_field(body, "MaxResults", PAGE), _field(body, "NextToken", 0))
        end = min(start + size, len(items) * self._times)
        if self._rates:
            await asyncio.sleep(PAGE_S * (end - start) / PAGE)
        page = "".join(_again(items[n % len(items)], n // len(items)) for n in range(start, end))
        more = f"<nextToken>{end}</nextToken>" if end < len(items) * self._times else ""
        answer = f"<{operation}Response><{SETS[operation]}>{page}</{SETS[operation]}>{more}</{operation}Response>"
        return 200, b"Content-Type: text/xml\r\n", answer.encode()

    def _list(self, asked: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
        names = dict.fromkeys(
            tuple((one.name, one.value) for one in datum.dimensions)
            for datum in get_backend("cloudwatch")[ACCOUNT][REGION].metric_data
            if (datum.namespace, datum.name) == (asked["Namespace"], asked["MetricName"])
        )
        start, own = int(asked.get("NextToken", 0)), list(names)
        end = min(start + METRICS_A_PAGE, len(own) * self._times)
        metrics = [
            {
                "Namespace": asked["Namespace"],
                "MetricName": asked["MetricName"],
                "Dimensions": [
                    {"Name": name, "Value": _again(value, n // len(own)) if name == "InstanceId" else value}
                    for name, value in own[n % len(own)]
                ],
            }
            for n in range(start, end)
        ]
        more = {"NextToken": str(end)} if end < len(own) * self._times else {}
        return 200, b"Content-Type: application/x-amz-json-1.0\r\n", json.dumps({"Metrics": metrics, **more}).encode()


def _again(text: str, time_: int) -> str:
    """The same under ids of its own, each time."""
    return IDS.sub(rf"\1-{time_:04x}\2", text) if time_ else text


def _field(body: bytes, name: str, otherwise: int) -> int:
    found = re.search(rf"\b{name}=(\d+)".encode(), body)
    return int(found[1]) if found else otherwise


def measured(times: int, *, rates: bool = False) -> tuple[Figure, Counter[str], int]:
    """One scan: what it took, its calls, and how many findings there were.

    Raises:
        SystemExit: there are others than were planted.
    """
    arguments = ("--serve", str(times), *(["--rates"] if rates else []))
    with account(*arguments, module="bench.cloud_large") as stub, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if not rates:
            run(ours(directory), stub, directory)  # the stub makes its pages, and keeps the metrics
        figure, said = run(ours(directory), stub, directory)
        found = Counter(one["check"] for one in json.loads(said)["findings"])
        planted = Counter(check for one in stub.planted() for check in one.found for _ in range(times))
        if found != planted:
            raise SystemExit(f"found {found}, planted {planted}")
        return figure, stub.calls(), found.total()


def main() -> None:
    """Measure and print."""
    rows, figures = [], []
    for times, rates in (*((times, False) for times in TIMES), (TIMES[-1], True)):
        figure, calls, found = measured(times, rates=rates)
        figures.append(figure)
        name = f"{times * SIZE['instances']:_} instances".replace("_", " ") + (", at AWS's rates" if rates else "")
        throttled = calls.pop("throttled", 0)
        rows.append(
            (name, calls.total(), throttled, f"{figure.seconds:.1f}", f"{figure.cpu:.1f}", f"{figure.peak_mib:.0f}",
             f"{found:_}".replace("_", " "))
        )  # fmt: skip
    show("One region", ("", "API calls", "throttled", "s", "CPU s", "peak MiB", "findings"), rows)
    small, large, allowed = figures[0], figures[-2], figures[-1]
    grown = TIMES[-1] / TIMES[0]
    print(f"\n{grown:.0f} times the instances take {large.cpu / small.cpu:.1f} times the processor's time", end="; ")
    print(f"at AWS's rates {allowed.seconds:.0f} s of the {LIMIT_S} s that a Lambda has")
    if large.cpu > 1.5 * grown * small.cpu or allowed.seconds > LIMIT_S:
        raise SystemExit("The cost does not grow with the account alone, or the scan does not fit into one Lambda.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(Large(int(sys.argv[2]), rates="--rates" in sys.argv)))
    else:
        main()
