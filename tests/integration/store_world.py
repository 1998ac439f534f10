"""The findings' stores with what tests put into them and read of them, the same for each: one suite holds both."""

from __future__ import annotations

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, event, text

from lamplighter.cloud.store import FindingsStore
from lamplighter.cloud.store.documents import (
    FirstSights,
    Judged,
    KeptReport,
    RegionFindings,
    ReportIndex,
    Stored,
    StoredFinding,
    Unjudged,
    finding_id,
)
from lamplighter.cloud.store.postgres import PostgresStore
from lamplighter.cloud.store.s3 import REGIONS, REPORTS, VOLUMES, S3Store, _key

YEAR = timedelta(days=365)
_COLUMNS = {"account": "account_id", "check": "check_id", "first_seen": "first_seen_at", "last_seen": "last_seen_at"}
_JSON = ("evidence", "exemption")
_TABLES = ("findings", "judged_checks", "unjudged", "unattached_volumes", "cloud_reports")


class Crash(BaseException):
    """The process dies here."""


@dataclass
class StoreWorld(ABC):
    """A store, and ways into it that no scan has. Fields of findings are named as the reports name them."""

    store: FindingsStore

    @abstractmethod
    def put(self, **fields: Any) -> None:
        """Store a finding."""

    @abstractmethod
    def change(self, resource_id: str | None, **fields: Any) -> None:
        """Change the findings of a resource, of all if it is None."""

    @abstractmethod
    def rows(self) -> list[Any]:
        """All findings."""

    @abstractmethod
    def put_unjudged(
        self, account: str, region: str, check: str, reason: str, resources: list[str], at: datetime
    ) -> None:
        """Store what could not be judged."""

    @abstractmethod
    def unjudged(self) -> list[tuple[str, str, str]]:
        """What could not be judged: check, resource and job, in order."""

    @abstractmethod
    def put_judged(self, account: str, region: str, check: str, at: datetime) -> None:
        """Store when a check was judged."""

    @abstractmethod
    def put_report(self, job_id: str, job_type: str, at: datetime, usd: float) -> None:
        """Store a report."""

    @abstractmethod
    def reports(self) -> list[dict[str, Any]]:
        """All reports: `job_id, job_type, created_at, monthly_usd, findings, documents`."""

    @abstractmethod
    def sights(self) -> dict[tuple[str, str, str], tuple[datetime, datetime]]:
        """The first and the last sight of each unattached volume, by account, region and id."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all."""

    @abstractmethod
    def dying_at(self, write: int, *, after: bool) -> Any:
        """A context in which the process dies right before, or after, the n-th write."""


