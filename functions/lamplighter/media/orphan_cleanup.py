"""Removes the images and videos of a bucket that no row of the database refers to (REQUIREMENTS A1-A7).

Runs every `orphan_cleanup_scan_interval_hours`. Previews unless told otherwise. Deletes by the protocol of
`kernel.deletion`, and of a versioned bucket only so that `lamplighter.media.undo` can bring everything back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, unquote

from pydantic import BaseModel, Field, field_validator

from lamplighter.kernel.deletion import (
    PART,
    Archive,
    CarriedOut,
    Entry,
    Limits,
    Manifest,
    ManifestAddress,
    Measure,
    Plan,
    Refused,
    Stop,
    Tally,
    archive_bucket,
    carry_out,
    entries,
    refusals,
)
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import InvalidParams, Run, Unfinished, job
from lamplighter.kernel.job import Params as JobParams
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.media import Reference
from lamplighter.kernel.settings import Settings
from lamplighter.media import listing
from lamplighter.media.extensions import is_media
from lamplighter.media.references import ColumnCount
from lamplighter.media.removal import Removal

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lamplighter.media.listing import Listed
    from lamplighter.media.references import References

GB: Final = 10**9


class Params(JobParams):
    """What a run takes. What is None comes from the setting named beside it, which a run may only make stricter."""

    bucket: str | None = Field(None, min_length=1, max_length=255)
    """The bucket to clean; the stack's media bucket (`MEDIA_BUCKET`)."""
    base_path: str | None = Field(None, max_length=1024)
    """The folder to clean, slashes around it or not; empty is the whole bucket (`orphan_cleanup_base_path`)."""
    references: tuple[Reference, ...] | None = Field(None, min_length=1, max_length=100)
    """Columns whose values keep objects, in addition to the configured ones (`orphan_cleanup_references`)."""
    min_age_hours: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    """Younger files are skipped (`orphan_cleanup_age_threshold_hours`)."""
    dry_run: bool | None = None
    """Only say what would be done (`orphan_cleanup_dry_run`)."""
    max_delete_gb: float | None = Field(None, ge=0, le=1_000_000_000, allow_inf_nan=False)
    """Stop before more than this is deleted, in GB of 10^9 bytes (`orphan_cleanup_max_delete_gb`)."""
    quarantine_hours: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    """Delete only what a manifest at least this old lists already; 0 = at once (`orphan_cleanup_quarantine_hours`)."""
    max_orphan_share: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Refuse when more of the files are orphans (`orphan_cleanup_max_orphan_share`)."""
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
    configured = {
        "bucket": os.environ.get("MEDIA_BUCKET"),
        "base_path": folder_of(settings.orphan_cleanup_base_path),
        "references": tuple(Reference(**Reference.fields_of(column)) for column in settings.orphan_cleanup_references),
        "min_age_hours": settings.orphan_cleanup_age_threshold_hours,
        "dry_run": settings.orphan_cleanup_dry_run,
        "max_delete_gb": settings.orphan_cleanup_max_delete_gb,
        "quarantine_hours": settings.orphan_cleanup_quarantine_hours,
        "max_orphan_share": settings.orphan_cleanup_max_orphan_share,
    }
    given = {name: value for name in configured if (value := getattr(params, name)) is not None}
    if not settings.allow_override:
        problems = [
            (name, f"{sentence}, or the setting allow_override set to true")
            for name, value in given.items()
            if (sentence := _looser(name, value, configured[name]))
        ]
        if problems:
            raise InvalidParams(problems)
        configured_references, added = configured["references"], given.get("references", ())
        given["references"] = (*configured_references, *(one for one in added if one not in configured_references))
    return params.model_copy(update=configured | given)


_SETTINGS: Final = {
    "bucket": "the stack's media bucket",
    "base_path": "the setting orphan_cleanup_base_path",
    "references": "the setting orphan_cleanup_references",
    "min_age_hours": "the setting orphan_cleanup_age_threshold_hours",
    "dry_run": "the setting orphan_cleanup_dry_run",
    "max_delete_gb": "the setting orphan_cleanup_max_delete_gb",
    "quarantine_hours": "the setting orphan_cleanup_quarantine_hours",
    "max_orphan_share": "the setting orphan_cleanup_max_orphan_share",
}
"""Where the limit of a parameter comes from."""


def _looser(name: str, value: Any, limit: Any) -> str | None:
    """A sentence, if `value` is looser than its setting `limit`."""
    setting = _SETTINGS[name]
    if name == "bucket" and value != limit:
        return f"bucket: takes {limit or 'none'} ({setting}), got {value}"
    if name == "base_path" and not value.startswith(limit):
        return f"base_path: takes a folder below {limit} ({setting}), got {value or 'the whole bucket'}"
    if name == "dry_run" and limit and not value:
        return f"dry_run: false needs {setting} to be false"
    if name in {"min_age_hours", "quarantine_hours"} and value < limit:
        return f"{name}: takes {limit:g} or more ({setting}), got {value:g}"
    if name in {"max_delete_gb", "max_orphan_share"} and value > limit:
        return f"{name}: takes {limit:g} or less ({setting}), got {value:g}"
    if name == "references":
        columns = {str(one): one for one in limit}
        for one in value:
            if columns.get(str(one), one) != one:
                return f"references: {one} is configured otherwise ({setting}); it takes other columns"
    return None


class Report(JobReport):
    """What a run found and did (REQUIREMENTS A5), summed over its continuations."""

    scanned_files: int = 0
    """Images and videos below `base_path`."""
    orphaned_files: int = 0
    """Those of them, old enough, that no reference names."""
    orphaned_bytes: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    would_delete_files: int = 0
    """In a preview, what a run in earnest would have deleted."""
    would_delete_bytes: int = 0
    failed_deletions: list[str] = []
    """`key: error` of the first hundred; the manifest has all."""
    duration_seconds: float = 0.0
    dry_run: bool
    skipped_young: int = 0
    skipped_size_limit: int = 0
    skipped_quarantine: int = 0
    skipped_not_media: int = 0
    """Objects that are not known as image or video, folders among them: never touched."""
    kept_referenced_again: int = 0
    kept_changed: int = 0
    already_gone: int = 0
    refusals: list[str] = []
    """Why the governor refused, or in a preview would refuse."""
    references: list[ColumnCount] = []
    manifest: ManifestAddress | None = None
    """What `undo` takes. After a refusal, the plan."""

    def counts(self) -> tuple[int, int]:
        """Files and bytes deleted."""
        return self.deleted_files, self.deleted_bytes


class _Scanned(BaseModel):
    """How far a scan has come: the checkpoint of a run that was stopped in it."""

    started_at: datetime
    after: str = ""
    files: int = 0
    young: int = 0
    not_media: int = 0
    parts: int = 0
    orphans: int = 0
    orphan_bytes: int = 0


@job(
    "orphan_cleanup",
    params=Params,
    timeout=timedelta(minutes=15),
    singleton=True,
    critical=True,
    enabled_by="orphan_cleanup_enabled",
)
def handler(run: Run, params: Params) -> Report | Unfinished:
    """Find the orphans of a bucket, and delete them unless it is a preview.

    Raises:
        Permanent: a parameter names what does not exist.
        Refused: the governor refused to delete; nothing was touched.
        DatabaseUnavailable: no database, no answer: nothing more was touched.
    """
    from lamplighter.kernel.aws import client
    from lamplighter.kernel.database import engine

    cleanup = OrphanCleanup(run, params, client("s3"))
    with engine().connect() as connection:
        return cleanup.run(connection)


class OrphanCleanup:
    """One run."""

    def __init__(self, run: Run, params: Params, s3: Any) -> None:
        """`params` are resolved."""
        if not params.bucket:
            raise Permanent("bucket: none is given, and the stack has no media bucket (MEDIA_BUCKET).")
        self._run = run
        self._params = params
        self._bucket = params.bucket
        self._folder = params.base_path or ""
        self._dry_run = params.dry_run is not False
        self._s3 = s3
        self._archive = Archive(
            s3,
            archive_bucket(),
            job_type="orphan_cleanup",
            scope=f"{self._bucket}/{quote(self._folder, safe='') or '-'}",
            job_id=run.job_id,
        )

    def run(self, connection: Connection) -> Report | Unfinished:
        """Goes on from wherever this run has come to."""
        known = self._archive.plan()
        resumed = known is not None
        references = self._profile(connection)
        if known is None:
            scanned = _Scanned.model_validate(self._run.checkpoint or {"started_at": self._run.now()})
            stopped = self._scan(connection, references, scanned)
            if stopped:
                report = self._report(scanned, references)
                self._run.logger.info("stopped while scanning", extra={"after": scanned.after})
                if stopped == "out_of_time":
                    return Unfinished(checkpoint=scanned.model_dump(mode="json"), report=report)
                return report
            known = self._plan(scanned, references)
        plan, written = known
        scanned = _Scanned.model_validate(plan.facts)
        if not plan.accepted and not self._dry_run and plan.parts:
            report = self._report(scanned, references, plan=plan, manifest=written).model_copy(
                update={"status": "refused"}
            )
            raise Refused([*plan.refusals, self._way_out()], report)
        act = Removal(
            connection,
            references,
            self._s3,
            bucket=self._bucket,
            planned_at=plan.planned_at,
            max_bytes=int((self._params.max_delete_gb or 0) * GB),
            quarantined=self._quarantined(plan),
            dry_run=self._dry_run,
        )
        done = carry_out(
            self._archive,
            parts=plan.parts,
            resumed=resumed,
            read_part=self._archive.plan_part,
            act=act,
            stop=self._run.stop,
            progress=lambda part, parts: self._run.progress(
                60 + 39 * part // parts, f"{part * PART} orphans dealt with"
            ),
        )
        if done.stopped == "out_of_time":
            report = self._report(scanned, references, plan=plan, tally=done.tally)
            return Unfinished(checkpoint=scanned.model_dump(mode="json"), report=report)
        manifest = self._archive.write_manifest(self._manifest(plan, done))
        return self._report(scanned, references, plan=plan, tally=done.tally, manifest=manifest)

    def _profile(self, connection: Connection) -> References:
        from lamplighter.media.references import profile

        def exists(key: str) -> bool:
            return listing.look(self._s3, self._bucket, key) is not None

        with connection.begin():
            columns = self._params.references or ()
            return profile(connection, columns, bucket=self._bucket, folder=self._folder, exists=exists)

    def _scan(self, connection: Connection, references: References, scanned: _Scanned) -> Stop:
        """Writes the orphans down as the plan's parts, in S3's order; counts in `scanned`."""
        cutoff = _to_seconds(scanned.started_at - timedelta(hours=self._params.min_age_hours or 0))
        pending: list[Entry] = []
        stopped: Stop = None
        for objects in listing.batches(self._s3, self._bucket, self._folder, after=scanned.after):
            media = [one for one in objects if is_media(one[0])]
            old = [one for one in media if one[1][:19] <= cutoff]
            pending += [_entry(old[n]) for n in self._missing(connection, references, old)]
            scanned.files += len(media)
            scanned.young += len(media) - len(old)
            scanned.not_media += len(objects) - len(media)
            scanned.after = objects[-1][0] if objects else scanned.after
            while len(pending) >= PART:
                self._write_part(pending[:PART], scanned)
                del pending[:PART]
            self._run.progress(0, f"{scanned.files} files scanned, {scanned.orphans + len(pending)} orphans")
            stopped = self._run.stop()
            if stopped:
                break
        if pending:
            self._write_part(pending, scanned)
        return stopped

    def _missing(self, connection: Connection, references: References, objects: list[Listed]) -> list[int]:
        with connection.begin():
            return references.missing(connection, [one[0] for one in objects])

    def _write_part(self, orphans: list[Entry], scanned: _Scanned) -> None:
        self._archive.write_plan_part(scanned.parts, orphans)
        scanned.parts += 1
        scanned.orphans += len(orphans)
        scanned.orphan_bytes += sum(orphan.size for orphan in orphans)

    def _plan(self, scanned: _Scanned, references: References) -> tuple[Plan, ManifestAddress]:
        """Has the governor judge the scan, and writes the plan down."""
        counts = [column.count for column in references.columns]
        baseline = self._archive.earlier()
        settings = self._run.settings
        measure = Measure(
            scanned=scanned.files,
            planned=scanned.orphans,
            references={count.column: count.values for count in counts},
            unmapped={count.column: count.unmapped for count in counts},
            baseline=baseline.references if baseline else None,
        )
        limits = Limits(
            max_share=self._params.max_orphan_share or settings.orphan_cleanup_max_orphan_share,
            max_reference_shrink=settings.orphan_cleanup_max_reference_shrink,
            max_unmapped=settings.orphan_cleanup_max_unmapped_references,
        )
        refused = refusals(measure, limits)
        plan = Plan(
            job_id=self._run.job_id,
            scope=self._archive.scope,
            planned_at=self._run.now(),
            started_at=scanned.started_at,
            parts=scanned.parts,
            references=dict(measure.references),
            refusals=refused,
            accepted=not refused or (self._params.override and settings.allow_override),
            facts=scanned.model_dump(mode="json"),
        )
        return plan, self._archive.write_plan(plan)

    def _way_out(self) -> str:
        missing = [
            switch
            for switch, on in (
                ("the parameter override", self._params.override),
                ("the setting allow_override", self._run.settings.allow_override),
            )
            if not on
        ]
        return f"Nothing was deleted. If all is as it should be, set {' and '.join(missing)} to true."

    def _quarantined(self, plan: Plan) -> Iterator[Entry] | None:
        """What an earlier run listed long enough ago, in S3's order; None when no quarantine is asked for."""
        hours = self._params.quarantine_hours
        if hours is None:
            scheduled = self._run.job.schedule is not None  # a redriven tick, too, whatever triggered it
            hours = self._run.settings.orphan_cleanup_quarantine_hours if scheduled else 0
        if not hours:
            return None
        manifest = self._archive.earlier(planned_by=plan.started_at - timedelta(hours=hours))
        return entries(self._s3, self._archive.bucket, manifest) if manifest else iter(())

    def _manifest(self, plan: Plan, done: CarriedOut) -> Manifest:
        return Manifest(
            job_id=plan.job_id,
            scope=self._archive.scope,
            planned_at=plan.planned_at,
            finished_at=self._run.now(),
            dry_run=self._dry_run,
            complete=done.stopped is None,
            accepted=plan.accepted,
            refusals=plan.refusals,
            references=plan.references,
            parts=done.parts,
        )

    def _report(
        self,
        scanned: _Scanned,
        references: References,
        *,
        plan: Plan | None = None,
        tally: Tally | None = None,
        manifest: ManifestAddress | None = None,
    ) -> Report:
        tally = tally or Tally()
        count, size = tally.count, tally.size
        return Report(
            status="completed_with_errors" if count["failed"] else "completed",
            scanned_files=scanned.files,
            orphaned_files=scanned.orphans,
            orphaned_bytes=scanned.orphan_bytes,
            deleted_files=count["deleted"],
            deleted_bytes=size["deleted"],
            would_delete_files=count["would_delete"],
            would_delete_bytes=size["would_delete"],
            failed_deletions=tally.failures,
            duration_seconds=round((self._run.now() - scanned.started_at).total_seconds(), 3),
            dry_run=self._dry_run,
            skipped_young=scanned.young,
            skipped_size_limit=count["skipped_size_limit"],
            skipped_quarantine=count["kept_quarantine"],
            skipped_not_media=scanned.not_media,
            kept_referenced_again=count["kept_referenced_again"],
            kept_changed=count["kept_changed"],
            already_gone=count["already_gone"],
            refusals=plan.refusals if plan else [],
            references=[column.count for column in references.columns],
            manifest=manifest,
        )


def folder_of(path: str) -> str:
    """A path as keys have it: no slash before, one behind, nothing for the whole bucket.

    Raises:
        ValueError: it has an empty segment, `.` or `..`, which would be another folder once it is read as a path.
    """
    path = path.strip("/")
    segments = unquote(path).replace("\\", "/").split("/")
    if path and any(segment.strip() in {"", ".", ".."} or "\0" in segment for segment in segments):
        raise ValueError("takes a folder without empty segments, . or ..")
    return f"{path}/" if path else ""


def _entry(one: Listed) -> Entry:
    key, last_modified, etag, size = one
    return Entry(key=key, size=int(size), etag=etag, last_modified=last_modified)


def _to_seconds(moment: datetime) -> str:
    """As a listing's times begin."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
