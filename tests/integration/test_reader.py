"""`lamplighter.cloud.reader` and `access` at a cloud by moto: what is read, in how many calls, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from lamplighter.cloud import access, metrics, reader
from lamplighter.cloud.inventory import Inventory, LaunchTemplate, Series
from lamplighter.kernel.cloud import Limits
from lamplighter.kernel.errors import Permanent, Retryable
from tests.integration.cloud_world import ACCOUNT, REGION, Cloud

EVERYTHING = frozenset(field.name for field in fields(Inventory)) - {"account", "region", "read_at", "gaps"}
NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
DAYS = 3
PARTS = [metrics.Window.before(NOW, DAYS).start + n * metrics.PART for n in range(DAYS * 4 + 1)]


@pytest.fixture
def ec2(cloud: Cloud) -> Any:
    return boto3.client("ec2")


def read(*needs: str, clients: access.Clients | None = None) -> Inventory:
    """What the caller's own account holds, of `needs`."""
    clients = clients or access.clients(REGION, session_name="test")
    wanted = frozenset(needs) or EVERYTHING
    limits = Limits(idle_days=DAYS)
    return reader.read(clients, account=ACCOUNT, region=REGION, now=NOW, limits=limits, needs=wanted)


def image(ec2: Any, name: str = "base") -> str:
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}
    made: str = ec2.register_image(Name=name, RootDeviceName="/dev/sda1", BlockDeviceMappings=[mapping])["ImageId"]
    return made


def instances(ec2: Any, count: int = 1, *, of: str | None = None) -> list[str]:
    """Running ones, each of a reservation of its own."""
    of = of or image(ec2)
    answers = [ec2.run_instances(MinCount=1, MaxCount=1, InstanceType="t3.micro", ImageId=of) for _ in range(count)]
    return [answer["Instances"][0]["InstanceId"] for answer in answers]


def test_all_that_a_region_holds_is_read_and_each_thing_once(cloud: Cloud, ec2: Any) -> None:
    own = image(ec2)
    running, stopped, terminated = instances(ec2, 3, of=own)
    stopped_at = cloud.stopped(stopped, ago=timedelta(days=40))
    ec2.terminate_instances(InstanceIds=[terminated])
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    volume = ec2.create_volume(Size=5, AvailabilityZone=f"{REGION}a", Encrypted=True, VolumeType="gp3")["VolumeId"]
    snapshot = ec2.create_snapshot(VolumeId=volume, Description="by hand")["SnapshotId"]
    listed = ec2.create_managed_prefix_list(
        PrefixListName="office", MaxEntries=5, AddressFamily="IPv4", Entries=[{"Cidr": "203.0.113.0/24"}]
    )["PrefixList"]["PrefixListId"]
    group = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "PrefixListIds": [{"PrefixListId": listed}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    nat = ec2.create_nat_gateway(SubnetId=subnets[0], AllocationId=address)["NatGateway"]["NatGatewayId"]
    template = ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData={"ImageId": own})
    template_id = template["LaunchTemplate"]["LaunchTemplateId"]
    mapping = {"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": snapshot}}
    ec2.create_launch_template_version(
        LaunchTemplateId=template_id, LaunchTemplateData={"ImageId": "ami-2", "BlockDeviceMappings": [mapping]}
    )
    tags = [{"Key": "Owner", "Value": "ada"}]
    balancer = boto3.client("elbv2").create_load_balancer(
        Name="front", Subnets=subnets[:2], Scheme="internet-facing", Tags=tags
    )
    arn = balancer["LoadBalancers"][0]["LoadBalancerArn"]
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName="/aws/lambda/kept")
    logs.put_retention_policy(logGroupName="/aws/lambda/kept", retentionInDays=14)
    seen = {one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]}
    cloud.asked.clear()

    held = read()

    assert held.gaps == {}
    assert {one.id: one.state for one in held.instances} == {running: "running", stopped: "stopped"}
    assert {one.id: one.stopped_at for one in held.instances} == {running: None, stopped: stopped_at}
    assert {one.id for one in held.volumes} == seen > {volume}
    assert snapshot in {one.id for one in held.snapshots}
    assert [(one.id, one.owned, len(one.snapshots)) for one in held.images] == [(own, True, 1)]
    assert {one.id for one in held.security_groups} > {group}
    assert held.prefix_lists == {listed: ("203.0.113.0/24",)}
    assert {one.instance_id for one in held.interfaces} >= {running}
    assert [(one.id, one.associated) for one in held.addresses] == [(address, True)]
    assert [(one.id, one.state, one.public) for one in held.nat_gateways] == [(nat, "available", True)]
    assert [(one.id, one.type, one.internet_facing, one.tags) for one in held.load_balancers] == [
        (arn, "application", True, {"Owner": "ada"})
    ]
    assert {one.site[:-1] for one in (*held.instances, *held.volumes, *held.load_balancers)} == {REGION}
    assert held.launch_templates == (LaunchTemplate(id=template_id, images=("ami-2", own), snapshots=(snapshot,)),)
    assert [(one.id, one.retention_days) for one in held.log_groups] == [("/aws/lambda/kept", 14)]
    assert held.cpu == {running: Series(expected=12, values=())}
    assert held.memory == {}
    assert held.traffic == {id: Series(expected=12, values=()) for id in (arn, nat)}
    assert cloud.calls() == {
        "DescribeInstances": 1,
        "DescribeSnapshots": 1,
        "DescribeVolumes": 1,
        "DescribeImages": 1,
        "DescribeSecurityGroups": 1,
        "GetManagedPrefixListEntries": 1,
        "DescribeNetworkInterfaces": 1,
        "DescribeAddresses": 1,
        "DescribeNatGateways": 1,
        "DescribeLoadBalancers": 1,
        "DescribeTags": 1,
        "DescribeLaunchTemplateVersions": 1,
        "DescribeLogGroups": 1,
        "ListMetrics": 2,
        "GetMetricData": 1,
    }


