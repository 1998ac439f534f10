"""`lamplighter.cloud.metrics`: windows, and what is made of CloudWatch's answers. Its answers for real: test_reader."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from lamplighter.cloud import metrics
from lamplighter.cloud.inventory import LoadBalancer, NatGateway, Series
from tests.inventories import NOW, instance

MIDDAY = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "start"),
    [
        (MIDDAY, datetime(2026, 11, 15, 12, tzinfo=UTC)),
        (MIDDAY + timedelta(seconds=1), datetime(2026, 11, 15, 12, tzinfo=UTC)),
        (MIDDAY - timedelta(seconds=1), datetime(2026, 11, 15, 6, tzinfo=UTC)),
        (datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=5))), datetime(2026, 11, 14, 18, tzinfo=UTC)),
    ],
)
def test_a_window_is_cut_at_midnight_utc_and_every_six_hours(now: datetime, start: datetime) -> None:
    window = metrics.Window.before(now, 7)

    assert (window.start, window.end, window.expected) == (start, now, 28)


WINDOW = metrics.Window.before(NOW, 1)
PARTS = [WINDOW.start + n * metrics.PART for n in range(5)]


def result(number: int, *points: tuple[datetime, float], status: str = "Complete") -> dict[str, Any]:
    """What CloudWatch says of one query."""
    return {
        "Id": f"q{number}",
        "StatusCode": status,
        "Timestamps": [at for at, _ in points],
        "Values": [value for _, value in points],
    }


def said(*pages: list[dict[str, Any]], instances: int = 1) -> Mapping[str, Series]:
    """The CPU series of instances i-0, i-1 and so on, when CloudWatch answers with these pages."""
    client = boto3.client("cloudwatch")
    with Stubber(client) as stub, ThreadPoolExecutor(1) as pool:
        for number, page in enumerate(pages):
            more = {"NextToken": f"t{number}"} if number < len(pages) - 1 else {}
            asked = {"MetricDataQueries": ANY, "StartTime": WINDOW.start, "EndTime": NOW}
            asked |= {"NextToken": f"t{number - 1}"} if number else {}
            stub.add_response("get_metric_data", {"MetricDataResults": page, **more}, asked)
        queries = metrics.cpu([instance(id=f"i-{number}") for number in range(instances)])
        series = metrics.series(client, queries, WINDOW, pool)
        stub.assert_no_pending_responses()
    return series["cpu"]


def test_a_series_may_come_in_several_pages_in_any_order() -> None:
    first = [result(1, (PARTS[0], 1.0)), result(0, (PARTS[3], 4.0), (PARTS[2], 3.0), status="PartialData")]
    second = [result(0, (PARTS[1], 2.0))]

    assert said(first, second, instances=2) == {
        "i-0": Series(expected=4, values=(2.0, 3.0, 4.0)),
        "i-1": Series(expected=4, values=(1.0,)),
    }


def test_the_part_that_is_not_over_is_known_beside_those_that_are() -> None:
    points = [(part, 1.0) for part in PARTS[:4]]

    assert said([result(0, *points)]) == {"i-0": Series(expected=4, values=(1.0,) * 4)}
    assert said([result(0, *points, (PARTS[4], 7.0))]) == {
        "i-0": Series(expected=4, values=(1.0,) * 4, under_way=7.0),
    }
    assert said([result(0, (PARTS[4], 7.0))])["i-0"].known == (7.0,)


@pytest.mark.parametrize("status", ["InternalError", "Forbidden", "PartialData"])
def test_what_cloudwatch_does_not_tell_all_of_says_nothing(status: str) -> None:
    """Unknown is never idle: what is missing may have been the busy hour."""
    points = [(part, 1.0) for part in PARTS]
    assert said([result(0, *points, status=status)]) == {"i-0": Series(expected=4, values=())}


def test_what_cloudwatch_is_silent_about_has_no_values() -> None:
    assert said([]) == {"i-0": Series(expected=4, values=())}


def test_only_running_instances_have_a_cpu_to_be_asked_about() -> None:
    states = ("running", "stopped", "pending", "stopping")
    assert [query.resource for query in metrics.cpu(instance(id=state, state=state) for state in states)] == ["running"]


def balancer(kind: str, path: str) -> LoadBalancer:
    arn = f"arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/{path}"
    return LoadBalancer(id=arn, name="front", type=kind, internet_facing=True, created_at=NOW)


def test_traffic_is_asked_of_metrics_that_are_there_for_each_kind() -> None:
    balancers = [
        balancer("application", "app/a/1"),
        balancer("network", "net/b/2"),
        balancer("gateway", "gwy/c/3"),
        balancer("unheard-of", "new/d/4"),
    ]
    gateways = [NatGateway(id="nat-1", state="available", created_at=NOW)]

    asked = [(one.namespace, one.name, one.dimensions) for one in metrics.traffic(balancers, gateways)]
    assert asked == [
        ("AWS/ApplicationELB", "RequestCount", (("LoadBalancer", "app/a/1"),)),
        ("AWS/ApplicationELB", "HTTP_Redirect_Count", (("LoadBalancer", "app/a/1"),)),
        ("AWS/ApplicationELB", "HTTP_Fixed_Response_Count", (("LoadBalancer", "app/a/1"),)),
        ("AWS/ApplicationELB", "ConsumedLCUs", (("LoadBalancer", "app/a/1"),)),
        ("AWS/NetworkELB", "ProcessedBytes", (("LoadBalancer", "net/b/2"),)),
        ("AWS/NetworkELB", "ConsumedLCUs", (("LoadBalancer", "net/b/2"),)),
        ("AWS/GatewayELB", "ProcessedBytes", (("LoadBalancer", "gwy/c/3"),)),
        ("AWS/GatewayELB", "ConsumedLCUs", (("LoadBalancer", "gwy/c/3"),)),
        ("AWS/NATGateway", "BytesOutToDestination", (("NatGatewayId", "nat-1"),)),
        ("AWS/NATGateway", "ActiveConnectionCount", (("NatGatewayId", "nat-1"),)),
    ]
    assert {query.statistic for query in metrics.traffic(balancers, gateways)} == {"Sum"}


def told(requests: str, units: str) -> Series:
    """The traffic of a busy load balancer, whose two metrics come with these status codes."""
    at, busy = PARTS[:4], balancer("network", "net/a/1")
    client = boto3.client("cloudwatch")
    served = [(part, 900.0) for part in at] if requests == "Complete" else []
    page = [result(0, *served, status=requests), result(1, *((part, 2.0) for part in at), status=units)]
    with Stubber(client) as stub, ThreadPoolExecutor(1) as pool:
        stub.add_response("get_metric_data", {"MetricDataResults": page})
        return metrics.series(client, metrics.traffic([busy], []), WINDOW, pool)["traffic"][busy.id]


def test_what_it_served_is_its_traffic() -> None:
    assert told("Complete", "Complete") == Series(expected=4, values=(900.0,) * 4)


def test_what_a_load_balancer_answers_by_itself_is_served_too() -> None:
    """RequestCount has only those for which a target could be chosen: one that redirects would look idle by it."""
    redirected, fixed = ((PARTS[1], 40.0),), ((PARTS[1], 2.0), (PARTS[3], 5.0))
    units = tuple((part, 0.5) for part in PARTS[:4])
    client = boto3.client("cloudwatch")
    with Stubber(client) as stub, ThreadPoolExecutor(1) as pool:
        page = [result(0), result(1, *redirected), result(2, *fixed), result(3, *units)]
        stub.add_response("get_metric_data", {"MetricDataResults": page})
        front = balancer("application", "app/a/1")
        series = metrics.series(client, metrics.traffic([front], []), WINDOW, pool)["traffic"][front.id]

    assert series == Series(expected=4, values=(0.0, 42.0, 0.0, 5.0))


@pytest.mark.parametrize("status", ["InternalError", "PartialData", "Forbidden"])
def test_requests_that_were_not_told_are_not_no_requests(status: str) -> None:
    """Taken for none, they would make a busy load balancer idle, and idle is acted upon."""
    assert told(status, "Complete") == Series(expected=4, values=())


@pytest.mark.parametrize("status", ["InternalError", "PartialData"])
def test_units_that_were_not_told_leave_it_unknown(status: str) -> None:
    assert told("Complete", status) == Series(expected=4, values=())
