"""The curated guards: places in the code where a slip would destroy something, each with the slip that undoes it.

The files in `guards/` have them. A guard whose snippet is not in its file exactly once is an error: the code has moved
on, and the guard has to be looked at again.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

from tests.mutants.copies import ROOT, Mutant, loops, path_of

GUARDS = Path(__file__).with_name("guards")


class ListError(Exception):
    """An entry of one of the lists does not fit the code."""


def mutants(only: str = "") -> list[Mutant]:
    """The guards whose id or file contains `only`.

    Raises:
        ListError: entries do not fit the code; all are named.
    """
    guards = [guard for file in sorted(GUARDS.glob("*.toml")) for guard in tomllib.loads(file.read_text())["guard"]]
    found, errors, ids = [], [], set()
    for guard in guards:
        if guard["id"] in ids:
            errors.append(f"{guard['id']}: there are two of this id.")
        ids.add(guard["id"])
        try:
            found.append(_mutant(guard))
        except ListError as error:
            errors.append(f"{guard['id']}: {error}")
    if errors:
        raise ListError("\n".join(errors))
    return [mutant for mutant in found if only in mutant.id or only in mutant.file]


def _mutant(guard: dict[str, Any]) -> Mutant:
    if guard.keys() != {"id", "file", "find", "replace", "why", "tests"}:
        raise ListError(f"takes id, file, find, replace, why and tests, not {', '.join(guard)}.")
    path = ROOT / path_of(guard["file"])
    code = path.read_text() if path.exists() else ""
    if (times := code.count(guard["find"])) != 1:
        raise ListError(f"its snippet is in {guard['file']} {times} times, not once.")
    mutated = code.replace(guard["find"], guard["replace"])
    try:
        if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(code)):
            raise ListError("its replacement changes nothing.")
    except SyntaxError as error:
        raise ListError(f"its replacement is no Python: {error}.") from None
    for test in guard["tests"]:
        if not (ROOT / test.partition("::")[0]).exists():
            raise ListError(f"there is no {test}.")
    line = code[: code.index(guard["find"])].count("\n") + 1
    return Mutant(
        id=guard["id"],
        file=guard["file"],
        code=mutated,
        tests=tuple(guard["tests"]),
        line=line,
        shown=guard["why"],
        in_loop=any(line in loop for loop in loops(code)),
    )
