"""What is drawn at random can be drawn again: each generated test says its seed when it fails (REQUIREMENTS S11)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.template.project import ROOT

FAILING = """
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test


class Machine(RuleBasedStateMachine):
    @rule(number=st.integers())
    def rule(self, number):
        assert number < 100


@given(st.integers())
def test_given(number):
    assert number < 100


def test_machine():
    run_state_machine_as_test(Machine, settings=settings(max_examples=50))


def test_seeded(seeded):
    for seed, rng in seeded(range(40)):
        assert seed < 17
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each of the failing tests, with our own conftest.py."""
    directory = tmp_path_factory.mktemp("failing")
    (directory / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (directory / "test_failing.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", directory, "-p", "no:cacheprovider", directory]
    environment = os.environ | {"PYTHONPATH": ""}
    run = subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment, check=False)
    assert "3 failed" in run.stdout, run.stdout
    parts = run.stdout.split("\n_____")
    return {name: next(part for part in parts if f" test_{name} " in part) for name in ("given", "machine", "seeded")}


@pytest.mark.parametrize("name", ["given", "machine"])
def test_hypothesis_says_how_to_repeat_a_failure(said: dict[str, str], name: str) -> None:
    assert "@reproduce_failure(" in said[name]


def test_a_failure_says_the_seed_that_was_in_use(said: dict[str, str]) -> None:
    printed = said["seeded"].partition("Captured stdout call")[2].split("\n")
    assert [line for line in printed if line.startswith("seed ")][-1] == "seed 17"


def _literals(function: ast.AST) -> set[str]:
    """The names that a function gives to literals."""
    assigned = [
        node for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}


def _uses(tree: ast.Module) -> set[str]:
    """What a file calls of the module `random`, as it is called there."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
    }
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return imported | {call for call in calls if "random" in modules and call.startswith("random.")}


def generators() -> Iterator[tuple[str, ast.Call, set[str]]]:
    """Where tests use the module `random`: the call, and the parameters and literals of the functions around it."""

    def walk(node: ast.AST, parameters: set[str]) -> Iterator[tuple[ast.Call, set[str]]]:
        for child in ast.iter_child_nodes(node):
            inside = parameters
            if isinstance(child, ast.FunctionDef | ast.Lambda):
                arguments = child.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
                inside = parameters | {one.arg for one in every if one} | _literals(child)
            if isinstance(child, ast.Call) and ast.unparse(child.func) in uses:
                yield child, inside
            yield from walk(child, inside)

    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text())
        uses = _uses(tree)
        for call, parameters in walk(tree, set()):
            yield f"{path.relative_to(ROOT)}:{call.lineno}", call, parameters


def test_no_test_draws_what_cannot_be_drawn_again() -> None:
    """A seed is a literal, or comes in by a parameter, which a test's id shows. In a loop it is that of `seeded`."""
    found = list(generators())
    assert len(found) > 5
    for where, call, parameters in found:
        assert ast.unparse(call.func) in {"random.Random", "Random"} and call.args, f"{where}: give it a seed"
        names = {node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)}
        if where.startswith("tests/conftest.py:"):
            assert names == {"seed"}
        else:
            assert names <= parameters, f"{where}: use the fixture `seeded`, which says the seed of a failure"
