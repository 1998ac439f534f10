"""`lamplighter.cloud.answers` reads what EC2 writes (Amazon EC2 API Reference), below boto3's parsing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from lamplighter.cloud import answers
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
    Volume,
)

AT = datetime(2026, 10, 1, 12, tzinfo=UTC)
TAGS = "<tagSet><item><key>Owner</key><value>a &amp; b</value></item><item><key>bare</key><value/></item></tagSet>"
READ_TAGS = {"Owner": "a & b", "bare": ""}


class Raw:
    """A response's body as urllib3 hands it over."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Any:
        yield self._body


class Server:
    """Answers with prepared pages, below botocore's parsing."""

    def __init__(self, *pages: str, status: int = 200) -> None:
        self.pages = list(pages)
        self.status = status
        self.asked: list[dict[str, Any]] = []
        self.client = boto3.client(
            "ec2",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.client.meta.events.register("before-send.ec2.*", self._answer)
        answers.hook(self.client)

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        self.asked.append(dict(part.split("=", 1) for part in request.body.split("&")))
        body = Raw(self.pages.pop(0).encode())
        return AWSResponse(request.url, self.status, {"Content-Type": "text/xml;charset=UTF-8"}, body)


def written(operation: str, content: str) -> str:
    """As EC2 writes it."""
    namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{operation}Response xmlns="{namespace}">\n'
        f"    <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>\n{content}\n</{operation}Response>"
    )


def one(path: str, take: answers.Take, content: str) -> Any:
    """What is made of one item that an answer has."""
    for name in reversed(path.split("/")):
        content = f"<{name}>{content}</{name}>"
    server = Server(written("DescribeVolumes", content))
    (read,) = answers.items(server.client, "describe_volumes", path, take, size=5)
    return read


INSTANCE = f"""
    <instanceId>i-1</instanceId><imageId>ami-1</imageId><instanceType>m5.large</instanceType>
    <instanceState><code>80</code><name>stopped</name></instanceState>
    <reason>User initiated (2026-10-01 12:00:00 GMT)</reason><launchTime>2026-10-01T12:00:00.000Z</launchTime>
    <placement><availabilityZone>us-east-1a</availabilityZone><tenancy>dedicated</tenancy></placement>
    <platformDetails>Windows</platformDetails><instanceLifecycle>spot</instanceLifecycle>
    <ipAddress>198.51.100.1</ipAddress><ipv6Address>2001:db8::1</ipv6Address>
    <groupSet><item><groupId>sg-1</groupId><groupName>one</groupName></item></groupSet>
    <blockDeviceMapping>
      <item><deviceName>/dev/sda1</deviceName><ebs><volumeId>vol-1</volumeId></ebs></item>
      <item><deviceName>/dev/sdb</deviceName><ebs><volumeId>vol-2</volumeId></ebs></item>
    </blockDeviceMapping>
    <networkInterfaceSet>
      <item>
        <association><publicIp>198.51.100.1</publicIp></association>
        <groupSet><item><groupId>sg-1</groupId></item><item><groupId>sg-2</groupId></item></groupSet>
        <privateIpAddressesSet>
          <item><primary>true</primary><association><publicIp>198.51.100.1</publicIp></association></item>
          <item><primary>false</primary><association><publicIp>198.51.100.2</publicIp></association></item>
        </privateIpAddressesSet>
      </item>
      <item>
        <groupSet><item><groupId>sg-3</groupId></item></groupSet>
        <privateIpAddressesSet>
          <item><association><publicIp>198.51.100.3</publicIp></association></item>
          <item><primary>false</primary></item>
        </privateIpAddressesSet>
        <ipv6AddressesSet><item><ipv6Address>2001:db8::2</ipv6Address></item></ipv6AddressesSet>
      </item>
    </networkInterfaceSet>
    {TAGS}
"""
RESERVED = "reservationSet/item/instancesSet/item"


