"""Reads an inventory: what one region of one account holds, as far as checks ask, each thing once and side by side.

Nothing here writes: every call describes, lists or gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import batched
from typing import Any, Final

from lamplighter.cloud import answers, metrics
from lamplighter.cloud.access import CONCURRENCY, failures, is_passing
from lamplighter.cloud.inventory import Image, Inventory, LaunchTemplate, LoadBalancer, LogGroup, Tags
from lamplighter.kernel.cloud import Limits
from lamplighter.kernel.errors import Permanent, Retryable

type ClientOf = Callable[[str], Any]
"""Gives the boto3 client of a service, for one region of one account."""
type Ask = Callable[[ClientOf], Iterable[Any]]

FILTER_VALUES: Final = 200
"""As many as one of EC2's filters takes."""
TAGGED_A_CALL: Final = 20
"""As many load balancers as Elastic Load Balancing's DescribeTags takes."""

_DEPENDS: Final = {
    "images": ("instances",),
    "prefix_lists": ("security_groups",),
    "cpu": ("instances",),
    "memory": ("instances",),
    "traffic": ("load_balancers", "nat_gateways"),
}
"""What has to be known before something else can be asked for."""


def read(
    clients: ClientOf, *, account: str, region: str, now: datetime, limits: Limits, needs: frozenset[str]
) -> Inventory:
    """What `region` of `account` holds.

    What is refused, unreachable or throttled for too long is in the inventory's `gaps`; the rest is read.

    Args:
        limits: says how many days the metrics are about.
        needs: the fields of `Inventory` that are read (`check.wanted`), and with them those that these depend on.

    Raises:
        Permanent: nothing at all may be read there.
        Retryable: nothing at all could be read, some of it for a passing reason.
    """
    answers.hook(clients("ec2"))
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="reader") as pool:
        reading = _Reading(clients, pool, needs)
        reading.ask()
        if reading.gaps and not reading.held:
            raise reading.failure(f"Nothing of account {account} can be read in {region}")
        reading.ask_further(metrics.Window.before(now, limits.idle_days))
    return Inventory(account=account, region=region, read_at=now, gaps=reading.gaps, **reading.held)