def test_nothing_here_writes(cloud: Cloud, ec2: Any) -> None:
    instances(ec2)
    cloud.asked.clear()
    read(clients=access.clients(REGION, role_arn=f"arn:aws:iam::{ACCOUNT}:role/scan", session_name="test"))
    read()

    assert not [name for name in cloud.asked if not re.match(r"(Describe|List|Get|AssumeRole$)", name)]


def test_only_what_is_needed_is_asked_for(cloud: Cloud) -> None:
    held = read("volumes", "log_groups")

    assert cloud.calls() == {"DescribeVolumes": 1, "DescribeLogGroups": 1}
    assert held.gaps == {}


def test_what_something_depends_on_is_asked_for_as_well(cloud: Cloud, ec2: Any) -> None:
    (running,) = instances(ec2)
    cloud.asked.clear()

    assert set(read("cpu").cpu) == {running}
    assert cloud.calls() == {"DescribeInstances": 1, "GetMetricData": 1}


def test_a_page_is_one_call(cloud: Cloud, ec2: Any) -> None:
    made = instances(ec2, 5)
    cloud.asked.clear()
    cloud.page_size = 2
    clients = access.clients(REGION, session_name="test")

    assert {one.id for one in read("instances", clients=clients).instances} == set(made)
    assert cloud.calls() == {"DescribeInstances": 3}
    assert clients.calls == 3


def test_images_of_others_are_read_and_those_that_are_gone_left_out(cloud: Cloud, ec2: Any) -> None:
    shared, gone = image(ec2, "shared"), image(ec2, "gone")
    instances(ec2, of=shared)
    instances(ec2, of=gone)
    cloud.give_away(shared)
    ec2.deregister_image(ImageId=gone)
    cloud.asked.clear()

    assert [(one.id, one.name, one.owned) for one in read("images").images] == [(shared, "shared", False)]
    assert cloud.calls() == {"DescribeInstances": 1, "DescribeImages": 2}


# -- metrics ------------------------------------------------------------------------------------------------------


def test_of_each_part_of_the_window_the_highest_datapoint_counts(cloud: Cloud, ec2: Any) -> None:
    """REQUIREMENTS C2: one busy minute is seen, which an average would hide."""
    (running,) = instances(ec2)
    points = [(part + timedelta(minutes=minute), 1.0) for part in PARTS[:-1] for minute in (0, 5, 10)]
    busy = (PARTS[4] + timedelta(hours=2), 97.5)
    before = (PARTS[0] - timedelta(minutes=1), 50.0)
    cloud.measured("AWS/EC2", "CPUUtilization", {"InstanceId": running}, [*points, busy, before])

    (series,) = read("cpu").cpu.values()
    assert series == Series(expected=12, values=(1.0, 1.0, 1.0, 1.0, 97.5, *[1.0] * 7))


