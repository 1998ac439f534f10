"""How long the functions take to start cold. `python -m bench.cold_start`.

Each function as `sam build` makes it (the layer compiled, our own code not: Lambda compiles that at each cold start)
under Lambda's emulator, in turns with an empty handler and with one that imports all there is. INIT is what the
emulator reports; the first invocation, with the function's sample event, includes what is imported and connected only
then.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.deployed import Deployed, deployed
from bench.emulator import emulated
from bench.tables import show

ROUNDS: Final = 11
TARGETS_MS: Final = {"timeout-checker": 250, "dispatcher": 250, "orphan-cleanup": 600}
INVOKED: Final = (
    "timeout-checker",
    "dispatcher",
    "history",
    "orphan-cleanup",
    "schedule-watch",
    "migrate",
    "api",
    "cloud-scan",
    "cloud-region",
    "cloud-actions",
)
"""Those whose sample event means something to a stack that is empty."""

EAGER: Final = """
import alembic, boto3, pg8000.dbapi, pydantic, sqlalchemy, sqlalchemy.dialects.postgresql
import aws_lambda_powertools.utilities.batch, aws_lambda_powertools.utilities.parameters
for service in ("dynamodb", "lambda", "s3"):
    boto3.client(service)
sqlalchemy.create_engine("postgresql+pg8000://u@localhost/d")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is started: a handler, where its modules are, what it is invoked with."""

    handler: str
    path: list[Path]
    environment: dict[str, str]
    event: Any
    """None: invoked only because the emulator starts nothing before; it may fail, and is not counted."""


@contextmanager
def candidates(stack: Deployed) -> Iterator[dict[str, Candidate]]:
    """All that is compared: the stack's functions between two bounds."""
    environment = dict(stack.functions["timeout-checker"].environment)
    with tempfile.TemporaryDirectory() as directory:
        bounds = Path(directory)
        (bounds / "empty.py").write_text("def handler(event, context): return {}\n")
        (bounds / "eager.py").write_text(EAGER + "from empty import handler\n")
        yield {
            "empty handler": Candidate(handler="empty.handler", path=[bounds], environment={}, event={}),
            **{
                function.name: Candidate(
                    handler=function.handler,
                    path=stack.path,
                    environment=dict(function.environment),
                    event=function.event if function.name in INVOKED else None,
                )
                for function in stack.functions.values()
            },
            "everything imported": Candidate(
                handler="eager.handler", path=[bounds, stack.layer], environment=environment, event={}
            ),
        }


def start(candidate: Candidate) -> tuple[float, float]:
    """One cold start: INIT and the first invocation, in milliseconds."""
    with emulated(candidate.handler, candidate.path, candidate.environment) as function:
        if candidate.event is None:
            function.invoke({"unknown": True}, may_fail=True)
        else:
            function.invoke(candidate.event)
        return function.init_ms, function.invocations_ms(1)[0]


def main() -> None:
    """Start all in turns, and show the medians."""
    figures: dict[str, list[tuple[float, float]]] = {}
    with deployed() as stack, candidates(stack) as all_candidates:
        for _ in range(ROUNDS):
            for name, candidate in all_candidates.items():
                figures.setdefault(name, []).append(start(candidate))
    rows = []
    for name, starts in sorted(figures.items(), key=lambda item: median(init for init, _ in item[1])):
        init = [init for init, _ in starts]
        first = median(first for _, first in starts) if all_candidates[name].event is not None else None
        rows.append(
            [
                name,
                f"{median(init):.0f} ({min(init):.0f}-{max(init):.0f})",
                f"< {TARGETS_MS[name]}" if name in TARGETS_MS else "",
                f"{first:.0f}" if first is not None else "",
                f"{median(init) + first:.0f}" if first is not None else "",
            ]
        )
    show(
        f"Cold start, Python {sys.version.split()[0]}, median of {ROUNDS} in turns (range)",
        ["function", "INIT ms", "target", "first invocation ms", "together ms"],
        rows,
    )


if __name__ == "__main__":
    main()
