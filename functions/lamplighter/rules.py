"""The retention rules in force: the defaults of this file, and those that the settings add or change (S4).

Owners add theirs to the settings, as `retention.rules.<name>` (docs/adding-a-rule.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lamplighter.kernel.errors import NoTable, unfit
from lamplighter.kernel.job import Report
from lamplighter.kernel.ledger.row import Job
from lamplighter.kernel.retention import Archive, BadRule, Delete, Parent, Rule, Set
from lamplighter.kernel.settings import ActionSettings, RuleSettings, Settings, SettingsError

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
"""The defaults."""

OWN: Final = frozenset({"system_logs", "job_history", "resolved_findings", "cloud_reports"})
"""Rules about Lamplighter's own tables, which always act. All others are the owner's: they only preview until the
settings say `apply` for them, by name (REQUIREMENTS S4)."""

MOST: Final = 100
"""Rules that the settings may add: what each did travels from phase to phase of one run (ADR 25)."""

_FLOORS: Final[Mapping[str, timedelta]] = {"audit_log": timedelta(days=1)}
_PHASES: Final = ("plans", "audit_log")
"""Phases of the cleanup that are no rules and that the settings name."""
_TAKEN: Final = frozenset({"stale_jobs", "old_jobs", "uploads"})
"""Phases of the cleanup that no setting names; no rule can be called so."""
_MEANING: Final = ("table", "clock", "clock_unit", "where", "key", "floor_days", "orphan_of", "action")
"""Fields that say what a rule is."""
_CHANGEABLE: Final = frozenset({"table", "clock", "clock_unit", "where", "key"})
"""Of these, what the settings may change about a default rule of the owner's."""
_CLOSED: Final = frozenset({"lamplighter", "pg_catalog", "information_schema", "pg_toast"})
"""Schemas whose tables no rule of the settings names: Lamplighter's own has rules of its own."""
_FIELDS: Final[Mapping[str, str]] = {"keep": "keep_days", "floor": "floor_days"}
"""What the settings call a field of a rule, where not so."""


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
    """What a phase answers that only previews, and whose table is not there, or is not as a default says."""

    dry_run: bool = True
    missing: str
    """Which table, column or right, in a sentence."""


def unless_missing(name: str, body: Body) -> Body:
    """The body of a phase of the owner's, for which a missing table is no error until the settings apply the phase.

    No deployment makes the owner's tables. The defaults name tables that an application need not have, or has with
    other columns and types, or keeps closed to Lamplighter. A rule that the settings add has to fit.
    """

    def previewing(run: PhaseRun) -> Report | Unfinished:
        try:
            return body(run)
        except Exception as error:
            missing = unfit(error)
            excused = previews(name, run.job, run.settings) and not applied(name, run.settings)
            passes = isinstance(missing, NoTable) or name in names()
            if not (missing and passes and excused):
                raise
            run.logger.info("a table is missing", extra={"missing": str(missing)})
            return MissingTable(missing=str(missing))

    return previewing


def names() -> tuple[str, ...]:
    """What `retention.rules` may name without a table: the default rules, and two phases that are none."""
    return (*RULES, *_PHASES)


def added(settings: Settings) -> tuple[str, ...]:
    """The rules that the settings add, in the order in which a run does them."""
    others = {*names(), *_TAKEN}
    return tuple(name for name, given in settings.retention.rules.items() if name not in others and given.table)


def keep(rule: Rule, settings: Settings) -> timedelta:
    """How long `rule` keeps rows under the settings in force. Raises as `in_force`."""
    return checked(settings)[rule.name]


def checked(settings: Settings) -> dict[str, timedelta]:
    """How long each rule keeps rows under the settings in force, by name. Raises as `in_force`."""
    return {name: rule.keep for name, rule in in_force(settings).items()}


def in_force(settings: Settings) -> Mapping[str, Rule]:
    """All rules by name, in the order in which a run does them: the defaults, then those of the settings.

    The `keep` of each is the retention in force.

    Raises:
        SettingsError: a rule contradicts itself, or what is given belongs to no rule. It is raised whichever rule is
            asked for: a misspelt name must not leave a rule at a retention that was not meant (restic #4764).
    """
    mine = added(settings)
    if len(mine) > MOST:
        raise SettingsError(f"retention.rules: takes at most {MOST} rules of your own, got {len(mine)}.")
    for name, given in settings.retention.rules.items():
        if name in _TAKEN:
            raise SettingsError(f"retention.rules.{name}: the cleanup has a phase of this name; choose another.")
        if name not in names() and not given.table:
            known = ", ".join(names())
            raise SettingsError(f"retention.rules: {name} is not a rule (known: {known}); a new one takes a table.")
        if name in _PHASES:
            _check_phase(name, given)
    defaults = {name: _changed(rule, settings.retention.rules.get(name)) for name, rule in RULES.items()}
    return defaults | {name: _new(name, settings.rule(name)) for name in mine}


