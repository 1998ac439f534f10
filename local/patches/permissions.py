"""IAM: what a request acts on, and how it came in."""

from __future__ import annotations

import json
import re
from typing import Any


def apply() -> None:
    count_loopback_as_tls()
    name_the_schedule_group()
    name_the_statements_of_a_batch()
    name_the_role_of_a_session()


def count_loopback_as_tls() -> None:
    """The gateway speaks plain HTTP on 127.0.0.1; policies that demand TLS would deny everything."""
    from ministack import app
    from ministack.core.iam_evaluator import pin_request_origin

    assert app.pin_request_origin is pin_request_origin, "MiniStack pins a request's origin elsewhere"
    app.pin_request_origin = lambda source_ip, _: pin_request_origin(source_ip, True)


def name_the_schedule_group() -> None:
    """A schedule's ARN holds its group; MiniStack takes every schedule for one of the group `default`."""
    from ministack.core import iam_actions

    extract = iam_actions.extract_resource_arn

    def extract_with_group(service: str, method: str, path: str, *request: Any) -> str:
        arn: str = extract(service, method, path, *request)
        _headers, body, query_params, *_scope = request
        if service != "scheduler" or ":schedule/default/" not in arn:
            return arn
        group = json.loads(body)["GroupName"] if body and b'"GroupName"' in body else query_params.get("groupName")
        group = group[0] if isinstance(group, list) else group
        return arn.replace(":schedule/default/", f":schedule/{group or 'default'}/")

    iam_actions.extract_resource_arn = extract_with_group


def name_the_statements_of_a_batch() -> None:
    """AWS asks for `dynamodb:PartiQLUpdate` on the table of each UPDATE, and so on; MiniStack for an action of the
    request's name, which AWS does not have. Batches of other statements, which nothing here sends, stay denied."""
    from ministack.core import iam_actions

    checks = iam_actions.dynamodb_transaction_checks

    def checks_of_updates(action: str, body: bytes, region: str, account_id: str) -> list[tuple[str, str]]:
        if action != "dynamodb:BatchExecuteStatement":
            found: list[tuple[str, str]] = checks(action, body, region, account_id)
            return found
        statements = json.loads(body).get("Statements", [])
        known = [re.match(r'(UPDATE|DELETE FROM) "([^"]+)"', statement["Statement"]) for statement in statements]
        if not all(known):
            return []
        kinds = {"UPDATE": "dynamodb:PartiQLUpdate", "DELETE FROM": "dynamodb:PartiQLDelete"}
        needed = {(kinds[match[1]], match[2]) for match in known if match}
        return [(kind, iam_actions._dynamodb_table_arn(table, region, account_id)) for kind, table in needed]

    iam_actions.dynamodb_transaction_checks = checks_of_updates


def name_the_role_of_a_session() -> None:
    """`aws:PrincipalArn` is the role's ARN (IAM, "AWS global condition context keys"); MiniStack's is the session's."""
    from ministack.core import iam_evaluator

    resolve = iam_evaluator._resolve_condition_key

    def resolve_role(key: str, context: Any) -> Any:
        value = resolve(key, context)
        if key.lower() != "aws:principalarn":
            return value
        return re.sub(r"^arn:aws:sts::(\d+):assumed-role/([^/]+)/.*", r"arn:aws:iam::\1:role/\2", value)

    iam_evaluator._resolve_condition_key = resolve_role
