"""One region of one account: the item of the scans' phase `regions` (REQUIREMENTS C2-C12, C15, C17).

Reads what the checks of the job ask for, each thing once, puts them to it, and brings what they say into the store. A
preview does all but the last. It asks before every request whether it is to go on; a region that is too large for one
function's time ends with a sentence that says so, and its findings stay as an earlier scan left them: half a region
must not be taken for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from aws_lambda_powertools import Logger
from pydantic import BaseModel, ConfigDict

from lamplighter.cloud import health, prices, reader, targets
from lamplighter.cloud.check import Basis, Check, Judgement, judge, wanted
from lamplighter.cloud.checks import SECURITY, WASTE
from lamplighter.cloud.exemptions import Exemptions, load
from lamplighter.cloud.reader import ClientOf
from lamplighter.cloud.store import findings_store
from lamplighter.cloud.totals import monthly_total
from lamplighter.kernel import fan_out
from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.deletion import archive_bucket
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.events import json_object, parsed
from lamplighter.kernel.job import Context, Report, Run
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.settings import Settings

if TYPE_CHECKING:
    from lamplighter.cloud.access import Clients
    from lamplighter.cloud.targets import Target

logger = Logger(child=True)

CHECKS: Final[Mapping[str, tuple[Check, ...]]] = {"waste_scan": WASTE, "security_enforcement": SECURITY}
"""By job type."""


class Scanned(Report):
    """What a scan found in a region."""

    findings: int = 0
    monthly_usd: float = 0
    """Of what is not exempted, each resource counted once."""
    exempted: int = 0
    unknown: int = 0
    """What could not be judged."""
    opened: int = 0
    reopened: int = 0
    resolved: int = 0
    api_calls: int = 0
    seconds: float = 0
    remark: str | None = None
    """What readers of the findings have to know."""

    def counts(self) -> tuple[int, int]:
        """Findings; their size does not matter here."""
        return self.findings, 0


class Event(BaseModel):
    """By hand, straight to the function: one region previewed; no row is made, nothing is recorded."""

    model_config = ConfigDict(extra="forbid")

    job_type: Literal["waste_scan", "security_enforcement"]
    account: str | None = None
    """The stack's own by default, as its region is."""
    region: str | None = None
    dry_run: Literal[True]


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """An item of a run, or the preview of one.

    Raises:
        as `fan_out.work`; Permanent: the event is neither, or names no target.
    """
    given = json_object(event, "an item of a run, or job_type and dry_run for a preview")
    return fan_out.work(given, context, body) if "job_id" in given else previewed(parsed(Event, given))


def body(run: Run, item: dict[str, Any]) -> Report:
    """Look at one region, as the run's job type asks.

    Raises:
        Stopped: the run was cancelled, or there is no more time.
        Retryable: AWS or the store of findings cannot be reached.
        Permanent: the region, or what is stored of it, may not be read.
    """
    began, target = run.now(), targets.find(run.settings, item["account"], item["region"])
    # A store that is down is found out before all is read, not after.
    findings_store().demand_readable(account=target.account, region=target.region)
    clients = Watched(target.enter(run.job_id), run)
    if run.job.job_type == "instance_health":
        report: Report = health.examine(clients, target, run, began)
    else:
        report = scan(clients, target, run, began)
    seconds = (run.now() - began) / timedelta(seconds=1)
    return report.model_copy(update={"api_calls": clients.calls, "seconds": round(seconds, 1)})


def scan(clients: Watched, target: Target, run: Run, now: datetime) -> Scanned:
    """Put the checks of the run's job type to a region, and record what they say."""
    exemptions, remark = _exemptions(now)
    judgement = look(clients, target, run.job.job_type, run.settings, now=now, preview=run.job.dry_run)
    fan_out.ask(run)
    alerting = [one for one in judgement.findings if not (exemptions and exemptions.covering(one, now))]
    report = Scanned(
        findings=len(judgement.findings),
        monthly_usd=round(monthly_total(alerting), 2),
        exempted=len(judgement.findings) - len(alerting),
        unknown=len(judgement.unknown),
        remark=remark,
    )
    if run.job.dry_run:
        return report
    here = {"account": target.account, "region": target.region, "job_id": run.job_id}
    recorded = findings_store(run.settings).record(judgement, **here, now=now, exemptions=exemptions)
    changes = {"opened": recorded.opened, "reopened": recorded.reopened, "resolved": recorded.resolved}
    run.logger.info("recorded", extra={"superseded": sorted(recorded.superseded), **changes})
    return report.model_copy(update=changes)


def look(
    clients: ClientOf, target: Target, job_type: str, settings: Settings, *, now: datetime, preview: bool
) -> Judgement:
    """What the checks of a job type say of a region; a preview forgets what it saw."""
    from lamplighter.kernel.aws import client

    checks, limits = CHECKS[job_type], settings.cloud.limits
    here = {"account": target.account, "region": target.region}
    inventory = reader.read(clients, **here, now=now, limits=limits, needs=wanted(checks))
    priced = checks is WASTE
    known = prices.kept(inventory, s3=client("s3"), bucket=archive_bucket(), now=now) if priced else None
    since = None
    if "volumes" in wanted(checks) - inventory.gaps.keys():
        since = findings_store().unattached_since(**here, volumes=inventory.volumes, now=now, preview=preview)
    prices_ = known or prices.Prices.from_file(target.region)
    return judge(inventory, Basis(now=now, limits=limits, prices=prices_, unattached_since=since), checks)


def previewed(event: Event) -> dict[str, Any]:
    """What a scan would find in a region, every finding spelled out."""
    settings, now = settings_module.load(), utc_now()
    own = targets.own()
    target = targets.find(settings, event.account or own.account, event.region or own.region)
    clients = target.enter("preview")
    judgement = look(clients, target, event.job_type, settings, now=now, preview=True)
    told = asdict(judgement)
    return {
        "dry_run": True,
        "account": target.account,
        "region": target.region,
        "api_calls": clients.calls,
        "findings": json.loads(json.dumps(told["findings"], default=str)),
        "unknown": list(told["unknown"]),
    }


class Watched:
    """The clients of a region; each of their requests asks first whether the run is to go on (REQUIREMENTS K7)."""

    def __init__(self, clients: Clients, run: Run) -> None:
        self._clients = clients
        self._run = run

    def __call__(self, service: str) -> Any:
        """The client of `service`."""
        made = self._clients(service)
        made.meta.events.register("before-call", self._ask, unique_id="go-on")  # once, however often it is asked for
        return made

    @property
    def calls(self) -> int:
        """How many requests were sent."""
        return self._clients.calls

    def _ask(self, **_: Any) -> None:
        fan_out.ask(self._run)


def _exemptions(now: datetime) -> tuple[Exemptions | None, str | None]:
    """The exceptions of this deployment, with those that have expired, or why they are not known: findings then keep
    those that they have."""
    from lamplighter.kernel.aws import client

    try:
        known = load(client("s3"), archive_bucket())
    except Permanent as error:
        logger.error("the exceptions are not known", extra={"error": str(error)})
        return None, fan_out.short(str(error).replace(f"s3://{archive_bucket()}/", ""), fan_out.REMARK)
    remark = known.remark(now)
    return known, remark and fan_out.short(remark, fan_out.REMARK)
