"""An AWS cloud by moto, behind a front that writes down what it is asked for and refuses what a test wants refused."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

from moto import settings
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
"""moto's own, which any access key is of."""
REGION = "us-east-1"


class Cloud:
    """The server; `asked` has the operations in the order in which they came."""

    def __init__(self) -> None:
        settings.ec2_load_default_amis = lambda: False  # hundreds, which take seconds
        self.asked: list[str] = []
        self.requests: list[dict[str, list[str]]] = []
        """The parameters of those that have them in a form."""
        self.refusals: dict[str, tuple[int, str, int]] = {}
        """By operation or region: the status, the error code, and how many times it is still given."""
        self.strangers: set[str] = set()
        """The regions that do not say either who asks."""
        self.page_size: int | None = None
        """How many items pages have, whatever is asked for."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def refuse(self, operation: str, code: str, *, status: int = 403, times: int = 1_000) -> None:
        """From now on, answer an operation with an error."""
        self.refusals[operation] = (status, code, times)

    def refuse_in(self, region: str, code: str, *, who_asks: bool = False) -> None:
        """From now on, answer everything with an error that is asked of a region, but who asks, unless that, too."""
        self.refusals[region] = (403, code, 1_000)
        if who_asks:
            self.strangers.add(region)

    def calls(self) -> Counter[str]:
        """How often each operation was asked for."""
        return Counter(self.asked)

    def reset(self) -> None:
        """Forget everything."""
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST"), timeout=30).read()
        self.asked.clear()
        self.requests.clear()
        self.refusals.clear()
        self.strangers.clear()
        self.page_size = None

    def stop(self) -> None:
        self._server.shutdown()

    def stopped(self, instance_id: str, *, ago: timedelta) -> datetime:
        """Let an instance have been stopped so long ago; when that was, to the second."""
        at = datetime.now(UTC).replace(microsecond=0) - ago
        found = get_backend("ec2")[ACCOUNT][REGION].get_instance(instance_id)
        found.stop()
        found._reason = f"User initiated ({at:%Y-%m-%d %H:%M:%S} GMT)"
        return at

    def give_away(self, image_id: str) -> None:
        """Let an image be another account's, shared with this one."""
        found = get_backend("ec2")[ACCOUNT][REGION].amis[image_id]
        found.owner_id = "999999999999"
        found.launch_permissions.append({"Group": "all"})

    def measured(
        self, namespace: str, name: str, dimensions: dict[str, str], points: Iterable[tuple[datetime, float]]
    ) -> None:
        """Let a metric have datapoints."""
        from moto.cloudwatch.models import MetricDatum

        get_backend("cloudwatch")[ACCOUNT][REGION].metric_data += [
            MetricDatum(
                namespace=namespace,
                name=name,
                value=value,
                dimensions=[{"Name": key, "Value": said} for key, said in dimensions.items()],
                timestamp=at.replace(tzinfo=None),  # moto reckons in naive UTC
                unit=None,
            )
            for at, value in points
        ]

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        form = parse_qs(body.decode(errors="replace"))
        target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        operation = (form.get("Action") or [target or environ["PATH_INFO"].rpartition("/")[2]])[0]
        with self._lock:
            if environ["PATH_INFO"] != "/moto-api/reset":
                self.asked.append(operation)
                self.requests.append(form)
            place, scope = operation, _scope(environ)
            if scope in self.refusals and (operation != "GetCallerIdentity" or scope in self.strangers):
                place = scope
            status, code, times = self.refusals.get(place, (0, "", 0))
            self.refusals[place] = (status, code, times - 1)
        if times > 0:
            return _refusal(start_response, status, code, in_json=bool(target) or "/operation/" in environ["PATH_INFO"])
        if self.page_size:
            body = re.sub(rb"MaxResults=\d+", b"MaxResults=%d" % self.page_size, body)
        environ |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return self._moto(environ, start_response)


def _scope(environ: dict[str, Any]) -> str:
    """The region that a request is signed for."""
    found = re.search(r"Credential=[^/]+/\d+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found[1] if found else ""


def _refusal(start_response: Callable[..., Any], status: int, code: str, *, in_json: bool) -> list[bytes]:
    """An error as EC2 writes it, or as services that speak JSON or CBOR do."""
    if in_json:
        start_response(f"{status} Refused", [("Content-Type", "application/json"), ("x-amzn-query-error", f"{code};")])
        return [json.dumps({"__type": code, "message": "The test says so."}).encode()]
    start_response(f"{status} Refused", [("Content-Type", "text/xml")])
    error = f"<Error><Code>{code}</Code><Message>The test says so.</Message></Error>"
    return [f"<Response><Errors>{error}</Errors></Response>".encode()]
