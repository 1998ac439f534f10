"""The routes for what the scans of cloud accounts found: findings, and the reports on them (REQUIREMENTS C7, C14).

They ask the store of findings that the catalogue names: a domain imports no other.
"""

from __future__ import annotations

import base64
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from aws_lambda_powertools.event_handler.router import APIGatewayHttpRouter
from pydantic import Field, FiniteFloat, RootModel

from lamplighter import catalogue
from lamplighter.jobs.http.problems import documented, invalid, not_found
from lamplighter.jobs.http.requests import demand_known_query
from lamplighter.jobs.shown import Answer, JobId, JobTypeName
from lamplighter.kernel.ledger.ledger import utc_now

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
    description="Those that are open, unless `status` says otherwise.",
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
    asked = {
        "status": status,
        "severity": severity,
        "check": check,
        "kind": kind,
        "account": account,
        "region": region,
        "owner": owner,
        "exempted": exempted,
    }
    wanted = {name: value for name, value in asked.items() if value is not None}
    after = Cursor[RowId].parse(cursor).root if cursor is not None else None
    store = catalogue.findings_store()
    rows, end = store.list_findings(wanted, order=order.value, limit=limit, after=after, now=utc_now())
    return Findings(findings=[Finding.model_validate(row) for row in rows], next=_next(end))


@router.get(
    "/api/cloud/findings/<finding_id>",
    summary="Show a finding",
    operation_id="finding",
    tags=CLOUD,
    responses=documented({200: {"description": "The finding"}}, 404, 409),
)
def show_finding(finding_id: Annotated[int, Path(ge=0, lt=2**63)]) -> Finding:
    """REQUIREMENTS C14."""
    if row := catalogue.findings_store().find(finding_id, now=utc_now()):
        return Finding.model_validate(row)
    raise not_found(f"finding_id: there is no finding {finding_id}.")


@router.get(
    "/api/cloud/reports",
    summary="List the reports on cloud cost and security, newest first",
    description="What each came to, and where its documents are. Each job type has its own.",
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
    after = Cursor[JobId].parse(cursor).root if cursor is not None else None
    rows, end = catalogue.findings_store().list_reports(job_type, limit=limit, after=after)
    return Reports(reports=[Reported.model_validate(row) for row in rows], next=_next(end))


def _next(end: tuple[float, Any] | None) -> str | None:
    return str(Cursor[Any](end)) if end else None
