"""The scans of cloud accounts: job types, the steps of their state machine, the report (REQUIREMENTS C1, C7, C17).

    waste_scan            every 6 hours    what costs money and serves nobody
    security_enforcement  hourly           what is exposed, outdated or nobody's
    instance_health       daily at 00:00   brings the table `instances` up to date

All are executions of the state machine `cloud`. Their phase `regions` is divided into the regions of all accounts, each
an item for the function `cloud-region`; one region's failure is told of, and the others are scanned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from lamplighter.cloud import remedies, targets
from lamplighter.cloud.cloud_region import Scanned
from lamplighter.cloud.health import Examined
from lamplighter.cloud.store import findings_store
from lamplighter.kernel import fan_out, phases
from lamplighter.kernel.deletion import archive_bucket
from lamplighter.kernel.job import Context, Report
from lamplighter.kernel.phased_job import Division, Done, Phase, PhasedJob, PhaseParams, PhaseRun, Turn
from lamplighter.kernel.settings import Settings

EXECUTION: Final = timedelta(hours=1)
"""How long one execution may take: time for four regions that take as long as a function may, one after the other."""


class Summed(Report):
    """What the regions came to: each one's own numbers, and what went wrong."""

    regions: list[dict[str, Any]] = []
    """Those that were read."""
    failures: list[str] = []
    """Why others could not be: `account/region: error`."""
    remarks: list[str] = []


class Scan(Summed, Scanned):
    """What a scan found in all regions; `seconds` are those of all together, of which several run at a time."""


class Examination(Summed, Examined):
    """What the health check found in all regions."""


class Reported(Report):
    """Where the report is, and what it says in short."""

    findings: int = 0
    monthly_usd: float = 0
    documents: dict[str, str] = {}


def summed[R: Summed](kind: type[R], done: Sequence[Done]) -> R:
    """The items' reports added up."""
    reports = [one.outcome.report for one in done if one.outcome]
    numbers = [name for name, field in kind.model_fields.items() if field.annotation in (int, float)]
    failures = [f"{one.item['account']}/{one.item['region']}: {one.error}" for one in done if one.error]
    return kind(
        status="completed_with_errors" if failures else "completed",
        regions=[one.item | _without_remark(one.outcome.report) for one in done if one.outcome],
        failures=failures,
        remarks=list(dict.fromkeys(report["remark"] for report in reports if report.get("remark"))),
        **{name: round(sum(report.get(name, 0) for report in reports), 2) for name in numbers},
    )


def report(run: PhaseRun) -> Reported:
    """Report on all that is open where scans look, with what this one could not read; a preview writes nothing."""
    from lamplighter.cloud.report import generate_waste_report
    from lamplighter.cloud.reported import FailedRegion
    from lamplighter.kernel.aws import client

    store = findings_store(run.settings)
    places = [(account, region) for account, region, _ in targets.checked(run.settings)]
    if run.job.dry_run:
        with store.snapshot(run.now(), places) as found:
            everything = found.totals().all
        return Reported(findings=everything.findings, monthly_usd=round(everything.monthly_usd, 2))
    regions = run.outcomes["regions"].report if "regions" in run.outcomes else {}
    remarks, failures = list(regions.get("remarks") or ()), regions.get("failures")
    if reason := run.errors.get("regions"):
        remarks.append(f"The regions could not all be scanned; findings may be those of an earlier scan: {reason}")
    made = generate_waste_report(
        store,
        client("s3"),
        bucket=archive_bucket(),
        job_id=run.job_id,
        job_type=run.job.job_type,
        now=run.now(),
        places=places,
        regions_failed=[FailedRegion(**_failed(one)) for one in failures] if isinstance(failures, list) else (),
        remarks=remarks,
    )
    return Reported(
        findings=made.totals.all.findings,
        monthly_usd=round(made.totals.all.monthly_usd, 2),
        documents=made.documents,
    )


def _without_remark(told: Mapping[str, Any]) -> dict[str, Any]:
    """A region's numbers; its remark stands among those of all."""
    return {name: value for name, value in told.items() if name != "remark"}


def _failed(failure: str) -> dict[str, str]:
    """What `summed` made a sentence of."""
    account, _, rest = failure.partition("/")
    region, _, reason = rest.partition(": ")
    return {"account": account, "region": region, "reason": reason}


def _regions(kind: type[Summed], *, database: bool = False) -> Phase:
    division = Division(
        items=targets.items, concurrency=lambda settings: settings.cloud.concurrency, gather=partial(summed, kind)
    )
    return Phase(function="cloud-region", check=targets.checked, division=division, database=database)


SCAN: Final[Mapping[str, Phase]] = {
    "regions": _regions(Scan),
    "actions": Phase(function="cloud-actions", check=remedies.checked),
    "report": Phase(function="cloud-scan"),
}
HEALTH: Final[Mapping[str, Phase]] = {"regions": _regions(Examination, database=True)}
"""The phases of each, in order. What the health check brings up to date is a table."""


class CloudJob(PhasedJob):
    """A scan, without the phases that would come to nothing: actions where no remedy is set, and in a preview the
    report, which would be about what other scans found."""

    def turns(self, params: PhaseParams, settings: Settings) -> list[Turn]:
        idle = {"actions": not settings.cloud.remedies, "report": bool(params.dry_run)}
        return [turn for turn in super().turns(params, settings) if not idle.get(turn.name)]


def _type(job_type: str, catalogue: Mapping[str, Phase], **spans: tuple[int, int]) -> PhasedJob:
    return CloudJob(job_type, catalogue=catalogue, spans=spans, target="states:cloud", execution=EXECUTION)


TYPES: Final[Mapping[str, PhasedJob]] = {
    "waste_scan": _type("waste_scan", SCAN, regions=(0, 80), actions=(80, 95), report=(95, 100)),
    "security_enforcement": _type("security_enforcement", SCAN, regions=(0, 80), actions=(80, 95), report=(95, 100)),
    "instance_health": _type("instance_health", HEALTH, regions=(0, 100)),
}


STEPS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "begin": partial(phases.begin, types=TYPES),
    "divide": partial(fan_out.divide, types=TYPES),
    "lost": fan_out.lost,
    "gather": partial(fan_out.gather, types=TYPES),
    "pass_over": phases.pass_over,
    "finish": partial(phases.finish, types=TYPES),
}
"""Of the state machine, beside the phases."""


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """A step of the state machine, or by hand `{"phase": "report", "dry_run": true}`: what a report would say now.

    Raises:
        as `phases.begin`, `phases.take`, `phases.pass_over`, `phases.finish`, `fan_out.divide` and `fan_out.gather`.
    """
    step = STEPS.get(phases.step_of(event) or "")
    return step(event) if step else phases.take(event, context, {"report": report})
