"""What a deployment without a database does, leaves out and refuses (REQUIREMENTS P5, K14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lamplighter import catalogue
from lamplighter.cloud.store import findings_store
from lamplighter.cloud.store.s3 import S3Store
from lamplighter.jobs import schedules
from lamplighter.kernel import database
from lamplighter.kernel.no_database import VARIABLES, NoDatabase, has_database
from lamplighter.kernel.phased_job import PhasedJob
from lamplighter.kernel.settings import Settings, parse

TYPES = [kind for name in catalogue.NAMES if isinstance(kind := catalogue.job_type(name), PhasedJob)]


@pytest.fixture(autouse=True)
def own_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's, which the scans look at by default."""
    monkeypatch.setenv("ACCOUNT_ID", "111122223333")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No database."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")


def phases(kind: PhasedJob, payload: Mapping[str, Any]) -> list[str]:
    """The phases that a run with these parameters does."""
    params = kind.validated(payload)
    kind.previews(params, Settings())
    return [turn.name for turn in kind.turns(params, Settings())]


def named(job_type: str) -> PhasedJob:
    (kind,) = [one for one in TYPES if one.job_type == job_type]
    return kind


@pytest.mark.parametrize("name", VARIABLES)
def test_one_variable_is_a_database(none: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not has_database()
    monkeypatch.setenv(name, "x")
    assert has_database()
    assert not has_database({})


def test_the_sentence_names_what_needs_one_and_what_to_do(none: None) -> None:
    with pytest.raises(NoDatabase) as refused:
        database.address({})
    assert str(refused.value) == (
        "No database is configured: this needs one. Deploy with DatabaseSecretArn, DatabaseHost or DatabaseUrl."
    )
    assert not NoDatabase.traced


def test_with_a_database_every_type_does_all_of_its_phases() -> None:
    for kind in TYPES:
        idle = {"actions"}  # no remedy is set
        assert phases(kind, {}) == [name for name in kind.spans if name not in idle]


def test_without_one_types_leave_out_what_needs_it_or_refuse_as_a_whole(none: None) -> None:
    done: dict[str, list[str]] = {}
    for kind in TYPES:
        try:
            done[kind.job_type] = phases(kind, {})
        except NoDatabase as refusal:
            assert str(refusal).startswith(f"No database is configured: {kind.job_type} needs one.")
    assert done == {
        "cleanup": ["stale_jobs", "old_jobs"],
        "upload_cleanup": ["uploads"],
        "waste_scan": ["regions", "report"],
        "security_enforcement": ["regions", "report"],
    }


def test_a_phase_that_is_asked_for_is_refused_and_not_left_out(none: None) -> None:
    """Nobody may take a run for one that did what it was asked to do."""
    with pytest.raises(NoDatabase, match="No database is configured: downloads, plans needs one"):
        phases(named("cleanup"), {"phases": ["stale_jobs", "downloads", "plans"]})
    assert phases(named("cleanup"), {"phases": ["old_jobs"]}) == ["old_jobs"]


def test_a_rule_that_the_settings_add_needs_one_too(none: None) -> None:
    added = parse({"retention": {"rules": {"mine": {"table": "mine", "clock": "at", "keep_days": 9}}}}, source="test")
    for job_type, payload in (("database_cleanup", {}), ("cleanup", {"phases": ["mine"]})):
        kind = named(job_type)
        with pytest.raises(NoDatabase):
            kind.previews(kind.validated(payload), added)


def test_an_earnest_cleanup_is_not_refused_for_what_it_leaves_out(none: None) -> None:
    """The rules that are not applied are not run."""
    assert phases(named("cleanup"), {"dry_run": False}) == ["stale_jobs", "old_jobs"]


@pytest.mark.parametrize("schedule", sorted(schedules.NEED_DATABASE))
def test_a_schedule_whose_job_needs_one_is_not_started(
    none: None, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    switched: list[str] = []
    monkeypatch.setattr(schedules, "switch", lambda name, **_: switched.append(name))
    with pytest.raises(NoDatabase, match=f"the schedule {schedule} needs one"):
        schedules.start(schedule)
    schedules.start("waste-scan")
    schedules.stop(schedule)
    assert switched == ["waste-scan", schedule]


def test_the_store_of_findings_keeps_them_as_long_as_the_rules_say(none: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVE_BUCKET", "archive")
    given = parse({"retention": {"rules": {"resolved_findings": {"keep_days": 40}}}}, source="test")
    store, default = findings_store(given), findings_store()
    assert isinstance(store, S3Store)
    assert isinstance(default, S3Store)
    assert (store._keep_resolved.days, store._keep_reports.days) == (40, 365)
    assert default._keep_resolved.days == 365
