"""The findings' store in S3 alone: two scans at once, S3 that fails, objects that somebody else changed (P5)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError

from lamplighter.cloud.store import documents
from lamplighter.cloud.store import s3 as s3_store
from lamplighter.cloud.store.documents import RegionFindings, finding_id
from lamplighter.cloud.store.model import Recorded
from lamplighter.cloud.store.s3 import REGIONS, REPORTS, TRIES, _key
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent, Retryable, Unreadable
from local.stack import ROOT
from tests.integration.store_world import S3World, s3_world
from tests.integration.test_findings import HERE, NOW, finding, judgement, later, record, rows, since, volume
from tests.memory_s3 import MemoryS3

KEY = _key(REGIONS, **HERE)
VOLUMES_KEY = KEY.replace("regions", "volumes")


@pytest.fixture
def bucket() -> S3World:
    """A bucket in memory, of which this process has read nothing."""
    s3_store._read_before.clear()
    memory = MemoryS3()
    memory.buckets["archive"] = {}
    return S3World(memory.client(), "archive")


@pytest.fixture
def served(s3: Any) -> S3World:
    """A bucket of an S3 server."""
    return s3_world(s3)


@contextmanager
def right_before(s3: Any, operation: str, do: Callable[[], object]) -> Iterator[list[int]]:
    """Do something once, right before the first request of an operation; the statuses of all its answers."""
    statuses: list[int] = []
    pending = [do]

    def before(**_: Any) -> None:
        if pending:
            pending.pop()()

    def after(http_response: Any, **_: Any) -> None:
        statuses.append(http_response.status_code)

    s3.meta.events.register(f"before-call.s3.{operation}", before)
    s3.meta.events.register(f"after-call.s3.{operation}", after)
    try:
        yield statuses
    finally:
        s3.meta.events.unregister(f"before-call.s3.{operation}", before)
        s3.meta.events.unregister(f"after-call.s3.{operation}", after)


# -- two at once -----------------------------------------------------------------------------------------------------


def test_of_two_scans_that_write_at_once_one_reads_again_and_nothing_is_lost(served: S3World) -> None:
    """Waste and security, of one region: the first write (If-None-Match), and a later one (If-Match)."""
    for hours in (0, 1):
        other = judgement(finding(f"sg-{hours}", "open_ports"), judged=["open_ports"])
        with right_before(
            served.s3, "PutObject", partial(record, served, other, later(hours), job_id="other")
        ) as statuses:
            assert record(served, judgement(finding("i-1")), later(hours)).superseded == frozenset()
        assert sorted(statuses) == [200, 200, 412], "the writes did not meet"
    assert {resource: row.status for resource, row in rows(served).items()} == {
        "i-1": "open",
        "sg-0": "resolved",
        "sg-1": "open",
    }
    assert rows(served)["i-1"].first_seen == NOW


def test_of_two_looks_at_volumes_at_once_neither_forgets_what_the_other_saw(served: S3World) -> None:
    since(served, 0, volume("v-1"))
    with right_before(served.s3, "PutObject", lambda: since(served, 1, volume("v-1"), volume("v-2"))) as statuses:
        assert since(served, 2, volume("v-1"), volume("v-2")) == {"v-1": 0, "v-2": 1}
    assert sorted(statuses) == [200, 200, 412]


def test_forty_regions_and_a_report_side_by_side(served: S3World) -> None:
    def scan(n: int) -> Recorded:
        here = {"account": HERE["account"], "region": f"eu-west-{n}"}
        return record(served, judgement(*(finding(f"i-{k}") for k in range(20))), **here)

    with ThreadPoolExecutor(16) as pool:
        told = [pool.submit(scan, n) for n in range(40)]
        with served.store.snapshot(later(1)) as snapshot:
            assert snapshot.totals().all.findings % 20 == 0, "half a region was seen"
        assert {one.result() for one in told} == {Recorded(opened=20)}
    with served.store.snapshot(later(1)) as snapshot:
        assert snapshot.totals().all.findings == 800
        assert len({one.id for one in snapshot.each()}) == 800


def test_one_that_always_loses_gives_up_and_changes_nothing(bucket: S3World) -> None:
    record(bucket, judgement(finding("i-1")))
    writes = 0

    def interfere(params: Any, **_: Any) -> None:
        nonlocal writes
        writes += 1
        document = bucket.documents(KEY, RegionFindings)[0]
        bucket.s3.meta.events.unregister("before-call.s3.PutObject", interfere)
        bucket.write(KEY, document.model_copy(update={"unjudged": [], "judged": {f"check_{writes}": later_judged()}}))
        bucket.s3.meta.events.register("before-call.s3.PutObject", interfere)

    bucket.s3.meta.events.register("before-call.s3.PutObject", interfere)
    with pytest.raises(
        Retryable, match="Other scans keep writing s3://archive/findings/regions/111122223333/eu-west-1"
    ):
        record(bucket, judgement(), later(1))
    bucket.s3.meta.events.unregister("before-call.s3.PutObject", interfere)
    assert writes == TRIES
    assert rows(bucket)["i-1"].status == "open"


def later_judged() -> documents.Judged:
    return documents.Judged(at=NOW, job_id="other")


# -- S3 that fails ---------------------------------------------------------------------------------------------------


def answering(status: int, code: str) -> Callable[..., AWSResponse]:
    """What S3 answers to every request."""
    body = f"<Error><Code>{code}</Code><Message>The test says so.</Message></Error>".encode()

    class Raw:
        def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
            yield body

    return lambda request, **_: AWSResponse(request.url, status, {"Content-Length": str(len(body))}, Raw())


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_an_s3_that_fails_now_is_tried_again_later(bucket: S3World, status: int, code: str) -> None:
    record(bucket, judgement(finding("i-1")))
    answer = answering(status, code)
    bucket.s3.meta.events.register_first("before-send.s3", answer)
    for call in (
        lambda: record(bucket, judgement(), later(1)),
        lambda: since(bucket, 0, volume("v-1")),
        lambda: bucket.store.known(**HERE, now=NOW),
        lambda: bucket.store.places(checks=["idle_cpu"], resolved_after=NOW),
        lambda: bucket.store.reported_at("01JOB"),
        lambda: bucket.store.demand_readable(**HERE),
    ):
        with pytest.raises(DatabaseUnavailable, match=f"cannot be (read|listed) now: .*{code}"):
            call()
    bucket.s3.meta.events.unregister("before-send.s3", answer)
    assert rows(bucket)["i-1"].status == "open"


def test_an_s3_that_answers_nothing_is_tried_again_later(bucket: S3World) -> None:
    def silent(request: Any, **_: Any) -> None:
        raise ReadTimeoutError(endpoint_url=request.url)

    bucket.s3.meta.events.register_first("before-send.s3", silent)
    with pytest.raises(DatabaseUnavailable, match=r"s3://archive/findings/regions/.* cannot be read now"):
        record(bucket, judgement())


def test_a_bucket_that_may_not_be_used_is_final(bucket: S3World) -> None:
    bucket.s3.meta.events.register_first("before-send.s3", answering(403, "AccessDenied"))
    with pytest.raises(Unreadable, match="AWS refuses GetObject"):
        record(bucket, judgement())


def test_a_write_whose_answer_is_lost_is_found_done(bucket: S3World) -> None:
    """botocore asks again, which the condition refuses: what is there is this scan's own word, told as it was."""
    lost = [True]

    def lose(http_response: Any, parsed: Any, **_: Any) -> None:
        if lost and http_response.status_code == 200:
            lost.pop()
            http_response.status_code = 412
            parsed["Error"] = {"Code": "PreconditionFailed", "Message": "The repetition was refused."}

    bucket.s3.meta.events.register("after-call.s3.PutObject", lose)
    assert record(bucket, judgement(finding("i-1"), finding("i-2"))) == Recorded(opened=2)
    assert not lost
    assert {row.first_seen for row in rows(bucket).values()} == {NOW}


