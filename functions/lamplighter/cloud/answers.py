"""Takes what an inventory holds out of EC2's answers, without boto3's parsing.

boto3 turns all of an answer into dictionaries, and its times into datetimes by a parser that tries many formats: most
of the time that a scan would take. Here a hook reads the elements that are wanted; signing, retries, paging and
errors stay boto3's. Elements are named as in the Amazon EC2 API Reference.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from sys import intern
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, XMLParser

from lamplighter.cloud.inventory import (
    Address,
    Image,
    Instance,
    Interface,
    LaunchTemplate,
    NatGateway,
    Permission,
    SecurityGroup,
    Snapshot,
    Tags,
    Volume,
)

type Take = Callable[[Element], object]
"""Makes something of one item of an answer; what it makes None of is left out."""

_NAMESPACE: Final = re.compile(rb'\sxmlns="[^"]*"')
_STOPPED: Final = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
_PUBLIC: Final = ("association/publicIp", "privateIpAddressesSet/item/association/publicIp")
_IPV6: Final = "ipv6AddressesSet/item/ipv6Address"
_GROUP: Final = "groupSet/item/groupId"

_taking: Final[ContextVar[tuple[str, Take] | None]] = ContextVar("taking", default=None)
_one_at_a_time: Final = threading.Lock()
"""Held while an answer is in pieces, which take several times its size; side by side they would not be read sooner."""


def hook(ec2: Any) -> None:
    """Prepare a client for `items`. It may be used for other things, too: only the answers to `items` are read here."""
    ec2.meta.events.register("before-parse.ec2.*", _take_items, unique_id="lamplighter.cloud.answers")


def items(ec2: Any, operation: str, path: str, take: Take, /, *, size: int, **request: Any) -> list[Any]:
    """What `take` makes of the items of an operation's answer, of all its pages.

    Args:
        ec2: a client that was given to `hook`.
        operation: as boto3 calls it, such as `describe_volumes`.
        path: where in the answer the items are, such as `volumeSet/item`.
        size: how many items a page may have.
        request: what else is asked for.

    Raises:
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: as the client does.
    """
    before = _taking.set((path, take))
    try:
        if not ec2.can_paginate(operation):
            return list(getattr(ec2, operation)(**request)["Items"])
        pages = ec2.get_paginator(operation).paginate(**request, PaginationConfig={"PageSize": size})
        return [item for page in pages for item in page["Items"]]
    finally:
        _taking.reset(before)


def _take_items(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """botocore's `before-parse` hook: what it puts in the second dictionary is added to the parsed response."""
    if (taking := _taking.get()) is None or response_dict["status_code"] >= 300:
        return
    path, take = taking
    with _one_at_a_time:
        try:
            answer = _parsed(response_dict["body"])
        except ParseError:
            return  # it broke off: an error that boto3 knows what to do about
        customized_response_dict["Items"] = [made for item in answer.iterfind(path) if (made := take(item)) is not None]
        if token := answer.findtext("nextToken"):
            customized_response_dict["NextToken"] = token
    response_dict["body"] = b"<read/>"


def _parsed(body: bytes) -> Element:
    """The root of an answer, without the namespace; a large body is not copied."""
    head = body[:500]
    parser = XMLParser()  # noqa: S314 - as boto3 does
    parser.feed(_NAMESPACE.sub(b"", head, count=1))
    parser.feed(memoryview(body)[len(head) :])
    return parser.close()


def instance(item: Element) -> Instance | None:
    """An `Instance`; None where it is terminated."""
    state = _text(item, "instanceState/name")
    if state == "terminated":
        return None
    return Instance(
        id=_text(item, "instanceId"),
        type=_text(item, "instanceType"),
        state=state,
        launched_at=_moment(_text(item, "launchTime")),
        stopped_at=stopped_at(_text(item, "reason")) if state == "stopped" else None,
        image_id=_text(item, "imageId"),
        platform=_text(item, "platformDetails") or "Linux/UNIX",
        tenancy=_text(item, "placement/tenancy") or "default",
        lifecycle=_text(item, "instanceLifecycle"),
        site=_site(item, "placement/availabilityZone"),
        public_addresses=_unique(item, "ipAddress", *(f"networkInterfaceSet/item/{path}" for path in _PUBLIC)),
        ipv6_addresses=_unique(item, "ipv6Address", f"networkInterfaceSet/item/{_IPV6}"),
        security_groups=_unique(item, _GROUP, f"networkInterfaceSet/item/{_GROUP}"),
        volumes=_unique(item, "blockDeviceMapping/item/ebs/volumeId"),
        tags=_tags(item),
    )


def stopped_at(reason: str) -> datetime | None:
    """When an instance was stopped, by its state transition reason: `User initiated (2026-10-01 12:00:00 GMT)`.

    None where that does not say, as when the instance was shut down from within.
    """
    found = _STOPPED.search(reason)
    return datetime.fromisoformat(found[1]).replace(tzinfo=UTC) if found else None


