"""The state machine of the cloud's jobs in process: accounts that change from day to day, what the reader says of them,
and a model of what the store has to hold of it."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Self
from unittest.mock import MagicMock, patch
from uuid import uuid4

from sqlalchemy import Engine

from lamplighter.cloud import access, cloud_region, cloud_scan, health, prices, reader, report, targets
from lamplighter.cloud.check import Basis, Judgement, judge
from lamplighter.cloud.cloud_region import CHECKS
from lamplighter.cloud.exemptions import KEY
from lamplighter.cloud.inventory import Inventory
from lamplighter.cloud.prices import Prices
from lamplighter.cloud.reported import Document
from lamplighter.cloud.store.documents import RegionFindings
from lamplighter.cloud.store.model import SECURITY_CHECKS, UNWATCHED
from lamplighter.cloud.store.s3 import REGIONS as REGIONS_PREFIX
from lamplighter.cloud.store.s3 import S3Store
from lamplighter.jobs.dispatcher import Alert
from lamplighter.kernel import settings as settings_module
from lamplighter.kernel.cloud import Limits, Targets
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.no_database import VARIABLES
from lamplighter.kernel.settings import CloudSettings, Settings
from local.stack import ROOT
from tests.integration.cloud_world import ACCOUNT
from tests.integration.phases_world import FragileStore, PhasesWorld, Points, after, fragile, stopping
from tests.integration.store_world import PostgresWorld, S3World, StoreWorld
from tests.inventories import TAGS, instance, series, volume
from tests.state_machine import load
from tests.unit.conftest import FakeContext

OTHER = "444455556666"
REGIONS = ("us-east-1", "eu-west-1")
PLACES = tuple((account, region) for account in (ACCOUNT, OTHER) for region in REGIONS)
TARGETS = (
    Targets(accounts=(ACCOUNT,), regions=REGIONS),
    Targets(accounts=(OTHER,), regions=REGIONS, role="lamplighter-scan", external_id="x"),
)
LIMITS = Limits(unattached_days=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 11, 22, 6, 35, tzinfo=UTC)
TROUBLES = ("unknown: volumes", "unknown: cpu", "refused", "throttled", "throttled once")
EXCEPTION = {"check": "unencrypted_volumes", "resource": "vol-*1", "reason": "r", "owner": "o", "expires": "2027-01-31"}

CHANGES = ("opened", "reopened", "resolved")

type Place = tuple[str, str]
"""An account and a region."""


class Accounts:
    """What is in the regions, and what reading them comes to: by the day, and by nothing else."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _rng(self, place: Place, *what: object) -> random.Random:
        return random.Random(f"{self._seed}/{place}/{what}")

    def inventory(self, place: Place, at: datetime) -> Inventory:
        """What there is. The first volume is never attached: its last sight tells when somebody looked."""
        day, number = (at - START) // DAY, PLACES.index(place)
        volumes = [volume(f"vol-{number}0", instances=(), state="available")]
        for n in range(1, 5):
            rng = self._rng(place, "volume", n, day // 3)
            if rng.random() < 0.8:
                uses = {"instances": ("i-1",)} if rng.random() < 0.3 else {"instances": (), "state": "available"}
                said = {"type": rng.choice(["gp2", "gp3"]), "encrypted": rng.random() < 0.5}
                volumes.append(volume(f"vol-{number}{n}", **said, **uses))
        instances, cpu = [], {}
        for n in range(3):
            rng = self._rng(place, "instance", n, day)
            if rng.random() < 0.8:
                instances.append(instance(f"i-{number}{n}", tags=rng.choice([{}, TAGS])))
                cpu[f"i-{number}{n}"] = rng.choice([series(1.0), series(90.0), series(1.0, 2.0)])
        _, _, gap = self.mood(place, at).partition("unknown: ")
        return Inventory(
            account=place[0],
            region=place[1],
            read_at=at,
            volumes=tuple(volumes),
            instances=tuple(instances),
            cpu=cpu,
            gaps={gap: "AccessDenied"} if gap else {},
        )

    def mood(self, place: Place, at: datetime) -> str:
        """How reading goes that day."""
        rng = self._rng(place, "mood", (at - START) // DAY)
        return rng.choice(TROUBLES) if rng.random() < 0.4 else "well"


@dataclass(kw_only=True)
class Life:
    """A finding's."""

    status: str
    first_seen: datetime
    last_seen: datetime
    resolved_at: datetime | None = None
    reopened_at: datetime | None = None
    times_reopened: int = 0


@dataclass
class Model:
    """What the store has to hold after the looks and scans that were committed, in their order."""

    accounts: Accounts
    lives: dict[tuple[Place, str, str], Life] = field(default_factory=dict)
    """By place, check and resource."""
    sights: dict[Place, dict[str, tuple[datetime, datetime]]] = field(default_factory=lambda: defaultdict(dict))
    """Of unattached volumes: the first and the last."""
    changes: dict[tuple[str, Place], list[int]] = field(default_factory=dict)
    """By job: how many findings its last scan of a place opened, reopened and resolved."""
    instances: dict[tuple[Place, str], tuple[str, datetime]] = field(default_factory=dict)
    """Their states, and since when."""

    def looked(self, place: Place, at: datetime) -> None:
        """Volumes were seen."""
        kept = self.sights[place]
        unattached = {one.id for one in self.accounts.inventory(place, at).volumes if not one.instances}
        self.sights[place] = {
            id: (at if id not in kept or kept[id][1] < at - UNWATCHED else kept[id][0], at) for id in unattached
        }

    def recorded(self, place: Place, at: datetime, job: Job) -> None:
        """A scan's word was taken."""
        said = self.judgement(place, at, job.job_type)
        found = {(one.check, one.resource_id) for one in said.findings}
        unknown = {(one.check, one.resource_id) for one in said.unknown}
        changed = [0, 0, 0]
        for check, resource in found:
            life = self.lives.get((place, check, resource))
            if life is None:
                self.lives[place, check, resource] = Life(status="open", first_seen=at, last_seen=at)
                changed[0] += 1
            else:
                if life.status == "resolved":
                    life.status, life.resolved_at, life.reopened_at = "open", None, at
                    life.times_reopened += 1
                    changed[1] += 1
                life.last_seen = at
        for (where, check, resource), life in self.lives.items():
            silent = not {(check, resource), (check, "*")} & (found | unknown)
            if where == place and check in said.judged and life.status == "open" and silent:
                life.status, life.resolved_at = "resolved", at
                changed[2] += 1
        self.changes[job.job_id, place] = changed

    def examined(self, place: Place, at: datetime) -> None:
        """Instances were seen."""
        there = {one.id: one.state for one in self.accounts.inventory(place, at).instances}
        for (where, id), (state, _) in list(self.instances.items()):
            if where == place and id not in there and state != "terminated":
                self.instances[place, id] = "terminated", at
        self.instances |= {(place, id): (state, at) for id, state in there.items()}

    def judgement(self, place: Place, at: datetime, job_type: str) -> Judgement:
        """What the checks say of a place."""
        since = {id: first for id, (first, _) in self.sights[place].items()}
        basis = Basis(now=at, limits=LIMITS, prices=Prices.from_file(place[1]), unattached_since=since)
        return judge(self.accounts.inventory(place, at), basis, CHECKS[job_type])


class ScansWorld(PhasesWorld):
    """Accounts that are scanned by executions whose functions can be killed after everything that they write."""

    definition = load((ROOT / "statemachines/cloud.asl.yaml").read_text(), CloudScan="steps", Stack="stack")
    types = tuple(cloud_scan.TYPES)

    def __init__(self, engine: Engine | None, s3: Any, seed: int) -> None:
        """`engine` is of the database that keeps the findings; where there is none, the bucket does."""
        self.point = Points()
        super().__init__(engine, FragileStore(self.point))  # type: ignore[arg-type] - not used where there is none
        self.now = START
        self.rng = random.Random(seed)
        self.ledger = Ledger(self.store, clock=lambda: self.now, rng=self.rng)
        self.settings = Settings(cloud=CloudSettings(targets=TARGETS, limits=LIMITS))
        self.accounts = Accounts(seed)
        self.model = Model(self.accounts)
        self.s3, self.bucket = s3, f"archive-{uuid4().hex}"
        self.reports: dict[str, datetime] = {}
        """By job: the moment of its report."""
        self.touched = set[str]()
        """Jobs that were at work on their reports since the last look at them."""
        self.verified = set[str]()
        """Jobs that have ended and said what they had to."""
        self._throttled = set[tuple[Place, date]]()
        s3.create_bucket(Bucket=self.bucket)
        self.kept: StoreWorld = PostgresWorld(engine) if engine else S3World(s3, self.bucket)
        if not engine:
            self.types = tuple(name for name in self.types if name != "instance_health")
        s3.put_object(Bucket=self.bucket, Key=KEY, Body=json.dumps({"exceptions": [EXCEPTION]}))
        for region in REGIONS:
            found = [self.accounts.inventory(place, START + n * DAY) for place in PLACES for n in range(30)]
            known: prices.Answers = {question: {} for one in found for question in prices.questions(one)}
            document = prices.stored(Prices(region=region, answers=known, answered=START + 365 * DAY))
            s3.put_object(Bucket=self.bucket, Key=f"cloud/prices/{region}.json", Body=document)

    # -- what befalls it ---------------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """The handlers work on this world's ledger, clock, accounts and bucket; all that they write is a point."""
        put, upload = report._put, report._upload
        with (
            super().installed(),
            fragile(self, self.point) if self.engine else fragile_bucket(self, self.point),
            patch.object(reader, "read", self._read),
            patch.object(health, "statuses", lambda ec2: {}),
            patch.object(access, "clients", lambda *_, **__: MagicMock(calls=0)),  # nobody sends a request with them
            patch.object(targets, "_partition", lambda region: "aws"),  # botocore takes its time to say so
            patch.object(report, "_put", after(put, partial(self.point, "put"))),
            patch.object(report, "_upload", after(upload, partial(self.point, "upload"))),
            patch.object(settings_module, "load", lambda: self.settings),
            patch.dict(os.environ, ACCOUNT_ID=ACCOUNT, AWS_REGION=REGIONS[0], ARCHIVE_BUCKET=self.bucket),
            patch.dict(os.environ, {} if self.engine else dict.fromkeys(VARIABLES, "")),
        ):
            yield self

    def _read(self, *_: Any, account: str, region: str, now: datetime, **__: Any) -> Inventory:
        """As `reader.read`."""
        match self.accounts.mood((account, region), now), (day := ((account, region), now.date())):
            case "refused", _:
                raise Permanent(f"Nothing of account {account} can be read in {region}: AccessDenied")
            case "throttled", _:
                raise Retryable("It came too fast.")
            case "throttled once", _ if day not in self._throttled:
                self._throttled.add(day)
                raise Retryable("It came too fast, once.")
        return self.accounts.inventory((account, region), now)

    def _invoke(self, function: str, payload: Any) -> Any:
        handler = {"stack-cloud-region": cloud_region.handler}.get(function, cloud_scan.handler)
        step = payload.get("step") or payload.get("phase") or payload["left"][0]["name"]
        self.now += timedelta(seconds=1)
        began = self.now
        try:
            with self.point.within(f"{step}: "):
                answer = handler(payload, FakeContext(self.function_time))
                self.point("answered")
        finally:
            self._observe(step, payload, began)
        if step == "report" and "report" in answer["outcomes"]:
            self.verify_report(payload["job_id"])
            told = self.document(payload["job_id"])
            found = {one.id for one in self.kept.rows() if one.status == "open"}
            assert {one.id for one in (*told.findings, *told.exempted_findings)} == found
        return answer

    def _observe(self, step: str, payload: Any, began: datetime) -> None:
        """Bring what a call has committed into the model."""
        if step == "report":
            self.touched.add(payload["job_id"])
        if step == "regions" and "item" in payload:
            where = payload["item"]["value"]
            place, job = (where["account"], where["region"]), self.ledger.get(payload["job_id"])
            looked, recorded, examined = self._committed(place, began)
            if looked:
                self.model.looked(place, began)
            if recorded:
                self.model.recorded(place, began, job)
            if examined:
                self.model.examined(place, began)

    def _committed(self, place: Place, at: datetime) -> tuple[bool, bool, bool]:
        """Whether a look, a scan's word and a health check of that moment are in the store."""
        looked = any(key[:2] == place and last == at for key, (_, last) in self.kept.sights().items())
        if self.engine:
            [(recorded, examined)] = self.sql(COMMITTED, account=place[0], region=place[1], at=at)
            return looked, recorded, examined
        assert isinstance(self.kept, S3World)
        documents = self.kept.documents(REGIONS_PREFIX, RegionFindings)
        here = [one for one in documents if (one.account, one.region) == place]
        return looked, any(one.at == at for document in here for one in document.judged.values()), False

    # -- what has to hold --------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """What holds at any time after the checker has passed, whatever was killed."""
        for job in self.jobs():
            assert job.status.terminal, f"left behind: {job}"
            if job.job_id not in self.verified:
                self.verify_job(job)
                self.verified.add(job.job_id)
        assert self.store.locks == {}, "a lock was left behind"
        self.verify_store()
        for job_id in self.touched:
            if any(row["job_id"] == job_id for row in self.kept.reports()):
                self.verify_report(job_id)
        self.touched.clear()
        alerts = Counter(action.job.job_id for action in self.done if isinstance(action, Alert))
        assert alerts == Counter(job.job_id for job in self.jobs() if job.status is Status.FAILED), "told not once"

    def verify_store(self) -> None:
        """Nothing is in the store but what was committed, and nothing of that is missing."""
        lives = {
            ((row.account, row.region), row.check, row.resource_id): Life(
                **{name: getattr(row, name) for name in Life.__dataclass_fields__}
            )
            for row in self.kept.rows()
        }
        assert lives == self.model.lives
        seen = {(*place, id): sight for place, those in self.model.sights.items() for id, sight in those.items()}
        assert self.kept.sights() == seen
        instances = {
            ((row.account_id, row.region), row.id): (row.state, row.updated_at)
            for row in (self.sql("SELECT * FROM lamplighter.instances") if self.engine else ())
        }
        assert instances == self.model.instances
        made = {row["job_id"]: row["created_at"] for row in self.kept.reports()}
        assert made.items() >= self.reports.items(), "a report is lost, or its moment moved"
        self.reports = made

    def verify_job(self, job: Job) -> None:
        """What a job that has come to its end says: of each region that it was read, or why not; and its report too."""
        told = job.result or {}
        if job.status is not Status.COMPLETED or "phases" not in told:
            return
        regions, reported = told["phases"].get("regions"), told["phases"].get("report")
        failed = {one.partition(": ")[0]: one.partition(": ")[2] for one in told["errors"]}
        assert regions or "regions" in failed, "nothing is said of the regions"
        if regions:
            read = [(one["account"], one["region"]) for one in regions["regions"]]
            lost = [tuple(one.partition(": ")[0].split("/")) for one in regions["failures"]]
            assert sorted(read + lost) == sorted(PLACES)
            if job.job_type in CHECKS and not job.dry_run:
                changes = [self.model.changes[job.job_id, place] for place in read]
                counted = [[one.get(name, 0) for name in CHANGES] for one in regions["regions"]]
                assert counted == changes
        whole = regions and not regions["failures"] and not failed
        assert told["status"] == ("completed" if whole else "completed_with_errors")
        if reported and not job.dry_run:
            document = self.document(job.job_id)
            assert reported["findings"] == document.totals.all.findings
            failures = [f"{one.account}/{one.region}: {one.reason}" for one in document.regions_failed]
            assert failures == (regions["failures"] if regions else [])
            assert regions or any(failed["regions"] in one for one in document.remarks), "the reader does not know"

    def verify_report(self, job_id: str) -> None:
        """A report's row and its documents agree."""
        row = self._report(job_id)
        document = self.document(job_id)
        own = (document.job_id, document.job_type, document.generated_at)
        assert own == (job_id, row["job_type"], row["created_at"])
        assert document.documents == row["documents"]
        assert document.totals.all.findings == row["findings"]
        assert document.totals.all.monthly_usd == row["monthly_usd"]
        told = [*document.findings, *document.exempted_findings]
        assert document.totals.all.findings == len(document.findings)
        assert document.totals.all.monthly_usd == round(sum(one.counted_usd for one in document.findings), 2)
        lines = csv.DictReader(io.StringIO(self._object(row["documents"]["csv"]), newline=""), strict=True)
        assert [(one["check"], one["resource_id"]) for one in lines] == [(one.check, one.resource_id) for one in told]
        page = self._object(row["documents"]["html"])
        assert all(one.resource_id in page for one in told)
        exported = [
            one for key in self._keys(row["documents"]["asff"]) for one in json.loads(self._object(key))["Findings"]
        ]
        assert len({one["Id"] for one in exported}) == len(exported)
        active = Counter(one["GeneratorId"] for one in exported if one["RecordState"] == "ACTIVE")
        assert active == Counter(
            f"lamplighter/{one.check}" for one in document.findings if one.check in SECURITY_CHECKS
        )

    def document(self, job_id: str) -> Document:
        """The report.json of a job."""
        return Document.model_validate_json(self._object(self._report(job_id)["documents"]["json"]))

    def _report(self, job_id: str) -> dict[str, Any]:
        [row] = [row for row in self.kept.reports() if row["job_id"] == job_id]
        return row

    def _keys(self, address: str) -> list[str]:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        listed = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        return [f"s3://{bucket}/{one['Key']}" for one in listed]

    def _object(self, address: str) -> str:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()).decode()


COMMITTED = """
    SELECT
        EXISTS (SELECT FROM lamplighter.judged_checks
            WHERE account_id = :account AND region = :region AND judged_at = :at),
        EXISTS (SELECT FROM lamplighter.instances WHERE account_id = :account AND region = :region AND updated_at = :at)
"""


@contextmanager
def fragile_bucket(world: ScansWorld, point: Points) -> Iterator[None]:
    """As `fragile`, where the bucket keeps the findings: every object that is written is a point."""
    with stopping(world), patch.object(S3Store, "_put", after(S3Store._put, partial(point, "keep"))):
        yield
