"""A deployment without a database: what is there, what is off, and what may use the bucket (REQUIREMENTS P5)."""

from __future__ import annotations

from typing import Any

import pytest

from lamplighter.cloud.store.s3 import PREFIX
from lamplighter.jobs.schedules import NEED_DATABASE
from lamplighter.kernel.no_database import VARIABLES
from lamplighter.library import cleanup
from tests.template.project import STACK, Project

PROJECT = Project()
CONDITIONS = PROJECT.template["Conditions"]
DATABASES = ("DatabaseUrl", "DatabaseSecretArn", "DatabaseHost")
ABSENT: Any = object()


def resolved(value: Any, parameters: dict[str, str]) -> Any:
    """A part of the template under these parameters, with what depends on a condition decided."""
    match value:
        case {"Fn::If": [condition, yes, no]}:
            return resolved(yes if holds(condition, parameters) else no, parameters)
        case {"Ref": "AWS::NoValue"}:
            return ABSENT
        case dict():
            inner = {name: resolved(one, parameters) for name, one in value.items()}
            return {name: one for name, one in inner.items() if one is not ABSENT}
        case list():
            return [one for one in (resolved(one, parameters) for one in value) if one is not ABSENT]
    return value


def holds(condition: str | dict[str, Any], parameters: dict[str, str]) -> bool:
    if isinstance(condition, str):
        return holds(CONDITIONS[condition], parameters)
    [(function, given)] = condition.items()
    match function:
        case "Condition":
            return holds(given, parameters)
        case "Fn::Not":
            return not holds(given[0], parameters)
        case "Fn::Or":
            return any(holds(one, parameters) for one in given)
        case "Fn::And":
            return all(holds(one, parameters) for one in given)
    one, other = (text(value, parameters) for value in given)
    return one == other


def text(value: Any, parameters: dict[str, str]) -> str:
    match value:
        case {"Ref": name}:
            return parameters.get(name, str(PROJECT.template["Parameters"][name].get("Default", "")))
        case {"Fn::Join": [_, inner]}:
            return text(inner, parameters)
    return str(value)


def deployed(**parameters: str) -> dict[str, Any]:
    """The resources that a deployment with these parameters has."""
    return {
        name: resolved(raw, parameters)
        for name, raw in PROJECT.resources.items()
        if "Condition" not in raw or holds(raw["Condition"], parameters)
    }


WITHOUT, WITH = deployed(), deployed(DatabaseSecretArn="arn:aws:secretsmanager:eu-west-1:111122223333:secret:db")


def schedules(resources: dict[str, Any]) -> dict[str, str]:
    """The state of each schedule, by its short name."""
    events = [one for raw in resources.values() for one in raw.get("Properties", {}).get("Events", {}).values()]
    return {
        one["Properties"]["Name"]["Fn::Sub"].removeprefix(STACK): one["Properties"].get("State", "ENABLED")
        for one in events
        if one["Type"] == "ScheduleV2"
    }


def policies(resources: dict[str, Any], name: str) -> list[Any]:
    return list(resources[name]["Properties"]["Policies"])


def statements(resources: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for policy in policies(resources, name) for one in policy.get("Statement", ())]


@pytest.mark.parametrize("none", [{}, {"DatabaseUrl": "-"}, {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}])
def test_no_parameter_names_a_database_by_default(none: dict[str, str]) -> None:
    """`-` is what SAM's questions take for none."""
    assert all(PROJECT.template["Parameters"][name]["Default"] == "" for name in DATABASES)
    assert deployed(**none).keys() == WITHOUT.keys()
    assert schedules(deployed(**none)) == schedules(WITHOUT)


@pytest.mark.parametrize("name", DATABASES)
def test_each_way_to_name_one_is_a_deployment_with_a_database(name: str) -> None:
    assert schedules(deployed(**{name: "x"})) == dict.fromkeys(schedules(WITH), "ENABLED")


def test_a_function_sees_no_database_where_no_parameter_names_one() -> None:
    shared = resolved(PROJECT.template["Globals"]["Function"]["Environment"]["Variables"], {})
    assert {name: text(shared[name], {}) for name in VARIABLES} == dict.fromkeys(VARIABLES, "")


def test_no_function_is_in_a_vpc() -> None:
    assert not [name for name, raw in WITHOUT.items() if "VpcConfig" in raw.get("Properties", {})]


def test_scans_uploads_and_the_ledgers_cleanup_run_and_the_rest_is_off() -> None:
    state = schedules(WITHOUT)
    assert {name for name, one in state.items() if one == "DISABLED"} == NEED_DATABASE
    assert {"waste-scan", "security-enforcement", "cleanup", "upload-cleanup"} <= state.keys() - NEED_DATABASE
    assert WITHOUT["HistoryStream"]["Properties"]["Enabled"] is False
    assert WITH["HistoryStream"]["Properties"]["Enabled"] is True


def test_what_is_only_for_a_database_is_not_there() -> None:
    assert WITH.keys() - WITHOUT.keys() == {"DatabasePolicy", "DatabaseSchema", "HistoryLagAlarm"}
    assert WITHOUT.keys() - WITH.keys() == {"FindingsPolicy"}


def test_nothing_names_what_is_not_there() -> None:
    for resources in (WITH, WITHOUT):
        missing = PROJECT.resources.keys() - resources.keys()
        for name, raw in resources.items():
            named = {one for one in missing if f"'{one}'" in str(raw) or f"{{{one}}}" in str(raw)}
            assert not named, f"{name} names {named}"


def test_the_bucket_is_the_store_of_those_who_scan_report_act_and_answer_and_of_nobody_else() -> None:
    reads, writes = set(), set()
    for name, raw in WITHOUT.items():
        if raw["Type"] != "AWS::Serverless::Function":
            continue
        if {"Ref": "FindingsPolicy"} in raw["Properties"].get("Policies", []):
            reads.add(name)
        writes |= {name for one in statements(WITHOUT, name) if one["Sid"] == "KeepFindings"}
    assert reads == {"CloudScanFunction", "CloudRegionFunction", "CloudActionsFunction", "ApiFunction"}
    assert writes == {"CloudScanFunction", "CloudRegionFunction"}
    for name in reads:
        assert {"Ref": "FindingsPolicy"} not in policies(WITH, name)
        assert not [one for one in statements(WITH, name) if one["Sid"] == "KeepFindings"]
    objects = {"Fn::Sub": f"${{ArchiveBucket.Arn}}/{PREFIX}*"}
    [keep] = [one for one in statements(WITHOUT, "CloudRegionFunction") if one["Sid"] == "KeepFindings"]
    assert (keep["Action"], keep["Resource"]) == ("s3:PutObject", objects)
    read, list_ = WITHOUT["FindingsPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (read["Action"], read["Resource"]) == ("s3:GetObject", objects)
    assert list_["Action"] == "s3:ListBucket"


def test_former_versions_of_findings_end_and_the_findings_do_not() -> None:
    rules = PROJECT.resources["ArchiveBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    [rule] = [one for one in rules if one.get("Prefix") == PREFIX]
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 7}
    assert "ExpirationInDays" not in rule
    assert not [one for one in rules if PREFIX.startswith(one.get("Prefix", "-")) and "ExpirationInDays" in one]


def test_the_cleanup_leaves_out_exactly_the_phases_that_need_a_database() -> None:
    assert {name for name, phase in cleanup.PHASES.items() if not phase.database} == {
        "stale_jobs",
        "old_jobs",
        "uploads",
    }