# -- objects that somebody else changed ------------------------------------------------------------------------------

BAD = {
    "no gzip": b"{}",
    "half a gzip": gzip.compress(b'{"version": 1}')[:-9],
    "a broken gzip": gzip.compress(b"x" * 100)[:20] + b"\xff" * 30,
    "no JSON": gzip.compress(b'{"version": 1, "findings": ['),
    "another JSON": gzip.compress(b"[]"),
    "a field too much": gzip.compress(json.dumps({"version": 1, **HERE, "hidden": []}).encode()),
    "a moment without a zone": gzip.compress(
        json.dumps(
            {"version": 1, **HERE, "judged": {"idle_cpu": {"at": "2026-11-22T03:00:00", "job_id": "j"}}}
        ).encode()
    ),
    "another region's": gzip.compress(
        json.dumps({"version": 1, "account": "111122223333", "region": "us-east-1"}).encode()
    ),
    "empty": b"",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_no_findings_is_one_sentence_and_is_not_written_over(bucket: S3World, body: bytes) -> None:
    bucket.s3.put_object(Bucket=bucket.bucket, Key=KEY, Body=body)
    for call in (
        lambda: record(bucket, judgement()),
        lambda: bucket.store.demand_readable(**HERE),
        lambda: bucket.store.known(**HERE, now=NOW),
        lambda: bucket.store.find(1, now=NOW),
        lambda: bucket.store.snapshot(NOW).__enter__(),
    ):
        with pytest.raises(Unreadable) as refused:
            call()
        assert str(refused.value) == (
            f"s3://archive/{KEY} is not what Lamplighter wrote there: restore an earlier version of the object, or "
            "delete it, and its findings start again. Nothing was changed."
        )
    assert bucket.s3.get_object(Bucket=bucket.bucket, Key=KEY)["Body"].read() == body


@pytest.mark.parametrize("version", [0, 2, "2"])
def test_another_version_is_neither_read_nor_written_over(bucket: S3World, version: object) -> None:
    """A deployment was rolled back."""
    body = gzip.compress(json.dumps({"version": version, **HERE, "findings": [], "new": {}}).encode())
    bucket.s3.put_object(Bucket=bucket.bucket, Key=KEY, Body=body)
    with pytest.raises(Unreadable, match="was written by another version of Lamplighter"):
        record(bucket, judgement())
    assert bucket.s3.get_object(Bucket=bucket.bucket, Key=KEY)["Body"].read() == body


def test_an_object_that_its_owner_deletes_begins_anew_even_between_read_and_write(bucket: S3World) -> None:
    record(bucket, judgement(finding("i-1"), finding("i-2")))
    with right_before(
        bucket.s3, "PutObject", lambda: bucket.s3.delete_object(Bucket=bucket.bucket, Key=KEY)
    ) as statuses:
        assert record(bucket, judgement(finding("i-1")), later(1)) == Recorded(opened=1)
    assert statuses == [404, 200]
    assert {resource: row.first_seen for resource, row in rows(bucket).items()} == {"i-1": later(1)}


def test_what_lies_beside_the_objects_is_left_alone(bucket: S3World) -> None:
    record(bucket, judgement(finding("i-1")))
    for key in (f"{REGIONS}README", f"{REGIONS}a/b/c.json.gz", f"{KEY}.bak"):
        bucket.s3.put_object(Bucket=bucket.bucket, Key=key, Body=b"?")
    with bucket.store.snapshot(NOW) as snapshot:
        assert snapshot.totals().all.findings == 1


def test_a_process_reads_a_region_again_only_when_it_has_changed(bucket: S3World) -> None:
    reads: list[str] = []
    record(bucket, judgement(finding("i-1")))
    bucket.s3.meta.events.register("before-call.s3.GetObject", lambda params, **_: reads.append(params["url_path"]))
    for _ in range(3):
        bucket.store.places(checks=["idle_cpu"], resolved_after=NOW)
    assert len(reads) == 1
    record(bucket, judgement(), later(1))
    reads.clear()
    for _ in range(3):
        assert bucket.store.places(checks=["idle_cpu"], resolved_after=later(2)) == []
    assert len(reads) == 1
    bucket.s3.delete_object(Bucket=bucket.bucket, Key=KEY)
    assert bucket.store.find(finding_id(**HERE, check="idle_cpu", resource_id="i-1"), now=NOW) is None
    assert not [key for key in s3_store._read_before if key == (bucket.bucket, KEY)]


# -- how long, and how much ------------------------------------------------------------------------------------------


def test_what_was_resolved_a_year_ago_is_forgotten_and_what_is_open_is_not(bucket: S3World) -> None:
    """As the rules `resolved_findings` and `cloud_reports` do in Postgres."""
    record(bucket, judgement(finding("i-1"), finding("sg-1", "open_ports"), judged=("idle_cpu", "open_ports")))
    record(bucket, judgement(), later(1))
    day = timedelta(days=1)
    record(bucket, judgement(), later(1) + 365 * day - timedelta(seconds=1))
    assert rows(bucket).keys() == {"i-1", "sg-1"}
    record(bucket, judgement(), later(1) + 365 * day)
    assert rows(bucket).keys() == {"sg-1"}


def test_a_region_with_too_many_open_findings_is_refused_and_old_resolved_ones_give_way(
    bucket: S3World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_FINDINGS", 3)
    record(bucket, judgement(finding("i-1")))
    record(bucket, judgement(finding("i-2")), later(1))
    record(bucket, judgement(finding("i-3")), later(2))
    record(bucket, judgement(finding("i-4")), later(3))
    assert rows(bucket).keys() == {"i-2", "i-3", "i-4"}, "i-1 was resolved first"
    before = bucket.documents(KEY, RegionFindings)
    with pytest.raises(Permanent, match=r"4 findings are open in 111122223333/eu-west-1: .* a region takes 3\."):
        record(bucket, judgement(*(finding(f"i-{n}") for n in range(5, 9))), later(4))
    assert bucket.documents(KEY, RegionFindings) == before


def test_a_document_of_today_is_read_by_what_comes_later(bucket: S3World) -> None:
    """tests/documents/findings-region-1.json stays as it is: what is stored stays readable."""
    body = (ROOT / "tests" / "documents" / "findings-region-1.json").read_bytes()
    bucket.s3.put_object(Bucket=bucket.bucket, Key=KEY, Body=gzip.compress(body))
    [open_, resolved] = bucket.store.list_findings(
        {"account": HERE["account"]}, order="cost", limit=10, after=None, now=NOW
    ).rows
    assert (open_["resource_id"], open_["status"], open_["first_seen"]) == (
        "i-1",
        "open",
        datetime(2026, 11, 1, 3, 50, tzinfo=UTC),
    )
    assert (resolved["resource_id"], resolved["times_reopened"]) == ("i-2", 1)
    assert open_["exemption"]["owner"] == "ana"
    told = record(bucket, judgement(finding("i-1"), finding("i-2")), exemptions=None)
    assert told == Recorded(still_open=1, reopened=1)
    assert (
        json.loads(gzip.decompress(bucket.s3.get_object(Bucket=bucket.bucket, Key=KEY)["Body"].read())).keys()
        == json.loads(body).keys()
    )


def test_findings_of_one_name_have_ids_of_their_own() -> None:
    ids = {
        finding_id(account, region, check, resource)
        for account in ("1" * 12, "2" * 12)
        for region in ("eu-west-1", "us-east-1")
        for check in ("idle_cpu", "idle_memory")
        for resource in ("i-1", "i-2")
    }
    assert len(ids) == 16
    assert all(0 <= one < 2**53 for one in ids)
    assert finding_id("1" * 12, "eu-west-1", "idle_cpu", "i-1") == 7_983_868_436_604_945, "an id must not change"


def test_a_scan_that_found_nothing_anywhere_leaves_no_volumes_behind(bucket: S3World) -> None:
    assert since(bucket, 0, volume("v-1", "i-1")) == {}
    assert bucket.keys() == []


def test_a_preview_stores_nothing(bucket: S3World) -> None:
    assert since(bucket, 0, volume("v-1"), preview=True) == {"v-1": 0}
    assert bucket.keys() == []


def test_reports_of_two_jobs_at_once_are_both_kept(served: S3World) -> None:
    from tests.integration.reports_world import Reports

    reports = Reports(served.s3, served)

    def other(params: Any, **_: Any) -> None:
        if REPORTS in params["url_path"] or REPORTS in params["url"]:
            served.s3.meta.events.unregister("before-call.s3.PutObject", other)
            reports.generate("01OTHER", job_type="security_enforcement")

    served.s3.meta.events.register("before-call.s3.PutObject", other)
    reports.generate("01JOB")
    assert {row["job_id"] for row in served.reports()} == {"01JOB", "01OTHER"}
