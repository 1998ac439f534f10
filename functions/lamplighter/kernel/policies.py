"""How jobs are timed and retried under the settings in force."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

from lamplighter.kernel.ledger.row import Policy
from lamplighter.kernel.settings import Settings

OUTSIDE_HEARTBEAT: Final = timedelta(minutes=5)
"""A worker outside Lambda that has sent heartbeats and is silent for this long is dead."""


def under(settings: Settings, policy: Policy) -> Policy:
    """The policy with the retries and the poison guard that the settings say (REQUIREMENTS K5, K10)."""
    return replace(
        policy,
        max_attempts=settings.jobs.retry_max_attempts,
        backoff_base=timedelta(seconds=settings.jobs.retry_base_seconds),
        backoff_cap=timedelta(seconds=settings.jobs.retry_cap_seconds),
        poison_rescues=settings.jobs.poison_rescues,
        poison_window=timedelta(hours=settings.jobs.poison_window_hours),
    )


def outside(job_type: str, settings: Settings) -> Policy:
    """The policy of a job that a worker outside Lambda does: its type's timeout, to be picked up and to run (B1)."""
    timeout = settings.job_timeout(job_type)
    return under(settings, Policy(timeout=timeout, pickup=timeout, heartbeat=OUTSIDE_HEARTBEAT, target="bus"))
