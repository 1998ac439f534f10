"""Each setting has a template parameter with its default, and the functions get it (REQUIREMENTS K4)."""

from __future__ import annotations

import pytest

from lamplighter.kernel.settings import MAX_UNMAPPED, OLD_NAMES, PREFIX, RETENTION_DAYS, Settings, parse
from tests.template.project import Project

TEMPLATE = Project().template
ENVIRONMENT = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
LAMBDA_LIMIT = 4096  # bytes of a function's environment, names and values ("Lambda quotas")


NAMES = ("allow_override", RETENTION_DAYS, MAX_UNMAPPED, *OLD_NAMES)


def parameter_of(setting: str) -> str:
    return setting.title().replace("_", "")


@pytest.mark.parametrize("setting", NAMES)
def test_a_setting_has_its_parameter(setting: str) -> None:
    name = parameter_of(setting)
    assert name in TEMPLATE["Parameters"], f"The setting {setting} has no template parameter {name}."
    variable = f"{PREFIX}{setting.upper()}"
    assert ENVIRONMENT.get(variable) == {"Ref": name}, f"Globals must give the functions `{variable}: !Ref {name}`."


@pytest.mark.parametrize("setting", NAMES)
def test_the_parameter_has_the_settings_default(setting: str) -> None:
    default = str(TEMPLATE["Parameters"][parameter_of(setting)]["Default"])
    settings = parse({setting: default}, source="template.yaml")
    assert settings.model_copy(update={"retention": Settings().retention}) == Settings()


def test_the_functions_are_given_no_unknown_setting() -> None:
    given = {name.removeprefix(PREFIX).lower() for name in ENVIRONMENT if name.startswith(PREFIX)}
    assert given == set(NAMES)


def test_every_parameter_is_in_a_group() -> None:
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(TEMPLATE["Parameters"])


def test_the_environment_fits_lambda() -> None:
    def length(value: object) -> int:
        if isinstance(value, str | int):
            return len(str(value))
        parameter = TEMPLATE["Parameters"].get(value.get("Ref")) if isinstance(value, dict) else None
        return len(str(parameter["Default"])) if parameter else 120  # as long as an ARN

    size = sum(len(name) + length(value) for name, value in ENVIRONMENT.items())
    assert size < LAMBDA_LIMIT * 0.9, f"{size} of {LAMBDA_LIMIT} bytes: give settings to the functions that use them."
