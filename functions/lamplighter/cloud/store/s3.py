"""The findings' store without a database: objects of the archive bucket (REQUIREMENTS P5).

    findings/regions/<account>/<region>.json.gz   `RegionFindings`: what the scans say of a region
    findings/volumes/<account>/<region>.json.gz   `FirstSights`: since when its volumes have been seen unattached
    findings/reports.json.gz                      `ReportIndex`: the reports of a year

Each change reads an object, and writes it on condition that it still is what was read (If-Match, If-None-Match): of two
scans at once one reads again, and nothing is lost. S3 answers every read and listing with the latest write. An object
that is not what this version writes is an error: nothing is resolved by it, and it is not written over.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from lamplighter.cloud.store import Known, Order, Page
from lamplighter.cloud.store import documents as documents_module
from lamplighter.cloud.store.documents import FirstSights, RegionFindings, ReportIndex, Stored
from lamplighter.cloud.store.snapshot import DocumentSnapshot, page_of_findings, page_of_reports, placed
from lamplighter.kernel.errors import DatabaseUnavailable, Retryable, Unreadable, unreadable

if TYPE_CHECKING:
    from lamplighter.cloud.blind_spots import Place
    from lamplighter.cloud.check import Judgement
    from lamplighter.cloud.exemptions import Exemptions
    from lamplighter.cloud.inventory import Volume
    from lamplighter.cloud.reported import WasteReport
    from lamplighter.cloud.store.model import Recorded

PREFIX: Final = "findings/"
REGIONS: Final = f"{PREFIX}regions/"
VOLUMES: Final = f"{PREFIX}volumes/"
REPORTS: Final = f"{PREFIX}reports.json.gz"
TRIES: Final = 10
"""Writes that lose against another scan before this one gives up; each loss is another's success."""
TOGETHER: Final = 8
"""Objects that are read at once."""
COMPRESSION: Final = 6
"""gzip's level."""

_NAME: Final = re.compile(r"[^/]+/[^/]+\.json\.gz")
_ABSENT: Final = frozenset({"NoSuchKey", "404"})
_CHANGED: Final = _ABSENT | {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}

_read_before: dict[tuple[str, str], tuple[str, RegionFindings]] = {}
"""By bucket and key, the ETag and what the object held: a process reads a region once until it changes."""


