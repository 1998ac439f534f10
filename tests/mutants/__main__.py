"""Put mutants of the guarding code to the tests: `python -m tests.mutants [--only X] [--seed N] [--random N]`.

First the tests have to pass without a mutant. Then two mutants at a time are judged, each in a copy of the project, by
its own tests alone. The exit code is 1 if a curated guard survives, if fewer than 95 % of the random mutants are
killed, or if one survives that `survivors.toml` does not explain; and 2 if a list does not fit the code, or a test
fails without a mutant.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants import at_random, curated
from tests.mutants.copies import Copy, Fate, Mutant, Run
from tests.mutants.curated import ListError

SEED: Final = 1
NUMBER: Final = 300
SHARE: Final = 0.95
"""Of the random mutants, how many have to be killed."""
AT_A_TIME: Final = 2
TIMEOUT: Final = 120.0
"""Seconds that a mutant's tests may take; or five times what they take without one, if that is more."""
PATIENCE: Final = 5


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="X", help="guards and modules whose name contains X")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of the random mutants ({SEED})")
    parser.add_argument("--random", type=int, default=NUMBER, metavar="N", help=f"how many at random ({NUMBER})")
    parser.add_argument("--no-curated", action="store_true", help="random mutants alone")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        guards = [] if given.no_curated else curated.mutants(given.only)
        others = at_random.drawn(given.seed, given.random, given.only) if given.random else []
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(guards)} curated guards, {len(others)} random mutants by seed {given.seed}.", flush=True)
    with workshop() as run_all:
        seconds = unmutated(run_all, guards, others)
        if seconds is None:
            return 2
        passed = judge_guards(run_all, guards) if guards else True
        if others:
            passed &= judge_others(run_all, others, seconds, seed=given.seed)
    print(f"\n{'Passed' if passed else 'FAILED'} after {time.monotonic() - began:.0f} s.")
    return 0 if passed else 1


RunAll = Callable[[Sequence[Callable[[Copy], Run]]], Iterator[Run]]
"""Does each piece of work in one of the copies, and gives what came of them in their order."""


@contextmanager
def workshop() -> Iterator[RunAll]:
    """Copies of the project, and a way to work in all of them at once."""
    with tempfile.TemporaryDirectory(prefix="lamplighter-mutants-") as directory:
        free: SimpleQueue[Copy] = SimpleQueue()
        copies = [Copy(Path(directory) / str(number)) for number in range(AT_A_TIME)]
        for copy in copies:
            free.put(copy)

        def done(work: Callable[[Copy], Run]) -> Run:
            copy = free.get()
            try:
                return work(copy)
            finally:
                free.put(copy)

        pool = ThreadPoolExecutor(AT_A_TIME)
        try:
            yield lambda works: pool.map(done, works)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.close()


def unmutated(run_all: RunAll, guards: Sequence[Mutant], others: Sequence[Mutant]) -> dict[str, float] | None:
    """How many seconds each file of tests takes without a mutant, as far as it is needed; None if one fails."""
    needed: dict[str, set[str]] = defaultdict(set)
    for mutant in (*guards, *others):
        for test in mutant.tests:
            needed[test.partition("::")[0]].add(test)
    files = {file: (file,) if file in tests else tuple(sorted(tests)) for file, tests in needed.items()}
    runs = run_all([lambda copy, tests=tests: copy.run(tests, 20 * TIMEOUT) for tests in files.values()])  # type: ignore[misc]
    seconds, failed = {}, False
    for file, run in zip(files, runs, strict=True):
        seconds[file] = run.seconds
        if run.fate is not Fate.SURVIVED:
            failed = True
            print(f"Without a mutant, {file}: {run.fate.value}\n{run.said}", file=sys.stderr, flush=True)
    print(f"{len(files)} files of tests pass without a mutant." if not failed else "Mend these first.", flush=True)
    return None if failed else seconds


def judge_guards(run_all: RunAll, guards: Sequence[Mutant]) -> bool:
    """Whether every curated guard is killed."""
    began = time.monotonic()
    fates = judged(run_all, guards, lambda mutant: TIMEOUT)
    alive = [guard for guard in guards if fates[guard.id] is not Fate.KILLED]
    print(f"\nCurated: {len(guards) - len(alive)} of {len(guards)} killed in {time.monotonic() - began:.0f} s.")
    for guard in alive:
        print(f"  {fates[guard.id].value}: {guard.id} ({guard.file}:{guard.line}): {guard.shown}")
    return not alive


def judge_others(run_all: RunAll, others: Sequence[Mutant], seconds: dict[str, float], *, seed: int) -> bool:
    """Whether enough random mutants are killed, and the others are explained."""
    began, known = time.monotonic(), at_random.survivors()
    fates = judged(run_all, others, lambda mutant: max(TIMEOUT, PATIENCE * sum(seconds[file] for file in mutant.tests)))
    alive = [mutant for mutant in others if fates[mutant.id] not in (Fate.KILLED, Fate.BROKEN)]
    killed = len(others) - len(alive)
    took = time.monotonic() - began
    print(f"\nRandom, seed {seed}: {killed} of {len(others)} killed ({killed / len(others):.1%}) in {took:.0f} s.")
    totals, dead = Counter(one.file for one in others), Counter(one.file for one in others if one not in alive)
    for file, total in sorted(totals.items()):
        print(f"  {dead[file]:4} of {total:3}  {file}")
    unexplained = [mutant for mutant in alive if mutant.id not in known]
    for mutant in alive:
        reason = known[mutant.id].reason if mutant.id in known else "NOT EXPLAINED"
        print(f"  {fates[mutant.id].value}: {mutant.id} (line {mutant.line}) {mutant.shown}\n    {reason}")
    wrong = [mutant.id for mutant in others if mutant.id in known and mutant not in alive]
    if wrong:
        print(f"survivors.toml lists what is killed: {', '.join(wrong)}.")
    return killed >= SHARE * len(others) and not wrong and (seed != SEED or not unexplained)


def judged(run_all: RunAll, mutants: Sequence[Mutant], timeout: Callable[[Mutant], float]) -> dict[str, Fate]:
    """What becomes of each mutant, by its id; each is told as it comes."""
    works = [lambda copy, mutant=mutant: copy.judge(mutant, timeout(mutant)) for mutant in mutants]  # type: ignore[misc]
    fates = {}
    for number, (mutant, run) in enumerate(zip(mutants, run_all(works), strict=True), 1):
        stuck_in_loop = run.fate is Fate.STUCK and mutant.in_loop
        fates[mutant.id] = Fate.KILLED if stuck_in_loop else run.fate
        fate = "killed: its loop never ends" if stuck_in_loop else run.fate.value
        by = f" by {run.said}" if run.fate is Fate.KILLED else ""
        print(f"[{number}/{len(mutants)}] {run.seconds:5.1f} s  {mutant.id}  {fate}{by}", flush=True)
        if run.fate is Fate.BROKEN:
            print("\n".join(f"    {line}" for line in run.said.splitlines()[-12:]), flush=True)
    return fates


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
