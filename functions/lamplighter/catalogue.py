"""Every job type there is, and where it is defined; its domain is imported only when it is asked for.

For what makes jobs of any type, as the API does: a domain may not import another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, Final

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import shown
from lamplighter.kernel.job import JobType

_PLACES: Final = {
    "orphan_cleanup": "lamplighter.media.orphan_cleanup:handler",
    "undo": "lamplighter.media.undo:handler",
    "upload_processing": "lamplighter.uploads.upload_processing:handler",
    "cleanup": "lamplighter.library.cleanup:TYPES",
    "database_cleanup": "lamplighter.library.cleanup:TYPES",
    "session_cleanup": "lamplighter.library.cleanup:TYPES",
    "token_cleanup": "lamplighter.library.cleanup:TYPES",
    "upload_cleanup": "lamplighter.library.cleanup:TYPES",
    "audit_archive": "lamplighter.library.cleanup:TYPES",
    "waste_scan": "lamplighter.cloud.cloud_scan:TYPES",
    "security_enforcement": "lamplighter.cloud.cloud_scan:TYPES",
    "instance_health": "lamplighter.cloud.cloud_scan:TYPES",
    "cloud_undo": "lamplighter.cloud.cloud_undo:handler",
    "preflight": "lamplighter.preflight.preflight:handler",
}
"""`module:name` of a JobType, or of a mapping that has it under its name."""

UNDONE_BY: Final = {
    "orphan_cleanup": "undo",
    "waste_scan": "cloud_undo",
    "security_enforcement": "cloud_undo",
}
"""The job type that takes back what a run did, by the run's own."""

SETTINGS_CHECKS: Final = (
    "lamplighter.rules:checked",
    "lamplighter.cloud.targets:checked",
    "lamplighter.cloud.remedies:checked",
)
"""`module:name` of what raises Permanent where valid settings do not fit together."""

PREFLIGHTS: Final[Mapping[str, str]] = {
    "Database": "lamplighter.preflight.database:part",
    "Buckets": "lamplighter.preflight.buckets:part",
    "Orphaned files": "lamplighter.media.preflight:part",
    "Retention rules": "lamplighter.library.preflight:part",
    "Audit log": "lamplighter.admin.preflight:part",
    "Cloud": "lamplighter.cloud.preflight:part",
    "Cost": "lamplighter.preflight.cost:part",
}
"""`module:name` of each part of the preflight, by its title, in the order of the report."""

_FINDINGS_STORE: Final = "lamplighter.cloud.store:findings_store"

NAMES: Final = tuple(_PLACES)
"""All job types, those that workers outside Lambda bring along not among them."""


def job_type(name: str) -> JobType[Any]:
    """The job type of this name.

    Raises:
        Permanent: there is none; the message names those there are.
    """
    if name not in _PLACES:
        raise Permanent(f"job_type: there is no {shown(name)} (known: {', '.join(NAMES)}).")
    found = resolve_name(_PLACES[name])
    kind: JobType[Any] = found[name] if isinstance(found, Mapping) else found
    return kind


def findings_store() -> Any:
    """The store of the scans' findings, a `cloud.store.FindingsStore`: Postgres, or S3 where there is no database."""
    return resolve_name(_FINDINGS_STORE)()
