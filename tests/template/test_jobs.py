"""Each job is one file, one resource, one sample event and one test, and the four agree."""

from __future__ import annotations

import importlib
import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lamplighter.catalogue import NAMES, job_type
from lamplighter.jobs.schedules import NEED_DATABASE
from lamplighter.kernel import phases
from lamplighter.kernel.job import JobHandler
from lamplighter.kernel.ledger.row import derived_job_id, from_text
from lamplighter.kernel.ledger.stream import change_of
from lamplighter.kernel.settings import parse
from tests.template.project import ROOT, STACK, Function, Project, imports, incomplete_jobs

PROJECT = Project()
FUNCTIONS = PROJECT.functions
EACH_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.job)


def handler_of(function: Function) -> Any:
    return importlib.import_module(function.module).handler


def is_job(function: Function) -> bool:
    return isinstance(handler_of(function), JobHandler)


def serves_phases(function: Function) -> bool:
    return "phases.take(" in PROJECT.source(function.module).read_text()


JOBS = [function for function in FUNCTIONS if is_job(function)]


def test_every_job_has_its_four_parts() -> None:
    problems = incomplete_jobs(PROJECT)
    assert not problems, "\n".join(problems)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout that may be broken."""
    shutil.copy(ROOT / "template.yaml", tmp_path)
    for folder in ("functions", "events", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def new_problems(copy: Path) -> set[str]:
    return set(incomplete_jobs(Project(root=copy))) - set(incomplete_jobs(PROJECT))


def edit_template(copy: Path, old: str, new: str) -> None:
    text = (copy / "template.yaml").read_text()
    assert old in text
    (copy / "template.yaml").write_text(text.replace(old, new))


def test_a_missing_file_is_told_of(copy: Path) -> None:
    (copy / "functions/lamplighter/media/undo.py").unlink()
    assert new_problems(copy) == {
        "UndoFunction names the handler lamplighter.media.undo.handler, "
        "but functions/lamplighter/media/undo.py defines none."
    }


def test_a_missing_resource_is_told_of(copy: Path) -> None:
    edit_template(copy, "lamplighter.media.undo.handler", "lamplighter.media.redo.handler")
    assert (
        "lamplighter.media.undo has a handler, "
        "but template.yaml has no function with `Handler: lamplighter.media.undo.handler`."
    ) in new_problems(copy)


def test_a_missing_sample_is_told_of(copy: Path) -> None:
    (copy / "events/media/undo.json").unlink()
    assert new_problems(copy) == {
        "lamplighter.media.undo has no sample event: write events/media/undo.json, a preview if it destroys."
    }


def test_a_missing_test_is_told_of(copy: Path) -> None:
    (copy / "functions/lamplighter/media/redo.py").write_text("def handler(event, context): ...")
    assert (
        "lamplighter.media.redo has no test: write tests/unit/test_redo.py or tests/integration/test_redo.py."
    ) in new_problems(copy)


def test_a_misnamed_function_is_told_of(copy: Path) -> None:
    edit_template(copy, f"FunctionName: !Sub '{STACK}undo'", f"FunctionName: !Sub '{STACK}undone'")
    assert new_problems(copy) == {f"UndoFunction is named {STACK}undone: its module calls for {STACK}undo."}


def test_a_sample_of_nothing_is_told_of(copy: Path) -> None:
    (copy / "events/media/redo.json").write_text("{}")
    assert new_problems(copy) == {"events/media/redo.json is a sample event of no function of template.yaml."}


@EACH_FUNCTION
def test_the_handler_is_callable(function: Function) -> None:
    assert callable(handler_of(function))


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.job)
def test_the_ledger_outlasts_the_function(function: Function) -> None:
    """FAILURES 1: a deadline before the function's own end rescues jobs that live, and runs them twice."""
    handler, timeout = handler_of(function), timedelta(seconds=function.properties["Timeout"])
    assert handler.policy.timeout > timeout, (
        f"{function.job}: the ledger calls an attempt dead after {handler.policy.timeout}, "
        f"but its function may run for {timeout}."
    )
    assert handler.policy.timeout <= timeout + timedelta(minutes=2), (
        f"{function.job}: its function ends after {timeout}, "
        f"but the ledger calls a dead attempt dead only after {handler.policy.timeout}."
    )


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.job)
def test_the_dispatcher_finds_the_function(function: Function) -> None:
    handler = handler_of(function)
    assert handler.policy.target == f"lambda:{function.job}"
    assert handler.job_type == function.job.replace("-", "_")


