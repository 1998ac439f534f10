"""The cloud scan beside Cloud Custodian and Prowler, on one account: `python -m bench.cloud_scan`.

200 instances, 500 volumes beside their root volumes, 500 snapshots, 100 security groups and two weeks of metrics, all
of it answered from a cache (`bench.cloud_stub`), at once or after 40 ms, which is what AWS takes. Each scanner is a
command in a process of its own, in turns with the others: ours is `python -m local.scan`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from statistics import median
from typing import Final

from bench import cloud_peers as peers
from bench.cloud_stub import REGION, Account, account
from bench.tables import show
from local.stack import ROOT

ROUNDS: Final = 3
LATENCIES_MS: Final = (0, 40)
TARGETS: Final = {0: (1.36, 2.5), 40: (1.52, 5.0)}
"""By latency: seconds, and how many times as fast as Custodian; beside that, half its memory."""
OURS: Final = "lamplighter"
CUSTODIAN: Final = "Cloud Custodian 0.9.53"
PROWLER: Final = "Prowler 5.46.0"
PAGE: Final = 1000
METRICS_A_CALL: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one run took."""

    seconds: float
    cpu: float
    peak_mib: float
    calls: int


def ours(_directory: Path) -> list[str | Path]:
    """The command."""
    return [sys.executable, "-m", "local.scan", "--format", "json", "--region", REGION]


def run(command: Sequence[str | Path], stub: Account, directory: Path, *, latency_ms: int = 0) -> tuple[Figure, str]:
    """Run a scanner; what it took and what it printed.

    Raises:
        SystemExit: it failed.
    """
    stub.begin(latency_ms=latency_ms)
    output = directory / "output"
    with output.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=peers.environment(stub.url, directory), stdout=file, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{output.read_text()[-3000:]}")
    figure = Figure(
        seconds=seconds,
        cpu=used.ru_utime + used.ru_stime,
        peak_mib=used.ru_maxrss / 1024,
        calls=stub.calls().total(),
    )
    return figure, output.read_text()


def allowed(stub: Account) -> Counter[str]:
    """How often an operation may be asked for that is not asked once: for each page, and each 500 metrics."""
    kinds = Counter(one.resource_id.partition("-")[0] for one in stub.planted())
    pages = {"Instances": "i", "Volumes": "vol", "Snapshots": "snap", "SecurityGroups": "sg"}
    return Counter(
        {f"ec2:Describe{name}": ceil(kinds[kind] / PAGE) for name, kind in pages.items()}
        | {
            "ec2:DescribeImages": 2,  # the account's own, then those of others that its instances use
            "monitoring:ListMetrics": 2,  # what agents on Linux and on Windows tell
            "monitoring:GetMetricData": ceil(kinds["i"] * 2 / METRICS_A_CALL),
        }
    )


type Figures = Mapping[str, Mapping[int, Sequence[Figure]]]
"""By scanner and latency."""


def typical(figures: Figures, name: str, ms: int, of: Callable[[Figure], float]) -> float:
    """The median of one of a scanner's figures."""
    return median(map(of, figures[name][ms]))


def told(figures: Figures) -> None:
    """Print what was measured, and how it stands to the targets."""
    show(
        f"200 instances, 700 volumes, 500 snapshots, 100 security groups; median of {ROUNDS} runs in turns",
        ("", "API calls", *(f"s at {ms} ms a call" for ms in LATENCIES_MS), "CPU s", "peak MiB"),
        [
            (
                name,
                f"{typical(figures, name, 0, lambda one: one.calls):.0f}",
                *(f"{typical(figures, name, ms, lambda one: one.seconds):.2f}" for ms in LATENCIES_MS),
                f"{typical(figures, name, 0, lambda one: one.cpu):.2f}",
                f"{typical(figures, name, 0, lambda one: one.peak_mib):.0f}",
            )
            for name in figures
        ],
    )
    print()
    for ms, (target, times) in TARGETS.items():
        took = {name: typical(figures, name, ms, lambda one: one.seconds) for name in figures}
        print(f"at {ms} ms a call: {took[OURS]:.2f} s (target {target})", end="")
        print(
            f", {took[CUSTODIAN] / took[OURS]:.1f} times as fast as Custodian (target {times})"
            if CUSTODIAN in took
            else ""
        )
    if CUSTODIAN in figures:
        peaks = {name: typical(figures, name, 0, lambda one: one.peak_mib) for name in figures}
        print(f"memory: {peaks[OURS] / peaks[CUSTODIAN]:.2f} of Custodian's (target 0.50)")


def main() -> None:
    """Measure and print.

    Raises:
        SystemExit: ours called more often than it had to.
    """
    ways: dict[str, Callable[[Path], list[str | Path]]] = {OURS: ours}
    if peers.CUSTODIAN.install():
        ways[CUSTODIAN] = peers.custodian
    if peers.PROWLER.install():
        ways[PROWLER] = peers.prowler
    figures: dict[str, dict[int, list[Figure]]] = {name: {ms: [] for ms in LATENCIES_MS} for name in ways}
    alone: dict[int, list[float]] = {ms: [] for ms in LATENCIES_MS}
    with account() as stub, tempfile.TemporaryDirectory() as name_:
        directory = Path(name_)
        made = Counter[str]()
        for name, command in ways.items():
            run(command(directory), stub, directory)  # fills the cache, compiles the bytecode
            made = stub.calls() if name == OURS else made
        for _ in range(ROUNDS):
            for ms, (name, command) in product(LATENCIES_MS, ways.items()):
                figure, said = run(command(directory), stub, directory, latency_ms=ms)
                figures[name][ms].append(figure)
                if took := re.search(r"100%\] in (?:(\d+):)?([\d.]+)s?\b", said):
                    alone[ms].append(60 * int(took[1] or 0) + float(took[2]))
        may = allowed(stub)
    told(figures)
    if all(alone.values()):
        scans = ", ".join(f"{median(seconds):.1f} s at {ms} ms a call" for ms, seconds in alone.items())
        print(f"Prowler's scan alone, as it says, without its start and its reports: {scans}")
    print(f"lamplighter's calls: {', '.join(f'{name} {count}' for name, count in sorted(made.items()))}")
    if wasted := {name: count for name, count in made.items() if count > (may[name] or 1)}:
        raise SystemExit(f"lamplighter called more often than it had to: {wasted}")


if __name__ == "__main__":
    main()
