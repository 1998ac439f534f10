"""Statements on Lamplighter's own tables name their schema, wherever they are written (REQUIREMENTS S4)."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from lamplighter import rules
from lamplighter.kernel import database
from local.postgres import APPLICATION_TABLES
from tests.template.project import ROOT

MIGRATIONS = ROOT / "functions" / "lamplighter" / "kernel" / "migrations" / "versions"
OWN = frozenset(importlib.import_module("lamplighter.kernel.migrations.versions.0004_own_schema")._tables())
NAMED = re.compile(rf"\b(?:FROM|INTO|UPDATE|JOIN|TABLE|TRUNCATE|USING|ON)\s+((?:\w+\.)?(?:{'|'.join(sorted(OWN))}))\b")


def texts(path: Path) -> Iterator[str]:
    """The strings of a module, each f-string as one; of another file all of it."""
    if path.suffix != ".py":
        yield path.read_text()
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_statement_names_the_schema() -> None:
    sources = [
        *(path for path in (ROOT / "functions").rglob("*.py") if path.parent != MIGRATIONS),
        *(ROOT / "local").rglob("*.py"),
        *(ROOT / "docs").glob("*.md"),
    ]
    named = {(path.name, found) for path in sources for text in texts(path) for found in NAMED.findall(text)}
    assert {(path, table) for path, table in named if not table.startswith("lamplighter.")} == set()
    in_sql = {table.removeprefix("lamplighter.") for _, table in named}
    assert OWN - in_sql <= {"job_history"}, "it is written through SQLAlchemy"


def test_the_tables_that_sqlalchemy_writes_are_in_the_schema() -> None:
    assert {table.schema for table in database.metadata.tables.values()} == {database.SCHEMA}
    assert {table.name for table in database.metadata.tables.values()} <= OWN


def test_rules_on_our_own_tables_name_the_schema_and_no_others_do() -> None:
    """`deleted_accounts` sets a column of ours by what the owner's accounts say: it waits to be applied."""
    ours = {name for name, rule in rules.RULES.items() if rule.table.startswith("lamplighter.")}
    assert ours == rules.OWN | {"deleted_accounts"}
    assert {rules.RULES[name].table.removeprefix("lamplighter.") for name in ours} <= OWN


def test_the_applications_tables_are_made_outside_it() -> None:
    made = re.findall(r"CREATE TABLE IF NOT EXISTS (\S+)", APPLICATION_TABLES.read_text())
    assert len(made) == 13
    assert all(name.startswith("public.") for name in made)
    assert {rule.table for name, rule in rules.RULES.items() if name not in rules.OWN | {"deleted_accounts"}} <= {
        name.removeprefix("public.") for name in made
    }
