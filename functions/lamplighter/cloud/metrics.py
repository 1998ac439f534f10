"""What CloudWatch says of a region's resources: one GetMetricData for 500 metrics, never one call for each.

A window is cut into parts of six hours; of each part one value comes back, which holds every datapoint of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any, Final

from lamplighter.cloud.answers import UnexpectedAnswer, member, read_by_boto3
from lamplighter.cloud.inventory import Instance, LoadBalancer, NatGateway, Series

PART: Final = timedelta(hours=6)
QUERIES_A_CALL: Final = 500
"""As many as GetMetricData takes."""

MEMORY: Final = ("mem_used_percent", "Memory % Committed Bytes In Use")
"""What the CloudWatch agent calls it on Linux and on Windows."""

type Dimensions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Whole parts of time, aligned to midnight UTC, and the one that is not over yet."""

    start: datetime
    end: datetime
    expected: int
    """How many parts are over."""

    @classmethod
    def before(cls, now: datetime, days: int) -> Window:
        """The last `days` days' parts before `now`."""
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        whole = midnight + (now - midnight) // PART * PART
        return cls(start=whole - timedelta(days=days), end=now, expected=timedelta(days=days) // PART)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One metric of one resource."""

    of: str
    """The field of `Inventory` that it is for."""
    resource: str
    namespace: str
    name: str
    dimensions: Dimensions
    statistic: str
    merge: Callable[[float | None, float], float]
    """What the value of a part becomes by this metric's: a resource may have several metrics, in any order."""


def cpu(instances: Iterable[Instance]) -> Iterator[Query]:
    """Of running instances: how busy they were at most (REQUIREMENTS C2)."""
    for instance in instances:
        if instance.state == "running":
            dimensions = (("InstanceId", instance.id),)
            yield _highest("cpu", instance.id, "AWS/EC2", "CPUUtilization", dimensions)


def memory(agents: Iterable[tuple[str, Dimensions]], instances: Iterable[Instance]) -> Iterator[Query]:
    """Of running instances that have a CloudWatch agent: how full they were at most (REQUIREMENTS C3)."""
    running = {instance.id for instance in instances if instance.state == "running"}
    for name, dimensions in agents:
        if (resource := dict(dimensions).get("InstanceId")) in running:
            yield _highest("memory", resource, "CWAgent", name, dimensions)


def agents(cloudwatch: Any) -> list[tuple[str, Dimensions]]:
    """The agents' memory metrics with their dimensions, which each agent's configuration decides on."""
    pages = cloudwatch.get_paginator("list_metrics")
    asked = {"Namespace": "CWAgent", "Dimensions": [{"Name": "InstanceId"}]}
    with read_by_boto3("ListMetrics"):
        return [
            (name, tuple((one["Name"], one["Value"]) for one in metric.get("Dimensions", ())))
            for name in MEMORY
            for page in pages.paginate(MetricName=name, **asked)
            for metric in member(page, "Metrics", "ListMetrics")
        ]


_LOAD_BALANCERS: Final = {
    "application": ("AWS/ApplicationELB", ("RequestCount", "HTTP_Redirect_Count", "HTTP_Fixed_Response_Count")),
    "network": ("AWS/NetworkELB", ("ProcessedBytes",)),
    "gateway": ("AWS/GatewayELB", ("ProcessedBytes",)),
}
"""The namespace of each type, and what it served. RequestCount is of requests for which a target could be chosen; what
the load balancer answers by itself is counted apart."""


def traffic(load_balancers: Iterable[LoadBalancer], nat_gateways: Iterable[NatGateway]) -> Iterator[Query]:
    """What load balancers and NAT gateways served, as `Inventory.traffic` tells."""
    for balancer in load_balancers:
        if balancer.type in _LOAD_BALANCERS:
            namespace, served = _LOAD_BALANCERS[balancer.type]
            dimensions = (("LoadBalancer", balancer.id.partition(":loadbalancer/")[2]),)
            yield from _served(balancer.id, namespace, dimensions, served, "ConsumedLCUs")
    for gateway in nat_gateways:
        dimensions = (("NatGatewayId", gateway.id),)
        served = ("BytesOutToDestination",)
        yield from _served(gateway.id, "AWS/NATGateway", dimensions, served, "ActiveConnectionCount")


def series(
    cloudwatch: Any, queries: Iterable[Query], window: Window, pool: Executor
) -> Mapping[str, Mapping[str, Series]]:
    """The series of each resource that was asked about, by field of `Inventory` and by resource.

    Where CloudWatch does not tell all of a metric, nothing is known of its resource: requests that were not told are
    not no requests.

    Raises:
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: a call was refused.
    """
    found: dict[tuple[str, str], list[float | None]] = {}
    untold = set[tuple[str, str]]()
    batches = list(batched(queries, QUERIES_A_CALL, strict=False))
    for batch, answers in zip(batches, pool.map(lambda batch: _ask(cloudwatch, batch, window), batches), strict=True):
        for query, values in zip(batch, answers, strict=True):
            parts = found.setdefault((query.of, query.resource), [None] * (window.expected + 1))
            if values is None:
                untold.add((query.of, query.resource))
            for part, value in values or ():
                parts[part] = query.merge(parts[part], value)
    said: dict[str, dict[str, Series]] = {}
    for (of, resource), (*over, under_way) in found.items():
        seen = tuple(value for value in over if value is not None)
        known = Series(expected=window.expected, values=seen, under_way=under_way)
        unknown = Series(expected=window.expected, values=())
        said.setdefault(of, {})[resource] = unknown if (of, resource) in untold else known
    return said


def _ask(cloudwatch: Any, batch: tuple[Query, ...], window: Window) -> list[list[tuple[int, float]] | None]:
    """The parts that each query has a value for, and the values; None where they are not all."""
    request = [
        {
            "Id": f"q{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": query.namespace,
                    "MetricName": query.name,
                    "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
                },
                "Period": int(PART.total_seconds()),
                "Stat": query.statistic,
            },
        }
        for number, query in enumerate(batch)
    ]
    numbers = {one["Id"]: number for number, one in enumerate(request)}
    values: list[list[tuple[int, float]]] = [[] for _ in batch]
    complete = [False] * len(batch)
    pages = cloudwatch.get_paginator("get_metric_data").paginate(
        MetricDataQueries=request, StartTime=window.start, EndTime=window.end
    )
    with read_by_boto3("GetMetricData"):
        for page in pages:
            for result in member(page, "MetricDataResults", "GetMetricData"):
                number = numbers.get(name := member(result, "Id", "GetMetricData", "a result"))
                if number is None:
                    raise UnexpectedAnswer(f"GetMetricData: a result has the Id {name:.50}, which was not asked for.")
                complete[number] = result.get("StatusCode", "Complete") == "Complete"
                parts = ((at - window.start) // PART for at in result.get("Timestamps", ()))
                said = zip(parts, result.get("Values", ()), strict=True)
                values[number] += ((part, value) for part, value in said if 0 <= part <= window.expected)
    return [known if whole else None for known, whole in zip(values, complete, strict=True)]


def _highest(of: str, resource: str, namespace: str, name: str, dimensions: Dimensions) -> Query:
    return Query(
        of=of,
        resource=resource,
        namespace=namespace,
        name=name,
        dimensions=dimensions,
        statistic="Maximum",
        merge=_higher,
    )


def _served(
    resource: str, namespace: str, dimensions: Dimensions, served: tuple[str, ...], reported: str
) -> Iterator[Query]:
    """What is served, and what is always reported and so tells which parts are known."""
    for name, merge in (*((name, _more) for name in served), (reported, _known)):
        yield Query(
            of="traffic",
            resource=resource,
            namespace=namespace,
            name=name,
            dimensions=dimensions,
            statistic="Sum",
            merge=merge,
        )


def _higher(before: float | None, value: float) -> float:
    return value if before is None else max(before, value)


def _more(before: float | None, value: float) -> float:
    return value if before is None else before + value


def _known(before: float | None, _value: float) -> float:
    return 0.0 if before is None else before
