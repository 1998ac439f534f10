"""The catalogue of job types is complete, and each type can be started as its policy says."""

from __future__ import annotations

import pytest

from lamplighter.catalogue import NAMES, job_type
from lamplighter.kernel.errors import Permanent
from tests.template.project import STACK, Project
from tests.template.test_jobs import JOBS, handler_of

PROJECT = Project()


def test_every_job_is_in_the_catalogue() -> None:
    for function in JOBS:
        name = handler_of(function).job_type
        assert name in NAMES, f"Add {name} to functions/lamplighter/catalogue.py."
        assert job_type(name) is handler_of(function)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_type_is_listed_under_its_name(name: str) -> None:
    assert job_type(name).job_type == name


@pytest.mark.parametrize("name", NAMES)
def test_a_job_type_is_started_by_something_that_exists(name: str) -> None:
    machines = PROJECT.of_type("AWS::Serverless::StateMachine").values()
    there = {f"lambda:{function.job}" for function in PROJECT.functions}
    there |= {f"states:{machine['Name']['Fn::Sub'].removeprefix(STACK)}" for machine in machines}
    target = job_type(name).policy.target
    assert target in there, f"{name} is started by {target}, which template.yaml does not have."


def test_an_unknown_job_type_is_told_which_there_are() -> None:
    with pytest.raises(Permanent, match=r"^job_type: there is no 'cleanup_all' \(known: orphan_cleanup, undo"):
        job_type("cleanup_all")
