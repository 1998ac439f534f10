"""Every default of REQUIREMENTS as a setting: from the environment, overridden at run time, validated (K4).

`LAMPLIGHTER_<SETTING>` variables come from the template's parameters. One SSM parameter (`SETTINGS_PARAMETER`) holds
a JSON object that overrides them without a redeploy; a bad one is refused as a whole, the newest earlier version of
it that is good stays in force, and an alert is raised.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lamplighter.kernel.cloud import Limits, Remedy, Targets
from lamplighter.kernel.errors import Permanent

PREFIX: Final = "LAMPLIGHTER_"
FRESH_SECONDS: Final = 60
"""How old a warm function's view of the override may be."""


class SettingsError(Permanent):
    """A setting is unknown or its value is invalid; the message names it and what it takes."""


def _from_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Column = Annotated[str, Field(pattern=r"^[^.,]+(\.[^.,]+){1,2}$")]
"""`table.column` or `schema.table.column`."""

Kept = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}(/(completed|failed|cancelled))?$")]
"""Which finished jobs: `<type>` or `<type>/<status>`, `default` for any type."""
Days = Annotated[float, Field(strict=True, ge=0, le=36_500, allow_inf_nan=False)]


class Settings(BaseModel):
    """All settings, with REQUIREMENTS' defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orphan_cleanup_enabled: bool = True
    """Whether scheduled runs of the orphan cleanup do anything (A6)."""
    orphan_cleanup_scan_interval_hours: int = Field(24, ge=1, le=720)
    """Hours between scheduled runs; applied by starting the schedule (A6)."""
    orphan_cleanup_base_path: str = ""
    """The folder that is cleaned; empty is the whole bucket (A1)."""
    orphan_cleanup_references: Annotated[tuple[Column, ...], BeforeValidator(_split)] = Field(
        ("media_files.storage_key",), min_length=1
    )
    """The columns whose values keep files, each as `table.column`, separated by commas or as a JSON list (A1)."""
    orphan_cleanup_age_threshold_hours: float = Field(24, ge=0)
    """Younger files are skipped (A2)."""
    orphan_cleanup_dry_run: bool = True
    """Whether a run that does not say so only previews (A3)."""
    orphan_cleanup_max_delete_gb: float = Field(10.0, ge=0)
    """Stop before cumulative deletion exceeds this, in GB of 10^9 bytes (A4)."""
    orphan_cleanup_quarantine_hours: float = Field(24, ge=0)
    """A scheduled run removes only what a manifest at least this old already listed (A7)."""
    orphan_cleanup_max_orphan_share: float = Field(0.5, gt=0, le=1)
    """Refuse to delete when more than this share of the files are orphans (A7)."""
    orphan_cleanup_max_reference_shrink: float = Field(0.2, ge=0, le=1)
    """Refuse to delete when the references shrank by more than this share since the last run (A7)."""
    orphan_cleanup_max_unmapped_references: int = Field(0, ge=0)
    """Refuse to delete when more references than this cannot be mapped to a key (A7)."""
    allow_override: bool = False
    """The second of the two switches that let a run pass the governor (A7)."""
    retry_max_attempts: int = Field(3, ge=1, le=10)
    """Attempts of a job, the first included (K5)."""
    retry_base_seconds: int = Field(30, ge=1)
    """Longest wait before the second attempt; doubles with each (K5)."""
    retry_cap_seconds: int = Field(900, ge=1)
    """Longest wait before any attempt (K5)."""
    poison_rescues: int = Field(3, ge=1)
    """A job found expired this often within the window is failed for good (K10)."""
    poison_window_hours: int = Field(72, ge=1)
    """The poison guard's window (K10)."""
    schedule_grace_minutes: int = Field(15, ge=0)
    """How long after its interval a schedule without a completed run is reported (K12)."""
    misfire_grace_minutes: int = Field(5, ge=1, le=1440)
    """A tick of the cleanups that comes later than this is skipped (B6)."""
    upload_job_timeout_seconds: int = Field(600, ge=1, le=840)
    """An upload that takes longer is failed (D2); its function ends after 900 s."""
    upload_max_mb: int = Field(2048, ge=1)
    """A larger upload is refused, in MB of 10^6 bytes (D1)."""
    upload_ttl_completed_hours: float = Field(24, ge=0.01)
    """How long the files and the live record of a completed upload are kept (D4)."""
    upload_ttl_failed_hours: float = Field(1, ge=0.01)
    """How long those of a failed or cancelled one are (D4)."""
    upload_cleanup_interval_minutes: int = Field(60, ge=1, le=1440)
    """Minutes between scheduled expiries; applied by starting the schedule (D4)."""
    job_timeout_minutes: Annotated[dict[str, int], BeforeValidator(_from_json)] = Field(
        default={
            "sync": 30,
            "sync_scenes": 30,
            "analysis": 60,
            "apply_plan": 30,
            "generate_details": 45,
            "export": 15,
            "import": 15,
            "cleanup": 5,
            "default": 30,
        }
    )
    """Minutes an attempt of a job outside Lambda may take, by job type (B1); a JSON object. The cleanup's own five are
    those of its state machine (`phases.EXECUTION`)."""
    job_retention_hours: Annotated[
        dict[Kept, Annotated[int, Field(strict=True, ge=1, le=1920)]], BeforeValidator(_from_json)
    ] = Field(default={"default": 720})
    """Hours a finished job stays in the ledger (B3, D4), by `<type>/<status>`, `<type>`, `default/<status>` or
    `default`, whichever is found first; a JSON object.

    At least 1: a tick that is delivered twice must find the first one's row. At most 80 days, so that the history has
    its copy before the table's TTL takes the row after 90.
    """
    retention_days: Annotated[dict[str, Days], BeforeValidator(_from_json)] = Field(default={})
    """Days that rows are kept, by retention rule, where not as long as the rule says (B11); a JSON object."""
    audit_log_keep_days: int = Field(90, ge=1)
    """Days that the audit log stays in the database before it is archived, a whole UTC day at a time (E1)."""
    cloud_targets: Annotated[tuple[Targets, ...], BeforeValidator(_from_json)] = Field(default=())
    """The accounts and regions that are scanned (C17), a JSON list; none: where the stack itself is."""
    cloud_limits: Annotated[Limits, BeforeValidator(_from_json)] = Field(default=Limits())
    """What counts as waste or risk, where not as REQUIREMENTS say; a JSON object."""
    cloud_remedies: Annotated[dict[str, Remedy], BeforeValidator(_from_json)] = Field(default={})
    """What is done about findings, by check (C13); a JSON object. A check that is not named only reports."""
    cloud_concurrency: int = Field(8, ge=1, le=40)
    """How many regions are scanned at a time (C17)."""

    def job_timeout(self, job_type: str) -> timedelta:
        """How long an attempt of `job_type` may take (REQUIREMENTS B1)."""
        default = Settings.model_fields["job_timeout_minutes"].default["default"]
        minutes = self.job_timeout_minutes
        return timedelta(minutes=minutes.get(job_type, minutes.get("default", default)))

    def job_retention(self, job_type: str, status: str) -> timedelta:
        """How long a job stays in the ledger after it finished (REQUIREMENTS B3, D4)."""
        hours = Settings.model_fields["job_retention_hours"].default | self.job_retention_hours
        names = (f"{job_type}/{status}", job_type, f"default/{status}", "default")
        return timedelta(hours=next(hours[name] for name in names if name in hours))


