"""Brings back what an orphan cleanup deleted, by its manifest (REQUIREMENTS A7). Started by hand; previews by default.

In a versioned bucket a deletion only lays a delete marker over the object: undo takes the marker away. It touches no
object that has been made anew under the same key since, and running it twice does no harm.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter.kernel.deletion import (
    Archive,
    Entry,
    Manifest,
    ManifestAddress,
    Part,
    Tally,
    archive_bucket,
    carry_out,
    part_entries,
    verified,
)
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.undo import UndoParams
from lamplighter.media.removal import own_marker

if TYPE_CHECKING:
    from datetime import datetime

THREADS: Final = 16
"""Objects looked at, at once; as many as the client has connections."""


class Report(JobReport):
    """What became of the objects that the cleanup had deleted; the run's own manifest names each."""

    restored_files: int = 0
    restored_bytes: int = 0
    would_restore_files: int = 0
    already_restored: int = 0
    left_alone: int = 0
    """Made anew, or deleted again, since."""
    not_restorable: int = 0
    """The bucket was not versioned: what was deleted is gone."""
    failed_restorations: list[str] = []
    """`key: error` of the first hundred; the manifest has all."""
    duration_seconds: float = 0.0
    dry_run: bool
    manifest: ManifestAddress | None = None

    def counts(self) -> tuple[int, int]:
        """Files and bytes restored."""
        return self.restored_files, self.restored_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deleted:
    """What a cleanup deleted."""

    bucket: str
    scope: str
    planned_at: datetime
    parts: list[Part]
    begun: list[Entry]
    """Of a run that died: entries that it may have deleted without writing it down."""


