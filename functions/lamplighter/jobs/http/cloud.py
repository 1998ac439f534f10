"""The routes for what the scans of cloud accounts found: findings, and the reports on them (REQUIREMENTS C7, C14).

They read the tables, which are the kernel's migrations', by themselves: a domain imports no other.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from aws_lambda_powertools.event_handler.router import APIGatewayHttpRouter
from pydantic import Field, FiniteFloat, RootModel

from lamplighter.jobs.http.problems import conflict, documented, invalid, not_found
from lamplighter.jobs.http.requests import demand_known_query
from lamplighter.jobs.shown import Answer, JobId, JobTypeName

router = APIGatewayHttpRouter()  # type: ignore[no-untyped-call]

CLOUD: Final = ["Cloud"]

Severity = Literal["informational", "low", "medium", "high", "critical"]
Name = Annotated[str | None, Query(pattern="^[a-z][a-z0-9_]{0,63}$")]
Limit = Annotated[int, Query(ge=1, le=100, description="On a page, at most.")]
Place = Annotated[str | None, Query(max_length=4096, description="`next` of the page before.")]


class Order(StrEnum):
    """What comes first."""

    COST = "cost"
    NEWEST = "newest"


_MICROSECONDS: Final = "CAST(extract(epoch FROM {column}) * 1000000 AS double precision)"
_BY: Final[Mapping[Order, str]] = {
    Order.COST: "coalesce(monthly_usd, -1)",
    Order.NEWEST: _MICROSECONDS.format(column="first_seen_at"),
}
"""Numbers, which a cursor holds exactly."""

_EXEMPTION: Final = "CASE WHEN (exemption ->> 'expires')::date >= (now() AT TIME ZONE 'UTC')::date THEN exemption END"
"""One that has expired since the scan covers nothing, as in the reports (REQUIREMENTS C13)."""
_FINDING: Final = f"""
    id, status, account_id AS account, region, check_id AS "check", kind, title, severity, resource_type, resource_id,
    owner, monthly_usd, confidence, score, since, first_seen_at AS first_seen, last_seen_at AS last_seen, resolved_at,
    reopened_at, times_reopened, {_EXEMPTION} AS exemption, evidence, job_id
"""
_REPORT: Final = (
    "job_id, job_type, created_at, monthly_usd, (totals -> 'all' ->> 'findings')::int AS findings, documents"
)


class Cursor[Id](RootModel[tuple[FiniteFloat, Id]]):
    """Where a page ended: at which number, and after which row of that number."""

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote.

        Raises:
            Problem: 422, it is none.
        """
        try:
            return cls.model_validate_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except ValueError:
            sentence = "query.cursor: takes the `next` of the page before, as it is."
            raise invalid([("query.cursor", sentence)]) from None


RowId = Annotated[int, Field(ge=0, lt=2**63)]


class Finding(Answer):
    """Something that a check found wrong with a resource."""

    id: int
    status: Literal["open", "resolved"]
    account: str
    region: str
    check: str
    kind: str
    title: str
    severity: Severity
    resource_type: str
    """In the terms of the AWS Security Finding Format."""
    resource_id: str
    owner: str | None
    monthly_usd: float | None
    """What it costs a month; null where nothing has a price."""
    confidence: float
    """How sure the check is, from 0 to 1."""
    score: float | None
    """Dollars weighed by confidence and age."""
    since: datetime | None
    """Since when the resource has offended, where that is known."""
    first_seen: datetime
    last_seen: datetime
    resolved_at: datetime | None
    reopened_at: datetime | None
    times_reopened: int
    exemption: dict[str, Any] | None
    """The exception that covers it: its reason, its owner, its last day."""
    evidence: dict[str, Any]
    job_id: str
    """The run that saw it last, or that found it resolved."""


class Findings(Answer):
    """A page of findings."""

    findings: list[Finding]
    next: str | None = None
    """The cursor of the next page; null after the last."""


class Reported(Answer):
    """A report, in short."""

    job_id: JobId
    job_type: JobTypeName
    created_at: datetime
    monthly_usd: float
    findings: int
    documents: dict[str, str]
    """Where `json`, `csv`, `html` and `asff` lie."""


class Reports(Answer):
    """A page of reports."""

    reports: list[Reported]
    next: str | None = None
    """The cursor of the next page; null after the last."""


