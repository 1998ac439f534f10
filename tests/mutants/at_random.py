"""Mutants at random, by cosmic-ray's operators.

Which ones are drawn follows from a seed and from the mutated places themselves, so a change in one place changes the
draw there and nowhere else. At most one mutant is drawn of a place. Not drawn from: annotations, what only a type
checker reads, decorators' arguments, log lines, and numbers that a constant of a module, or a field of a class, is set
to (how many, how long; those that guard are among the curated ones).
"""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

from tests.mutants.copies import ROOT, Mutant, loops, path_of
from tests.mutants.curated import ListError

MODULES = Path(__file__).with_name("modules.toml")
SURVIVORS = Path(__file__).with_name("survivors.toml")

_ORDERED: Final = ("Lt", "LtE", "Gt", "GtE")
OPERATORS: Final = (
    *(f"ReplaceComparisonOperator_{one}_{other}" for one in _ORDERED for other in _ORDERED if one != other),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_Add"),
    *("ReplaceBinaryOperator_Div_Mul", "ReplaceBinaryOperator_FloorDiv_Mul", "ReplaceBinaryOperator_Mod_Mul"),
    *(
        "ReplaceBinaryOperator_LShift_RShift",
        "ReplaceBinaryOperator_BitOr_BitAnd",
        "ReplaceBinaryOperator_BitAnd_BitOr",
    ),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "AddNot", "ReplaceAndWithOr"),
    *("ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceBreakWithContinue"),
    *("ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop"),
)
"""Those of cosmic-ray that make a mistake which somebody could make: a comparison that is turned around or has another
boundary, and not `==` as `is` or `<`."""

Position = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A mutant that may be drawn."""

    id: str
    file: str
    operator: str
    occurrence: int
    start: tuple[int, int]
    qualname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """A mutant that no test can or need kill."""

    id: str
    mutant: str
    """The defect, for the reader."""
    reason: str


def drawn(seed: int, number: int, only: str = "") -> list[Mutant]:
    """`number` mutants of the modules whose name contains `only`.

    Raises:
        ListError: a listed survivor cannot be drawn any more.
    """
    tests = {module["file"]: tuple(module["tests"]) for module in tomllib.loads(MODULES.read_text())["module"]}
    every = [candidate for file in tests for candidate in candidates(file)]
    if gone := set(survivors()) - {candidate.id for candidate in every}:
        raise ListError(f"survivors.toml: there is no such mutant any more: {', '.join(sorted(gone))}.")

    def rank(candidate: Candidate) -> bytes:
        return hashlib.sha256(f"{seed} {candidate.id}".encode()).digest()

    places: dict[tuple[str, tuple[int, int]], list[Candidate]] = defaultdict(list)
    for candidate in every:
        if only in candidate.file:
            places[candidate.file, candidate.start].append(candidate)
    chosen = sorted((min(found, key=rank) for found in places.values()), key=rank)
    made = (_mutant(candidate, tests[candidate.file]) for candidate in chosen)
    return [mutant for mutant, _ in zip((one for one in made if one), range(number), strict=False)]


def survivors() -> dict[str, Survivor]:
    """The survivors that are known, by id."""
    listed = tomllib.loads(SURVIVORS.read_text()).get("survivor", []) if SURVIVORS.exists() else []
    return {one["id"]: Survivor(**one) for one in listed}


def candidates(file: str) -> Iterator[Candidate]:
    """Every mutant of a file."""
    code = (ROOT / path_of(file)).read_text()
    lines, tree = code.splitlines(), ast.parse(code)
    names, barred, constants = _names(tree), _barred(tree), _constants(tree)
    nodes, seen = list(ast_nodes(get_ast(code))), Counter[str]()
    for operator in OPERATORS:
        number = -1
        for node in nodes:
            for index, (start, end) in enumerate(_operator(operator).mutation_positions(node)):
                number += 1
                if operator != "RemoveDecorator" and _within(start, end, barred):
                    continue
                if operator == "NumberReplacer" and _within(start, end, constants):
                    continue
                line = lines[start[0] - 1]
                qualname = names.get(start[0], "")
                told = (
                    f"{file} {qualname} {operator} {index} {line.strip()} {start[1] - len(line) + len(line.lstrip())}"
                )
                seen[told] += 1
                digest = hashlib.sha256(f"{told} {seen[told]}".encode()).hexdigest()[:12]
                yield Candidate(
                    id=f"{file}:{digest}",
                    file=file,
                    operator=operator,
                    occurrence=number,
                    start=start,
                    qualname=qualname,
                )


def _mutant(candidate: Candidate, tests: tuple[str, ...]) -> Mutant | None:
    """The mutant, unless it is no Python, or the same as before."""
    code = (ROOT / path_of(candidate.file)).read_text()
    mutated = mutate_code(code, _operator(candidate.operator), candidate.occurrence)
    try:
        if mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(code)):
            return None
    except SyntaxError:
        return None
    line = candidate.start[0]
    before, after = code.splitlines()[line - 1].strip(), mutated.splitlines()[line - 1].strip()
    return Mutant(
        id=candidate.id,
        file=candidate.file,
        code=mutated,
        tests=tests,
        line=line,
        shown=f"{candidate.qualname}: {before}  ->  {after}",
        in_loop=any(line in loop for loop in loops(code)),
    )


@cache
def _operator(name: str) -> Any:
    return get_operator(f"core/{name}")()


def _names(tree: ast.Module) -> dict[int, str]:
    """The innermost function or class of each line."""
    found: dict[int, str] = {}

    def walk(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}".lstrip(".")
                found.update(dict.fromkeys(range(child.lineno, (child.end_lineno or 0) + 1), name))
            walk(child, name)

    walk(tree, "")
    return found


def _span(node: ast.AST) -> Position:
    assert isinstance(node, ast.expr | ast.stmt)
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def _barred(tree: ast.Module) -> list[Position]:
    """Annotations, what a type checker reads alone, decorators' arguments and log lines."""
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef():
                found += [node.returns, *node.decorator_list]
                arguments = node.args
                every = [
                    *arguments.posonlyargs,
                    *arguments.args,
                    *arguments.kwonlyargs,
                    arguments.vararg,
                    arguments.kwarg,
                ]
                found += [argument.annotation for argument in every if argument]
            case ast.ClassDef():
                found += node.decorator_list
            case ast.AnnAssign():
                found.append(node.annotation)
            case ast.TypeAlias():
                found.append(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                found.append(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
                found.append(node)
    return [_span(node) for node in found if node]


def _constants(tree: ast.Module) -> list[Position]:
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    return [_span(node) for body in bodies for node in body if isinstance(node, ast.AnnAssign | ast.Assign)]


def _within(start: tuple[int, int], end: tuple[int, int], spans: list[Position]) -> bool:
    return any(first <= start and end <= last for first, last in spans)
