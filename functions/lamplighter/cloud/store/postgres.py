"""The findings' store in Postgres: tables of the schema `lamplighter` (REQUIREMENTS C7, C14)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from lamplighter.cloud import findings
from lamplighter.cloud.open_findings import OpenFindings
from lamplighter.cloud.store import Known, Order, Page

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lamplighter.cloud.blind_spots import Place
    from lamplighter.cloud.check import Judgement
    from lamplighter.cloud.exemptions import Exemptions
    from lamplighter.cloud.inventory import Volume
    from lamplighter.cloud.reported import WasteReport
    from lamplighter.cloud.store.model import Recorded

_MICROSECONDS: Final = "CAST(extract(epoch FROM {column}) * 1000000 AS double precision)"
_BY: Final[Mapping[Order, str]] = {
    "cost": "coalesce(monthly_usd, -1)",
    "newest": _MICROSECONDS.format(column="first_seen_at"),
}
"""Numbers, which a cursor holds exactly."""
_EXEMPTION: Final = "CASE WHEN (exemption ->> 'expires')::date >= CAST(:today AS date) THEN exemption END"
"""One that has expired since the scan covers nothing, as in the reports (REQUIREMENTS C13)."""
_FINDING: Final = f"""
    id, status, account_id AS account, region, check_id AS "check", kind, title, severity, resource_type, resource_id,
    owner, monthly_usd, confidence, score, since, first_seen_at AS first_seen, last_seen_at AS last_seen, resolved_at,
    reopened_at, times_reopened, {_EXEMPTION} AS exemption, evidence, job_id
"""
_REPORT: Final = (
    "job_id, job_type, created_at, monthly_usd, (totals -> 'all' ->> 'findings')::int AS findings, documents"
)
_COLUMNS: Final = {"check": "check_id", "account": "account_id", "exempted": f"({_EXEMPTION} IS NOT NULL)"}
"""What a field of a finding is in the table, where not its own name."""


class PostgresStore:
    """As `FindingsStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def demand_readable(self, *, account: str, region: str) -> None:  # noqa: ARG002 - the database has all regions
        with self._engine.connect():
            pass

    def record(
        self,
        judgement: Judgement,
        *,
        account: str,
        region: str,
        job_id: str,
        now: datetime,
        exemptions: Exemptions | None,
    ) -> Recorded:
        here = {"account": account, "region": region, "job_id": job_id}
        with self._engine.begin() as connection:
            return findings.record(connection, judgement, **here, now=now, exemptions=exemptions)

    def unattached_since(
        self, *, account: str, region: str, volumes: Iterable[Volume], now: datetime, preview: bool
    ) -> dict[str, datetime]:
        with self._engine.connect() as connection:
            since = findings.unattached_since(connection, account=account, region=region, volumes=volumes, now=now)
            (connection.rollback if preview else connection.commit)()
        return since

    def known(self, *, account: str, region: str, now: datetime) -> Known:
        with self._engine.connect() as connection:
            return Known(
                first_sights=findings.first_sights(connection, account=account, region=region, now=now),
                open_since=findings.open_since(connection, account=account, region=region),
            )

    def places(self, *, checks: Iterable[str], resolved_after: datetime) -> list[Place]:
        with self._engine.connect() as connection:
            return findings.places(connection, checks=checks, resolved_after=resolved_after)

    def snapshot(self, at: datetime, places: Collection[Place] | None = None) -> AbstractContextManager[OpenFindings]:
        return OpenFindings.snapshot(self._engine, at, places)

    def reported_at(self, job_id: str) -> datetime | None:
        rows = self._rows("SELECT created_at FROM lamplighter.cloud_reports WHERE job_id = :job_id", job_id=job_id)
        return rows[0]["created_at"] if rows else None

    def keep_report(self, report: WasteReport) -> None:
        from sqlalchemy import text

        statement = text(
            "INSERT INTO lamplighter.cloud_reports (job_id, job_type, created_at, monthly_usd, totals, documents)"
            " VALUES (:job_id, :job_type, :at, :monthly_usd, CAST(:totals AS jsonb), CAST(:documents AS jsonb))"
            " ON CONFLICT (job_id) DO UPDATE SET monthly_usd = excluded.monthly_usd, totals = excluded.totals,"
            " documents = excluded.documents"
        )
        values = {
            "job_id": report.job_id,
            "job_type": report.job_type,
            "at": report.generated_at,
            "monthly_usd": report.totals.all.monthly_usd,
            "totals": report.totals.model_dump_json(),
            "documents": json.dumps(report.documents),
        }
        with self._engine.begin() as connection:
            connection.execute(statement, values)

    def list_findings(
        self, wanted: Mapping[str, Any], *, order: Order, limit: int, after: tuple[float, int] | None, now: datetime
    ) -> Page:
        by = (_BY[order], "id")
        conditions = {_COLUMNS.get(name, name): value for name, value in wanted.items()}
        return self._page(
            "lamplighter.findings", _FINDING, conditions, by=by, limit=limit, after=after, today=_day(now)
        )

    def find(self, finding_id: int, *, now: datetime) -> dict[str, Any] | None:
        statement = f"SELECT {_FINDING} FROM lamplighter.findings WHERE id = :id"  # noqa: S608 - constants
        rows = self._rows(statement, id=finding_id, today=_day(now))
        return rows[0] if rows else None

    def list_reports(self, job_type: str | None, *, limit: int, after: tuple[float, str] | None) -> Page:
        by = _MICROSECONDS.format(column="created_at"), "job_id"
        wanted = {} if job_type is None else {"job_type": job_type}
        return self._page("lamplighter.cloud_reports", _REPORT, wanted, by=by, limit=limit, after=after)

    def _page(
        self,
        table: str,
        columns: str,
        wanted: Mapping[str, Any],
        *,
        by: tuple[str, str],
        limit: int,
        after: tuple[float, Any] | None,
        **given: Any,
    ) -> Page:
        """Up to `limit` rows in which each of `wanted` is so.

        They come by a number and, where it is the same, by what is unique, both descending.
        """
        conditions = [f"{what} = :p{n}" for n, what in enumerate(wanted)]
        values = given | {f"p{n}": value for n, value in enumerate(wanted.values())}
        number, unique = by
        if after:
            conditions.append(f"({number}, {unique}) < (:number, :unique)")
            values |= {"number": after[0], "unique": after[1]}
        where = " AND ".join(conditions) or "true"
        statement = (
            f"SELECT {columns}, {number} AS number FROM {table} WHERE {where}"  # noqa: S608 - nothing of a caller's
            f" ORDER BY {number} DESC, {unique} DESC LIMIT :limit"
        )
        rows = self._rows(statement, limit=limit + 1, **values)
        numbers = [row.pop("number") for row in rows]
        end = (numbers[limit - 1], rows[limit - 1][unique]) if len(rows) > limit else None
        return Page(rows[:limit], end)

    def _rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        from sqlalchemy import text

        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]


def _day(now: datetime) -> Any:
    return now.astimezone(UTC).date()
