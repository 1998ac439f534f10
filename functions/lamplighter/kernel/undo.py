"""Taking back what a run did, by its manifest: what the jobs that do so have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from pydantic import Field, model_validator

from lamplighter.kernel.deletion import (
    Archive,
    CarriedOut,
    Entry,
    Manifest,
    ManifestAddress,
    Part,
    archive_bucket,
    carry_out,
    part_entries,
    verified,
)
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import Params, Run
from lamplighter.kernel.ledger.row import Job


class UndoParams(Params):
    """What an undo takes: the job whose run it is about, or the address of that run's manifest."""

    job_id: str | None = None
    """The job that is to be undone."""
    manifest: str | None = None
    """The key of its manifest in the archive bucket, as its report gives it: for runs the ledger has forgotten."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The manifest's hash, from the same report."""
    dry_run: bool = True

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.job_id) == bool(self.manifest) or bool(self.manifest) != bool(self.sha256):
            raise ValueError("give either job_id, or manifest and sha256")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeds:
    """What a run did."""

    scope: str
    planned_at: datetime
    parts: list[Part]
    begun: list[Entry] = field(default_factory=list)
    """Of a run that died: entries, without an outcome, that it may have acted upon without writing it down."""


def deeds(
    s3: Any,
    params: UndoParams,
    *,
    job_types: Sequence[str],
    archived_as: str,
    manifest_of: Callable[[Job], Mapping[str, Any] | None],
) -> Deeds:
    """What the run did that is to be taken back.

    Args:
        job_types: which jobs can be.
        archived_as: the job type under which they write down what they do.
        manifest_of: the address of the manifest that a row's result names, or None.

    Raises:
        Permanent: there is no such run or manifest, it still runs, or the manifest was altered.
    """
    from lamplighter.kernel.ledger.ledger import Ledger

    bucket, job_id = archive_bucket(), params.job_id
    if not job_id:
        address = ManifestAddress(bucket=bucket, key=params.manifest or "", sha256=params.sha256 or "")
        if not address.key.startswith(f"manifests/{archived_as}/"):
            raise Permanent(f"manifest: {address.key} is not one of {archived_as}: nothing was touched.")
        return _told(verified(s3, address))
    row = Ledger.from_environment().get(job_id)
    if row.job_type not in job_types:
        raise Permanent(f"job_id: {job_id} is no {' or '.join(job_types)} but {row.job_type}.")
    if not row.status.terminal:
        raise Permanent(f"job_id: {job_id} is {row.status}; cancel it first, or wait for its end.")
    if found := manifest_of(row):
        return _told(verified(s3, ManifestAddress.model_validate(found)))
    # The run died for good before its manifest: what it had written down by then has to do.
    archive = Archive(s3, bucket, job_type=archived_as, scope="", job_id=job_id)
    known = archive.plan()
    if not known:
        raise Permanent(f"job_id: {job_id} ended before it had a plan: it did nothing.")
    plan, _ = known
    if not plan.accepted:
        raise Permanent(f"job_id: {job_id} was refused by the governor: it did nothing.")
    parts, begun = archive.done_so_far(plan)
    return Deeds(scope=plan.scope, planned_at=plan.planned_at, parts=parts, begun=begun)


def take_back(
    run: Run,
    s3: Any,
    done: Deeds,
    *,
    dry_run: bool,
    undoable: Callable[[Entry], bool],
    undo: Callable[[list[Entry]], list[Entry]],
) -> tuple[CarriedOut, Manifest, ManifestAddress | None]:
    """Goes through what was done, a part at a time, and writes down what becomes of it.

    Args:
        undoable: whether an entry was acted upon, or, where it has no outcome, may have been.
        undo: given such entries, returns them with what became of them. What is taken back already has to show.

    Returns:
        How far it came, and the manifest of that; its address unless time ran out, and it is to go on.
    """
    archive = Archive(s3, archive_bucket(), job_type=run.job.job_type, scope=done.scope, job_id=run.job_id)

    def read_part(number: int) -> list[Entry]:
        found = part_entries(s3, archive.bucket, done.parts[number]) if number < len(done.parts) else done.begun
        return [entry for entry in found if undoable(entry)]

    carried_out = carry_out(
        archive,
        parts=len(done.parts) + bool(done.begun),
        resumed=False,  # what is taken back already shows by itself
        read_part=read_part,
        act=lambda part, _tally, _begun: undo(part),
        stop=run.stop,
        progress=lambda part, parts: run.progress(99 * part // parts, f"{part} of {parts} parts dealt with"),
    )
    manifest = Manifest(
        job_id=run.job_id,
        scope=done.scope,
        planned_at=run.job.created_at,
        finished_at=run.now(),
        dry_run=dry_run,
        complete=carried_out.stopped is None,
        accepted=True,
        refusals=[],
        references={},
        parts=carried_out.parts,
    )
    unfinished = carried_out.stopped == "out_of_time"
    return carried_out, manifest, None if unfinished else archive.write_manifest(manifest)


def _told(manifest: Manifest) -> Deeds:
    return Deeds(scope=manifest.scope, planned_at=manifest.planned_at, parts=manifest.parts)
