"""What the template, the code, the sample events and the tests of a checkout say of each job."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from samcli.yamlhelper import yaml_parse

ROOT = Path(__file__).resolve().parents[2]
STACK = "${AWS::StackName}-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function of the template; `properties` have the globals' defaults in them."""

    logical_id: str
    properties: dict[str, Any]

    @property
    def job(self) -> str:
        """Its name below the stack's, such as `orphan-cleanup`."""
        return str(self.properties["FunctionName"]["Fn::Sub"]).removeprefix(STACK)

    @property
    def module(self) -> str:
        return str(self.properties["Handler"]).rpartition(".")[0]

    @property
    def schedules(self) -> list[dict[str, Any]]:
        return _schedules(self.properties)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checkout."""

    root: Path = ROOT

    @cached_property
    def template(self) -> dict[str, Any]:
        return dict(yaml_parse((self.root / "template.yaml").read_text()))

    @property
    def resources(self) -> dict[str, Any]:
        return dict(self.template["Resources"])

    def of_type(self, type_: str) -> dict[str, dict[str, Any]]:
        """Properties of the resources of a type, by logical id."""
        return {name: raw.get("Properties", {}) for name, raw in self.resources.items() if raw["Type"] == type_}

    @property
    def functions(self) -> list[Function]:
        shared = self.template["Globals"]["Function"]
        return [
            Function(logical_id=name, properties={**shared, **own})
            for name, own in self.of_type("AWS::Serverless::Function").items()
        ]

    @property
    def schedules(self) -> list[tuple[str, dict[str, Any]]]:
        """Logical id of what a schedule starts, and the schedule."""
        targets = self.of_type("AWS::Serverless::Function") | self.of_type("AWS::Serverless::StateMachine")
        return [(name, schedule) for name, properties in targets.items() for schedule in _schedules(properties)]

    @property
    def statements(self) -> list[tuple[str, dict[str, Any]]]:
        """Every statement that allows something to a role, with the logical id it stands in."""
        identity = {
            "AWS::Serverless::Function",
            "AWS::Serverless::StateMachine",
            "AWS::IAM::ManagedPolicy",
            "AWS::IAM::Role",
        }
        return [
            (name, statement)
            for name, raw in self.resources.items()
            if raw["Type"] in identity
            for statement in _statements(raw["Properties"])
            if statement["Effect"] == "Allow" and "Principal" not in statement
        ]

    def source(self, module: str) -> Path:
        return self.root / "functions" / Path(*module.split(".")).with_suffix(".py")

    @cached_property
    def handler_modules(self) -> list[str]:
        """Modules of the domains that define a `handler`."""
        package = self.root / "functions" / "lamplighter"
        return [
            ".".join(path.relative_to(package.parent).with_suffix("").parts)
            for path in sorted(package.glob("*/*.py"))
            if path.parent.name != "kernel" and _defines_handler(path)
        ]

    @property
    def samples(self) -> list[Path]:
        return sorted((self.root / "events").glob("*/*.json"))

    @property
    def tested_modules(self) -> set[str]:
        """Modules that some test, or what it stands on, imports."""
        return {name for path in (self.root / "tests").rglob("*.py") for name in imports(path)}

    def sample(self, module: str) -> Path:
        domain, name = module.split(".")[-2:]
        return self.root / "events" / domain / f"{name}.json"


def incomplete_jobs(project: Project) -> list[str]:
    """A sentence for each of the four parts of a job (file, resource, sample event, test) that is missing."""
    functions = {function.module: function for function in project.functions}
    tested = project.tested_modules
    problems = []
    for module in project.handler_modules:
        domain, name = module.split(".")[-2:]
        if module not in functions:
            problems.append(
                f"{module} has a handler, but template.yaml has no function with `Handler: {module}.handler`."
            )
        if not project.sample(module).is_file():
            problems.append(
                f"{module} has no sample event: write events/{domain}/{name}.json, a preview if it destroys."
            )
        if module not in tested:
            problems.append(
                f"{module} has no test: write tests/unit/test_{name}.py or tests/integration/test_{name}.py."
            )
    for module, function in functions.items():
        name = module.rpartition(".")[2].replace("_", "-")
        if module not in project.handler_modules:
            file = project.source(module).relative_to(project.root)
            problems.append(f"{function.logical_id} names the handler {module}.handler, but {file} defines none.")
        elif function.job != name:
            problems.append(
                f"{function.logical_id} is named {STACK}{function.job}: its module calls for {STACK}{name}."
            )
    expected = {project.sample(module) for module in functions}
    problems += [
        f"{sample.relative_to(project.root)} is a sample event of no function of template.yaml."
        for sample in project.samples
        if sample not in expected
    ]
    return problems


@cache
def _parsed(source: str) -> ast.Module:  # by content: the checkouts that tests break are copies of one
    return ast.parse(source)


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports: modules, and what is taken from them."""
    for node in ast.walk(_parsed(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name."
            yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))


def _defines_handler(path: Path) -> bool:
    body = _parsed(path.read_text()).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "handler" for node in body)


def _schedules(properties: dict[str, Any]) -> list[dict[str, Any]]:
    events = properties.get("Events", {}).values()
    return [event["Properties"] for event in events if event["Type"] == "ScheduleV2"]


def _statements(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "Effect" in value:
            yield value
        else:
            for inner in value.values():
                yield from _statements(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _statements(inner)
