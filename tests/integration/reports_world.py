"""Findings in Postgres to report on, and what comes of it."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, text

from lamplighter.cloud.report import generate_waste_report
from lamplighter.cloud.reported import Document, WasteReport

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Reports:
    """Findings to report on, and the reports' bucket."""

    def __init__(self, s3: Any, engine: Engine) -> None:
        self.s3 = s3
        self.engine = engine
        self.bucket = f"archive-{uuid4().hex}"
        s3.create_bucket(Bucket=self.bucket)

    def find(self, resource: str, check: str = "unattached_volumes", **values: Any) -> None:
        """A finding, of waste and open if not told otherwise."""
        row = {
            "account_id": "111111111111",
            "region": "eu-west-1",
            "check_id": check,
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
            "first_seen_at": NOW - DAY,
            "last_seen_at": NOW,
            "resolved_at": None,
            "reopened_at": None,
            "times_reopened": 0,
            "job_id": "01SCAN",
        } | values
        json_columns = ("evidence", "exemption")
        row |= {name: json.dumps(row[name]) for name in json_columns if row[name] is not None}
        parameters = [f"CAST(:{name} AS jsonb)" if name in json_columns else f":{name}" for name in row]
        with self.engine.begin() as connection:
            connection.execute(
                text(f"INSERT INTO lamplighter.findings ({', '.join(row)}) VALUES ({', '.join(parameters)})"),
                row,
            )

    def doubt(
        self,
        check: str,
        *resources: str,
        reason: str = "No agent.",
        account: str = "111111111111",
        region: str = "eu-west-1",
    ) -> None:
        """What a check could not judge."""
        self.sql(
            "INSERT INTO lamplighter.unjudged"
            " VALUES (:account, :region, :check, :reason, CAST(:resources AS jsonb), :now, '01SCAN')",
            account=account,
            region=region,
            check=check,
            reason=reason,
            resources=json.dumps(resources),
            now=NOW,
        )

    def judged(self, check: str, at: datetime, *, account: str = "111111111111", region: str = "eu-west-1") -> None:
        """When a check was judged last."""
        self.sql(
            "INSERT INTO lamplighter.judged_checks VALUES (:account, :region, :check, :at, '01SCAN')",
            account=account,
            region=region,
            check=check,
            at=at,
        )

    def sql(self, statement: str, **values: Any) -> None:
        """A statement in a transaction of its own."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def generate(self, job_id: str = "01JOB", *, now: datetime = NOW, **values: Any) -> WasteReport:
        """A report."""
        given = {"job_type": "waste_scan"} | values
        return generate_waste_report(self.engine, self.s3, bucket=self.bucket, job_id=job_id, now=now, **given)

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

    def rows(self) -> list[dict[str, Any]]:
        """What `cloud_reports` has."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text("TABLE lamplighter.cloud_reports")).mappings()]
