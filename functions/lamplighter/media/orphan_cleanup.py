"""Removes the images and videos of a bucket that no row of the database refers to (REQUIREMENTS A1-A7).

Runs every `media.scan_interval_hours`. Previews unless the settings apply it. Deletes by the protocol of
`kernel.deletion`, and of a versioned bucket only so that `lamplighter.media.undo` can bring everything back.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter.deletion import claims, ramp, versioning
from lamplighter.deletion.ramp import Allowance
from lamplighter.kernel.deletion import (
    PART,
    Archive,
    CarriedOut,
    Entry,
    GovernorLimits,
    Manifest,
    ManifestAddress,
    Measure,
    Plan,
    Refused,
    SourceCount,
    Stop,
    Tally,
    archive_bucket,
    carry_out,
    entries,
    refusals,
    warnings,
)
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, Unfinished, job
from lamplighter.kernel.media import folder_of, scope_of
from lamplighter.media.parameters import Params
from lamplighter.media.recheck import Recheck
from lamplighter.media.removal import Removal
from lamplighter.media.scan import Patterns, Reading, Scan, Scanned, Stopped

if TYPE_CHECKING:
    from sqlalchemy import Connection

GB: Final = 10**9
READING_IS_FRESH: Final = timedelta(minutes=15)
"""How old the second reading may be at most when a part is deleted. A row written since is seen only by the re-check by
index, in its usual forms."""
READINGS_SHARE: Final = 0.1
"""Of a run's time that goes into reading again: what is read in a second is read again after ten."""


class Report(JobReport):
    """What a run found and did (REQUIREMENTS A5), summed over its continuations."""

    scanned_files: int = 0
    """Images and videos below `base_path`."""
    orphaned_files: int = 0
    """Those of them, old enough, that no reference names and no rule keeps."""
    orphaned_bytes: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    would_delete_files: int = 0
    """In a preview, what a run in earnest would have deleted."""
    would_delete_bytes: int = 0
    failed_deletions: list[str] = []
    """`key: error` of the first hundred; the manifest has all."""
    duration_seconds: float = 0.0
    dry_run: bool
    skipped_young: int = 0
    skipped_size_limit: int = 0
    skipped_quarantine: int = 0
    skipped_not_media: int = 0
    """Objects that are not known as image or video, folders among them: never touched."""
    kept_referenced_again: int = 0
    """A row came to name them during the run."""
    kept_changed: int = 0
    kept_ambiguous: int = 0
    """A reference that names no file could mean them."""
    kept_derived: int = 0
    """They derive from a file that is kept."""
    excluded: int = 0
    """A pattern of the settings keeps them."""
    held_by_ramp: int = 0
    """Left for later runs, until this scope has earned more."""
    already_gone: int = 0
    refusals: list[str] = []
    """Why the governor refused, or in a preview would refuse."""
    warnings: list[str] = []
    """What to look at, though it refuses nothing."""
    references: list[SourceCount] = []
    """The account of each column."""
    matched: int = 0
    """References that name an object, over all columns."""
    outside: int = 0
    """References that name something outside of the folder, or elsewhere."""
    unmatched: int = 0
    """References that name nothing that is listed."""
    unmatched_examples: list[str] = []
    missing_files: int = 0
    """References to images and videos that are gone; the manifest names the first of them."""
    manifest: ManifestAddress | None = None
    """What `undo` takes. After a refusal, the plan."""

    def counts(self) -> tuple[int, int]:
        """Files and bytes deleted."""
        return self.deleted_files, self.deleted_bytes


@job(
    "orphan_cleanup",
    params=Params,
    timeout=timedelta(minutes=15),
    singleton=True,
    critical=True,
    enabled_by="media.enabled",
)
def handler(run: Run, params: Params) -> Report | Unfinished:
    """Find the orphans of a bucket, and delete them unless it is a preview.

    Raises:
        Permanent: a parameter names what does not exist or cannot be read in full.
        Refused: the governor refused to delete; nothing was touched.
        DatabaseUnavailable: no database, no answer: nothing more was touched.
    """
    from lamplighter.kernel.aws import client
    from lamplighter.kernel.database import engine

    cleanup = OrphanCleanup(run, params, client("s3"))
    with engine().connect() as connection:
        return cleanup.run(connection)


