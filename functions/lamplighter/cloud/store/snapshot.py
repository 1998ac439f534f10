"""A report's and the API's view of the S3 store's documents, in memory; `open_findings` and `store.postgres` have the
same in SQL (REQUIREMENTS C7, C14).

Ties are broken as there: dollars count once a resource as `totals.counted` says. Of findings that are alike in all that
orders them, the order is that of their places and resources.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, Final, get_args

from lamplighter.cloud.check import Severity
from lamplighter.cloud.checks import BY_ID
from lamplighter.cloud.reported import Changes, Point, PriceSource, ReportedFinding, Total, Totals, Unknowns
from lamplighter.cloud.store import Earlier, Order, Page, Section
from lamplighter.cloud.store.documents import KeptReport, RegionFindings, ReportIndex, StoredFinding
from lamplighter.cloud.store.model import (
    EXAMPLES,
    NO_OWNER,
    NOTHING,
    SECURITY_CHECKS,
    TREND,
    TREND_STEP,
    added_up,
    merged,
)

if TYPE_CHECKING:
    from lamplighter.cloud.blind_spots import Concern, Place

_SECURITY: Final = frozenset(SECURITY_CHECKS)
_RANK: Final = {severity: -n for n, severity in enumerate(get_args(Severity.__value__))}
"""The worst severity first."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Placed:
    """A finding, where it is, and whether an exemption covers it on the day of the view."""

    account: str
    region: str
    one: StoredFinding
    exempted: bool

    @property
    def resource(self) -> tuple[str, str, str]:
        return self.account, self.region, self.one.resource_id

    def fields(self) -> dict[str, Any]:
        """As the API has it."""
        exemption = self.one.exemption if self.exempted else None
        return dict(self.one) | {"account": self.account, "region": self.region, "exemption": exemption}


def placed(documents: Iterable[RegionFindings], today: date) -> Iterator[Placed]:
    """The findings of these documents."""
    day = today.isoformat()
    for document in documents:
        for one in document.findings:
            exempted = one.exemption is not None and str(one.exemption.get("expires", "")) >= day
            yield Placed(document.account, document.region, one, exempted)


