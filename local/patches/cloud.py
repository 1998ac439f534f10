"""EC2 and Elastic Load Balancing: answered by moto, with accounts that have a past.

MiniStack's own do not say when an instance was stopped, and nothing in them can be older than the server. So the
gateway, which has checked the caller's permissions by then, hands these services' requests to moto in this process.
CloudWatch and Logs stay MiniStack's: functions write there, too.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import alb, cloudwatch, cloudwatch_logs, ec2

from local.cloud import BORN, HOME, LASTS, MEMBER, PLANTED, REGIONS
from local.estate import Estate
from local.patches import recycle_bin


def apply() -> None:
    answer_from_moto(ThreadPoolExecutor(1).submit(plant))  # moto takes a second or two to load
    name_resources_as_aws_does()
    know_tags_of_moto()


def answer_from_moto(planted: Future[None]) -> None:
    """In the account that the caller's credentials are of, which the gateway has found out."""
    one_at_a_time = threading.Lock()  # moto's backends are plain dictionaries

    @cache
    def moto() -> Any:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.test import Client

        planted.result()
        recycle_bin.teach_moto()
        let_things_be_old()
        return Client(DomainDispatcherApplication(create_backend_app))

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        sent = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        account = {"x-moto-account-id": get_account_id()}
        with one_at_a_time:
            response = moto().open(path, method=method, headers={**sent, **account}, data=body)
        return response.status_code, dict(response.headers), response.get_data()

    async def handle(method: str, path: str, headers: Any, body: bytes, query_params: Any) -> Any:  # noqa: ARG001
        return await asyncio.to_thread(answer, method, path, headers, body)

    for service in (ec2, alb):
        assert hasattr(service, "handle_request"), f"MiniStack's {service.__name__} handles requests elsewhere"
        service.handle_request = handle


def let_things_be_old() -> None:
    """An instance, a volume or a snapshot that is given the tag `BORN` by CreateTags is as old as that says."""
    from moto.ec2 import responses

    class_: Any = responses.EC2Response
    create_tags = class_.create_tags

    def create_tags_and_age(response: Any) -> Any:
        answer = create_tags(response)
        backend, given = response.ec2_backend, {tag["Key"]: tag["Value"] for tag in response._get_param("Tags", [])}
        for id_ in response._get_param("Resources", []) if BORN in given else ():
            born = datetime.fromisoformat(given[BORN]).astimezone(UTC).replace(tzinfo=None)  # moto reckons in naive UTC
            if id_.startswith("i-"):
                backend.get_instance(id_).launch_time = born
            elif id_.startswith("vol-"):
                backend.volumes[id_].create_time = born
            else:
                backend.snapshots[id_].start_time = born
        return answer

    class_.create_tags = create_tags_and_age


def name_resources_as_aws_does() -> None:
    """MiniStack looks neither at what is tagged nor at prefix lists, puts an account into the ARNs of snapshots and
    images, and takes listing log groups for a request that can be granted on `*` alone."""
    from ministack.core import iam_actions

    extract = iam_actions.extract_resource_arn
    kinds = {
        "ami": "image",
        "i": "instance",
        "pl": "prefix-list",
        "sg": "security-group",
        "snap": "snapshot",
        "vol": "volume",
    }

    def extract_as_aws_does(service: str, method: str, path: str, *request: Any) -> str:
        arn: str = extract(service, method, path, *request)
        _headers, _body, parameters, region, account = request
        if service == "logs" and arn == "*":
            return f"arn:aws:logs:{region}:{account}:log-group:"
        if service != "ec2":
            return arn
        if arn == "*" and (named := parameters.get("ResourceId.1") or parameters.get("PrefixListId")):
            id_ = named[0] if isinstance(named, list) else named
            arn = f"arn:aws:ec2:{region}:{account}:{kinds.get(id_.partition('-')[0], '*')}/{id_}"
        return re.sub(r":\d{12}:(?=(snapshot|image)/)", "::", arn)

    iam_actions.extract_resource_arn = extract_as_aws_does


def know_tags_of_moto() -> None:
    """For policies with a condition on `aws:ResourceTag`."""
    from ministack.services import tagging

    tags_of = tagging.resource_tags

    def tags_in_moto(arn: str) -> dict[str, str] | None:
        if not arn.startswith("arn:aws:ec2:"):
            found: dict[str, str] | None = tags_of(arn)
            return found
        from moto.backends import get_backend

        return dict(get_backend("ec2")[get_account_id()][get_region()].tags[arn.rpartition("/")[2]])

    tagging.resource_tags = tags_in_moto


def plant() -> None:
    """Fill the demo accounts, and write down what there is."""
    now = datetime.now(UTC)
    planted = []
    for account in (HOME, MEMBER):
        for region in REGIONS:
            estate = _Estate(account, region, now=now)
            estate.plant_specimens()
            planted += [one.as_json() for one in estate.planted]
    listing = Path(tempfile.gettempdir()) / PLANTED
    partial = listing.with_suffix(".partial")
    partial.write_text(json.dumps(planted))
    partial.rename(listing)


class _Estate(Estate):
    """One whose metrics and logs are in MiniStack. What its metrics were they are again for as long as it `LASTS`."""

    def _keep_metric(
        self, namespace: str, name: str, dimensions: Mapping[str, str], points: Sequence[tuple[datetime, float]]
    ) -> None:
        key = (namespace, name, cloudwatch._dims_key(dimensions))
        newest = max((moment for moment, _ in points), default=None)
        again = [(moment + LASTS, value) for moment, value in points if newest and moment + LASTS > newest]
        data = [
            {
                "Timestamp": moment.replace(tzinfo=UTC).timestamp(),
                "Value": value,
                "Unit": "None",
                "Dimensions": dict(dimensions),
            }
            for moment, value in (*points, *again)
        ]
        if data:
            cloudwatch._metrics.set_scoped(self.account, self.region, key, data)

    def _keep_log_group(self, name: str, created: datetime, retention: int | None, size: int) -> None:
        # Of a log event, only the message's length counts; so many bytes need not be there.
        everything = {"events": [{"timestamp": 0, "ingestionTime": 0, "message": range(size)}]}
        group = {
            "arn": f"arn:aws:logs:{self.region}:{self.account}:log-group:{name}:*",
            "creationTime": int(created.replace(tzinfo=UTC).timestamp() * 1000),
            "retentionInDays": retention,
            "logGroupClass": "STANDARD",
            "kmsKeyId": None,
            "tags": {},
            "subscriptionFilters": {},
            "streams": {"all": everything},
        }
        cloudwatch_logs._log_groups.set_scoped(self.account, self.region, name, group)
