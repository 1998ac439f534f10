"""Does what a deployment asks for beyond resources: the database's schema, and the protection of the job table.

Two custom resources of the template end here. This function is outside the VPC. So CloudFormation gets its answer even
where the functions within the VPC reach nothing: without one a failed deployment could not roll back.

The job table is protected by this and not by its own property. A protected table cannot be deleted, so a first
deployment that fails after the table would end in ROLLBACK_FAILED.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from aws_lambda_powertools import Logger

from lamplighter.jobs import custom_resource
from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import json_object

logger = Logger()

MIGRATION_SECONDS: Final = 305
"""How long the answer of `migrate` is waited for: its own timeout, and a little."""
ROLLING_BACK: Final = ("ROLLBACK_IN_PROGRESS", "ROLLBACK_FAILED")
"""States of a stack whose first deployment failed."""


def handler(event: object, context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Serve a request of CloudFormation. Manually, `{}` says whether the job table is protected.

    Raises:
        Permanent: the event has another shape.
    """
    event = json_object(event, "nothing, or a request of CloudFormation")
    if not custom_resource.is_request(event):
        json_object(event, "nothing", ())
        return {"protected": _is_protected()}
    if event.get("ResourceType") == "Custom::Protection":
        return custom_resource.serve(event, physical_id="protection", work=_protect, undo=_unprotect)
    return custom_resource.serve(event, physical_id="schema", work=lambda _: _migrate())


def _migrate() -> dict[str, Any]:
    """Have `migrate` bring the schema up to date, and give its answer.

    Raises:
        Permanent: the migration failed, with its sentence.
    """
    import boto3
    from botocore.config import Config

    # Once: a second call would wait for the first one's lock.
    config = Config(read_timeout=MIGRATION_SECONDS, connect_timeout=3, retries={"total_max_attempts": 1})
    found = boto3.client("lambda", config=config).invoke(
        FunctionName=f"{os.environ['STACK_NAME']}-migrate", Payload=b"{}"
    )
    answer = json.loads(found["Payload"].read() or b"{}")
    if "FunctionError" in found:
        said = str(answer.get("errorMessage", answer))
        if "Task timed out" in said:
            said += ". Do the security groups and subnets let the functions reach the database?"
        raise Permanent(f"migrate: {said}")
    return dict(answer)


def _protect(properties: Mapping[str, Any]) -> dict[str, Any]:
    wanted = properties.get("Enabled")
    if wanted not in ("true", "false"):
        raise Permanent(f"Enabled: takes true or false, got {wanted!r}.")
    _set_protection(wanted == "true")
    return {}


def _unprotect(event: Mapping[str, Any]) -> None:
    """Let a first deployment that failed delete the table; a stack that is deleted leaves it, protected."""
    stack = client("cloudformation").describe_stacks(StackName=event["StackId"])["Stacks"][0]
    if stack["StackStatus"] in ROLLING_BACK:
        _set_protection(False)


def _is_protected() -> bool:
    table = client("dynamodb").describe_table(TableName=os.environ["JOBS_TABLE"])["Table"]
    return bool(table.get("DeletionProtectionEnabled", False))


def _set_protection(wanted: bool) -> None:
    if _is_protected() != wanted:
        client("dynamodb").update_table(TableName=os.environ["JOBS_TABLE"], DeletionProtectionEnabled=wanted)
        logger.info("the protection of the job table changed", extra={"protected": wanted})
