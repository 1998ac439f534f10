"""Takes what an inventory holds out of EC2's answers, without boto3's parsing.

boto3 turns all of an answer into dictionaries, and its times into datetimes by a parser that tries many formats: most
of the time that a scan would take. Here a hook reads the elements that are wanted; signing, retries, paging and
errors stay boto3's. Elements are named as in the Amazon EC2 API Reference.

An answer has to be the operation's own, and each item has to have the elements that every resource of its kind has.
Anything else is not known: were it taken for an empty region, its findings would be resolved.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
_ID_OF: Final = {
    "instancesSet": "instanceId",
    "volumeSet": "volumeId",
    "snapshotSet": "snapshotId",
    "imagesSet": "imageId",
    "securityGroupInfo": "groupId",
    "networkInterfaceSet": "networkInterfaceId",
    "addressesSet": "allocationId",
    "natGatewaySet": "natGatewayId",
    "launchTemplateVersionSet": "launchTemplateId",
}
"""What a sentence names an item by, by the set that it is in."""
_STOPPED: Final = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
_PUBLIC: Final = ("association/publicIp", "privateIpAddressesSet/item/association/publicIp")
_IPV6: Final = "ipv6AddressesSet/item/ipv6Address"
_GROUP: Final = "groupSet/item/groupId"

_taking: Final[ContextVar[tuple[str, Take] | None]] = ContextVar("taking", default=None)
_one_at_a_time: Final = threading.Lock()
"""Held while an answer is in pieces, which take several times its size; side by side they would not be read sooner."""


class UnexpectedAnswer(ValueError):
    """An answer that is not as its operation is documented: nothing is known from it. The sentence names the operation
    and, where it is about one item, the item and its element."""


class _Odd(ValueError):
    """What an item lacks, or has in a form that cannot be read."""


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
        UnexpectedAnswer: an answer, or an item of it, is not as the operation is documented.
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: as the client does.
        botocore.parsers.ResponseParserError: an answer broke off, or is no XML.
    """
    from botocore.parsers import ResponseParserError

    before = _taking.set((path, take))
    try:
        if not ec2.can_paginate(operation):
            return list(getattr(ec2, operation)(**request)["Items"])
        pages = ec2.get_paginator(operation).paginate(**request, PaginationConfig={"PageSize": size})
        return [item for page in pages for item in page["Items"]]
    except ResponseParserError as error:  # whose own sentence has the whole answer in it
        called = ec2.meta.method_to_api_mapping[operation]
        raise ResponseParserError(f"{called}: the answer broke off, or is no XML.") from error
    finally:
        _taking.reset(before)


