"""The report on cloud cost and security: what is open, what it costs, what changed (REQUIREMENTS C7, C14).

The last phase of the scans. What is open in the store becomes a report that the store keeps and, in S3,

    reports/cloud/<day>/<job_id>/<time>/report.json                  `Document`
                                        findings.csv                 all that are open, a line each
                                        report.html                  one page for people (`page`)
                                        asff/<account>/<region>/...  those on security, for Security Hub (`asff`)

Done again for the same job, it writes further documents, and the store then names those: so
what the store names is always one report, whenever this dies. What it does not name expires with the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from lamplighter.cloud import asff, blind_spots, page
from lamplighter.cloud.reported import FailedRegion, Point, ReportedFinding, WasteReport
from lamplighter.kernel.spreadsheet import harmless

if TYPE_CHECKING:
    from lamplighter.cloud.blind_spots import Concern, Place
    from lamplighter.cloud.store import FindingsStore, Snapshot

PREFIX: Final = "reports/cloud/"
RESOLVED_FOR: Final = timedelta(days=7)
"""How long the documents for Security Hub tell of what was resolved: who imports only some of them misses nothing."""

COLUMNS: Final = (
    *("account", "region", "check", "kind", "title", "severity", "resource_type", "resource_id", "owner"),
    *("monthly_usd", "counted_usd", "confidence", "score", "since", "first_seen", "last_seen", "reopened_at"),
    *("times_reopened", "exemption_reason", "exemption_owner", "exemption_expires", "evidence"),
)
"""Of findings.csv."""


def generate_waste_report(
    store: FindingsStore,
    s3: Any,
    *,
    bucket: str,
    job_id: str,
    job_type: str,
    now: datetime,
    places: Collection[Place] | None = None,
    regions_failed: Sequence[FailedRegion] = (),
    remarks: Sequence[str] = (),
) -> WasteReport:
    """Report on all findings that are open, whichever scan found them (REQUIREMENTS C7).

    Args:
        store: has the findings, and keeps the report.
        s3: the client.
        bucket: takes the documents.
        now: when the report is made; a repetition for the same job keeps the first one's.
        places: the accounts and regions that are scanned: what is open elsewhere is left out, and the report says so,
            as it does where nobody has looked of late. None for all that there ever were.
        regions_failed: what the scan could not read at all.
        remarks: sentences on the scan as a whole, which readers have to know.
    """
    at = store.reported_at(job_id) or now
    base = f"{PREFIX}{now:%Y-%m-%d}/{job_id}/{now:%H%M%S}/"
    with store.snapshot(at, places) as found, ExitStack() as files:
        totals = found.totals()
        report = WasteReport(
            job_id=job_id,
            job_type=job_type,
            generated_at=at,
            totals=totals,
            exempted=found.exempted(),
            changes=found.changes(found.earlier(job_type)),
            trend=[*found.trend(job_type), Point(at=at, monthly_usd=totals.all.monthly_usd)],
            unknown=found.unknown(),
            regions_failed=list(regions_failed),
            remarks=[*remarks, *_blind_spots(found, at, job_type, places or (), regions_failed)],
            price_sources=found.price_sources(),
            documents={
                "json": f"s3://{bucket}/{base}report.json",
                "csv": f"s3://{bucket}/{base}findings.csv",
                "html": f"s3://{bucket}/{base}report.html",
                "asff": f"s3://{bucket}/{base}asff/",
            },
        )
        as_json, as_csv = files.enter_context(_file()), files.enter_context(_file())
        _write(report, found.each(), as_json, as_csv)
        html = page.render(report, {section: found.first(section, page.ROWS) for section in page.SECTIONS})
        for name, batch in asff.batches(found.each_of_security(resolved_after=at - RESOLVED_FOR)):
            _put(s3, bucket, f"{base}asff/{name}.json", json.dumps(batch, indent=1), "application/json")
        _put(s3, bucket, f"{base}report.html", html, "text/html; charset=utf-8")
        _upload(s3, bucket, f"{base}findings.csv", as_csv, "text/csv; charset=utf-8")
        _upload(s3, bucket, f"{base}report.json", as_json, "application/json")
    store.keep_report(report)
    return report


def _blind_spots(
    found: Snapshot, at: datetime, job_type: str, places: Collection[Place], failed: Iterable[FailedRegion]
) -> Iterator[str]:
    """What the report does not show, but for what this scan failed to read, which is told by itself."""
    yield from blind_spots.left_out(found.elsewhere())
    own: Concern = "security" if job_type == "security_enforcement" else "waste"
    told = {(own, (one.account, one.region)) for one in failed}
    concerns: tuple[Concern, ...] = ("waste", "security")
    expected = [(concern, place) for concern in concerns for place in places if (concern, place) not in told]
    yield from blind_spots.unwatched(expected, found.looked(), at)


def _write(report: WasteReport, findings: Iterable[ReportedFinding], as_json: IO[str], as_csv: IO[str]) -> None:
    """Write report.json and findings.csv in one pass over the findings, of which those that are exempted come last."""
    table = csv.writer(as_csv)
    table.writerow(COLUMNS)
    as_json.write(report.model_dump_json()[:-1] + ',"findings":[')
    separator, exempted = "\n", False
    for finding in findings:
        if finding.exemption and not exempted:
            as_json.write('\n],"exempted_findings":[')
            separator, exempted = "\n", True
        as_json.write(separator + finding.model_dump_json())
        separator = ",\n"
        table.writerow(_line(finding))
    as_json.write("\n]}\n" if exempted else '\n],"exempted_findings":[]}\n')


def _line(finding: ReportedFinding) -> list[object]:
    values = finding.model_dump(mode="json", include=set(COLUMNS))
    exemption = finding.exemption
    values |= {
        "exemption_reason": exemption and exemption.reason,
        "exemption_owner": exemption and exemption.owner,
        "exemption_expires": exemption and exemption.expires,
        "evidence": json.dumps(finding.evidence, ensure_ascii=False),
    }
    return [harmless(value) if isinstance(value, str) else value for value in map(values.get, COLUMNS)]


def _file() -> Any:
    return NamedTemporaryFile("w", encoding="utf-8", newline="")


def _upload(s3: Any, bucket: str, key: str, file: IO[str], content_type: str) -> None:
    """A file, in parts where it is large."""
    file.flush()
    s3.upload_file(file.name, bucket, key, ExtraArgs={"ContentType": content_type})


def _put(s3: Any, bucket: str, key: str, text: str, content_type: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=text.encode(), ContentType=content_type)
