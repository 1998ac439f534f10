"""The demo's data: a media bucket with orphans in it, rows that name the rest, and a ledger with a history.

The data is deterministic. A run adds only what is missing, so a second run finds most of it. The live jobs have to be
fresh, so each run replaces them.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import batched
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, unquote, unquote_plus, urlsplit
from xml.etree import ElementTree

from local.stack import LocalAws

if TYPE_CHECKING:
    from pg8000.native import Connection

    from lamplighter.kernel.ledger.row import Job, Policy, Status

OBJECTS: Final = 20_000
JOBS: Final = 10_000
STUCK: Final = 25
DUE: Final = 10
RUNNING: Final = 150
WAITING: Final = 90
OLD: Final = 200
ORPHAN_SHARE: Final = 0.007
CDN: Final = "https://cdn.example.com/"
PREFIXED: Final = 40
"""Rows that an importer wrote with `PREFIX`, which is no part of the keys."""
PREFIX: Final = "static/"
HOSTED: Final = 25
"""Rows that name pictures of another host."""
HOST: Final = "gravatar.com"
MISSING: Final = 12
"""Rows whose file is gone."""
AMBIGUOUS: Final = 3
"""Files without a row that a row of a missing file could mean."""
DERIVED: Final = 30
EXCLUDED: Final = 5
EXCLUDE: Final = "legal/**"
THREADS: Final = 8
MARK: Final = {"pk": {"S": "DEMO#jobs"}}
"""The item that remembers which jobs are the demo's; no stream consumer looks at its kind."""

Advance = Callable[[int], object]
"""Told of so many more that are done."""

_ODD: Final = (
    "Straße im Büro (1).jpg",
    "100% sure + maybe.png",
    "party 🎉.webp",
    "a&b <c> 'd'.gif",
    "what?now#here.jpg",
    "double//slash.jpg",
    "two  spaces .jpeg",
    "café ünïcode.heic",
    "UPPER.CASE.JPG",
    "x" * 200 + ".mp4",
)
_NOT_MEDIA: Final = ("documents/contract-{0:04}.pdf", "exports/report-{0:04}.csv", "backups/settings-{0:04}.json")
OTHER_FILES: Final = ("documents/", "exports/", "backups/")
_KINDS: Final = (
    "photos/2024/{1:02}/IMG_{0:05}.jpg",
    "photos/2025/{1:02}/IMG_{0:05}.heic",
    "avatars/user-{0:05}.png",
    "thumbnails/{1:02}/{0:05}.webp",
    "videos/clip-{0:05}.mp4",
)


