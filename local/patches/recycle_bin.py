"""The Recycle Bin for snapshots, which neither MiniStack nor moto has: its rules, and what they keep of EC2's.

What a rule covers does not vanish when it is deleted: it can be listed and restored. Retention never ends here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    """EC2's side of it: deleted snapshots are kept, listed and restored."""
    from moto.core.responses import ActionResult
    from moto.ec2.exceptions import InvalidSnapshotIdError
    from moto.ec2.models.elastic_block_store import EBSBackend
    from moto.ec2.responses import EC2Response

    delete = EBSBackend.delete_snapshot

    def kept(backend: Any) -> dict[str, tuple[Any, datetime]]:
        found: dict[str, tuple[Any, datetime]] = backend.__dict__.setdefault("recycle_bin", {})
        return found

    def delete_into_bin(backend: Any, snapshot_id: str) -> Any:
        snapshot = delete(backend, snapshot_id)
        rules = _rules.get((backend.account_id, backend.region_name), {}).values()
        if any(_covers(rule, dict(backend.tags[snapshot_id])) for rule in rules):
            kept(backend)[snapshot_id] = (snapshot, datetime.now(UTC))
        return snapshot

    def list_snapshots_in_recycle_bin(response: Any) -> Any:
        wanted = response._get_param("SnapshotIds", [])
        found = kept(response.ec2_backend)
        if set(wanted) - found.keys():
            raise InvalidSnapshotIdError
        listed = [
            {
                "SnapshotId": id_,
                "VolumeId": snapshot.volume_id,
                "Description": snapshot.description,
                "RecycleBinEnterTime": entered,
                "RecycleBinExitTime": entered + timedelta(days=7),
            }
            for id_, (snapshot, entered) in found.items()
            if not wanted or id_ in wanted
        ]
        return ActionResult({"Snapshots": listed})

    def restore_snapshot_from_recycle_bin(response: Any) -> Any:
        id_, backend = response._get_param("SnapshotId"), response.ec2_backend
        if id_ not in kept(backend):
            raise InvalidSnapshotIdError
        backend.snapshots[id_], _ = kept(backend).pop(id_)
        return ActionResult(backend.snapshots[id_])

    taught: dict[Any, Any] = {
        delete_into_bin: (EBSBackend, "delete_snapshot"),
        list_snapshots_in_recycle_bin: (EC2Response, "list_snapshots_in_recycle_bin"),
        restore_snapshot_from_recycle_bin: (EC2Response, "restore_snapshot_from_recycle_bin"),
    }
    for method, (class_, name) in taught.items():
        setattr(class_, name, method)


def _covers(rule: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    def has(pair: Mapping[str, str]) -> bool:
        key = pair["ResourceTagKey"]
        return key in tags and pair.get("ResourceTagValue", tags[key]) == tags[key]

    if rule["ResourceType"] != "EBS_SNAPSHOT":
        return False
    if wanted := rule.get("ResourceTags"):
        return any(map(has, wanted))
    return not any(map(has, rule.get("ExcludeResourceTags") or ()))


def _answer(status: int, value: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