def parse(values: Mapping[str, object], *, source: str) -> Settings:
    """The settings that `values` gives, defaults for the rest.

    Raises:
        SettingsError: a name is unknown or a value invalid; says which, and where it was found (`source`).
    """
    try:
        return Settings.model_validate(values)
    except (ValidationError, ValueError) as error:
        raise SettingsError(_explain(error, source)) from None


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The raw values of the `LAMPLIGHTER_` variables, by setting name."""
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and value != ""
    }


def merge(base: Mapping[str, object], override: str) -> Settings:
    """The settings of `base` with the JSON object `override` on top.

    Raises:
        SettingsError: the override is not a JSON object, or holds an unknown or invalid setting.
    """
    source = "the settings parameter"
    try:
        values = json.loads(override)
    except ValueError as error:
        raise SettingsError(f"In {source}: it must hold a JSON object of settings ({error}).") from None
    if not isinstance(values, dict):
        raise SettingsError(f"In {source}: it must hold a JSON object of settings, not {type(values).__name__}.")
    parse(values, source=source)  # names the override as the culprit, even where the base is bad too
    return parse({**base, **values}, source=source)


def _explain(error: ValueError, source: str) -> str:
    if not isinstance(error, ValidationError):
        return f"In {source}: {error}"
    sentences = []
    for problem in error.errors(include_url=False):
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{name} is not a setting (known: {', '.join(Settings.model_fields)})")
        elif problem["type"] == "unexpected_keyword_argument":
            sentences.append(f"{name} is not a setting")
        else:
            sentences.append(f"{name}: {problem['msg'].lower()}, got {problem['input']!r}")
    return f"In {source}: {'; '.join(sentences)}."


def load() -> Settings:
    """The settings in force now: environment, overridden by the SSM parameter where one is named.

    Raises:
        SettingsError: the environment is bad (the function was deployed so: nothing to fall back on).
        Retryable: the parameter cannot be read; guessing could delete what an override protects.
    """
    base = from_environment(os.environ)
    settings = parse(base, source="the environment")
    name = os.environ.get("SETTINGS_PARAMETER")
    return _overridden(base, name) if name else settings


def _overridden(base: Mapping[str, object], name: str) -> Settings:
    from aws_lambda_powertools.utilities.parameters import SSMProvider
    from aws_lambda_powertools.utilities.parameters.exceptions import GetParameterError

    from lamplighter.kernel.aws import client
    from lamplighter.kernel.errors import Retryable

    global _provider  # noqa: PLW0603 - the provider holds the cache, which has to outlive the call
    _provider = _provider or SSMProvider(boto3_client=client("ssm"))
    try:
        value = _provider.get(name, max_age=FRESH_SECONDS)
    except GetParameterError as error:
        raise Retryable(f"The settings parameter {name} cannot be read: {error}") from error
    try:
        return merge(base, str(value))
    except SettingsError:
        return _last_good(base, name)


_provider: Any = None


def _last_good(base: Mapping[str, object], name: str) -> Settings:
    from lamplighter.kernel.aws import client
    from lamplighter.kernel.notify import alert

    pages = client("ssm").get_paginator("get_parameter_history").paginate(Name=name)
    newest, *older = sorted((v for page in pages for v in page["Parameters"]), key=lambda v: -v["Version"])
    try:
        return merge(base, newest["Value"])  # mended already: what was found bad came from a cache
    except SettingsError as error:
        problem = error
    settings, kept = parse(base, source="the environment"), "the deployed settings stay in force"
    for version in older:
        with suppress(SettingsError):
            settings = merge(base, version["Value"])
            kept = f"version {version['Version']} stays in force"
            break
    alert(
        f"settings#{name}#{newest['Version']}",
        subject="A bad settings override was refused",
        message=f"{problem} Version {newest['Version']} of {name} was refused as a whole; {kept}.",
    )
    return settings