class OrphanCleanup:
    """One run."""

    def __init__(self, run: Run, params: Params, s3: Any) -> None:
        """`params` are resolved."""
        if not params.bucket:
            raise Permanent("bucket: none is given, and the stack has no media bucket (MEDIA_BUCKET).")
        self._run = run
        self._params = params
        self._rules = run.settings.media
        self._bucket = params.bucket
        self._folder = params.base_path or ""
        self._references = params.references or ()
        self._added = 0 if run.settings.allow_override else len(self._references) - len(self._rules.references)
        """How many of the last columns only this run names."""
        self._min_age = timedelta(hours=params.min_age_hours or 0)
        self._dry_run = params.dry_run is not False
        self._s3 = s3
        self._definition: dict[str, Any] = {
            "bucket": self._bucket,
            "folder": self._folder,
            "references": [
                {name: value for name, value in asdict(reference).items() if not name.startswith("max_")}
                for reference in self._references
            ],
            "derived": list(self._rules.derived),
            "exclude": list(self._rules.exclude),
        }
        self._limits = GovernorLimits(
            max_share=params.max_orphan_share or self._rules.max_orphan_share,
            max_reference_shrink=self._rules.max_reference_shrink,
        )
        self._basis = ramp.definition_of(
            self._definition
            | asdict(self._limits)
            | {
                "references": [asdict(reference) for reference in self._references],
                "min_age_seconds": self._min_age.total_seconds(),
            }
            | ({"added": self._added} if self._added else {})
        )
        """What a plan is made and judged by: of settings that have changed since, no plan is carried out."""
        self._archive = self._archive_of(self._folder)
        configured = folder_of(self._rules.base_path)
        is_within = self._bucket == os.environ.get("MEDIA_BUCKET") and self._folder.startswith(configured)
        self._base = configured if is_within else self._folder
        """The folder whose trust the run uses and earns: that of the settings, for each folder below it (S3)."""

    def _archive_of(self, folder: str) -> Archive:
        """What this run writes down, and what runs of a folder wrote down before."""
        return Archive(
            self._s3,
            archive_bucket(),
            job_type="orphan_cleanup",
            scope=scope_of(self._bucket, folder),
            job_id=self._run.job_id,
        )

    def run(self, connection: Connection) -> Report | Unfinished:
        """Goes on from wherever this run has come to."""
        scan = Scan(
            self._run,
            connection,
            self._s3,
            self._archive,
            bucket=self._bucket,
            folder=self._folder,
            references=self._references,
            added=self._added,
            min_age=self._min_age,
            patterns=Patterns(derived=self._rules.derived, exclude=self._rules.exclude),
        )
        known = self._archive.plan()
        resumed, reading = known is not None, None
        if known is None:
            scanned = Scanned.model_validate(self._run.checkpoint or {"started_at": self._run.now()})
            if scanned.basis != self._basis:  # what was scanned before counts for nothing
                scanned = Scanned(started_at=scanned.started_at, saved=scanned.saved, basis=self._basis)
            try:
                reading = scan.complete(scanned)
            except Stopped as stopped:
                report = self._report(scanned)
                self._run.logger.info("stopped while scanning", extra={"after": scanned.after})
                if stopped.reason == "out_of_time":
                    return Unfinished(checkpoint=scanned.model_dump(mode="json"), report=report)
                return report
            known = self._plan(scanned, reading)
        plan, written = known
        scanned = Scanned.model_validate(plan.facts)
        if resumed:
            scanned.restarts = (self._run.checkpoint or {}).get("restarts", 0)
            if scanned.basis not in (None, self._basis):
                raise Permanent(
                    f"The folder, the references or the limits of run {self._run.job_id} changed since its plan: "
                    "nothing more was deleted. Start a new run."
                )
        accepted = plan.accepted and (not plan.refusals or self._is_overridden)  # the switch may be off again
        if not accepted and not self._dry_run and plan.parts:
            report = self._report(scanned, plan=plan, manifest=written).model_copy(update={"status": "refused"})
            raise Refused([*plan.refusals, self._way_out()], report)
        allowance, limit = self._before_acting(plan)
        recheck = Recheck(connection, self._references, folder=self._folder, max_lag=self._min_age)
        guard = _Guard(self._run, scan, scanned, recheck, reading, demand=self._demand_versioned)
        done = carry_out(
            self._archive,
            parts=plan.parts,
            resumed=resumed,
            read_part=self._archive.plan_part,
            act=Removal(
                guard.keep,
                self._s3,
                bucket=self._bucket,
                planned_at=plan.planned_at,
                max_bytes=int((self._params.max_delete_gb or 0) * GB),
                limit=limit,
                quarantined=self._quarantined(plan),
                dry_run=self._dry_run,
            ),
            stop=guard.stop,
            progress=lambda part, parts: self._run.progress(
                60 + 39 * part // parts, f"{part * PART} orphans dealt with"
            ),
        )
        if done.stopped == "out_of_time":
            report = self._report(scanned, plan=plan, tally=done.tally)
            return Unfinished(checkpoint=scanned.model_dump(mode="json"), report=report)
        manifest = self._archive.write_manifest(self._manifest(plan, done))
        if done.stopped is None:
            self._completed(plan, done, allowance)
        return self._report(scanned, plan=plan, tally=done.tally, manifest=manifest)

    # -- the plan

    def _plan(self, scanned: Scanned, reading: Reading) -> tuple[Plan, ManifestAddress]:
        """Has the governor judge the scan, and writes the plan down."""
        measure = Measure(
            scanned=scanned.files,
            planned=scanned.orphans,
            sources=reading.sources,
            baseline=self._baseline(),
            configured=None if self._run.settings.allow_override else set(map(str, self._rules.references)),
            kept_by_others=scanned.kept_by_added,
        )
        refused = refusals(measure, self._limits)
        plan = Plan(
            job_id=self._run.job_id,
            scope=self._archive.scope,
            planned_at=self._run.now(),
            started_at=scanned.started_at,
            parts=scanned.parts if scanned.orphans else 0,
            references={source.column: source.values for source in reading.sources},
            sources=list(reading.sources),
            missing_files=reading.missing_files,
            missing=list(reading.missing),
            refusals=refused,
            warnings=warnings(measure),
            accepted=not refused or self._is_overridden,
            facts=scanned.model_dump(mode="json"),
        )
        return plan, self._archive.write_plan(plan)

    def _baseline(self) -> dict[str, int] | None:
        """What the references are compared with: of a narrowed run, what its own folder or the configured one had more
        of. A column holds the same references whatever folder is cleaned."""
        own = self._archive.baseline()
        around = self._archive_of(self._base).baseline() if self._base != self._folder else None
        if own is None or around is None:
            return around if own is None else own
        return {column: max(own.get(column, 0), around.get(column, 0)) for column in own | around}

    @property
    def _is_overridden(self) -> bool:
        """Whether both switches let what the governor refuses pass now."""
        return self._params.override and self._run.settings.allow_override

    def _way_out(self) -> str:
        missing = [
            switch
            for switch, on in (
                ("the parameter override", self._params.override),
                ("the setting allow_override", self._run.settings.allow_override),
            )
            if not on
        ]
        return f"Nothing was deleted. To delete all the same, set {' and '.join(missing)} to true."

    # -- acting

    def _before_acting(self, plan: Plan) -> tuple[Allowance | None, int | None]:
        """What an earnest run has to establish before it deletes anything; a preview only looks.

        Returns:
            The ramp's allowance of an earnest run, and how many objects this run may act on.
        """
        trust: dict[str, Any] = {
            "table": ramp.table(),
            "scope": ramp.of_objects(scope_of(self._bucket, self._base)),
            "definition": ramp.definition_of(self._definition | {"folder": self._base}),
            "now": ramp.began(self._run.job_id, self._run.now()),
            "first": ramp.FIRST_OBJECTS,
            "ceiling": self._rules.max_objects,
            "applies": self._rules.ramp,
        }
        if self._dry_run or not plan.parts:
            return None, ramp.look(**trust)
        versioning.demand_versioned(self._s3, self._bucket, allow_unversioned=self._rules.allow_unversioned)
        configured = folder_of(self._run.settings.media.base_path)
        claims.claim(
            self._s3,
            self._bucket,
            self._folder,
            stack=claims.Stack.of_environment(),
            now=self._run.now(),
            also=[configured],
        )
        allowance = ramp.open(run=self._run.job_id, **trust)
        return allowance, allowance.limit

    def _demand_versioned(self) -> None:
        """Called before each part of a run in earnest: somebody may switch versioning off meanwhile (S5)."""
        if self._dry_run or self._rules.allow_unversioned:
            return
        if found := versioning.problem(self._s3, self._bucket):
            raise Permanent(f"{found} Nothing more was deleted.")

    def _obstacles(self) -> list[str]:
        """In a preview, why a run in earnest would delete nothing."""
        if not self._dry_run:
            return []
        taken = claims.look(
            self._s3, self._bucket, self._folder, stack=claims.Stack.of_environment(), now=self._run.now()
        )
        unversioned = None if self._rules.allow_unversioned else versioning.problem(self._s3, self._bucket)
        return [sentence for sentence in (unversioned, taken) if sentence]

    def _quarantined(self, plan: Plan) -> Iterator[Entry] | None:
        """What an earlier run listed long enough ago, in S3's order; None when no quarantine is asked for."""
        hours = self._params.quarantine_hours
        if hours is None:  # a tick that is redriven is scheduled, too
            hours = self._run.settings.media.quarantine_hours if self._run.job.schedule else 0
        if not hours:
            return None
        planned_by = plan.started_at - timedelta(hours=hours)
        manifest = self._archive.earlier(planned_by=planned_by)
        return entries(self._s3, self._archive.bucket, manifest) if manifest else iter(())

    def _completed(self, plan: Plan, done: CarriedOut, allowance: Allowance | None) -> None:
        """What later runs build on: the baseline, and the trust that this run earned."""
        if plan.accepted and self._references == self._run.settings.media.references:
            self._archive.write_baseline(plan.references, planned_at=plan.planned_at, dry_run=self._dry_run)
        if allowance:
            allowance.acted(done.tally.count["deleted"])

    def _manifest(self, plan: Plan, done: CarriedOut) -> Manifest:
        return Manifest(
            job_id=plan.job_id,
            scope=self._archive.scope,
            planned_at=plan.planned_at,
            finished_at=self._run.now(),
            dry_run=self._dry_run,
            complete=done.stopped is None,
            accepted=plan.accepted,
            refusals=plan.refusals,
            references=plan.references,
            sources=plan.sources,
            missing_files=plan.missing_files,
            missing=plan.missing,
            parts=done.parts,
        )

    def _report(
        self,
        scanned: Scanned,
        *,
        plan: Plan | None = None,
        tally: Tally | None = None,
        manifest: ManifestAddress | None = None,
    ) -> Report:
        tally = tally or Tally()
        count, size = tally.count, tally.size
        kept = count + Counter(scanned.kept)
        sources = plan.sources if plan else []
        return Report(
            status="completed_with_errors" if count["failed"] else "completed",
            scanned_files=scanned.files,
            orphaned_files=scanned.orphans,
            orphaned_bytes=scanned.orphan_bytes,
            deleted_files=count["deleted"],
            deleted_bytes=size["deleted"],
            would_delete_files=count["would_delete"],
            would_delete_bytes=size["would_delete"],
            failed_deletions=tally.failures,
            duration_seconds=round((self._run.now() - scanned.started_at).total_seconds(), 3),
            dry_run=self._dry_run,
            skipped_young=scanned.young,
            skipped_size_limit=count["skipped_size_limit"],
            skipped_quarantine=count["kept_quarantine"],
            skipped_not_media=scanned.not_media,
            kept_referenced_again=kept["kept_referenced_again"],
            kept_changed=count["kept_changed"],
            kept_ambiguous=kept["kept_ambiguous"],
            kept_derived=kept["kept_derived"],
            excluded=kept["excluded"],
            held_by_ramp=count["held_by_ramp"],
            already_gone=count["already_gone"],
            refusals=plan.refusals if plan else [],
            warnings=[*plan.warnings, *self._obstacles()] if plan else [],
            references=sources,
            matched=sum(source.matched for source in sources),
            outside=sum(source.outside for source in sources),
            unmatched=sum(source.unmatched for source in sources),
            unmatched_examples=[one for source in sources for one in source.unmatched_examples],
            missing_files=plan.missing_files if plan else 0,
            manifest=manifest,
        )