def _check_phase(name: str, given: RuleSettings) -> None:
    """What is given about a phase that is no rule."""
    if alien := [field for field in _MEANING if getattr(given, field) is not None]:
        raise SettingsError(f"retention.rules.{name}.{alien[0]}: {name} is no rule, and takes none.")
    if given.keep_days is None:
        return
    floor = _FLOORS.get(name)
    if floor is None:
        raise SettingsError(f"retention.rules.{name}.keep_days: {name} takes no days, its rows do not age.")
    if timedelta(days=given.keep_days) < floor:
        least = floor / timedelta(days=1)
        raise SettingsError(
            f"retention.rules.{name}.keep_days: takes at least {least:.4g} days, got {given.keep_days:.4g}."
        )


def _changed(rule: Rule, given: RuleSettings | None) -> Rule:
    """A default rule with what the settings say about it."""
    if given is None:
        return rule
    told = {field: value for field in _MEANING if (value := getattr(given, field)) is not None}
    if fixed := [field for field in told if rule.name in OWN or field not in _CHANGEABLE]:
        advice = "" if rule.name in OWN else "; add a rule of your own"
        raise SettingsError(
            f"retention.rules.{rule.name}.{fixed[0]}: the default rule {rule.name} does not let it be changed{advice}."
        )
    _check_schema(rule.name, given)
    keep = _keep(rule.name, given, told.get("clock", rule.clock), rule.keep)
    with _named_errors(rule.name):
        return replace(rule, keep=keep, **told)


def _new(name: str, given: RuleSettings) -> Rule:
    """A rule of the settings."""
    here, parent, table = f"retention.rules.{name}", given.orphan_of, given.table or ""
    if given.floor_days and not given.clock:
        raise SettingsError(f"{here}.floor_days: {name} takes no days, its rows do not age.")
    _check_schema(name, given)
    with _named_errors(name):
        return Rule(
            name=name,
            table=table,
            clock=given.clock,
            clock_unit=given.clock_unit or "timestamp",
            keep=_keep(name, given, given.clock, timedelta(0)),
            floor=timedelta(days=given.floor_days or 0),
            where="true" if given.where is None else given.where,
            orphan_of=Parent(table=parent.table, column=parent.column, key=parent.key) if parent else None,
            action=_action(given.action),
            key=given.key or "id",
        )


def _check_schema(name: str, given: RuleSettings) -> None:
    for field, table in (("table", given.table), ("action.archive", given.action and given.action.archive)):
        schema, dot, _ = (table or "").partition(".")
        if dot and schema in _CLOSED:
            raise SettingsError(f"retention.rules.{name}.{field}: takes no table of the schema {schema}, got {table}.")


def _action(given: ActionSettings | None) -> Delete | Archive | Set:
    if given and given.archive is not None:
        return Archive(given.archive)
    return Set(given.set) if given and given.set is not None else Delete()


def _keep(name: str, given: RuleSettings, clock: str | None, default: timedelta) -> timedelta:
    """How long the rule keeps rows.

    Raises:
        SettingsError: days are given, and its rows do not age; or none, and the clock is new: 0 would be right for one
            that says when a row expires, and deletes the table by one that says when a row was made.
    """
    here = f"retention.rules.{name}.keep_days"
    if given.keep_days is None and given.clock:
        raise SettingsError(f"{here}: takes days for the clock {given.clock}; 0 if it says when a row expires.")
    if given.keep_days is None:
        return default
    if clock is None:
        raise SettingsError(f"{here}: {name} takes no days, its rows do not age.")
    return timedelta(days=given.keep_days)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turns a contradiction into a sentence that names the field of the settings."""
    try:
        yield
    except BadRule as error:
        field = _FIELDS.get(error.field, error.field)
        raise SettingsError(f"retention.rules.{name}.{field}: {error.reason}.") from None
