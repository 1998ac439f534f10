"""Requests to the deployed jobs API, signed as a client of AWS signs them."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from requests.auth import AuthBase

from local.stack import REGION
from tests.e2e.deployed import Deployed


class Signature(AuthBase):
    """AWS Signature Version 4, put on at the last moment."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._signer = SigV4Auth(credentials, "execute-api", REGION)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        told = {name: request.headers[name] for name in ("Content-Type",) if name in request.headers}
        signed = AWSRequest(method=request.method, url=request.url, data=request.body, headers=told)
        self._signer.add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        return request


def as_admin() -> Signature:
    """Who may do everything."""
    return Signature(Credentials("test", "test"))


def as_somebody(stack: Deployed, *allowed: str) -> Signature:
    """A role of its own that may invoke these methods and paths of the API, such as `GET/api/*`, and nothing else."""
    name, iam = f"e2e-{uuid4().hex[:8]}", stack.client("iam")
    api_id = stack.api_url.rpartition("/")[2]
    trust = policy(Effect="Allow", Principal={"AWS": "*"}, Action="sts:AssumeRole")
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    if allowed:
        resources = [f"arn:aws:execute-api:{REGION}:*:{api_id}/$default/{what}" for what in allowed]
        document = policy(Effect="Allow", Action="execute-api:Invoke", Resource=resources)
        iam.put_role_policy(RoleName=name, PolicyName="api", PolicyDocument=document)
    keys = stack.client("sts").assume_role(RoleArn=role, RoleSessionName="e2e")["Credentials"]
    return Signature(Credentials(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"]))


def policy(**statement: Any) -> str:
    """A policy document of one statement."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class Api:
    """The deployed jobs API."""

    def __init__(self, stack: Deployed, signature: Signature | None = None) -> None:
        self.url = stack.api_url
        self._session = requests.Session()
        self._session.auth = signature or as_admin()

    def get(self, path: str, **query: Any) -> requests.Response:
        return self._session.get(self.url + path, params=query, timeout=35)

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        return self._session.post(self.url + path, json=body, headers=headers, timeout=35)
