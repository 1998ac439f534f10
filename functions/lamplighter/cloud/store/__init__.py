"""The store of the scans' findings: one interface, in Postgres or in the archive bucket (REQUIREMENTS C7, C14, P5).

`findings_store` answers the one that this deployment has: Postgres where a database is configured, else S3. Both keep
the same life of a finding; `tests/integration/test_findings.py` holds both to it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from lamplighter import rules
from lamplighter.kernel.no_database import has_database

if TYPE_CHECKING:
    from lamplighter.cloud.blind_spots import Concern, Place
    from lamplighter.cloud.check import Judgement
    from lamplighter.cloud.exemptions import Exemptions
    from lamplighter.cloud.inventory import Volume
    from lamplighter.cloud.reported import Changes, Point, PriceSource, ReportedFinding, Total, Totals, Unknowns
    from lamplighter.cloud.reported import WasteReport as Report
    from lamplighter.cloud.store.model import Recorded
    from lamplighter.kernel.settings import Settings

type Order = Literal["cost", "newest"]
type Section = Literal["waste", "security", "exempted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store knows of a region before something in it is acted upon."""

    first_sights: Mapping[str, datetime]
    """Since when volumes have been seen unattached, as the last scan left it."""
    open_since: Mapping[tuple[str, str], datetime]
    """The open findings by check and resource, and since when each has been open without a break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The last report before this one."""

    at: datetime
    monthly_usd: float


class Page(NamedTuple):
    """Rows, and after which number and id the next page begins; None after the last row."""

    rows: list[dict[str, Any]]
    end: tuple[float, Any] | None


class Snapshot(Protocol):
    """The findings as they are at one moment, for a report."""

    def totals(self) -> Totals:
        """What is open and not exempted, added up."""
        ...

    def exempted(self) -> Total:
        """What is open and exempted."""
        ...

    def price_sources(self) -> list[PriceSource]:
        """Where the prices come from, the most used first."""
        ...

    def unknown(self) -> list[Unknowns]:
        """What could not be judged when it was last tried, the most frequent first."""
        ...

    def elsewhere(self) -> Mapping[Place, int]:
        """How many findings are open where nothing is scanned any more."""
        ...

    def looked(self) -> Mapping[tuple[Concern, Place], datetime]:
        """When a scan last looked for each concern in each place."""
        ...

    def earlier(self, job_type: str) -> Earlier | None:
        """The last report of this job type before this one."""
        ...

    def changes(self, earlier: Earlier | None) -> Changes:
        """What happened to findings since the earlier report; without one, all are new."""
        ...

    def trend(self, job_type: str) -> list[Point]:
        """What the reports of this job type before this one came to, oldest first."""
        ...

    def first(self, section: Section, limit: int) -> list[ReportedFinding]:
        """What to look at first in a section of the page."""
        ...

    def each(self) -> Iterator[ReportedFinding]:
        """All that are open: those that are not exempted first, and of them what to look at first."""
        ...

    def each_of_security(self, *, resolved_after: datetime) -> Iterator[ReportedFinding]:
        """Those of security that are open or were resolved after a moment, by account and region."""
        ...


class FindingsStore(Protocol):
    """Keeps findings, what could not be judged, first sights of volumes, and the reports.

    Each method raises `Permanent` where what is stored cannot be read as findings, and `DatabaseUnavailable` where the
    store cannot be reached now. Then nothing was changed. Moments are aware.
    """

    def demand_readable(self, *, account: str, region: str) -> None:
        """Raise now what recording a scan of this region would raise after the region was read."""
        ...

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
        """Bring what a scan found into the store, all or nothing; doing it twice is the same as once.

        Args:
            judgement: what the checks say of the region.
            account: of the region.
            region: its name.
            job_id: the scan's.
            now: when the region was read, by which scans are ordered.
            exemptions: a finding that one covers is stored with it; None where they are not known: each finding keeps
                its own.
        """
        ...

    def unattached_since(
        self, *, account: str, region: str, volumes: Iterable[Volume], now: datetime, preview: bool
    ) -> dict[str, datetime]:
        """Since when each unattached volume has been seen so (REQUIREMENTS C5); a preview stores nothing.

        The first sight is kept. It is forgotten when the volume is attached again, or gone, or when no scan has looked
        for longer than `UNWATCHED`.

        Args:
            account: of the region.
            region: its name.
            volumes: all of the region, as they were read at `now`.
            now: when they were read.
            preview: store nothing.
        """
        ...

    def known(self, *, account: str, region: str, now: datetime) -> Known:
        """What the store knows of a region; first sights that are older than `UNWATCHED` are left out."""
        ...

    def places(self, *, checks: Iterable[str], resolved_after: datetime) -> list[Place]:
        """The accounts and regions with findings of these checks that are open, or were resolved after a moment."""
        ...

    def snapshot(self, at: datetime, places: Collection[Place] | None = None) -> AbstractContextManager[Snapshot]:
        """Open one for a report that is made at a moment; `places` are those that are scanned, None for all."""
        ...

    def reported_at(self, job_id: str) -> datetime | None:
        """When this job's report was first made, if it was."""
        ...

    def keep_report(self, report: Report) -> None:
        """Keep a report, whose documents are there by now; its first moment stays when it is made again."""
        ...

    def list_findings(
        self, wanted: Mapping[str, Any], *, order: Order, limit: int, after: tuple[float, int] | None, now: datetime
    ) -> Page:
        """A page of findings, the most expensive or the newest first.

        Args:
            wanted: by field (`status`, `severity`, `check`, `kind`, `account`, `region`, `owner`, `exempted`), what it
                has to be.
            order: what comes first.
            limit: rows at most.
            after: the end of the page before.
            now: an exemption that has expired by then exempts nothing.
        """
        ...

    def find(self, finding_id: int, *, now: datetime) -> dict[str, Any] | None:
        """One finding, as `list_findings` has it."""
        ...

    def list_reports(self, job_type: str | None, *, limit: int, after: tuple[float, str] | None) -> Page:
        """A page of reports, newest first."""
        ...


def findings_store(settings: Settings | None = None) -> FindingsStore:
    """The store of this deployment.

    Args:
        settings: say how long resolved findings and reports are kept; None where nothing is written.
    """
    if has_database():
        from lamplighter.cloud.store.postgres import PostgresStore
        from lamplighter.kernel.database import engine

        return PostgresStore(engine())
    from lamplighter.cloud.store.s3 import S3Store
    from lamplighter.kernel.aws import client

    in_force = rules.in_force(settings) if settings else rules.RULES
    return S3Store(
        client("s3"),
        os.environ["ARCHIVE_BUCKET"],
        keep_resolved=in_force["resolved_findings"].keep,
        keep_reports=in_force["cloud_reports"].keep,
    )
