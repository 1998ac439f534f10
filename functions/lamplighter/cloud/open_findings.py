"""Reads what a report is made of from the findings in Postgres.

Everything is read in one snapshot; what is open in a place that is scanned no more is left out. Totals are added up by
the database; findings come through a server-side cursor: the memory it takes does not grow with them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.reported import Changes, Point, PriceSource, ReportedFinding, Total, Totals, Unknowns
from lamplighter.cloud.store import Earlier, Section
from lamplighter.cloud.store.model import (
    EXAMPLES,
    NO_OWNER,
    NOTHING,
    SECURITY_CHECKS,
    TREND,
    TREND_STEP,
    added_up,
    merged,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from lamplighter.cloud.blind_spots import Concern, Place

FETCH: Final = 1_000
"""Findings that are read at once."""
_NONE_RESOLVED: Final = datetime.max.replace(tzinfo=UTC)

_SCANNED: Final = """
    (CAST(:places AS json) IS NULL OR (account_id, region) IN (
        SELECT place ->> 0, place ->> 1 FROM json_array_elements(CAST(:places AS json)) AS place
    ))
"""
# Dollars are counted as `totals.counted` says; ties are broken so that each run agrees. An exception that has expired
# since the scan covers nothing.
_JUDGED: Final = f"""
    WITH known AS (
        SELECT id, status, account_id AS account, region, check_id AS "check", kind, title, severity, resource_type,
            resource_id, owner, monthly_usd, confidence, score, since, first_seen_at AS first_seen,
            last_seen_at AS last_seen, resolved_at, reopened_at, times_reopened, evidence,
            CASE WHEN (exemption ->> 'expires')::date >= CAST(:today AS date) THEN exemption END AS exemption
        FROM lamplighter.findings
        WHERE (status = 'open' OR resolved_at > :resolved_after) AND {_SCANNED}
    ), judged AS (
        SELECT *, CASE row_number() OVER (
            PARTITION BY status, account, region, resource_id, exemption IS NULL
            ORDER BY monthly_usd DESC NULLS LAST, confidence DESC, "check"
        ) WHEN 1 THEN coalesce(monthly_usd, 0) ELSE 0 END * (status = 'open')::int AS counted_usd
        FROM known
    )
"""  # noqa: S608 - constants
_TOTALS: Final = """
    SELECT dimension, name, count(*) AS findings, count(DISTINCT (account, region, resource_id)) AS resources,
        sum(counted_usd) AS monthly_usd, sum(counted_usd * confidence) AS weighed_usd
    FROM judged CROSS JOIN LATERAL (VALUES
        ('all', 'all'),
        ('concern', CASE WHEN "check" = ANY(CAST(:security AS text[])) THEN 'security' ELSE 'waste' END),
        ('kind', kind),
        ('owner', coalesce(owner, :nobody)),
        ('region', region),
        ('account', account),
        ('severity', severity)
    ) AS added_up (dimension, name)
    WHERE status = 'open' AND (exemption IS NOT NULL) = :exempted
    GROUP BY dimension, name
    ORDER BY monthly_usd DESC, findings DESC, name
"""
_WHAT_TO_LOOK_AT_FIRST: Final = """
    score DESC NULLS LAST, array_position(ARRAY['critical', 'high', 'medium', 'low', 'informational'], severity),
    first_seen, id
"""
_CHANGED: Final = """
    SELECT count(*) FILTER (WHERE status = 'open' AND first_seen > :since) AS opened,
        count(*) FILTER (WHERE status = 'open' AND first_seen <= :since AND reopened_at > :since) AS reopened,
        count(*) FILTER (WHERE status = 'resolved') AS resolved
    FROM judged WHERE exemption IS NULL
"""
_PRICE_SOURCES: Final = """
    SELECT evidence ->> 'price_source' AS source, count(*) AS findings FROM judged
    WHERE evidence ->> 'price_source' <> '' GROUP BY source ORDER BY findings DESC, source
"""
_UNJUDGED: Final = f"""
    SELECT check_id AS "check", reason, jsonb_array_length(resources) AS resources,
        ARRAY(
            SELECT account_id || '/' || region || '/' || resource
            FROM jsonb_array_elements_text(jsonb_path_query_array(resources, '$[0 to {EXAMPLES - 1}]')) AS resource
        ) AS examples
    FROM lamplighter.unjudged WHERE check_id = ANY(CAST(:checks AS text[])) AND {_SCANNED}
    ORDER BY account_id, region, check_id, reason
"""  # noqa: S608 - constants
_ELSEWHERE: Final = f"""
    SELECT account_id, region, count(*) AS findings FROM lamplighter.findings WHERE status = 'open' AND NOT {_SCANNED}
    GROUP BY account_id, region
"""  # noqa: S608 - constants
_LOOKED: Final = """
    SELECT account_id, region, max(judged_at) AS at,
        CASE WHEN check_id = ANY(CAST(:security AS text[])) THEN 'security' ELSE 'waste' END AS concern
    FROM lamplighter.judged_checks GROUP BY account_id, region, concern