@router.get(
    "/api/cloud/findings",
    summary="List findings, the most expensive or the newest first",
    description="Those that are open, unless `status` says otherwise. 409 where no database is configured.",
    operation_id="findings",
    tags=CLOUD,
    responses=documented({200: {"description": "A page of findings"}}, 409),
    middlewares=[demand_known_query],
)
def list_findings(
    *,
    status: Annotated[Literal["open", "resolved"], Query()] = "open",
    severity: Annotated[Severity | None, Query()] = None,
    check: Name = None,
    kind: Name = None,
    account: Annotated[str | None, Query(pattern="^[0-9]{12}$")] = None,
    region: Annotated[str | None, Query(pattern="^[a-z]{2}(-[a-z0-9]{1,16}){1,4}$")] = None,
    owner: Annotated[str | None, Query(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")] = None,
    exempted: Annotated[bool | None, Query(description="Only those that an exception covers, or none of them.")] = None,
    order: Annotated[Order, Query()] = Order.COST,
    limit: Limit = 25,
    cursor: Place = None,
) -> Findings:
    """REQUIREMENTS C14."""
    wanted = {
        "status": status,
        "severity": severity,
        "check_id": check,
        "kind": kind,
        "account_id": account,
        "region": region,
        "owner": owner,
        f"({_EXEMPTION} IS NOT NULL)": exempted,
    }
    place = Cursor[RowId].parse(cursor) if cursor is not None else None
    found, end = _page("lamplighter.findings", _FINDING, wanted, by=(_BY[order], "id"), limit=limit, place=place)
    return Findings(findings=[Finding.model_validate(row) for row in found], next=end)


@router.get(
    "/api/cloud/findings/<finding_id>",
    summary="Show a finding",
    description="409 where no database is configured.",
    operation_id="finding",
    tags=CLOUD,
    responses=documented({200: {"description": "The finding"}}, 404, 409),
)
def show_finding(finding_id: Annotated[int, Path(ge=0, lt=2**63)]) -> Finding:
    """REQUIREMENTS C14."""
    for row in _rows(f"SELECT {_FINDING} FROM lamplighter.findings WHERE id = :id", id=finding_id):  # noqa: S608 - constants
        return Finding.model_validate(row)
    raise not_found(f"finding_id: there is no finding {finding_id}.")


@router.get(
    "/api/cloud/reports",
    summary="List the reports on cloud cost and security, newest first",
    description="What each came to, and where its documents are. Each job type has its own. 409 where no database is "
    "configured.",
    operation_id="reports",
    tags=CLOUD,
    responses=documented({200: {"description": "A page of reports"}}, 409),
    middlewares=[demand_known_query],
)
def list_reports(
    *,
    job_type: Name = None,
    limit: Limit = 25,
    cursor: Place = None,
) -> Reports:
    """REQUIREMENTS C7."""
    by = _MICROSECONDS.format(column="created_at"), "job_id"
    place = Cursor[JobId].parse(cursor) if cursor is not None else None
    found, end = _page("lamplighter.cloud_reports", _REPORT, {"job_type": job_type}, by=by, limit=limit, place=place)
    return Reports(reports=[Reported.model_validate(row) for row in found], next=end)


def _page(
    table: str,
    columns: str,
    wanted: Mapping[str, Any],
    *,
    by: tuple[str, str],
    limit: int,
    place: Cursor[Any] | None,
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit` rows in which each of `wanted` that is not None is so, and the cursor of the next page.

    They come by a number and, where it is the same, by what is unique, both descending.
    """
    given = [(what, value) for what, value in wanted.items() if value is not None]
    conditions = [f"{what} = :p{n}" for n, (what, _) in enumerate(given)]
    values = {f"p{n}": value for n, (_, value) in enumerate(given)}
    number, unique = by
    if place:
        conditions.append(f"({number}, {unique}) < (:number, :unique)")
        values |= {"number": place.root[0], "unique": place.root[1]}
    where = " AND ".join(conditions) or "true"
    statement = (
        f"SELECT {columns}, {number} AS number FROM {table} WHERE {where}"  # noqa: S608 - nothing of a caller's
        f" ORDER BY {number} DESC, {unique} DESC LIMIT :limit"
    )
    rows = _rows(statement, limit=limit + 1, **values)
    numbers = [row.pop("number") for row in rows]
    end = Cursor[Any]((numbers[limit - 1], rows[limit - 1][unique])) if len(rows) > limit else None
    return rows[:limit], str(end) if end else None


def _rows(statement: str, **values: Any) -> list[dict[str, Any]]:
    """What the database answers.

    Raises:
        Problem: 409, none is configured.
        DatabaseUnavailable: it cannot be reached.
    """
    from sqlalchemy import text

    from lamplighter.kernel.database import NoDatabase, engine

    try:
        with engine().connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]
    except NoDatabase as missing:
        raise conflict("no-database", str(missing)) from None