class PostgresWorld(StoreWorld):
    """A real Postgres."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(PostgresStore(engine))
        self.engine = engine

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows of a statement in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def put(self, **fields: Any) -> None:
        row = _as_columns(fields)
        parameters = [f"CAST(:{name} AS jsonb)" if name in _JSON else f":{name}" for name in row]
        self.sql(f"INSERT INTO lamplighter.findings ({', '.join(row)}) VALUES ({', '.join(parameters)})", **row)

    def change(self, resource_id: str | None, **fields: Any) -> None:
        row = _as_columns(fields)
        settings = ", ".join(f"{name} = :{name}" for name in row)
        self.sql(
            f"UPDATE lamplighter.findings SET {settings} WHERE CAST(:of AS text) IS NULL OR resource_id = :of",
            of=resource_id,
            **row,
        )

    def rows(self) -> list[Any]:
        names = {column: name for name, column in _COLUMNS.items()}
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT * FROM lamplighter.findings ORDER BY id")).mappings()
            return [SimpleNamespace(**{names.get(name, name): value for name, value in row.items()}) for row in found]

    def put_unjudged(
        self, account: str, region: str, check: str, reason: str, resources: list[str], at: datetime
    ) -> None:
        self.sql(
            "INSERT INTO lamplighter.unjudged"
            " VALUES (:account, :region, :check, :reason, CAST(:resources AS jsonb), :at, '01SCAN')",
            account=account,
            region=region,
            check=check,
            reason=reason,
            resources=json.dumps(resources),
            at=at,
        )

    def unjudged(self) -> list[tuple[str, str, str]]:
        rows = self.sql("SELECT check_id, job_id, resources FROM lamplighter.unjudged")
        return sorted((row.check_id, resource, row.job_id) for row in rows for resource in row.resources)

    def put_judged(self, account: str, region: str, check: str, at: datetime) -> None:
        self.sql(
            "INSERT INTO lamplighter.judged_checks VALUES (:account, :region, :check, :at, '01SCAN')",
            account=account,
            region=region,
            check=check,
            at=at,
        )

    def put_report(self, job_id: str, job_type: str, at: datetime, usd: float) -> None:
        self.sql(
            "INSERT INTO lamplighter.cloud_reports VALUES (:id, :job_type, :at, :usd, '{}', '{}')",
            id=job_id,
            job_type=job_type,
            at=at,
            usd=usd,
        )

    def reports(self) -> list[dict[str, Any]]:
        rows = self.sql("TABLE lamplighter.cloud_reports")
        return [
            {
                "job_id": row.job_id,
                "job_type": row.job_type,
                "created_at": row.created_at,
                "monthly_usd": row.monthly_usd,
                "findings": row.totals.get("all", {}).get("findings", 0),
                "documents": row.documents,
            }
            for row in rows
        ]

    def sights(self) -> dict[tuple[str, str, str], tuple[datetime, datetime]]:
        rows = self.sql("TABLE lamplighter.unattached_volumes")
        return {(row.account_id, row.region, row.volume_id): (row.first_seen_at, row.last_seen_at) for row in rows}

    def clear(self) -> None:
        self.sql(f"TRUNCATE {', '.join(f'lamplighter.{table}' for table in _TABLES)}")

    @contextmanager
    def dying_at(self, write: int, *, after: bool) -> Iterator[None]:
        moment, left = "after_cursor_execute" if after else "before_cursor_execute", [write]

        def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "SELECT" in statement.split("(", maxsplit=1)[0] and "INSERT" not in statement:
                return
            left[0] -= 1
            if left[0] == 0:
                raise Crash

        event.listen(self.engine, moment, count)
        try:
            yield
        finally:
            event.remove(self.engine, moment, count)


class S3World(StoreWorld):
    """A bucket of an S3 endpoint."""

    def __init__(self, s3: Any, bucket: str) -> None:
        super().__init__(S3Store(s3, bucket, keep_resolved=YEAR, keep_reports=YEAR))
        self.s3, self.bucket = s3, bucket

    def put(self, **fields: Any) -> None:
        account, region = fields.pop("account"), fields.pop("region")
        id_ = finding_id(account, region, fields["check"], fields["resource_id"])
        self._edit(account, region, lambda kept: {"findings": [*kept.findings, StoredFinding(id=id_, **fields)]})

    def change(self, resource_id: str | None, **fields: Any) -> None:
        for document in self.documents(REGIONS, RegionFindings):
            findings = [
                StoredFinding(**one.model_dump() | fields) if resource_id in (None, one.resource_id) else one
                for one in document.findings
            ]
            self._edit(document.account, document.region, lambda _, changed=findings: {"findings": changed})  # type: ignore[misc]

    def rows(self) -> list[Any]:
        return [
            SimpleNamespace(**dict(one) | {"account": document.account, "region": document.region})
            for document in self.documents(REGIONS, RegionFindings)
            for one in document.findings
        ]

    def put_unjudged(
        self, account: str, region: str, check: str, reason: str, resources: list[str], at: datetime
    ) -> None:
        one = Unjudged(check=check, reason=reason, resources=resources, read_at=at, job_id="01SCAN")
        self._edit(account, region, lambda kept: {"unjudged": [*kept.unjudged, one]})

    def unjudged(self) -> list[tuple[str, str, str]]:
        return sorted(
            (one.check, resource, one.job_id)
            for document in self.documents(REGIONS, RegionFindings)
            for one in document.unjudged
            for resource in one.resources
        )

    def put_judged(self, account: str, region: str, check: str, at: datetime) -> None:
        one = Judged(at=at, job_id="01SCAN")
        self._edit(account, region, lambda kept: {"judged": kept.judged | {check: one}})

    def put_report(self, job_id: str, job_type: str, at: datetime, usd: float) -> None:
        one = KeptReport(job_id=job_id, job_type=job_type, created_at=at, monthly_usd=usd, findings=0, documents={})
        index = next(iter(self.documents(REPORTS, ReportIndex)), ReportIndex())
        self.write(REPORTS, index.model_copy(update={"reports": [*index.reports, one]}))

    def reports(self) -> list[dict[str, Any]]:
        return [dict(one) for index in self.documents(REPORTS, ReportIndex) for one in index.reports]

    def sights(self) -> dict[tuple[str, str, str], tuple[datetime, datetime]]:
        return {
            (document.account, document.region, id_): sight
            for document in self.documents(VOLUMES, FirstSights)
            for id_, sight in document.volumes.items()
        }

    def clear(self) -> None:
        for key in self.keys():
            self.s3.delete_object(Bucket=self.bucket, Key=key)

    @contextmanager
    def dying_at(self, write: int, *, after: bool) -> Iterator[None]:
        moment, left = f"{'after' if after else 'before'}-call.s3.PutObject", [write]

        def count(**_: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Crash

        self.s3.meta.events.register_last(moment, count)
        try:
            yield
        finally:
            self.s3.meta.events.unregister(moment, count)

    # -- objects -----------------------------------------------------------------------------------------------------

    def keys(self, prefix: str = "findings/") -> list[str]:
        """What the bucket holds."""
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", ())]

    def documents[D: Stored](self, prefix: str, kind: type[D]) -> list[D]:
        """The documents below a prefix."""
        bodies = (self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in self.keys(prefix))
        return [kind.model_validate_json(gzip.decompress(body)) for body in bodies]

    def write(self, key: str, document: Stored) -> None:
        """Write a document over what there is."""
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=gzip.compress(document.model_dump_json().encode()))

    def _edit(self, account: str, region: str, changed: Callable[[RegionFindings], Mapping[str, Any]]) -> None:
        key = _key(REGIONS, account, region)
        found = list(self.documents(key, RegionFindings)) or [RegionFindings(account=account, region=region)]
        self.write(key, found[0].model_copy(update=changed(found[0])))


def s3_world(s3: Any) -> S3World:
    """A new bucket."""
    bucket = f"archive-{uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    return S3World(s3, bucket)


def _as_columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    row = {_COLUMNS.get(name, name): value for name, value in fields.items()}
    return row | {name: json.dumps(row[name]) for name in _JSON if row.get(name) is not None}
