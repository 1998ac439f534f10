"""Finds the orphans of a bucket: two readings of the references around one listing.

1. First reading: the fingerprints of every value that the reference columns hold.
2. Listing: an object whose fingerprint is there is marked as named; other media files become candidates.
3. Second reading, in a new snapshot: the account of every value, and the re-check of every candidate.
4. Rescue: candidates that a value without an object could mean, or that derive from a file that stays, are kept.

A scan that runs out of time goes on where it was. What it knows of the references is one object of the archive, written
when the scan stops in the listing and when the listing is complete; a reading itself is one snapshot, and starts over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from pydantic import BaseModel

from lamplighter.kernel.deletion import PART, SHOWN_GROUPS, Archive, Entry, Group, Missing, SourceCount, State, Stop
from lamplighter.kernel.errors import Permanent
from lamplighter.media import listing
from lamplighter.media.accounting import Account, ColumnAccount
from lamplighter.media.extensions import is_media
from lamplighter.media.folding import Scope, bare_paths
from lamplighter.media.rescue import Kept

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lamplighter.kernel.job import Run
    from lamplighter.kernel.media import Reference
    from lamplighter.media.listing import Listed
    from lamplighter.media.values import Batch

OWN: Final = ".lamplighter/"
"""What keys begin with that are Lamplighter's own, and never touched."""
NAMED_MISSING: Final = 1000
"""Missing files that a manifest names. Their number is always exact."""
LONGEST_SHOWN: Final = 1000
"""Characters of a missing file's value that a manifest shows: a value may be a document."""
KEPT_GROUPS: Final = 20
"""Groups of unmatched values of a column that a report has: it has to fit into the job's row."""
PROBED: Final = 1000
"""Values without a file up to which the bucket is asked for each: their objects may be younger than the listing."""
THREADS: Final = 16
"""Objects asked for at once; as many as the client has connections."""
MAX_RESTARTS: Final = 3
"""How often a reading may run out of time before the run gives up: a fourth would end like the others."""

OUTCOMES: Final = {
    Kept.NAMED: "kept_referenced_again",
    Kept.EXCLUDED: "excluded",
    Kept.AMBIGUOUS: "kept_ambiguous",
    Kept.DERIVED: "kept_derived",
}


class Stopped(Exception):
    """The run was told to stop: `reason` is why."""

    def __init__(self, reason: Stop) -> None:
        super().__init__(reason)
        self.reason = reason


