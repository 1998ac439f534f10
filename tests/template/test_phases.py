"""Jobs made of phases: their state machines, their functions, their schedules and the code agree."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import yaml

from lamplighter.catalogue import NAMES, job_type
from lamplighter.cloud import cloud_scan
from lamplighter.kernel import errors
from lamplighter.kernel.phased_job import EXECUTION, Phase, PhasedJob
from lamplighter.kernel.phases import MARGIN
from lamplighter.library import cleanup
from lamplighter.rules import RULES
from tests.template.project import STACK, Function, Project
from tests.template.test_permissions import granted

PROJECT = Project()
FUNCTIONS = {function.job: function for function in PROJECT.functions}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A state machine, and the code behind it."""

    logical_id: str
    types: Mapping[str, PhasedJob]
    phases: Mapping[str, Phase]
    execution: timedelta

    @property
    def properties(self) -> dict[str, Any]:
        return dict(PROJECT.resources[self.logical_id]["Properties"])

    @property
    def name(self) -> str:
        return str(self.properties["Name"]["Fn::Sub"]).removeprefix(STACK)

    @property
    def asl(self) -> dict[str, Any]:
        return dict(yaml.safe_load((PROJECT.root / self.properties["DefinitionUri"]).read_text()))

    @property
    def states(self) -> dict[str, Any]:
        return dict(self.asl["States"])

    @property
    def tasks(self) -> Iterator[dict[str, Any]]:
        """Those of a Map included."""
        for state in self.states.values():
            for inner in (state, *state.get("ItemProcessor", {}).get("States", {}).values()):
                if inner["Type"] == "Task":
                    yield inner


CLEANUP = Machine(
    logical_id="CleanupStateMachine", types=cleanup.TYPES, phases=cleanup.PHASES, execution=timedelta(minutes=5)
)
CLOUD = Machine(
    logical_id="CloudStateMachine",
    types=cloud_scan.TYPES,
    phases=cloud_scan.SCAN | cloud_scan.HEALTH,
    execution=timedelta(hours=1),
)
MACHINES = (CLEANUP, CLOUD)
EACH_MACHINE = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
EACH_PHASE = pytest.mark.parametrize(
    ("phase", "function"),
    [(name, phase.function) for machine in MACHINES for name, phase in machine.phases.items()],
)
SERVING = [
    (machine, FUNCTIONS[name])
    for machine in MACHINES
    for name in sorted({phase.function for phase in machine.phases.values()})
]


def test_every_phased_type_is_in_the_catalogue() -> None:
    listed = {name: kind for name in NAMES if isinstance(kind := job_type(name), PhasedJob)}
    assert {name: kind for machine in MACHINES for name, kind in machine.types.items()} == listed


@EACH_MACHINE
def test_every_phased_type_is_started_by_its_machine(machine: Machine) -> None:
    assert {kind.policy.target for kind in machine.types.values()} == {f"states:{machine.name}"}


@EACH_MACHINE
def test_every_phased_type_has_a_schedule_that_is_on_without_a_database_if_it_has_work_then(machine: Machine) -> None:
    """REQUIREMENTS P5."""
    schedules = {
        schedule["Name"]["Fn::Sub"]: schedule for name, schedule in PROJECT.schedules if name == machine.logical_id
    }
    assert schedules.keys() == {STACK + name.replace("_", "-") for name in machine.types}
    for name, schedule in schedules.items():
        kind = machine.types[name.removeprefix(STACK).replace("-", "_")]
        if all(kind.catalogue[phase].database for phase in kind.spans):
            assert schedule["State"] == {"Fn::If": ["HasDatabase", "ENABLED", "DISABLED"]}, f"{name} needs a database."
        else:
            assert "State" not in schedule, f"{name} has work without a database, too."


def test_schedules_do_not_start_together() -> None:
    """REQUIREMENTS C1: each has a minute, or at least an hour, of its own."""
    expressions = [schedule["ScheduleExpression"] for _, schedule in PROJECT.schedules if "cron" in str(schedule)]
    assert expressions and len(expressions) == len(set(expressions))
    moments = [moment for expression in expressions for moment in moments_of(str(expression))]
    assert len(moments) == len(set(moments)), "Two start in the same minute."


def moments_of(cron: str) -> Iterator[tuple[int, int]]:
    """Hours and minutes of a day on which a schedule may start."""
    minutes, hours, *_ = cron.removeprefix("cron(").split()
    for hour in range(24) if hours == "*" else stepped(hours, 24):
        for minute in stepped(minutes, 60):
            yield hour, minute


