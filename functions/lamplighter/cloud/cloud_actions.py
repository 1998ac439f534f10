"""Acts on findings: the phase `actions` of the scans (REQUIREMENTS C13, K11).

Only for the checks that the setting `cloud.remedies` names, and in earnest only where it says `apply`. The protocol is
that of `kernel.deletion`, the marks are those of `cloud.marks`:

    plan        each region with open findings is read anew and put to the same checks (`cloud.judged`); what is to be
                done about each resource is decided and written down
    ramp        the first runs of a check in an account act upon few resources (S3, `lamplighter.deletion.ramp`)
    governor    a check of which too large a share of all resources offends is refused as a whole
    notice      the alerts topic is told what will be marked, before anything is
    re-check    what is due is read and judged once more, then looked at by itself, right before
    act         or, in a preview, say what would be done
    manifest    every resource with what became of it; `cloud_undo` reads it

One resource's failure, or one region's, is told of and stops nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from aws_lambda_powertools import Logger
from pydantic import BaseModel

from lamplighter.cloud import targets
from lamplighter.cloud.checks import BY_ID, SECURITY, WASTE
from lamplighter.cloud.exemptions import load
from lamplighter.cloud.judged import Judged
from lamplighter.cloud.marks import KEEP, Decision, excluded, key_of
from lamplighter.cloud.remedies import ACTIONS, checked, tags
from lamplighter.cloud.remedies.action import Gone, Kept, Place, Step, failures
from lamplighter.cloud.remedies.outcomes import Report, Where, facts, item, report, where, with_facts
from lamplighter.cloud.remedies.places import Places
from lamplighter.cloud.store import findings_store
from lamplighter.deletion import ramp
from lamplighter.kernel import phases
from lamplighter.kernel.cloud import Remedy
from lamplighter.kernel.deletion import (
    Archive,
    CarriedOut,
    Entry,
    Manifest,
    ManifestAddress,
    Plan,
    Stop,
    Tally,
    archive_bucket,
    carry_out,
    entries,
)
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent, Retryable
from lamplighter.kernel.job import Context, Run, Unfinished
from lamplighter.kernel.notify import alert, flat

logger = Logger(child=True)

BATCH: Final = 25
"""Resources that are dealt with before the run is asked whether to stop."""
FEW: Final = 10
"""So many findings of a check are never too large a share."""
TOLD: Final = 500
"""Marks that the notice spells out; a message takes 256 KB (SNS, "Quotas")."""
LOOKS: Final = 500
"""Due resources of a check and a region that a run looks at, acted upon or kept: each takes some calls."""
REMEMBERED: Final = timedelta(days=30)
"""How long after its finding was resolved a resource is still looked at, to take its mark away."""

_CHECKS: Final = {"waste_scan": WASTE, "security_enforcement": SECURITY}
"""Which checks a scan's own actions are about, by job type; a preview by hand is about all."""
_SETTLED: Final = {"keep": "kept", "wait": "waiting", "gone": "already_gone", "fail": "failed"}
"""What is in the plan because the report has to name it, and its outcome."""


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Serve the phase `actions`. Raises as `phases.take`."""
    return phases.take(event, context, {"actions": body})


def body(run: Run) -> Report | Unfinished:
    """Act on the open findings, as far as the settings ask for it.

    Raises:
        Permanent: the settings ask for what does not fit; nothing was touched.
        DatabaseUnavailable: no findings, no actions: nothing more was touched.
    """
    from lamplighter.kernel.aws import client

    checked(run.settings)
    own = {check.id for check in _CHECKS.get(run.job.job_type, BY_ID.values())}
    remedies = {check: remedy for check, remedy in run.settings.cloud.remedies.items() if check in own}
    if not remedies:
        return Report(dry_run=run.job.dry_run)
    s3 = client("s3")
    try:
        load(s3, archive_bucket())
    except Permanent as error:
        said = f"Nothing is acted upon while the exceptions cannot be read: {error}"
        return Report(status="completed_with_errors", errors=[said], dry_run=run.job.dry_run)
    return Actions(run, remedies, s3).run()


class _Planned(BaseModel):
    """How far the plan has come: the checkpoint of a run that was stopped in it."""

    started_at: datetime
    left: list[tuple[str, str]]
    """Accounts and regions."""
    parts: int = 0
    offending: Counter[str] = Counter()
    """Resources by check."""
    looked_at: Counter[str] = Counter()
    acting: Counter[str] = Counter()
    """Of them, those that are to be acted upon."""
    limits: dict[str, int | None] = {}
    """What the ramp allows this run, by `check/account`; None means no limit."""
    acting_in: Counter[str] = Counter()
    """Resources that are to be acted upon, by `check/account`."""
    held: int = 0
    """Resources that the ramp holds back."""
    errors: list[str] = []
    """Regions that could not be read."""


class Actions:
    """One run."""

    def __init__(self, run: Run, remedies: Mapping[str, Remedy], s3: Any) -> None:
        self._run = run
        self._remedies = remedies
        self._s3 = s3
        self._stack = os.environ["STACK_NAME"]
        self._archive = Archive(s3, archive_bucket(), job_type="cloud_actions", scope="all", job_id=run.job_id)
        self._place = Places(run)
        self._judged: dict[tuple[str, str], Judged] = {}
        """Regions that were read once more before something in them was acted upon."""

    def run(self) -> Report | Unfinished:
        """Goes on from wherever this run has come to."""
        known = self._archive.plan()
        resumed = known is not None
        if known is None:
            planned = self._begun()
            stopped = self._plan_regions(planned)
            if stopped or not planned.parts:
                so_far = report(
                    Tally(), (), errors=planned.errors, dry_run=self._run.job.dry_run, manifest=None, held=planned.held
                )
                checkpoint = planned.model_dump(mode="json")
                return Unfinished(checkpoint=checkpoint, report=so_far) if stopped == "out_of_time" else so_far
            plan = self._written(planned)
        else:
            plan = known[0]
        refused: dict[str, str] = plan.facts["refused"]
        self._announce(plan, refused)
        done = carry_out(
            self._archive,
            parts=plan.parts,
            resumed=resumed,
            read_part=self._archive.plan_part,
            act=lambda part, _tally, begun: [self._dealt_with(entry, refused, begun) for entry in part],
            stop=self._run.stop,
            progress=lambda part, parts: self._run.progress(50 + 49 * part // parts, f"{part * BATCH} resources"),
        )
        if done.stopped == "out_of_time":
            return Unfinished(checkpoint={}, report=self._report(plan, done))
        manifest = self._manifest(plan, done)
        address = self._archive.write_manifest(manifest)
        if manifest.complete and not manifest.dry_run:
            self._earn(manifest)
        return self._report(plan, done, address)

    # -- ramp --------------------------------------------------------------------------------------------------------

    def _limit(self, planned: _Planned, check: str, account: str) -> int | None:
        """How many resources of a check this run may act upon in an account; the same however often it is asked."""
        key = f"{check}/{account}"
        if key not in planned.limits:
            trust, remedy = self._trust(check, account), self._remedies[check]
            if self._run.job.dry_run or not remedy.apply:
                planned.limits[key] = ramp.look(**trust)
            else:
                planned.limits[key] = ramp.open(run=self._run.job_id, **trust).limit
        return planned.limits[key]

    def _trust(self, check: str, account: str) -> dict[str, Any]:
        remedy = self._remedies[check]
        return {
            "table": ramp.table(),
            "scope": ramp.of_check(check, account),
            "definition": ramp.definition_of({"action": remedy.action, "account": account}),
            "now": ramp.began(self._run.job_id, self._run.now()),
            "first": ramp.FIRST_RESOURCES,
            "ceiling": remedy.max_actions,
            "applies": remedy.ramp,
        }

    def _earn(self, manifest: Manifest) -> None:
        """Records for each check and account that this run acted there."""
        acted: Counter[tuple[str, str]] = Counter()
        for entry in entries(self._s3, self._archive.bucket, manifest):
            said, at = facts(entry), where(entry)
            acted[at.check, at.account] += said["step"] == "act" and entry.outcome == said["outcome"]
        for (check, account), count in acted.items():
            if count and check in self._remedies:
                ramp.open(run=self._run.job_id, **self._trust(check, account)).acted(count)

    # -- plan --------------------------------------------------------------------------------------------------------

    def _begun(self) -> _Planned:
        if self._run.checkpoint:
            return _Planned.model_validate(self._run.checkpoint)
        now, scanned = self._run.now(), targets.items(self._run.settings)
        found = findings_store().places(checks=self._remedies, resolved_after=now - REMEMBERED)
        left = [at for at in found if {"account": at[0], "region": at[1]} in scanned]
        return _Planned(started_at=now, left=left)

    def _plan_regions(self, planned: _Planned) -> Stop:
        """Writes down what is to be done, a region at a time."""
        while planned.left:
            if stopped := self._run.stop():
                return stopped
            account, region = planned.left[0]
            self._run.progress(0, f"reading {region} of {account}")
            try:
                found = list(self._planned(self._judge(account, region), planned))
            except DatabaseUnavailable:
                raise
            except (Permanent, Retryable) as error:
                logger.warning("a region is passed over", extra={"account": account, "region": region})
                planned.errors.append(f"{account} {region}: {error}")
                found = []
            for start in range(0, len(found), BATCH):
                self._archive.write_plan_part(planned.parts, found[start : start + BATCH])
                planned.parts += 1
            del planned.left[0]
        return None

    def _planned(self, judged: Judged, planned: _Planned) -> Iterator[Entry]:
        """What is to be done in one region; what is due, longest first, as far as a run may go."""
        account, acting = judged.place.account, planned.acting_in
        for check, remedy in self._remedies.items():
            key = f"{check}/{account}"
            planned.looked_at[check] += judged.counts[check]
            planned.offending[check] += sum(found == check for found, _ in judged.findings)
            looks = 0
            for resource_id, decision in judged.decisions(check):
                if decision.step == "none":
                    continue
                entry = self._entry(judged, check, resource_id, decision)
                if decision.step == "act":
                    if planned.acting[check] >= remedy.max_actions or looks >= LOOKS:
                        full = f"A run acts upon {remedy.max_actions} and looks at {LOOKS} at most: its turn comes."
                        entry = with_facts(entry, step="wait", reason=full)
                    elif (limit := self._limit(planned, check, account)) is not None and acting[key] >= limit:
                        few = f"The first runs act upon few resources, this one upon {limit}: its turn comes."
                        entry = with_facts(entry, step="wait", reason=few)
                        planned.held += 1
                    else:
                        entry, looks = self._foreseen(judged, check, entry), looks + 1
                        acts = facts(entry)["step"] == "act"
                        planned.acting[check] += acts
                        acting[key] += acts
                yield entry

    def _entry(self, judged: Judged, check: str, resource_id: str, decision: Decision) -> Entry:
        there = judged.tags.get(resource_id, {})
        said = {
            "step": decision.step,
            "action": self._remedies[check].action,
            "outcome": {"mark": "marked", "unmark": "unmarked"}.get(decision.step),
            "reason": decision.reason,
            "mark": str(decision.mark) if decision.mark else None,
            "written": there.get(key_of(check)),
            "owner": there.get(self._run.settings.cloud.limits.owner_tag),
        }
        at = Where(account=judged.place.account, region=judged.place.region, check=check, resource_id=resource_id)
        return Entry(key=at.key, facts=said)

    def _foreseen(self, judged: Judged, check: str, entry: Entry) -> Entry:
        """An entry that is due, with exactly what would be done about it."""
        try:
            step = judged.look(check, where(entry).resource_id, self._run.now())
        except Kept as kept:
            return with_facts(entry, step="keep", reason=str(kept))
        except Gone:
            return with_facts(entry, step="gone")
        except failures() as error:
            return with_facts(entry, step="fail", reason=str(error))
        return replace(entry, facts=facts(entry) | {"outcome": step.outcome, "state": step.state})

    def _written(self, planned: _Planned) -> Plan:
        """Has the governor judge the plan, and writes it down."""
        refused = {
            check: sentence
            for check, remedy in self._remedies.items()
            if (sentence := refusal(check, remedy, planned.offending[check], planned.looked_at[check]))
        }
        plan = Plan(
            job_id=self._run.job_id,
            scope=self._archive.scope,
            planned_at=self._run.now(),
            started_at=planned.started_at,
            parts=planned.parts,
            references={},
            refusals=list(refused.values()),
            accepted=True,
            facts={"refused": refused, "errors": planned.errors, "held": planned.held},
        )
        self._archive.write_plan(plan)
        return plan

    # -- regions -----------------------------------------------------------------------------------------------------

    def _judge(self, account: str, region: str) -> Judged:
        """A region as it is now, by the exceptions of now. Raises as `Judged.read`."""
        return Judged.read(
            replace(self._place(account, region), seen={}, now=self._run.now()),
            remedies=self._remedies,
            limits=self._run.settings.cloud.limits,
            exemptions=load(self._s3, self._archive.bucket),
        )

    # -- act ---------------------------------------------------------------------------------------------------------

    def _dealt_with(self, entry: Entry, refused: Mapping[str, str], begun: bool) -> Entry:
        """The entry with what became of it. `begun`: an attempt that died may have done it already."""
        if untouched := self._untouched(entry, refused):
            return untouched
        account, region, check, resource_id = where(entry)
        try:
            place = self._place(account, region)
            deal = self._acted if facts(entry)["step"] == "act" else self._marked
            return deal(place, entry, check, resource_id, begun)
        except Kept as kept:
            return with_facts(entry, "kept", reason=str(kept))
        except Gone:
            return replace(entry, outcome="already_gone")
        except DatabaseUnavailable:
            raise
        except failures(Permanent, Retryable) as error:
            logger.warning("a resource could not be dealt with", extra={"entry": entry.key}, exc_info=True)
            return replace(entry, outcome="failed", error=str(error))

    def _untouched(self, entry: Entry, refused: Mapping[str, str]) -> Entry | None:
        """The entry with its outcome, where nothing is done about it, or only would be."""
        said, check = facts(entry), where(entry).check
        remedy, settled = self._remedies.get(check), _SETTLED.get(said["step"])
        if settled:
            return replace(entry, outcome=settled, error=said["reason"] if settled == "failed" else None)
        if check in refused and said["step"] != "unmark":
            return replace(entry, outcome="refused")
        if not remedy or remedy.action != said["action"]:
            return with_facts(entry, "kept", reason="The settings have changed since the plan was made.")
        if self._run.job.dry_run or not remedy.apply:
            return replace(entry, outcome=f"would_be_{said['outcome']}")
        return None

    def _marked(self, place: Place, entry: Entry, check: str, resource_id: str, _begun: bool) -> Entry:
        """Write the mark that the plan says, or take it away, if the resource's tags are as the plan saw them."""
        said, key = facts(entry), key_of(check)
        there, aimed_at = tags.read(place, resource_id), said["mark"] if said["step"] == "mark" else None
        if reason := excluded(there, self._stack):
            raise Kept(reason)
        if there.get(key) not in {said["written"], aimed_at}:  # the latter where an attempt died right after
            raise Kept("Its mark is not what it was a moment ago.")
        if there.get(key) != aimed_at:
            if aimed_at:
                tags.write(place, resource_id, {key: aimed_at})
            else:
                tags.remove(place, resource_id, {key: there[key]})
        return replace(entry, outcome=said["outcome"])

    def _acted(self, place: Place, entry: Entry, check: str, resource_id: str, begun: bool) -> Entry:
        """Do what the plan says, if all is still as the plan saw it."""
        said = facts(entry)
        action, planned = ACTIONS[self._remedies[check].action], Step(outcome=said["outcome"], state=said["state"])
        if begun and (state := action.found(place, resource_id, planned)) is not None:
            return with_facts(entry, planned.outcome, state=state)
        judged = self._judged_again(place)
        decision = judged.decide(check, resource_id)
        if decision.step in {"none", "unmark"}:
            raise Kept(decision.reason or "It does not offend any more.")
        if decision.step != "act":
            raise Kept(decision.reason or "Its mark is not what it was a moment ago.")
        there = tags.read(place, resource_id)
        if (reason := excluded(there, self._stack)) or there.get(key_of(check)) != said["written"]:
            raise Kept(reason or "Its mark is not what it was a moment ago.")
        if judged.look(check, resource_id, self._run.now()) != planned:
            raise Kept("It has changed since the plan was made.")
        try:
            state = action.act(judged.place, resource_id, planned)
        except failures():  # such as that it is gone, of a request that was repeated because its answer was lost
            done = action.found(judged.place, resource_id, planned)
            if done is None:
                raise
            state = done
        logger.info("acted", extra={"entry": entry.key, "outcome": planned.outcome})
        return with_facts(entry, planned.outcome, state=state)

    def _judged_again(self, place: Place) -> Judged:
        where = (place.account, place.region)
        if where not in self._judged:
            self._judged[where] = self._judge(*where)
        return self._judged[where]

    # -- tell --------------------------------------------------------------------------------------------------------

    def _manifest(self, plan: Plan, done: CarriedOut) -> Manifest:
        return Manifest(
            job_id=plan.job_id,
            scope=plan.scope,
            planned_at=plan.planned_at,
            finished_at=self._run.now(),
            dry_run=self._run.job.dry_run,
            complete=done.stopped is None,
            accepted=plan.accepted,
            refusals=plan.refusals,
            references={},
            parts=done.parts,
        )

    def _announce(self, plan: Plan, refused: Mapping[str, str]) -> None:
        """One message for all that the run is about to mark, told once (K9), and first: so there is no mark that nobody
        was told of, wherever the run may end."""
        planned = (entry for part in range(plan.parts) for entry in self._archive.plan_part(part))
        marked = [one for one in planned if facts(one)["step"] == "mark" and not self._untouched(one, refused)]
        if not marked:
            return
        lines = [f"  {_sentence(entry)}" for entry in marked[:TOLD]]
        if len(marked) > TOLD:
            lines.append(f"  and {len(marked) - TOLD} more, which the manifest names")
        alert(
            f"cloud_actions#{self._run.job_id}",
            subject=f"{len(marked)} cloud resources are marked",
            message=[
                "Each of these offends a check. What its mark says is done unless that changes:",
                "",
                *lines,
                "",
                f"To keep a resource, tag it {KEEP} (any value). To gain time, write a later moment into its mark.",
                f"The job {self._run.job_id} names the manifest that has all of it, once it has ended.",
            ],
        )

    def _report(self, plan: Plan, done: CarriedOut, address: ManifestAddress | None = None) -> Report:
        told = entries(self._s3, self._archive.bucket, self._manifest(plan, done))
        errors = [*plan.facts["errors"], *plan.refusals]
        return report(
            done.tally,
            told,
            errors=errors,
            dry_run=self._run.job.dry_run,
            manifest=address,
            held=plan.facts.get("held", 0),  # plans of earlier versions have none
        )


def refusal(check: str, remedy: Remedy, offending: int, looked_at: int) -> str | None:
    """Why nothing is done about a check's findings, in a sentence, or None.

    Too many at once are rather a mistake in the limits, or in the check, than so much waste.
    """
    if offending <= FEW or offending <= remedy.max_share * looked_at:
        return None
    return (
        f"{check}: {offending} of {looked_at} resources ({offending / max(looked_at, 1):.0%}) offend; "
        f"{remedy.max_share:.0%} may (cloud.remedies.{check}.max_share): nothing is done about them."
    )


def _sentence(entry: Entry) -> str:
    """What the notice says of a resource."""
    said = item(entry)
    owner = f", owner {flat(said.owner)}" if said.owner else ""
    place = f"{flat(said.account)} {flat(said.region)}{owner}"
    return f"{flat(said.resource_id)} ({place}): {BY_ID[said.check].title}. Mark: {flat(said.detail)}"