class _Guard:
    """Decides right before a deletion whether a file is an orphan still."""

    def __init__(
        self,
        run: Run,
        scan: Scan,
        scanned: Scanned,
        recheck: Recheck,
        reading: Reading | None,
        *,
        demand: Callable[[], None],
    ) -> None:
        """`reading` is this invocation's own, None where it has read nothing yet; `demand` raises Permanent."""
        self._run = run
        self._demand = demand
        self._scan = scan
        self._scanned = scanned
        self._recheck = recheck
        self._reading = reading

    def stop(self) -> Stop:
        """Asked before each part: whether to stop. Reads all values again where the reading is no longer fresh."""
        if stopped := self._run.stop():
            return stopped
        try:
            if self._reading is None:
                self._reading = self._scan.reopened(self._scanned)
            elif self._run.now() - self._reading.read_at > min(READING_IS_FRESH, self._reading.took / READINGS_SHARE):
                self._reading = self._scan.read(self._reading.account, self._scanned, probe=False)
        except Stopped as told:
            return told.reason
        return None

    def keep(self, orphans: Sequence[Entry]) -> list[str | None]:
        """Why each is kept after all, None where it is not."""
        assert self._reading is not None, "`stop` is asked before each part"
        self._scanned.restarts = 0
        self._demand()
        verdicts = self._reading.verdicts(orphans)
        named = self._recheck.named([orphan.key for orphan in orphans])
        return ["kept_referenced_again" if n in named else verdict for n, verdict in enumerate(verdicts)]
