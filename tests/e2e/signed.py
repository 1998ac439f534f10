"""Requests to the deployed jobs API, signed as a client of AWS signs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from botocore.credentials import Credentials

from local.signed import Signature
from local.stack import REGION
from tests.e2e.deployed import Deployed


def as_somebody(stack: Deployed, *allowed: str, denied: Sequence[str] = ()) -> Signature:
    """A role of its own that may invoke these methods and paths of the API, such as `GET/api/*`, and nothing else; of
    these, none that are `denied`."""
    name, iam = f"e2e-{uuid4().hex[:8]}", stack.client("iam")
    api_id = stack.api_url.rpartition("/")[2]
    trust = policy(Effect="Allow", Principal={"AWS": "*"}, Action="sts:AssumeRole")
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    for effect, whats in (("Allow", allowed), ("Deny", denied)):
        if whats:
            resources = [f"arn:aws:execute-api:{REGION}:*:{api_id}/$default/{what}" for what in whats]
            document = policy(Effect=effect, Action="execute-api:Invoke", Resource=resources)
            iam.put_role_policy(RoleName=name, PolicyName=effect, PolicyDocument=document)
    keys = stack.client("sts").assume_role(RoleArn=role, RoleSessionName="e2e")["Credentials"]
    return Signature(Credentials(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"]))


def policy(**statement: Any) -> str:
    """A policy document of one statement."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
