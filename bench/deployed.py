"""The stack deployed into a local AWS of the benches' own, and its functions as they were built for it."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.settings import LOCAL
from local.stack import ROOT, LocalAws

STACK: Final = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function of the stack: what Lambda would be told to run."""

    name: str
    """Without the stack's."""
    handler: str
    memory_mb: int
    environment: Mapping[str, str]

    @property
    def event(self) -> Any:
        """Its sample event."""
        _, domain, job, _ = self.handler.split(".")
        return json.loads((ROOT / "events" / domain / f"{job}.json").read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A stack that is up."""

    aws: LocalAws
    functions: Mapping[str, Function]
    code: Path
    layer: Path

    @property
    def path(self) -> list[Path]:
        """Where Lambda looks for a function's modules, in its order (the runtime's own come after)."""
        return [self.code, self.layer]


@contextmanager
def deployed(
    *, before: Callable[[LocalAws], object] = lambda aws: None, settings: Mapping[str, Any] = LOCAL
) -> Iterator[Deployed]:
    """Build and deploy the stack, and take it down at the end.

    Args:
        before: what is there before the deployment.
        settings: of the deployment.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # run by root, Postgres makes itself a user, who has to get in
        aws = LocalAws(directory=Path(directory) / "aws", first_port=_three_free_ports(), stack_name=STACK)
        try:
            aws.start()
            before(aws)
            aws.deploy(settings)
            built = Path(directory) / "build"  # a copy: others may build meanwhile
            shutil.copytree(ROOT / ".aws-sam" / "build", built)
            yield Deployed(
                aws=aws,
                functions={function.name: function for function in _functions(aws)},
                code=built / "TimeoutCheckerFunction",  # all functions have the same code
                layer=built / "DependenciesLayer" / "python",
            )
        finally:
            aws.stop()


def _functions(aws: LocalAws) -> Iterator[Function]:
    for listed in aws.client("lambda").list_functions()["Functions"]:
        if listed["FunctionName"].startswith(f"{STACK}-"):
            yield Function(
                name=listed["FunctionName"].removeprefix(f"{STACK}-"),
                handler=listed["Handler"],
                memory_mb=listed["MemorySize"],
                environment=aws.environment
                | listed["Environment"]["Variables"]
                | {"AWS_ENDPOINT_URL": aws.endpoint_url},
            )


def _three_free_ports() -> int:
    for first in range(20_000, 60_000, 100):
        try:
            for port in range(first, first + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("No three free ports in a row.")