@job("undo", params=UndoParams, timeout=timedelta(minutes=15), singleton=True)
def handler(run: Run, params: UndoParams) -> Report | Unfinished:
    """Restore what a cleanup deleted.

    Raises:
        Permanent: there is no such cleanup or manifest, it still runs, or a manifest was altered; nothing was touched.
    """
    from lamplighter.kernel.aws import client

    s3 = client("s3")
    deleted = _by_job(s3, params.job_id) if params.job_id else _by_manifest(s3, params)
    archive = Archive(s3, archive_bucket(), job_type="undo", scope=deleted.scope, job_id=run.job_id)

    def read_part(number: int) -> list[Entry]:
        if number == len(deleted.parts):
            return deleted.begun
        found = part_entries(s3, archive.bucket, deleted.parts[number])
        return [entry for entry in found if entry.outcome == "deleted"]

    done = carry_out(
        archive,
        parts=len(deleted.parts) + bool(deleted.begun),
        resumed=False,  # what is restored already shows by itself
        read_part=read_part,
        act=_Restoration(s3, deleted, dry_run=params.dry_run),
        stop=run.stop,
        progress=lambda part, parts: run.progress(99 * part // parts, f"{part} of {parts} parts dealt with"),
    )
    duration = (run.now() - run.job.created_at).total_seconds()
    if done.stopped == "out_of_time":
        report = _report(done.tally, duration, dry_run=params.dry_run)
        return Unfinished(checkpoint={"parts": len(done.parts)}, report=report)
    manifest = archive.write_manifest(
        Manifest(
            job_id=run.job_id,
            scope=deleted.scope,
            planned_at=run.job.created_at,
            finished_at=run.now(),
            dry_run=params.dry_run,
            complete=done.stopped is None,
            accepted=True,
            refusals=[],
            references={},
            parts=done.parts,
        )
    )
    return _report(done.tally, duration, dry_run=params.dry_run, manifest=manifest)


def _by_manifest(s3: Any, params: UndoParams) -> _Deleted:
    address = ManifestAddress(bucket=archive_bucket(), key=params.manifest or "", sha256=params.sha256 or "")
    return _of(verified(s3, address))


def _by_job(s3: Any, job_id: str) -> _Deleted:
    from lamplighter.kernel.ledger.ledger import Ledger

    row = Ledger.from_environment().get(job_id)
    if row.job_type != "orphan_cleanup":
        raise Permanent(f"job_id: {job_id} is no orphan_cleanup but {row.job_type}.")
    if not row.status.terminal:
        raise Permanent(f"job_id: {job_id} is {row.status}; cancel it first, or wait for its end.")
    archive = Archive(s3, archive_bucket(), job_type="orphan_cleanup", scope="", job_id=job_id)
    address = (row.result or {}).get("manifest")
    if address and row.status != "failed":
        return _of(verified(s3, ManifestAddress.model_validate(address)))
    # The run died for good before its manifest: what it had written down by then has to do.
    known = archive.plan()
    if not known:
        raise Permanent(f"job_id: {job_id} ended before it had a plan: it deleted nothing.")
    plan, _ = known
    if not plan.accepted:
        raise Permanent(f"job_id: {job_id} was refused by the governor: it deleted nothing.")
    parts, begun = archive.done_so_far(plan)
    return _Deleted(
        bucket=plan.scope.partition("/")[0],
        scope=plan.scope,
        planned_at=plan.planned_at,
        parts=parts,
        begun=begun,
    )


def _of(manifest: Manifest) -> _Deleted:
    return _Deleted(
        bucket=manifest.scope.partition("/")[0],
        scope=manifest.scope,
        planned_at=manifest.planned_at,
        parts=manifest.parts,
        begun=[],
    )


class _Restoration:
    """What `carry_out` calls for each part of the manifest."""

    def __init__(self, s3: Any, deleted: _Deleted, *, dry_run: bool) -> None:
        self._s3 = s3
        self._bucket = deleted.bucket
        self._planned_at = deleted.planned_at
        self._dry_run = dry_run

    def __call__(self, entries: list[Entry], _tally: Tally, _begun: bool) -> list[Entry]:
        """The entries with what became of them now."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._restore, entries))

    def _restore(self, entry: Entry) -> Entry:
        from botocore.exceptions import ClientError

        try:
            return self._restored(entry)
        except ClientError as error:
            return replace(entry, outcome="failed", error=str(error))

    def _restored(self, entry: Entry) -> Entry:
        etag, top_marker = self._look(entry.key)
        marker = entry.delete_marker_version_id
        if etag:
            return replace(entry, outcome="already_restored" if etag == entry.etag else "recreated")
        if not entry.outcome:
            marker = own_marker(self._s3, self._bucket, entry, self._planned_at)
            top_marker = top_marker or "somebody else's"
        if top_marker and top_marker != marker:
            return replace(entry, outcome="deleted_since")
        if not marker:
            return replace(entry, outcome="not_restorable")
        if self._dry_run:
            return replace(entry, outcome="would_restore")
        self._s3.delete_object(Bucket=self._bucket, Key=entry.key, VersionId=marker)
        etag, _ = self._look(entry.key)
        if etag != entry.etag:
            return replace(entry, outcome="failed", error="the version beneath the delete marker is no longer there")
        return replace(entry, outcome="restored")

    def _look(self, key: str) -> tuple[str | None, str | None]:
        """The ETag of the object at `key`, and, if it has a delete marker over it, the marker's version id."""
        from botocore.exceptions import ClientError

        try:
            return str(self._s3.head_object(Bucket=self._bucket, Key=key)["ETag"]).strip('"'), None
        except ClientError as error:
            if error.response["Error"]["Code"] != "404":
                raise
            return None, error.response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-version-id")


def _report(tally: Tally, duration: float, *, dry_run: bool, manifest: ManifestAddress | None = None) -> Report:
    count = tally.count
    return Report(
        status="completed_with_errors" if count["failed"] or count["not_restorable"] else "completed",
        restored_files=count["restored"],
        restored_bytes=tally.size["restored"],
        would_restore_files=count["would_restore"],
        already_restored=count["already_restored"],
        left_alone=count["recreated"] + count["deleted_since"],
        not_restorable=count["not_restorable"],
        failed_restorations=tally.failures,
        duration_seconds=round(duration, 3),
        dry_run=dry_run,
        manifest=manifest,
    )
