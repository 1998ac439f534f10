"""A generated account: resources with a past, and what the checks have to say about each.

What has no past cannot be judged, and no API of AWS makes things older than they are; so resources and their metrics
go straight into moto's backends. Each is planted together with its label, which says what REQUIREMENTS C2-C12 make of
it and knows nothing of how the checks get there: the local cloud's demo accounts, the agreement test and the bench
all stand on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Literal

type Load = Literal["busy", "idle", "spiky", "gappy", "silent", "young"]
"""`spiky` is idle but for one datapoint; `gappy` is idle in all that is known, which is too little; `silent` has no
datapoint; `young` is idle, and two days old."""
type Stop = Literal["", "long", "short", "untold"]
type Age = Literal["current", "old", "deprecated", "gone"]
type Kept = Literal["old", "recent", "image", "template", "backup"]
"""A snapshot: old, recent, or old and still used by one of these."""

KEPT: Final[tuple[Kept, ...]] = ("old", "recent", "image", "template", "backup")

PART: Final = timedelta(hours=6)
"""What the checks cut their window of metrics into."""
OWNERS: Final = ("platform", "search", "payments", "analytics")
STOPPED: Final = "%Y-%m-%d %H:%M:%S GMT"
WORLD: Final = {"CidrIp": "0.0.0.0/0"}
WORLD_IPV6: Final = {"CidrIpv6": "::/0"}
HALVES: Final = ({"CidrIp": "0.0.0.0/1"}, {"CidrIp": "128.0.0.0/1"})
OFFICE: Final = {"CidrIp": "203.0.113.0/24"}
WITHIN: Final = {"CidrIp": "10.0.0.0/8"}

INGRESS: Final[Mapping[str, tuple[bool, str, int | None, int | None, tuple[Mapping[str, str], ...]]]] = {
    # whether it is open to everybody on a sensitive port, then protocol, ports and ranges
    "ssh-world": (True, "tcp", 22, 22, (WORLD,)),
    "rdp-world-ipv6": (True, "tcp", 3389, 3389, (WORLD_IPV6,)),
    "range-world": (True, "tcp", 3000, 4000, (WORLD,)),
    "everything-world": (True, "-1", None, None, (WORLD,)),
    "all-ports-world": (True, "tcp", 0, 65535, (WORLD, WORLD_IPV6)),
    "memcached-udp-world": (True, "udp", 11211, 11211, (WORLD,)),
    "ssh-world-in-halves": (True, "tcp", 22, 22, HALVES),
    "postgres-world-and-office": (True, "tcp", 5432, 5432, (OFFICE, WORLD)),
    "web-world": (False, "tcp", 443, 443, (WORLD, WORLD_IPV6)),
    "ephemeral-world": (False, "tcp", 50071, 60000, (WORLD,)),
    "ssh-office": (False, "tcp", 22, 22, (OFFICE,)),
    "everything-within": (False, "-1", None, None, (WITHIN,)),
    "ping-world": (False, "icmp", 8, -1, (WORLD,)),
}
"""Ingress permissions that a security group is planted with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A resource, and what the checks have to say about it: by the ids of the checks, with the default limits."""

    account: str
    region: str
    name: str
    resource_id: str
    found: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Planted:
        return cls(**{**value, "found": tuple(value["found"]), "unknown": tuple(value["unknown"])})


class Estate:
    """What one account has in one region of moto.

    `now` (aware) is when the past ends; the same `seed` plants the same resources, under ids of their own.
    """

    def __init__(self, account: str, region: str, *, now: datetime, seed: int = 0) -> None:
        from moto.backends import get_backend

        _mend_moto()
        self.account, self.region = account, region
        self.planted: list[Planted] = []
        self._long_stopped = set[str]()
        self._now = now.astimezone(UTC).replace(tzinfo=None)  # moto reckons in naive UTC
        self._random = Random(f"{account} {region} {seed}")
        self._ec2: Any = get_backend("ec2")[account][region]
        self._elb: Any = get_backend("elbv2")[account][region]
        self._zone = f"{region}a"
        # Default subnets give out public addresses; the private one does not.
        self._public = self._ec2.get_default_subnets()[self._zone]
        self._private = self._ec2.create_subnet(
            self._public.vpc_id, "172.31.128.0/17", availability_zone=self._zone, tags={"subnet": {"Name": "private"}}
        )
        self._images = {
            "current": self._image("base-current", timedelta(days=30)),
            "old": self._image("base-old", timedelta(days=500)),
            "deprecated": self._image("base-deprecated", timedelta(days=200), deprecated=timedelta(days=20)),
        }

    # -- one of each kind ----------------------------------------------------------------------------------------

    def plant_specimens(self) -> None:
        """One of everything, by names that say what it is."""
        loads: tuple[Load, ...] = ("busy", "idle", "spiky", "gappy", "silent", "young")
        for load in loads:
            self.instance(f"cpu-{load}", cpu=load)
            self.instance(f"memory-{load}", memory=load)
        self.instance("memory-idle-windows", memory="idle", windows=True)
        self.instance("idle-both", cpu="idle", memory="idle", type_="m5.2xlarge")
        stops: tuple[Stop, ...] = ("long", "short", "untold")
        for stop in stops:
            self.instance(f"stopped-{stop}", stop=stop)
        self.instance("public", public=True)
        self.instance("public-allowed", public=True, tags={"public-allowed": "true"})
        ages: tuple[Age, ...] = ("old", "deprecated", "gone")
        for age in ages:
            self.instance(f"image-{age}", image=age)
        self.instance("untagged", tagged=False)
        self.volume("unattached-long", created=timedelta(days=90), size=500)
        self.volume("unattached-short", created=timedelta(days=3))
        self.volume("gp2-unattached-long", created=timedelta(days=200), type_="gp2", size=200)
        self.volume("unencrypted", created=timedelta(days=2), encrypted=False)
        self.volume("untagged-volume", created=timedelta(days=2), tagged=False)
        for kept in KEPT:
            self.snapshot(f"snapshot-{kept}", kept=kept)
        self.snapshot("untagged-snapshot", kept="recent", tagged=False)
        for name in INGRESS:
            self.security_group(name)
        self.security_group("prefix-list-world", prefix_list=("198.51.100.0/24", "0.0.0.0/0"))
        self.security_group("prefix-list-office", prefix_list=("203.0.113.0/24",))
        self.security_group("from-group", from_group=True)
        exposed = self.security_group("ssh-world-exposed", like="ssh-world")
        self.instance("exposed", public=True, groups=(exposed.resource_id,))
        self.address("address-unassociated")
        self.nat_gateway("nat-idle", busy=False)
        self.nat_gateway("nat-busy", busy=True)
        for kind in ("application", "network"):
            for busy in (True, False):
                self.load_balancer(f"{kind}-{'busy' if busy else 'idle'}", kind=kind, busy=busy)
        self.log_group("/app/forever", created=timedelta(days=400), retention=None)
        self.log_group("/app/month", created=timedelta(days=400), retention=30)

    def plant(self, *, instances: int, volumes: int, snapshots: int, security_groups: int) -> None:
        """So many of each more, drawn at random; root volumes of the instances come on top of `volumes`."""
        draw = self._random.choice
        groups = [self.security_group(f"group-{n}", like=draw(list(INGRESS))) for n in range(security_groups)]
        loads: tuple[Load, ...] = ("busy", "busy", "busy", "idle", "spiky", "gappy", "silent", "young")
        running = [
            self.instance(
                f"instance-{n}",
                cpu=draw(loads),
                memory=draw(loads),
                stop=draw(("", "", "", "", "long", "short", "untold")),
                public=draw((True, False)),
                image=draw(("current", "current", "old", "deprecated", "gone")),
                tagged=draw((True, True, False)),
                type_=draw(("t3.medium", "m5.large", "c5.xlarge", "r5.large")),
                groups=(draw(groups).resource_id,) if groups else (),
            )
            for n in range(instances)
        ]
        for n in range(volumes):
            self.volume(
                f"volume-{n}",
                created=timedelta(days=draw((2, 10, 20, 100, 400))),
                attached_to=draw(running).resource_id if running and n % 3 else None,
                type_=draw(("gp2", "gp3", "gp3")),
                size=draw((8, 50, 100, 500)),
                encrypted=draw((True, True, False)),
                tagged=draw((True, True, False)),
            )
        for n in range(snapshots):
            self.snapshot(f"snapshot-{n}", kept=draw(KEPT), tagged=draw((True, True, False)))

    # -- resources -----------------------------------------------------------------------------------------------

    def instance(
        self,
        name: str,
        *,
        cpu: Load = "busy",
        memory: Load = "busy",
        stop: Stop = "",
        public: bool = False,
        image: Age = "current",
        tagged: bool = True,
        tags: Mapping[str, str] | None = None,
        groups: Sequence[str] = (),
        type_: str = "m5.large",
        windows: bool = False,
    ) -> Planted:
        """An instance with an encrypted gp3 root volume. What is stopped has no metrics and no public address."""
        reservation = self._ec2.run_instances(
            image_id="ami-0123456789abcdef0" if image == "gone" else self._images[image].id,
            count=1,
            user_data=None,
            security_group_names=[],
            security_group_ids=list(groups),
            instance_type=type_,
            is_instance_type_default=False,
            region_name=self.region,
            subnet_id=(self._public if public else self._private).id,
            associate_public_ip=public,
            block_device_mappings=[],
            tags={"instance": {**self._tags(name, tagged), **(tags or {})}},
        )
        [instance] = reservation.instances
        instance.launch_time = self._now - timedelta(days=2 if "young" in (cpu, memory) else 60)
        instance.platform_details = "Windows" if windows else "Linux/UNIX"
        found, unknown = set[str](), set[str]()
        if stop:
            instance.stop()
            since = self._now - timedelta(days=45 if stop == "long" else 5)
            # What AWS itself has stopped has a reason without a time.
            instance._reason = "Server.ScheduledStop" if stop == "untold" else f"User initiated ({since:{STOPPED}})"
            if stop == "long":
                self._long_stopped.add(instance.id)
            found |= {"stopped_instances"} if stop == "long" else set()
            unknown |= {"stopped_instances"} if stop == "untold" else set()
        else:
            dimensions = {"InstanceId": instance.id}
            young = "young" in (cpu, memory)
            self._series("AWS/EC2", "CPUUtilization", dimensions, self._values(cpu, idle=2.0, busy=55.0, young=young))
            agent = {**dimensions, "ImageId": instance.image_id, "InstanceType": type_}
            metric = "Memory % Committed Bytes In Use" if windows else "mem_used_percent"
            if windows:
                agent["objectname"] = "Memory"
            self._series("CWAgent", metric, agent, self._values(memory, idle=6.0, busy=60.0, young=young))
            for check, load in (("idle_cpu", cpu), ("idle_memory", memory)):
                if load == "idle" and not young:
                    found.add(check)
                elif load not in ("busy", "spiky"):
                    unknown.add(check)
            if public and "public-allowed" not in (tags or {}):
                found.add("public_instances")
        if image != "current":
            found.add("outdated_images")
        if not tagged:
            found.add("missing_tags")
        planted = self._note(name, instance.id, found, unknown)
        self.volume(f"{name}-root", created=timedelta(days=60), attached_to=instance.id, device="/dev/xvda")
        return planted

    def volume(
        self,
        name: str,
        *,
        created: timedelta,
        attached_to: str | None = None,
        device: str | None = None,
        type_: str = "gp3",
        size: int = 20,
        encrypted: bool = True,
        tagged: bool = True,
    ) -> Planted:
        """A volume; unattached, it was never attached to anything."""
        volume = self._ec2.create_volume(size=size, zone_name=self._zone, encrypted=encrypted, volume_type=type_)
        volume.create_time = self._now - created
        volume.add_tags(self._tags(name, tagged))
        if attached_to:
            self._ec2.attach_volume(volume.id, attached_to, device or f"/dev/xvd{volume.id[-6:]}")
        found = {
            "unattached_volumes": not attached_to and created >= timedelta(days=14),
            # What is stopped for long costs what its volumes cost, and is found for that.
            "gp2_volumes": type_ == "gp2" and attached_to not in self._long_stopped,
            "unencrypted_volumes": not encrypted,
            "missing_tags": not tagged,
        }
        return self._note(name, volume.id, (check for check, yes in found.items() if yes))

    def snapshot(self, name: str, *, kept: Kept, tagged: bool = True, size: int = 50) -> Planted:
        """A snapshot of a volume that is long gone; all but `recent` are 200 days old."""
        volume = self._ec2.create_volume(size=size, zone_name=self._zone, encrypted=True, volume_type="gp3")
        snapshot = self._ec2.create_snapshot(volume.id, name)
        self._ec2.delete_volume(volume.id)
        snapshot.start_time = self._now - timedelta(days=10 if kept == "recent" else 200)
        snapshot.add_tags(self._tags(name, tagged))
        if kept == "image":
            image = self._image(f"{name}-image", timedelta(days=200))
            self._ec2.snapshots.pop(image.ebs_snapshot.id)
            image.ebs_snapshot = snapshot
        elif kept == "template":
            mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot.id}}
            self._ec2.create_launch_template(f"{name}-template", "", {"BlockDeviceMappings": [mapping]}, {})
        elif kept == "backup":
            plan = f"arn:aws:backup:{self.region}:{self.account}:recovery-point/{snapshot.id}"
            snapshot.description = "This snapshot is created by the AWS Backup service."
            snapshot.add_tags({"aws:backup:source-resource": plan})
        found = {"old_snapshots": kept == "old", "missing_tags": not tagged}
        return self._note(name, snapshot.id, (check for check, yes in found.items() if yes))

    def security_group(
        self, name: str, *, like: str = "", prefix_list: Sequence[str] = (), from_group: bool = False
    ) -> Planted:
        """A group with the ingress that `INGRESS` has under `like` or its own name, or from a list or another group."""
        group = self._ec2.create_security_group(name, name, self._public.vpc_id, tags=self._tags(name, True))
        if prefix_list:
            entries = [{"Cidr": cidr, "Description": ""} for cidr in prefix_list]
            ranges = self._ec2.create_managed_prefix_list("IPv4", entries, "10", name, owner_id=self.account)
            self._allow(group, "tcp", 22, 22, prefix_list_ids=[{"PrefixListId": ranges.id}])
            everybody = "0.0.0.0/0" in prefix_list
        elif from_group:
            self._allow(group, "-1", None, None, source_groups=[{"GroupId": group.id}])
            everybody = False
        else:
            everybody, protocol, first, last, ranges = INGRESS[like or name]
            self._allow(group, protocol, first, last, ip_ranges=[{**cidr} for cidr in ranges])
        return self._note(name, group.id, ("open_ports",) if everybody else ())

    def address(self, name: str) -> Planted:
        """An Elastic IP address that is associated with nothing."""
        address = self._ec2.allocate_address("vpc", tags=self._tags(name, True))
        return self._note(name, address.allocation_id, ("unassociated_addresses",))

    def nat_gateway(self, name: str, *, busy: bool) -> Planted:
        """A public NAT gateway with its address, 90 days old."""
        address = self._ec2.allocate_address("vpc", tags=self._tags(f"{name}-address", True))
        gateway = self._ec2.create_nat_gateway(self._public.id, address.allocation_id, self._tags(name, True))
        gateway._created_at = self._now - timedelta(days=90)
        gateway._eni.interface_type = "nat_gateway"
        gateway._eni.description = f"Interface for NAT Gateway {gateway.id}"
        gateway._eni._group_set = []
        values = self._values("busy" if busy else "idle", idle=0.0, busy=5_000_000.0)
        for metric in ("BytesOutToDestination", "ActiveConnectionCount"):
            self._series("AWS/NATGateway", metric, {"NatGatewayId": gateway.id}, values)
        self._note(f"{name}-address", address.allocation_id)
        return self._note(name, gateway.id, () if busy else ("idle_nat_gateways",))

    def load_balancer(self, name: str, *, kind: str, busy: bool) -> Planted:
        """A load balancer, 90 days old. CloudWatch has no requests of an idle application load balancer at all."""
        balancer = self._elb.create_load_balancer(
            name=name,
            security_groups=[],
            subnet_ids=[self._public.id],
            scheme="internal",
            loadbalancer_type=kind,
        )
        if kind == "network":  # moto gives every kind the same ARN
            del self._elb.load_balancers[balancer.arn]
            balancer.arn = balancer.arn.replace("/app/", "/net/")
            self._elb.load_balancers[balancer.arn] = balancer
        self._elb.tagging_service.tag_resource(
            balancer.arn, [{"Key": key, "Value": value} for key, value in self._tags(name, True).items()]
        )
        balancer.created_time = self._now - timedelta(days=90)
        balancer.state = "active"
        dimensions = {"LoadBalancer": balancer.arn.partition(":loadbalancer/")[2]}
        namespace = "AWS/ApplicationELB" if kind == "application" else "AWS/NetworkELB"
        units = self._values("busy" if busy else "idle", idle=0.0, busy=2.0)
        self._series(namespace, "ConsumedLCUs", dimensions, units)
        if kind == "application":
            served = self._values("busy" if busy else "silent", idle=0.0, busy=900.0)
            self._series(namespace, "RequestCount", dimensions, served)
        else:
            served = self._values("busy" if busy else "idle", idle=0.0, busy=9e6)
            self._series(namespace, "ProcessedBytes", dimensions, served)
        return self._note(name, balancer.arn, () if busy else ("idle_load_balancers",))

    def log_group(self, name: str, *, created: timedelta, retention: int | None, size: int = 40 * 2**30) -> Planted:
        """A log group that holds `size` bytes."""
        self._keep_log_group(name, self._now - created, retention, size)
        return self._note(name, name, () if retention else ("log_groups_without_retention",))

    # -- what they are made of -----------------------------------------------------------------------------------

    def _note(self, name: str, resource_id: str, found: Iterable[str] = (), unknown: Iterable[str] = ()) -> Planted:
        planted = Planted(
            account=self.account,
            region=self.region,
            name=name,
            resource_id=resource_id,
            found=tuple(sorted(found)),
            unknown=tuple(sorted(unknown)),
        )
        self.planted.append(planted)
        return planted

    def _tags(self, name: str, complete: bool) -> dict[str, str]:
        """The required tags, or all of them but one or two; always a name."""
        tags = {"Owner": self._random.choice(OWNERS), "Environment": "production", "CostCenter": "4711"}
        if not complete:
            for missing in self._random.sample(sorted(tags), self._random.choice((1, 2, 3))):
                del tags[missing]
        return {"Name": name, **tags}

    def _image(self, name: str, age: timedelta, *, deprecated: timedelta | None = None) -> Any:
        """An AMI of the account's own, with its snapshot, in order itself."""
        from moto.ec2.models.amis import Ami
        from moto.ec2.utils import random_ami_id

        image: Any = Ami(
            self._ec2, random_ami_id(), name=name, tags=self._tags(name, True), creation_date=self._now - age,
            root_device_type="ebs", architecture="x86_64", virtualization_type="hvm", region_name=self._zone,
        )  # fmt: skip
        if deprecated is not None:
            image.deprecation_time = f"{self._now - deprecated:%Y-%m-%dT%H:%M:%S}.000Z"
        image.ebs_snapshot.start_time = self._now - age
        image.ebs_snapshot.add_tags(self._tags(name, True))
        self._ec2.amis[image.id] = image
        return image

    def _allow(self, group: Any, protocol: str, first: int | None, last: int | None, **sources: Any) -> None:
        self._ec2.authorize_security_group_ingress(
            group.id, protocol, first, last, **{"ip_ranges": [], **sources}, vpc_id=group.vpc_id
        )

    def _values(self, load: Load, *, idle: float, busy: float, young: bool = False) -> list[float | None]:
        """A value for each part of the last two weeks, or of two days; None where there is no datapoint."""
        parts = timedelta(days=2 if young else 14) // PART
        usual = busy if load == "busy" else idle
        values: list[float | None] = [usual * self._random.uniform(0.6, 1.4) for _ in range(parts)]
        if load == "spiky":
            values[-self._random.randint(2, 8)] = busy
        elif load == "gappy":
            values[-20:-8] = [None] * 12
        elif load == "silent":
            values = [None] * parts
        return values

    def _series(self, namespace: str, name: str, dimensions: Mapping[str, str], values: Sequence[float | None]) -> None:
        midnight = self._now.replace(hour=0, minute=0, second=0, microsecond=0)
        last = midnight + (self._now - midnight) // PART * PART
        # A moment after each part has begun, so that the present one has a datapoint too.
        moments = [last - back * PART + timedelta(seconds=1) for back in reversed(range(len(values)))]
        points = [(moment, value) for moment, value in zip(moments, values, strict=True) if value is not None]
        self._keep_metric(namespace, name, dimensions, points)

    # -- where moto keeps what MiniStack keeps by itself --------------------------------------------------------------

    def _keep_metric(
        self, namespace: str, name: str, dimensions: Mapping[str, str], points: Sequence[tuple[datetime, float]]
    ) -> None:
        from moto.backends import get_backend
        from moto.cloudwatch.models import MetricDatum

        named = [{"Name": key, "Value": value} for key, value in sorted(dimensions.items())]
        get_backend("cloudwatch")[self.account][self.region].metric_data.extend(
            MetricDatum(namespace, name, value, named, moment) for moment, value in points
        )

    def _keep_log_group(self, name: str, created: datetime, retention: int | None, size: int) -> None:
        from moto.backends import get_backend

        group: Any = get_backend("logs")[self.account][self.region].create_log_group(name, {})
        group.creation_time = created
        group.retention_in_days = retention
        group.create_log_stream("all")
        group.streams["all"].stored_bytes = size


def _mend_moto() -> None:
    """Two things that its users cannot set in a process that has loaded it already."""
    from moto import settings
    from moto.cloudwatch import models

    settings.ec2_load_default_amis = lambda: False  # hundreds for each region, which take seconds
    # Else ListMetrics names a metric that has more than one dimension once for each of its datapoints.
    models.are_dimensions_same = _same_dimensions


def _same_dimensions(metric_dimensions: Sequence[Any], dimensions: Sequence[Any]) -> bool:
    return [vars(one) for one in metric_dimensions] == [vars(one) for one in dimensions]