def test_an_instance_has_the_addresses_and_groups_of_all_its_interfaces() -> None:
    assert one(RESERVED, answers.instance, INSTANCE) == Instance(
        id="i-1",
        type="m5.large",
        state="stopped",
        launched_at=AT,
        stopped_at=AT,
        image_id="ami-1",
        platform="Windows",
        tenancy="dedicated",
        lifecycle="spot",
        site="us-east-1a",
        public_addresses=("198.51.100.1", "198.51.100.2", "198.51.100.3"),
        ipv6_addresses=("2001:db8::1", "2001:db8::2"),
        security_groups=("sg-1", "sg-2", "sg-3"),
        volumes=("vol-1", "vol-2"),
        tags=READ_TAGS,
    )


def test_an_instance_of_few_words_is_on_demand_and_private() -> None:
    bare = (
        "<instanceId>i-1</instanceId><imageId>ami-1</imageId><instanceType>t3.nano</instanceType>"
        "<instanceState><name>running</name></instanceState><launchTime>2026-10-01T12:00:00Z</launchTime><reason/>"
    )
    usual = {"platform": "Linux/UNIX", "tenancy": "default", "lifecycle": ""}
    assert one(RESERVED, answers.instance, bare) == Instance(
        id="i-1", type="t3.nano", state="running", launched_at=AT, image_id="ami-1", **usual
    )


def test_a_terminated_instance_is_no_instance() -> None:
    gone = INSTANCE.replace("<name>stopped", "<name>terminated")
    server = Server(
        written(
            "DescribeInstances",
            f"<reservationSet><item><instancesSet><item>{gone}</item></instancesSet></item></reservationSet>",
        )
    )
    assert answers.items(server.client, "describe_instances", RESERVED, answers.instance, size=5) == []


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("User initiated (2026-10-01 12:00:00 GMT)", AT),
        ("Server.ScheduledStop: Stopped due to scheduled retirement (2026-10-01 12:00:00 UTC)", AT),
        ("Server.SpotInstanceShutdown: Spot instance stopped (2026-10-01 12:00:00 GMT)", AT),
        ("Client.InstanceInitiatedShutdown: Instance initiated shutdown", None),
        ("User initiated", None),
        ("", None),
    ],
)
def test_when_it_was_stopped_is_in_the_reason_or_unknown(reason: str, expected: datetime | None) -> None:
    assert answers.stopped_at(reason) == expected


def test_a_running_instance_was_not_stopped_whatever_its_reason_says() -> None:
    running = INSTANCE.replace("<name>stopped", "<name>running")
    assert one(RESERVED, answers.instance, running).stopped_at is None


def test_a_volume() -> None:
    content = f"""
        <volumeId>vol-1</volumeId><size>80</size><snapshotId>snap-1</snapshotId><status>in-use</status>
        <availabilityZone>us-east-1-bos-1a</availabilityZone>
        <createTime>2026-10-01T12:00:00.000Z</createTime><volumeType>gp3</volumeType><encrypted>true</encrypted>
        <iops>3000</iops><throughput>125</throughput>
        <attachmentSet>
          <item><volumeId>vol-1</volumeId><instanceId>i-1</instanceId><status>attached</status></item>
          <item><volumeId>vol-1</volumeId><instanceId>i-2</instanceId><status>detaching</status></item>
        </attachmentSet>{TAGS}"""
    known = {"id": "vol-1", "size_gb": 80, "created_at": AT}
    assert one("volumeSet/item", answers.volume, content) == Volume(
        **known, type="gp3", state="in-use", encrypted=True, iops=3000, throughput=125,
        instances=("i-1", "i-2"), snapshot_id="snap-1", site="us-east-1-bos-1a", tags=READ_TAGS,
    )  # fmt: skip
    bare = """<volumeId>vol-1</volumeId><size>80</size><snapshotId/><status>available</status><attachmentSet/>
        <createTime>2026-10-01T12:00:00.000Z</createTime><volumeType>standard</volumeType><encrypted>false</encrypted>"""
    assert one("volumeSet/item", answers.volume, bare) == Volume(
        **known, type="standard", state="available", encrypted=False
    )