"""
_ALL: Final = "SELECT to_json(judged)::text FROM judged"
"""As text: pydantic parses it far faster than pg8000 parses twenty columns."""
_IS_SECURITY: Final = '"check" = ANY(CAST(:security AS text[]))'
_SECTIONS: Final[Mapping[Section, str]] = {
    "waste": f"exemption IS NULL AND NOT {_IS_SECURITY}",
    "security": f"exemption IS NULL AND {_IS_SECURITY}",
    "exempted": "exemption IS NOT NULL",
}


class OpenFindings:
    """The findings as one snapshot has them, for a report that is made at a moment."""

    def __init__(self, connection: Connection, at: datetime, places: Collection[Place] | None) -> None:
        self._connection = connection
        self._at = at
        self._places = json.dumps(list(places)) if places is not None else None

    @classmethod
    @contextmanager
    def snapshot(cls, engine: Engine, at: datetime, places: Collection[Place] | None = None) -> Iterator[Self]:
        """Opens one; `places` are those that are scanned, where not all count that there ever were."""
        from lamplighter.kernel.database import one_snapshot

        with engine.connect() as connection, connection.begin():
            one_snapshot(connection)
            yield cls(connection, at, places)

    def totals(self) -> Totals:
        """What is open and not exempted, added up."""
        return added_up(self._added_up(exempted=False))

    def exempted(self) -> Total:
        """What is open and exempted."""
        found = self._added_up(exempted=True)
        return found["all"][0] if found else NOTHING

    def price_sources(self) -> list[PriceSource]:
        """Where the prices come from, the most used first."""
        return [PriceSource.model_validate(row) for row in self._judged(_PRICE_SOURCES)]

    def unknown(self) -> list[Unknowns]:
        """What could not be judged when it was last tried, whichever scan that was; the most frequent first."""
        return merged(self._rows(_UNJUDGED, checks=list(BY_ID), places=self._places))

    def elsewhere(self) -> dict[Place, int]:
        """How many findings are open where nothing is scanned any more."""
        found = self._rows(_ELSEWHERE, places=self._places)
        return {(row["account_id"], row["region"]): row["findings"] for row in found}

    def looked(self) -> dict[tuple[Concern, Place], datetime]:
        """When it was last that anybody could look for what is of a concern in a place."""
        found = self._rows(_LOOKED, security=SECURITY_CHECKS)
        return {(row["concern"], (row["account_id"], row["region"])): row["at"] for row in found}

    def earlier(self, job_type: str) -> Earlier | None:
        """The last report of this job type before this one."""
        found = self._rows(
            "SELECT created_at AS at, monthly_usd FROM lamplighter.cloud_reports"
            " WHERE job_type = :job_type AND created_at < :at ORDER BY created_at DESC LIMIT 1",
            job_type=job_type,
            at=self._at,
        )
        return Earlier(**found[0]) if found else None

    def changes(self, earlier: Earlier | None) -> Changes:
        """What happened to findings since the earlier report; without one, all are new."""
        since = earlier.at if earlier else datetime.min.replace(tzinfo=UTC)
        [row] = self._judged(_CHANGED, since=since, resolved_after=since)
        return Changes(
            since=earlier.at if earlier else None, monthly_usd_before=earlier.monthly_usd if earlier else None, **row
        )

    def trend(self, job_type: str) -> list[Point]:
        """What the reports of this job type before this one came to, oldest first."""
        found = self._rows(
            "SELECT DISTINCT ON (step) at, monthly_usd FROM ("
            "SELECT created_at AS at, monthly_usd, date_bin(:step, created_at, :start) AS step"
            " FROM lamplighter.cloud_reports WHERE job_type = :job_type AND created_at >= :start AND created_at < :at"
            ") AS reports ORDER BY step, at DESC",
            step=TREND_STEP,
            start=self._at - TREND,
            job_type=job_type,
            at=self._at,
        )
        return [Point.model_validate(row) for row in found]

    def first(self, section: Section, limit: int) -> list[ReportedFinding]:
        """What to look at first in a section of the page."""
        statement = f"WHERE {_SECTIONS[section]} ORDER BY {_WHAT_TO_LOOK_AT_FIRST} LIMIT :limit"
        return list(self._stream(f"{_ALL} {statement}", limit=limit))

    def each(self) -> Iterator[ReportedFinding]:
        """All that are open: those that are not exempted first, and of them what to look at first."""
        return self._stream(f"{_ALL} ORDER BY exemption IS NOT NULL, {_WHAT_TO_LOOK_AT_FIRST}")

    def each_of_security(self, *, resolved_after: datetime) -> Iterator[ReportedFinding]:
        """Those of security that are open or were resolved after a moment, by account and region."""
        return self._stream(f"{_ALL} WHERE {_IS_SECURITY} ORDER BY account, region, id", resolved_after=resolved_after)

    def _added_up(self, *, exempted: bool) -> Mapping[str, list[Total]]:
        found = defaultdict[str, list[Total]](list)
        for row in self._judged(_TOTALS, nobody=NO_OWNER, exempted=exempted):
            found[row["dimension"]].append(
                Total(
                    name=row["name"],
                    findings=row["findings"],
                    resources=row["resources"],
                    monthly_usd=round(row["monthly_usd"], 2),
                    weighed_usd=round(row["weighed_usd"], 2),
                )
            )
        return found

    def _stream(self, statement: str, **values: Any) -> Iterator[ReportedFinding]:
        from sqlalchemy import text

        found = self._connection.execute(
            text(f"{_JUDGED} {statement}"), self._basis(values), execution_options={"stream_results": True}
        )
        for findings in found.scalars().partitions(FETCH):
            yield from map(ReportedFinding.model_validate_json, findings)

    def _basis(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the view of the findings takes, and `values`."""
        today = self._at.astimezone(UTC).date()
        basis = {"today": today, "resolved_after": _NONE_RESOLVED, "security": SECURITY_CHECKS, "places": self._places}
        return {**basis, **values}

    def _judged(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        return self._rows(f"{_JUDGED} {statement}", **self._basis(values))

    def _rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        from sqlalchemy import text

        return [dict(row) for row in self._connection.execute(text(statement), values).mappings()]
