"""Small buckets with a history, a run that deleted some of their objects, and what a bucket then holds."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import md5
from typing import Any, Final
from uuid import uuid4

from lamplighter.kernel.deletion import Archive, Entry, Manifest, ManifestAddress, Part

KEYS: Final = ["a.jpg", "a.jpg.webp", "ä b+c%20.png", "deep/er/x.mp4", "odd\r\x01.jpg", "z.gif", "zz.gif"]
"""One begins as another does; one cannot be named in XML."""

type Stack = list[tuple[str, str | None]]
"""Versions of a key, newest first: their ids, and ETags; None of a delete marker."""


def etag_of(body: bytes) -> str:
    return md5(body).hexdigest()


@dataclass
class History:
    """One bucket. `stacks` follows S3's rules by itself, as the oracle."""

    s3: Any
    rng: random.Random
    bucket: str = field(default_factory=lambda: f"media-{uuid4().hex}")
    status: str = ""
    stacks: dict[str, Stack] = field(default_factory=lambda: defaultdict(list))
    entries: list[Entry] = field(default_factory=list)
    """What the run deleted, as its manifest says."""
    bodies: dict[str, bytes] = field(default_factory=dict)
    markers: dict[str, str | None] = field(default_factory=dict)
    """The run's own, by key, also where it died before it wrote that down."""

    def __post_init__(self) -> None:
        self.s3.create_bucket(Bucket=self.bucket)

    def version(self, status: str) -> None:
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})
        self.status = status

    def put(self, key: str, body: bytes | None = None) -> None:
        body = body if body is not None else self.rng.choice([b"one", b"two", b"three"])
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        self._push(key, answer.get("VersionId", "null"), etag_of(body))

    def delete(self, key: str) -> str | None:
        """The id of the marker."""
        answer = self.s3.delete_object(Bucket=self.bucket, Key=key)
        if not self.status:
            self.stacks[key] = []
            return None
        self._push(key, answer["VersionId"], None)
        return str(answer["VersionId"])

    def _push(self, key: str, version: str, etag: str | None) -> None:
        stack = self.stacks[key]
        if version == "null":  # there is only one
            stack[:] = [one for one in stack if one[0] != "null"]
        stack.insert(0, (version, etag))

    def remove(self, key: str, version: str) -> None:
        """One version or marker, permanently."""
        self.s3.delete_object(Bucket=self.bucket, Key=key, VersionId=version)
        self.stacks[key] = [one for one in self.stacks[key] if one[0] != version]

    def clean(self, key: str) -> None:
        """What an orphan cleanup does, and writes down; sometimes it dies before it does."""
        etag = self.stacks[key][0][1]
        assert etag
        self.bodies[key] = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        self.markers[key] = marker = self.delete(key)
        entry = Entry(key=key, size=3, etag=etag, last_modified="", outcome="deleted", delete_marker_version_id=marker)
        if self.rng.random() < 0.2:
            entry = Entry(key=key, size=3, etag=etag, last_modified="")
        self.entries.append(entry)

    def manifest(self, archive_bucket: str, planned_at: datetime) -> ManifestAddress:
        """Of the run, in two parts."""
        scope = f"{self.bucket}/-"
        archive = Archive(self.s3, archive_bucket, job_type="orphan_cleanup", scope=scope, job_id=uuid4().hex)
        middle = len(self.entries) // 2
        parts: list[Part] = [
            archive.write_outcome(number, part)
            for number, part in enumerate((self.entries[:middle], self.entries[middle:]))
            if part
        ]
        return archive.write_manifest(
            Manifest(
                job_id=uuid4().hex,
                scope=scope,
                planned_at=planned_at,
                finished_at=datetime.now(UTC),
                dry_run=False,
                complete=True,
                accepted=True,
                refusals=[],
                references={"t.c": 1},
                parts=parts,
            )
        )

    def before(self) -> None:
        """What happened to the keys before the run: older versions, markers, the same content twice."""
        if self.rng.random() < 0.3:  # objects from before the bucket was versioned have the version `null`
            for key in self.rng.sample(KEYS, 3):
                self.put(key)
        if self.rng.random() < 0.9:
            self.version("Enabled")
        for key in KEYS:
            for _ in range(self.rng.choice([0, 0, 1, 2, 3])):
                self.rng.choice([self.put, self.put, self.delete])(key)
        if self.status and self.rng.random() < 0.15:
            self.version("Suspended")
        for key in KEYS:
            if self.rng.random() < 0.8:
                self.put(key)

    def after(self) -> None:
        """What happened since: somebody deleted, wrote, restored or expired something, or changed the versioning."""
        if self.status and self.rng.random() < 0.25:
            self.version(self.rng.choice(["Suspended", "Enabled"]))
        for entry in self.entries:
            for _ in range(self.rng.choice([0, 0, 0, 1, 1, 2])):
                self.happen(entry)

    def happen(self, entry: Entry) -> None:
        """One thing."""
        key, stack = entry.key, self.stacks[entry.key]
        match self.rng.choice(["put", "same", "delete", "restore", "expire", "expire all"]):
            case "put":
                self.put(key, b"newer")
            case "same":
                self.put(key, self.bodies[key])
            case "delete":
                self.delete(key)
            case "restore" if entry.delete_marker_version_id and self.status:
                self.remove(key, entry.delete_marker_version_id)
            case "expire":
                noncurrent = [version for version, etag in stack[1:] if etag]
                if noncurrent:
                    self.remove(key, noncurrent[0])
            case "expire all":
                for version, _ in stack[1:]:
                    self.remove(key, version)

    def restorable(self) -> set[str]:
        """By the letter: the run's own marker is on top, and beneath it the version that the run deleted."""
        return {entry.key for entry in self.entries if self._is_restorable(entry)}

    def _is_restorable(self, entry: Entry) -> bool:
        match self.stacks[entry.key]:
            case [(marker, None), (_, etag), *_]:
                own = not entry.outcome or marker == entry.delete_marker_version_id
                return own and marker != "null" and etag == entry.etag
        return False

    def listed(self) -> dict[str, Stack]:
        """What the bucket itself says. S3 lists versions and markers apart; how many more there are with each larger
        page tells their order."""
        found: dict[str, Stack] = {}
        for key in KEYS:
            stack: Stack = []
            while True:
                page = self.s3.list_object_versions(Bucket=self.bucket, Prefix=key, MaxKeys=len(stack) + 1)
                listed = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                own = [
                    (one["VersionId"], one.get("ETag", "").strip('"') or None) for one in listed if one["Key"] == key
                ]
                new = [one for one in own if one not in stack]
                if not new:
                    break
                stack += new
            if stack:
                found[key] = stack
        return found

    def expected(self) -> dict[str, Stack]:
        """The stacks, without keys of which nothing is left."""
        return {key: stack for key, stack in self.stacks.items() if stack}
