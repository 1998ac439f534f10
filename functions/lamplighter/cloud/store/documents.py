"""The documents that the S3 store keeps, and what a scan changes in one: pure, without a bucket (REQUIREMENTS C5, C14).

A document of an account's region holds all of its findings, so that one conditional write is one scan's whole word.
`version` is 1; a document of another version is neither read nor written over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from lamplighter.cloud.check import Judgement, Severity
from lamplighter.cloud.inventory import Volume
from lamplighter.cloud.store.model import UNWATCHED, Recorded, by_reason, stored
from lamplighter.kernel.errors import Permanent

if TYPE_CHECKING:
    from lamplighter.cloud.exemptions import Exemptions
    from lamplighter.cloud.reported import WasteReport

MAX_FINDINGS: Final = 100_000
"""Findings of a region that its document holds. More resolved ones are forgotten, the oldest first; more open ones are
refused."""
MAX_REPORTS: Final = 20_000
"""Reports that the index holds, the newest; a year of the default schedules makes 10 220."""
_ID_BITS: Final = 53
"""Of a finding's id: a number that JavaScript reads exactly. Of 100 000 findings two are alike once in two million."""


class Stored(BaseModel):
    """A part of a document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StoredFinding(Stored):
    """A finding and its life."""

    id: int
    status: Literal["open", "resolved"]
    check: str
    resource_id: str
    resource_type: str
    kind: str
    title: str
    severity: Severity
    owner: str | None
    monthly_usd: float | None
    confidence: float
    score: float | None
    since: AwareDatetime | None
    evidence: dict[str, Any]
    exemption: dict[str, Any] | None
    first_seen: AwareDatetime
    last_seen: AwareDatetime
    resolved_at: AwareDatetime | None = None
    reopened_at: AwareDatetime | None = None
    times_reopened: int = 0
    job_id: str


class Judged(Stored):
    """When a check was judged last, and by which scan."""

    at: AwareDatetime
    job_id: str


class Unjudged(Stored):
    """Resources that a check could not judge, for one reason."""

    check: str
    reason: str
    resources: list[str]
    read_at: AwareDatetime
    job_id: str


class RegionFindings(Stored):
    """What the scans say of one region of one account."""

    version: Literal[1] = 1
    account: str
    region: str
    judged: dict[str, Judged] = {}
    """By check."""
    unjudged: list[Unjudged] = []
    findings: list[StoredFinding] = []


class FirstSights(Stored):
    """Since when the volumes of one region have been seen unattached: the first and the last sight of each."""

    version: Literal[1] = 1
    account: str
    region: str
    volumes: dict[str, tuple[AwareDatetime, AwareDatetime]] = {}

    def since(self, now: datetime) -> dict[str, datetime]:
        """The first sight of each volume that was seen of late."""
        return {id_: first for id_, (first, last) in self.volumes.items() if last >= now - UNWATCHED}


class KeptReport(Stored):
    """A report, in short."""

    job_id: str
    job_type: str
    created_at: AwareDatetime
    monthly_usd: float
    findings: int
    documents: dict[str, str]


class ReportIndex(Stored):
    """The reports of a year."""

    version: Literal[1] = 1
    reports: list[KeptReport] = []


def finding_id(account: str, region: str, check: str, resource_id: str) -> int:
    """The id of a finding, made from what it is about. A finding that is found again has its former id."""
    digest = hashlib.sha256("\0".join((account, region, check, resource_id)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest) >> (256 - _ID_BITS)


def scanned(
    before: RegionFindings,
    judgement: Judgement,
    *,
    job_id: str,
    now: datetime,
    exemptions: Exemptions | None,
    keep_resolved: timedelta,
) -> tuple[RegionFindings, Recorded]:
    """The region's document after a scan, and what the scan changed.

    What a check says counts unless a later scan has judged it. Only a check that was judged resolves anything, and
    only what it was silent about.

    Args:
        before: the document as it was read.
        judgement: what the checks say.
        job_id: the scan's.
        now: when the region was read, by which scans are ordered.
        exemptions: of this deployment; None where they are not known: each finding keeps its own.
        keep_resolved: how long resolved findings are kept.

    Raises:
        Permanent: so many findings are open that a document does not hold them.
    """
    current = {check for check in judgement.judged if check not in before.judged or before.judged[check].at <= now}
    found = {
        (row["check_id"], row["resource_id"]): row
        for one in judgement.findings
        if one.check in current
        for row in [stored(one, exemptions, now)]
    }
    unknown = {(one.check, one.resource_id) for one in judgement.unknown}
    resolving = {check for check in current if (check, "*") not in unknown}
    counts = dict.fromkeys(("opened", "reopened", "still_open", "resolved"), 0)
    findings: list[StoredFinding] = []
    unseen = dict(found)
    for one in before.findings:
        key = (one.check, one.resource_id)
        if row := unseen.pop(key, None):
            counts["still_open" if one.status == "open" else "reopened"] += 1
            findings.append(_seen_again(one, row, job_id, now, exemptions_known=exemptions is not None))
        elif one.status == "open" and one.check in resolving and key not in unknown:
            counts["resolved"] += 1
            gone = {"status": "resolved", "resolved_at": now, "job_id": job_id}
            findings.append(one.model_copy(update=gone))
        elif one.resolved_at is None or one.resolved_at + keep_resolved > now:
            findings.append(one)
    counts["opened"] = len(unseen)
    findings += [_opened(before, row, job_id, now) for row in unseen.values()]
    after = before.model_copy(
        update={
            "judged": before.judged | dict.fromkeys(sorted(current), Judged(at=now, job_id=job_id)),
            "unjudged": _unjudged(before, judgement, current, job_id, now),
            "findings": _bounded(findings, before),
        }
    )
    exempted = sum(row["exemption"] is not None for row in found.values())
    return after, Recorded(**counts, exempted=exempted, superseded=judgement.judged - current)


def sighted(before: FirstSights, volumes: Iterable[Volume], now: datetime) -> FirstSights:
    """The first sights after a scan of all volumes of the region at `now`.

    A scan that comes late forgets no later sight.
    """
    unattached = {volume.id for volume in volumes if not volume.instances}
    kept = {id_: sight for id_, sight in before.volumes.items() if id_ in unattached or sight[0] > now}
    for id_ in unattached:
        first, last = kept.get(id_, (now, now))
        kept[id_] = (now if last < now - UNWATCHED else first, max(last, now))
    return before.model_copy(update={"volumes": dict(sorted(kept.items()))})


def with_report(before: ReportIndex, report: WasteReport, keep: timedelta) -> ReportIndex:
    """The index with a report, oldest first; a report that is made again keeps its first moment."""
    made = {one.job_id: one.created_at for one in before.reports}
    kept = KeptReport(
        job_id=report.job_id,
        job_type=report.job_type,
        created_at=made.get(report.job_id, report.generated_at),
        monthly_usd=report.totals.all.monthly_usd,
        findings=report.totals.all.findings,
        documents=report.documents,
    )
    others = [
        one for one in before.reports if one.job_id != report.job_id and one.created_at + keep > report.generated_at
    ]
    ordered = sorted([*others, kept], key=lambda one: (one.created_at, one.job_id))
    return before.model_copy(update={"reports": ordered[-MAX_REPORTS:]})


def _opened(before: RegionFindings, row: Mapping[str, Any], job_id: str, now: datetime) -> StoredFinding:
    fields = _fields(row)
    return StoredFinding(
        id=finding_id(before.account, before.region, fields["check"], fields["resource_id"]),
        status="open",
        first_seen=now,
        last_seen=now,
        job_id=job_id,
        **fields,
    )


def _seen_again(
    one: StoredFinding, row: Mapping[str, Any], job_id: str, now: datetime, *, exemptions_known: bool
) -> StoredFinding:
    life: dict[str, Any] = {"status": "open", "last_seen": now, "resolved_at": None, "job_id": job_id}
    if one.status == "resolved":
        life |= {"reopened_at": now, "times_reopened": one.times_reopened + 1}
    if not exemptions_known:
        life["exemption"] = one.exemption
    return one.model_copy(update=_fields(row) | life)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in row.items() if name != "check_id"}
    since = datetime.fromisoformat(row["since"]) if row["since"] else None
    return fields | {"check": row["check_id"], "since": since}


def _unjudged(
    before: RegionFindings, judgement: Judgement, current: set[str], job_id: str, now: datetime
) -> list[Unjudged]:
    """What could not be judged. A later scan of a check replaces an earlier one."""
    said = by_reason(one for one in judgement.unknown if one.check in current or one.check not in judgement.judged)
    asked = current | {row["check_id"] for row in said}
    kept = {(one.check, one.reason): one for one in before.unjudged if one.check not in asked or one.read_at > now}
    for row in said:
        check, reason = row["check_id"], row["reason"]
        later = check in before.judged and before.judged[check].at > now
        if not later and (check, reason) not in kept:
            kept[check, reason] = Unjudged(
                check=check, reason=reason, resources=row["resources"], read_at=now, job_id=job_id
            )
    return [kept[key] for key in sorted(kept)]


def _bounded(findings: list[StoredFinding], of: RegionFindings) -> list[StoredFinding]:
    """As many as a document holds: what was resolved long ago is forgotten first."""
    surplus = len(findings) - MAX_FINDINGS
    if surplus <= 0:
        return findings
    resolved = sorted((one.resolved_at, one.id) for one in findings if one.resolved_at is not None)
    if len(resolved) < surplus:
        raise Permanent(
            f"{len(findings) - len(resolved):,} findings are open in {of.account}/{of.region}: without a database a "
            f"region takes {MAX_FINDINGS:,}. Nothing was recorded; configure a database, or set `cloud.limits`."
        )
    forgotten = {id_ for _, id_ in resolved[:surplus]}
    return [one for one in findings if one.id not in forgotten]
