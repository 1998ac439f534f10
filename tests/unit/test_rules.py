"""`lamplighter.rules`: how long each rule keeps rows, and what no setting can make it forget."""

from __future__ import annotations

from datetime import timedelta

import pytest

from lamplighter.kernel.settings import Settings, SettingsError, parse
from lamplighter.rules import RULES, checked, keep

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