class S3Store:
    """As `FindingsStore`."""

    def __init__(self, s3: Any, bucket: str, *, keep_resolved: timedelta, keep_reports: timedelta) -> None:
        """`keep_resolved` and `keep_reports` are how long resolved findings and reports are kept."""
        self._s3 = s3
        self._bucket = bucket
        self._keep_resolved = keep_resolved
        self._keep_reports = keep_reports

    def demand_readable(self, *, account: str, region: str) -> None:
        self._document(_key(REGIONS, account, region), RegionFindings(account=account, region=region))

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
        def change(before: RegionFindings) -> tuple[RegionFindings, Recorded]:
            return documents_module.scanned(
                before,
                judgement,
                job_id=job_id,
                now=now,
                exemptions=exemptions,
                keep_resolved=self._keep_resolved,
            )

        return self._change(_key(REGIONS, account, region), RegionFindings(account=account, region=region), change)

    def unattached_since(
        self, *, account: str, region: str, volumes: Iterable[Volume], now: datetime, preview: bool
    ) -> dict[str, datetime]:
        seen = list(volumes)

        def change(before: FirstSights) -> tuple[FirstSights, dict[str, datetime]]:
            after = documents_module.sighted(before, seen, now)
            return after, after.since(now)

        key, empty = _key(VOLUMES, account, region), FirstSights(account=account, region=region)
        if preview:
            return change(self._document(key, empty))[1]
        return self._change(key, empty, change)

    def known(self, *, account: str, region: str, now: datetime) -> Known:
        sights = self._document(_key(VOLUMES, account, region), FirstSights(account=account, region=region))
        found = self._document(_key(REGIONS, account, region), RegionFindings(account=account, region=region))
        return Known(
            first_sights=sights.since(now),
            open_since={
                (one.check, one.resource_id): one.reopened_at or one.first_seen
                for one in found.findings
                if one.status == "open"
            },
        )

    def places(self, *, checks: Iterable[str], resolved_after: datetime) -> list[Place]:
        wanted = frozenset(checks)
        return [
            (document.account, document.region)
            for document in self._all()
            if any(
                one.check in wanted
                and (one.status == "open" or (one.resolved_at is not None and one.resolved_at > resolved_after))
                for one in document.findings
            )
        ]

    @contextmanager
    def snapshot(self, at: datetime, places: Collection[Place] | None = None) -> Iterator[DocumentSnapshot]:
        yield DocumentSnapshot(self._all(), self._index(), at, places)

    def reported_at(self, job_id: str) -> datetime | None:
        return next((one.created_at for one in self._index().reports if one.job_id == job_id), None)

    def keep_report(self, report: WasteReport) -> None:
        def change(before: ReportIndex) -> tuple[ReportIndex, None]:
            return documents_module.with_report(before, report, self._keep_reports), None

        self._change(REPORTS, ReportIndex(), change)

    def list_findings(
        self, wanted: Mapping[str, Any], *, order: Order, limit: int, after: tuple[float, int] | None, now: datetime
    ) -> Page:
        today = now.astimezone(UTC).date()
        return page_of_findings(self._all(), wanted, order=order, limit=limit, after=after, today=today)

    def find(self, finding_id: int, *, now: datetime) -> dict[str, Any] | None:
        found = placed(self._all(), now.astimezone(UTC).date())
        return next((one.fields() for one in found if one.one.id == finding_id), None)

    def list_reports(self, job_type: str | None, *, limit: int, after: tuple[float, str] | None) -> Page:
        return page_of_reports(self._index(), job_type, limit=limit, after=after)

    # -- objects -----------------------------------------------------------------------------------------------------

    def _index(self) -> ReportIndex:
        return self._document(REPORTS, ReportIndex())

    def _all(self) -> list[RegionFindings]:
        """The findings of all regions there are, by account and region; what has not changed is not read again."""
        with self._reaching(REGIONS, "listed"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=REGIONS)
            etags = {
                entry["Key"]: entry["ETag"]
                for page in pages
                for entry in page.get("Contents", ())
                if _NAME.fullmatch(entry["Key"].removeprefix(REGIONS))
            }
        with ThreadPoolExecutor(TOGETHER) as pool:
            found = list(pool.map(self._region, etags, etags.values()))
        for bucket, key in list(_read_before):
            if bucket == self._bucket and key not in etags:
                _read_before.pop((bucket, key), None)
        return sorted((one for one in found if one), key=lambda one: (one.account, one.region))

    def _region(self, key: str, etag: str) -> RegionFindings | None:
        """What an object holds; None where it has been deleted since it was listed."""
        known = _read_before.get((self._bucket, key))
        if known and known[0] == etag:
            return known[1]
        body, etag_read = self._get(key)
        if body is None or etag_read is None:
            return None
        document = self._parsed(key, RegionFindings, body)
        _read_before[self._bucket, key] = etag_read, document
        return document

    def _document[D: Stored](self, key: str, empty: D) -> D:
        body, _ = self._get(key)
        return empty if body is None else self._parsed(key, type(empty), body)

    def _change[D: Stored, R](self, key: str, empty: D, change: Callable[[D], tuple[D, R]]) -> R:
        """Bring a change into an object, however many others change it at the same time; what the change answers.

        Raises:
            Permanent: the object is not what this version writes, or may not be used.
            DatabaseUnavailable: S3 cannot be reached now.
            Retryable: others keep writing the object.
        """
        attempted: tuple[bytes, R] | None = None
        for _ in range(TRIES):
            body, etag = self._get(key)
            if attempted and attempted[0] == body:
                return attempted[1]  # written after all: its answer was lost, and botocore asked again
            after, result = change(empty if body is None else self._parsed(key, type(empty), body))
            packed = gzip.compress(after.model_dump_json().encode(), COMPRESSION, mtime=0)
            if packed == body or (body is None and after == empty) or self._put(key, packed, etag):
                return result
            attempted = packed, result
        raise Retryable(f"Other scans keep writing s3://{self._bucket}/{key}; nothing was recorded.")

    def _get(self, key: str) -> tuple[bytes | None, str | None]:
        """An object and its ETag; None for both where there is none."""
        from botocore.exceptions import ClientError

        with self._reaching(key, "read"):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] in _ABSENT:
                    return None, None
                raise
            return bytes(answer["Body"].read()), answer["ETag"]

    def _put(self, key: str, body: bytes, etag: str | None) -> bool:
        """Whether the object was written over what was read."""
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._reaching(key, "written"):
            try:
                self._s3.put_object(
                    Bucket=self._bucket, Key=key, Body=body, ContentType="application/gzip", **condition
                )
            except ClientError as error:
                if error.response["Error"]["Code"] in _CHANGED:
                    return False
                raise
        return True

    def _parsed[D: Stored](self, key: str, kind: type[D], body: bytes) -> D:
        """What an object holds.

        Raises:
            Unreadable: it is not what this version writes.
        """
        address = f"s3://{self._bucket}/{key}"
        try:
            document = kind.model_validate_json(gzip.decompress(body))
        except ValidationError as error:
            if any(problem["loc"] == ("version",) for problem in error.errors(include_url=False)):
                raise Unreadable(
                    f"{address} was written by another version of Lamplighter: deploy that version, or restore "
                    "an earlier version of the object. Nothing was changed."
                ) from None
            raise self._unknown(address) from None
        except (OSError, EOFError, zlib.error):
            raise self._unknown(address) from None
        if isinstance(document, RegionFindings | FirstSights):
            kept_as = _key(
                REGIONS if isinstance(document, RegionFindings) else VOLUMES, document.account, document.region
            )
            if kept_as != key:
                raise self._unknown(address)
        return document

    def _unknown(self, address: str) -> Unreadable:
        return Unreadable(
            f"{address} is not what Lamplighter wrote there: restore an earlier version of the object, or delete it, "
            "and its findings start again. Nothing was changed."
        )

    @contextmanager
    def _reaching(self, key: str, doing: str) -> Iterator[None]:
        """Errors of S3 as errors of ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            if refused := unreadable(error):
                raise refused from error
            raise DatabaseUnavailable(f"s3://{self._bucket}/{key} cannot be {doing} now: {error}") from error


def _key(prefix: str, account: str, region: str) -> str:
    return f"{prefix}{quote(account, safe='')}/{quote(region, safe='')}.json.gz"
