"""Findings to report on, in a store of either kind, and what comes of it."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from lamplighter.cloud.report import generate_waste_report
from lamplighter.cloud.reported import Document, WasteReport
from tests.integration.store_world import StoreWorld

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Reports:
    """Findings to report on, and the reports' bucket."""

    def __init__(self, s3: Any, findings: StoreWorld) -> None:
        self.s3 = s3
        self.kept = findings
        self.bucket = f"archive-{uuid4().hex}"
        s3.create_bucket(Bucket=self.bucket)

    def find(self, resource: str, check: str = "unattached_volumes", **values: Any) -> None:
        """A finding, of waste and open if not told otherwise."""
        fields = {
            "account": "111111111111",
            "region": "eu-west-1",
            "check": check,
            "resource_id": resource,
            "resource_type": "AwsEc2Volume",
            "kind": "unattached_volume",
            "title": "An EBS volume is attached to nothing",
            "severity": "low",
            "owner": "ann",
            "monthly_usd": 10.0,
            "confidence": 1.0,
            "score": 10.0,
            "since": None,
            "evidence": {},
            "exemption": None,
            "status": "open",
            "first_seen": NOW - DAY,
            "last_seen": NOW,
            "resolved_at": None,
            "reopened_at": None,
            "times_reopened": 0,
            "job_id": "01SCAN",
        }
        self.kept.put(**fields | values)

    def doubt(
        self,
        check: str,
        *resources: str,
        reason: str = "No agent.",
        account: str = "111111111111",
        region: str = "eu-west-1",
    ) -> None:
        """What a check could not judge."""
        self.kept.put_unjudged(account, region, check, reason, list(resources), NOW)

    def judged(self, check: str, at: datetime, *, account: str = "111111111111", region: str = "eu-west-1") -> None:
        """When a check was judged last."""
        self.kept.put_judged(account, region, check, at)

    def generate(self, job_id: str = "01JOB", *, now: datetime = NOW, **values: Any) -> WasteReport:
        """A report."""
        given = {"job_type": "waste_scan"} | values
        return generate_waste_report(self.kept.store, self.s3, bucket=self.bucket, job_id=job_id, now=now, **given)

    def read(self, address: str) -> str:
        """A document that a report names."""
        key = address.removeprefix(f"s3://{self.bucket}/")
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()).decode()

    def document(self, report: WasteReport) -> Document:
        """Its report.json."""
        return Document.model_validate_json(self.read(report.documents["json"]))

    def lines(self, report: WasteReport) -> list[dict[str, str]]:
        """Its findings.csv."""
        return list(csv.DictReader(io.StringIO(self.read(report.documents["csv"]), newline=""), strict=True))

    def stored(self) -> list[str]:
        """All documents."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]
