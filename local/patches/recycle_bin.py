"""The Recycle Bin for snapshots and volumes, which neither MiniStack nor moto has: rules, and what they keep.

What a rule covers does not vanish when it is deleted: it can be listed and restored. Retention never ends here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from ministack.core.responses import get_account_id, get_region

_rules: Final[dict[tuple[str, str], dict[str, dict[str, Any]]]] = {}
"""By account and region."""


def apply() -> None:
    from ministack import app
    from ministack.core import iam_actions, router

    app.SERVICE_HANDLERS["rbin"] = handle
    router.SERVICE_PATTERNS["rbin"] = {"host_patterns": [r"rbin\."]}
    iam_actions.SERVICE_TO_IAM_NAMESPACE["rbin"] = "rbin"
    iam_actions._BOTOCORE_SERVICE_MAP["rbin"] = ["rbin"]
    extract = iam_actions.extract_resource_arn

    def extract_with_rules(service: str, method: str, path: str, *request: Any) -> str:
        if service == "rbin" and path.startswith("/rules/"):
            return f"arn:aws:rbin:{get_region()}:{get_account_id()}:rule/{path.removeprefix('/rules/')}"
        arn: str = extract(service, method, path, *request)
        return arn

    iam_actions.extract_resource_arn = extract_with_rules


async def handle(method: str, path: str, headers: Any, body: bytes, query_params: Any) -> Any:  # noqa: ARG001
    """CreateRule, ListRules, GetRule, DeleteRule."""
    rules = _rules.setdefault((get_account_id(), get_region()), {})
    given, id_ = json.loads(body or b"{}"), path.removeprefix("/rules/")
    if (method, path) == ("POST", "/rules"):
        id_ = uuid4().hex[:11]
        arn = f"arn:aws:rbin:{get_region()}:{get_account_id()}:rule/{id_}"
        rules[id_] = given | {"Identifier": id_, "RuleArn": arn, "Status": "available"}
        return _answer(201, rules[id_])
    if (method, path) == ("POST", "/list-rules"):
        names = ("Identifier", "Description", "RetentionPeriod", "RuleArn")
        found = [rule for rule in rules.values() if rule["ResourceType"] == given["ResourceType"]]
        return _answer(200, {"Rules": [{name: rule[name] for name in names if name in rule} for rule in found]})
    if id_ not in rules:
        return _answer(404, {"__type": "ResourceNotFoundException", "Message": f"Rule not found: {id_}"})
    return _answer(204, rules.pop(id_)) if method == "DELETE" else _answer(200, rules[id_])


def teach_moto() -> None:
    """EC2's side of it: deleted snapshots and volumes are kept, listed and restored."""
    from moto.ec2.exceptions import InvalidSnapshotIdError, InvalidVolumeIdError

    _teach("Snapshot", lambda _id: InvalidSnapshotIdError())
    _teach("Volume", InvalidVolumeIdError)


def _teach(kind: str, absent: Callable[[str], Exception]) -> None:
    from moto.core.responses import ActionResult
    from moto.ec2.models.elastic_block_store import EBSBackend
    from moto.ec2.responses import EC2Response

    name, type_ = kind.lower(), f"EBS_{kind.upper()}"
    delete = getattr(EBSBackend, f"delete_{name}")

    def kept(backend: Any) -> dict[str, tuple[Any, datetime]]:
        found: dict[str, tuple[Any, datetime]] = backend.__dict__.setdefault(f"recycle_bin_{name}s", {})
        return found

    def delete_into_bin(backend: Any, id_: str) -> Any:
        deleted = delete(backend, id_)
        rules = _rules.get((backend.account_id, backend.region_name), {}).values()
        if any(rule["ResourceType"] == type_ and _covers(rule, dict(backend.tags[id_])) for rule in rules):
            kept(backend)[id_] = (deleted, datetime.now(UTC))
        return deleted

    def list_in_recycle_bin(response: Any) -> Any:
        wanted = response._get_param(f"{kind}Ids", [])
        found = kept(response.ec2_backend)
        for id_ in set(wanted) - found.keys():
            raise absent(id_)
        listed = [
            {
                f"{kind}Id": id_,
                "RecycleBinEnterTime": entered,
                "RecycleBinExitTime": entered + timedelta(days=7),
            }
            for id_, (_, entered) in found.items()
            if not wanted or id_ in wanted
        ]
        return ActionResult({f"{kind}s": listed})

    def restore_from_recycle_bin(response: Any) -> Any:
        id_, backend = response._get_param(f"{kind}Id"), response.ec2_backend
        if id_ not in kept(backend):
            raise absent(id_)
        restored, _ = kept(backend).pop(id_)
        getattr(backend, f"{name}s")[id_] = restored
        return ActionResult(restored if kind == "Snapshot" else {"Return": True})

    setattr(EBSBackend, f"delete_{name}", delete_into_bin)
    setattr(EC2Response, f"list_{name}s_in_recycle_bin", list_in_recycle_bin)
    setattr(EC2Response, f"restore_{name}_from_recycle_bin", restore_from_recycle_bin)


def _covers(rule: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    def has(pair: Mapping[str, str]) -> bool:
        key = pair["ResourceTagKey"]
        return key in tags and pair.get("ResourceTagValue", tags[key]) == tags[key]

    if wanted := rule.get("ResourceTags"):
        return any(map(has, wanted))
    return not any(map(has, rule.get("ExcludeResourceTags") or ()))


def _answer(status: int, value: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
