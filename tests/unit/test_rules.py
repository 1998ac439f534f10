"""`lamplighter.rules`: how long each rule keeps rows, and what no setting can make it forget."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lamplighter.kernel.ledger.row import Job, Policy, Status
from lamplighter.kernel.settings import Settings, SettingsError, parse
from lamplighter.rules import OWN, RULES, checked, keep, names, previews

DAY = timedelta(days=1)


def under(retention_days: str) -> Settings:
    return parse({"retention_days": retention_days}, source="the environment")


def test_the_defaults_are_the_requirements() -> None:
    assert checked(Settings()) == {
        "downloads": 14 * DAY,  # B4
        "system_logs": 90 * DAY,  # C16
        "onboarding_requests": timedelta(hours=24),
        "deleted_accounts": timedelta(0),
        "sessions": timedelta(0),  # E1
        "tokens": timedelta(0),
        "resolved_findings": 365 * DAY,
        "cloud_reports": 365 * DAY,
        "job_history": 30 * DAY,  # B3
    }


def test_a_setting_changes_one_rule() -> None:
    settings = under('{"downloads": 30, "onboarding_requests": 0.5}')

    assert keep(RULES["downloads"], settings) == 30 * DAY
    assert keep(RULES["onboarding_requests"], settings) == timedelta(hours=12)
    assert keep(RULES["system_logs"], settings) == 90 * DAY


@pytest.mark.parametrize(
    ("retention_days", "sentence"),
    [
        ('{"download": 30}', r"download is not a rule \(known: downloads, system_logs,"),
        ('{"system_logs": 1}', r"takes at least 7 days, got 1\."),
        ('{"downloads": 0}', r"takes at least 1 days, got 0\."),
        ('{"onboarding_requests": 0.01}', r"takes at least 0\.04167 days, got 0\.01\."),
        ('{"deleted_accounts": 7}', r"deleted_accounts takes no days"),
    ],
)
def test_a_bad_setting_stops_every_rule_before_anything_is_touched(retention_days: str, sentence: str) -> None:
    """FAILURES 10: a typo in a keep-policy removed everything (restic #4764)."""
    settings = under(retention_days)

    for rule in RULES.values():
        with pytest.raises(SettingsError, match=f"^retention.rules.*: {sentence}"):
            keep(rule, settings)


@pytest.mark.parametrize("value", ["-1", "true", '"14"', "1e9", "Infinity", "NaN", "[]"])
def test_days_are_a_number_of_days(value: str) -> None:
    with pytest.raises(SettingsError, match=r"retention_days\.downloads"):
        under(f'{{"downloads": {value}}}')


def ordered(*, dry_run: bool) -> Job:
    """A run whose row says whether it previews."""
    at = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
    return Job(
        job_id="j",
        job_type="cleanup",
        status=Status.RUNNING,
        policy=Policy(timeout=timedelta(minutes=5)),
        created_at=at,
        run_at=at,
        dry_run=dry_run,
    )


@pytest.mark.parametrize("name", names())
def test_what_is_the_owners_acts_only_where_it_is_applied(name: str) -> None:
    """REQUIREMENTS S4, S2; FAILURES 22, 23."""

    def settings(*, apply: bool, override: bool = False) -> Settings:
        document = {"retention": {"rules": {name: {"apply": apply}}}, "allow_override": override}
        return parse(document if name not in OWN else {"allow_override": override}, source="a test")

    own = name in OWN
    for apply in (False, True):
        acts = own or apply
        assert previews(name, ordered(dry_run=True), settings(apply=apply, override=True)), "a preview stays one"
        assert previews(name, ordered(dry_run=False), settings(apply=apply)) is not acts
        assert previews(name, ordered(dry_run=False), settings(apply=apply, override=True)) is not acts
        insists = replace(ordered(dry_run=False), payload={"dry_run": False})
        assert previews(name, insists, settings(apply=apply)) is not acts, "one switch does not do"
        assert not previews(name, insists, settings(apply=apply, override=True)), "both do"
