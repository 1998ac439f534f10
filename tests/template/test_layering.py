"""Who may import whom, and what a cold start may not load (DESIGN, "The house")."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.template.project import ROOT, Project, imports

PACKAGE = ROOT / "functions" / "lamplighter"
SHARED = {"kernel", "deletion"}
"""What every domain may import."""
DOMAINS = sorted(
    path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file() and path.name not in SHARED
)
CATALOGUES = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
"""Modules beside the domains that say what there is in all of them."""
HEAVY = {
    "boto3",
    "botocore.session",
    "sqlalchemy",
    "pg8000",
    "alembic",
}  # Powertools imports the bare package botocore: 1 ms


def of_our_own(part: str) -> Iterator[tuple[Path, str]]:
    for path in (PACKAGE / part).rglob("*.py"):
        for name in imports(path):
            if name.startswith("lamplighter."):
                yield path.relative_to(ROOT), name.split(".")[1]


def test_there_are_domains() -> None:
    assert {"jobs", "media"} <= set(DOMAINS)


def test_the_kernel_imports_no_domain() -> None:
    for path, part in of_our_own("kernel"):
        assert part == "kernel", f"{path} imports {part}: the kernel knows no domain."


def test_deletion_imports_only_the_kernel() -> None:
    for path, part in of_our_own("deletion"):
        assert part in {"kernel", "deletion"}, f"{path} imports {part}: it serves every domain and knows none."


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_imports_no_other_domain(domain: str) -> None:
    for path, part in of_our_own(domain):
        assert part in SHARED | {domain} | CATALOGUES, (
            f"{path} imports {part}: a domain may import the kernel and deletion, never another domain."
        )


@pytest.mark.parametrize("catalogue", sorted(CATALOGUES))
def test_a_catalogue_imports_only_the_kernel(catalogue: str) -> None:
    """It names what the domains have, and whoever asks for that loads it then."""
    for name in imports(PACKAGE / f"{catalogue}.py"):
        assert not name.startswith("lamplighter.") or name.startswith("lamplighter.kernel."), (
            f"{catalogue}.py imports {name}: it may import the kernel, never a domain."
        )


def test_the_kernels_package_is_empty() -> None:
    assert (PACKAGE / "kernel" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("module", ["lamplighter.kernel.job", *Project().handler_modules])
def test_loading_a_handler_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(sys.modules.keys() & {HEAVY!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not loaded, f"Loading {module} loads {', '.join(loaded)}: import it in the function that uses it."


def test_reading_the_audit_archive_needs_nothing_but_boto3() -> None:
    """An auditor's machine has none of the functions' dependencies, for years after the stack has gone."""
    command = [sys.executable, "-S", "-m", "lamplighter.admin.audit_read", "--help"]  # -S: without what is installed
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
