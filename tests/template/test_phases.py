"""Jobs made of phases: their state machine, their functions, their schedules and the code agree."""

from __future__ import annotations

import builtins
from datetime import timedelta
from typing import Any

import pytest
import yaml

from lamplighter.catalogue import NAMES, job_type
from lamplighter.kernel import errors
from lamplighter.kernel.phases import EXECUTION, MARGIN, PhasedJob
from lamplighter.library import cleanup
from lamplighter.rules import RULES
from tests.template.project import STACK, Function, Project
from tests.template.test_permissions import granted

PROJECT = Project()
MACHINE = PROJECT.resources["CleanupStateMachine"]["Properties"]
ASL = yaml.safe_load((PROJECT.root / MACHINE["DefinitionUri"]).read_text())
FUNCTIONS = {function.job: function for function in PROJECT.functions}
SERVING = {phase.function for phase in cleanup.PHASES.values()}
TYPES = {name: kind for name in NAMES if isinstance(kind := job_type(name), PhasedJob)}


def test_every_phased_type_is_in_the_catalogue_and_is_started_by_the_machine() -> None:
    assert dict(cleanup.TYPES) == TYPES
    assert {kind.policy.target for kind in TYPES.values()} == {
        f"states:{MACHINE['Name']['Fn::Sub'].removeprefix(STACK)}"
    }


def test_every_phased_type_has_a_schedule_and_is_off_without_a_database() -> None:
    schedules = {
        schedule["Name"]["Fn::Sub"]: schedule for name, schedule in PROJECT.schedules if name == "CleanupStateMachine"
    }
    assert schedules.keys() == {STACK + name.replace("_", "-") for name in TYPES}
    for name, schedule in schedules.items():
        if name.removeprefix(STACK) == "upload-cleanup":
            assert "State" not in schedule, "Files expire without a database too; records then stay."
        else:
            assert schedule["State"] == {"Fn::If": ["HasDatabase", "ENABLED", "DISABLED"]}, f"{name} needs a database."


def test_schedules_do_not_start_together() -> None:
    """REQUIREMENTS C1: each has a minute, or at least an hour, of its own."""
    expressions = [schedule["ScheduleExpression"] for _, schedule in PROJECT.schedules if "cron" in str(schedule)]
    assert expressions and len(expressions) == len(set(expressions))


@pytest.mark.parametrize("phase", cleanup.PHASES)
def test_every_phase_is_served_by_its_function(phase: str) -> None:
    name = cleanup.PHASES[phase].function
    assert name in FUNCTIONS, f"The phase {phase} is served by {name}, which template.yaml does not have."
    source = PROJECT.source(FUNCTIONS[name].module).read_text()
    assert phase in cleanup.BODIES if name == "cleanup" else f'"{phase}"' in source, f"{name} does not serve {phase}."


def test_every_phase_belongs_to_exactly_one_type_and_every_rule_is_a_phase() -> None:
    own = [phase for kind in TYPES.values() for phase in kind.spans]
    assert sorted(own) == sorted(cleanup.PHASES)
    assert RULES.keys() <= cleanup.PHASES.keys()


def test_the_machine_may_call_the_functions_that_serve_phases_and_nothing_else() -> None:
    expected = [{"Fn::GetAtt": [FUNCTIONS[name].logical_id, "Arn"]} for name in sorted(SERVING)]
    found = granted("CleanupStateMachine", "DoPhases")
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("function", [FUNCTIONS[name] for name in sorted(SERVING)], ids=lambda function: function.job)
def test_a_phase_is_given_up_only_when_its_function_has_ended_and_while_others_can_still_run(
    function: Function,
) -> None:
    """FAILURES 1: what was given up too early would work on beside what comes after it."""
    given_up = timedelta(seconds=ASL["States"]["Phase"]["TimeoutSeconds"])
    assert timedelta(seconds=function.properties["Timeout"]) < given_up < EXECUTION - MARGIN


def test_an_execution_ends_with_the_ledgers_deadline() -> None:
    """REQUIREMENTS B1, B6."""
    assert timedelta(seconds=ASL["TimeoutSeconds"]) == EXECUTION
    assert {kind.policy.timeout for kind in TYPES.values()} == {EXECUTION}


def tasks() -> list[dict[str, Any]]:
    return [state for state in ASL["States"].values() if state["Type"] == "Task"]


def test_every_task_has_a_timeout_and_calls_again_only_what_did_not_get_through() -> None:
    for task in tasks():
        assert task["TimeoutSeconds"]
        for retry in task["Retry"]:
            assert retry["MaxAttempts"] <= 3


def test_the_errors_that_the_machine_knows_exist() -> None:
    handled = [handler for task in tasks() for kind in ("Retry", "Catch") for handler in task.get(kind, ())]
    names = {name for handler in handled for name in handler["ErrorEquals"]}
    ours = {name for name in names if "." not in name}
    assert ours == {"LostLease", "DatabaseUnavailable", "Retryable"}
    assert all(hasattr(errors, name) or hasattr(builtins, name) for name in ours)