type Kept = Literal["kept_derived", "kept_ambiguous", "excluded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """An object, and how the row that names it spells its key; None if no row does."""

    key: str
    size: int
    stored_as: str | None
    kept: Kept | None = None
    """Why the cleanup keeps an object that no row names; None if it does not."""


def media(bucket: str) -> list[Media]:
    """All objects: mostly media, of which seven in a thousand are orphaned; the rest are other files."""
    random = Random(20_000)
    found = []
    for number in range(OBJECTS):
        size = random.randint(100, 1500)
        if number % 50 == 0:
            key = _NOT_MEDIA[number // 50 % 3].format(number)
        elif number % 100 == 1:
            key = f"odd/{number:05}/{_ODD[number // 100 % len(_ODD)]}"
        else:
            key = random.choice(_KINDS).format(number, random.randint(1, 12))
        named = not key.startswith(OTHER_FILES) and random.random() >= ORPHAN_SHARE
        found.append(Media(key=key, size=size, stored_as=_spelled(key, bucket, random) if named else None))
    named_avatars = [n for n, one in enumerate(found) if one.stored_as and one.key.startswith("avatars/")]
    for n in named_avatars[:PREFIXED]:
        found[n] = replace(found[n], stored_as=PREFIX + found[n].key)
    photos = [one.key for one in found if one.stored_as and one.key.startswith("photos/2024/")]
    thumbnails = [f"{key.removesuffix('.jpg')}-150x150.jpg" for key in photos[:DERIVED]]
    unnamed: list[tuple[str, Kept]] = [(key, "kept_derived") for key in thumbnails]
    unnamed += [(f"restored/banner-{n:03}-spring.jpg", "kept_ambiguous") for n in range(AMBIGUOUS)]
    unnamed += [(f"legal/evidence-{n:03}.jpg", "excluded") for n in range(EXCLUDED)]
    return [*found, *(Media(key=key, size=200, stored_as=None, kept=kept) for key, kept in unnamed)]


def other_rows() -> list[str]:
    """Values that name no object of the bucket: pictures of another host, and files that are gone."""
    random = Random(HOSTED)
    hosted = [f"https://{HOST}/avatar/{random.getrandbits(128):032x}.jpg" for _ in range(HOSTED)]
    return [*hosted, *(f"campaigns/2023/banner-{n:03}-spring.jpg" for n in range(MISSING))]


def _spelled(key: str, bucket: str, random: Random) -> str:
    """As applications store keys: whole, with a leading slash, as a URL."""
    (form,) = random.choices(("plain", "slash", "cdn", "s3"), (60, 15, 15, 10))
    return {"plain": key, "slash": f"/{key}", "cdn": CDN + quote(key), "s3": f"s3://{bucket}/{quote(key)}"}[form]


def key_of(stored: str, bucket: str) -> str:
    """The key that a row of the demo names. It does not use the product's own rule, which it checks."""
    for origin in (CDN, f"s3://{bucket}/"):
        if stored.startswith(origin):
            return unquote(stored.removeprefix(origin))
    return stored.removeprefix("/").removeprefix(PREFIX)


def listing(aws: LocalAws, bucket: str) -> dict[str, str]:
    """The ETag of each object of the bucket, by key, without Lamplighter's own.

    By signed URLs, because boto3 takes ten times as long to read a page as ElementTree does.
    """
    s3, space = aws.client("s3"), "{http://s3.amazonaws.com/doc/2006-03-01/}"
    connection = http.client.HTTPConnection(urlsplit(aws.endpoint_url).netloc, timeout=30)
    found: dict[str, str] = {}
    asked: dict[str, str] | None = {"Bucket": bucket, "EncodingType": "url"}
    while asked:
        url = s3.generate_presigned_url("list_objects_v2", Params=asked)
        connection.request("GET", url.removeprefix(aws.endpoint_url))
        answer = connection.getresponse()
        page = ElementTree.fromstring(answer.read())
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"S3 answered {answer.status} to a listing of {bucket}.")
        for entry in page.iter(f"{space}Contents"):
            found[unquote_plus(entry.findtext(f"{space}Key", ""))] = entry.findtext(f"{space}ETag", "")
        token = page.findtext(f"{space}NextContinuationToken")
        asked = {"Bucket": bucket, "EncodingType": "url", "ContinuationToken": token} if token else None
    connection.close()
    return {key: etag for key, etag in found.items() if not key.startswith(".lamplighter/")}


def put_objects(aws: LocalAws, bucket: str, wanted: Sequence[Media], advance: Advance) -> tuple[int, dict[str, str]]:
    """Put those that the bucket lacks; how many those were, and the bucket's listing now.

    By signed URLs, because boto3's own `put_object` costs ten times what the signature does.
    """
    there = listing(aws, bucket)
    missing = [one for one in wanted if one.key not in there]
    s3 = aws.client("s3")

    def put(share: Iterable[Media]) -> None:
        host = urlsplit(aws.endpoint_url).netloc
        connection = http.client.HTTPConnection(host, timeout=30)
        for one in share:
            url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": one.key})
            connection.request("PUT", url.partition(host)[2], body=(one.key.encode() * one.size)[: one.size])
            answer = connection.getresponse()
            answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise RuntimeError(f"S3 answered {answer.status} to the object {one.key!r}.")
            advance(1)
        connection.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(put, (missing[n::THREADS] for n in range(THREADS))))
    return len(missing), listing(aws, bucket) if missing else there


def insert_references(database: Connection, wanted: Iterable[Media]) -> int:
    """Insert the rows of `media_files` that are lacking; how many."""
    stored = [*(one.stored_as for one in wanted if one.stored_as is not None), *other_rows()]
    database.run(
        "INSERT INTO media_files (storage_key) SELECT value FROM json_array_elements_text(CAST(:stored AS json))"
        " WHERE NOT EXISTS (SELECT FROM media_files WHERE storage_key = value)",
        stored=json.dumps(stored),
    )
    return int(database.row_count)


