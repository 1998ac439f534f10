"""Generated worlds through the deployed job's body: does a cleanup ever remove a file that a row names?

    PYTHONPATH=functions python -m bench.worlds [--worlds 10000] [--processes 2] [--first 0]

A world is a bucket, the rows that name its objects in many forms, and what is truly referenced (`tests/worlds.py`).
Each is cleaned in earnest: SQL in an embedded Postgres, S3 in this process behind real boto3 clients (but for looks at
single objects, which took half of the time), the governor on, the ramp lifted, `max_unmatched` of each column the
number of its missing files. Every fifth world is clean: one usual form a column, and up to 1 % missing files. A target
that is missed ends the bench with status 1 and names the seeds.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Final

from bench.orphan_scan import postgres, psql

if TYPE_CHECKING:
    from tests.media_stage import Stage

WORLDS: Final = 10_000
CLEAN: Final = 5
"""Every how manieth world is clean."""
REMOVED: Final = 0.97
"""Of the true orphans in accepted worlds, how many are to be removed at least."""
KEPT: Final = 0.03
"""And how many may be kept as ambiguous or derived."""
REFUSED_CLEAN: Final = 0.05
"""Of the clean worlds, how many may be refused."""
NAMED: Final = 20
"""Seeds that are named of each fault."""
REASONS: Final = {
    "without the extension": "values that are no names",
    "name no file that exists": "more values without a file than are missing",
    "names a file that exists": "no value names a file",
    "no references at all": "no values",
    "are orphans": "share of orphans",
}
"""What a refusal says, by what its sentence holds. The first that fits is counted."""


@dataclass
class Seen:
    """What some worlds came to."""

    count: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[int]] = field(default_factory=dict)
    """Seeds by what went wrong in them."""

    def fault(self, what: str, seed: int) -> None:
        """Something that must not be."""
        self.faults.setdefault(what, []).append(seed)

    def add(self, other: Seen) -> None:
        """Count another one in."""
        self.count += other.count
        self.refused += other.refused
        for what, seeds in other.faults.items():
            self.faults.setdefault(what, []).extend(seeds)


def judge(seeds: Iterable[int]) -> Seen:
    """Clean the worlds of these seeds, on a database server of this process's own."""
    from lamplighter.kernel.database import engine
    from lamplighter.kernel.deletion import PART
    from tests.media_stage import theatre

    logging.disable(logging.WARNING)
    seen = Seen()
    with postgres() as url:
        os.environ["DATABASE_URL"] = url
        subprocess.run([*psql(), "-qc", "ALTER DATABASE postgres SET synchronous_commit = off"], check=True)
        with theatre(engine(), page=1000, part=PART, quick=True) as set_up:
            for number, seed in enumerate(seeds, 1):
                clean = seed % CLEAN == 0
                _judge(set_up(seed, clean=clean), "clean" if clean else "mixed", seen)
                if number % 250 == 0:
                    print(f"{number} worlds in a process, {dict(seen.faults)}", file=sys.stderr, flush=True)
        engine().dispose()
    return seen


def _judge(stage: Stage, kind: str, seen: Seen) -> None:
    world = stage.world
    report = stage.to_the_end()
    gone = set(world.objects) - set(stage.s3.keys(world.bucket))
    count = {"worlds": 1, "referenced": len(world.referenced), "destroyed": len(gone & world.referenced)}
    if count["destroyed"]:
        seen.fault("a referenced object was removed", world.seed)
    if others := gone - world.referenced - world.orphans:
        count["others"] = len(others)
        seen.fault("an object was removed that a pattern of the settings or another file's name keeps", world.seed)
    if report is None:
        if gone:
            seen.fault("objects were removed in a refused run", world.seed)
        said = " ".join(stage.refusals)
        seen.refused[next((reason for words, reason in REASONS.items() if words in said), said)] += 1
        count["refused"] = 1
        if world.is_understood:
            count["refused though understood"] = 1
    else:
        count |= {"accepted": 1, "orphans": len(world.orphans), "removed": len(gone & world.orphans)}
        count |= {"kept": len(world.orphans - gone)}
        if report.deleted_files != len(gone):
            seen.fault("the report counts otherwise", world.seed)
    for name, number in count.items():
        seen.count[f"{kind} {name}"] += number


def main(worlds: int, processes: int, first: int) -> None:
    """Clean that many worlds and print the table.

    Raises:
        SystemExit: a target was missed.
    """
    began = time.perf_counter()
    shares = [range(first + n, first + worlds, processes) for n in range(processes)]
    seen = Seen()
    if processes == 1:
        seen = judge(shares[0])
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for found in pool.map(judge, shares):
                seen.add(found)
    show(seen, time.perf_counter() - began)
    if problems := missed(seen):
        raise SystemExit("\n".join(problems))


def show(seen: Seen, seconds: float) -> None:
    """The table in Markdown."""
    columns = ("worlds", "accepted", "refused", "referenced", "destroyed", "orphans", "removed", "kept")
    print("| worlds of | " + " | ".join(columns) + " |")
    print("|---" + "|---:" * len(columns) + "|")
    for kind in ("mixed", "clean"):
        print(
            f"| {kind} forms | "
            + " | ".join(f"{seen.count[f'{kind} {one}']:_}".replace("_", " ") for one in columns)
            + " |"
        )
    reasons = "; ".join(f"{reason} {count}" for reason, count in seen.refused.most_common())
    print(f"\nrefused for: {reasons}")
    understood = sum(seen.count[f"{kind} refused though understood"] for kind in ("mixed", "clean"))
    print(f"refused though every form is understood: {understood}")
    print(f"{seconds:.0f} s")


def missed(seen: Seen) -> list[str]:
    """The targets that were missed, a sentence each."""
    count = seen.count
    found = [
        f"{what}: seeds {', '.join(map(str, sorted(seeds)[:NAMED]))}" for what, seeds in sorted(seen.faults.items())
    ]
    orphans, removed, kept = (
        sum(count[f"{kind} {name}"] for kind in ("mixed", "clean")) for name in ("orphans", "removed", "kept")
    )
    if removed < REMOVED * orphans:
        found.append(f"{removed} of {orphans} orphans were removed, {REMOVED:.0%} are to be")
    if kept > KEPT * orphans:
        found.append(f"{kept} of {orphans} orphans were kept, {KEPT:.0%} may be")
    if count["clean refused"] > REFUSED_CLEAN * count["clean worlds"]:
        found.append(f"{count['clean refused']} of {count['clean worlds']} clean worlds were refused")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    main(arguments.worlds, arguments.processes, arguments.first)
