"""Memory and time of `lamplighter.media.fingerprints` a million values, each size in a process of its own.

PYTHONPATH=functions python -m bench.fingerprints [values ...]
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from array import array
from pathlib import Path

from bench.tables import show


def measure(values: int) -> None:
    """Add, seal and probe `values` fingerprints; prints the sealed and the highest MiB above the start, and us each."""
    from lamplighter.media.fingerprints import Builder

    def mib(field: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024

    def batches() -> list[int]:
        return [min(5000, values - start) for start in range(0, values, 5000)]

    rng, before, builder, spent = random.Random(1), mib("VmRSS"), Builder(), 0.0
    for size in batches():
        batch = array("Q", rng.randbytes(8 * size))
        spent -= time.perf_counter()
        builder.add(batch)
        spent += time.perf_counter()
    spent -= time.perf_counter()
    store = builder.seal()
    spent += time.perf_counter()
    sealed, highest = mib("VmRSS") - before, mib("VmHWM") - before
    rng, probing = random.Random(1), 0.0
    for size in batches():
        batch = array("Q", rng.randbytes(8 * size))
        probing -= time.perf_counter()
        store.mark(batch)
        probing += time.perf_counter()
    assert store.count_marked() == len(store) == values
    print(f"{sealed:.1f} {highest:.1f} {spent / values * 1e6:.2f} {probing / values * 1e6:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(int(sys.argv[2]))
    else:
        rows = []
        for number in map(int, sys.argv[1:] or ("300000", "1000000", "10000000")):
            answer = subprocess.run(
                [sys.executable, "-m", "bench.fingerprints", "--one", str(number)],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ,
            )
            rows.append([f"{number:,}", *answer.stdout.split()])
        show(
            "Fingerprints",
            ["values", "MiB sealed", "MiB at the most", "us to add and seal", "us to probe and mark"],
            rows,
        )
