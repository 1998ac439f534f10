"""Brings back what an orphan cleanup deleted, by its manifest (REQUIREMENTS A7). Started by hand; previews by default.

In a versioned bucket a deletion adds a delete marker on top of the object's versions: undo removes the marker. It asks
the bucket for each object, so a preview promises what undo can do (S5): the cleanup's own marker is on top, and right
beneath it is the version that the cleanup deleted. Everything else is left as it is. Running it twice does no harm.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from lamplighter.deletion import ramp, versioning
from lamplighter.kernel.deletion import Entry, ManifestAddress, Tally
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.media import scopes_around
from lamplighter.kernel.undo import Deeds, UndoParams, deeds, take_back

THREADS: Final = 16
"""Objects looked at, at once; as many as the client has connections."""


class Report(JobReport):
    """What became of the objects that the cleanup had deleted; the run's own manifest names each."""

    restored_files: int = 0
    restored_bytes: int = 0
    would_restore_files: int = 0
    already_restored: int = 0
    left_alone: int = 0
    """Uploaded again, or deleted again by somebody else, since."""
    not_restorable: int = 0
    """The deleted version is gone, or the bucket keeps none; the manifest says why."""
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
        undo=_Restoration(s3, deleted, now=run.now(), dry_run=params.dry_run),
    )
    duration = (run.now() - run.job.created_at).total_seconds()
    report = _report(done.tally, duration, dry_run=params.dry_run, manifest=manifest)
    return report if manifest else Unfinished(checkpoint={"parts": len(done.parts)}, report=report)


def _manifest_of(row: Job) -> Any:
    return None if row.status == "failed" else (row.result or {}).get("manifest")


class _Version(NamedTuple):
    """A version of an object, or a delete marker."""

    version_id: str
    etag: str | None
    """None of a marker."""
    last_modified: datetime


class _Restoration:
    """What `take_back` calls for each part of the manifest."""

    def __init__(self, s3: Any, deleted: Deeds, *, now: datetime, dry_run: bool) -> None:
        self._s3 = s3
        self._bucket = deleted.scope.partition("/")[0]
        self._scopes = [ramp.of_objects(scope) for scope in scopes_around(deleted.scope)]
        """A run of a folder uses the ramp of the configured folder around it, whichever that was then."""
        self._planned_at = deleted.planned_at.replace(microsecond=0)
        self._now = now
        self._dry_run = dry_run
        self._mfa_delete = versioning.has_mfa_delete(s3, self._bucket)
        self._resetting = threading.Lock()
        self._reset = False

    def __call__(self, entries: list[Entry]) -> list[Entry]:
        """The entries with their outcomes."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._restore, entries))

    def _restore(self, entry: Entry) -> Entry:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._restored(entry)
        except (BotoCoreError, ClientError) as error:
            return replace(entry, outcome="failed", error=str(error))

    def _restored(self, entry: Entry) -> Entry:
        found = self._look(entry)
        if found.outcome != "would_restore" or self._dry_run:
            return found
        self._reset_ramp()
        self._s3.delete_object(Bucket=self._bucket, Key=entry.key, VersionId=found.delete_marker_version_id)
        seen = self._look(replace(found, outcome="deleted"))
        if seen.outcome == "already_restored":
            return replace(seen, outcome="restored")
        if seen.outcome == "not_restorable":
            return replace(seen, outcome="failed", error="its version disappeared while its delete marker was removed")
        return seen  # somebody uploaded or deleted it meanwhile

    def _look(self, entry: Entry) -> Entry:
        """The entry with the outcome that the bucket allows; `would_restore` with the marker that has to go."""
        top, beneath = self._newest(entry.key)
        if top is None:
            return _lost(entry, "no version of it is left")
        if top.etag is not None:
            return replace(entry, outcome="already_restored" if top.etag == entry.etag else "recreated")
        marker = entry.delete_marker_version_id
        if not entry.outcome and top.last_modified >= self._planned_at:
            marker = top.version_id  # the plan saw the object: the run deleted it and died before it recorded that
        if marker is None and entry.outcome:
            return _lost(entry, "the bucket was not versioned when it was deleted")
        if top.version_id != marker:
            return replace(entry, outcome="deleted_since")
        if problem := self._problem(entry, marker, beneath):
            return _lost(entry, problem)
        return replace(entry, outcome="would_restore", delete_marker_version_id=marker)

    def _problem(self, entry: Entry, marker: str, beneath: _Version | None) -> str | None:
        """Why removing the run's own marker would not restore the object, or must not be tried."""
        if marker == "null":  # by the time it is removed, that may be the id of an object that was uploaded since
            return "versioning was suspended when it was deleted: restore it manually"
        if beneath is None or beneath.etag != entry.etag:
            return "the version that was deleted is no longer there"
        return "the bucket has MFA delete: switch it off first" if self._mfa_delete else None

    def _newest(self, key: str) -> tuple[_Version | None, _Version | None]:
        """The version or marker that is on top at `key`, and the one right beneath it.

        S3 lists versions and markers apart, but of a page of two, newest first, the latest one is on top.
        """
        page = self._s3.list_object_versions(Bucket=self._bucket, Prefix=key, MaxKeys=2)
        top = beneath = None
        for one in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
            if one["Key"] != key:
                continue  # a longer key
            etag = one["ETag"].strip('"') if "ETag" in one else None
            version = _Version(str(one["VersionId"]), etag, one["LastModified"])
            if one["IsLatest"]:
                top = version
            else:
                beneath = version
        return top, beneath

    def _reset_ramp(self) -> None:
        """Once, and before the first object: a crash in between costs trust, not safety."""
        with self._resetting:
            if not self._reset:
                for scope in self._scopes:
                    ramp.reset(ramp.table(), scope, self._now)
                self._reset = True


def _lost(entry: Entry, why: str) -> Entry:
    return replace(entry, outcome="not_restorable", error=why)


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