class Scanned(BaseModel):
    """How far a scan has come: the checkpoint of a run that was stopped in it."""

    started_at: datetime
    after: str = ""
    """The key up to which the bucket was listed."""
    listed: bool = False
    """Whether the listing is complete."""
    files: int = 0
    young: int = 0
    not_media: int = 0
    candidates: int = 0
    """Parts of candidates written so far."""
    first_reading: State | None = None
    """What the first reading gave. None in a checkpoint of an earlier version: the scan starts over."""
    progress: State | None = None
    """What the listing gave, up to `after`."""
    saved: int = 0
    """How often that was written."""
    restarts: int = 0
    """Readings in a row that ran out of time."""
    parts: int = 0
    """Parts of the plan written so far."""
    orphans: int = 0
    orphan_bytes: int = 0
    kept: dict[str, int] = {}
    """Candidates that are kept after all, by outcome."""
    kept_by_added: int = 0
    """Files, old enough, that only columns keep which the run adds to the configured ones; at most so many."""
    alone_reading: State | None = None
    """As `first_reading`, of the configured columns alone. None where the run adds none."""
    alone_progress: State | None = None
    """As `progress`, of the configured columns alone."""
    basis: str | None = None
    """A hash of what the scan goes by: folder, references, patterns, limits. None in one of an earlier version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """Which files are kept whatever the references say."""

    derived: Sequence[str] = ()
    """Of files that derive from another one."""
    exclude: Sequence[str] = ()
    """Globs of keys that are never removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The account of all values as of one moment."""

    account: Account
    read_at: datetime
    took: timedelta
    sources: tuple[SourceCount, ...]
    missing_files: int
    """Values with the extension of a media file whose object is gone."""
    missing: tuple[Missing, ...]
    """The first of them."""
    planned: bool = False
    """Whether the whole plan was made by this reading, so that each file of the plan is an orphan by it."""

    def verdicts(self, candidates: Sequence[Entry]) -> list[str | None]:
        """Why each is kept, as an outcome, or None for an orphan."""
        if self.planned:
            return [None] * len(candidates)
        return [kept and OUTCOMES[kept] for kept in self.account.verdicts([one.key for one in candidates])]


class Scan:
    """The scan of one run.

    Args:
        connection: outside of a transaction.
        archive: of the run.
        folder: the `base_path`, empty or ending with a slash.
        added: how many of the last references only this run names. The configured ones are also judged alone (S2).
        min_age: younger files are left alone.

    Raises:
        Permanent: a pattern cannot be read.
    """

    def __init__(
        self,
        run: Run,
        connection: Connection,
        s3: Any,
        archive: Archive,
        *,
        bucket: str,
        folder: str,
        references: Sequence[Reference],
        added: int = 0,
        min_age: timedelta,
        patterns: Patterns,
    ) -> None:
        self._run = run
        self._connection = connection
        self._s3 = s3
        self._archive = archive
        self._bucket = bucket
        self._folder = folder
        self._references = references
        self._configured = references[: len(references) - added]
        self._alone: Account | None = None
        """The account of the configured columns without the added ones. None where there are none."""
        self._min_age = min_age
        self._patterns = patterns

    def complete(self, scanned: Scanned) -> Reading:
        """Take the scan to its end: the plan's parts are written, and counted in `scanned`.

        Raises:
            Stopped: it is to go on from `scanned`, which has been brought up to date.
        """
        account = self._opened(scanned)
        if not scanned.listed:
            self._list(account, scanned)
        reading, begun = self.read(account, scanned), scanned.parts
        self._rescue(reading, scanned)
        return replace(reading, planned=not begun)

    def reopened(self, scanned: Scanned) -> Reading:
        """A new reading for a run whose scan is complete.

        Raises:
            Permanent: what the scan knew is gone.
            Stopped: by the run.
        """
        account = self._loaded(scanned)
        if account is None:
            raise Permanent(
                f"What run {self._run.job_id} knew of the references is gone from {self._archive.bucket}, or was "
                "written by another version: nothing more was touched. Start a new run."
            )
        return self.read(account, scanned)

    # -- first reading and listing

    def _opened(self, scanned: Scanned) -> Account:
        """The account that the listing goes on with; after the first reading, if there is none yet."""
        if account := self._loaded(scanned):
            return account
        begun = Scanned(
            started_at=scanned.started_at, saved=scanned.saved, restarts=scanned.restarts, basis=scanned.basis
        )
        for name in Scanned.model_fields:  # what was found before counts for nothing
            setattr(scanned, name, getattr(begun, name))
        account = self._new_account()
        for batch in self._values(scanned):
            account.first(batch.column, batch.values, batch.hints)
            if self._alone and batch.column < len(self._configured):
                self._alone.first(batch.column, batch.values, batch.hints)
        scanned.restarts = 0
        return account

    def _new_account(self) -> Account:
        self._alone = self._account_of(self._configured) if len(self._configured) < len(self._references) else None
        return self._account_of(self._references)

    def _account_of(self, references: Sequence[Reference]) -> Account:
        try:
            return Account(
                Scope(self._bucket, self._folder),
                references,
                derived=self._patterns.derived,
                exclude=self._patterns.exclude,
            )
        except ValueError as error:
            raise Permanent(str(error)) from None

    def _loaded(self, scanned: Scanned) -> Account | None:
        """The account as it was saved, if it was, and by a version whose fingerprints are the same."""
        account = self._new_account()
        if not self._fill(account, scanned.first_reading, scanned.progress):
            return None
        if self._alone and not self._fill(self._alone, scanned.alone_reading, scanned.alone_progress):
            return None
        return account

    def _fill(self, account: Account, reading: State | None, progress: State | None) -> bool:
        """Give the account what was saved of it; False if that is not there any more."""
        first_reading = self._archive.state(reading) if reading else None
        listed = self._archive.state(progress) if progress else None
        if first_reading is None or listed is None:
            return False
        try:
            account.add_sealed(first_reading)
            account.add_progress(listed)
        except ValueError as error:
            self._run.logger.warning("the scan starts over", extra={"reason": str(error)})
            return False
        return True

    def _save(self, account: Account, scanned: Scanned) -> None:
        scanned.saved += 1
        if scanned.first_reading is None:
            name = f"references-{scanned.saved}.bin"
            scanned.first_reading = self._archive.write_state(name, account.sealed_to_bytes())
        scanned.progress = self._archive.write_state(f"listed-{scanned.saved}.bin", account.progress_to_bytes())
        if self._alone:
            if scanned.alone_reading is None:
                name = f"references-alone-{scanned.saved}.bin"
                scanned.alone_reading = self._archive.write_state(name, self._alone.sealed_to_bytes())
            name = f"listed-alone-{scanned.saved}.bin"
            scanned.alone_progress = self._archive.write_state(name, self._alone.progress_to_bytes())

    def _list(self, account: Account, scanned: Scanned) -> None:
        """Mark what is named, write down the candidates in S3's order; counts in `scanned`."""
        cutoff = f"{scanned.started_at - self._min_age:%Y-%m-%dT%H:%M:%S}"
        pending: list[Entry] = []
        stopped: Stop = None
        for objects in listing.batches(self._s3, self._bucket, self._folder, after=scanned.after):
            pending += self._candidates(account, objects, cutoff, scanned)
            scanned.after = objects[-1][0] if objects else scanned.after
            while len(pending) >= PART:
                self._write_candidates(pending[:PART], scanned)
                del pending[:PART]
            self._run.progress(20, f"{scanned.files} files scanned")
            if stopped := self._run.stop():
                break
        if pending:
            self._write_candidates(pending, scanned)
        scanned.listed = not stopped
        self._save(account, scanned)
        if stopped:
            raise Stopped(stopped)

    def _candidates(self, account: Account, objects: Sequence[Listed], cutoff: str, scanned: Scanned) -> list[Entry]:
        """Those of the objects that no value names and that are old enough."""
        keys = [one[0] for one in objects]
        named = account.listed(keys)
        named_alone = self._alone.listed(keys) if self._alone else named
        files = young = by_added = 0  # not in the model, which takes a microsecond a change
        candidates = []
        for one, is_named, is_named_alone in zip(objects, named, named_alone, strict=True):
            if not is_media(one[0]) or one[0].startswith(OWN):
                continue
            files += 1
            if one[1][: len(cutoff)] > cutoff:
                young += 1
            elif not is_named:
                candidates.append(_entry(one))
            elif not is_named_alone:
                by_added += 1
        scanned.not_media += len(objects) - files
        scanned.files += files
        scanned.young += young
        scanned.kept_by_added += by_added
        return candidates

    def _write_candidates(self, candidates: list[Entry], scanned: Scanned) -> None:
        self._archive.write_candidates(scanned.candidates, candidates)
        scanned.candidates += 1

    # -- second reading

    def read(self, account: Account, scanned: Scanned, *, probe: bool = True) -> Reading:
        """The account of all values, as of now.

        Args:
            probe: ask the bucket for objects that were uploaded behind the listing. Only the account needs it.

        Raises:
            Stopped: by the run.
        """
        read_at = self._run.now()
        account.begin_second()
        if self._alone:
            self._alone.begin_second()
        for batch in self._values(scanned):
            account.second(batch.column, batch.values, batch.hints)
            if self._alone and batch.column < len(self._configured):
                self._alone.second(batch.column, batch.values, batch.hints)
        found = account.counts(lambda prefix: self._neighbours(prefix, scanned))
        took = self._run.now() - read_at
        appeared = self._appeared(found) if probe else set[str]()
        gone = [(column, [value for value in column.missing if value not in appeared]) for column in found]
        missing = [
            Missing(column=column.column, value=value[:LONGEST_SHOWN]) for column, values in gone for value in values
        ]
        return Reading(
            account=account,
            read_at=read_at,
            took=took,
            sources=tuple(
                source_count(column, reference, appeared=len(column.missing) - len(values))
                for (column, values), reference in zip(gone, self._references, strict=True)
            ),
            missing_files=sum(
                column.unmatched - column.unreadable - len(column.missing) + len(values) for column, values in gone
            ),
            missing=tuple(missing[:NAMED_MISSING]),
        )

    def _values(self, scanned: Scanned) -> Iterator[Batch]:
        """One reading of all columns.

        Raises:
            Stopped: the reading is to start over.
            Permanent: it has been stopped by the clock too often.
        """
        from lamplighter.media.values import read

        count = 0
        with closing(read(self._connection, self._references, max_lag=self._min_age)) as batches:
            for batch in batches:
                count += len(batch.values)
                self._run.progress(10, f"{count} references read")
                self._check_stop(scanned, f"{count} values")
                yield batch

    def _neighbours(self, prefix: str, scanned: Scanned) -> Iterator[list[str]]:
        """Batches of all keys that begin with a prefix.

        Raises:
            Stopped: the reading is to start over.
            Permanent: it has been stopped by the clock too often.
        """
        if not listing.is_key(prefix):
            return
        for objects in listing.batches(self._s3, self._bucket, prefix):
            yield [one[0] for one in objects]
            self._check_stop(scanned, f"all values and a part of {prefix}")

    def _check_stop(self, scanned: Scanned, read: str) -> None:
        if reason := self._run.stop():
            scanned.restarts += 1
            if reason == "out_of_time" and scanned.restarts > MAX_RESTARTS:
                raise Permanent(
                    f"references: the time was over after {read}, {scanned.restarts} times in a row: "
                    "raise the timeout of the function, or divide the columns among several runs."
                )
            raise Stopped(reason)

    def _appeared(self, found: Sequence[ColumnAccount]) -> set[str]:
        """Values whose objects were written behind the listing: rows and uploads do not wait for a run."""
        values = {value for column in found for value in column.missing}
        if not 0 < sum(column.unmatched - column.unreadable for column in found) <= PROBED:
            return set()
        with ThreadPoolExecutor(THREADS) as pool:
            ordered = sorted(values)
            return {
                value for value, is_there in zip(ordered, pool.map(self._is_there, ordered), strict=True) if is_there
            }

    def _is_there(self, value: str) -> bool:
        path = bare_paths(value)[-1].lstrip("/")
        keys = dict.fromkeys(
            lead + one
            for one in (path, unquote(path))
            for lead in ("", self._folder)
            if (lead + one).startswith(self._folder)
        )
        return any(listing.look(self._s3, self._bucket, key) for key in keys)

    # -- rescue

    def _rescue(self, reading: Reading, scanned: Scanned) -> None:
        """Write the plan's parts: the candidates without those that are kept after all; counts in `scanned`."""
        kept = Counter(scanned.kept)
        for number in range(scanned.parts, scanned.candidates):
            candidates = self._archive.candidates(number)
            verdicts = reading.verdicts(candidates)
            planned = [one for one, verdict in zip(candidates, verdicts, strict=True) if verdict is None]
            self._archive.write_plan_part(number, planned)
            kept.update(verdict for verdict in verdicts if verdict)
            scanned.kept = dict(kept)
            if self._alone:
                alone = self._alone.verdicts([one.key for one in candidates])
                scanned.kept_by_added += sum(
                    one is not None and without is None for one, without in zip(verdicts, alone, strict=True)
                )
            scanned.parts = number + 1
            scanned.orphans += len(planned)
            scanned.orphan_bytes += sum(one.size for one in planned)
            scanned.restarts = 0
            self._run.progress(50, f"{number * PART + len(candidates)} candidates looked at")
            if reason := self._run.stop():
                raise Stopped(reason)


def source_count(column: ColumnAccount, reference: Reference, *, appeared: int = 0) -> SourceCount:
    """The account of a column for the governor and the report, `appeared` of its missing files counted as matched."""
    groups = [
        Group(
            start=f"//{group.host}/{group.segment}" if group.host else group.segment or "without a folder",
            count=group.count,
            examples=group.examples,
            declaration=group.declaration,
        )
        for group in column.groups[:KEPT_GROUPS]
    ]
    return SourceCount(
        column=column.column,
        values=column.values,
        matched=column.matched + appeared,
        outside=column.outside,
        unmatched=column.unmatched - appeared,
        unreadable=column.unreadable,
        unmatched_examples=[example for group in groups[:SHOWN_GROUPS] for example in group.examples],
        groups=groups,
        max_unmatched=reference.max_unmatched,
        max_unreadable=reference.max_unreadable,
    )


def _entry(one: Listed) -> Entry:
    key, last_modified, etag, size = one
    return Entry(key=key, size=int(size), etag=etag, last_modified=last_modified)
