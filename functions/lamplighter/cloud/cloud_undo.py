"""Takes back what the actions of a run did, by its manifest (REQUIREMENTS C13). Started by hand; previews by default.

Instances are started, revoked rules authorised, volumes made from their snapshots, snapshots taken out of the Recycle
Bin, added tags and marks removed; nothing that somebody has changed since is touched, and doing it twice does nothing
the second time. A volume comes back under a new id, which the report names.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger

from lamplighter.cloud.marks import KEEP, key_of
from lamplighter.cloud.remedies import ACTIONS, tags
from lamplighter.cloud.remedies.action import Gone, Place, Step, failures
from lamplighter.cloud.remedies.outcomes import Report, facts, report, where, with_facts
from lamplighter.cloud.remedies.places import Places
from lamplighter.deletion import ramp
from lamplighter.kernel.deletion import Entry, archive_bucket, entries
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.undo import UndoParams, deeds, take_back

logger = Logger(child=True)

_RUNS: Final = ("waste_scan", "security_enforcement")
"""Types of jobs that act."""


@job("cloud_undo", params=UndoParams, timeout=timedelta(minutes=15), singleton=True)
def handler(run: Run, params: UndoParams) -> Report | Unfinished:
    """Take back what the actions of a run did.

    Raises:
        Permanent: there is no such run or manifest, it still runs, or a manifest was altered; nothing was touched.
    """
    from lamplighter.kernel.aws import client

    s3 = client("s3")
    done = deeds(s3, params, job_types=_RUNS, archived_as="cloud_actions", manifest_of=_manifest_of)
    undoing = _Undoing(run, dry_run=params.dry_run)
    carried_out, manifest, address = take_back(
        run,
        s3,
        done,
        dry_run=params.dry_run,
        undoable=_undoable,
        undo=lambda part: [undoing.undone(entry) for entry in part],
    )
    told = entries(s3, archive_bucket(), manifest)
    answer = report(carried_out.tally, told, errors=[], dry_run=params.dry_run, manifest=address)
    return answer if address else Unfinished(checkpoint={"parts": len(carried_out.parts)}, report=answer)


def _manifest_of(row: Job) -> Any:
    return ((row.result or {}).get("phases", {}).get("actions") or {}).get("manifest")


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
        self._now = run.now()
        self._reset: set[str] = set()

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
            outcome, found = action.undo(place, resource_id, state, True)
            if outcome == "restored" and not self._dry_run:
                self._reset_ramp(check, account)
                outcome, found = action.undo(place, resource_id, state, False)
            state = found
            other = state.get("volume_id", "")
            if outcome in {"restored", "already_restored"} and not other:
                self._unmarked(place, check, resource_id, said["mark"])
            return with_facts(entry, self._told(outcome), state=state, reason=other)
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
            self._reset_ramp(check, place.account)
            tags.remove(place, resource_id, {key: mark})
        return "restored"

    def _reset_ramp(self, check: str, account: str) -> None:
        """Once, and before the first restoration: a crash in between costs trust, not safety (S3)."""
        scope = ramp.of_check(check, account)
        if scope not in self._reset:
            ramp.reset(ramp.table(), scope, self._now)
            self._reset.add(scope)

    def _told(self, outcome: str) -> str:
        return "would_be_restored" if self._dry_run and outcome == "restored" else outcome
