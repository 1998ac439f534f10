"""Every default of REQUIREMENTS as a setting: one document of sections, validated as a whole (K4, P2).

A document is a JSON object of sections (`{"media": {"apply": true}}`). Documents are merged key by key, and later wins:
the template parameter `Settings`, then the SSM parameter. The result is the *effective document*. The jobs table holds
it; only `jobs.settings_document` writes it. `load` reads it there. A function's own variables override it for that
function: `LAMPLIGHTER_<SECTION>_<FIELD>` and the names in `VARIABLES`.

The flat names of earlier versions (`OLD_NAMES`) are still read, in documents and as `LAMPLIGHTER_<OLD_NAME>` variables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from datetime import timedelta
from math import isfinite
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lamplighter.kernel.cloud import Limits, Remedy, Targets
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.media import DERIVED, MOST, Reference, derived_pattern, folder_of, reference_of

PREFIX: Final = "LAMPLIGHTER_"
KEY: Final = "settings#effective"
"""The partition key of the effective document's item in the jobs table."""
MAX_BYTES: Final = 300_000
"""The largest document, in bytes of UTF-8."""
MAX_DEPTH: Final = 16
"""Objects and lists inside one another."""
_SHOWN: Final = 80
"""Characters of a refused value that the message repeats."""


class SettingsError(Permanent):
    """A setting is unknown or its value is invalid. The message names it, what it takes, and where it was found."""


def _from_json(value: object) -> object:
    """A variable holds an object or a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return _loads(value)
        except ValueError as error:
            raise PydanticCustomError("json", "takes JSON ({reason})", {"reason": str(error)}) from None
    return value


def _split(value: object) -> object:
    value = _from_json(value)
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _no_flag(value: object) -> object:
    """Python takes true for 1, which would let `max_orphan_share: true` pass for the whole."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "input should be a number")
    return value


def _no_flags(kind: type) -> BeforeValidator:
    """The same for the fields of a dataclass that are no flags themselves."""
    flags = {one.name for one in dataclass_fields(kind) if isinstance(one.default, bool)}

    def check(value: object) -> object:
        for name, given in value.items() if isinstance(value, dict) else ():
            if isinstance(given, bool) and name not in flags:
                raise ValueError(f"{name}: takes neither true nor false")
        return value

    return BeforeValidator(check)


def _folder(path: str) -> str:
    """As it was given, if it is one folder in every reading."""
    folder_of(path)
    return path


def _derived(pattern: str) -> str:
    try:
        return derived_pattern(pattern)
    except ValueError as error:
        raise PydanticCustomError("derived", "{reason}", {"reason": str(error).removeprefix("derived: ")}) from None


def _identifier(name: str) -> str:
    if not 0 < len(name.encode(errors="surrogatepass")) <= _LONGEST_IDENTIFIER or "\0" in name:
        raise PydanticCustomError("identifier", "takes a name of 1 to 63 bytes")
    return name


def _table(name: str) -> str:
    """As it was given, if it is one name, or two with a dot between them. PostgreSQL would cut a longer one."""
    try:
        for part in name.split(".", 1):
            _identifier(part)
    except PydanticCustomError:
        raise PydanticCustomError("table", "takes table or schema.table, each of 1 to 63 bytes") from None
    return name


def _scalar(value: object) -> object:
    finite = not isinstance(value, float) or isfinite(value)
    if not (value is None or isinstance(value, str | int | float)) or not finite or "\0" in str(value):
        raise PydanticCustomError("scalar", "takes a text, a number, true, false or null")
    return value


def _action(value: object) -> object:
    if value == "delete":
        return {"delete": True}
    if not isinstance(value, dict | BaseModel):
        raise PydanticCustomError("action", "takes " + _ACTIONS)
    return value


_LONGEST_IDENTIFIER: Final = 63
"""Bytes; PostgreSQL cuts longer names, and would find another table."""
_ACTIONS: Final = '"delete", {"archive": "schema.table"} or {"set": {"column": value}}'

