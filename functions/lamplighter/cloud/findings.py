"""Findings in Postgres, and how they live: opened, seen again, resolved, reopened (REQUIREMENTS C7, C14).

Beside them what could not be judged, and since when each volume has been seen unattached, which EC2 does not keep (C5).

What a scan says of a check in one region of one account counts unless a later scan's word is there already
(`judged_checks`): so a scan that comes late changes nothing, and two of the same region wait for each other. Only a
check that was judged resolves anything, and only what it was silent about: what it could not judge stays as it is. A
region that is scanned no more keeps its findings, which reports leave out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from lamplighter.cloud.check import Judgement
from lamplighter.cloud.inventory import Volume
from lamplighter.cloud.store.model import UNWATCHED, Recorded, by_reason, stored

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lamplighter.cloud.exemptions import Exemptions

_JUDGED: Final = """
    INSERT INTO lamplighter.judged_checks (account_id, region, check_id, judged_at, job_id)
    SELECT :account, :region, check_id, :now, :job_id
    FROM json_array_elements_text(CAST(:judged AS json)) AS check_id ORDER BY check_id
    ON CONFLICT (account_id, region, check_id) DO UPDATE SET judged_at = excluded.judged_at, job_id = excluded.job_id
    WHERE judged_checks.judged_at <= excluded.judged_at
    RETURNING check_id
"""
"""In the order of their ids, so that of two scans one waits for the other and not each for each."""

_FOUND: Final = """
    WITH before AS (
        SELECT check_id, resource_id, status FROM lamplighter.findings WHERE account_id = :account AND region = :region
    ), seen AS (
        INSERT INTO lamplighter.findings (account_id, region, check_id, resource_id, resource_type, kind, title,
            severity, owner, monthly_usd, confidence, score, since, evidence, exemption, status, first_seen_at,
            last_seen_at, job_id)
        SELECT :account, :region, found.*, 'open', :now, :now, :job_id
        FROM jsonb_to_recordset(CAST(:found AS jsonb)) AS found (check_id text, resource_id text, resource_type text,
            kind text, title text, severity text, owner text, monthly_usd float8, confidence float8, score float8,
            since timestamptz, evidence jsonb, exemption jsonb)
        ON CONFLICT (account_id, region, check_id, resource_id) DO UPDATE SET
            resource_type = excluded.resource_type, kind = excluded.kind, title = excluded.title,
            severity = excluded.severity, owner = excluded.owner, monthly_usd = excluded.monthly_usd,
            confidence = excluded.confidence, score = excluded.score, since = excluded.since,
            evidence = excluded.evidence, status = 'open',
            exemption = CASE WHEN :exemptions_known THEN excluded.exemption ELSE findings.exemption END,
            last_seen_at = excluded.last_seen_at, resolved_at = NULL, job_id = excluded.job_id,
            reopened_at = CASE findings.status WHEN 'resolved' THEN excluded.last_seen_at ELSE findings.reopened_at END,
            times_reopened = findings.times_reopened + (findings.status = 'resolved')::int
        RETURNING check_id, resource_id
    )
    SELECT count(*) FILTER (WHERE status IS NULL) AS opened, count(*) FILTER (WHERE status = 'resolved') AS reopened,
        count(*) FILTER (WHERE status = 'open') AS still_open
    FROM seen LEFT JOIN before USING (check_id, resource_id)
"""

_SILENT: Final = """
    UPDATE lamplighter.findings SET status = 'resolved', resolved_at = :now, job_id = :job_id
    WHERE account_id = :account AND region = :region AND status = 'open'
        AND check_id IN (SELECT json_array_elements_text(CAST(:judged AS json)))
        AND NOT EXISTS (
            SELECT FROM json_to_recordset(CAST(:named AS json)) AS named (check_id text, resource_id text)
            WHERE (named.check_id, named.resource_id) = (findings.check_id, findings.resource_id)
        )
"""

_UNJUDGED_BEFORE: Final = """
    DELETE FROM lamplighter.unjudged
    WHERE account_id = :account AND region = :region AND read_at <= :now
        AND check_id IN (SELECT json_array_elements_text(CAST(:asked AS json)))
"""

_UNJUDGED: Final = """
    INSERT INTO lamplighter.unjudged (account_id, region, check_id, reason, resources, read_at, job_id)
    SELECT :account, :region, said.*, :now, :job_id
    FROM jsonb_to_recordset(CAST(:unjudged AS jsonb)) AS said (check_id text, reason text, resources jsonb)
    WHERE NOT EXISTS (
        SELECT FROM lamplighter.judged_checks AS judged
        WHERE (judged.account_id, judged.region, judged.check_id) = (:account, :region, said.check_id)
            AND judged.judged_at > :now
    )
    ON CONFLICT DO NOTHING
"""
"""What a later scan could judge, one that comes late is silent about."""

_ATTACHED: Final = """
    DELETE FROM lamplighter.unattached_volumes
    WHERE account_id = :account AND region = :region AND first_seen_at <= :now
        AND volume_id NOT IN (SELECT json_array_elements_text(CAST(:volumes AS json)))
