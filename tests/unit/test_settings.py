"""Settings: defaults, environment, override, and one clear sentence for what is wrong (REQUIREMENTS K4)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from lamplighter.kernel.ledger.row import TTL_BACKSTOP
from lamplighter.kernel.settings import Settings, SettingsError, from_environment, load, merge, parse


def test_the_defaults_are_those_of_the_requirements() -> None:
    settings = Settings()
    assert settings.orphan_cleanup_age_threshold_hours == 24  # A2
    assert settings.orphan_cleanup_dry_run is True  # A3
    assert settings.orphan_cleanup_max_delete_gb == 10.0  # A4
    assert settings.retry_max_attempts == 3  # K5
    assert (settings.poison_rescues, settings.poison_window_hours) == (3, 72)  # K10


@pytest.mark.parametrize(
    ("job_type", "minutes"),
    [
        ("sync", 30),
        ("sync_scenes", 30),
        ("analysis", 60),
        ("apply_plan", 30),
        ("generate_details", 45),
        ("export", 15),
        ("import", 15),
        ("cleanup", 5),
        ("anything_else", 30),
    ],
)
def test_the_job_timeouts(job_type: str, minutes: int) -> None:
    """REQUIREMENTS B1."""
    assert Settings().job_timeout(job_type) == timedelta(minutes=minutes)


def test_the_environment_is_read_as_the_template_writes_it() -> None:
    raw = from_environment(
        {
            "LAMPLIGHTER_ORPHAN_CLEANUP_DRY_RUN": "false",
            "LAMPLIGHTER_ORPHAN_CLEANUP_MAX_DELETE_GB": "2.5",
            "LAMPLIGHTER_JOB_TIMEOUT_MINUTES": '{"analysis": 90}',
            "LAMPLIGHTER_RETRY_CAP_SECONDS": "",
            "PATH": "/bin",
        }
    )
    settings = parse(raw, source="the environment")
    assert (settings.orphan_cleanup_dry_run, settings.orphan_cleanup_max_delete_gb) == (False, 2.5)
    assert settings.job_timeout("analysis") == timedelta(minutes=90)
    assert settings.job_timeout("sync") == timedelta(minutes=30)
    assert settings.retry_cap_seconds == 900


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('{"orphan_cleanup_dry_runn": false}', "orphan_cleanup_dry_runn is not a setting"),
        ('{"orphan_cleanup_age_threshold_hours": -1}', "orphan_cleanup_age_threshold_hours: .*greater than.*got -1"),
        ('{"orphan_cleanup_enabled": "perhaps"}', "orphan_cleanup_enabled: .*boolean.*got 'perhaps'"),
        ('{"job_timeout_minutes": "30 minutes"}', "job_timeout_minutes"),
        ('{"orphan_cleanup_max_delete_gb": 1', "must hold a JSON object"),
        ('{"orphan_cleanup_references": "media_files"}', "orphan_cleanup_references.*got 'media_files'"),
        ('{"orphan_cleanup_references": []}', "orphan_cleanup_references"),
        ("[]", "must hold a JSON object of settings, not list"),
        ("", "must hold a JSON object"),
        ('{"cloud_limits": {"image_days": 1000000000}}', "cloud_limits.image_days"),  # past the calendar's end
        ('{"cloud_limits": {"required_tag": ["Owner"]}}', "cloud_limits.required_tag is not a setting"),
        (
            '{"cloud_remedies": {"idle_cpu": {"action": "stop", "after_days": 1000000}}}',
            "cloud_remedies.idle_cpu.after_days",
        ),
        ('{"cloud_targets": [{"accounts": ["1"], "regions": ["eu-west-1"]}]}', "cloud_targets.0.accounts.0"),
    ],
)
def test_a_bad_override_is_refused_with_the_name_of_the_setting(override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"In the settings parameter: .*{said}"):
        merge({}, override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('{"default": 0}', "job_retention_hours.default: .*greater than or equal to 1, got 0"),
        ('{"default": -720}', "job_retention_hours.default: .*greater than or equal to 1"),
        ('{"sync": 1921}', "job_retention_hours.sync: .*less than or equal to 1920"),
        ('{"sync": true}', "job_retention_hours.sync: .*valid integer, got True"),
        ('{"sync": "30d"}', "job_retention_hours.sync: .*valid integer"),
        ('{"sync/faild": 24}', "job_retention_hours.sync/faild.*got 'sync/faild'"),
        ('{"sync/running": 24}', "job_retention_hours.sync/running"),
        ("[24]", "job_retention_hours: .*dictionary"),
    ],
)
def test_a_typo_in_a_jobs_retention_is_refused(override: str, said: str) -> None:
    """FAILURES 10: a typo in a keep policy removed all."""
    with pytest.raises(SettingsError, match=f"In the settings parameter: .*{said}"):
        merge({}, f'{{"job_retention_hours": {override}}}')


@pytest.mark.parametrize(
    ("job_type", "status", "hours"),
    [
        ("sync", "failed", 100),
        ("sync", "completed", 24),
        ("export", "failed", 1000),
        ("export", "cancelled", 720),
    ],
)
def test_the_most_exact_retention_counts(job_type: str, status: str, hours: int) -> None:
    settings = merge({}, '{"job_retention_hours": {"sync": 24, "sync/failed": 100, "default/failed": 1000}}')
    assert settings.job_retention(job_type, status) == timedelta(hours=hours)


def test_finished_jobs_stay_for_thirty_days_and_leave_before_the_tables_ttl() -> None:
    """REQUIREMENTS B3; the TTL is a backstop, and would take a row that the history has not."""
    assert Settings().job_retention("sync", "completed") == timedelta(days=30)
    longest = parse({"job_retention_hours": {"default": 1920}}, source="a test").job_retention("sync", "failed")
    assert longest <= TTL_BACKSTOP - timedelta(days=7)


def test_columns_are_given_with_commas_or_as_a_list() -> None:
    both = ("media_files.storage_key", "shop.avatars.url")
    assert merge({"orphan_cleanup_references": ", ".join(both)}, "{}").orphan_cleanup_references == both
    assert merge({}, '{"orphan_cleanup_references": ["a.b"]}').orphan_cleanup_references == ("a.b",)


def test_an_override_wins_over_the_environment() -> None:
    assert merge({"retry_base_seconds": "5", "retry_cap_seconds": "50"}, '{"retry_base_seconds": 7}') == Settings(
        retry_base_seconds=7, retry_cap_seconds=50
    )


def test_an_unknown_variable_is_an_error_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_RETRY_ATTEMPTS", "3")
    with pytest.raises(SettingsError, match="In the environment: retry_attempts is not a setting"):
        load()