type Number = Annotated[float, BeforeValidator(_no_flag), Field(allow_inf_nan=False)]
type Whole = Annotated[int, BeforeValidator(_no_flag)]
Hours = Annotated[Number, Field(ge=0, le=1_000_000)]
Days = Annotated[float, Field(strict=True, ge=0, le=36_500, allow_inf_nan=False)]
Kept = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}(/(completed|failed|cancelled))?$")]
"""Which finished jobs: `<type>` or `<type>/<status>`, `default` for any type."""
Rule = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Identifier = Annotated[str, AfterValidator(_identifier)]
"""A column as the database spells it."""
Table = Annotated[str, AfterValidator(_table)]
"""A table as the database spells it; the first dot ends the schema."""
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Patterns = Annotated[tuple[Annotated[Text, Field(min_length=1)], ...], BeforeValidator(_from_json)]


class Section(BaseModel):
    """A part of the document: a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobsSettings(Section):
    """How jobs are timed, retried, watched and kept."""

    retry_max_attempts: Whole = Field(4, ge=1, le=10)
    """Attempts of a job, the first included (K5)."""
    retry_base_seconds: Whole = Field(30, ge=1, le=1_000_000)
    """Longest wait before the second attempt; doubles with each (K5)."""
    retry_cap_seconds: Whole = Field(900, ge=1, le=1_000_000)
    """Longest wait before any attempt (K5)."""
    poison_rescues: Whole = Field(3, ge=1)
    """A job found expired this often within the window is failed for good (K10)."""
    poison_window_hours: Whole = Field(72, ge=1, le=1_000_000)
    """The poison guard's window (K10)."""
    schedule_grace_minutes: Whole = Field(15, ge=0, le=1_000_000)
    """How long after its interval a schedule without a completed run is reported (K12)."""
    misfire_grace_minutes: Whole = Field(5, ge=1, le=1440)
    """A tick of the cleanups that comes later than this is skipped (B6)."""
    timeout_minutes: Annotated[dict[str, Annotated[Whole, Field(ge=1, le=1_000_000)]], BeforeValidator(_from_json)] = (
        Field(
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
    )
    """Minutes an attempt of a job outside Lambda may take, by job type (B1). The cleanup's own five are those of its
    state machine (`phases.EXECUTION`)."""
    retention_hours: Annotated[
        dict[Kept, Annotated[int, Field(strict=True, ge=1, le=1920)]], BeforeValidator(_from_json)
    ] = Field(default={"default": 720})
    """Hours a finished job stays in the ledger (B3, D4), by `<type>/<status>`, `<type>`, `default/<status>` or
    `default`, whichever is found first.

    At least 1: a tick that is delivered twice must find the first one's row. At most 80 days, so that the history has
    its copy before the table's TTL takes the row after 90.
    """


class MediaSettings(Section):
    """The orphan cleanup of the media bucket."""

    enabled: bool = True
    """Whether the schedule runs, and its runs do anything (A6)."""
    scan_interval_hours: Whole = Field(24, ge=1, le=720)
    """Hours between scheduled runs (A6)."""
    base_path: Annotated[Text, Field(max_length=1024), AfterValidator(_folder)] = ""
    """The folder that is cleaned; empty is the whole bucket (A1)."""
    references: Annotated[
        tuple[Annotated[Reference, _no_flags(Reference), BeforeValidator(reference_of)], ...], BeforeValidator(_split)
    ] = Field((Reference(table="media_files", column="storage_key"),), min_length=1)
    """The columns whose values keep files: objects, or `table.column`; a variable may separate them by commas (A1)."""
    apply: bool = False
    """Whether runs delete; false only previews (A3, S4)."""
    ramp: bool = True
    """Whether the first runs in earnest are limited (S3)."""
    max_objects: Annotated[Whole, Field(ge=1, le=MOST)] | None = None
    """The most objects that a run removes, and the ceiling of the ramp (S3); none: no limit."""
    min_age_hours: Hours = 24
    """Younger files are skipped (A2)."""
    max_delete_gb: Number = Field(10.0, ge=0)
    """Stop before cumulative deletion exceeds this, in GB of 10^9 bytes (A4)."""
    quarantine_hours: Hours = 24
    """A run removes only what a manifest at least this old already listed (A7)."""
    max_orphan_share: Number = Field(0.2, gt=0, le=1)
    """Refuse to delete when more than this share of the files are orphans (A7)."""
    max_reference_shrink: Number = Field(0.2, ge=0, le=1)
    """Refuse to delete when the references shrank by more than this share since the last run (A7)."""
    allow_unversioned: bool = False
    """Whether runs delete in a bucket without versioning, where nothing can be restored (S5)."""
    derived: Annotated[tuple[Annotated[Text, AfterValidator(_derived)], ...], BeforeValidator(_from_json)] = DERIVED
    """How files are named that derive from a referenced one, which keeps them (A1): `{name}` stands for its file name,
    `{n}` for digits, `{any}` for anything; folders end with a slash, as `thumbs/` or `size/w{n}/`. The extension may be
    another."""
    exclude: Patterns = ()
    """Glob patterns of keys that are never removed (A1)."""


class OrphanSettings(Section):
    """The parent that rows refer to (C16)."""

    table: Table
    """The parent's table."""
    column: Identifier
    """The rule's column that names the parent."""
    key: Identifier = "id"
    """The parent's column that it names."""


class ActionSettings(Section):
    """What becomes of a row that is due: one of these."""

    delete: bool = False
    archive: Table | None = None
    """The table that rows are moved to."""
    set: dict[Identifier, Annotated[Any, BeforeValidator(_scalar)]] | None = None
    """Values by column."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.delete + (self.archive is not None) + (self.set is not None) != 1:
            raise ValueError(f"takes one of {_ACTIONS}")
        return self


class RuleSettings(Section):
    """A retention rule of the owner's, or what is changed about another rule, about `plans` or about `audit_log`."""

    apply: bool = False
    """Whether runs change rows; false only previews. Lamplighter's own rules always act (S4)."""
    keep_days: Days | None = None
    """Days that rows are kept; none: as long as the rule says (B11)."""
    floor_days: Days | None = None
    """The fewest days that `keep_days` takes, in any document."""
    table: Table | None = None
    """`table` or `schema.table`. A name that is no rule's becomes one by it."""
    clock: Identifier | None = None
    """The column that says from when a row ages."""
    clock_unit: Literal["timestamp", "date", "seconds", "milliseconds"] | None = None
    """How the clock's values are read; none: as a timestamp."""
    where: Annotated[Text, Field(max_length=4_000)] | None = None
    """What else must hold, in SQL."""
    orphan_of: OrphanSettings | None = None
    """Only rows whose parent is gone are due (C16)."""
    action: Annotated[ActionSettings, BeforeValidator(_action)] | None = None
    """What becomes of a row; none: it is deleted."""
    key: Identifier | None = None
    """The column by which a report names a row; none: `id`."""
    ramp: bool = True
    """Whether the first runs in earnest are limited (S3)."""
    max_rows: Annotated[Whole, Field(ge=1, le=MOST)] | None = None
    """The most rows that a run changes, and the ceiling of the ramp (S3); none: no limit."""


class RetentionSettings(Section):
    """What is done about old rows."""

    rules: Annotated[dict[Rule, RuleSettings], BeforeValidator(_from_json)] = Field(default={})
    """By the name of a rule, `plans` or `audit_log`, in the order in which runs do them."""


class UploadsSettings(Section):
    """Uploads and their results."""

    job_timeout_seconds: Whole = Field(600, ge=1, le=840)
    """An upload that takes longer is failed (D2); its function ends after 900 s."""
    max_mb: Whole = Field(2048, ge=1)
    """A larger upload is refused, in MB of 10^6 bytes (D1)."""
    ttl_completed_hours: Number = Field(24, ge=0.01, le=1_000_000)
    """How long the files and the live record of a completed upload are kept (D4)."""
    ttl_failed_hours: Number = Field(1, ge=0.01, le=1_000_000)
    """How long those of a failed or cancelled one are (D4)."""
    cleanup_interval_seconds: Whole = Field(3600, ge=1, le=86_400)
    """Seconds between scheduled expiries, rounded up to minutes (D4)."""


class CloudSettings(Section):
    """Scans of cloud accounts."""

    targets: Annotated[tuple[Targets, ...], BeforeValidator(_from_json)] = Field(default=())
    """The accounts and regions that are scanned (C17); none: where the stack itself is."""
    limits: Annotated[Limits, _no_flags(Limits), BeforeValidator(_from_json)] = Field(default=Limits())
    """What counts as waste or risk, where not as REQUIREMENTS say."""
    remedies: Annotated[dict[str, Annotated[Remedy, _no_flags(Remedy)]], BeforeValidator(_from_json)] = Field(
        default={}
    )
    """What is done about findings, by check (C13). A check that is not named only reports."""
    concurrency: Whole = Field(8, ge=1, le=40)
    """How many regions are scanned at a time (C17)."""


class Settings(Section):
    """The whole document, with REQUIREMENTS' defaults."""

    allow_override: bool = False
    """The second of the two switches that let a run pass the governor (A7, S2)."""
    jobs: JobsSettings = JobsSettings()
    media: MediaSettings = MediaSettings()
    retention: RetentionSettings = RetentionSettings()
    uploads: UploadsSettings = UploadsSettings()
    cloud: CloudSettings = CloudSettings()

    def job_timeout(self, job_type: str) -> timedelta:
        """How long an attempt of `job_type` may take (REQUIREMENTS B1)."""
        default = JobsSettings.model_fields["timeout_minutes"].default["default"]
        minutes = self.jobs.timeout_minutes
        return timedelta(minutes=minutes.get(job_type, minutes.get("default", default)))

    def job_retention(self, job_type: str, status: str) -> timedelta:
        """How long a job stays in the ledger after it finished (REQUIREMENTS B3, D4)."""
        hours = JobsSettings.model_fields["retention_hours"].default | self.jobs.retention_hours
        names = (f"{job_type}/{status}", job_type, f"default/{status}", "default")
        return timedelta(hours=next(hours[name] for name in names if name in hours))

    def rule(self, name: str) -> RuleSettings:
        """The settings of a rule, of `plans` or of `audit_log`, which is kept for 90 days (E1)."""
        rule = self.retention.rules.get(name, RuleSettings())
        if name == "audit_log" and rule.keep_days is None:
            return rule.model_copy(update={"keep_days": 90})
        return rule


# --- Names of earlier versions ---------------------------------------------------------------------------------------

type Path = tuple[str, ...]


def _negated(value: object) -> object:
    try:
        return not TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return value  # the model refuses it


def _number(value: object) -> object:
    """Of a variable, which holds text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _integer(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _minutes_in_seconds(value: object) -> object:
    number = _number(value)
    return number * 60 if isinstance(number, int | float) and not isinstance(number, bool) else value


OLD_NAMES: Final[Mapping[str, tuple[Path, Callable[[object], object] | None]]] = {
    "orphan_cleanup_enabled": (("media", "enabled"), None),
    "orphan_cleanup_scan_interval_hours": (("media", "scan_interval_hours"), None),
    "orphan_cleanup_base_path": (("media", "base_path"), None),
    "orphan_cleanup_references": (("media", "references"), None),
    "orphan_cleanup_age_threshold_hours": (("media", "min_age_hours"), None),
    "orphan_cleanup_dry_run": (("media", "apply"), _negated),
    "orphan_cleanup_max_delete_gb": (("media", "max_delete_gb"), None),
    "orphan_cleanup_quarantine_hours": (("media", "quarantine_hours"), None),
    "orphan_cleanup_max_orphan_share": (("media", "max_orphan_share"), None),
    "orphan_cleanup_max_reference_shrink": (("media", "max_reference_shrink"), None),
    "retry_max_attempts": (("jobs", "retry_max_attempts"), None),
    "retry_base_seconds": (("jobs", "retry_base_seconds"), None),
    "retry_cap_seconds": (("jobs", "retry_cap_seconds"), None),
    "poison_rescues": (("jobs", "poison_rescues"), None),
    "poison_window_hours": (("jobs", "poison_window_hours"), None),
    "schedule_grace_minutes": (("jobs", "schedule_grace_minutes"), None),
    "misfire_grace_minutes": (("jobs", "misfire_grace_minutes"), None),
    "job_timeout_minutes": (("jobs", "timeout_minutes"), None),
    "job_retention_hours": (("jobs", "retention_hours"), None),
    "upload_job_timeout_seconds": (("uploads", "job_timeout_seconds"), None),
    "upload_max_mb": (("uploads", "max_mb"), None),
    "upload_ttl_completed_hours": (("uploads", "ttl_completed_hours"), None),
    "upload_ttl_failed_hours": (("uploads", "ttl_failed_hours"), None),
    "upload_cleanup_interval_minutes": (("uploads", "cleanup_interval_seconds"), _minutes_in_seconds),
    "audit_log_keep_days": (("retention", "rules", "audit_log", "keep_days"), _number),
    "cloud_targets": (("cloud", "targets"), None),
    "cloud_limits": (("cloud", "limits"), None),
    "cloud_remedies": (("cloud", "remedies"), None),
    "cloud_concurrency": (("cloud", "concurrency"), None),
}
"""Where a flat name of an earlier version stands now, and how its value is turned into the one there."""

RETENTION_DAYS: Final = "retention_days"
"""The earlier `{"<rule>": days}`; now `retention.rules.<rule>.keep_days`."""
MAX_UNMAPPED: Final = "orphan_cleanup_max_unmapped_references"
"""The earlier limit of all columns; now `max_unmatched` of each reference that gives none."""

VARIABLES: Final[Mapping[str, Path]] = {
    "JOB_TIMEOUT_SECONDS": ("uploads", "job_timeout_seconds"),
    "CLEANUP_INTERVAL_SECONDS": ("uploads", "cleanup_interval_seconds"),
    "TTL_COMPLETED_HOURS": ("uploads", "ttl_completed_hours"),
    "TTL_FAILED_HOURS": ("uploads", "ttl_failed_hours"),
}
"""Variables with names of their own (D2, D4)."""

_SECTIONS: Final = tuple(name for name in Settings.model_fields if name != "allow_override")
_TEXTS: Final = frozenset({("media", "base_path")})
"""Fields of which a value that looks like JSON is none."""


# --- Reading a document ----------------------------------------------------------------------------------------------


def read(text: str, *, source: str) -> dict[str, Any]:
    """The JSON object that `text` holds.

    Raises:
        SettingsError: it is too large, no JSON, no object, too deeply nested, or gives a name twice.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise SettingsError(f"In {source}: it holds {size} bytes; settings take at most {MAX_BYTES}.")
    try:
        values = _loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SettingsError(f"In {source}: it must hold a JSON object of settings ({reason}).") from None
    if not isinstance(values, dict):
        raise SettingsError(f"In {source}: it must hold a JSON object of settings, not {_kind(values)}.")
    return values


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:_SHOWN]!r} is given twice")
    return values


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _depth(value: object) -> int:
    """How deeply a value is nested; counted without recursion, and no further than what is refused."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        inner = [one for one in level if isinstance(one, dict | list)]
        if not inner:
            return depth
        level = [one for outer in inner for one in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth


# --- Layers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """One document in today's names."""

    source: str
    """Where it was found, as a message says it."""
    values: dict[str, Any] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)
    """How a setting was called there, where not by its path."""

    @classmethod
    def of(cls, given: Mapping[str, object], *, source: str, names: Mapping[Path, str] | None = None) -> Layer:
        """The layer that a document makes, with what it gives by earlier names put where it stands now.

        Raises:
            SettingsError: a setting is given by two names, or the document is nested too deeply.
        """
        if _depth(given) > MAX_DEPTH:
            raise SettingsError(f"In {source}: it is nested too deeply; settings take at most {MAX_DEPTH} levels.")
        layer = cls(source, {name: value for name, value in given.items() if not _is_old(name)}, dict(names or {}))
        layer._decode()
        for name, value in given.items():
            if name == RETENTION_DAYS:
                layer._put_days(_plain(value))
            elif name == MAX_UNMAPPED:
                layer._put((MAX_UNMAPPED,), _integer(value), name)
            elif name in OLD_NAMES:
                path, convert = OLD_NAMES[name]
                shown = f"{name} ({'.'.join(path)})" if convert in (_negated, _minutes_in_seconds) else name
                layer._put(path, convert(value) if convert else _plain(value, path), shown)
        return layer

    def _decode(self) -> None:
        """Objects and lists that a variable holds as text, so that they are merged and not replaced."""
        for section, fields in self.values.items():
            if section in _SECTIONS and isinstance(fields, dict):
                self.values[section] = {name: _plain(value, (section, name)) for name, value in fields.items()}

    def _put_days(self, days: object) -> None:
        if not isinstance(days, dict):
            rules = f"{RETENTION_DAYS} takes an object of days by rule, got {_repr(days)}"
            raise SettingsError(f"In {self.source}: {rules}.")
        for rule, value in days.items():
            self._put(("retention", "rules", rule, "keep_days"), value, f"{RETENTION_DAYS}.{rule}")

    def _put(self, path: Path, value: object, name: str) -> None:
        at = self.values
        for depth, part in enumerate(path[:-1]):
            at = at.setdefault(part, {})
            if not isinstance(at, dict):  # the model refuses what stands there
                raise SettingsError(
                    f"In {self.source}: {'.'.join(path[: depth + 1])} takes an object, got {_repr(at)}."
                )
        if path[-1] in at:
            other = self.names.get(path, ".".join(path))
            raise SettingsError(f"In {self.source}: {name} and {other} are the same setting; give one of them.")
        at[path[-1]] = value
        self.names[path] = name

    def name(self, path: Path) -> str | None:
        """What this layer calls the setting at `path`; None where it says nothing about it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.names:
                return ".".join((self.names[path[:end]], *path[end:]))
        at: Any = self.values
        for part in path:
            if isinstance(at, dict) and part in at:
                at = at[part]
            elif isinstance(at, dict):
                return None
            else:  # inside a list, or inside what should be an object
                break
        return ".".join(path)


def _is_old(name: str) -> bool:
    return name in OLD_NAMES or name in (RETENTION_DAYS, MAX_UNMAPPED)


def _plain(value: object, path: Path = ()) -> object:
    if path in _TEXTS or not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return _loads(value)
    except (ValueError, RecursionError):
        return value  # the model says what it takes


def _repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """The layers as one document: objects are merged key by key, and of everything else the later wins."""
    document: dict[str, Any] = {}
    for layer in layers:
        document = _merge(document, layer.values)
    return _unmatched(document)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        before = result.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[name] = _merge(before, value) if both else value  # type: ignore[arg-type]
    return result


def _unmatched(document: dict[str, Any]) -> dict[str, Any]:
    """With the earlier limit of all columns given to each reference that has none of its own."""
    limit = document.pop(MAX_UNMAPPED, None)
    media = document.get("media", {})
    if limit is None or not isinstance(media, dict):
        return document
    try:
        references = _split(media.get("references", [str(one) for one in MediaSettings().references]))
    except PydanticCustomError:  # the model says what is wrong with them
        return document
    if isinstance(references, list):
        given = [Reference.fields_of(one) if isinstance(one, str) else one for one in references]
        references = [{"max_unmatched": limit, **one} if isinstance(one, dict) else one for one in given]
    return document | {"media": media | {"references": references}}


def validated(layers: Sequence[Layer]) -> Settings:
    """The settings that the layers give together, defaults for the rest.

    Raises:
        SettingsError: a name is unknown or a value invalid; one clause for each, with the layer it was found in.
    """
    try:
        return Settings.model_validate(merged(layers))
    except ValidationError as error:
        raise SettingsError(_explain(error, layers)) from None


def parse(values: Mapping[str, object], *, source: str) -> Settings:
    """The settings of one document. Raises SettingsError, as `validated`."""
    return validated([Layer.of(values, source=source)])


def _explain(error: ValidationError, layers: Sequence[Layer]) -> str:
    problems = [(tuple(map(str, problem["loc"])), problem) for problem in error.errors(include_url=False)]
    found: dict[str, list[str]] = {}
    for path, problem in problems:
        if any(other[: len(path)] == path and other != path for other, _ in problems):
            continue  # a list is too short because of what is wrong inside it
        source, name = _found(path, layers)
        found.setdefault(source, []).append(_sentence(name, path, problem))
    unique = {source: list(dict.fromkeys(clauses)) for source, clauses in found.items()}
    text = " ".join(f"In {source}: {'; '.join(clauses[:10])}." for source, clauses in unique.items())
    return text.encode(errors="backslashreplace").decode()


def _found(path: Path, layers: Sequence[Layer]) -> tuple[str, str]:
    """The last layer that says something about a setting, and how it calls it."""
    if path[:2] == ("media", "references") and path[3:] == ("max_unmatched",) and not _is_own_limit(path, layers):
        for layer in reversed(layers):
            if layer.name((MAX_UNMAPPED,)):
                return layer.source, MAX_UNMAPPED
    for end in range(len(path), 0, -1):  # what is missing has no layer, what it is missing from has
        for layer in reversed(layers):
            if name := layer.name(path[:end]):
                return layer.source, ".".join((name, *path[end:]))
    return layers[-1].source, ".".join(path)


def _is_own_limit(path: Path, layers: Sequence[Layer]) -> bool:
    """Whether the reference at `path` has a limit of its own, and not the earlier limit of all columns."""
    given = (layer.values["media"] for layer in reversed(layers) if isinstance(layer.values.get("media"), dict))
    references = next((_split(media["references"]) for media in given if "references" in media), [])
    own = references[int(path[2])] if isinstance(references, list) and int(path[2]) < len(references) else None
    return isinstance(own, dict) and "max_unmatched" in own


def _sentence(name: str, path: Path, problem: Any) -> str:
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(path[:-1])
        return f"{name} is not a setting" + (f" (known: {', '.join(known)})" if known else "")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{name}: {message}"
    return f"{name}: {message[0].lower()}{message[1:]}, got {_repr(problem['input'])}"


def _known(path: Path) -> Sequence[str]:
    """The names that a section takes."""
    if not path:
        return tuple(Settings.model_fields)
    section = Settings.model_fields.get(path[0])
    if len(path) == 1 and section and isinstance(section.default, BaseModel):
        return tuple(type(section.default).model_fields)
    if path[:2] != ("retention", "rules"):
        return ()
    inner: Mapping[str, type[Section]] = {"orphan_of": OrphanSettings, "action": ActionSettings}
    return tuple((inner[path[3]] if path[3:] else RuleSettings).model_fields)


# --- What is in force ------------------------------------------------------------------------------------------------


def from_environment(environment: Mapping[str, str]) -> Layer:
    """What a function's own variables override.

    Raises:
        SettingsError: a setting is given by two names.
    """
    values: dict[str, Any] = {}
    names: dict[Path, str] = {}
    source = "the environment"

    def put(path: Path, value: str, variable: str) -> None:
        if path in names:
            raise SettingsError(f"In {source}: {names[path]} and {variable} are the same setting; give one of them.")
        names[path] = variable
        at = values
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value

    for variable, value in environment.items():
        if not value:
            continue
        if variable in VARIABLES:
            put(VARIABLES[variable], value, variable)
        elif variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            section, _, rest = name.partition("_")
            path = (section, rest) if section in _SECTIONS and not _is_old(name) else (name,)
            put(path, value, ".".join(path))
    return Layer.of(values, source=source, names=names)


def load() -> Settings:
    """The settings in force now: the effective document, overridden by this function's own variables.

    Raises:
        SettingsError: they are bad, which names the setting: there is nothing safe to fall back on.
        Retryable: the jobs table cannot be read; guessing could delete what a setting protects.
    """
    global _last  # noqa: PLW0603 - validated once for each document, which is read for each run
    document, sha256 = stored() or ("{}", "")
    key = (sha256, tuple(sorted(_own(os.environ))))
    if _last is None or _last[0] != key:
        source = "the settings in force"
        effective = Layer.of(read(document, source=source), source=source)
        _last = (key, validated([effective, from_environment(os.environ)]))
    return _last[1]


_last: tuple[object, Settings] | None = None


def _own(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return (item for item in environment.items() if item[0].startswith(PREFIX) or item[0] in VARIABLES)


def stored() -> tuple[str, str] | None:
    """The effective document and its SHA-256, read from the jobs table; None before the first deployment wrote one.

    Raises:
        Retryable: the table cannot be read.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from lamplighter.kernel.aws import client

    table = os.environ.get("JOBS_TABLE")
    if not table:
        return None
    try:
        answer = client("dynamodb").get_item(
            TableName=table,
            Key={"pk": {"S": KEY}},
            ConsistentRead=True,
            ProjectionExpression="document, sha256",
        )
    except (BotoCoreError, ClientError) as error:
        raise Retryable(f"The settings cannot be read from the table {table}: {error}") from error
    item = answer.get("Item", {})
    return (item["document"]["S"], item["sha256"]["S"]) if "document" in item else None