class _Reading:
    """A read that is under way: what is held so far and what could not be had, by the fields of `Inventory`."""

    def __init__(self, clients: ClientOf, pool: ThreadPoolExecutor, needs: frozenset[str]) -> None:
        self.held: dict[str, Any] = {}
        self.gaps: dict[str, str] = {}
        self._wanted = needs | {name for need in needs for name in _DEPENDS.get(need, ())}
        self._clients = clients
        self._pool = pool
        self._passing = False

    def ask(self) -> None:
        """Ask for all that can be asked for without knowing anything."""
        asked = {name: self._pool.submit(ask, self._clients) for name, ask in _ASKED.items() if name in self._wanted}
        for name, future in asked.items():
            for found in self._answers(name, [future]):
                self.held[name] = tuple(found)

    def ask_further(self, window: metrics.Window) -> None:
        """Ask for what the first answers name."""
        for name, others in _DEPENDS.items():
            if name in self._wanted and all(other in self.gaps for other in others):
                self._give_up(name, "; ".join(f"{other}: {self.gaps[other]}" for other in others))
        start, ec2 = self._pool.submit, self._clients("ec2")
        ids = batched(self._others_images(), FILTER_VALUES, strict=False)
        images = [start(_images_by_id, ec2, some) for some in ids]
        balancers = self.held.get("load_balancers", ())
        some_at_a_time = batched(balancers, TAGGED_A_CALL, strict=False)
        tags = [start(_tags, self._clients("elbv2"), some) for some in some_at_a_time]
        lists = {id: start(_ranges, ec2, id) for id in self._prefix_lists()}
        self._measure(window)
        for found in self._answers("images", images):
            self.held["images"] += tuple(found)
        if tagged := self._answers("load_balancers", tags):
            of = {arn: those for some in tagged for arn, those in some.items()}
            self.held["load_balancers"] = tuple(replace(one, tags=of[one.id]) for one in balancers)
        ranges = {id: tuple(found) for id, future in lists.items() for found in self._answers("prefix_lists", [future])}
        if "prefix_lists" in self._wanted:
            self.held["prefix_lists"] = ranges

    def failure(self, what: str) -> Exception:
        """What to raise when nothing is held."""
        reasons = "; ".join(dict.fromkeys(self.gaps.values()))
        return (Retryable if self._passing else Permanent)(f"{what}: {reasons}")

    def _others_images(self) -> list[str]:
        """Those that instances were made from and that are not the account's own."""
        if "images" not in self.held:
            return []
        return sorted({one.image_id for one in self.held["instances"]} - {one.id for one in self.held["images"]})

    def _prefix_lists(self) -> list[str]:
        if "prefix_lists" not in self._wanted:
            return []
        ingress = (permission for group in self.held.get("security_groups", ()) for permission in group.ingress)
        return sorted({one for permission in ingress for one in permission.prefix_lists})

    def _measure(self, window: metrics.Window) -> None:
        instances = self.held.get("instances", ())
        asked = {
            "cpu": metrics.cpu(instances),
            "memory": metrics.memory(self.held.get("memory", ()), instances),
            "traffic": metrics.traffic(self.held.get("load_balancers", ()), self.held.get("nat_gateways", ())),
        }
        names = [name for name in asked if name in self._wanted and name not in self.gaps]
        queries = [query for name in names for query in asked[name]]
        try:
            series = metrics.series(self._clients("cloudwatch"), queries, window, self._pool) if queries else {}
        except failures() as error:
            for name in names:
                self._give_up(name, self._reason(error))
        else:
            self.held |= {name: series.get(name, {}) for name in names}

    def _answers[T](self, name: str, futures: Iterable[Future[T]]) -> list[T]:
        """What the calls for a field came to; nothing, and a gap, where one of them failed."""
        try:
            return [future.result() for future in futures]
        except failures() as error:
            self._give_up(name, self._reason(error))
            return []

    def _give_up(self, name: str, reason: str) -> None:
        self.held.pop(name, None)
        self.gaps[name] = reason

    def _reason(self, error: Exception) -> str:
        from botocore.exceptions import ClientError

        self._passing |= is_passing(error)
        if not isinstance(error, ClientError):
            return str(error).partition("\n")[0]  # a parser's has the whole answer in it
        how = "did not come through" if is_passing(error) else "was refused"
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        return f"{error.operation_name} {how} ({code}: {message.partition(' Encoded authorization')[0]})"


def _ec2(operation: str, path: str, take: answers.Take, *, size: int = 1000, **request: Any) -> Ask:
    """Asks EC2 for the items of an operation; where its pages hold less than `size`, it gives less."""
    return lambda clients: answers.items(clients("ec2"), operation, path, take, size=size, **request)


def _images_by_id(ec2: Any, ids: Sequence[str]) -> list[Image]:
    """Images of other accounts. By a filter, which leaves out what is gone, where asking by id would fail."""
    request = {"Filters": [{"Name": "image-id", "Values": list(ids)}], "IncludeDeprecated": True}
    return answers.items(ec2, "describe_images", "imagesSet/item", _other_image, size=1000, **request)


def _ranges(ec2: Any, prefix_list: str) -> list[str]:
    request = {"PrefixListId": prefix_list}
    return answers.items(ec2, "get_managed_prefix_list_entries", "entrySet/item", answers.range_of, size=100, **request)


def _launch_templates(clients: ClientOf) -> list[LaunchTemplate]:
    """What the default and the latest version of each use."""
    path, take, which = "launchTemplateVersionSet/item", answers.launch_template, ["$Latest", "$Default"]
    templates: dict[str, LaunchTemplate] = {}
    version: LaunchTemplate
    for version in _ec2("describe_launch_template_versions", path, take, size=200, Versions=which)(clients):
        other = templates.setdefault(version.id, version)
        templates[version.id] = replace(
            version,
            images=tuple(dict.fromkeys((*other.images, *version.images))),
            snapshots=tuple(dict.fromkeys((*other.snapshots, *version.snapshots))),
        )
    return list(templates.values())