class DocumentSnapshot:
    """As `store.Snapshot`."""

    def __init__(
        self,
        documents: Sequence[RegionFindings],
        index: ReportIndex,
        at: datetime,
        places: Collection[Place] | None,
    ) -> None:
        """`documents` are those of all places, `places` those that are scanned, None for all."""
        self._at = at
        self._all = documents
        self._index = index
        self._places = None if places is None else set(map(tuple, places))

    def totals(self) -> Totals:
        return added_up(self._added_up(exempted=False))

    def exempted(self) -> Total:
        found = self._added_up(exempted=True)
        return found["all"][0] if found else NOTHING

    def price_sources(self) -> list[PriceSource]:
        counts = Counter(str(source) for one in self._open if (source := one.one.evidence.get("price_source")))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [PriceSource(source=source, findings=count) for source, count in ordered]

    def unknown(self) -> list[Unknowns]:
        return merged(
            {
                "check": one.check,
                "reason": one.reason,
                "resources": len(one.resources),
                "examples": [f"{document.account}/{document.region}/{id_}" for id_ in one.resources[:EXAMPLES]],
            }
            for document in self._scanned
            for one in document.unjudged
            if one.check in BY_ID
        )

    def elsewhere(self) -> dict[Place, int]:
        counts = {
            (document.account, document.region): sum(one.status == "open" for one in document.findings)
            for document in self._all
            if not self._is_scanned(document)
        }
        return {place: count for place, count in counts.items() if count}

    def looked(self) -> dict[tuple[Concern, Place], datetime]:
        found: dict[tuple[Concern, Place], datetime] = {}
        for document in self._all:
            for check, judged in document.judged.items():
                concern: Concern = "security" if check in _SECURITY else "waste"
                key = concern, (document.account, document.region)
                found[key] = max(judged.at, found.get(key, judged.at))
        return found

    def earlier(self, job_type: str) -> Earlier | None:
        last = max(self._reports(job_type), key=lambda one: one.created_at, default=None)
        return Earlier(at=last.created_at, monthly_usd=last.monthly_usd) if last else None

    def changes(self, earlier: Earlier | None) -> Changes:
        since = earlier.at if earlier else datetime.min.replace(tzinfo=UTC)
        found = Counter[str]()
        for each in self._known:
            one = each.one
            if each.exempted:
                continue
            if one.status == "resolved":
                found["resolved"] += one.resolved_at is not None and one.resolved_at > since
            elif one.first_seen > since:
                found["opened"] += 1
            else:
                found["reopened"] += one.reopened_at is not None and one.reopened_at > since
        return Changes(
            since=earlier.at if earlier else None,
            opened=found["opened"],
            reopened=found["reopened"],
            resolved=found["resolved"],
            monthly_usd_before=earlier.monthly_usd if earlier else None,
        )

    def trend(self, job_type: str) -> list[Point]:
        start = self._at - TREND
        points: dict[int, KeptReport] = {}
        for one in sorted(self._reports(job_type), key=lambda one: one.created_at):
            if one.created_at >= start:
                points[(one.created_at - start) // TREND_STEP] = one
        return [Point(at=one.created_at, monthly_usd=one.monthly_usd) for one in points.values()]

    def first(self, section: Section, limit: int) -> list[ReportedFinding]:
        return [self._reported(one) for one in heapq.nsmallest(limit, filter(_IN[section], self._open), key=_urgency)]

    def each(self) -> Iterator[ReportedFinding]:
        return map(self._reported, sorted(self._open, key=lambda one: (one.exempted, _urgency(one))))

    def each_of_security(self, *, resolved_after: datetime) -> Iterator[ReportedFinding]:
        found = (
            each
            for each in self._known
            if each.one.check in _SECURITY
            and (each.one.status == "open" or (each.one.resolved_at or self._at) > resolved_after)
        )
        return map(self._reported, sorted(found, key=_place))

    @cached_property
    def _scanned(self) -> list[RegionFindings]:
        return [document for document in self._all if self._is_scanned(document)]

    @cached_property
    def _known(self) -> list[Placed]:
        return list(placed(self._scanned, self._at.astimezone(UTC).date()))

    @cached_property
    def _open(self) -> list[Placed]:
        return [one for one in self._known if one.one.status == "open"]

    @cached_property
    def _counted(self) -> set[int]:
        """Which findings' dollars are in the totals, by their identity in memory."""
        best: dict[tuple[Any, ...], Placed] = {}
        for one in self._open:
            key = (*one.resource, one.exempted)
            if key not in best or _dearness(one) < _dearness(best[key]):
                best[key] = one
        return {id(one) for one in best.values()}

    def _is_scanned(self, document: RegionFindings) -> bool:
        return self._places is None or (document.account, document.region) in self._places

    def _counted_usd(self, one: Placed) -> float:
        return (one.one.monthly_usd or 0.0) if id(one) in self._counted else 0.0

    def _reports(self, job_type: str) -> Iterator[KeptReport]:
        return (one for one in self._index.reports if one.job_type == job_type and one.created_at < self._at)

    def _reported(self, one: Placed) -> ReportedFinding:
        fields = one.fields() | {"counted_usd": self._counted_usd(one)}
        del fields["job_id"]
        return ReportedFinding.model_validate(fields)

    def _added_up(self, *, exempted: bool) -> Mapping[str, list[Total]]:
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        resources: dict[tuple[str, str], set[tuple[str, str, str]]] = defaultdict(set)
        for one in self._open:
            if one.exempted is not exempted:
                continue
            usd = self._counted_usd(one)
            for key in _dimensions(one):
                total = sums[key]
                total[0] += 1
                total[1] += usd
                total[2] += usd * one.one.confidence
                resources[key].add(one.resource)
        found = defaultdict[str, list[Total]](list)
        for (dimension, name), (count, usd, weighed) in sorted(
            sums.items(), key=lambda item: (-item[1][1], -item[1][0], item[0][1])
        ):
            found[dimension].append(
                Total(
                    name=name,
                    findings=int(count),
                    resources=len(resources[dimension, name]),
                    monthly_usd=round(usd, 2),
                    weighed_usd=round(weighed, 2),
                )
            )
        return found


def page_of_findings(
    documents: Iterable[RegionFindings],
    wanted: Mapping[str, Any],
    *,
    order: Order,
    limit: int,
    after: tuple[float, int] | None,
    today: date,
) -> Page:
    """A page of the findings in which each of `wanted` is so."""
    found = (one for one in placed(documents, today) if all(_value(one, name) == what for name, what in wanted.items()))
    return _page(found, number=lambda one: _number(one, order), unique=lambda one: one.one.id, limit=limit, after=after)


def page_of_reports(index: ReportIndex, job_type: str | None, *, limit: int, after: tuple[float, str] | None) -> Page:
    """A page of the reports, newest first."""
    found = (one for one in index.reports if job_type in (None, one.job_type))
    return _page(
        found,
        number=lambda one: _microseconds(one.created_at),
        unique=lambda one: one.job_id,
        limit=limit,
        after=after,
        fields=dict,
    )


def _page(
    found: Iterable[Any],
    *,
    number: Callable[[Any], float],
    unique: Callable[[Any], Any],
    limit: int,
    after: tuple[float, Any] | None,
    fields: Callable[[Any], dict[str, Any]] = Placed.fields,
) -> Page:
    """The next by a number and what is unique, both descending."""
    keyed = ((number(one), unique(one), one) for one in found)
    left = keyed if after is None else (entry for entry in keyed if entry[:2] < after)
    first = heapq.nlargest(limit + 1, left, key=lambda entry: entry[:2])
    end = first[limit - 1][:2] if len(first) > limit else None
    return Page([fields(one) for _, _, one in first[:limit]], end)


def _value(one: Placed, name: str) -> Any:
    match name:
        case "account" | "region" | "exempted":
            return getattr(one, name)
    return getattr(one.one, name)


def _number(one: Placed, order: Order) -> float:
    if order == "newest":
        return _microseconds(one.one.first_seen)
    return -1.0 if one.one.monthly_usd is None else one.one.monthly_usd


def _microseconds(moment: datetime) -> float:
    past = moment - _EPOCH
    return float((past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds)


def _dimensions(one: Placed) -> Iterator[tuple[str, str]]:
    yield "all", "all"
    yield "concern", "security" if one.one.check in _SECURITY else "waste"
    yield "kind", one.one.kind
    yield "owner", NO_OWNER if one.one.owner is None else one.one.owner
    yield "region", one.region
    yield "account", one.account
    yield "severity", one.one.severity


def _dearness(one: Placed) -> tuple[float, float, str]:
    usd = one.one.monthly_usd
    return inf if usd is None else -usd, -one.one.confidence, one.one.check


def _place(one: Placed) -> tuple[str, str, str, str]:
    return one.account, one.region, one.one.check, one.one.resource_id


def _urgency(one: Placed) -> tuple[Any, ...]:
    score = one.one.score
    return inf if score is None else -score, _RANK[one.one.severity], one.one.first_seen, _place(one)


_IN: Final[Mapping[Section, Callable[[Placed], bool]]] = {
    "waste": lambda one: not one.exempted and one.one.check not in _SECURITY,
    "security": lambda one: not one.exempted and one.one.check in _SECURITY,
    "exempted": lambda one: one.exempted,
}