# -- jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJobs:
    """The jobs that are alive when the demo begins."""

    stuck: list[Job]
    """Running past their deadline, or never picked up."""
    poison: Job
    """Stuck for the third time."""
    due: list[Job]
    """Waiting, and their time has come."""
    others: list[Job]
    """Running well within their deadline, or waiting for a later time."""

    def all(self) -> list[Job]:
        """Each of them."""
        return [*self.stuck, self.poison, *self.due, *self.others]


def put_jobs(aws: LocalAws, table: str, now: datetime, advance: Advance) -> LiveJobs:
    """Write the history unless it is there, and the live jobs in place of an earlier run's."""
    from lamplighter.kernel.ledger.dynamo import to_item
    from lamplighter.kernel.ledger.row import job_key

    dynamodb = aws.client("dynamodb")
    mark = dynamodb.get_item(TableName=table, Key=MARK, ConsistentRead=True).get("Item")
    live = _live(now)
    requests = [{"DeleteRequest": {"Key": {"pk": key}}} for key in (mark or {}).get("live", {"L": []})["L"]]
    # Noted before they are written, so that an interrupted run's are found, too.
    keys = [{"S": job_key(job.job_id)} for job in live.all()]
    dynamodb.put_item(TableName=table, Item={**(mark or MARK), "live": {"L": keys}})
    history = [] if mark and "has_history" in mark else _history(now, JOBS - len(keys))
    requests += [{"PutRequest": {"Item": to_item(job)}} for job in [*history, *live.all()]]

    _write(aws, table, requests, advance)
    dynamodb.put_item(TableName=table, Item={**MARK, "live": {"L": keys}, "has_history": {"BOOL": True}})
    return live


def put_old_jobs(aws: LocalAws, table: str, now: datetime) -> list[Job]:
    """Write jobs that are over since more than 30 days: what a cleanup removes."""
    from lamplighter.kernel.ledger.dynamo import to_item

    jobs = _old(now)
    _write(aws, table, [{"PutRequest": {"Item": to_item(job)}} for job in jobs], lambda _: None)
    return jobs


def _write(aws: LocalAws, table: str, requests: Sequence[dict[str, Any]], advance: Advance) -> None:
    dynamodb = aws.client("dynamodb")

    def write(batch: tuple[dict[str, Any], ...]) -> None:
        left = list(batch)
        while left:
            left = dynamodb.batch_write_item(RequestItems={table: left})["UnprocessedItems"].get(table, [])
        advance(len(batch))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, batched(requests, 25, strict=False)))


def read_jobs(aws: LocalAws, table: str, jobs: Iterable[Job]) -> list[Job]:
    """The jobs as the ledger has them now."""
    from lamplighter.kernel.ledger.dynamo import from_item
    from lamplighter.kernel.ledger.row import job_key

    dynamodb = aws.client("dynamodb")
    found: dict[str, Job] = {}
    for batch in batched((job_key(job.job_id) for job in jobs), 100, strict=False):
        keys = [{"pk": {"S": key}} for key in batch]
        answer = dynamodb.batch_get_item(RequestItems={table: {"Keys": keys, "ConsistentRead": True}})
        found |= {item["pk"]["S"]: from_item(item) for item in answer["Responses"][table]}
    return [found[job_key(job.job_id)] for job in jobs]


def _policy(job_type: str) -> Policy:
    """Of a worker outside Lambda that polls for its jobs: nothing is started for them."""
    from lamplighter.kernel.ledger.row import Policy
    from lamplighter.kernel.settings import Settings

    return Policy(timeout=Settings().job_timeout(job_type))


def _types() -> list[str]:
    from lamplighter.kernel.settings import Settings

    return [
        name for name in Settings().jobs.timeout_minutes if name not in ("default", "cleanup")
    ]  # which runs for real


def _ended(random: Random, job_type: str, created: datetime, status: Status) -> Job:
    """A job that ran once, for a part of its time."""
    from lamplighter.kernel.ledger.row import Job, Trigger, new_job_id

    policy = _policy(job_type)
    started = created + timedelta(seconds=random.randint(1, 20))
    ended = started + policy.timeout * random.uniform(0.02, 0.6)
    return Job(
        job_id=new_job_id(created, random.randbytes(10)),
        job_type=job_type,
        policy=policy,
        status=status,
        created_at=created,
        run_at=created,
        started_at=started,
        heartbeat_at=ended,
        finished_at=ended,
        trigger=random.choice((Trigger.SCHEDULE, Trigger.API, Trigger.EVENT)),
        progress=100,
    )


