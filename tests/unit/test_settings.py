"""Settings: sections, defaults, earlier names, layers, and one clear sentence for what is wrong (K4, P2)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel import settings as module
from lamplighter.kernel.errors import Retryable
from lamplighter.kernel.ledger.row import TTL_BACKSTOP
from lamplighter.kernel.media import Reference
from lamplighter.kernel.settings import (
    MAX_BYTES,
    MAX_UNMAPPED,
    OLD_NAMES,
    RETENTION_DAYS,
    Layer,
    RuleSettings,
    Settings,
    SettingsError,
    from_environment,
    load,
    merged,
    parse,
    read,
    validated,
)


def together(*documents: Mapping[str, Any]) -> Settings:
    """The settings of documents of which the later win."""
    return validated([Layer.of(one, source=f"document {n}") for n, one in enumerate(documents, 1)])


def of_environment(**variables: str) -> Settings:
    return validated([from_environment(variables)])


def refused(document: Mapping[str, Any]) -> str:
    """The sentence with which a document is refused."""
    with pytest.raises(SettingsError) as caught:
        parse(document, source="the settings parameter")
    sentence = str(caught.value)
    assert sentence.startswith("In the settings parameter: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence.removeprefix("In the settings parameter: ")


# --- Defaults --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_requirements() -> None:
    settings = Settings()
    assert settings.allow_override is False  # S2
    assert (settings.media.min_age_hours, settings.media.max_delete_gb) == (24, 10.0)  # A2, A4
    assert (settings.media.apply, settings.media.ramp) == (False, True)  # A3, S3, S4
    assert (settings.media.max_orphan_share, settings.media.max_reference_shrink) == (0.2, 0.2)  # REFERENCES 2
    assert settings.media.references == (Reference(table="media_files", column="storage_key"),)
    assert settings.media.allow_unversioned is False  # S5
    assert settings.jobs.retry_max_attempts == 4  # K5
    assert (settings.jobs.poison_rescues, settings.jobs.poison_window_hours) == (3, 72)  # K10
    assert (settings.uploads.ttl_completed_hours, settings.uploads.ttl_failed_hours) == (24, 1)  # D4
    assert settings.uploads.cleanup_interval_seconds == 3600
    assert settings.rule("audit_log") == RuleSettings(keep_days=90)  # E1
    assert settings.rule("downloads") == RuleSettings()


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
    settings = together({"jobs": {"retention_hours": {"sync": 24, "sync/failed": 100, "default/failed": 1000}}})
    assert settings.job_retention(job_type, status) == timedelta(hours=hours)


def test_finished_jobs_stay_for_thirty_days_and_leave_before_the_tables_ttl() -> None:
    """REQUIREMENTS B3; the TTL is a backstop, and would take a row that the history has not."""
    assert Settings().job_retention("sync", "completed") == timedelta(days=30)
    longest = together({"jobs": {"retention_hours": {"default": 1920}}}).job_retention("sync", "failed")
    assert longest <= TTL_BACKSTOP - timedelta(days=7)


# --- Earlier names ---------------------------------------------------------------------------------------------------

OLD_VALUES: Mapping[str, tuple[Any, Any]] = {
    "orphan_cleanup_enabled": (False, False),
    "orphan_cleanup_scan_interval_hours": (6, 6),
    "orphan_cleanup_base_path": ("shop", "shop"),
    "orphan_cleanup_references": (
        "media_files.storage_key, shop.avatars.url",
        (Reference(table="media_files", column="storage_key"), Reference(table="shop.avatars", column="url")),
    ),
    "orphan_cleanup_age_threshold_hours": (48, 48),
    "orphan_cleanup_dry_run": (False, True),
    "orphan_cleanup_max_delete_gb": (2.5, 2.5),
    "orphan_cleanup_quarantine_hours": (0, 0),
    "orphan_cleanup_max_orphan_share": (0.5, 0.5),
    "orphan_cleanup_max_reference_shrink": (0.1, 0.1),
    "retry_max_attempts": (9, 9),
    "retry_base_seconds": (1, 1),
    "retry_cap_seconds": (2, 2),
    "poison_rescues": (5, 5),
    "poison_window_hours": (24, 24),
    "schedule_grace_minutes": (0, 0),
    "misfire_grace_minutes": (10, 10),
    "job_timeout_minutes": ({"analysis": 90}, {"analysis": 90}),
    "job_retention_hours": ({"sync": 24}, {"sync": 24}),
    "upload_job_timeout_seconds": (60, 60),
    "upload_max_mb": (10, 10),
    "upload_ttl_completed_hours": (2, 2),
    "upload_ttl_failed_hours": (0.5, 0.5),
    "upload_cleanup_interval_minutes": (30, 1800),
    "audit_log_keep_days": (30, 30),
    "cloud_targets": ([], ()),
    "cloud_limits": ({"idle_days": 14}, 14),
    "cloud_remedies": ({"idle_cpu": {"action": "stop"}}, "stop"),
    "cloud_concurrency": (2, 2),
}


def at(settings: Settings, name: str) -> Any:
    """What an earlier name is now."""
    path = OLD_NAMES[name][0]
    if name == "audit_log_keep_days":
        return settings.rule("audit_log").keep_days
    value = getattr(getattr(settings, path[0]), path[1])
    if name == "cloud_limits":
        return value.idle_days
    if name == "cloud_remedies":
        return value["idle_cpu"].action if value else None
    return value


def test_every_earlier_name_is_known_here() -> None:
    assert OLD_VALUES.keys() == OLD_NAMES.keys()
    assert len(OLD_NAMES) + len(("allow_override", RETENTION_DAYS, MAX_UNMAPPED)) == 32  # what 0.1.0 had


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_earlier_name_is_read_in_a_document_and_as_a_variable(name: str) -> None:
    old, now = OLD_VALUES[name]
    assert at(Settings(), name) != now or old in ([], 0)
    assert at(together({name: old}), name) == now
    text = old if isinstance(old, str) else json.dumps(old)
    assert at(of_environment(**{f"LAMPLIGHTER_{name.upper()}": text}), name) == now


def test_the_earlier_retention_days() -> None:
    settings = together({"retention_days": {"downloads": 30}})
    assert settings.rule("downloads") == RuleSettings(keep_days=30)
    assert of_environment(LAMPLIGHTER_RETENTION_DAYS='{"downloads": 30}') == settings


def test_the_earlier_limit_of_unmapped_references_is_each_references_own() -> None:
    """That of a reference which gives its own stays, whichever layer names it."""
    (default,) = together({MAX_UNMAPPED: 3}).media.references
    assert (str(default), default.max_unmatched) == ("media_files.storage_key", 3)
    references = {"media": {"references": ["a.b", {"table": "c", "column": "d", "max_unmatched": 7}]}}
    for documents in (
        (references, {MAX_UNMAPPED: 3}),
        ({MAX_UNMAPPED: 3}, references),
        ({MAX_UNMAPPED: 3} | references,),
    ):
        assert [one.max_unmatched for one in together(*documents).media.references] == [3, 7]
    old = of_environment(
        LAMPLIGHTER_ORPHAN_CLEANUP_REFERENCES="a.b,c.d", **{f"LAMPLIGHTER_{MAX_UNMAPPED.upper()}": "2"}
    )
    assert [one.max_unmatched for one in old.media.references] == [2, 2]


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"orphan_cleanup_dry_run": False, "media": {"apply": True}}, ("orphan_cleanup_dry_run", "media.apply")),
        (
            {"retry_base_seconds": 1, "jobs": {"retry_base_seconds": 1}},
            ("retry_base_seconds", "jobs.retry_base_seconds"),
        ),
        (
            {"retention_days": {"downloads": 1}, "retention": {"rules": {"downloads": {"keep_days": 2}}}},
            ("retention_days.downloads", "retention.rules.downloads.keep_days"),
        ),
        (
            {"retention_days": {"audit_log": 9}, "audit_log_keep_days": 9},
            ("retention_days.audit_log", "audit_log_keep_days"),
        ),
    ],
)
def test_a_setting_given_by_two_names_is_refused(document: Mapping[str, Any], names: tuple[str, str]) -> None:
    sentence = refused(document)
    assert all(name in sentence for name in names)
    assert sentence.endswith("are the same setting; give one of them.")


def test_a_variable_given_by_two_names_is_refused() -> None:
    for both in (
        {"LAMPLIGHTER_ORPHAN_CLEANUP_ENABLED": "true", "LAMPLIGHTER_MEDIA_ENABLED": "true"},
        {"JOB_TIMEOUT_SECONDS": "5", "LAMPLIGHTER_UPLOADS_JOB_TIMEOUT_SECONDS": "5"},
        {"JOB_TIMEOUT_SECONDS": "5", "LAMPLIGHTER_UPLOAD_JOB_TIMEOUT_SECONDS": "5"},
    ):
        with pytest.raises(SettingsError, match=r"^In the environment: .* are the same setting; give one of them"):
            of_environment(**both)


def test_the_interval_of_summaries_is_unknown_while_there_are_none() -> None:
    assert refused({"interval_minutes": 5}).startswith("interval_minutes is not a setting")


# --- One sentence for what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"orphan_cleanup_dry_runn": False}, "orphan_cleanup_dry_runn is not a setting (known: allow_override, jobs,"),
        ({"media": {"aply": True}}, "media.aply is not a setting (known: enabled, scan_interval_hours,"),
        (
            {"retention": {"rules": {"downloads": {"days": 3}}}},
            "retention.rules.downloads.days is not a setting (known:",
        ),
        (
            {"orphan_cleanup_age_threshold_hours": -1},
            "orphan_cleanup_age_threshold_hours: input should be greater than or equal to 0, got -1.",
        ),
        ({"media": {"min_age_hours": "soon"}}, "media.min_age_hours: input should be a valid number, .*, got 'soon'."),
        ({"media": {"enabled": "perhaps"}}, "media.enabled: input should be a valid boolean, .*, got 'perhaps'."),
        (
            {"orphan_cleanup_dry_run": "perhaps"},
            "orphan_cleanup_dry_run (media.apply): input should be a valid boolean",
        ),
        ({"media": {"max_orphan_share": True}}, "media.max_orphan_share: input should be a number, got True."),
        (
            {"cloud": {"remedies": {"idle_cpu": {"action": "stop", "max_share": True}}}},
            "cloud.remedies.idle_cpu: max_share: takes neither true nor false.",
        ),
        (
            {"cloud": {"limits": {"coverage": True}}},
            "cloud.limits: coverage: takes neither true nor false.",
        ),
        (
            {"media": {"references": [{"table": "files", "column": "key", "max_unmatched": True}]}},
            "media.references.0: max_unmatched: takes neither true nor false.",
        ),
        ({"media": {"max_delete_gb": math.nan}}, "media.max_delete_gb: input should be a finite number, got nan."),
        ({"media": {"max_delete_gb": math.inf}}, "media.max_delete_gb: input should be a finite number, got inf."),
        ({"media": None}, "media: .*, got None."),
        ({"media": []}, "media: "),
        ({"media": {"references": []}}, "media.references: tuple should have at least 1 item"),
        ({"media": {"references": ["media_files"]}}, "media.references.0: table takes table or schema.table, got ''."),
        ({"media": {"references": ["a\0.b"]}}, "media.references.0: table takes table or schema.table, got 'a\\x00'."),
        (
            {"media": {"references": [{"table": "a", "column": "b", "kind": "json", "path": "images"}]}},
            "media.references.0: path takes a JSON path, which begins with $, got 'images'.",
        ),
        (
            {"media": {"references": [{"table": "a", "column": "b", "kind": "html", "folder": True}]}},
            "media.references.0: folder is taken with kind text or array only, got html.",
        ),
        (
            {"media": {"references": [{"table": "a", "column": "b", "path": "$.x"}]}},
            "media.references.0: path is taken with kind json only.",
        ),
        (
            {"media": {"references": [{"table": "a", "column": "b", "colour": 1}]}},
            "media.references.0.colour is not a setting",
        ),
        ({"job_timeout_minutes": "30 minutes"}, "job_timeout_minutes: input should be a valid dictionary"),
        (
            {"job_timeout_minutes": {"default": 0}},
            "job_timeout_minutes.default: input should be greater than or equal to 1",
        ),
        (
            {"upload_cleanup_interval_minutes": 1441},
            "upload_cleanup_interval_minutes (uploads.cleanup_interval_seconds): ",
        ),
        ({"cloud_limits": {"image_days": 1000000000}}, "cloud_limits.image_days: "),  # past the calendar's end
        ({"cloud_limits": {"required_tag": ["Owner"]}}, "cloud_limits.required_tag is not a setting"),
        (
            {"cloud_remedies": {"idle_cpu": {"action": "stop", "after_days": 1000000}}},
            "cloud_remedies.idle_cpu.after_days: ",
        ),
        ({"cloud": {"remedies": {"idle_cpu": {"apply": True}}}}, "cloud.remedies.idle_cpu.action: "),
        ({"cloud_targets": [{"accounts": ["1"], "regions": ["eu-west-1"]}]}, "cloud_targets.0.accounts.0: "),
        ({"retention_days": [3]}, "retention_days takes an object of days by rule, got [3]."),
        (
            {"retention_days": {"downloads": "14"}},
            "retention_days.downloads: input should be a valid number, got '14'.",
        ),
        ({"retention": 5, "retention_days": {"downloads": 14}}, "retention takes an object, got 5."),
        ({"jobs": {"retention_hours": {"default": 0}}}, "jobs.retention_hours.default: "),
        ({"jobs": {"retention_hours": {"sync": 1921}}}, "jobs.retention_hours.sync: .*less than or equal to 1920"),
        ({"jobs": {"retention_hours": {"sync": True}}}, "jobs.retention_hours.sync: .*valid integer, got True"),
        ({"jobs": {"retention_hours": {"sync": "30d"}}}, "jobs.retention_hours.sync: .*valid integer"),
        ({"jobs": {"retention_hours": {"sync/faild": 24}}}, "jobs.retention_hours.sync/faild.*got 'sync/faild'"),
        ({"jobs": {"retention_hours": {"sync/running": 24}}}, "jobs.retention_hours.sync/running"),
        (
            {"media": {"max_objects": 10**9 + 1}},
            "media.max_objects: .*less than or equal to 1000000000, got 1000000001.",
        ),
        ({"media": {"max_objects": 10**40}}, "media.max_objects: .*less than or equal to 1000000000, got 1000"),
        (
            {"retention": {"rules": {"sessions": {"max_rows": 10**9 + 1}}}},
            "retention.rules.sessions.max_rows: .*1000000000,",
        ),
        (
            {"cloud": {"remedies": {"idle_cpu": {"action": "stop", "max_actions": 10_001}}}},
            "cloud.remedies.idle_cpu.max_actions: .*less than or equal to 10000, got 10001.",
        ),
        (
            {"media": {"references": [{"table": "a", "column": "b", "max_unmatched": 10**9 + 1}]}},
            "media.references.0.max_unmatched: .*less than or equal to 1000000000",
        ),
        (
            {"media": {"references": [{"table": "a", "column": "b", "max_unreadable": 10**9 + 1}]}},
            "media.references.0.max_unreadable: .*less than or equal to 1000000000",
        ),
        ({"media": {"exclude": "x" * 1000}}, "media.exclude: .*x{79}\\.\\.\\."),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_what_it_takes(document: Mapping[str, Any], said: str) -> None:
    """FAILURES 10: a typo in a keep policy removed all."""
    pattern = ".*".join(re.escape(part) for part in said.split(".*")) if "\\." not in said else said
    assert re.match(pattern, refused(document))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"media": {"max_delete_gb": 1', "it must hold a JSON object of settings (Expecting"),
        ("", "it must hold a JSON object"),
        ("[]", "it must hold a JSON object of settings, not a list."),
        ("null", "it must hold a JSON object of settings, not null."),
        ("5", "it must hold a JSON object of settings, not a number."),
        ('{"media": {}, "media": {}}', "it must hold a JSON object of settings ('media' is given twice)."),
        (
            '{"media": {"apply": true, "apply": false}}',
            "it must hold a JSON object of settings ('apply' is given twice).",
        ),
        ("[" * 100_000, "it must hold a JSON object of settings (it is nested too deeply)."),
        (f'{{"a": {"9" * 5000}}}', "it must hold a JSON object of settings (Exceeds the limit"),
        (json.dumps({"media": {"base_path": "x" * MAX_BYTES}}), "it holds 300028 bytes; settings take at most 300000."),
    ],
)
def test_a_text_that_is_no_document_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text, source="the settings parameter")
    assert str(caught.value).startswith(f"In the settings parameter: {said}")


def test_a_document_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = {}
    for _ in range(500):
        deep = {"media": deep}
    assert refused(deep) == "it is nested too deeply; settings take at most 16 levels."


FIELDS = [
    field
    for section in ("jobs", "media", "uploads", "cloud")
    for field in type(getattr(Settings(), section)).model_fields
]
NAMES = st.sampled_from(
    [
        "jobs",
        "media",
        "retention",
        "uploads",
        "cloud",
        "rules",
        "downloads",
        *FIELDS,
        *OLD_NAMES,
        RETENTION_DAYS,
        MAX_UNMAPPED,
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_whatever_a_document_holds_it_is_taken_or_refused_in_one_sentence(document: Mapping[str, Any]) -> None:
    try:
        settings = parse(document, source="a test")
    except SettingsError as error:
        sentence = str(error)
        assert sentence.startswith("In a test: ")
        sentence.encode()
    else:
        again = merged([Layer.of(document, source="a test")])
        assert validated([Layer.of(again, source="again")]) == settings  # as it is stored, it says the same


# --- Layers ----------------------------------------------------------------------------------------------------------


def test_later_wins_key_by_key() -> None:
    settings = together(
        {"retry_base_seconds": 5, "retention": {"rules": {"sessions": {"apply": True}, "tokens": {"keep_days": 9}}}},
        {"jobs": {"retry_base_seconds": 7}, "retention": {"rules": {"tokens": {"apply": True}}}},
        {"media": {"references": ["a.b"]}, "cloud": {"remedies": {"idle_cpu": {"action": "stop"}}}},
        {"media": {"references": ["c.d"]}, "cloud": {"remedies": {"idle_cpu": {"apply": True}}}},
    )
    assert settings.jobs.retry_base_seconds == 7
    assert settings.rule("sessions").apply
    assert settings.rule("tokens") == RuleSettings(apply=True, keep_days=9)
    assert [str(one) for one in settings.media.references] == ["c.d"]
    assert (settings.cloud.remedies["idle_cpu"].action, settings.cloud.remedies["idle_cpu"].apply) == ("stop", True)


def test_a_message_names_the_document_that_is_at_fault() -> None:
    good, bad = {"jobs": {"retry_cap_seconds": 9}}, {"jobs": {"retry_base_seconds": 0}, "nonsense": 1}
    for documents, source in (((good, bad), "document 2"), ((bad, good), "document 1")):
        with pytest.raises(SettingsError) as caught:
            together(*documents)
        assert re.fullmatch(
            rf"In {source}: nonsense is not a .*; jobs.retry_base_seconds: .*\.", str(caught.value)
        ) or (re.fullmatch(rf"In {source}: jobs.retry_base_seconds: .*; nonsense is not .*\.", str(caught.value)))


LIMIT = "orphan_cleanup_max_unmapped_references"
OWN = {"table": "c", "column": "d", "max_unmatched": -2}


@pytest.mark.parametrize(
    ("template", "parameter", "said"),
    [
        ({"media": {"references": ["a.b"]}}, {LIMIT: "many"}, rf"In document 2: {LIMIT}: .*, got 'many'\."),
        ({"media": {"references": "a.b, c.d"}}, {LIMIT: -3}, rf"In document 2: {LIMIT}: [^;]*, got -3\."),
        ({"orphan_cleanup_references": "a.b, c.d"}, {LIMIT: -3}, rf"In document 2: {LIMIT}: [^;]*, got -3\."),
        ({}, {LIMIT: -3}, rf"In document 2: {LIMIT}: [^;]*, got -3\."),
        ({LIMIT: -3}, {"media": {"references": ["a.b"]}}, rf"In document 1: {LIMIT}: .*, got -3\."),
        ({LIMIT: 3}, {LIMIT: -3, "media": {"references": ["a.b"]}}, rf"In document 2: {LIMIT}: .*, got -3\."),
        ({"media": {"references": "[x"}}, {LIMIT: -3}, r"In document 1: media\.references: takes JSON .*, got '\[x'\."),
        (
            {"media": {"references": ["a.b", OWN]}},
            {LIMIT: 3},
            r"In document 1: media\.references\.1\.max_unmatched: .*, got -2\.",
        ),
        (
            {"media": {"references": [OWN, "a.b"]}},
            {LIMIT: -3},
            rf"In document 1: media\.references\.0\.max_unmatched: .*, got -2\. In document 2: {LIMIT}: .*, got -3\.",
        ),
        (
            {"media": {"references": [OWN]}},
            {LIMIT: -3, "media": {"references": ["a.b"]}},
            rf"In document 2: {LIMIT}: .*, got -3\.",
        ),
    ],
)
def test_the_earlier_limit_of_all_columns_is_blamed_on_the_document_that_gives_it(
    template: Mapping[str, Any], parameter: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        together(template, parameter)
    assert re.fullmatch(said, str(caught.value)), caught.value


def test_merging_leaves_the_documents_as_they_were() -> None:
    first, second = {"jobs": {"retry_base_seconds": 5}}, {"retry_cap_seconds": 7}
    before = json.dumps([first, second])
    together(first, second)
    assert json.dumps([first, second]) == before


# --- Variables -------------------------------------------------------------------------------------------------------


def test_variables_name_a_section_and_a_field() -> None:
    settings = of_environment(
        LAMPLIGHTER_ALLOW_OVERRIDE="true",
        LAMPLIGHTER_MEDIA_APPLY="true",
        LAMPLIGHTER_MEDIA_REFERENCES='[{"table": "a", "column": "b", "folder": true}]',
        LAMPLIGHTER_JOBS_TIMEOUT_MINUTES='{"analysis": 90}',
        LAMPLIGHTER_RETENTION_RULES='{"downloads": {"apply": true}}',
        LAMPLIGHTER_JOBS_RETRY_CAP_SECONDS="",
        PATH="/bin",
    )
    assert (settings.allow_override, settings.media.apply) == (True, True)
    assert settings.media.references == (Reference(table="a", column="b", folder=True),)
    assert settings.job_timeout("analysis") == timedelta(minutes=90)
    assert settings.job_timeout("sync") == timedelta(minutes=30)
    assert settings.rule("downloads").apply
    assert settings.jobs.retry_cap_seconds == 900


def test_the_variables_with_names_of_their_own() -> None:
    """REQUIREMENTS D2, D4."""
    uploads = of_environment(
        JOB_TIMEOUT_SECONDS="5", CLEANUP_INTERVAL_SECONDS="90", TTL_COMPLETED_HOURS="0.5", TTL_FAILED_HOURS="0.25"
    ).uploads
    assert (uploads.job_timeout_seconds, uploads.cleanup_interval_seconds) == (5, 90)
    assert (uploads.ttl_completed_hours, uploads.ttl_failed_hours) == (0.5, 0.25)
    assert of_environment(JOB_TIMEOUT_SECONDS="", TTL_FAILED_HOURS="") == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LAMPLIGHTER_RETRY_ATTEMPTS", "3", "retry_attempts is not a setting"),
        ("LAMPLIGHTER_MEDIA_APLY", "3", "media.aply is not a setting"),
        ("LAMPLIGHTER_MEDIA", "{}", "media. is not a setting"),
        ("JOB_TIMEOUT_SECONDS", "10 minutes", "JOB_TIMEOUT_SECONDS: input should be a valid integer"),
    ],
)
def test_a_bad_variable_is_an_error_at_start_up(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"In the environment: {said}"):
        load()


# --- What is in force ------------------------------------------------------------------------------------------------


def stored(monkeypatch: pytest.MonkeyPatch, document: str, sha256: str = "1") -> None:
    monkeypatch.setattr(module, "stored", lambda: (document, sha256))


def test_the_stored_document_is_in_force_and_variables_override_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load() == Settings()
    stored(monkeypatch, '{"media": {"apply": true}, "jobs": {"retry_base_seconds": 7}}')
    assert (load().media.apply, load().jobs.retry_base_seconds) == (True, 7)
    monkeypatch.setenv("LAMPLIGHTER_MEDIA_APPLY", "false")
    assert (load().media.apply, load().jobs.retry_base_seconds) == (False, 7)


def test_a_document_is_validated_once_and_its_successor_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, '{"jobs": {"retry_base_seconds": 7}}', "one")
    first = load()
    assert load() is first
    stored(monkeypatch, '{"jobs": {"retry_base_seconds": 8}}', "two")
    assert load().jobs.retry_base_seconds == 8


def test_a_stored_document_that_has_become_invalid_stops_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, '{"media": {"gone": 1}}', "old")
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"^In the settings in force: media\.gone is not a setting"):
            load()


def test_a_table_that_cannot_be_read_stops_the_job_instead_of_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("JOBS_TABLE", "jobs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    class Down:
        def get_item(self, **asked: Any) -> Any:
            from botocore.exceptions import EndpointConnectionError

            assert asked["ConsistentRead"] is True
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    monkeypatch.setattr("lamplighter.kernel.aws.client", lambda _: Down())
    with pytest.raises(Retryable, match="The settings cannot be read from the table jobs"):
        load()