def _take_items(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """botocore's `before-parse` hook: what it puts in the second dictionary is added to the parsed response."""
    if (taking := _taking.get()) is None or response_dict["status_code"] >= 300:
        return
    path, take = taking
    with _one_at_a_time:
        try:
            answer = _parsed(response_dict["body"])
        except ParseError:
            return  # it broke off: an error that boto3 knows what to do about
        operation = operation_model.name
        customized_response_dict["Items"] = _made(_found(answer, operation, path), operation, path, take)
        if token := answer.findtext("nextToken"):
            customized_response_dict["NextToken"] = token
    response_dict["body"] = b"<read/>"


def _parsed(body: bytes) -> Element:
    """The root of an answer, without the namespace; a large body is not copied."""
    head, removed = _NAMESPACE.subn(b"", body[:500], count=1)
    parser = XMLParser()  # noqa: S314 - as boto3 does
    parser.feed(head)
    parser.feed(memoryview(body)[500:])
    root = parser.close()
    if body.count(b"xmlns") > removed:  # a namespace is written otherwise, or there are more of them
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return root


def _found(answer: Element, operation: str, path: str) -> list[Element]:
    """The items of an answer. Each set on the way has to be there, as it is when it is empty, and to hold items alone.

    Raises:
        UnexpectedAnswer: the answer is not the operation's own, or a set is otherwise.
    """
    if (error := answer.find("Errors/Error")) is not None:
        code, message = error.findtext("Code"), error.findtext("Message")
        raise UnexpectedAnswer(f"{operation}: the answer of status 200 is an error ({code}: {message}).")
    if answer.tag != f"{operation}Response":
        raise UnexpectedAnswer(f"{operation}: the answer is a document {answer.tag[:100]}, not {operation}Response.")
    above = [answer]
    for name in path.split("/")[::2]:
        items: list[Element] = []
        for one in above:
            if (whole := one.find(name)) is None:
                raise UnexpectedAnswer(f"{operation}: the answer has no {name}.")
            items += whole
        if odd := next((item.tag for item in items if item.tag != "item"), None):
            raise UnexpectedAnswer(f"{operation}: the answer has a {odd[:100]} in its {name}, where items belong.")
        above = items
    return above


def _made(items: Iterable[Element], operation: str, path: str, take: Take) -> list[object]:
    """What is made of each item.

    Raises:
        UnexpectedAnswer: an item has not what every one of its kind has.
    """
    made = []
    for number, item in enumerate(items, 1):
        try:
            one = take(item)
        except _Odd as error:
            name = item.findtext(_ID_OF.get(path.split("/")[-2], "")) or f"item {number}"
            raise UnexpectedAnswer(f"{operation}: {name} {error}.") from error
        if one is not None:
            made.append(one)
    return made


@contextmanager
def read_by_boto3(operation: str) -> Iterator[None]:
    """Around a call of another service: boto3's parsers fail in many ways at an answer of another form.

    Raises:
        UnexpectedAnswer: in place of those.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(f"{operation}: the answer cannot be read ({error!r:.100}).") from error


def member(answer: Mapping[str, Any], name: str, operation: str, of: str = "the answer") -> Any:
    """A member that boto3's answer to another service has to have.

    Args:
        answer: the answer, or an item of it.
        name: the member's.
        operation: that was called, as AWS calls it.
        of: names the item.

    Raises:
        UnexpectedAnswer: it is not there.
    """
    if (value := answer.get(name)) is None:
        raise UnexpectedAnswer(f"{operation}: {of} has no {name}.")
    return value


def instance(item: Element) -> Instance | None:
    """An `Instance`; None where it is terminated."""
    state = _needed(item, "instanceState/name")
    if state == "terminated":
        return None
    return Instance(
        id=_needed(item, "instanceId"),
        type=_needed(item, "instanceType"),
        state=state,
        launched_at=_moment(item, "launchTime"),
        stopped_at=stopped_at(_text(item, "reason")) if state == "stopped" else None,
        image_id=_needed(item, "imageId"),
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
        id=_needed(item, "volumeId"),
        type=_needed(item, "volumeType"),
        size_gb=_counted(item, "size"),
        state=_needed(item, "status"),
        encrypted=_needed(item, "encrypted") == "true",
        created_at=_moment(item, "createTime"),
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
        id=_needed(item, "snapshotId"),
        volume_id=_needed(item, "volumeId"),
        size_gb=_counted(item, "volumeSize"),
        full_bytes=_number(item, "fullSnapshotSizeInBytes"),
        state=_needed(item, "status"),
        started_at=_moment(item, "startTime"),
        encrypted=_needed(item, "encrypted") == "true",
        description=_text(item, "description"),
        tier=_text(item, "storageTier") or "standard",
        site=_site(item, "availabilityZone"),
        tags=_tags(item),
    )


def image(item: Element, *, owned: bool) -> Image:
    """An `Image`."""
    return Image(
        id=_needed(item, "imageId"),
        name=_text(item, "name"),
        owned=owned,
        state=_needed(item, "imageState"),
        created_at=_moment(item, "creationDate"),
        deprecated_at=_moment(item, "deprecationTime") if item.findtext("deprecationTime") else None,
        snapshots=_unique(item, "blockDeviceMapping/item/ebs/snapshotId"),
        tags=_tags(item),
    )


def security_group(item: Element) -> SecurityGroup:
    """A `SecurityGroup`."""
    return SecurityGroup(
        id=_needed(item, "groupId"),
        name=_text(item, "groupName"),
        vpc_id=_text(item, "vpcId"),
        ingress=tuple(_permission(one) for one in item.iterfind("ipPermissions/item")),
        tags=_tags(item),
    )


def _permission(item: Element) -> Permission:
    return Permission(
        protocol=_needed(item, "ipProtocol"),
        from_port=_number(item, "fromPort"),
        to_port=_number(item, "toPort"),
        cidrs=_unique(item, "ipRanges/item/cidrIp", "ipv6Ranges/item/cidrIpv6"),
        prefix_lists=_unique(item, "prefixListIds/item/prefixListId"),
        groups=_unique(item, "groups/item/groupId"),
    )


def range_of(item: Element) -> str:
    """The range of a `PrefixListEntry`."""
    return _needed(item, "cidr")


def interface(item: Element) -> Interface:
    """A `NetworkInterface`."""
    return Interface(
        id=_needed(item, "networkInterfaceId"),
        type=_text(item, "interfaceType"),
        security_groups=_unique(item, _GROUP),
        instance_id=_text(item, "attachment/instanceId") or None,
        description=_text(item, "description"),
        public_addresses=_unique(item, *_PUBLIC),
        ipv6_addresses=_unique(item, _IPV6),
    )


def address(item: Element) -> Address:
    """An `Address`."""
    public_ip = _text(item, "publicIp")  # one of a carrier has none
    used_by = ("associationId", "instanceId", "networkInterfaceId")
    return Address(
        id=_text(item, "allocationId") or _needed(item, "publicIp"),
        public_ip=public_ip,
        associated=any(_text(item, name) for name in used_by),
        pool=_text(item, "customerOwnedIpv4Pool") or _text(item, "publicIpv4Pool") or "amazon",
        tags=_tags(item),
    )


def nat_gateway(item: Element) -> NatGateway | None:
    """A `NatGateway`; None where it is deleted."""
    if (state := _needed(item, "state")) == "deleted":
        return None
    return NatGateway(
        id=_needed(item, "natGatewayId"),
        state=state,
        created_at=_moment(item, "createTime"),
        public=_text(item, "connectivityType") != "private",
        regional=_text(item, "availabilityMode") == "regional",
        tags=_tags(item),
    )


def launch_template(item: Element) -> LaunchTemplate:
    """A `LaunchTemplateVersion`: what one version of a template uses."""
    data = "launchTemplateData"
    return LaunchTemplate(
        id=_needed(item, "launchTemplateId"),
        images=_unique(item, f"{data}/imageId"),
        snapshots=_unique(item, f"{data}/blockDeviceMappingSet/item/ebs/snapshotId"),
    )


def _text(item: Element, path: str) -> str:
    return item.findtext(path) or ""


def _site(item: Element, zone: str) -> str:
    return intern(_text(item, "outpostArn") or _text(item, zone))


def _needed(item: Element, path: str) -> str:
    """The text of an element that every item of its kind has."""
    if not (text := item.findtext(path)):
        raise _Odd(f"has no {path}")
    return text


def _number(item: Element, path: str) -> int | None:
    if not (text := item.findtext(path)):
        return None
    try:
        return int(text)
    except ValueError as error:
        raise _Odd(f"has a {path} that is no number: {text[:50]!r}") from error


def _counted(item: Element, path: str) -> int:
    if (number := _number(item, path)) is None:
        raise _Odd(f"has no {path}")
    return number


def _moment(item: Element, path: str) -> datetime:
    text = _needed(item, path)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _Odd(f"has a {path} that is no moment: {text[:50]!r}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # deprecation times of some images say no zone


def _tags(item: Element) -> Tags:
    # The same ones stand at most resources of an account: each text is kept once.
    return {intern(_text(tag, "key")): intern(_text(tag, "value")) for tag in item.iterfind("tagSet/item")}


def _unique(item: Element, *paths: str) -> tuple[str, ...]:
    """The texts found below an item, each once, in the order in which they come."""
    return tuple(dict.fromkeys(found.text for path in paths for found in item.iterfind(path) if found.text))
