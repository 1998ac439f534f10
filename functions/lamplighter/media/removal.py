"""Deletes planned objects, each checked once more right before: still an orphan, still what the plan saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from lamplighter.kernel.deletion import Entry, Tally
from lamplighter.media import listing

SERVED: Final = frozenset({"would_delete", "kept_quarantine", "skipped_size_limit", "held_by_ramp", "failed"})
"""Outcomes in an earlier manifest that mean: it was an orphan then, too."""
ACTED: Final = frozenset({"deleted", "would_delete"})
"""Outcomes that count against the limits of a run."""

THREADS: Final = 16
"""Objects looked at, at once; as many as the client has connections."""
_SECONDS: Final = len("2026-11-22T03:00:00")

_NOT_IN_XML: Final = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]")
"""Characters that DeleteObjects, being XML 1.0, cannot carry (one such key spoils the whole request), or not both ways:
a carriage return comes back as a line feed."""
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})
_GONE: Final = frozenset({"NoSuchKey", "NotFound", "404"})


class Removal:
    """What `kernel.deletion.carry_out` calls for each part of the plan.

    Args:
        keep: asked right before the deletion, why each of the orphans is kept after all; None where it is not.
        bucket: the objects' bucket.
        planned_at: when the plan was made; all of its objects were there then.
        max_bytes: how much may be deleted in all (REQUIREMENTS A4).
        limit: how many objects the run may act on in all; None means no limit (REQUIREMENTS S3).
        quarantined: entries of an earlier manifest in the order of their keys, of which alone may be deleted; None
            when no quarantine is asked for.
        dry_run: do everything but delete.
    """

    def __init__(
        self,
        keep: Callable[[Sequence[Entry]], list[str | None]],
        s3: Any,
        *,
        bucket: str,
        planned_at: datetime,
        max_bytes: int,
        limit: int | None,
        quarantined: Iterator[Entry] | None,
        dry_run: bool,
    ) -> None:
        self._keep = keep
        self._s3 = s3
        self._bucket = bucket
        self._planned_at = planned_at
        self._max_bytes = max_bytes
        self._limit = limit
        self._quarantined = quarantined
        self._earlier = next(quarantined, None) if quarantined else None
        self._dry_run = dry_run

    def __call__(self, orphans: list[Entry], tally: Tally, begun: bool) -> list[Entry]:
        """The orphans with their outcomes."""
        decided: dict[str, Entry] = {}
        for orphan, kept in zip(orphans, self._keep(orphans), strict=True):
            outcome = kept or ("" if self._has_served(orphan) else "kept_quarantine")
            decided[orphan.key] = replace(orphan, outcome=outcome)
        pending = [orphan for orphan in orphans if not decided[orphan.key].outcome]
        while pending:  # again with what was held back, where others turned out not to be deleted
            tried, held = self._within_limits(pending, decided, tally)
            decided |= {orphan.key: replace(orphan, outcome="would_delete") for orphan in tried}
            if self._dry_run:
                break
            decided |= self._replaced(tried)
            condemned = [orphan for orphan in tried if decided[orphan.key].outcome == "would_delete"]
            decided |= {
                orphan.key: self._delete_one(orphan, begun) for orphan in condemned if _needs_own_request(orphan)
            }
            decided |= self._delete([orphan for orphan in condemned if not _needs_own_request(orphan)], begun)
            pending = held if any(decided[one.key].outcome not in ACTED for one in tried) else []
        return list(decided.values())

    def _within_limits(
        self, pending: Sequence[Entry], decided: dict[str, Entry], tally: Tally
    ) -> tuple[list[Entry], list[Entry]]:
        """Those that may be deleted now, and those that the ramp holds back; the rest is decided for its size."""
        done = [entry for entry in decided.values() if entry.outcome in ACTED]
        spent = sum(tally.size[outcome] for outcome in ACTED) + sum(entry.size for entry in done)
        acted = sum(tally.count[outcome] for outcome in ACTED) + len(done)
        full = tally.count["skipped_size_limit"] > 0 or any(
            entry.outcome == "skipped_size_limit" for entry in decided.values()
        )
        condemned, held = list[Entry](), list[Entry]()
        for orphan in pending:
            if full or spent + orphan.size > self._max_bytes:
                decided[orphan.key] = replace(orphan, outcome="skipped_size_limit")
                full = True
            elif self._limit is not None and acted >= self._limit:
                decided[orphan.key] = replace(orphan, outcome="held_by_ramp")
                held.append(orphan)
            else:
                condemned.append(orphan)
                spent += orphan.size
                acted += 1
        return condemned, held

    def _has_served(self, orphan: Entry) -> bool:
        """Whether the earlier manifest lists it in the same state. Both come in the order of their keys."""
        if self._quarantined is None:
            return True
        while self._earlier and self._earlier.key < orphan.key:  # by code point, which is UTF-8's order, and S3's
            self._earlier = next(self._quarantined, None)
        earlier = self._earlier
        return bool(earlier and earlier.key == orphan.key and earlier.etag == orphan.etag and earlier.outcome in SERVED)

    def _replaced(self, condemned: Sequence[Entry]) -> dict[str, Entry]:
        """Those that were written again since the plan.

        The ETag alone does not tell: the same content uploaded again is a new file with the same ETag.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            seen = pool.map(lambda orphan: listing.look(self._s3, self._bucket, orphan.key), condemned)
            return {
                orphan.key: replace(orphan, outcome="kept_changed")
                for orphan, now in zip(condemned, seen, strict=True)
                if now and (now[1][:_SECONDS] != orphan.last_modified[:_SECONDS] or now[2] != orphan.etag)
            }

    def _delete(self, orphans: Sequence[Entry], begun: bool) -> dict[str, Entry]:
        """Conditionally, in one request; the outcome of each."""
        from botocore.exceptions import ClientError

        if not orphans:
            return {}
        objects = [{"Key": orphan.key, "ETag": orphan.etag} for orphan in orphans]
        try:
            answer = self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": objects})
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500:
                raise  # what was done is unknown; the next attempt finds out
            if status == 403:
                return {orphan.key: replace(orphan, outcome="failed", error=str(error)) for orphan in orphans}
            return {orphan.key: self._delete_one(orphan, begun) for orphan in orphans}  # one key spoiled the request
        begun = begun or answer["ResponseMetadata"].get("RetryAttempts", 0) > 0
        deleted = {one["Key"]: one.get("DeleteMarkerVersionId") for one in answer.get("Deleted", ())}
        errors = {one["Key"]: one for one in answer.get("Errors", ())}
        outcomes = {}
        for orphan in orphans:
            if orphan.key in deleted:
                outcome = replace(orphan, outcome="deleted", delete_marker_version_id=deleted[orphan.key])
            else:
                problem = errors.get(orphan.key, {})
                outcome = self._not_deleted(orphan, problem.get("Code", "NoAnswer"), problem.get("Message", ""), begun)
            outcomes[orphan.key] = outcome
        return outcomes

    def _delete_one(self, orphan: Entry, begun: bool) -> Entry:
        from botocore.exceptions import ClientError

        try:
            answer = self._s3.delete_object(Bucket=self._bucket, Key=orphan.key, IfMatch=orphan.etag)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
            begun = begun or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
            return self._not_deleted(orphan, error.response["Error"]["Code"], str(error), begun)
        return replace(orphan, outcome="deleted", delete_marker_version_id=answer.get("VersionId"))

    def _not_deleted(self, orphan: Entry, code: str, message: str, begun: bool) -> Entry:
        if code in _CHANGED and listing.look(self._s3, self._bucket, orphan.key):
            return replace(orphan, outcome="kept_changed")
        if code in _CHANGED | _GONE:
            marker = own_marker(self._s3, self._bucket, orphan, self._planned_at) if begun else None
            if marker:
                return replace(orphan, outcome="deleted", delete_marker_version_id=marker)
            return replace(orphan, outcome="already_gone")
        return replace(orphan, outcome="failed", error=f"{code}: {message}")


def own_marker(s3: Any, bucket: str, orphan: Entry, planned_at: datetime) -> str | None:
    """The delete marker of an attempt that died before it could write down what it did, or None.

    The plan saw the object; the marker lies over the version it saw, and is no older than the plan.
    """
    page = s3.list_object_versions(Bucket=bucket, Prefix=orphan.key, MaxKeys=10)
    same = any(
        version["Key"] == orphan.key and version["ETag"].strip('"') == orphan.etag
        for version in page.get("Versions", ())
    )
    for marker in page.get("DeleteMarkers", ()):
        since_plan = marker["LastModified"] >= planned_at.replace(microsecond=0)
        if same and marker["Key"] == orphan.key and marker["IsLatest"] and since_plan:
            return str(marker["VersionId"])
    return None


def _needs_own_request(orphan: Entry) -> bool:
    return _NOT_IN_XML.search(orphan.key) is not None