def test_parts_without_a_datapoint_have_no_value(cloud: Cloud, ec2: Any) -> None:
    (running,) = instances(ec2)
    points = [(PARTS[0], 0.0), (PARTS[7], 2.0)]
    cloud.measured("AWS/EC2", "CPUUtilization", {"InstanceId": running}, points)

    assert read("cpu").cpu == {running: Series(expected=12, values=(0.0, 2.0))}


def test_memory_is_found_under_whatever_dimensions_the_agent_gives_it(cloud: Cloud, ec2: Any) -> None:
    linux, windows, moved, _ = instances(ec2, 4)
    cloud.measured("CWAgent", "mem_used_percent", {"InstanceId": linux, "ImageId": "ami-1"}, [(PARTS[1], 30.0)])
    cloud.measured("CWAgent", "Memory % Committed Bytes In Use", {"InstanceId": windows}, [(PARTS[1], 40.0)])
    for kind, used in {"t3.micro": 5.0, "t3.large": 60.0}.items():
        points = [(PARTS[1], used), (PARTS[2], 1.0)]
        cloud.measured("CWAgent", "mem_used_percent", {"InstanceId": moved, "InstanceType": kind}, points)
    cloud.measured("CWAgent", "mem_used_percent", {"host": "elsewhere"}, [(PARTS[1], 1.0)])
    cloud.measured("CWAgent", "mem_used_percent", {"InstanceId": "i-gone"}, [(PARTS[1], 1.0)])

    assert read("memory").memory == {
        linux: Series(expected=12, values=(30.0,)),
        windows: Series(expected=12, values=(40.0,)),
        moved: Series(expected=12, values=(60.0, 1.0)),
    }


def test_a_part_without_requests_is_known_by_what_is_always_reported(cloud: Cloud, ec2: Any) -> None:
    """RequestCount is not reported while there are no requests, which must not look like no data."""
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]][:2]
    made = boto3.client("elbv2").create_load_balancer(Name="front", Subnets=subnets)["LoadBalancers"][0]
    name = {"LoadBalancer": made["LoadBalancerArn"].partition("loadbalancer/")[2]}
    cloud.measured("AWS/ApplicationELB", "ConsumedLCUs", name, [(part, 0.25) for part in PARTS[:10]])
    requests = [(PARTS[3] + timedelta(minutes=minute), 2.0) for minute in range(3)]
    cloud.measured("AWS/ApplicationELB", "RequestCount", name, requests)

    (series,) = read("traffic").traffic.values()
    assert series == Series(expected=12, values=(0.0, 0.0, 0.0, 6.0, *[0.0] * 6))


def test_five_hundred_metrics_are_one_call(cloud: Cloud, ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = instances(ec2, 9)
    for number, running in enumerate(made):
        cloud.measured("AWS/EC2", "CPUUtilization", {"InstanceId": running}, [(PARTS[2], float(number))])
    cloud.asked.clear()
    assert metrics.QUERIES_A_CALL == 500
    monkeypatch.setattr(metrics, "QUERIES_A_CALL", 4)

    assert {id: series.values for id, series in read("cpu").cpu.items()} == {
        running: (float(number),) for number, running in enumerate(made)
    }
    assert cloud.calls() == {"DescribeInstances": 1, "GetMetricData": 3}


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "code", "fields"),
    [
        ("DescribeVolumes", "UnauthorizedOperation", {"volumes"}),
        ("DescribeSnapshots", "OptInRequired", {"snapshots"}),
        ("DescribeLoadBalancers", "AccessDenied", {"load_balancers"}),
        ("DescribeLogGroups", "AccessDeniedException", {"log_groups"}),
        ("ListMetrics", "AccessDenied", {"memory"}),
        ("GetMetricData", "AccessDenied", {"cpu", "memory", "traffic"}),
        ("DescribeInstances", "UnauthorizedOperation", {"instances", "images", "cpu", "memory"}),
        ("DescribeSecurityGroups", "UnauthorizedOperation", {"security_groups", "prefix_lists"}),
    ],
)
def test_what_is_refused_is_a_gap_and_the_rest_is_read(
    cloud: Cloud, ec2: Any, operation: str, code: str, fields: set[str]
) -> None:
    instances(ec2)
    cloud.refuse(operation, code)

    held = read()

    assert set(held.gaps) == fields
    for field in fields:
        assert f"{operation} was refused ({code}: The test says so.)" in held.gaps[field]
        assert not getattr(held, field)
    assert held.interfaces