def test_a_snapshot() -> None:
    content = f"""
        <snapshotId>snap-1</snapshotId><volumeId>vol-1</volumeId><status>completed</status><volumeSize>30</volumeSize>
        <startTime>2026-10-01T12:00:00.000Z</startTime><encrypted>true</encrypted><storageTier>archive</storageTier>
        <description>Daily &lt;1&gt;</description><fullSnapshotSizeInBytes>7</fullSnapshotSizeInBytes>
        <outpostArn>arn:aws:outposts:us-east-1:111122223333:outpost/op-1</outpostArn>{TAGS}"""
    assert one("snapshotSet/item", answers.snapshot, content) == Snapshot(
        id="snap-1", volume_id="vol-1", size_gb=30, full_bytes=7, started_at=AT, encrypted=True,
        description="Daily <1>", tier="archive", tags=READ_TAGS,
        site="arn:aws:outposts:us-east-1:111122223333:outpost/op-1",
    )  # fmt: skip


def test_an_image() -> None:
    content = f"""
        <imageId>ami-1</imageId><name>base</name><imageState>disabled</imageState>
        <creationDate>2026-10-01T12:00:00.000Z</creationDate><deprecationTime>2026-10-01T12:00:00.000Z</deprecationTime>
        <blockDeviceMapping>
          <item><deviceName>/dev/sda1</deviceName><ebs><snapshotId>snap-1</snapshotId></ebs></item>
          <item><deviceName>/dev/sdb</deviceName><virtualName>ephemeral0</virtualName></item>
        </blockDeviceMapping>{TAGS}"""
    assert one("imagesSet/item", lambda item: answers.image(item, owned=True), content) == Image(
        id="ami-1", name="base", owned=True, state="disabled", created_at=AT, deprecated_at=AT,
        snapshots=("snap-1",), tags=READ_TAGS,
    )  # fmt: skip


def test_a_security_group() -> None:
    content = f"""
        <groupId>sg-1</groupId><groupName>web</groupName><vpcId>vpc-1</vpcId>
        <ipPermissions>
          <item>
            <ipProtocol>tcp</ipProtocol><fromPort>22</fromPort><toPort>23</toPort>
            <groups><item><userId>111122223333</userId><groupId>sg-2</groupId></item></groups>
            <ipRanges><item><cidrIp>0.0.0.0/0</cidrIp><description>all</description></item></ipRanges>
            <ipv6Ranges><item><cidrIpv6>::/0</cidrIpv6></item></ipv6Ranges>
            <prefixListIds><item><prefixListId>pl-1</prefixListId></item></prefixListIds>
          </item>
          <item><ipProtocol>-1</ipProtocol><groups/><ipRanges/><ipv6Ranges/><prefixListIds/></item>
        </ipPermissions>
        <ipPermissionsEgress>
          <item><ipProtocol>-1</ipProtocol><ipRanges><item><cidrIp>0.0.0.0/0</cidrIp></item></ipRanges></item>
        </ipPermissionsEgress>{TAGS}"""
    assert one("securityGroupInfo/item", answers.security_group, content) == SecurityGroup(
        id="sg-1",
        name="web",
        vpc_id="vpc-1",
        ingress=(
            Permission(
                protocol="tcp",
                from_port=22,
                to_port=23,
                cidrs=("0.0.0.0/0", "::/0"),
                prefix_lists=("pl-1",),
                groups=("sg-2",),
            ),
            Permission(protocol="-1", from_port=None, to_port=None),
        ),
        tags=READ_TAGS,
    )


