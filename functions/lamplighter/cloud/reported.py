"""What a report on cloud cost and security says: the schema of its `report.json` (docs/reports.md).

Dollars are a month's. Each resource's are counted once, however many findings name it: with the most expensive of
them. So the totals of any one dimension add up to the whole.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from lamplighter.cloud.check import Severity


class Part(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FailedRegion(Part):
    """A region that could not be scanned, and why, in a sentence: its findings are those of an earlier scan."""

    account: str
    region: str
    reason: str


class Unknowns(Part):
    """Resources that a check could not judge, for one reason."""

    check: str
    reason: str
    resources: int
    examples: list[str]
    """Some of them, as `account/region/resource`; `*` for a resource is all that the check looks at."""


class Total(Part):
    """Findings of one kind, owner or the like, added up."""

    name: str
    findings: int
    resources: int
    monthly_usd: float
    weighed_usd: float
    """The same, each finding's weighed by its confidence."""


class Totals(Part):
    """All open findings that are not exempted, added up along each dimension; the most expensive first."""

    all: Total
    concern: list[Total]
    """`waste` and `security`: which of the two the check is about."""
    kind: list[Total]
    owner: list[Total]
    """`nobody` where a resource has no owner."""
    region: list[Total]
    account: list[Total]
    severity: list[Total]


class Changes(Part):
    """What became of findings since the last report of the same job type; without one, all are new."""

    since: AwareDatetime | None
    opened: int
    reopened: int
    resolved: int
    monthly_usd_before: float | None


class Point(Part):
    """What an earlier report, or this one, came to."""

    at: AwareDatetime
    monthly_usd: float


class PriceSource(Part):
    """Where prices come from, and how many findings they price."""

    source: str
    findings: int


class Exemption(BaseModel):
    """Why a finding is accepted, who answers for it, and until when (REQUIREMENTS C13)."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    reason: str
    owner: str
    expires: str
    """The last day of it, in UTC."""


class ReportedFinding(Part):
    """A finding, and where it is in its life (REQUIREMENTS C14)."""

    id: int
    status: Literal["open", "resolved"]
    account: str
    region: str
    check: str
    kind: str
    title: str
    severity: Severity
    resource_type: str
    resource_id: str
    owner: str | None
    monthly_usd: float | None
    counted_usd: float
    """What of it is in the totals: nothing where another finding has the resource's dollars, or it is resolved."""
    confidence: float
    score: float | None
    since: AwareDatetime | None
    """Since when the resource has offended, where that is known."""
    first_seen: AwareDatetime
    last_seen: AwareDatetime
    resolved_at: AwareDatetime | None
    reopened_at: AwareDatetime | None
    times_reopened: int
    exemption: Exemption | None
    evidence: dict[str, Any]


class WasteReport(Part):
    """A report without its findings."""

    schema_version: Literal[1] = 1
    job_id: str
    job_type: str
    generated_at: AwareDatetime
    totals: Totals
    exempted: Total
    """Findings that an exception covers; they are in no other total."""
    changes: Changes
    trend: list[Point]
    """Of the last 90 days, this report last."""
    unknown: list[Unknowns]
    regions_failed: list[FailedRegion]
    remarks: list[str]
    """Sentences on the report as a whole, such as that the exceptions could not be read."""
    price_sources: list[PriceSource]
    documents: dict[str, str]
    """Where `json`, `csv`, `html` and `asff` lie, as `s3://` addresses."""


class Document(WasteReport):
    """`report.json`: a report and its findings, those with the highest score first."""

    findings: list[ReportedFinding]
    exempted_findings: list[ReportedFinding]