def test_what_is_throttled_is_asked_for_again(cloud: Cloud) -> None:
    cloud.refuse("DescribeVolumes", "RequestLimitExceeded", status=503, times=2)
    clients = access.clients(REGION, session_name="test")

    assert read("volumes", clients=clients).gaps == {}
    assert cloud.calls() == {"DescribeVolumes": 3}
    assert clients.calls == 3


def test_what_is_throttled_for_too_long_is_a_gap(cloud: Cloud) -> None:
    cloud.refuse("DescribeVolumes", "RequestLimitExceeded", status=503)

    gaps = read("volumes", "snapshots").gaps
    assert gaps == {"volumes": "DescribeVolumes did not come through (RequestLimitExceeded: The test says so.)"}
    assert cloud.calls() == {"DescribeVolumes": 6, "DescribeSnapshots": 1}


def test_a_region_of_which_nothing_may_be_read_is_an_error(cloud: Cloud) -> None:
    for operation in ("DescribeVolumes", "DescribeSnapshots"):
        cloud.refuse(operation, "OptInRequired")

    with pytest.raises(Permanent, match=r"Nothing of account 123456789012 can be read in us-east-1: .*OptInRequired"):
        read("volumes", "snapshots")


def test_a_region_of_which_nothing_can_be_read_for_now_is_tried_again(cloud: Cloud) -> None:
    cloud.refuse("DescribeVolumes", "RequestLimitExceeded", status=503)
    cloud.refuse("DescribeSnapshots", "UnauthorizedOperation")

    with pytest.raises(Retryable, match="RequestLimitExceeded"):
        read("volumes", "snapshots")


# -- access -------------------------------------------------------------------------------------------------------


def test_another_account_is_read_through_its_role(cloud: Cloud, ec2: Any) -> None:
    instances(ec2)
    role = "arn:aws:iam::111122223333:role/scan"
    cloud.asked.clear()
    cloud.requests.clear()
    clients = access.clients(REGION, role_arn=role, external_id="secret", session_name="waste_scan-01J" + "x" * 80)

    assert read("instances", clients=clients).instances == ()
    assert cloud.calls() == {"AssumeRole": 1, "DescribeInstances": 1}
    assert clients.calls == 2
    asked = cloud.requests[0]
    assert (asked["RoleArn"], asked["ExternalId"]) == ([role], ["secret"])
    assert asked["RoleSessionName"] == [("waste_scan-01J" + "x" * 80)[:64]]


@pytest.mark.parametrize(
    ("external_id", "how"), [(None, "without an external id"), ("wrong", "with the external id that is set")]
)
def test_a_role_that_does_not_let_us_in_is_named(cloud: Cloud, external_id: str | None, how: str) -> None:
    cloud.refuse("AssumeRole", "AccessDenied")
    role = "arn:aws:iam::111122223333:role/scan"

    with pytest.raises(Permanent, match=f"The role {role} cannot be assumed {how}: .*AccessDenied"):
        access.clients(REGION, role_arn=role, external_id=external_id, session_name="test")


def test_a_role_that_cannot_be_assumed_for_now_is_tried_again(cloud: Cloud) -> None:
    cloud.refuse("AssumeRole", "Throttling", status=400)

    with pytest.raises(Retryable, match="could not be assumed now"):
        access.clients(REGION, role_arn="arn:aws:iam::111122223333:role/scan", session_name="test")
    assert cloud.calls() == {"AssumeRole": 3}


def test_sts_that_cannot_be_reached_is_tried_again(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(Retryable, match="could not be assumed now"):
        access.clients(REGION, role_arn="arn:aws:iam::111122223333:role/scan", session_name="test")


def test_requests_to_all_regions_of_an_account_are_counted_together(cloud: Cloud) -> None:
    clients = access.clients(REGION, session_name="test")
    elsewhere = clients.elsewhere("eu-west-1")
    read("volumes", clients=clients)
    read("volumes", clients=elsewhere)

    assert (clients.calls, elsewhere.calls, elsewhere.region) == (2, 2, "eu-west-1")
