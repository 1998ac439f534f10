"""The template and the settings: few parameters, small environments, one document (REQUIREMENTS K4, P2)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lamplighter import catalogue, rules
from lamplighter.cloud import remedies, targets
from lamplighter.jobs.schedules import expressions
from lamplighter.jobs.settings_document import MAX_DEPLOYED
from lamplighter.kernel.settings import MAX_BYTES, PREFIX, VARIABLES, Layer, Settings, merged, parse, read
from local.settings import LOCAL, OWNERS
from tests.template.project import ROOT, Function, Project

PROJECT = Project()
TEMPLATE = PROJECT.template
PARAMETERS = TEMPLATE["Parameters"]
SHARED = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
MOST_PARAMETERS = 20
ENVIRONMENT_LIMIT = 2048
LONGEST = {"DatabaseUrl": 200, "DatabaseSecretArn": 150, "DatabaseHost": 120, "EndpointUrl": 60, "DatabaseCaFile": 40}
"""Characters of a value that an owner may well give."""
WRITERS = {"SettingsFunction", "TimeoutCheckerFunction"}


def environment(function: Function) -> dict[str, Any]:
    own = TEMPLATE["Resources"][function.logical_id]["Properties"].get("Environment", {}).get("Variables", {})
    return SHARED | own


def length(value: Any) -> int:
    if isinstance(value, str | int):
        return len(str(value))
    if "Fn::If" in value and isinstance(value["Fn::If"][1], str):
        return len(value["Fn::If"][1])
    name = value["Fn::If"][1].get("Ref") if "Fn::If" in value else value.get("Ref")
    if name in PARAMETERS:
        return LONGEST.get(name) or max(len(str(PARAMETERS[name]["Default"])), 63)
    return 140 if name == "AlertsTopic" or "Fn::Sub" in value else 100  # an ARN; a name


def test_there_are_few_parameters_and_behaviour_is_one_of_them() -> None:
    assert len(PARAMETERS) <= MOST_PARAMETERS
    assert PARAMETERS["Settings"]["MaxLength"] == MAX_DEPLOYED
    assert parse(read(PARAMETERS["Settings"]["Default"], source="template.yaml"), source="template.yaml") == Settings()


def test_every_parameter_is_in_a_group() -> None:
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(PARAMETERS)


def test_no_setting_is_among_the_shared_variables() -> None:
    assert not [name for name in SHARED if name.startswith(PREFIX) or name in VARIABLES]


@pytest.mark.parametrize("function", PROJECT.functions, ids=lambda function: function.job)
def test_a_functions_environment_is_small(function: Function) -> None:
    values = {name: length(value) for name, value in environment(function).items()}
    ways = sorted(values.pop(name) for name in ("DATABASE_URL", "DATABASE_SECRET_ARN", "DATABASE_HOST"))
    size = ways[-1] + sum(len(name) + value for name, value in values.items())  # one of them is given at most
    assert size < ENVIRONMENT_LIMIT, f"{function.logical_id}: {size} bytes"


def test_only_what_writes_the_document_reads_the_parameter_and_stands_outside_the_vpc() -> None:
    for function in PROJECT.functions:
        writes = function.logical_id in WRITERS
        assert ("SETTINGS_PARAMETER" in environment(function)) is writes, function.logical_id
        assert ({"Ref": "SettingsPolicy"} in function.properties.get("Policies", [])) is writes, function.logical_id
        assert not (writes and "VpcConfig" in function.properties)
    ssm = [name for name, statement in PROJECT.statements if "ssm:" in json.dumps(statement)]
    assert ssm == ["SettingsPolicy"]


def test_the_variables_of_a_function_are_declared_empty_where_they_are_read() -> None:
    """`sam local` sets only what the template declares (D2, D4)."""
    declared = {
        function.job: {name for name, value in environment(function).items() if name in VARIABLES and value == ""}
        for function in PROJECT.functions
    }
    assert {job: names for job, names in declared.items() if names} == {
        "upload-processing": {"JOB_TIMEOUT_SECONDS"},
        "upload-expiry": {"TTL_COMPLETED_HOURS", "TTL_FAILED_HOURS"},
        "schedules": {"CLEANUP_INTERVAL_SECONDS"},
        "api": {"CLEANUP_INTERVAL_SECONDS"},
    }
    assert set().union(*declared.values()) == set(VARIABLES)


def test_the_schedules_begin_as_the_defaults_say() -> None:
    deployed = {schedule["Name"]["Fn::Sub"].partition("}-")[2]: schedule for _, schedule in PROJECT.schedules}
    for name, expression in expressions(Settings()).items():
        assert deployed[name]["ScheduleExpression"] == expression


def test_the_parameter_of_earlier_versions_stays_as_it_was() -> None:
    """An upgrade must not touch what an operator put there."""
    assert TEMPLATE["Resources"]["SettingsParameter"] == {
        "Type": "AWS::SSM::Parameter",
        "Properties": {"Name": {"Fn::Sub": "/${AWS::StackName}/settings"}, "Type": "String", "Value": "{}"},
    }


def test_a_deployment_applies_the_settings_after_what_that_needs() -> None:
    resource = TEMPLATE["Resources"]["EffectiveSettings"]
    properties = resource["Properties"]
    assert properties["Settings"] == {"Ref": "Settings"}
    timeout = TEMPLATE["Resources"]["SettingsFunction"]["Properties"].get("Timeout", 60)
    assert properties["ServiceTimeout"] > timeout
    assert set(resource["DependsOn"]) == {
        "OrphanCleanupFunctionSchedule",
        "CleanupStateMachineUploadCleanup",
        "AlertsTopicPolicy",
    }
    for name in ("OrphanCleanupFunction", "CleanupStateMachine"):
        assert {"Schedule", "UploadCleanup"} & TEMPLATE["Resources"][name]["Properties"]["Events"].keys()


def test_a_deployment_applies_the_settings_anew_when_they_or_the_schedules_changed() -> None:
    """CloudFormation puts a schedule back that the template changes, and asks a custom resource that did not change
    nothing."""
    schedules = [schedule for _, schedule in PROJECT.schedules]
    what = json.dumps([Settings.model_json_schema(), schedules], sort_keys=True)
    revision = hashlib.sha256(what.encode()).hexdigest()[:12]
    assert TEMPLATE["Resources"]["EffectiveSettings"]["Properties"]["Revision"] == revision, (
        f"The settings or the schedules changed: EffectiveSettings needs Revision: '{revision}'."
    )


def test_five_hundred_regions_of_accounts_fit() -> None:
    each = [
        {
            "accounts": [f"{n:012d}"],
            "regions": ["ap-southeast-2"],
            "role": f"lamplighter-{'r' * 52}",
            "external_id": "e" * 400,
        }
        for n in range(targets.MOST)
    ]
    document = json.dumps({"cloud": {"targets": each}})
    assert len(document) < MAX_BYTES
    assert len(parse(read(document, source="a test"), source="a test").cloud.targets) == targets.MOST


DOCUMENTS = sorted((ROOT / "tests" / "documents").glob("settings-*.json"))
EXAMPLES = sorted((ROOT / "examples" / "settings").glob("*.json"))


def checked(document: Path) -> Settings:
    settings = parse(read(document.read_text(), source=document.name), source=document.name)
    rules.checked(settings)
    remedies.checked(settings)
    return settings


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_documents_of_earlier_versions_are_read(document: Path) -> None:
    settings = checked(document)
    assert settings != Settings()
    stored = json.dumps(merged([Layer.of(read(document.read_text(), source="a test"), source="a test")]))
    assert parse(json.loads(stored), source="again") == settings


def test_the_whole_of_an_earlier_document_is_in_force() -> None:
    settings = checked(ROOT / "tests" / "documents" / "settings-0.1-everything.json")
    assert (settings.media.apply, settings.media.max_orphan_share, settings.allow_override) == (True, 0.5, True)
    assert [(str(one), one.max_unmatched) for one in settings.media.references] == [
        ("media_files.storage_key", 7),
        ("public.avatars.url", 7),
    ]
    assert settings.uploads.cleanup_interval_seconds == 1800
    assert settings.rule("system_logs").keep_days == 365
    assert settings.rule("audit_log").keep_days == 180
    assert not any(settings.rule(name).apply for name in OWNERS)
    assert settings.cloud.remedies["idle_cpu"].apply


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(document: Path) -> None:
    settings = checked(document)
    assert settings != Settings()
    assert len(json.dumps(json.loads(document.read_text()))) < MAX_DEPLOYED


def test_there_is_an_example_for_each_kind_of_installation() -> None:
    assert [path.stem for path in EXAMPLES] == ["large", "scan-only", "small"]


def test_the_local_stack_applies_all_that_is_the_owners() -> None:
    settings = parse(LOCAL, source="local/settings.py")
    assert set(OWNERS) == set(rules.names()) - rules.OWN
    assert (settings.allow_override, settings.media.apply, settings.media.ramp) == (True, True, False)
    assert all(settings.rule(name).apply and not settings.rule(name).ramp for name in OWNERS)


def test_every_check_of_the_settings_is_there() -> None:
    assert len(catalogue.SETTINGS_CHECKS) == 3
    assert all(re.fullmatch(r"lamplighter\.[a-z_.]+:checked", name) for name in catalogue.SETTINGS_CHECKS)