def volume(item: Element) -> Volume:
    """A `Volume`."""
    return Volume(
        id=_text(item, "volumeId"),
        type=_text(item, "volumeType"),
        size_gb=int(_text(item, "size")),
        state=_text(item, "status"),
        encrypted=_text(item, "encrypted") == "true",
        created_at=_moment(_text(item, "createTime")),
        iops=_number(item, "iops"),
        throughput=_number(item, "throughput"),
        instances=_unique(item, "attachmentSet/item/instanceId"),
        snapshot_id=_text(item, "snapshotId") or None,
        site=_site(item, "availabilityZone"),
        tags=_tags(item),
    )


def snapshot(item: Element) -> Snapshot:
    """A `Snapshot`."""
    return Snapshot(
        id=_text(item, "snapshotId"),
        volume_id=_text(item, "volumeId"),
        size_gb=int(_text(item, "volumeSize")),
        full_bytes=_number(item, "fullSnapshotSizeInBytes"),
        state=_text(item, "status"),
        started_at=_moment(_text(item, "startTime")),
        encrypted=_text(item, "encrypted") == "true",
        description=_text(item, "description"),
        tier=_text(item, "storageTier") or "standard",
        site=_site(item, "availabilityZone"),
        tags=_tags(item),
    )


def image(item: Element, *, owned: bool) -> Image:
    """An `Image`."""
    deprecated = _text(item, "deprecationTime")
    return Image(
        id=_text(item, "imageId"),
        name=_text(item, "name"),
        owned=owned,
        state=_text(item, "imageState"),
        created_at=_moment(_text(item, "creationDate")),
        deprecated_at=_moment(deprecated) if deprecated else None,
        snapshots=_unique(item, "blockDeviceMapping/item/ebs/snapshotId"),
        tags=_tags(item),
    )


def security_group(item: Element) -> SecurityGroup:
    """A `SecurityGroup`."""
    return SecurityGroup(
        id=_text(item, "groupId"),
        name=_text(item, "groupName"),
        vpc_id=_text(item, "vpcId"),
        ingress=tuple(_permission(one) for one in item.iterfind("ipPermissions/item")),
        tags=_tags(item),
    )


def _permission(item: Element) -> Permission:
    return Permission(
        protocol=_text(item, "ipProtocol"),
        from_port=_number(item, "fromPort"),
        to_port=_number(item, "toPort"),
        cidrs=_unique(item, "ipRanges/item/cidrIp", "ipv6Ranges/item/cidrIpv6"),
        prefix_lists=_unique(item, "prefixListIds/item/prefixListId"),
        groups=_unique(item, "groups/item/groupId"),
    )


def range_of(item: Element) -> str:
    """The range of a `PrefixListEntry`."""
    return _text(item, "cidr")


def interface(item: Element) -> Interface:
    """A `NetworkInterface`."""
    return Interface(
        id=_text(item, "networkInterfaceId"),
        type=_text(item, "interfaceType"),
        security_groups=_unique(item, _GROUP),
        instance_id=_text(item, "attachment/instanceId") or None,
        description=_text(item, "description"),
        public_addresses=_unique(item, *_PUBLIC),
        ipv6_addresses=_unique(item, _IPV6),
    )


def address(item: Element) -> Address:
    """An `Address`."""
    public_ip = _text(item, "publicIp")
    used_by = ("associationId", "instanceId", "networkInterfaceId")
    return Address(
        id=_text(item, "allocationId") or public_ip,
        public_ip=public_ip,
        associated=any(_text(item, name) for name in used_by),
        pool=_text(item, "customerOwnedIpv4Pool") or _text(item, "publicIpv4Pool") or "amazon",
        tags=_tags(item),
    )


def nat_gateway(item: Element) -> NatGateway | None:
    """A `NatGateway`; None where it is deleted."""
    if (state := _text(item, "state")) == "deleted":
        return None
    return NatGateway(
        id=_text(item, "natGatewayId"),
        state=state,
        created_at=_moment(_text(item, "createTime")),
        public=_text(item, "connectivityType") != "private",
        regional=_text(item, "availabilityMode") == "regional",
        tags=_tags(item),
    )


def launch_template(item: Element) -> LaunchTemplate:
    """A `LaunchTemplateVersion`: what one version of a template uses."""
    data = "launchTemplateData"
    return LaunchTemplate(
        id=_text(item, "launchTemplateId"),
        images=_unique(item, f"{data}/imageId"),
        snapshots=_unique(item, f"{data}/blockDeviceMappingSet/item/ebs/snapshotId"),
    )


def _text(item: Element, path: str) -> str:
    return item.findtext(path) or ""


def _site(item: Element, zone: str) -> str:
    return intern(_text(item, "outpostArn") or _text(item, zone))


def _number(item: Element, path: str) -> int | None:
    return int(text) if (text := item.findtext(path)) else None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # deprecation times of some images say no zone


def _tags(item: Element) -> Tags:
    # The same ones stand at most resources of an account: each text is kept once.
    return {intern(_text(tag, "key")): intern(_text(tag, "value")) for tag in item.iterfind("tagSet/item")}


def _unique(item: Element, *paths: str) -> tuple[str, ...]:
    """The texts found below an item, each once, in the order in which they come."""
    return tuple(dict.fromkeys(found.text for path in paths for found in item.iterfind(path) if found.text))
