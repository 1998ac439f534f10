"""An account for the benches of the cloud scan: moto, filled by `local.estate`, behind a cache that answers at once.

moto takes seconds for some of what AWS answers in tens of milliseconds, and its time would be most of what is
measured. So each answer is kept under its request without the moments in it, and the first run of each tool, which is
not measured, fills the cache. `python -m bench.cloud_stub` prints its port; `Account` is the bench's side of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from local.estate import Estate, Planted

ACCOUNT = "123456789012"  # moto's own, which any access key is of
REGION = "us-east-1"
SIZE = {"instances": 200, "volumes": 500, "snapshots": 500, "security_groups": 100}
MOMENTS = re.compile(
    rb"\xc1(?:\xfb.{8}|\xfa.{4}|\x1a.{4}|\x1b.{8})"  # CBOR: a number tagged as a moment
    rb"|\d{4}-\d\d-\d\dT\d\d(?::|%3A)\d\d(?::|%3A)\d\d(?:\.\d+)?(?:Z|\+00:00|%2B00%3A00)?"
    rb'|"(?:start|end)Time": ?[\d.]+',
    re.DOTALL | re.IGNORECASE,
)

NOT_IN_MOTO = (
    b"<Response><Errors><Error><Code>UnsupportedOperation</Code><Message>moto lacks it</Message></Error></Errors>"
    b"<RequestID>0</RequestID></Response>"
)


class Account:
    """The stub, as a bench sees it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def planted(self) -> list[Planted]:
        """What it holds, and what is wrong with it."""
        return [Planted.from_json(one) for one in self._ask("planted")]

    def begin(self, *, latency_ms: int) -> None:
        """Count from now on, and answer no sooner than after so long."""
        self._ask(f"begin?latency_ms={latency_ms}")

    def calls(self) -> Counter[str]:
        """How often each operation was asked for since."""
        return Counter(self._ask("calls"))

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/_bench/{what}") as answer:
            return json.load(answer)


@contextmanager
def account(*arguments: str, module: str = "bench.cloud_stub") -> Iterator[Account]:
    """An account in a process of its own, while the block runs; with `--specimens` it has one of each kind, too."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Account(int(process.stdout.readline()))
        finally:
            process.kill()


class Stub:
    """The server's side: moto, what it has answered before, and what it was asked."""

    def __init__(self, *, specimens: bool) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.test import Client

        self._estate = Estate(ACCOUNT, REGION, now=datetime.now(UTC))
        if specimens:
            self._estate.plant_specimens()
        self._estate.plant(**SIZE)
        _find_metrics_by_name()
        self._moto = Client(DomainDispatcherApplication(create_backend_app))
        self._answers: dict[tuple[object, ...], asyncio.Future[tuple[int, bytes, bytes]]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._calls = Counter[str]()
        self._latency = 0.0

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, bytes]:
        """Status, headers and content."""
        url = urlsplit(target)
        if url.path.startswith("/_bench/"):
            return 200, b"Content-Type: application/json\r\n", json.dumps(self._command(url.path, url.query)).encode()
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", headers.get("authorization", ""))
        operation = parse_qs(body.decode(errors="replace")).get("Action", [""])[0] or headers.get("x-amz-target", "")
        called = f"{scope[2] if scope else ''}:{operation.rpartition('.')[2] or url.path.rpartition('/')[2]}"
        self._calls[called] += 1
        answer, _ = await asyncio.gather(
            self._respond(called, method, target, headers, body), asyncio.sleep(self._latency)
        )
        return answer

    async def _respond(
        self, called: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, bytes]:
        key = (called, method, MOMENTS.sub(b"", target.encode()), MOMENTS.sub(b"", body))
        if key not in self._answers:
            self._answers[key] = asyncio.ensure_future(self._ask_moto(method, target, headers, body))
        return await self._answers[key]

    def _command(self, path: str, query: str) -> Any:
        match path.removeprefix("/_bench/"):
            case "planted":
                return [one.as_json() for one in self._estate.planted]
            case "begin":
                self._latency = int(parse_qs(query)["latency_ms"][0]) / 1000
                self._calls.clear()
            case "calls":
                return self._calls
        return None

    async def _ask_moto(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, bytes]:
        async with self._one_at_a_time:
            sent = {name: value for name, value in headers.items() if name not in ("content-length", "connection")}
            try:
                response = await asyncio.to_thread(self._moto.open, target, method=method, headers=sent, data=body)
            except NotImplementedError:  # where AWS would answer, and nobody would ask again
                return 400, b"Content-Type: text/xml\r\n", NOT_IN_MOTO
        kept = "".join(
            f"{name}: {value}\r\n"
            for name, value in response.headers.items()
            if name.lower() not in ("content-length", "connection", "server", "date")
        )
        return response.status_code, kept.encode("latin-1"), response.get_data()


def _find_metrics_by_name() -> None:
    """moto looks through all datapoints for each query and part of the window: many seconds for 500 queries."""
    from moto.backends import get_backend

    backend: Any = get_backend("cloudwatch")[ACCOUNT][REGION]
    found: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for datum in backend.metric_data:
        found[datum.name, *((one.name, one.value) for one in datum.dimensions)].append(datum)
    of_moto = type(backend).get_metric_data

    def get_metric_data(queries: list[Any], *window: Any, **more: Any) -> list[Any]:
        results = []
        for query in queries:
            metric = query["MetricStat"]["Metric"]
            dimensions = sorted((one["Name"], one["Value"]) for one in metric["Dimensions"])
            those = SimpleNamespace(get_all_metrics=lambda key=(metric["MetricName"], *dimensions): found[key])
            results += of_moto(those, [query], *window, **more)
        return results

    backend.get_metric_data = get_metric_data


async def serve(stub: Stub) -> None:
    """Until killed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *lines = head.rstrip().split("\r\n")
                method, target, _ = request.split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, more, content = await stub.answer(method, target, headers, body)
                writer.write(b"HTTP/1.1 %d OK\r\n%sContent-Length: %d\r\n\r\n" % (status, more, len(content)) + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Stub(specimens="--specimens" in sys.argv)))