def _old(now: datetime) -> list[Job]:
    """Jobs whose time in the ledger is over."""
    from lamplighter.kernel.ledger.row import Status

    random, types = Random(), _types()
    return [
        _ended(random, random.choice(types), now - timedelta(days=random.uniform(31, 45)), Status.COMPLETED)
        for _ in range(OLD)
    ]


def _history(now: datetime, count: int) -> list[Job]:
    """Jobs that ended within the last thirty days; those that failed were redriven, by another job of the history."""
    from lamplighter.kernel.ledger.row import AttemptError, Status, Trigger

    random, types = Random(JOBS), _types()
    jobs: list[Job] = []
    failed: Job | None = None
    for _ in range(count):
        job_type = failed.job_type if failed else random.choice(types)
        created = now - timedelta(seconds=random.randint(7_200, 29 * 86_400))
        if failed and failed.finished_at:
            created = failed.finished_at + timedelta(minutes=10)
        status = random.choices((Status.COMPLETED, Status.FAILED, Status.CANCELLED), (96, 2, 2))[0]
        job = _ended(random, job_type, created, status)
        if failed:
            jobs[-1] = replace(failed, redriven_as=job.job_id)
            job = replace(job, status=Status.COMPLETED, trigger=Trigger.RETRY, redrive_of=failed.job_id)
        failed = None
        if job.status is Status.FAILED:
            error = AttemptError(
                type="ConnectionError",
                message="The library did not answer.",
                attempt=3,
                at=job.finished_at or now,
                reason="error",
            )
            job = failed = replace(job, attempt=3, progress=60, errors=(error,), dead_letter="exhausted")
        jobs.append(job)
    if failed:
        jobs[-1] = replace(failed, redriven_as=failed.job_id)
    return jobs


def _live(now: datetime) -> LiveJobs:
    from lamplighter.kernel.ledger.row import AttemptError, Job, Policy, Status, Trigger, new_job_id

    random, types = Random(), _types()

    def pending(number: int, *, run_at: datetime, released: bool = False) -> Job:
        policy, created = _policy(types[number % len(types)]), min(now, run_at) - timedelta(minutes=5)
        return Job(
            job_id=new_job_id(created, random.randbytes(10)),
            job_type=types[number % len(types)],
            policy=policy,
            status=Status.PENDING,
            created_at=created,
            run_at=run_at,
            released=released,
            deadline_at=run_at + policy.pickup if released else None,
            trigger=Trigger.API,
        )

    def running(number: int, *, since: float, attempt: int = 1) -> Job:
        """`since`: how much of its time the attempt has used, 1 being all of it."""
        timeout = _policy(types[number % len(types)]).timeout
        started = now - timeout * since
        return replace(
            pending(number, run_at=started),
            status=Status.RUNNING,
            released=True,
            attempt=attempt,
            started_at=started,
            heartbeat_at=started,
            deadline_at=started + timeout,
            progress=min(95, int(90 * since)),
        )

    never = [pending(number, run_at=now - timedelta(hours=1), released=True) for number in range(2)]
    last = [running(number, since=1.2, attempt=3) for number in range(4)]
    stuck = [running(number, since=random.uniform(1.01, 3)) for number in range(STUCK - len(never) - len(last))]
    rescues = (now - timedelta(hours=20), now - timedelta(hours=10))
    poison = replace(
        running(0, since=1.5, attempt=3),
        job_type="orphan_cleanup",
        policy=Policy(timeout=timedelta(minutes=16), target="lambda:orphan-cleanup", max_attempts=5, critical=True),
        payload={"base_path": "photos/2024/", "dry_run": True},
        dry_run=True,
        rescues=rescues,
        errors=tuple(
            AttemptError(
                type="TimedOut",
                message="The attempt ran longer than its timeout of 16 min.",
                attempt=n + 1,
                at=at,
                reason="deadline",
            )
            for n, at in enumerate(rescues)
        ),
    )
    return LiveJobs(
        stuck=[*never, *last, *stuck],
        poison=poison,
        due=[pending(number, run_at=now - timedelta(seconds=5)) for number in range(DUE)],
        others=[
            *(running(number, since=random.uniform(0.02, 0.5)) for number in range(RUNNING)),
            *(pending(number, run_at=now + timedelta(hours=random.uniform(1, 48))) for number in range(WAITING)),
        ],
    )
