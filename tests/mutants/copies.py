"""Copies of the project in which mutants are put to the tests."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "functions/lamplighter/"
"""What names of mutated files are relative to, unless they begin with `tests/`."""

_times: Final = count(1_000_000_000)
"""Each content of a file has a time of its own, to the second: Python's bytecode is known by that and the size."""
OPTIONS: Final = (
    *("-q", "-x", "--tb=line", "--disable-warnings", "--hypothesis-profile=mutants"),
    *("-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:anyio"),  # which take time to begin
)


class Fate(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    """A test failed."""
    SURVIVED = "survived"
    """Every test passed."""
    STUCK = "stuck"
    """The time was up before a test failed. Counts as killed only in a loop, which may never end."""
    BROKEN = "broken"
    """The tests could not begin: the mutant cannot be imported, or a test is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One small defect."""

    id: str
    file: str
    code: str
    """Of the whole file, with the defect."""
    tests: tuple[str, ...]
    line: int
    shown: str
    """The defect, in a line."""
    in_loop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the tests said of a mutant."""

    fate: Fate
    seconds: float
    said: str
    """The failed test, or the end of pytest's output."""


def path_of(file: str) -> Path:
    """Where a mutated file is below the project's root."""
    return Path(file if file.startswith("tests/") else PACKAGE + file)


class Copy:
    """A copy of the project, and a warm process in it that runs pytest."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "project"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(".*", "__pycache__"), symlinks=True)
        self._output = directory / "output"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._warm = subprocess.Popen(
            [sys.executable, self.root / "tests/mutants/warm.py"],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # an interrupt comes from here, and not from the terminal as well
        )

    def close(self) -> None:
        """Ends the process, and a run of pytest that it may be at."""
        self._warm.send_signal(signal.SIGINT)
        self._warm.wait()

    def run(self, tests: Sequence[str], timeout: float) -> Run:
        """Run some tests over the project as it is."""
        assert self._warm.stdin and self._warm.stdout
        request = {"arguments": [*OPTIONS, *tests], "timeout": timeout, "output": str(self._output)}
        self._warm.stdin.write(json.dumps(request) + "\n")
        self._warm.stdin.flush()
        answer = json.loads(self._warm.stdout.readline())
        output = self._output.read_text(errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", output, re.MULTILINE)
        fate = {0: Fate.SURVIVED, 1: Fate.KILLED, None: Fate.STUCK}.get(answer["code"], Fate.BROKEN)
        return Run(fate=fate, seconds=answer["seconds"], said=failed[1] if failed else output.strip()[-2000:])

    def judge(self, mutant: Mutant, timeout: float) -> Run:
        """Run a mutant's tests over the project with its defect."""
        with self._changed(self.root / path_of(mutant.file), mutant.code):
            return self.run(mutant.tests, timeout)

    @contextmanager
    def _changed(self, path: Path, code: str) -> Iterator[None]:
        before = path.read_text()
        try:
            _write(path, code)
            yield
        finally:
            _write(path, before)


def _write(path: Path, code: str) -> None:
    path.write_text(code)
    moment = next(_times)
    os.utime(path, (moment, moment))


def loops(code: str) -> list[range]:
    """The lines of each loop."""
    nodes = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.For | ast.While))
    return [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in nodes]
