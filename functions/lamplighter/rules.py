"""Every retention rule of this deployment, in one place. Owners add theirs to `RULES` (docs/adding-a-rule.md)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lamplighter.kernel.errors import NoTable, unreadable
from lamplighter.kernel.job import Report
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.retention import Delete, Rule, Set
from lamplighter.kernel.settings import Settings, SettingsError

if TYPE_CHECKING:
    from lamplighter.kernel.job import Unfinished
    from lamplighter.kernel.phased_job import Body, PhaseRun

RULES: Final[Mapping[str, Rule]] = {
    rule.name: rule
    for rule in (
        Rule(  # REQUIREMENTS B4
            name="downloads",
            table="handled_downloads",
            clock="timestamp",
            keep=timedelta(days=14),
            floor=timedelta(days=1),
            action=Delete(),
        ),
        Rule(  # C16
            name="system_logs",
            table="lamplighter.system_logs",
            clock="created_at",
            keep=timedelta(days=90),
            floor=timedelta(days=7),
            action=Delete(),
        ),
        Rule(  # C16
            name="onboarding_requests",
            table="onboarding_requests",
            clock="completed_at",
            where="status = 'completed'",
            keep=timedelta(hours=24),
            floor=timedelta(hours=1),
            action=Delete(),
        ),
        Rule(  # C16: flagged for review, never deleted
            name="deleted_accounts",
            table="lamplighter.instances",
            clock=None,
            where="EXISTS (SELECT FROM cloud_accounts AS account"
            " WHERE account.id = instances.account_id AND account.deleted_at <= :cutoff)",
            action=Set({"needs_review": True}),
        ),
        Rule(  # E1; a session without an end (NULL, infinity) is never due
            name="sessions",
            table="sessions",
            clock="expires_at",
            action=Delete(),
        ),
        Rule(  # E1; nor is a token that can still be refreshed
            name="tokens",
            table="tokens",
            clock="expires_at",
            where="refresh_expires_at IS NULL OR refresh_expires_at < :cutoff",
            action=Delete(),
        ),
        Rule(  # C14: what is open stays; for a month the scans' actions still look after marks
            name="resolved_findings",
            table="lamplighter.findings",
            clock="resolved_at",
            where="status = 'resolved'",
            keep=timedelta(days=365),
            floor=timedelta(days=31),
            action=Delete(),
        ),
        Rule(  # C7: the bucket keeps the documents as long
            name="cloud_reports",
            table="lamplighter.cloud_reports",
            clock="created_at",
            key="job_id",
            keep=timedelta(days=365),
            floor=timedelta(days=90),
            action=Delete(),
        ),
        Rule(  # B3
            name="job_history",
            table="lamplighter.job_history",
            clock="copied_at",
            key="job_id",
            keep=timedelta(days=30),
            floor=timedelta(days=1),
            action=Delete(),
        ),
    )
}

OWN: Final = frozenset({"system_logs", "job_history", "resolved_findings", "cloud_reports"})
"""Rules about Lamplighter's own tables, which always act. All others are the owner's: they only preview until the
settings say `apply` for them, by name (REQUIREMENTS S4)."""

_FLOORS: Final[Mapping[str, timedelta]] = {"audit_log": timedelta(days=1)}


def in_force(settings: Settings) -> Mapping[str, Rule]:  # noqa: ARG001 - all rules are in this file
    """The rules of a deployment, by name."""
    return RULES


def applied(name: str, settings: Settings) -> bool:
    """Whether runs change the rows of a rule, of `plans` or of `audit_log`, or only preview (REQUIREMENTS S4)."""
    return name in OWN or settings.rule(name).apply


def previews(name: str, job: Job, settings: Settings) -> bool:
    """Whether a run only previews `name`, by the settings of this moment: they may have changed since it was ordered.

    What the settings do not apply acts where the order says `dry_run: false` and `allow_override` is true.
    """
    if job.dry_run or applied(name, settings):
        return job.dry_run
    return not (job.payload.get("dry_run") is False and settings.allow_override)


class MissingTable(Report):
    """What a phase answers that only previews, and whose table is not there."""

    dry_run: bool = True
    missing: str
    """Which table, in a sentence."""


def unless_missing(name: str, body: Body) -> Body:
    """The body of a phase of the owner's, for which a missing table is no error until the settings apply the phase.

    No deployment makes the owner's tables, and the default rules name tables that an application need not have.
    """

    def previewing(run: PhaseRun) -> Report | Unfinished:
        try:
            return body(run)
        except Exception as error:
            missing = error if isinstance(error, NoTable) else unreadable(error)
            excused = previews(name, run.job, run.settings) and not applied(name, run.settings)
            if not (isinstance(missing, NoTable) and excused):
                raise
            run.logger.info("a table is missing", extra={"missing": str(missing)})
            return MissingTable(missing=str(missing))

    return previewing


def names() -> tuple[str, ...]:
    """What `retention.rules` may name: the rules, and two phases of the cleanup that are none."""
    return (*RULES, "plans", "audit_log")


def keep(rule: Rule, settings: Settings) -> timedelta:
    """How long `rule` keeps rows under the settings in force.

    Raises:
        SettingsError: as `checked` does, whichever rule is at fault: a misspelt name must not leave a rule at a
            retention that nobody meant (restic #4764).
    """
    return checked(settings)[rule.name]


def checked(settings: Settings) -> dict[str, timedelta]:
    """How long each rule keeps rows under the settings in force, by name.

    Raises:
        SettingsError: `retention.rules` names no rule, or days for one whose rows do not age, or fewer than its floor.
    """
    kept = {name: rule.keep for name, rule in RULES.items()}
    for name, given in settings.retention.rules.items():
        if name not in names():
            raise SettingsError(f"retention.rules: {name} is not a rule (known: {', '.join(names())}).")
        if (days := given.keep_days) is None:
            continue
        here = f"retention.rules.{name}.keep_days"
        floor = RULES[name].floor if name in RULES else _FLOORS.get(name)
        if floor is None or (name in RULES and RULES[name].clock is None):
            raise SettingsError(f"{here}: {name} takes no days, its rows do not age.")
        if timedelta(days=days) < floor:
            least = floor / timedelta(days=1)
            raise SettingsError(f"{here}: takes at least {least:.4g} days, got {days:.4g}.")
        if name in RULES:
            kept[name] = timedelta(days=days)
    return kept
