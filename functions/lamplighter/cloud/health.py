"""The health check: brings the table `instances` up to date with what there is and how it does (REQUIREMENTS C15).

Daily at 00:00 UTC, a region at a time. An instance that is new is added; one that has vanished is marked `terminated`
and stays, whether it is to be reviewed is not this job's to say. What could not be read stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from lamplighter.cloud import answers, reader
from lamplighter.cloud.access import failures
from lamplighter.cloud.inventory import Inventory, Series
from lamplighter.kernel import fan_out
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import Report, Run

if TYPE_CHECKING:
    from lamplighter.cloud.reader import ClientOf
    from lamplighter.cloud.targets import Target

NEEDS: Final = frozenset({"instances", "cpu", "memory"})
STATUS_CHECKS: Final = ("SystemStatus", "InstanceStatus", "AttachedEbsStatus")
WORST_FIRST: Final = ("impaired", "insufficient-data", "initializing", "ok", "not-applicable")
"""What status checks say ("Status checks for Amazon EC2 instances")."""

_PRESENT: Final = """
    INSERT INTO lamplighter.instances (id, account_id, region, instance_type, state, status, cpu_percent,
        memory_percent, measured_at, updated_at)
    SELECT id, :account, :region, instance_type, state, status, cpu_percent, memory_percent,
        CASE WHEN :measured THEN CAST(:now AS timestamptz) END, :now
    FROM json_to_recordset(CAST(:instances AS json)) AS present (id text, instance_type text, state text, status text,
        cpu_percent float8, memory_percent float8)
    ON CONFLICT (id) DO UPDATE SET
        account_id = excluded.account_id, region = excluded.region, instance_type = excluded.instance_type,
        state = excluded.state, updated_at = excluded.updated_at,
        status = CASE WHEN :checked THEN excluded.status ELSE instances.status END,
        cpu_percent = CASE WHEN :measured THEN excluded.cpu_percent ELSE instances.cpu_percent END,
        memory_percent = CASE WHEN :measured THEN excluded.memory_percent ELSE instances.memory_percent END,
        measured_at = coalesce(excluded.measured_at, instances.measured_at)
    WHERE instances.updated_at <= excluded.updated_at
"""
"""A check that comes late writes over no later one's."""

_VANISHED: Final = """
    UPDATE lamplighter.instances SET state = 'terminated', status = NULL, updated_at = :now
    WHERE account_id = :account AND region = :region AND state IS DISTINCT FROM 'terminated' AND updated_at <= :now
        AND id NOT IN (SELECT id FROM json_to_recordset(CAST(:instances AS json)) AS present (id text))
"""


class Examined(Report):
    """What the health check found in a region."""

    instances: int = 0
    impaired: int = 0
    """Those that fail a status check."""
    terminated: int = 0
    """Those that were there and are gone."""
    api_calls: int = 0
    seconds: float = 0
    remark: str | None = None
    """What could not be read."""

    def counts(self) -> tuple[int, int]:
        """Instances; their size does not matter here."""
        return self.instances, 0


def examine(clients: ClientOf, target: Target, run: Run, now: datetime) -> Examined:
    """Bring the instances of a region up to date.

    Raises:
        Permanent: they cannot be read; their rows stay as they were.
        Retryable: AWS or the database cannot be reached; likewise.
    """
    here = {"account": target.account, "region": target.region}
    day = replace(run.settings.cloud.limits, idle_days=1)
    inventory = reader.read(clients, **here, now=now, limits=day, needs=NEEDS)
    if "instances" in inventory.gaps:
        raise Permanent(f"The instances cannot be read: {inventory.gaps['instances']}")
    gaps = dict(inventory.gaps)
    try:
        checked: Mapping[str, str] = statuses(clients("ec2"))
    except failures() as error:
        checked, gaps["status"] = {}, str(error)
    fan_out.ask(run)
    rows = present(inventory, checked)
    known = {"checked": "status" not in gaps, "measured": not gaps.keys() & {"cpu", "memory"}}
    gone = 0 if run.job.dry_run else _store(rows, now=now, **here, **known)
    remark = fan_out.short("; ".join(f"{name}: {why}" for name, why in sorted(gaps.items())), fan_out.REMARK)
    return Examined(
        instances=len(rows),
        impaired=sum(row["status"] == "impaired" for row in rows),
        terminated=gone,
        remark=f"{target.account}/{target.region}: {remark}" if remark else None,
    )


def statuses(ec2: Any) -> dict[str, str]:
    """The worst of each running instance's status checks.

    Raises:
        answers.UnexpectedAnswer: an answer, or an item of it, is not as the operation is documented.
    """
    worst, operation = {}, "DescribeInstanceStatus"
    with answers.read_by_boto3(operation):
        for page in ec2.get_paginator("describe_instance_status").paginate():
            for one in answers.member(page, "InstanceStatuses", operation):
                instance = answers.member(one, "InstanceId", operation, "one")
                checks = [one[name]["Status"] for name in STATUS_CHECKS if name in one]
                if not checks:
                    raise answers.UnexpectedAnswer(f"{operation}: {instance} has no status check.")
                worst[instance] = min(checks, key=_rank)
    return worst


def present(inventory: Inventory, checked: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of what there is; CPU and memory are the highest of the last day, None where nothing was measured."""
    return [
        {
            "id": instance.id,
            "instance_type": instance.type,
            "state": instance.state,
            "status": checked.get(instance.id),
            "cpu_percent": _highest(inventory.cpu.get(instance.id)),
            "memory_percent": _highest(inventory.memory.get(instance.id)),
        }
        for instance in inventory.instances
    ]


def _store(rows: list[dict[str, Any]], **values: Any) -> int:
    """In one transaction; how many have vanished."""
    from sqlalchemy import text

    from lamplighter.kernel.database import engine

    given = {"instances": json.dumps(rows)} | values
    with engine().begin() as connection:
        connection.execute(text(_PRESENT), given)
        return connection.execute(text(_VANISHED), given).rowcount


def _highest(series: Series | None) -> float | None:
    return max(series.known, default=None) if series else None


def _rank(status: str) -> int:
    return WORST_FIRST.index(status) if status in WORST_FIRST else 0
