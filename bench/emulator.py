"""A function started cold under the runtime emulator that SAM CLI ships, as a plain process: no Docker.

The emulator (`aws-lambda-rie`) starts AWS's runtime client (`awslambdaric`) in a bare Python, whose path holds what
Lambda's would: the function's code, the layer, the client. It then tells how long INIT took, and each invocation.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from local.stack import ROOT

CLIENT: Final = "awslambdaric==4.2.2"

_INIT: Final = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
_INVOKED: Final = re.compile(r"INVOKE RTDONE\(.*duration: ([\d.]+)ms\)")


class Emulated:
    """A function in its emulator."""

    def __init__(self, url: str, log: Path, process: psutil.Process) -> None:
        self._url, self._log, self._process = url, log, process

    def invoke(self, event: Any, *, may_fail: bool = False) -> Any:
        """What the function answers. Raises RuntimeError with the log's end when it fails, unless it `may_fail`."""
        request = Request(f"{self._url}/2015-03-31/functions/function/invocations", json.dumps(event).encode())
        try:
            with urlopen(request, timeout=60) as response:
                answer = json.loads(response.read() or "null")
        except HTTPError as error:  # it did not even start
            raise RuntimeError(f"{error}\n{self._log.read_text()[-3000:]}") from None
        if isinstance(answer, dict) and "errorType" in answer and not may_fail:
            raise RuntimeError(f"{answer}\n{self._log.read_text()[-3000:]}")
        return answer

    @property
    def init_ms(self) -> float:
        """How long INIT took."""
        return float(self._figures(_INIT, 1)[0])

    def invocations_ms(self, count: int) -> list[float]:
        """How long each of the `count` invocations so far took."""
        return self._figures(_INVOKED, count)

    def cpu_ms(self) -> float:
        """Processor time of the function's process so far."""
        times = self._process.children()[0].cpu_times()
        return float(times.user + times.system) * 1000

    @property
    def log_bytes(self) -> int:
        """How much the function has logged so far."""
        return sum(map(len, self._logged()))

    def metrics(self) -> set[tuple[str, ...]]:
        """The metrics that the function has logged so far, each by its name and the values of its dimensions."""
        found = set()
        for line in self._logged():
            entry = json.loads(line)
            for metric in entry.get("_aws", {}).get("CloudWatchMetrics", ()):
                for dimensions in metric["Dimensions"]:
                    values = [entry[name] for name in dimensions]
                    found |= {(each["Name"], *values) for each in metric["Metrics"]}
        return found

    def _logged(self) -> list[bytes]:
        return [line for line in self._log.read_bytes().splitlines() if line.startswith(b"{")]

    def _figures(self, pattern: re.Pattern[str], count: int) -> list[float]:
        for _ in range(100):  # the emulator answers before it has logged
            found = pattern.findall(self._log.read_text())
            if len(found) >= count:
                return [float(figure) for figure in found]
            time.sleep(0.01)
        raise RuntimeError(f"The emulator did not tell its figures:\n{self._log.read_text()[-3000:]}")


@contextmanager
def emulated(handler: str, path: list[Path], environment: Mapping[str, str]) -> Iterator[Emulated]:
    """The function `handler` in a fresh emulator; `path` is where Lambda would look for modules, in its order."""
    port, api_port = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    _emulator(),
                    f"--runtime-interface-emulator-address=127.0.0.1:{port}",
                    f"--runtime-api-address=127.0.0.1:{api_port}",
                    *(
                        getattr(sys, "_base_executable", sys.executable),
                        "-s",
                        Path(__file__).with_name("lambda_bootstrap.py"),
                        handler,
                    ),
                ],
                stdout=output,
                stderr=output,
                cwd=directory,
                start_new_session=True,
                env={
                    "PATH": os.environ["PATH"],
                    "BENCH_PATH": os.pathsep.join(map(str, [*path, _client()])),
                    "PYTHONDONTWRITEBYTECODE": "1",  # Lambda's disk is read-only
                    "AWS_LAMBDA_FUNCTION_NAME": "function",
                    "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
                    "AWS_LAMBDA_LOG_FORMAT": "JSON",
                    **environment,
                },
            )
        try:
            _wait_for(port)
            yield Emulated(f"http://127.0.0.1:{port}", log, psutil.Process(process.pid))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _emulator() -> Path:
    import samcli.local.rapid

    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    return Path(next(iter(samcli.local.rapid.__path__))) / f"aws-lambda-rie-{machine}"


@cache
def _client() -> Path:
    """Where the runtime client is, fetched once, compiled as it is on Lambda."""
    target = ROOT / ".tools" / CLIENT
    if not target.is_dir():
        install = ["uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", sys.executable, CLIENT]
        subprocess.run([*install, "--target", str(target)], check=True)
    return target