def _load_balancers(clients: ClientOf) -> list[LoadBalancer]:
    operation = "DescribeLoadBalancers"
    pages = clients("elbv2").get_paginator("describe_load_balancers").paginate(PaginationConfig={"PageSize": 400})
    with answers.read_by_boto3(operation):
        return [
            _load_balancer(one, partial(answers.member, one, operation=operation, of=one.get("LoadBalancerArn", "one")))
            for page in pages
            for one in answers.member(page, "LoadBalancers", operation)
        ]


def _load_balancer(one: Mapping[str, Any], member: Callable[[str], Any]) -> LoadBalancer:
    zones = one.get("AvailabilityZones", ())
    return LoadBalancer(
        id=member("LoadBalancerArn"),
        name=member("LoadBalancerName"),
        type=member("Type"),
        internet_facing=one.get("Scheme") == "internet-facing",
        created_at=member("CreatedTime").astimezone(UTC),
        site=next((zone.get("OutpostId") or zone.get("ZoneName", "") for zone in zones), ""),
        security_groups=tuple(one.get("SecurityGroups", ())),
    )


def _tags(elbv2: Any, balancers: Iterable[LoadBalancer]) -> dict[str, Tags]:
    """The tags of load balancers by ARN."""
    operation, arns = "DescribeTags", [one.id for one in balancers]
    with answers.read_by_boto3(operation):
        described = answers.member(elbv2.describe_tags(ResourceArns=arns), "TagDescriptions", operation)
        tags: dict[str, Tags] = {
            answers.member(one, "ResourceArn", operation, "one"): {
                answers.member(tag, "Key", operation, one["ResourceArn"]): tag.get("Value", "")
                for tag in answers.member(one, "Tags", operation, one["ResourceArn"])
            }
            for one in described
        }
    if untold := [arn for arn in arns if arn not in tags]:
        raise answers.UnexpectedAnswer(f"{operation}: the answer has no tags of {untold[0]}.")
    return tags


def _log_groups(clients: ClientOf) -> list[LogGroup]:
    operation = "DescribeLogGroups"
    pages = clients("logs").get_paginator("describe_log_groups").paginate(PaginationConfig={"PageSize": 50})
    with answers.read_by_boto3(operation):
        return [
            LogGroup(
                id=answers.member(one, "logGroupName", operation, "one"),
                created_at=_created(one, operation),
                stored_bytes=one.get("storedBytes", 0),
                retention_days=one.get("retentionInDays"),
                log_class=one.get("logGroupClass", "STANDARD"),
            )
            for page in pages
            for one in answers.member(page, "logGroups", operation)
        ]


def _created(group: Mapping[str, Any], operation: str) -> datetime:
    """When a log group was made; AWS gives milliseconds."""
    name = group["logGroupName"]
    milliseconds = answers.member(group, "creationTime", operation, name)
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        said = f"{operation}: {name} has a creationTime that is no moment: {milliseconds!r:.50}."
        raise answers.UnexpectedAnswer(said) from error


_own_image: Final = partial(answers.image, owned=True)
_other_image: Final = partial(answers.image, owned=False)

_ASKED: Final[Mapping[str, Ask]] = {
    "instances": _ec2("describe_instances", "reservationSet/item/instancesSet/item", answers.instance),
    "volumes": _ec2("describe_volumes", "volumeSet/item", answers.volume),
    "snapshots": _ec2("describe_snapshots", "snapshotSet/item", answers.snapshot, OwnerIds=["self"]),
    "images": _ec2(
        "describe_images", "imagesSet/item", _own_image, Owners=["self"], IncludeDeprecated=True, IncludeDisabled=True
    ),
    "security_groups": _ec2("describe_security_groups", "securityGroupInfo/item", answers.security_group),
    "interfaces": _ec2("describe_network_interfaces", "networkInterfaceSet/item", answers.interface),
    "addresses": _ec2("describe_addresses", "addressesSet/item", answers.address),
    "nat_gateways": _ec2("describe_nat_gateways", "natGatewaySet/item", answers.nat_gateway),
    "launch_templates": _launch_templates,
    "load_balancers": _load_balancers,
    "log_groups": _log_groups,
    "memory": lambda clients: metrics.agents(clients("cloudwatch")),
}
"""Who to ask for a field of `Inventory`; about memory, which agents tell it."""