def test_an_interface() -> None:
    content = """
        <networkInterfaceId>eni-1</networkInterfaceId><interfaceType>nat_gateway</interfaceType>
        <description>Interface for NAT Gateway nat-1</description>
        <groupSet><item><groupId>sg-1</groupId></item></groupSet>
        <attachment><attachmentId>a</attachmentId><instanceId>i-1</instanceId></attachment>
        <association><publicIp>198.51.100.1</publicIp></association>
        <privateIpAddressesSet>
          <item><association><publicIp>198.51.100.2</publicIp></association></item>
        </privateIpAddressesSet>
        <ipv6AddressesSet><item><ipv6Address>2001:db8::1</ipv6Address></item></ipv6AddressesSet>"""
    assert one("networkInterfaceSet/item", answers.interface, content) == Interface(
        id="eni-1", type="nat_gateway", security_groups=("sg-1",), instance_id="i-1",
        description="Interface for NAT Gateway nat-1", public_addresses=("198.51.100.1", "198.51.100.2"),
        ipv6_addresses=("2001:db8::1",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "associated"),
    [
        ("<associationId>eipassoc-1</associationId>", True),
        ("<networkInterfaceId>eni-1</networkInterfaceId>", True),
        ("<instanceId>i-1</instanceId>", True),
        ("<instanceId/>", False),
        ("", False),
    ],
)
def test_an_address_is_used_by_whatever_it_names(content: str, associated: bool) -> None:
    known = f"<publicIp>198.51.100.1</publicIp><allocationId>eipalloc-1</allocationId>{TAGS}{content}"
    assert one("addressesSet/item", answers.address, known) == Address(
        id="eipalloc-1", public_ip="198.51.100.1", associated=associated, tags=READ_TAGS
    )


@pytest.mark.parametrize(
    ("content", "pool"),
    [
        ("", "amazon"),
        ("<publicIpv4Pool>amazon</publicIpv4Pool>", "amazon"),
        ("<publicIpv4Pool>ipv4pool-ec2-1</publicIpv4Pool>", "ipv4pool-ec2-1"),
        ("<customerOwnedIpv4Pool>ipv4pool-coip-1</customerOwnedIpv4Pool>", "ipv4pool-coip-1"),
    ],
)
def test_an_address_is_of_a_pool(content: str, pool: str) -> None:
    known = f"<publicIp>198.51.100.1</publicIp><allocationId>eipalloc-1</allocationId>{content}"
    assert one("addressesSet/item", answers.address, known).pool == pool


@pytest.mark.parametrize(("mode", "regional"), [("regional", True), ("zonal", False), ("", False)])
def test_a_nat_gateway_may_be_regional(mode: str, regional: bool) -> None:
    content = f"""
        <natGatewayId>nat-1</natGatewayId><state>available</state><createTime>2026-10-01T12:00:00.000Z</createTime>
        <availabilityMode>{mode}</availabilityMode>"""
    assert one("natGatewaySet/item", answers.nat_gateway, content).regional == regional


@pytest.mark.parametrize(("connectivity", "public"), [("public", True), ("private", False)])
def test_a_nat_gateway(connectivity: str, public: bool) -> None:
    content = f"""
        <natGatewayId>nat-1</natGatewayId><state>available</state><createTime>2026-10-01T12:00:00.000Z</createTime>
        <connectivityType>{connectivity}</connectivityType>{TAGS}"""
    assert one("natGatewaySet/item", answers.nat_gateway, content) == NatGateway(
        id="nat-1", state="available", created_at=AT, public=public, tags=READ_TAGS
    )
    server = Server(
        written(
            "DescribeNatGateways",
            f"<natGatewaySet><item>{content.replace('available', 'deleted')}</item></natGatewaySet>",
        )
    )
    assert (
        answers.items(server.client, "describe_nat_gateways", "natGatewaySet/item", answers.nat_gateway, size=5) == []
    )


def test_a_version_of_a_launch_template() -> None:
    content = """
        <launchTemplateId>lt-1</launchTemplateId><versionNumber>2</versionNumber>
        <launchTemplateData>
          <imageId>ami-1</imageId>
          <blockDeviceMappingSet>
            <item><deviceName>/dev/sdb</deviceName><ebs><snapshotId>snap-1</snapshotId></ebs></item>
          </blockDeviceMappingSet>
        </launchTemplateData>"""
    assert one("launchTemplateVersionSet/item", answers.launch_template, content) == LaunchTemplate(
        id="lt-1", images=("ami-1",), snapshots=("snap-1",)
    )


def page(*ids: str, more: str = "") -> str:
    token = f"<nextToken>{more}</nextToken>" if more else ""
    return written(
        "DescribeVolumes",
        f"<volumeSet>{''.join(f'<item><volumeId>{id}</volumeId></item>' for id in ids)}</volumeSet>{token}",
    )


