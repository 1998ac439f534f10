"""Each function can do what its job needs, which the other tests show, and no more (least privilege)."""

from __future__ import annotations

from typing import Any

import pytest
from boto3.session import Session
from botocore.exceptions import ClientError

from lamplighter.catalogue import NAMES
from local.signed import Api
from local.stack import REGION
from tests.e2e.deployed import Deployed
from tests.e2e.signed import as_somebody

READ_ROW = ("dynamodb", "get_item", {"TableName": "{table}", "Key": {"pk": {"S": "JOB#x"}}})
SCAN = ("dynamodb", "scan", {"TableName": "{table}"})
LIST_MEDIA = ("s3", "list_objects_v2", {"Bucket": "{media}"})
READ_MEDIA = ("s3", "get_object", {"Bucket": "{media}", "Key": "x"})
WRITE_MEDIA = ("s3", "put_object", {"Bucket": "{media}", "Key": "x", "Body": b""})
DELETE_MEDIA = ("s3", "delete_object", {"Bucket": "{media}", "Key": "x"})
DELETE_VERSION = ("s3", "delete_object", {"Bucket": "{media}", "Key": "x", "VersionId": "v"})
DELETE_ARCHIVED = ("s3", "delete_object", {"Bucket": "{archive}", "Key": "x"})
READ_ARCHIVED = ("s3", "get_object", {"Bucket": "{archive}", "Key": "x"})
DELETE_AUDIT = ("s3", "delete_object", {"Bucket": "{archive}", "Key": "audit/x"})
DELETE_UPLOAD = ("s3", "delete_object", {"Bucket": "{uploads}", "Key": "x"})
WRITE_INPUT = ("s3", "put_object", {"Bucket": "{uploads}", "Key": "inputs/x", "Body": b""})
WRITE_OUTPUT = ("s3", "put_object", {"Bucket": "{uploads}", "Key": "outputs/x", "Body": b""})
READ_INPUT = ("s3", "get_object", {"Bucket": "{uploads}", "Key": "inputs/x"})
INVOKE = ("lambda", "invoke", {"FunctionName": "{name}-orphan-cleanup", "Payload": "{{}}"})
INVOKE_CHECKER = ("lambda", "invoke", {"FunctionName": "{name}-timeout-checker", "Payload": "{{}}"})
START_INSTANCE = ("ec2", "start_instances", {"InstanceIds": ["i-0123456789abcdef0"]})
DESCRIBE = ("ec2", "describe_instances", {})
TAG = ("ec2", "create_tags", {"Resources": ["i-0123456789abcdef0"], "Tags": [{"Key": "k", "Value": "v"}]})
STOP_INSTANCE = ("ec2", "stop_instances", {"InstanceIds": ["i-0123456789abcdef0"]})
TERMINATE = ("ec2", "terminate_instances", {"InstanceIds": ["i-0123456789abcdef0"]})
PUBLISH = ("sns", "publish", {"TopicArn": "{topic}", "Message": "x"})
SETTINGS = ("ssm", "get_parameter", {"Name": "{parameter}"})
OVERRIDE = ("ssm", "put_parameter", {"Name": "{parameter}", "Value": "{{}}", "Overwrite": True})
CHANGE_SCHEDULE = ("scheduler", "delete_schedule", {"GroupName": "{group}", "Name": "{name}-orphan-cleanup"})
OTHER_MACHINE = (
    "stepfunctions",
    "start_execution",
    {"stateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:somebody-elses"},
)

