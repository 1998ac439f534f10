"""Brings back what an orphan cleanup deleted, by its manifest (REQUIREMENTS A7). Started by hand; previews by default.

In a versioned bucket a deletion only lays a delete marker over the object: undo takes the marker away. It touches no
object that has been made anew under the same key since, and running it twice does no harm.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from lamplighter.kernel.deletion import Entry, ManifestAddress, Tally
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.undo import Deeds, UndoParams, deeds, take_back
from lamplighter.media.removal import own_marker

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


@job("undo", params=UndoParams, timeout=timedelta(minutes=15), singleton=True)
def handler(run: Run, params: UndoParams) -> Report | Unfinished:
    """Restore what a cleanup deleted.

    Raises:
        Permanent: there is no such cleanup or manifest, it still runs, or a manifest was altered; nothing was touched.
    """
    from lamplighter.kernel.aws import client

    s3 = client("s3")
    deleted = deeds(s3, params, job_types=["orphan_cleanup"], archived_as="orphan_cleanup", manifest_of=_manifest_of)
    done, _, manifest = take_back(
        run,
        s3,
        deleted,
        dry_run=params.dry_run,
        undoable=lambda entry: entry.outcome in {"deleted", ""},
        undo=_Restoration(s3, deleted, dry_run=params.dry_run),
    )
    duration = (run.now() - run.job.created_at).total_seconds()
    report = _report(done.tally, duration, dry_run=params.dry_run, manifest=manifest)
    return report if manifest else Unfinished(checkpoint={"parts": len(done.parts)}, report=report)


def _manifest_of(row: Job) -> Any:
    return None if row.status == "failed" else (row.result or {}).get("manifest")


class _Restoration:
    """What `take_back` calls for each part of the manifest."""

    def __init__(self, s3: Any, deleted: Deeds, *, dry_run: bool) -> None:
        self._s3 = s3
        self._bucket = deleted.scope.partition("/")[0]
        self._planned_at = deleted.planned_at
        self._dry_run = dry_run

    def __call__(self, entries: list[Entry]) -> list[Entry]:
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


def _report(tally: Tally, duration: float, *, dry_run: bool, manifest: ManifestAddress | None) -> Report:
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