def ids(server: Server, **request: Any) -> list[Any]:
    take = lambda item: item.findtext("volumeId")  # noqa: E731
    return answers.items(server.client, "describe_volumes", "volumeSet/item", take, size=500, **request)


def test_pages_follow_each_other_by_their_tokens() -> None:
    server = Server(page("vol-1", "vol-2", more="t/1="), page(more="t2"), page("vol-3"))

    assert ids(server, Filters=[{"Name": "status", "Values": ["available"]}]) == ["vol-1", "vol-2", "vol-3"]
    assert [request.get("NextToken") for request in server.asked] == [None, "t%2F1%3D", "t2"]
    assert {(request["MaxResults"], request["Filter.1.Value.1"]) for request in server.asked} == {("500", "available")}


def test_a_call_that_has_no_pages_is_made_once() -> None:
    server = Server(
        written("DescribeAddresses", "<addressesSet><item><publicIp>198.51.100.1</publicIp></item></addressesSet>")
    )

    (read,) = answers.items(server.client, "describe_addresses", "addressesSet/item", answers.address, size=1000)
    assert read.id == "198.51.100.1"
    assert "MaxResults" not in server.asked[0]


def test_an_error_stays_boto3s() -> None:
    error = (
        "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>No.</Message></Error></Errors></Response>"
    )
    with pytest.raises(ClientError, match=r"UnauthorizedOperation.*DescribeVolumes operation: No"):
        ids(Server(error, status=403))


def test_a_page_that_breaks_off_is_no_page() -> None:
    """FAILURES 8: what cannot be read must never look like an answer."""
    with pytest.raises(ResponseParserError):
        ids(Server(page("vol-1", "vol-2")[:-30]))


def test_a_client_that_is_used_otherwise_too_answers_as_ever() -> None:
    server = Server(page("vol-1"), page("vol-1"))

    assert ids(server) == ["vol-1"]
    assert server.client.describe_volumes()["Volumes"] == [{"VolumeId": "vol-1"}]


def test_boto3_does_not_parse_the_items_as_well() -> None:
    """What makes a scan fast; an event's name decides it."""
    seen: list[bytes] = []
    server = Server(page("vol-1"))
    server.client.meta.events.register_last(
        "before-parse.ec2.*", lambda response_dict, **_: seen.append(response_dict["body"])
    )

    assert ids(server) == ["vol-1"]
    assert b"volumeSet" not in seen[0]


# -- answers that are written otherwise, and what is no answer ---------------------------------------------------------

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
TWO = "<requestId>1</requestId><volumeSet><item><volumeId>vol-1</volumeId></item><item><volumeId>vol-2</volumeId></item></volumeSet>"  # noqa: E501
PREFIXED = TWO.replace("</", "</e:").replace("<", "<e:").replace("<e:/e:", "</e:")
ROOT = "DescribeVolumesResponse"


