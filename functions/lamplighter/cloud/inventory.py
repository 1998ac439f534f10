"""What one region of one account holds, as one scan read it: plain data that checks are pure functions of.

All moments are aware UTC. A collection that could not be read is empty and its name is in `Inventory.gaps`: what is
not known is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

type Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An EC2 instance that is not terminated."""

    id: str
    type: str
    state: str
    """`pending`, `running`, `shutting-down`, `stopping` or `stopped`."""
    launched_at: datetime
    """When it was last started."""
    stopped_at: datetime | None = None
    """From the state transition reason; None where that does not say."""
    image_id: str
    platform: str = "Linux/UNIX"
    """`PlatformDetails`, which the price depends on."""
    tenancy: str = "default"
    lifecycle: str = ""
    """`spot`, `scheduled`, or empty for on demand."""
    site: str = ""
    """Its Availability Zone, Local Zone or Wavelength Zone, or the ARN of its Outpost."""
    public_addresses: tuple[str, ...] = ()
    """Public IPv4 addresses of all its interfaces."""
    ipv6_addresses: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    """Ids, those of all its interfaces."""
    volumes: tuple[str, ...] = ()
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An EBS volume."""

    id: str
    type: str
    size_gb: int
    """In GiB, as EC2 counts."""
    state: str
    encrypted: bool
    created_at: datetime
    iops: int | None = None
    throughput: int | None = None
    """In MiB/s."""
    instances: tuple[str, ...] = ()
    """What it is attached to, or being attached to or detached from."""
    snapshot_id: str | None = None
    site: str = ""
    """As an instance's."""
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An EBS snapshot that the account owns."""

    id: str
    volume_id: str
    size_gb: int
    """Of the volume, in GiB."""
    full_bytes: int | None = None
    """`FullSnapshotSizeInBytes`: of the blocks that were written, were it the only snapshot."""
    state: str = "completed"
    started_at: datetime
    encrypted: bool
    description: str = ""
    tier: str = "standard"
    site: str = ""
    """Where it is not the region's: its Local Zone, or the ARN of its Outpost."""
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An AMI: the account's own, or one that an instance of it was made from."""

    id: str
    name: str
    owned: bool
    state: str
    created_at: datetime
    deprecated_at: datetime | None = None
    snapshots: tuple[str, ...] = ()
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One ingress permission of a security group, as EC2 groups them."""

    protocol: str
    """`tcp`, `udp`, `icmp`, `icmpv6`, a number, or `-1` for all."""
    from_port: int | None
    to_port: int | None
    """For ICMP these are type and code."""
    cidrs: tuple[str, ...] = ()
    """IPv4 and IPv6 ranges."""
    prefix_lists: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Ids of groups whose members may come in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    """A security group."""

    id: str
    name: str
    vpc_id: str
    ingress: tuple[Permission, ...] = ()
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface: who uses which security group, and whether the world can reach it."""

    id: str
    type: str
    """`interface`, `nat_gateway`, `network_load_balancer` and so on."""
    security_groups: tuple[str, ...] = ()
    instance_id: str | None = None
    description: str = ""
    public_addresses: tuple[str, ...] = ()
    ipv6_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An Elastic IP address."""

    id: str
    """The allocation's."""
    public_ip: str
    associated: bool
    pool: str = "amazon"
    """Whose addresses it is one of: `amazon`, or a pool such as `ipv4pool-ec2-...`, which the account brought along."""
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatGateway:
    """A NAT gateway that is not deleted."""

    id: str
    state: str
    created_at: datetime
    public: bool = True
    regional: bool = False
    """Whether it is in all Availability Zones where there is work for it, not in one."""
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer:
    """An application, network or gateway load balancer."""

    id: str
    """Its ARN."""
    name: str
    type: str
    """`application`, `network` or `gateway`."""
    internet_facing: bool
    created_at: datetime
    site: str = ""
    """The first of its Availability Zones or Local Zones, or the id of its Outpost."""
    security_groups: tuple[str, ...] = ()
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTemplate:
    """A launch template: what its default and latest versions use."""

    id: str
    images: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGroup:
    """A CloudWatch log group. Its tags are not read: that is a call for each group."""

    id: str
    """Its name."""
    created_at: datetime
    stored_bytes: int
    retention_days: int | None
    log_class: str = "STANDARD"
    """`STANDARD`, `INFREQUENT_ACCESS` or `DELIVERY`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What a metric said in a window that was cut into equal parts."""

    expected: int
    """How many parts the window has."""
    values: tuple[float, ...]
    """One for each of those parts that has any datapoint: the highest of its datapoints, or their sum."""
    under_way: float | None = None
    """The same of the part that is not over yet. It can show that something is in use; that nothing was, it cannot."""

    @property
    def known(self) -> tuple[float, ...]:
        """All that the metric said, the part that is not over yet last."""
        return self.values if self.under_way is None else (*self.values, self.under_way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All that was read of one region of one account."""

    account: str
    region: str
    read_at: datetime
    instances: tuple[Instance, ...] = ()
    volumes: tuple[Volume, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    images: tuple[Image, ...] = ()
    """The account's own, and those of its instances that are still to be seen."""
    security_groups: tuple[SecurityGroup, ...] = ()
    prefix_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The ranges of the lists that a security group names, by id; one that could not be read has no entry."""
    interfaces: tuple[Interface, ...] = ()
    addresses: tuple[Address, ...] = ()
    nat_gateways: tuple[NatGateway, ...] = ()
    load_balancers: tuple[LoadBalancer, ...] = ()
    launch_templates: tuple[LaunchTemplate, ...] = ()
    log_groups: tuple[LogGroup, ...] = ()
    cpu: Mapping[str, Series] = field(default_factory=dict)
    """CPUUtilization in percent by running instance: the highest value of each part of the window that has any."""
    memory: Mapping[str, Series] = field(default_factory=dict)
    """The CloudWatch agent's memory in percent by instance, likewise; no entry where there is no agent."""
    traffic: Mapping[str, Series] = field(default_factory=dict)
    """Of load balancers and NAT gateways by id: what they served in each part of the window that CloudWatch knows of.

    A part is known where a metric that is always reported has a datapoint (`ConsumedLCUs` of load balancers,
    `ActiveConnectionCount` of NAT gateways); its value is the sum of `RequestCount`, `HTTP_Redirect_Count` and
    `HTTP_Fixed_Response_Count` (application load balancers), `ProcessedBytes` (network and gateway ones) or
    `BytesOutToDestination` (NAT gateways), and 0 where there is none, as `RequestCount` is not reported while there are
    no requests (Elastic Load Balancing, "CloudWatch metrics for your Application Load Balancer"). So too few values
    mean unknown, and enough of them whose sum is 0 mean idle.
    """
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Which of the above could not be read, by its name here, and why."""
