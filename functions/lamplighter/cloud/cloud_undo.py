"""Takes back what the actions of a run did, by its manifest (REQUIREMENTS C13). Started by hand; previews by default.

Instances are started, revoked rules authorised, volumes made from their snapshots, snapshots taken out of the Recycle
Bin, added tags and marks removed; nothing that somebody has changed since is touched, and doing it twice does nothing
the second time. A volume comes back under a new id, which the report names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger

from lamplighter.cloud.marks import KEEP, key_of
from lamplighter.cloud.remedies import ACTIONS, tags
from lamplighter.cloud.remedies.action import Gone, Place, Step, failures
from lamplighter.cloud.remedies.outcomes import Report, facts, report, where, with_facts
from lamplighter.cloud.remedies.places import Places
from lamplighter.kernel.deletion import (
    Archive,
    Entry,
    Manifest,
    ManifestAddress,
    Part,
    archive_bucket,
    carry_out,
    entries,
    part_entries,
    verified,
)
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.undo import UndoParams

logger = Logger(child=True)

_RUNS: Final = ("waste_scan", "security_enforcement")
"""Types of jobs that act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What a run did."""

    planned_at: datetime
    parts: list[Part]
    begun: list[Entry]
    """Of a run that died: entries that it may have acted upon without writing it down."""


@job("cloud_undo", params=UndoParams, timeout=timedelta(minutes=15), singleton=True)
def handler(run: Run, params: UndoParams) -> Report | Unfinished:
    """Take back what the actions of a run did.

    Raises:
        Permanent: there is no such run or manifest, it still runs, or a manifest was altered; nothing was touched.
    """
    from lamplighter.kernel.aws import client

    s3 = client("s3")
    found = _by_job(s3, params.job_id) if params.job_id else _by_manifest(s3, params)
    archive = Archive(s3, archive_bucket(), job_type="cloud_undo", scope="all", job_id=run.job_id)

    def read_part(number: int) -> list[Entry]:
        if number == len(found.parts):
            return [replace(entry, outcome="") for entry in found.begun]
        return [entry for entry in part_entries(s3, archive.bucket, found.parts[number]) if _undoable(entry)]

    undoing = _Undoing(run, dry_run=params.dry_run)
    done = carry_out(
        archive,
        parts=len(found.parts) + bool(found.begun),
        resumed=False,  # what is taken back already shows by itself
        read_part=read_part,
        act=lambda part, _tally, _begun: [undoing.undone(entry) for entry in part],
        stop=run.stop,
        progress=lambda part, parts: run.progress(99 * part // parts, f"{part} of {parts} parts dealt with"),
    )
    manifest = Manifest(
        job_id=run.job_id,
        scope=archive.scope,
        planned_at=run.job.created_at,
        finished_at=run.now(),
        dry_run=params.dry_run,
        complete=done.stopped is None,
        accepted=True,
        refusals=[],
        references={},
        parts=done.parts,
    )
    told = entries(s3, archive.bucket, manifest)
    unfinished = done.stopped == "out_of_time"
    address = None if unfinished else archive.write_manifest(manifest)
    answer = report(done.tally, told, errors=[], dry_run=params.dry_run, manifest=address)
    return Unfinished(checkpoint={"parts": len(done.parts)}, report=answer) if unfinished else answer


def _by_manifest(s3: Any, params: UndoParams) -> _Done:
    address = ManifestAddress(bucket=archive_bucket(), key=params.manifest or "", sha256=params.sha256 or "")
    manifest = verified(s3, address)
    return _Done(planned_at=manifest.planned_at, parts=manifest.parts, begun=[])


def _by_job(s3: Any, job_id: str) -> _Done:
    from lamplighter.kernel.ledger.ledger import Ledger

    row = Ledger.from_environment().get(job_id)
    if row.job_type not in _RUNS:
        raise Permanent(f"job_id: {job_id} is no {' or '.join(_RUNS)} but {row.job_type}.")
    if not row.status.terminal:
        raise Permanent(f"job_id: {job_id} is {row.status}; cancel it first, or wait for its end.")
    actions = (row.result or {}).get("phases", {}).get("actions") or {}
    if address := actions.get("manifest"):
        manifest = verified(s3, ManifestAddress.model_validate(address))
        return _Done(planned_at=manifest.planned_at, parts=manifest.parts, begun=[])
    # The phase died for good before its manifest: what it had written down by then has to do.
    archive = Archive(s3, archive_bucket(), job_type="cloud_actions", scope="all", job_id=job_id)
    known = archive.plan()
    if not known:
        raise Permanent(f"job_id: {job_id} acted upon nothing.")
    plan, _ = known
    parts, begun = archive.done_so_far(plan)
    return _Done(planned_at=plan.planned_at, parts=parts, begun=[entry for entry in begun if _undoable(entry)])


def _undoable(entry: Entry) -> bool:
    """Whether it was marked or acted upon, or, of a run that died, may have been."""
    said = facts(entry)
    action = ACTIONS.get(said["action"])
    if not entry.outcome:
        return said["step"] in {"mark", "act"}
    return entry.outcome == "marked" or (action is not None and entry.outcome == action.undone)


class _Undoing:
    """One run."""

    def __init__(self, run: Run, *, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._place = Places(run)

    def undone(self, entry: Entry) -> Entry:
        """The entry with what becomes of it now."""
        account, region, check, resource_id = where(entry)
        said = facts(entry)
        try:
            place = self._place(account, region)
            if said["step"] == "mark":
                return replace(entry, outcome=self._told(self._unmarked(place, check, resource_id, said["mark"])))
            action, state = ACTIONS[said["action"]], said["state"]
            if not entry.outcome:
                state = action.found(place, resource_id, Step(outcome=said["outcome"], state=state))
            if state is None:
                return replace(entry, outcome="already_restored")
            outcome, state = action.undo(place, resource_id, state, self._dry_run)
            if outcome in {"restored", "already_restored"} and not action.remade:
                self._unmarked(place, check, resource_id, said["mark"])
            return with_facts(entry, self._told(outcome), state=state, reason=state.get("volume_id", ""))
        except Gone:
            return replace(entry, outcome="not_restorable")
        except failures(Permanent, Retryable) as error:
            logger.warning("a resource could not be restored", extra={"entry": entry.key}, exc_info=True)
            return replace(entry, outcome="failed", error=str(error))

    def _unmarked(self, place: Place, check: str, resource_id: str, mark: str) -> str:
        """Take a mark away, for it is due; not one that somebody has rewritten, nor of what is to be kept."""
        key, there = key_of(check), tags.read(place, resource_id)
        written = there.get(key)
        if written != mark or KEEP in there:
            return "already_restored" if written is None else "changed_since"
        if not self._dry_run:
            tags.remove(place, resource_id, {key: mark})
        return "restored"

    def _told(self, outcome: str) -> str:
        return "would_be_restored" if self._dry_run and outcome == "restored" else outcome