@pytest.mark.parametrize(
    "answer",
    [
        f'<{ROOT} xmlns="{NAMESPACE}">{TWO}</{ROOT}>',
        f"<{ROOT} xmlns='{NAMESPACE}'>{TWO}</{ROOT}>",
        f'<{ROOT}  xmlns = "{NAMESPACE}" >{TWO}</{ROOT}>',
        f'<{ROOT}\n\txmlns="{NAMESPACE}"\n>{TWO}</{ROOT}>',
        f'<{ROOT} xmlns="http://ec2.amazonaws.com/doc/2099-01-01/">{TWO}</{ROOT}>',
        f'<e:{ROOT} xmlns:e="{NAMESPACE}">{PREFIXED}</e:{ROOT}>',
        f'<{ROOT} xmlns:x="urn:x" xmlns="{NAMESPACE}">{TWO}</{ROOT}>',
        f'<?xml version="1.0"?><!-- {"a remark " * 99} --><{ROOT} xmlns="{NAMESPACE}">{TWO}</{ROOT}>',
        f'<!-- <{ROOT} xmlns="no" --><{ROOT} xmlns="{NAMESPACE}">{TWO}</{ROOT}>',
        f"<{ROOT}>{TWO}</{ROOT}>",
        f'\ufeff<?xml version="1.0"?><{ROOT} xmlns="{NAMESPACE}">{TWO}</{ROOT}>',
        f'<{ROOT} xmlns="{NAMESPACE}">{TWO.replace("<item>", "<item><!-- one --><?one?>")}</{ROOT}>',
        f'<{ROOT}><volumeSet xmlns="{NAMESPACE}">{TWO.partition("<volumeSet>")[2]}</{ROOT}>',
        f'<{ROOT} xmlns="{NAMESPACE}">{TWO.replace("<item>", '<item xmlns="urn:x">')}</{ROOT}>',
        f'<{ROOT} xmlns="{NAMESPACE}">{TWO.replace("<volumeId>", '<volumeId xmlns="urn:x">')}</{ROOT}>',
    ],
)
def test_an_answer_may_be_written_otherwise(answer: str) -> None:
    assert ids(Server(answer)) == ["vol-1", "vol-2"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            "<Response><Errors><Error><Code>Busy</Code><Message>Later.</Message></Error></Errors></Response>",
            r"^DescribeVolumes: the answer of status 200 is an error \(Busy: Later\.\)\.$",
        ),
        (
            f"<{ROOT}><Errors><Error><Code>Busy</Code></Error></Errors><volumeSet/></{ROOT}>",
            r"is an error \(Busy: None\)",
        ),
        ("<html><body><p>Sign in</p></body></html>", r"^DescribeVolumes: the answer is a document html, not Describe"),
        (f"<DescribeSnapshotsResponse>{TWO}</DescribeSnapshotsResponse>", "a document DescribeSnapshotsResponse"),
        (f"<{ROOT}><requestId>1</requestId></{ROOT}>", r"^DescribeVolumes: the answer has no volumeSet\.$"),
        (f"<{ROOT}><wrapped>{TWO}</wrapped></{ROOT}>", "has no volumeSet"),
        (f"<{ROOT}><VolumeSet/></{ROOT}>", "has no volumeSet"),
        (f"<{ROOT}>{TWO.replace('item>', 'member>')}</{ROOT}>", "has a member in its volumeSet, where items belong"),
    ],
)
def test_what_is_another_answer_is_not_an_empty_one(answer: str, sentence: str) -> None:
    with pytest.raises(answers.UnexpectedAnswer, match=sentence):
        ids(Server(answer))
    with pytest.raises(answers.UnexpectedAnswer, match=sentence):
        ids(Server(page("vol-1", more="t"), answer))


def test_a_token_of_another_namespace_is_followed() -> None:
    """Else the first page would be taken for the whole region."""
    first = page("vol-1", more="t2").replace("<nextToken>", '<nextToken xmlns="urn:x">')
    assert ids(Server(first, page("vol-2"))) == ["vol-1", "vol-2"]


def test_a_reservation_without_its_instances_is_no_empty_one() -> None:
    for odd, sentence in (
        ("", "has no instancesSet"),
        ("<instancesSet><i/></instancesSet>", "a i in its instancesSet"),
    ):
        server = Server(written("DescribeInstances", f"<reservationSet><item>{odd}</item></reservationSet>"))
        with pytest.raises(answers.UnexpectedAnswer, match=sentence):
            answers.items(server.client, "describe_instances", RESERVED, answers.instance, size=5)


@pytest.mark.parametrize(
    "answer", ["", "OK", "<html><p>Sign in<br></html>", '{"volumeSet": []}', page("vol-1") + "<more/>", page("v")[:-4]]
)
def test_what_is_no_xml_is_no_answer_and_its_sentence_is_short(answer: str) -> None:
    with pytest.raises(ResponseParserError, match=r"^DescribeVolumes: the answer broke off, or is no XML\.$"):
        ids(Server(answer))


