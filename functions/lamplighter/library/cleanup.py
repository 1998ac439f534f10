"""Cleanup: the phases that keep tables and ledger tidy, the job types made of them, and the function behind most of it.

All types are executions of the state machine `cleanup`, by schedule, through the API or by hand: `cleanup` every 30
minutes (stale jobs, old jobs, handled downloads, stuck plans), `database_cleanup` daily at 02:00 (C16, and every rule
that no other type applies), `session_cleanup` every 6 hours and `token_cleanup` daily at 03:00 (E1), `upload_cleanup`
hourly (D4), `audit_archive` on the 1st of a month (E1). A run may select any phases there are, and preview them
(REQUIREMENTS B1-B11). What is the owner's is only previewed until the settings apply it by name (S4). Without a
database a run leaves out the phases that need one (P5).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from lamplighter import rules
from lamplighter.kernel import phases
from lamplighter.kernel.job import Context
from lamplighter.kernel.no_database import has_database
from lamplighter.kernel.phased_job import Body, Phase, PhasedJob, State, evenly
from lamplighter.kernel.settings import Settings
from lamplighter.library import old_jobs, plans, rows, stale_jobs

_HERE: Final = "cleanup"


def _rows(name: str, function: str = _HERE) -> Phase:
    """A phase that changes rows: the owner's only where the settings apply it by name."""
    return Phase(function=function, check=rules.in_force, applied=partial(rules.applied, name), database=True)


def _rule(name: str) -> Body:
    return rules.unless_missing(name, partial(rows.body, name))


PHASES: Final[Mapping[str, Phase]] = {
    "stale_jobs": Phase(function=_HERE),
    "old_jobs": Phase(function=_HERE),
    "downloads": _rows("downloads"),
    "plans": _rows("plans"),
    **{name: _rows(name) for name in rules.RULES},
    "uploads": Phase(function="upload-expiry"),
    "audit_log": _rows("audit_log", function="audit-archive"),
}
"""All phases, in the order in which a run does them, and the function that serves each. Every rule is a phase; those
of the settings come last."""

BODIES: Final[Mapping[str, Body]] = {
    "stale_jobs": stale_jobs.body,
    "old_jobs": old_jobs.body,
    "plans": rules.unless_missing("plans", plans.body),
    **{name: _rule(name) for name in rules.RULES},
}
"""Of these, the phases that this function serves."""


def bodies(settings: Settings) -> Mapping[str, Body]:
    """The phases that this function serves under these settings."""
    return {**BODIES, **{name: _rule(name) for name in rules.added(settings)}}


class Housekeeping(PhasedJob):
    """A type of this state machine: its runs may select every rule of the settings, too."""

    def all_phases(self, settings: Settings) -> Mapping[str, Phase]:
        return {**self.catalogue, **{name: _rows(name) for name in rules.added(settings)}}


class DatabaseCleanup(Housekeeping):
    """The type `database_cleanup`, which does the rules that the settings add."""

    def own_spans(self, settings: Settings) -> Mapping[str, tuple[int, int]]:
        return evenly([*self.spans, *rules.added(settings)])


class Cleanup(Housekeeping):
    """The type `cleanup`, whose result has names of its own."""

    def result(self, state: State) -> dict[str, Any]:
        """REQUIREMENTS B9, and the reports of phases that are no part of it where a run selected some.

        Where some phases acted, `previewed` names those that did not: their numbers are what they would have done.
        `without_database` names the phases that were left out because no database is configured.
        `held_by_ramp` says by phase how many due rows were left because the first runs change only a few, `missing`
        which tables of previewed phases are not there.
        """
        stale = state.outcomes.get("stale_jobs")
        told = {
            "status": state.status,
            "cleaned_jobs": state.items("stale_jobs"),
            "cleaned_job_details": stale.report["cleaned_job_details"] if stale else [],
            "old_jobs_deleted": state.items("old_jobs"),
            "old_downloads_deleted": state.items("downloads"),
            "stuck_plans_updated": state.items("plans"),
            "errors": state.sentences,
        }
        others = {name: outcome.report for name, outcome in state.outcomes.items() if name not in self.spans}
        previewed = [name for name, outcome in state.outcomes.items() if outcome.report.get("dry_run")]
        if 0 < len(previewed) < len(state.outcomes):  # else the row's own `dry_run` says it
            told["previewed"] = previewed
        held = {
            name: rows
            for name, outcome in state.outcomes.items()
            if (rows := outcome.report.get("held_by_ramp", 0)) != 0
        }
        if held:
            told["held_by_ramp"] = held
        if not has_database():
            told["without_database"] = [name for name in self.spans if self.catalogue[name].database]
        reports = ((name, outcome.report) for name, outcome in state.outcomes.items())
        if missing := {name: report["missing"] for name, report in reports if "missing" in report}:
            told["missing"] = missing
        return told | ({"phases": others} if others else {})


def _type(job_type: str, *own: str, kind: type[PhasedJob] = Housekeeping) -> PhasedJob:
    return kind(job_type, catalogue=PHASES, spans=evenly(own), target=f"states:{_HERE}")


_SPANS: Final = {"stale_jobs": (20, 90), "old_jobs": (90, 92), "downloads": (92, 95), "plans": (95, 100)}
"""Progress of the type `cleanup` (REQUIREMENTS B8)."""

_ELSEWHERE: Final = frozenset({"downloads", "sessions", "tokens"})
"""Rules that are applied by a type of their own; all others, those that the settings add included, by one."""

TYPES: Final[Mapping[str, PhasedJob]] = {
    "cleanup": Cleanup("cleanup", catalogue=PHASES, spans=_SPANS, target=f"states:{_HERE}"),
    "database_cleanup": _type(
        "database_cleanup", *(name for name in rules.RULES if name not in _ELSEWHERE), kind=DatabaseCleanup
    ),
    "session_cleanup": _type("session_cleanup", "sessions"),
    "token_cleanup": _type("token_cleanup", "tokens"),
    "upload_cleanup": _type("upload_cleanup", "uploads"),
    "audit_archive": _type("audit_archive", "audit_log"),
}


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """A step of the state machine, or a preview of one phase: `{"phase": "downloads", "dry_run": true}`.

    Raises:
        as `phases.begin`, `phases.take`, `phases.pass_over` and `phases.finish`.
    """
    match phases.step_of(event):
        case "begin":
            return phases.begin(event, TYPES)
        case "pass_over":
            return phases.pass_over(event)
        case "finish":
            return phases.finish(event, TYPES)
    return phases.take(event, context, bodies)
