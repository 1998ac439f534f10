"""After a deploy: what MiniStack's CloudFormation drops from the template, applied through the services' own APIs.

Of the dropped properties this template has three: a table's time to live, applied here; point-in-time recovery and
bucket lifecycle rules, which MiniStack would store and never act on, so they are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def apply(client: Callable[[str], Any], stack_name: str) -> None:
    """Idempotent. `client` makes the boto3 client of a service."""
    cloudformation, dynamodb = client("cloudformation"), client("dynamodb")
    template = cloudformation.get_template(StackName=stack_name, TemplateStage="Processed")["TemplateBody"]
    resources = (template if isinstance(template, dict) else json.loads(template))["Resources"]
    for page in cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack_name):
        for resource in page["StackResourceSummaries"]:
            if resource["ResourceType"] != "AWS::DynamoDB::Table":
                continue
            specification = resources[resource["LogicalResourceId"]]["Properties"].get("TimeToLiveSpecification")
            table = resource["PhysicalResourceId"]
            if (
                specification
                and dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]["TimeToLiveStatus"]
                != "ENABLED"
            ):
                dynamodb.update_time_to_live(TableName=table, TimeToLiveSpecification=specification)
