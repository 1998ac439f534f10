"""The dependency layer holds what uv.lock says, and the AWS services that the code asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from tests.template.project import ROOT

LAYER = ROOT / "layers" / "dependencies"
PACKAGE = ROOT / "functions" / "lamplighter"


def locked() -> dict[str, Any]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {package["name"]: package for package in packages}


def runtime_packages(packages: dict[str, Any]) -> set[str]:
    """Names of all that the functions need, through and through."""
    found: set[str] = set()
    waiting = ["lamplighter"]
    while waiting:
        for dependency in packages[waiting.pop()].get("dependencies", []):
            if dependency["name"] not in found and not _for_another_system(dependency.get("marker", "")):
                found.add(dependency["name"])
                waiting.append(dependency["name"])
    return found


def _for_another_system(marker: str) -> bool:
    return "win32" in marker or "Windows" in marker


def requirements() -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by name."""
    text = re.sub(r"#.*", "", (LAYER / "requirements.txt").read_text()).replace("\\\n", " ")
    lines = (line.split() for line in text.splitlines() if line.strip())
    named = {line[0].partition("=="): line[1:] for line in lines}
    return {
        name: (version, {part.removeprefix("--hash=") for part in rest}) for (name, _, version), rest in named.items()
    }


def test_the_requirements_are_those_of_the_lock_file() -> None:
    packages = locked()
    expected = {
        name: (
            packages[name]["version"],
            {file["hash"] for file in [*packages[name]["wheels"], *filter(None, [packages[name].get("sdist")])]},
        )
        for name in runtime_packages(packages)
    }
    assert requirements() == expected, (
        "layers/dependencies/requirements.txt is not what uv.lock says: run `make layer` and commit it."
    )


def services_in_layer() -> set[str]:
    (line,) = re.findall(r"^SERVICES = (.*)$", (LAYER / "Makefile").read_text(), re.MULTILINE)
    return set(line.split())


def services_asked_for() -> set[str]:
    call = re.compile(r"\bclients?\(\s*\"([a-z0-9-]+)\"")
    return {service for path in PACKAGE.rglob("*.py") for service in call.findall(path.read_text())}


def test_the_layer_has_the_services_the_code_asks_for_and_no_others() -> None:
    assert services_in_layer() == services_asked_for(), (
        "SERVICES in layers/dependencies/Makefile must name what the code asks for."
    )


def test_no_client_is_asked_for_by_a_computed_name() -> None:
    """The test above reads names from the source, so they have to stand there."""
    computed = re.compile(r"(?<![.\w])client\((?!\s*\"|service: str|\s*\))")
    assert not [path for path in PACKAGE.rglob("*.py") if computed.search(path.read_text())]


def test_botocore_knows_each_service() -> None:
    import botocore

    data = Path(botocore.__file__).with_name("data")
    assert all((data / service).is_dir() for service in services_in_layer())