KINDS: dict[str, tuple[answers.Take, str, list[str]]] = {
    RESERVED: (
        answers.instance,
        INSTANCE,
        ["instanceId", "imageId", "instanceType", "name", "launchTime"],
    ),
    "volumeSet/item": (
        answers.volume,
        "<volumeId>vol-1</volumeId><volumeType>gp3</volumeType><size>8</size><status>available</status>"
        "<encrypted>true</encrypted><createTime>2026-10-01T12:00:00Z</createTime>",
        ["volumeId", "volumeType", "size", "status", "encrypted", "createTime"],
    ),
    "snapshotSet/item": (
        answers.snapshot,
        "<snapshotId>snap-1</snapshotId><volumeId>vol-1</volumeId><volumeSize>8</volumeSize><status>completed</status>"
        "<encrypted>false</encrypted><startTime>2026-10-01T12:00:00Z</startTime>",
        ["snapshotId", "volumeId", "volumeSize", "status", "encrypted", "startTime"],
    ),
    "imagesSet/item": (
        partial(answers.image, owned=True),
        "<imageId>ami-1</imageId><imageState>available</imageState><creationDate>2026-10-01T12:00:00Z</creationDate>",
        ["imageId", "imageState", "creationDate"],
    ),
    "securityGroupInfo/item": (
        answers.security_group,
        "<groupId>sg-1</groupId><ipPermissions><item><ipProtocol>tcp</ipProtocol></item></ipPermissions>",
        ["groupId", "ipProtocol"],
    ),
    "networkInterfaceSet/item": (
        answers.interface,
        "<networkInterfaceId>eni-1</networkInterfaceId>",
        ["networkInterfaceId"],
    ),
    "addressesSet/item": (answers.address, "<publicIp>198.51.100.1</publicIp>", ["publicIp"]),
    "natGatewaySet/item": (
        answers.nat_gateway,
        "<natGatewayId>nat-1</natGatewayId><state>available</state><createTime>2026-10-01T12:00:00Z</createTime>",
        ["natGatewayId", "state", "createTime"],
    ),
    "launchTemplateVersionSet/item": (
        answers.launch_template,
        "<launchTemplateId>lt-1</launchTemplateId>",
        ["launchTemplateId"],
    ),
    "entrySet/item": (answers.range_of, "<cidr>10.0.0.0/8</cidr>", ["cidr"]),
}
LACKS = [(path, element) for path, (_, _, elements) in KINDS.items() for element in elements]


@pytest.mark.parametrize(("path", "element"), LACKS)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_an_item_that_lacks_what_all_have_is_named(path: str, element: str, how: str) -> None:
    """What is not there is not known, and neither is the rest: a default would be judged as if AWS had said it."""
    take, content, _ = KINDS[path]
    assert one(path, take, content)
    odd, times = re.subn(rf"<{element}>[^<]*</{element}>", "" if how == "missing" else f"<{element}/>", content)
    assert times == 1
    with pytest.raises(answers.UnexpectedAnswer) as refused:
        one(path, take, odd)
    assert re.fullmatch(rf"DescribeVolumes: [\w-]+( 1)? has no [\w/]*{element}\.", str(refused.value)), refused.value


def test_a_sentence_names_the_item_by_its_own_id() -> None:
    content = KINDS["snapshotSet/item"][1].replace("<status>completed</status>", "")
    with pytest.raises(answers.UnexpectedAnswer, match=r"^DescribeVolumes: snap-1 has no status\.$"):
        one("snapshotSet/item", answers.snapshot, content)


@pytest.mark.parametrize(
    ("path", "element", "text", "what"),
    [
        ("volumeSet/item", "size", "eight", "number"),
        ("snapshotSet/item", "volumeSize", "8.5", "number"),
        ("volumeSet/item", "createTime", "yesterday", "moment"),
        (RESERVED, "launchTime", "0000-00-00T00:00:00Z", "moment"),
        ("natGatewaySet/item", "createTime", "x" * 400, "moment"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(path: str, element: str, text: str, what: str) -> None:
    take, content, _ = KINDS[path]
    odd = re.sub(rf"<{element}>[^<]*<", f"<{element}>{text}<", content, count=1)
    with pytest.raises(
        answers.UnexpectedAnswer, match=rf"^DescribeVolumes: \S+ has a {element} that is no {what}: '"
    ) as refused:
        one(path, take, odd)
    assert len(str(refused.value)) < 200
