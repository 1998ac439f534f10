"""Parameters of an orphan cleanup: what is not given comes from the settings, what is given may only be stricter."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, field_validator

from lamplighter.kernel.events import shown
from lamplighter.kernel.job import InvalidParams
from lamplighter.kernel.job import Params as JobParams
from lamplighter.kernel.media import Reference, folder_of, reference_of
from lamplighter.kernel.settings import Settings


class Params(JobParams):
    """What a run takes. What is None comes from the setting named beside it, which a run may only make stricter."""

    bucket: str | None = Field(None, min_length=1, max_length=255)
    """The bucket to clean; the stack's media bucket (`MEDIA_BUCKET`)."""
    base_path: str | None = Field(None, max_length=1024)
    """The folder to clean, slashes around it or not; empty is the whole bucket (`media.base_path`)."""
    references: tuple[Annotated[Reference, BeforeValidator(reference_of)], ...] | None = Field(
        None, min_length=1, max_length=100
    )
    """Columns whose values keep objects, in addition to the configured ones (`media.references`)."""
    min_age_hours: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    """Younger files are skipped (`media.min_age_hours`)."""
    dry_run: bool | None = None
    """Only say what would be done (`media.apply`)."""
    max_delete_gb: float | None = Field(None, ge=0, le=1_000_000_000, allow_inf_nan=False)
    """Stop before more than this is deleted, in GB of 10^9 bytes (`media.max_delete_gb`)."""
    quarantine_hours: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    """Delete only what a manifest at least this old lists already; 0 = at once (`media.quarantine_hours`; where the
    settings allow overriding, a run by hand takes 0)."""
    max_orphan_share: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Refuse when more of the files are orphans (`media.max_orphan_share`)."""
    override: bool = False
    """The first of the two switches that let a run pass the governor; the other is the setting `allow_override`."""

    @field_validator("base_path")
    @classmethod
    def _folder(cls, path: str | None) -> str | None:
        return None if path is None else folder_of(path)

    def resolved(self, settings: Settings) -> Self:
        """With what was not given from the settings.

        Raises:
            InvalidParams: a parameter is looser than its setting.
        """
        return tightened(self, settings)


def tightened[P: Params](params: P, settings: Settings) -> P:
    """The parameters that are in force: each as strict as its setting, or stricter (REQUIREMENTS S2).

    With the setting `allow_override` any value is taken, and references given stand in place of the configured ones.

    Raises:
        InvalidParams: a parameter is looser than its setting; names both, and what is accepted.
    """
    configured: dict[str, Any] = {
        "bucket": os.environ.get("MEDIA_BUCKET"),
        "base_path": folder_of(settings.media.base_path),
        "references": settings.media.references,
        "min_age_hours": settings.media.min_age_hours,
        "dry_run": not settings.media.apply,
        "max_delete_gb": settings.media.max_delete_gb,
        "quarantine_hours": settings.media.quarantine_hours,
        "max_orphan_share": settings.media.max_orphan_share,
    }
    given = {name: value for name in configured if (value := getattr(params, name)) is not None}
    if not settings.allow_override:
        problems = [
            (name, f"{sentence}; only with the setting allow_override may it be looser")
            for name, value in given.items()
            if (sentence := _looser(name, value, configured[name]))
        ]
        if problems:
            raise InvalidParams(problems)
        configured_references, added = configured["references"], given.get("references", ())
        given["references"] = (*configured_references, *(one for one in added if one not in configured_references))
    else:
        del configured["quarantine_hours"]  # depends on who makes the run
    return params.model_copy(update=configured | given)


_SETTINGS: Final = {
    "bucket": "the stack's media bucket",
    "base_path": "the setting media.base_path",
    "references": "the setting media.references",
    "min_age_hours": "the setting media.min_age_hours",
    "dry_run": "the setting media.apply",
    "max_delete_gb": "the setting media.max_delete_gb",
    "quarantine_hours": "the setting media.quarantine_hours",
    "max_orphan_share": "the setting media.max_orphan_share",
}
"""Where the limit of a parameter comes from."""


def _looser(name: str, value: Any, limit: Any) -> str | None:
    """A sentence, if `value` is looser than its setting `limit`."""
    setting = _SETTINGS[name]
    sentence = None
    if name == "bucket" and value != limit:
        sentence = f"takes {limit or 'none'} ({setting}), got {shown(value)}"
    elif name == "base_path" and not value.startswith(limit):
        sentence = f"takes a folder below {limit} ({setting}), got {shown(value) if value else 'the whole bucket'}"
    elif name == "dry_run" and limit and not value:
        sentence = f"false needs {setting} to be true"
    elif name in {"min_age_hours", "quarantine_hours"} and value < limit:
        sentence = f"takes {limit:g} or more ({setting}), got {value:g}"
    elif name in {"max_delete_gb", "max_orphan_share"} and value > limit:
        sentence = f"takes {limit:g} or less ({setting}), got {value:g}"
    elif name == "references":
        columns = {str(one): one for one in limit}
        if other := next((one for one in value if columns.get(str(one), one) != one), None):
            sentence = f"{other} is configured otherwise ({setting}); it takes other columns"
    return sentence and f"{name}: {sentence}"