FORBIDDEN = {
    "preflight": [
        READ_MEDIA,
        WRITE_MEDIA,
        DELETE_MEDIA,
        DELETE_VERSION,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        READ_INPUT,
        WRITE_INPUT,
        DELETE_UPLOAD,
        DESCRIBE,
        STOP_INSTANCE,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "orphan-cleanup": [DELETE_VERSION, WRITE_MEDIA, DELETE_ARCHIVED, DELETE_UPLOAD, SCAN, INVOKE, SETTINGS, OVERRIDE],
    "undo": [DELETE_MEDIA, WRITE_MEDIA, DELETE_ARCHIVED, SCAN, INVOKE, SETTINGS, OVERRIDE],
    "audit-archive": [
        LIST_MEDIA,
        READ_MEDIA,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        DELETE_AUDIT,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "upload-intake": [
        READ_INPUT,
        WRITE_INPUT,
        DELETE_UPLOAD,
        LIST_MEDIA,
        READ_ARCHIVED,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "upload-processing": [
        WRITE_INPUT,
        DELETE_UPLOAD,
        LIST_MEDIA,
        DELETE_MEDIA,
        READ_ARCHIVED,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "upload-expiry": [
        WRITE_INPUT,
        WRITE_OUTPUT,
        DELETE_UPLOAD,
        DELETE_MEDIA,
        READ_ARCHIVED,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "cloud-scan": [
        LIST_MEDIA,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        DESCRIBE,
        STOP_INSTANCE,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "cloud-region": [
        LIST_MEDIA,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        TAG,
        STOP_INSTANCE,
        TERMINATE,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "cloud-actions": [
        LIST_MEDIA,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        START_INSTANCE,
        TERMINATE,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "cloud-undo": [
        LIST_MEDIA,
        READ_ARCHIVED,
        DELETE_ARCHIVED,
        STOP_INSTANCE,
        TERMINATE,
        SCAN,
        INVOKE,
        SETTINGS,
        OVERRIDE,
    ],
    "cleanup": [LIST_MEDIA, READ_MEDIA, DELETE_MEDIA, READ_ARCHIVED, DELETE_UPLOAD, SCAN, INVOKE, SETTINGS, OVERRIDE],
    "dispatcher": [LIST_MEDIA, READ_MEDIA, DELETE_MEDIA, READ_ARCHIVED, SCAN, INVOKE_CHECKER, OTHER_MACHINE, SETTINGS],
    "timeout-checker": [
        LIST_MEDIA,
        READ_MEDIA,
        DELETE_MEDIA,
        DELETE_ARCHIVED,
        SCAN,
        INVOKE,
        OTHER_MACHINE,
        CHANGE_SCHEDULE,
        OVERRIDE,
    ],
    "settings": [LIST_MEDIA, READ_MEDIA, DELETE_MEDIA, DELETE_ARCHIVED, SCAN, INVOKE, CHANGE_SCHEDULE, OVERRIDE],
    "history": [READ_ROW, INVOKE, LIST_MEDIA, DELETE_MEDIA, PUBLISH, SETTINGS],
    "schedule-watch": [LIST_MEDIA, DELETE_MEDIA, SCAN, INVOKE, CHANGE_SCHEDULE, SETTINGS, OVERRIDE],
    "schedules": [LIST_MEDIA, DELETE_MEDIA, SCAN, INVOKE, CHANGE_SCHEDULE, SETTINGS, OVERRIDE],
    "job-control": [LIST_MEDIA, DELETE_MEDIA, READ_ARCHIVED, SCAN, INVOKE, SETTINGS, OVERRIDE],
    "api": [LIST_MEDIA, DELETE_MEDIA, READ_ARCHIVED, DELETE_UPLOAD, SCAN, INVOKE, CHANGE_SCHEDULE, SETTINGS, OVERRIDE],
    "deployment": [READ_ROW, LIST_MEDIA, DELETE_MEDIA, SCAN, INVOKE, CHANGE_SCHEDULE, PUBLISH, SETTINGS, OVERRIDE],
    "migrate": [READ_ROW, LIST_MEDIA, DELETE_MEDIA, INVOKE, PUBLISH, SETTINGS],
}


@pytest.mark.parametrize("function", FORBIDDEN)
def test_a_function_cannot_do_what_is_not_its_job(stack: Deployed, function: str) -> None:
    """Real calls, with the credentials of the function's own role."""
    session = as_function(stack, function)
    allowed = []
    for service, operation, request in FORBIDDEN[function]:
        client = session.client(service, endpoint_url=stack.aws.endpoint_url)
        try:
            getattr(client, operation)(**_filled(stack, request))
        except ClientError as error:
            if error.response["Error"]["Code"].startswith(
                ("AccessDenied", "AuthorizationError", "UnauthorizedOperation")
            ):
                continue
            raise
        allowed.append(f"{service}.{operation}({request})")
    assert allowed == []


def test_every_function_is_in_the_table(stack: Deployed) -> None:
    """A new function has to say what it may not do."""
    pages = stack.client("lambda").get_paginator("list_functions").paginate()
    names = {function["FunctionName"] for page in pages for function in page["Functions"]}
    assert {name.removeprefix(f"{stack.name}-") for name in names if name.startswith(stack.name)} == set(FORBIDDEN)


def test_a_policy_allows_one_job_type_and_no_other(stack: Deployed) -> None:
    """REQUIREMENTS S2: each job type has a path of its own."""
    api = Api(stack.api_url, as_somebody(stack, "POST/api/jobs/run/cleanup"))
    refused = {name: api.post(f"/api/jobs/run/{name}").status_code for name in NAMES if name != "cleanup"}
    assert refused == dict.fromkeys(refused, 403)
    assert len(refused) == len(NAMES) - 1 >= 12
    for path in ("/api/jobs/run", "/api/jobs/preview", "/api/jobs", "/api/undo", "/api/jobs/run/cleanup/x"):
        assert api.post(path, {"job_type": "cleanup"}).status_code == 403
    for path in ("/api/jobs/run/cleanup%2f..%2forphan_cleanup", "/api/jobs/run/cleanup/../orphan_cleanup"):
        assert api.post(path).status_code in (403, 404)
    started = api.post("/api/jobs/run/cleanup", {"params": {"phases": ["plans"], "dry_run": True}})
    assert started.status_code == 202, started.text
    stack.becomes(started.json()["job_id"], "completed")
    assert api.get(f"/api/jobs/{started.json()['job_id']}").status_code == 403


def test_a_policy_denies_one_job_type_and_the_route_that_names_it_in_the_body(stack: Deployed) -> None:
    """As docs/api.md says: a Deny of one path needs a Deny of the generic routes."""
    denied = ("POST/api/jobs/run", "POST/api/jobs/run/orphan_cleanup")
    api = Api(stack.api_url, as_somebody(stack, "*/api/*", denied=denied))
    assert api.post("/api/jobs/run/orphan_cleanup").status_code == 403
    assert api.post("/api/jobs/run", {"job_type": "orphan_cleanup"}).status_code == 403
    assert api.post("/api/jobs/run/cleanup", {"params": {"no parameter": 1}}).status_code == 422
    assert api.get("/api/jobs").status_code == 200


def _role(stack: Deployed, function: str) -> str:
    configuration = stack.client("lambda").get_function_configuration(FunctionName=f"{stack.name}-{function}")
    return str(configuration["Role"])


def as_function(stack: Deployed, function: str) -> Session:
    answer = stack.client("sts").assume_role(RoleArn=_role(stack, function), RoleSessionName="e2e")["Credentials"]
    keys = (answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])
    return Session(*keys, region_name=REGION)


def _filled(stack: Deployed, request: dict[str, Any]) -> dict[str, Any]:
    """The request with the stack's names in it."""
    return {name: value.format(**vars(stack)) if isinstance(value, str) else value for name, value in request.items()}
