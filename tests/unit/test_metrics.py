"""What CloudWatch's answers let be known of a window: a metric that is not told in full says nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.stub import Stubber

from lamplighter.cloud import metrics
from lamplighter.cloud.inventory import LoadBalancer, Series
from lamplighter.cloud.metrics import PART, Window
from tests.inventories import DAY, NOW

ARN = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/app/web/1"
BALANCER = LoadBalancer(id=ARN, name="web", type="application", internet_facing=True, created_at=NOW - 30 * DAY)
WINDOW = Window.before(NOW, days=1)


def told(requests: str, units: str) -> Series:
    """The traffic of a busy load balancer, whose two metrics come with these status codes."""
    at = [WINDOW.start + n * PART for n in range(WINDOW.expected)]
    cloudwatch = boto3.client(
        "cloudwatch", region_name="eu-west-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    with Stubber(cloudwatch) as stub, ThreadPoolExecutor(1) as pool:
        served = {"Id": "q0", "Timestamps": at, "Values": [900.0] * 4, "StatusCode": requests}
        if requests != "Complete":
            served |= {"Timestamps": [], "Values": []}
        reported = {"Id": "q1", "Timestamps": at, "Values": [2.0] * 4, "StatusCode": units}
        stub.add_response("get_metric_data", {"MetricDataResults": [served, reported]})
        return metrics.series(cloudwatch, metrics.traffic([BALANCER], []), WINDOW, pool)["traffic"][ARN]


def test_what_it_served_is_its_traffic() -> None:
    assert told("Complete", "Complete") == Series(expected=4, values=(900.0,) * 4)


@pytest.mark.parametrize("status", ["InternalError", "PartialData", "Forbidden"])
def test_requests_that_were_not_told_are_not_no_requests(status: str) -> None:
    """Taken for none, they would make a busy load balancer idle, and idle is acted upon."""
    assert told(status, "Complete") == Series(expected=4, values=())


@pytest.mark.parametrize("status", ["InternalError", "PartialData"])
def test_units_that_were_not_told_leave_it_unknown(status: str) -> None:
    assert told("Complete", status) == Series(expected=4, values=())
