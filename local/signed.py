"""Requests to the jobs API of the local AWS, signed as a client of AWS signs them."""

from __future__ import annotations

from typing import Any

import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from requests.auth import AuthBase

from local.stack import REGION


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


class Api:
    """The deployed jobs API."""

    def __init__(self, url: str, signature: Signature | None = None) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.auth = signature or as_admin()

    def get(self, path: str, **query: Any) -> requests.Response:
        return self._session.get(self.url + path, params=query, timeout=35)

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        return self._session.post(self.url + path, json=body, headers=headers, timeout=35)