"""

_UNATTACHED: Final = """
    INSERT INTO lamplighter.unattached_volumes AS kept (account_id, region, volume_id, first_seen_at, last_seen_at)
    SELECT :account, :region, volume_id, :now, :now
    FROM json_array_elements_text(CAST(:volumes AS json)) AS volume_id
    ON CONFLICT (account_id, region, volume_id) DO UPDATE SET
        first_seen_at = CASE WHEN kept.last_seen_at < :watched_since THEN excluded.first_seen_at
            ELSE kept.first_seen_at END,
        last_seen_at = greatest(kept.last_seen_at, excluded.last_seen_at)
"""

_SINCE: Final = """
    SELECT volume_id, first_seen_at FROM lamplighter.unattached_volumes
    WHERE account_id = :account AND region = :region AND last_seen_at >= :watched_since
"""

_PLACES: Final = """
    SELECT DISTINCT account_id, region FROM lamplighter.findings
    WHERE check_id IN (SELECT json_array_elements_text(CAST(:checks AS json)))
        AND (status = 'open' OR resolved_at > :resolved_after)
    ORDER BY account_id, region
"""

_OPEN: Final = """
    SELECT check_id, resource_id, coalesce(reopened_at, first_seen_at) AS since FROM lamplighter.findings
    WHERE account_id = :account AND region = :region AND status = 'open'
"""

_ONE_AT_A_TIME: Final = (
    "SELECT pg_advisory_xact_lock(hashtextextended('unattached_volumes/' || :account || '/' || :region, 0))"
)


def record(
    connection: Connection,
    judgement: Judgement,
    *,
    account: str,
    region: str,
    job_id: str,
    now: datetime,
    exemptions: Exemptions | None,
) -> Recorded:
    """Bring what a scan found into the store, in the caller's transaction; doing it twice is the same as once.

    Args:
        now: when the region was read, by which scans are ordered.
        exemptions: a finding that one covers is stored with it; None where they are not known: each stays as it was.
    """
    here: dict[str, Any] = {"account": account, "region": region, "job_id": job_id, "now": now}
    current = {row.check_id for row in _execute(connection, _JUDGED, judged=sorted(judgement.judged), **here)}
    # By resource: were a check to find one twice, the database would refuse all.
    found = {(one.check, one.resource_id): one for one in judgement.findings if one.check in current}
    rows = [stored(finding, exemptions, now) for finding in found.values()]
    [counts] = _execute(connection, _FOUND, found=rows, exemptions_known=exemptions is not None, **here)
    unknown = {(one.check, one.resource_id) for one in judgement.unknown}
    judged = sorted(check for check in current if (check, "*") not in unknown)
    named = [{"check_id": check, "resource_id": resource} for check, resource in found.keys() | unknown]
    resolved = _execute(connection, _SILENT, judged=judged, named=named, **here)
    unjudged = by_reason(one for one in judgement.unknown if one.check in current or one.check not in judgement.judged)
    asked = sorted(current | {one["check_id"] for one in unjudged})
    _execute(connection, _UNJUDGED_BEFORE, asked=asked, **here)
    _execute(connection, _UNJUDGED, unjudged=unjudged, **here)
    return Recorded(
        opened=counts.opened,
        reopened=counts.reopened,
        still_open=counts.still_open,
        resolved=resolved.rowcount,
        exempted=sum(row["exemption"] is not None for row in rows),
        superseded=judgement.judged - current,
    )


def unattached_since(
    connection: Connection, *, account: str, region: str, volumes: Iterable[Volume], now: datetime
) -> dict[str, datetime]:
    """Since when each unattached volume has been seen so, in the caller's transaction (REQUIREMENTS C5).

    The first sight is kept; it is forgotten when the volume is attached again, or gone, or when nobody has looked for
    longer than `UNWATCHED`.

    Args:
        volumes: all of the region, as they were read at `now`.
    """
    here: dict[str, Any] = {"account": account, "region": region}
    unattached = sorted(volume.id for volume in volumes if not volume.instances)
    _execute(connection, _ONE_AT_A_TIME, **here)
    _execute(connection, _ATTACHED, volumes=unattached, now=now, **here)
    _execute(connection, _UNATTACHED, volumes=unattached, now=now, watched_since=now - UNWATCHED, **here)
    return first_sights(connection, account=account, region=region, now=now)


def first_sights(connection: Connection, *, account: str, region: str, now: datetime) -> dict[str, datetime]:
    """Since when volumes have been seen unattached, as the last scan left it, unless that was too long ago."""
    rows = _execute(connection, _SINCE, account=account, region=region, watched_since=now - UNWATCHED)
    return {row.volume_id: row.first_seen_at for row in rows}


def places(connection: Connection, *, checks: Iterable[str], resolved_after: datetime) -> list[tuple[str, str]]:
    """The accounts and regions with findings of these checks that are open, or were resolved after a moment."""
    rows = _execute(connection, _PLACES, checks=sorted(checks), resolved_after=resolved_after)
    return [(row.account_id, row.region) for row in rows]


def open_since(connection: Connection, *, account: str, region: str) -> dict[tuple[str, str], datetime]:
    """The open findings of a region by check and resource, and since when each has been open without a break."""
    rows = _execute(connection, _OPEN, account=account, region=region)
    return {(row.check_id, row.resource_id): row.since for row in rows}


def _execute(connection: Connection, statement: str, **values: Any) -> Any:
    """The statement's result; lists go as one parameter of JSON, however long they are."""
    from sqlalchemy import text

    given = {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}
    return connection.execute(text(statement), given)