def stepped(field: str, end: int) -> range:
    first, _, step = field.partition("/")
    return range(int(first), end, int(step)) if step else range(int(first), int(first) + 1)


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("instance-health", "cron(0 0 * * ? *)"),
        ("waste-scan", "cron(35 0/6 * * ? *)"),
        ("security-enforcement", "cron(50 * * * ? *)"),
        ("database-cleanup", "cron(0 2 * * ? *)"),
    ],
)
def test_the_schedules_of_the_cloud_jobs_are_the_required_ones(name: str, expression: str) -> None:
    """REQUIREMENTS C1: daily 00:00, every 6 h, hourly, daily 02:00, in UTC."""
    (schedule,) = [one for _, one in PROJECT.schedules if one["Name"]["Fn::Sub"] == STACK + name]
    assert schedule["ScheduleExpression"] == expression
    assert "ScheduleExpressionTimezone" not in schedule, "UTC is the default."


@EACH_PHASE
def test_every_phase_is_served_by_its_function(phase: str, function: str) -> None:
    assert function in FUNCTIONS, f"The phase {phase} is served by {function}, which template.yaml does not have."
    source = PROJECT.source(FUNCTIONS[function].module).read_text()
    served = {"cleanup": phase in cleanup.BODIES, "cloud-region": "fan_out.work(" in source}
    assert served.get(function, f'"{phase}"' in source), f"{function} does not serve {phase}."


def test_every_phase_of_the_cleanup_belongs_to_exactly_one_type_and_every_rule_is_a_phase() -> None:
    own = [phase for kind in cleanup.TYPES.values() for phase in kind.spans]
    assert sorted(own) == sorted(cleanup.PHASES)
    assert RULES.keys() <= cleanup.PHASES.keys()


@EACH_MACHINE
def test_the_machine_may_call_the_functions_that_serve_phases_and_nothing_else(machine: Machine) -> None:
    expected = [{"Fn::GetAtt": [function.logical_id, "Arn"]} for serving, function in SERVING if serving is machine]
    assert sorted(granted(machine.logical_id, "DoPhases"), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(("machine", "function"), SERVING, ids=lambda value: getattr(value, "job", ""))
def test_a_phase_is_given_up_only_when_its_function_has_ended_and_while_others_can_still_run(
    machine: Machine, function: Function
) -> None:
    """FAILURES 1: what was given up too early would work on beside what comes after it."""
    given_up = timedelta(seconds=machine.states["Phase"]["TimeoutSeconds"])
    assert timedelta(seconds=function.properties["Timeout"]) < given_up < machine.execution - MARGIN


def test_an_item_is_given_up_only_when_its_function_has_ended_and_some_can_be_begun_in_every_execution() -> None:
    """FAILURES 1; and an execution that begins no item would be followed by another that begins none, for ever."""
    takes = timedelta(seconds=FUNCTIONS["cloud-region"].properties["Timeout"])
    given_up = timedelta(seconds=CLOUD.states["Items"]["ItemProcessor"]["States"]["Item"]["TimeoutSeconds"])
    assert takes < given_up
    assert 3 * takes < CLOUD.execution - MARGIN


@EACH_MACHINE
def test_an_execution_ends_with_the_ledgers_deadline(machine: Machine) -> None:
    """REQUIREMENTS B1, B6."""
    assert timedelta(seconds=machine.asl["TimeoutSeconds"]) == machine.execution
    assert {kind.policy.timeout for kind in machine.types.values()} == {machine.execution}


def test_executions_of_the_cleanup_take_what_those_of_phased_jobs_do_by_default() -> None:
    assert CLEANUP.execution == EXECUTION


@EACH_MACHINE
def test_every_task_has_a_timeout_and_calls_again_only_what_did_not_get_through(machine: Machine) -> None:
    for task in machine.tasks:
        assert task["TimeoutSeconds"]
        for retry in task["Retry"]:
            assert retry["MaxAttempts"] <= 3


@EACH_MACHINE
def test_the_errors_that_the_machine_knows_exist(machine: Machine) -> None:
    handled = [handler for task in machine.tasks for kind in ("Retry", "Catch") for handler in task.get(kind, ())]
    names = {name for handler in handled for name in handler["ErrorEquals"]}
    ours = {name for name in names if "." not in name}
    assert {"LostLease", "DatabaseUnavailable", "Retryable"} <= ours
    assert all(hasattr(errors, name) or hasattr(builtins, name) for name in ours)