@EACH_FUNCTION
def test_the_sample_is_one_the_handler_takes(function: Function) -> None:
    event = json.loads(PROJECT.sample(function.module).read_text())
    module, handler = importlib.import_module(function.module), handler_of(function)
    if isinstance(handler, JobHandler):
        handler.validated(event)
    elif serves_phases(function):
        assert phases.Preview.model_validate(event).dry_run
    elif hasattr(module, "Event"):
        module.Event.model_validate(event)
    elif function.job == "api":
        request = event["requestContext"]["http"]
        assert request["method"].lower() in json.loads(module.document())["paths"][request["path"]]
    elif function.job in ("dispatcher", "history"):
        assert [change_of(record) for record in event["Records"]]
    elif function.job == "settings":
        assert parse(event.pop("validate"), source="the sample") and not event
    else:
        assert event.keys() <= {"schedule", "scheduled_time"}, f"{function.job} takes no parameters."


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.job)
def test_the_sample_of_what_destroys_is_a_preview(function: Function) -> None:
    event = json.loads(PROJECT.sample(function.module).read_text())
    if "dry_run" in handler_of(function).params.model_fields:
        assert event.get("dry_run") is True, f"events of {function.job} must say {{'dry_run': true}}."


@pytest.mark.parametrize(
    ("target", "schedule"), PROJECT.schedules, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_schedule_is_complete(target: str, schedule: dict[str, Any]) -> None:
    name = schedule["Name"]["Fn::Sub"].removeprefix(STACK)
    properties = PROJECT.resources[target]["Properties"]
    expected = {"schedule": name, "scheduled_time": "<aws.scheduler.scheduled-time>"}
    machine = properties.get("Name", {}).get("Fn::Sub", "").removeprefix(STACK)
    started = {kind for kind in NAMES if job_type(kind).policy.target == f"states:{machine}"}
    if started:
        expected["job_type"] = name.replace("-", "_")
        assert expected["job_type"] in started, (
            f"The schedule {name} of {target} has the name of none of its job types."
        )
    else:
        own = properties.get("FunctionName") or properties["Name"]
        assert own == schedule["Name"], f"The schedule of {target} has another name than what it starts."
    assert json.loads(schedule["Input"]) == expected, (
        f"{name}: its Input must name the schedule and its time; the rest are settings, which can change at run time."
    )
    assert schedule["GroupName"] == {"Ref": "ScheduleGroup"}, (
        f"{name} must be in the stack's group, or nobody watches it."
    )
    assert schedule["RetryPolicy"]["MaximumRetryAttempts"] <= 2, f"{name}: the ledger owns retries (K5)."
    assert schedule["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": ["FailuresQueue", "Arn"]}}


def test_the_same_tick_makes_the_same_job() -> None:
    """The scheduler's spelling of a time (no milliseconds) is one the ledger derives a job from (K6)."""
    at = from_text("2026-11-22T03:00:00Z")
    assert derived_job_id(at, "tick", "orphan-cleanup") == derived_job_id(
        from_text("2026-11-22T03:00:00.000Z"), "tick", "orphan-cleanup"
    )


def test_what_needs_a_database_is_off_without_one() -> None:
    for function in FUNCTIONS:
        if not uses_database(function):
            continue
        for schedule in function.schedules:
            assert schedule["State"] == OFF_WITHOUT, f"{function.job} needs a database: its schedule must be off."


OFF_WITHOUT = {"Fn::If": ["HasDatabase", "ENABLED", "DISABLED"]}
"""The state of a schedule whose job needs a database (REQUIREMENTS P5)."""


def test_the_code_starts_no_schedule_that_the_template_keeps_off() -> None:
    off = {schedule["Name"]["Fn::Sub"] for _, schedule in PROJECT.schedules if schedule.get("State") == OFF_WITHOUT}
    assert off == {f"{STACK}{name}" for name in NEED_DATABASE}


def uses_database(function: Function) -> bool:
    """Whether its module does, or one of its domain that it imports."""
    domain = function.module.rpartition(".")[0]
    own = [function.module, *imports(PROJECT.source(function.module))]
    sources = [PROJECT.source(name) for name in own if name.startswith(f"{domain}.")]
    texts = [source.read_text() for source in sources if source.is_file()]
    return any(word in text for word in ("kernel.database", "cloud.store") for text in texts)


@EACH_FUNCTION
def test_only_what_needs_the_database_can_reach_it(function: Function) -> None:
    grant = {"Fn::If": ["HasDatabaseGrant", {"Ref": "DatabasePolicy"}, {"Ref": "AWS::NoValue"}]}
    policies = function.properties.get("Policies", [])
    assert (grant in policies) == uses_database(function), (
        f"{function.job}: DatabasePolicy belongs to what imports kernel.database."
    )
    assert ("VpcConfig" in function.properties) == uses_database(function), (
        f"{function.job}: VpcConfig belongs to the same."
    )
