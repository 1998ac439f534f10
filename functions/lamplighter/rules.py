"""Every retention rule of this deployment, in one place. Owners add theirs to `RULES` (docs/adding-a-rule.md)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from lamplighter.kernel.retention import Delete, Rule, Set
from lamplighter.kernel.settings import Settings, SettingsError

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
            table="system_logs",
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
            table="instances",
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
            table="findings",
            clock="resolved_at",
            where="status = 'resolved'",
            keep=timedelta(days=365),
            floor=timedelta(days=31),
            action=Delete(),
        ),
        Rule(  # C7: the bucket keeps the documents as long
            name="cloud_reports",
            table="cloud_reports",
            clock="created_at",
            key="job_id",
            keep=timedelta(days=365),
            floor=timedelta(days=90),
            action=Delete(),
        ),
        Rule(  # B3
            name="job_history",
            table="job_history",
            clock="copied_at",
            key="job_id",
            keep=timedelta(days=30),
            floor=timedelta(days=1),
            action=Delete(),
        ),
    )
}


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
        SettingsError: `retention_days` names no rule, or one whose rows do not age, or a value below the rule's floor.
    """
    kept = {name: rule.keep for name, rule in RULES.items()}
    for name, days in settings.retention_days.items():
        if name not in RULES:
            raise SettingsError(f"retention_days: {name} is not a rule (known: {', '.join(RULES)}).")
        rule, wanted = RULES[name], timedelta(days=days)
        if rule.clock is None:
            raise SettingsError(f"retention_days: {name} takes no days, its rows do not age.")
        if wanted < rule.floor:
            floor = rule.floor / timedelta(days=1)
            raise SettingsError(f"retention_days: {name} takes at least {floor:.4g} days, got {days:.4g}.")
        kept[name] = wanted
    return kept
