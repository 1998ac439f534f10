"""Generated schemas and rows through the retention rules: does a rule ever touch a row that is not due, or leave one?

    PYTHONPATH=functions python -m bench.schemas [--worlds 10000] [--processes 2] [--first 0]

A world is a table with a rule, foreign keys of every action, triggers, rewrite rules, partitions, odd names, users who
change rows meanwhile, and crashes (`tests/schema_worlds.py`). The oracle knows what is due and what the database keeps.
A fault ends the bench with status 1 and names the seeds, and so does a kind of event that no world came to.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from bench.orphan_scan import postgres, psql
from bench.tables import show
from tests.schema_worlds import EVENTS, Seen, build, stage

WORLDS: Final = 10_000
NAMED: Final = 20
"""Seeds that are named of each fault."""
ENOUGH: Final = 5_000
"""With so many worlds, every event has to happen."""


def play(seeds: Iterable[int]) -> Seen:
    """Play the worlds of these seeds, on a database server of this process's own."""
    logging.disable(logging.ERROR)  # connections that were lost on purpose
    with postgres() as url:
        os.environ["DATABASE_URL"] = url
        for setting in ("synchronous_commit = off", "autovacuum = off"):
            subprocess.run([*psql(), "-qc", f"ALTER SYSTEM SET {setting}"], check=True)
        subprocess.run([*psql(), "-qc", "SELECT pg_reload_conf()"], check=True, stdout=subprocess.DEVNULL)
        with stage() as theatre:
            for number, seed in enumerate(seeds, 1):
                theatre.play(build(seed))
                if number % 250 == 0:
                    print(f"{number} worlds in a process, {theatre.seen.faults}", file=sys.stderr, flush=True)
            theatre.engine.dispose()
            return theatre.seen


def main(worlds: int, processes: int, first: int) -> None:
    """Play that many worlds and print what they came to.

    Raises:
        SystemExit: something was wrong, or did not happen.
    """
    began = time.perf_counter()
    shares = [range(first + n, first + worlds, processes) for n in range(processes)]
    seen = Seen()
    if processes == 1:
        seen = play(shares[0])
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for found in pool.map(play, shares):
                seen.add(found)
    rows = [(what, f"{count:_}".replace("_", " ")) for what, count in sorted(seen.count.items()) if count]
    show("What the worlds came to", ("", "count"), rows)
    print(f"\n{time.perf_counter() - began:.0f} s")
    problems = [f"{what}: seeds {sorted(seeds)[:NAMED]}" for what, seeds in sorted(seen.faults.items())]
    problems += [f"{what}: in no world" for what in EVENTS if worlds >= ENOUGH and not seen.count[what]]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    main(arguments.worlds, arguments.processes, arguments.first)
