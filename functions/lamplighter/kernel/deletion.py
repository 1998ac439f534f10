"""One protocol for everything that destroys: plan, governor, re-check, act, manifest, undo.

A run writes down what it would destroy (the plan, in parts of `PART` entries), lets the governor (`refusals`) judge the
whole before anything is touched, then goes through the parts: the domain's `act` re-checks each entry and destroys it,
and what became of each is written down before the next part begins. Last comes the manifest, which lists the parts with
their SHA-256 and is never overwritten; undo reads it.

All of it lies in the archive bucket, so that a run that is continued, or comes back after a crash, learns from there
what has been done. Objects of a run:

    runs/<job_type>/<job_id>/candidates-000000.jsonl.gz  what may come into the plan
    runs/<job_type>/<job_id>/references-<n>.bin          what a scan of references has come to
    runs/<job_type>/<job_id>/plan-000000.jsonl.gz ...    what is to be destroyed
    runs/<job_type>/<job_id>/plan.json                   the plan is complete: `Plan`
    runs/<job_type>/<job_id>/outcome-000000.jsonl.gz ... what became of the plan's part of the same number
    manifests/<job_type>/<scope>/<time>-<job_id>.json    `Manifest`
    baselines/<job_type>/<scope>.json                    `Baseline`: of all runs of a scope
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.job import Report

PART: Final = 1000
"""Entries in a part, of objects: what one DeleteObjects request takes."""
NAMED_FAILURES: Final = 100
"""Failures that a report spells out; the manifest has all."""
TRIES: Final = 5
"""Writes of the baseline that lose against another run before a run gives up."""


_STAMP: Final = "%Y-%m-%dT%H:%M:%SZ"
"""How the name of a manifest begins: with when it was planned."""
_LOST_RACE: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"})


class Refused(Permanent):
    """The governor refused: nothing was touched. `report` says what would have been done, and why not."""

    def __init__(self, sentences: Sequence[str], report: Report) -> None:
        super().__init__(" ".join(sentences))
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing to destroy, as the plan saw it, and what became of it."""

    key: str
    """An object's key; of what is no object, whatever names it."""
    size: int = 0
    """Bytes."""
    etag: str = ""
    """The state of the object that the plan saw; in any other state it is kept."""
    last_modified: str = ""
    facts: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of what is no object, JSON-able: the state that the plan saw, and what undo needs."""
    outcome: str = ""
    """Empty in a plan."""
    error: str | None = None
    delete_marker_version_id: str | None = None
    """What undo removes."""


# -- governor --------------------------------------------------------------------------------------------------------


WARNED_SHARE: Final = 0.01
"""Above this share of a source's values, an accepted `max_unmatched` is accepted with a warning."""
SHOWN_GROUPS: Final = 5
"""Groups of unmatched references that a refusal spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorLimits:
    """What the governor lets pass, whatever the sources are."""

    max_share: float
    """Of what was looked at, how much may be destroyed."""
    max_reference_shrink: float
    """By how much of its former size a set of references may have shrunk."""


class Group(BaseModel):
    """Unmatched references that begin alike."""

    model_config = ConfigDict(frozen=True)

    start: str
    """Their host and first segment."""
    count: int
    examples: list[str]
    declaration: str | None = None
    """What to declare if they are no faults."""

    def __str__(self) -> str:
        declaration = f", declare {self.declaration}" if self.declaration else ""
        return f"{self.start} ({self.count}{declaration}): {', '.join(self.examples)}"


class SourceCount(BaseModel):
    """What one source of references holds: `values` = `matched` + `outside` + `unmatched`."""

    model_config = ConfigDict(frozen=True)

    column: str
    """The source's name."""
    values: int = 0
    """References, empty ones left out."""
    matched: int = 0
    """Those that name something that exists."""
    outside: int = 0
    """Those that name something elsewhere, which is not looked at."""
    unmatched: int = 0
    """The rest."""
    unreadable: int = 0
    """Those of the unmatched that do not even look like a name."""
    unmatched_examples: list[str] = []
    groups: list[Group] = []
    """The unmatched by what they begin with, the largest group first."""
    max_unmatched: int = 0
    """How many unmatched the owner accepts."""
    max_unreadable: int = 0

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, fields: Any) -> Any:
        """Reports before the exact account said `mapped` and `unmapped`."""
        if not isinstance(fields, dict) or "mapped" not in fields:
            return fields
        new = {"mapped": "matched", "unmapped": "unmatched", "unmapped_examples": "unmatched_examples"}
        return {new.get(name, name): value for name, value in fields.items()}

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.values != self.matched + self.outside + self.unmatched:
            raise ValueError(
                f"{self.column}: {self.values} values are not {self.matched} matched + {self.outside} outside + "
                f"{self.unmatched} unmatched"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A plan in numbers."""

    scanned: int
    planned: int
    sources: Sequence[SourceCount]
    baseline: Mapping[str, int] | None
    """How many references each source held at the last accepted run, or None when there was none."""
    configured: Collection[str] | None = None
    """The sources that have to hold references and to match files without the others. None means all together."""
    kept_by_others: int = 0
    """Of what is not planned, how much only the other sources keep."""


def refusals(measure: Measure, limits: GovernorLimits) -> list[str]:
    """Why the plan must not be carried out, a sentence each; empty when it may be (REQUIREMENTS A7, S1)."""
    found = []
    judged = [one for one in measure.sources if measure.configured is None or one.column in measure.configured]
    names = ", ".join(source.column for source in judged)
    others = " Columns that only the run names do not count here." if len(judged) < len(measure.sources) else ""
    if not sum(source.values for source in judged):
        found.append(f"There are no references at all in {names}: everything looks orphaned.{others}")
    elif not sum(source.matched for source in judged):
        found.append(
            f"No reference in {names} names a file that exists: check the bucket, the folder and the columns.{others}"
        )
    values = {source.column: source.values for source in measure.sources}
    for column, before in (measure.baseline or {}).items():
        now = values.get(column, 0)
        if now < before * (1 - limits.max_reference_shrink):
            found.append(
                f"{column} holds {now} references, {before} at the last accepted run: more than "
                f"{limits.max_reference_shrink:.0%} fewer."
            )
    for source in measure.sources:
        found += _unmatched(source)
    if (orphans := measure.planned + measure.kept_by_others) > limits.max_share * measure.scanned:
        kept = " Files that only columns of the run keep count as orphans here." if measure.kept_by_others else ""
        found.append(
            f"{orphans} of {measure.scanned} files ({orphans / measure.scanned:.0%}) are orphans; "
            f"{limits.max_share:.0%} may be.{kept}"
        )
    return found


def warnings(measure: Measure) -> list[str]:
    """What the governor lets pass and the owner should look at, a sentence each."""
    empty = [source.column for source in measure.sources if not source.values]
    found = [f"{column} holds no references: check the table and the column." for column in empty]
    return found + [
        f"{source.unmatched} of {source.values} references in {source.column} ({source.unmatched / source.values:.1%}) "
        "name no file; max_unmatched accepts them. Look at the missing files in the manifest."
        for source in measure.sources
        if WARNED_SHARE * source.values < source.unmatched <= source.max_unmatched
    ]


def _unmatched(source: SourceCount) -> list[str]:
    """A sentence for each limit that the unmatched references of a source break, and what to declare."""
    over = []
    if source.unmatched > source.max_unmatched:
        over.append(f"name no file that exists; {source.max_unmatched} may (max_unmatched)")
    if source.unreadable > source.max_unreadable:
        count = source.unreadable
        over.append(
            f"{'of them' if over else 'have'} {count} without the extension of a media file; {source.max_unreadable} "
            "may (max_unreadable)"
        )
    if not over:
        return []
    groups = source.groups[:SHOWN_GROUPS]
    listed = "; ".join(map(str, groups))
    rest = len(source.groups) - len(groups)
    more = f"; and {rest} more groups" if rest > 0 else ""
    return [
        f"{source.unmatched} of {source.values} references in {source.column} {', '.join(over)}. {listed}{more}. "
        f"For {source.column} declare strip for a prefix that is no part of a key, elsewhere for a host or prefix of "
        "other files, folder for a column of folders, or max_unmatched for files that you know to be missing. For "
        "names without their folder, lists and encoded names, declare a view that gives the key of each file."
    ]


# -- what is written down --------------------------------------------------------------------------------------------


class Part(BaseModel):
    """One object of entries."""

    model_config = ConfigDict(frozen=True)

    key: str
    sha256: str
    entries: int


class State(BaseModel):
    """An object in which a run keeps what it needs to go on."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str


class Missing(BaseModel):
    """A reference to what is gone."""

    model_config = ConfigDict(frozen=True)

    column: str
    value: str


class Plan(BaseModel):
    """What a run decided before it touched anything."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    scope: str
    planned_at: datetime
    started_at: datetime
    parts: int
    references: dict[str, int]
    sources: list[SourceCount] = []
    """The account of each source. Empty in plans of before."""
    missing_files: int = 0
    missing: list[Missing] = []
    refusals: list[str]
    warnings: list[str] = []
    accepted: bool
    """Whether the governor let it pass, or was overridden."""
    facts: dict[str, Any]
    """What the domain needs to go on, JSON-able."""


class Manifest(BaseModel):
    """Every entry of a run, by its parts, and what the run was."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    scope: str
    planned_at: datetime
    finished_at: datetime
    dry_run: bool
    complete: bool
    """Whether every planned entry is in it: false for a run that was cancelled."""
    accepted: bool
    refusals: list[str]
    references: dict[str, int]
    sources: list[SourceCount] = []
    """The account of each source. Empty in manifests of before."""
    missing_files: int = 0
    """References to what is gone."""
    missing: list[Missing] = []
    """The first of them."""
    parts: list[Part]


class Baseline(BaseModel):
    """What the governor compares the references of a run with: those of the last accepted one."""

    model_config = ConfigDict(frozen=True)

    references: dict[str, int]
    """How many references each source held."""
    planned_at: AwareDatetime
    """When the run was planned that wrote this."""


class ManifestAddress(BaseModel):
    """Where a manifest is, and the hash that proves it unaltered; kept in the ledger, away from the archive."""

    model_config = ConfigDict(frozen=True)

    bucket: str
    key: str
    sha256: str


class Tally:
    """How many entries, of how many bytes, came to which outcome."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.size: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, entries: Sequence[Entry]) -> None:
        """Count `entries` in."""
        for entry in entries:
            self.count[entry.outcome] += 1
            self.size[entry.outcome] += entry.size
            if entry.outcome == "failed" and len(self.failures) < NAMED_FAILURES:
                self.failures.append(f"{entry.key}: {entry.error}")


class Archive:
    """What a job of one type has written down, and writes down now, in the archive bucket."""

    def __init__(self, s3: Any, bucket: str, *, job_type: str, scope: str, job_id: str) -> None:
        """`scope` is what runs have in common whose manifests can be compared: a bucket and folder, say."""
        self._s3 = s3
        self.bucket = bucket
        self.scope = scope
        self._run = f"runs/{job_type}/{job_id}"
        self._manifests = f"manifests/{job_type}/{scope}/"
        self._baseline = f"baselines/{job_type}/{scope}.json"

    def write_plan_part(self, number: int, entries: Sequence[Entry]) -> None:
        """Part `number` of the plan; a run that starts over writes it again."""
        self._s3.put_object(Bucket=self.bucket, Key=self._plan_key(number), Body=_pack(entries))

    def write_candidates(self, number: int, entries: Sequence[Entry]) -> None:
        """Part `number` of what may come into the plan; a run that starts over writes it again."""
        self._s3.put_object(Bucket=self.bucket, Key=self._candidates_key(number), Body=_pack(entries))

    def candidates(self, number: int) -> list[Entry]:
        """Part `number` of what may come into the plan."""
        body = self._read(self._candidates_key(number))
        if body is None:
            raise Permanent(f"Part {number} of the candidates is gone from {self.bucket}: nothing was touched.")
        return _unpack(body)

    def write_state(self, name: str, body: bytes) -> State:
        """What a scan has come to, for its continuation."""
        self._s3.put_object(Bucket=self.bucket, Key=f"{self._run}/{name}", Body=body)
        return State(name=name, sha256=_sha256(body))

    def state(self, state: State) -> bytes | None:
        """What a scan had come to, unless another attempt has written over it."""
        body = self._read(f"{self._run}/{state.name}")
        return None if body is None or _sha256(body) != state.sha256 else body

    def write_plan(self, plan: Plan) -> ManifestAddress:
        """The plan is complete. Where it is, and its hash."""
        return self._write_once(f"{self._run}/plan.json", plan.model_dump_json(indent=1).encode())

    def plan(self) -> tuple[Plan, ManifestAddress] | None:
        """The plan of this run, if it was complete."""
        key = f"{self._run}/plan.json"
        body = self._read(key)
        if body is None:
            return None
        return Plan.model_validate_json(body), ManifestAddress(bucket=self.bucket, key=key, sha256=_sha256(body))

    def plan_part(self, number: int) -> list[Entry]:
        """The entries of part `number` of the plan."""
        body = self._read(self._plan_key(number))
        if body is None:
            raise Permanent(f"Part {number} of the plan is gone from {self.bucket}: nothing more was touched.")
        return _unpack(body)

    def write_outcome(self, number: int, entries: Sequence[Entry]) -> Part:
        """What became of part `number`; never overwritten.

        Raises:
            Retryable: another attempt of this run has written it; the next attempt goes on from there.
        """
        key, body = self._outcome_key(number), _pack(entries)
        written = self._write_once(key, body)
        if written.sha256 != _sha256(body):
            raise Retryable(f"Another attempt of this run has dealt with part {number}.")
        return Part(key=key, sha256=written.sha256, entries=len(entries))

    def outcome(self, number: int) -> tuple[Part, list[Entry]] | None:
        """What became of part `number`, if it is known."""
        body = self._read(self._outcome_key(number))
        if body is None:
            return None
        entries = _unpack(body)
        return Part(key=self._outcome_key(number), sha256=_sha256(body), entries=len(entries)), entries

    def done_so_far(self, plan: Plan) -> tuple[list[Part], list[Entry]]:
        """Of a run that died before its manifest: the parts whose outcome is known, and the entries of the part after
        them, which it may have acted upon without writing it down."""
        parts: list[Part] = []
        while len(parts) < plan.parts and (outcome := self.outcome(len(parts))):
            parts.append(outcome[0])
        return parts, self.plan_part(len(parts)) if len(parts) < plan.parts else []

    def write_manifest(self, manifest: Manifest) -> ManifestAddress:
        """The last word on this run; when an attempt before has had it, that one stands."""
        key = f"{self._manifests}{manifest.planned_at:{_STAMP}}-{manifest.job_id}.json"
        return self._write_once(key, manifest.model_dump_json(indent=1).encode())

    def earlier(self, *, planned_by: datetime | None = None) -> Manifest | None:
        """The newest manifest of this scope that is complete and accepted, planned no later than `planned_by`."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._manifests)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        last = f"{self._manifests}{planned_by.astimezone(UTC):{_STAMP}}~" if planned_by else "\U0010ffff"
        for key in reversed(keys):  # any number of refused runs may have come since (FAILURES 24)
            body = self._read(key) if key < last else None
            if body is None:
                continue
            manifest = Manifest.model_validate_json(body)
            if manifest.complete and manifest.accepted and not (planned_by and manifest.planned_at > planned_by):
                return manifest
        return None

    def baseline(self) -> dict[str, int] | None:
        """How many references each source held at the last accepted run, or None when there was none.

        Versions before the key `baselines/` left that in manifests: where there is no such key, they are searched.

        Raises:
            Permanent: the baseline is damaged.
        """
        if found := self._stored_baseline()[0]:
            return dict(found.references)
        manifest = self.earlier()
        return dict(manifest.references) if manifest else None

    def write_baseline(self, references: Mapping[str, int], *, planned_at: datetime, dry_run: bool) -> None:
        """Keep what a run found as the baseline of the runs after it. Only for a run that the governor accepted, that
        is complete, and that read exactly the sources of the settings: others would refuse, or excuse, later runs.

        An earnest run sets the baseline: what was accepted and acted on is the new normal, fewer references included.
        A preview only raises it, for sources that it has already, and makes one where there is none. So previews, of
        which anyone may run many, cannot lower it step by step. A run that was planned before the baseline's own run
        changes nothing.

        Raises:
            Permanent: the baseline is damaged.
            Retryable: other runs keep writing it.
        """
        from botocore.exceptions import ClientError

        for _ in range(TRIES):
            stored, etag = self._stored_baseline()
            if stored and stored.planned_at > planned_at:
                return
            after = dict(references)
            if dry_run and (before := stored.references if stored else self.baseline()) is not None:
                after = {source: max(count, references.get(source, 0)) for source, count in before.items()}
            body = Baseline(references=after, planned_at=planned_at).model_dump_json(indent=1).encode()
            condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
            try:
                self._s3.put_object(Bucket=self.bucket, Key=self._baseline, Body=body, **condition)
            except ClientError as error:
                if error.response["Error"]["Code"] not in _LOST_RACE:
                    raise
            else:
                return
        raise Retryable(f"Other runs keep writing {self._baseline} in {self.bucket}.")

    def _stored_baseline(self) -> tuple[Baseline | None, str | None]:
        """The baseline and its ETag."""
        from botocore.exceptions import ClientError

        try:
            answer = self._s3.get_object(Bucket=self.bucket, Key=self._baseline)
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None, None
            raise
        try:
            return Baseline.model_validate_json(answer["Body"].read()), answer["ETag"]
        except ValidationError:
            raise Permanent(
                f"{self._baseline} in {self.bucket} is not a baseline: restore an earlier version of it, or delete it "
                "once you know that no references are missing."
            ) from None

    def _plan_key(self, number: int) -> str:
        return f"{self._run}/plan-{number:06}.jsonl.gz"

    def _candidates_key(self, number: int) -> str:
        return f"{self._run}/candidates-{number:06}.jsonl.gz"

    def _outcome_key(self, number: int) -> str:
        return f"{self._run}/outcome-{number:06}.jsonl.gz"

    def _read(self, key: str) -> bytes | None:
        return read(self._s3, self.bucket, key)

    def _write_once(self, key: str, body: bytes) -> ManifestAddress:
        from botocore.exceptions import ClientError

        try:
            self._s3.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            body = self._read(key) or b""
        return ManifestAddress(bucket=self.bucket, key=key, sha256=_sha256(body))


def archive_bucket() -> str:
    """The bucket in which runs write down what they do.

    Raises:
        Permanent: none is configured; without it nothing may be destroyed.
    """
    bucket = os.environ.get("ARCHIVE_BUCKET")
    if not bucket:
        raise Permanent("ARCHIVE_BUCKET is not set: a run has to write down what it does.")
    return bucket


def read(s3: Any, bucket: str, key: str) -> bytes | None:
    """An object's content, or None if there is no such object."""
    from botocore.exceptions import ClientError

    try:
        return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise


def verified(s3: Any, address: ManifestAddress) -> Manifest:
    """The manifest at `address`, once it and all of its parts are proven unaltered.

    Raises:
        Permanent: it or a part is missing or was altered.
    """
    body = read(s3, address.bucket, address.key)
    if body is None:
        raise Permanent(f"manifest: there is no {address.key} in {address.bucket}.")
    if _sha256(body) != address.sha256:
        raise Permanent(f"manifest: {address.key} is not what was written (its SHA-256 differs): nothing was touched.")
    manifest = Manifest.model_validate_json(body)
    for part in manifest.parts:
        part_entries(s3, address.bucket, part)
    return manifest


def part_entries(s3: Any, bucket: str, part: Part) -> list[Entry]:
    """The entries of a manifest's part.

    Raises:
        Permanent: it is missing or was altered.
    """
    body = read(s3, bucket, part.key)
    if body is None or _sha256(body) != part.sha256:
        raise Permanent(f"manifest: {part.key} is not what was written (its SHA-256 differs): nothing was touched.")
    return _unpack(body)


def entries(s3: Any, bucket: str, manifest: Manifest) -> Iterator[Entry]:
    """All entries of a manifest in the plan's order, one part in memory at a time."""
    for part in manifest.parts:
        yield from part_entries(s3, bucket, part)


def _pack(entries: Sequence[Entry]) -> bytes:
    lines = (
        json.dumps({name: value for name in _FIELDS if (value := getattr(entry, name)) is not None}) + "\n"
        for entry in entries
    )
    return gzip.compress("".join(lines).encode(), compresslevel=3, mtime=0)


_FIELDS: Final = tuple(one.name for one in fields(Entry))


def _unpack(body: bytes) -> list[Entry]:
    lines = gzip.decompress(body).splitlines()
    return [Entry(**fields) for fields in json.loads(b"[%s]" % b",".join(lines))]


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# -- act -------------------------------------------------------------------------------------------------------------

type Stop = Literal["cancelled", "out_of_time"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedOut:
    """How far it came."""

    tally: Tally
    parts: list[Part]
    stopped: Stop


def carry_out(
    archive: Archive,
    *,
    parts: int,
    resumed: bool,
    read_part: Callable[[int], list[Entry]],
    act: Callable[[list[Entry], Tally, bool], list[Entry]],
    stop: Callable[[], Stop],
    progress: Callable[[int, int], None],
) -> CarriedOut:
    """Goes through the parts, from the first whose outcome is not known; asks `stop` before each.

    Args:
        archive: of this run.
        parts: how many there are.
        resumed: whether an earlier attempt or continuation of the run may have acted.
        read_part: gives the entries of a part.
        act: given the entries, the tally so far, and whether an attempt that died may have begun on them; returns
            them with their outcomes. An error of one entry is an outcome, not an exception.
        stop: why to stop now, or None.
        progress: told how many parts of how many are done.
    """
    tally, done = Tally(), list[Part]()
    while len(done) < parts and (known := archive.outcome(len(done))):
        part, outcomes = known
        tally.add(outcomes)
        done.append(part)
    begun = resumed
    while len(done) < parts:
        if reason := stop():
            return CarriedOut(tally=tally, parts=done, stopped=reason)
        outcomes = act(read_part(len(done)), tally, begun)
        done.append(archive.write_outcome(len(done), outcomes))
        tally.add(outcomes)
        progress(len(done), parts)
        begun = False
    return CarriedOut(tally=tally, parts=done, stopped=None)
