"""The jobs API without AWS: its routes over the ledger in memory, its errors, its document."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lamplighter import catalogue
from lamplighter.jobs import api
from lamplighter.jobs.http import listing
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.ledger.by_type import newest
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Policy, Trigger, to_text, type_key
from tests.api_requests import NOBODY, USER, ask, event_of, get, post, problem
from tests.memory_store import MemoryStore
from tests.unit.conftest import FakeClock, FakeContext

POLICY = Policy(timeout=timedelta(minutes=30), target="bus")


@pytest.fixture(autouse=True)
def deployed_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)


def turn(job: Job | dict[str, Any], **more: Any) -> dict[str, Any]:
    row = job if isinstance(job, dict) else {"attempt": job.attempt, "continuation": job.continuation}
    return {name: row[name] for name in ("attempt", "continuation", "lease") if name in row} | more


# -- run, preview, undo ------------------------------------------------------------------------------------------------


def test_a_job_is_run_by_hand(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS B7: the row is made, and the dispatcher starts it."""
    monkeypatch.setenv("LAMPLIGHTER_ORPHAN_CLEANUP_DRY_RUN", "false")
    answer = post("/api/jobs/run", {"job_type": "orphan_cleanup", "params": {"dry_run": False, "base_path": "a"}})
    assert answer.status == 202
    assert answer.headers["location"] == f"/api/jobs/{answer.body['job_id']}"
    job = ledger.get(answer.body["job_id"])
    assert (job.status, job.trigger, job.dry_run) == ("pending", Trigger.API, False)
    assert job.payload == {"dry_run": False, "base_path": "a/"}
    assert job.policy.target == "lambda:orphan-cleanup"


@pytest.mark.parametrize("job_type", catalogue.NAMES)
def test_each_job_type_has_a_path_of_its_own(ledger: Ledger, job_type: str) -> None:
    """REQUIREMENTS S2: IAM can allow one and not another."""
    needed = {
        "undo": {"job_id": NOBODY},
        "cloud_undo": {"job_id": NOBODY},
        "upload_processing": {"key": "inputs/a.csv", "etag": "e"},
    }.get(job_type, {})
    answer = post(f"/api/jobs/run/{job_type}", {"params": needed})
    assert (answer.status, answer.body["job_type"]) == (202, job_type)
    assert answer.headers["location"] == f"/api/jobs/{answer.body['job_id']}"
    assert ledger.get(answer.body["job_id"]).payload == needed


def test_the_body_of_such_a_run_is_optional(ledger: Ledger) -> None:
    answer = post("/api/jobs/run/cleanup")
    assert (answer.status, answer.body["payload"]) == (202, {})
    first = post("/api/jobs/run/orphan_cleanup", {"params": {"dry_run": True}}, idempotency_key="monday")
    again = post("/api/jobs/run/orphan_cleanup", {"params": {"dry_run": True}}, idempotency_key="monday")
    assert (first.status, again.status, again.body) == (202, 200, first.body)
    assert problem(post("/api/jobs/run/orphan_cleanup"))[:2] == (409, "already-running")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("nonesuch", {}, 404, "job_type: takes one of orphan_cleanup, undo, "),
        ("orphan_cleanup", {"params": {"dry-run": True}}, 422, "body.params.dry-run is not a parameter of orphan"),
        ("orphan_cleanup", {"params": 5}, 422, "body.params: "),
        ("orphan_cleanup", {"job_type": "cleanup"}, 422, "body.job_type: there is no such field."),
        ("orphan_cleanup", [], 422, "body: takes a JSON object."),
        ("cleanup", "{", 400, "The body is not JSON"),
    ],
)
def test_such_a_run_is_refused_in_one_sentence(path: str, body: Any, status: int, said: str) -> None:
    answer = problem(post(f"/api/jobs/run/{path}", body))
    assert answer[0] == status
    assert answer[2].startswith(said)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"dry_run": False}, "dry_run: false needs the setting media.apply to be true"),
        (
            {"min_age_hours": 1},
            "min_age_hours: takes 24 or more (the setting media.min_age_hours), got 1",
        ),
    ],
)
def test_a_parameter_that_is_looser_than_its_setting_makes_no_row(params: dict[str, Any], sentence: str) -> None:
    """REQUIREMENTS S2 (FAILURES 22): fuses only tighten."""
    status, _, detail = problem(post("/api/jobs/run", {"job_type": "orphan_cleanup", "params": params}))
    assert (status, sentence in detail) == (422, True), detail
    assert post("/api/jobs/run", {"job_type": "orphan_cleanup"}).status == 202, "and nothing is held"


def test_a_second_run_of_a_singleton_is_refused_with_the_first_ones_id() -> None:
    """REQUIREMENTS K3."""
    first = post("/api/jobs/run", {"job_type": "orphan_cleanup"})
    status, kind, detail = problem(post("/api/jobs/run", {"job_type": "orphan_cleanup"}))
    assert (status, kind) == (409, "already-running")
    assert first.body["job_id"] in detail


def test_a_preview_is_a_run_that_deletes_nothing(ledger: Ledger) -> None:
    """REQUIREMENTS K11."""
    answer = post("/api/jobs/preview", {"job_type": "orphan_cleanup", "params": {"base_path": "a"}})
    assert (answer.status, answer.body["dry_run"]) == (202, True)
    assert ledger.get(answer.body["job_id"]).payload == {"base_path": "a/", "dry_run": True}


def test_a_preview_that_is_none_is_refused() -> None:
    body = {"job_type": "orphan_cleanup", "params": {"dry_run": False}}
    assert problem(post("/api/jobs/preview", body))[2] == "body.params.dry_run: a preview takes true, or nothing."


def test_what_the_settings_do_not_apply_is_not_run_in_earnest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2, S4: refused at once, before there is a job."""
    earnest = {"job_type": "session_cleanup", "params": {"dry_run": False}}
    status, _, detail = problem(post("/api/jobs/run", earnest))
    assert (status, newest(ledger.store, "session_cleanup", limit=9)) == (422, [])
    assert detail.startswith("body.params.dry_run: false is refused, because the settings do not apply sessions; set ")
    unset = post("/api/jobs/run", {"job_type": "session_cleanup"})
    assert ledger.get(unset.body["job_id"]).dry_run is True
    ledger.cancel(unset.body["job_id"])
    monkeypatch.setenv("LAMPLIGHTER_RETENTION_RULES", '{"sessions": {"apply": true}}')
    assert ledger.get(post("/api/jobs/run", earnest).body["job_id"]).dry_run is False


def test_an_undo_is_a_job(ledger: Ledger) -> None:
    cleanup = ledger.complete(ledger.start(ledger.new_job("orphan_cleanup", POLICY)), {})
    answer = post("/api/undo", {"job_id": cleanup.job_id})
    assert (answer.status, answer.body["job_type"], answer.body["dry_run"]) == (202, "undo", True)
    assert ledger.get(answer.body["job_id"]).payload == {"job_id": cleanup.job_id, "dry_run": True}
    assert problem(post("/api/undo", {"job_id": NOBODY}))[0] == 404


def test_a_scan_is_undone_by_the_undo_of_its_actions(ledger: Ledger) -> None:
    """C13."""
    scan = ledger.complete(ledger.start(ledger.new_job("waste_scan", POLICY)), {})
    answer = post("/api/undo", {"job_id": scan.job_id, "dry_run": False})
    assert (answer.status, answer.body["job_type"], answer.body["dry_run"]) == (202, "cloud_undo", False)


def test_what_nothing_undoes_is_refused(ledger: Ledger) -> None:
    cleanup = ledger.complete(ledger.start(ledger.new_job("cleanup", POLICY)), {})
    status, kind, detail = problem(post("/api/undo", {"job_id": cleanup.job_id}))
    assert (status, kind) == (409, "not-undoable")
    assert detail == (
        f"Job {cleanup.job_id} is a cleanup; what can be undone is orphan_cleanup, waste_scan, security_enforcement."
    )


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({}, "body.job_type", "body.job_type: is missing."),
        ({"job_type": "nonesuch"}, "body.job_type", "body.job_type: there is no 'nonesuch' (known: "),
        ({"job_type": "undo", "parms": {}}, "body.parms", "body.parms: there is no such field."),
        ({"job_type": ["undo"]}, "body.job_type", "body.job_type: input should be a valid string, got ['undo']."),
        (
            {"job_type": "orphan_cleanup", "params": {"dry-run": True}},
            "body.params.dry-run",
            "body.params.dry-run is not a parameter of orphan_cleanup (it takes ",
        ),
        (
            {"job_type": "cleanup", "params": {"phases": ["stale_job"]}},
            "body.params.phases",
            "body.params.phases: stale_job is no phase of cleanup (it takes stale_jobs, ",
        ),
        ({"job_type": "undo"}, "body.params", "body.params: give either job_id, or manifest and sha256."),
        (
            {"job_type": "upload_processing", "params": {"key": "inputs/" + "x" * 150_000}},
            "body.params",
            "body.params: upload_processing takes 100000 characters of parameters at most.",
        ),
        (
            {"job_type": "orphan_cleanup", "params": {"min_age_hours": -1}},
            "body.params.min_age_hours",
            "body.params.min_age_hours: input should be greater than or equal to 0, got -1.",
        ),
        ([], "body", "body: takes a JSON object."),
        ([{"job_type": "undo"}], "body", "body: takes a JSON object."),
        (None, "body", "body: is missing."),
        ({"job_type": "undo", "params": {"job_id": "a\0b"}}, "body", "body: takes no text with U+0000"),
        ('{"job_type": "undo", "params": {"job_id": "\\ud800"}}', "body", "body: takes no text with U+0000 or half"),
        ('{"job_type": "undo", "params": ' + '{"a": ' * 40 + "1" + "}" * 41, "body", "body: takes 32 levels"),
    ],
)
def test_a_bad_field_is_named_in_one_sentence(body: Any, field: str, said: str) -> None:
    answer = post("/api/jobs/run", body)
    assert problem(answer)[:2] == (422, "invalid-request")
    (error,) = answer.body["errors"]
    assert error["field"] == field
    assert error["message"].startswith(said)
    assert error["message"] == answer.body["detail"]


@pytest.mark.parametrize(
    "body", ["{", "nope", '{"job_type": NaN}', '{"job_type": 1e999}', "[" * 100_000, '{"a": Infinity}']
)
def test_what_is_not_json_is_told_so(body: str) -> None:
    assert problem(post("/api/jobs/run", body))[:2] == (400, "not-json")


def test_a_body_must_say_that_it_is_json_and_be_of_a_size_to_look_at() -> None:
    form = post("/api/jobs/run", "job_type=undo", content_type="application/x-www-form-urlencoded")
    assert problem(form)[:2] == (415, "not-json")
    assert problem(post("/api/jobs/run", {"x": "x" * 400_000}))[:2] == (413, "too-large")
    assert (
        post("/api/jobs/run", {"job_type": "orphan_cleanup"}, content_type="application/json; charset=utf-8").status
        == 202
    )


# -- idempotency -------------------------------------------------------------------------------------------------------


def test_the_same_key_makes_one_job(ledger: Ledger, clock: FakeClock) -> None:
    """FAILURES 15: the job's own row records the key, so there is no moment at which one is without the other."""
    body = {"job_type": "orphan_cleanup", "params": {"base_path": "a"}}
    first = post("/api/jobs/run", body, idempotency_key="monday")
    again = post("/api/jobs/run", body, idempotency_key="monday")
    assert (first.status, again.status) == (202, 200)
    assert again.body == first.body
    assert again.headers["location"] == first.headers["location"]
    ledger.cancel(first.body["job_id"])
    clock.tick(hours=23)
    assert post("/api/jobs/run", body, idempotency_key="monday").body["job_id"] == first.body["job_id"]
    clock.tick(hours=48)
    assert post("/api/jobs/run", body, idempotency_key="monday").status == 202


def test_a_key_given_with_another_body_is_refused(ledger: Ledger) -> None:
    post("/api/jobs", {"job_type": "sync", "payload": {"n": 1}}, idempotency_key="monday")
    for body in ({"job_type": "sync", "payload": {"n": 2}}, {"job_type": "export", "payload": {"n": 1}}):
        answer = post("/api/jobs", body, idempotency_key="monday")
        assert problem(answer)[:2] == (422, "key-reused")
        assert answer.body["errors"][0]["field"] == "header.idempotency-key"
    assert len(newest(ledger.store, "sync", limit=9)) == 1


def test_a_key_belongs_to_its_caller_whatever_the_session() -> None:
    role = "arn:aws:sts::111122223333:assumed-role/deploy"
    body = {"job_type": "sync"}
    made = [
        post("/api/jobs", body, idempotency_key="monday", user=user).body["job_id"]
        for user in (USER, f"{role}/ana", f"{role}/ben")
    ]
    assert made[0] != made[1] == made[2]


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 129, "a,b"])
def test_a_bad_key_is_named(key: str) -> None:
    answer = post("/api/jobs", {"job_type": "sync"}, idempotency_key=key)
    assert problem(answer)[:2] == (422, "invalid-request")
    assert answer.body["errors"][0]["field"] == "header.idempotency-key"


# -- show and list -----------------------------------------------------------------------------------------------------


def test_a_job_is_shown_with_all_there_is(ledger: Ledger) -> None:
    job = ledger.fail(ledger.start(ledger.new_job("sync", POLICY, payload={"library": 7})), Permanent("gone"))
    shown = get(f"/api/jobs/{job.job_id}").body
    assert (shown["status"], shown["payload"], shown["errors"][0]["message"]) == ("failed", {"library": 7}, "gone")
    assert (shown["dead_letter"], shown["policy"]["target"], shown["result"]) == ("permanent", "bus", None)
    assert not {"pk", "status_shard", "ttl"} & shown.keys()


def test_an_unknown_job_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database there is no history to look in."""
    monkeypatch.delenv("DATABASE_URL")
    assert problem(get(f"/api/jobs/{NOBODY}"))[:2] == (404, "not-found")
    assert problem(get("/api/jobs/nonesuch"))[:2] == (422, "invalid-request")


def cursor_of(text: str) -> str:
    """A cursor that somebody forged."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def all_pages(limit: int, **query: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        answer = get("/api/jobs", limit=limit, **query, **({"cursor": cursor} if cursor else {}))
        assert answer.status == 200
        assert len(answer.body["jobs"]) <= limit
        found += [job["job_id"] for job in answer.body["jobs"]]
        cursor = answer.body["next"]
        if cursor is None:
            return found


@pytest.fixture
def many(ledger: Ledger, clock: FakeClock) -> list[Job]:
    """Jobs of several types, most of them made in the same millisecond as others; newest first."""
    made = []
    for round_ in range(8):
        for job_type in ("sync", "export", "orphan_cleanup"):
            for trigger in (Trigger.API, Trigger.CLI):
                job = ledger.submit(ledger.new_job(job_type, POLICY, trigger=trigger))
                made.append(ledger.cancel(job.job_id) if round_ % 2 else job)
        if round_ % 3 == 2:
            clock.tick(milliseconds=1)
    return made[::-1]


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_pages_give_each_job_once_newest_first(many: list[Job], limit: int) -> None:
    found = all_pages(limit)
    assert sorted(found) == sorted(job.job_id for job in many)
    times = {job.job_id: job.created_at for job in many}
    assert [times[job_id] for job_id in found] == sorted((job.created_at for job in many), reverse=True)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"job_type": "sync"}, lambda job: job.job_type == "sync"),
        ({"status": "cancelled"}, lambda job: job.status == "cancelled"),
        ({"trigger": "api", "job_type": "export"}, lambda job: job.trigger == "api" and job.job_type == "export"),
        ({"created_since": "2026-01-31T04:00:00.001+01:00"}, lambda job: job.created_at.microsecond >= 1000),
        ({"created_until": "2026-01-31T03:00:00.001Z"}, lambda job: job.created_at.microsecond <= 1000),
        (
            {"created_since": "2026-01-31T03:00:00.001Z", "created_until": "2026-01-31T03:00:00.001Z"},
            lambda job: job.created_at.microsecond == 1000,
        ),
        ({"created_since": "2027-01-01T00:00:00Z", "created_until": "2026-01-01T00:00:00Z"}, lambda job: False),
    ],
)
@pytest.mark.parametrize("limit", [3, 50])
def test_pages_are_filtered(many: list[Job], query: dict[str, str], wanted: Any, limit: int) -> None:
    assert sorted(all_pages(limit, **query)) == sorted(job.job_id for job in many if wanted(job))


def test_a_cursor_given_with_other_filters_starts_within_them(many: list[Job]) -> None:
    """DynamoDB refuses to start a query outside of its range."""
    first = get("/api/jobs", limit=1, job_type="sync").body
    asked: list[Any] = []
    store = Ledger.from_environment().store
    of_type = store.of_type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "of_type", lambda *args, **more: asked.append(more) or of_type(*args, **more))
        answer = get(
            "/api/jobs", limit=1, job_type="sync", cursor=first["next"], created_until="2026-01-31T03:00:00.000Z"
        )
    assert answer.status == 200
    assert {call["cursor"] for call in asked} == {None}


def test_a_cursor_from_before_types_were_sharded_goes_on_from_its_place(many: list[Job], store: MemoryStore) -> None:
    """It names the type alone. The rows of its moment that have moved since are given again, and none is left out."""
    listed = [job for job in many if job.job_type == "sync"]
    for job in listed:
        store.items[f"JOB#{job.job_id}"]["job_type"] = "sync"
    old = store.of_type("sync", limit=5).jobs
    cursor = cursor_of(json.dumps([to_text(old[-1].created_at), {"sync": old[-1].job_id}]))
    rest = [job["job_id"] for job in get("/api/jobs", job_type="sync", limit=100, cursor=cursor).body["jobs"]]
    assert sorted(rest) == sorted({job.job_id for job in listed} - {job.job_id for job in old})
    for job in listed:
        store.items[f"JOB#{job.job_id}"]["job_type"] = type_key("sync", job.shard)
    rest = [job["job_id"] for job in get("/api/jobs", job_type="sync", limit=100, cursor=cursor).body["jobs"]]
    again = {job.job_id for job in old if job.created_at == old[-1].created_at}
    assert sorted(rest) == sorted({job.job_id for job in listed} - {job.job_id for job in old} | again)


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_pages_go_over_old_rows_and_new_ones_alike(many: list[Job], store: MemoryStore, limit: int) -> None:
    for job in many[::2]:
        store.items[f"JOB#{job.job_id}"]["job_type"] = job.job_type
    found = all_pages(limit)
    assert sorted(found) == sorted(job.job_id for job in many)
    times = {job.job_id: job.created_at for job in many}
    assert [times[job_id] for job_id in found] == sorted((job.created_at for job in many), reverse=True)


def test_jobs_made_meanwhile_shift_no_page(ledger: Ledger, clock: FakeClock, many: list[Job]) -> None:
    first = get("/api/jobs", limit=5).body
    clock.tick(minutes=1)
    ledger.submit(ledger.new_job("import", POLICY))
    second = get("/api/jobs", limit=100, cursor=first["next"]).body
    seen = [job["job_id"] for job in first["jobs"] + second["jobs"]]
    assert sorted(seen) == sorted(job.job_id for job in many)


def test_a_page_looks_at_so_many_jobs_and_no_more(many: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LOOKED_AT", 10)
    page = get("/api/jobs", status="running").body
    assert page["jobs"] == []
    assert page["next"] is not None
    assert all_pages(25, status="running") == []
    assert len(all_pages(25, status="cancelled")) == 24


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "query.limit"),
        ({"limit": "many"}, "query.limit"),
        ({"status": "done"}, "query.status"),
        ({"created_since": "5"}, "query.created_since"),
        ({"created_until": "2026-01-31T03:00:00"}, "query.created_until"),
        ({"cursor": "e30"}, "query.cursor"),
        ({"cursor": "ä"}, "query.cursor"),
        ({"cursor": "WyIyMDI2LTAxLTMxVDAzOjAwOjAwIiwge31d"}, "query.cursor"),
        ({"jobtype": "sync"}, "query.jobtype"),
        ({"created_since": "0001-01-01T00:00:00Z"}, "query.created_since"),
        ({"created_since": "0001-01-01T00:00:00+14:00"}, "query.created_since"),
        ({"created_since": "1969-12-31T23:59:59Z"}, "query.created_since"),
        ({"created_until": "9999-12-31T23:59:59-14:00"}, "query.created_until"),
        ({"cursor": cursor_of('["0001-01-01T00:00:00.000+14:00", {}]')}, "query.cursor"),
        ({"cursor": cursor_of('["2026-01-31T03:00:00.000Z", {"sync": "\\ud800"}]')}, "query.cursor"),
        ({"cursor": cursor_of('["2026-01-31T03:00:00.000Z", {"sync": 5}]')}, "query.cursor"),
        ({"cursor": cursor_of('["2026-01-31T03:00:00.000Z", {"sync": ""}]')}, "query.cursor"),
        ({"cursor": cursor_of('["2026-01-31T03:00:00.000Z", 5]')}, "query.cursor"),
        ({"cursor": cursor_of("[" * 3000)}, "query.cursor"),
        ({"cursor": cursor_of("[5, {}]")}, "query.cursor"),
    ],
)
def test_a_bad_filter_is_named(query: dict[str, Any], field: str) -> None:
    answer = get("/api/jobs", **query)
    assert problem(answer)[:2] == (422, "invalid-request")
    assert answer.body["errors"][0]["field"] == field


# -- cancel, retry, redrive --------------------------------------------------------------------------------------------


def test_cancelling_twice_is_the_same_as_once(ledger: Ledger) -> None:
    """REQUIREMENTS K7."""
    waiting = ledger.submit(ledger.new_job("sync", POLICY))
    running = ledger.start(ledger.new_job("sync", POLICY))
    for _ in range(2):
        assert post(f"/api/jobs/{waiting.job_id}/cancel").body["status"] == "cancelled"
        asked = post(f"/api/jobs/{running.job_id}/cancel").body
        assert (asked["status"], asked["cancel_requested"]) == ("running", True)
    done = ledger.complete(ledger.start(ledger.new_job("sync", POLICY)), None)
    assert problem(post(f"/api/jobs/{done.job_id}/cancel"))[:2] == (409, "ended")
    assert problem(post(f"/api/jobs/{NOBODY}/cancel"))[0] == 404


def test_what_failed_is_retried_as_a_new_job_once(ledger: Ledger) -> None:
    failed = ledger.fail(ledger.start(ledger.new_job("sync", POLICY)), Permanent("gone"))
    (first, again) = (post(f"/api/jobs/{failed.job_id}/retry") for _ in range(2))
    assert (first.status, first.body["redrive_of"]) == (202, failed.job_id)
    assert again.body["job_id"] == first.body["job_id"]
    assert problem(post(f"/api/jobs/{first.body['job_id']}/retry"))[:2] == (409, "not-retriable")
    assert problem(post(f"/api/jobs/{NOBODY}/retry"))[0] == 404


def test_a_dead_letter_is_listed_and_redriven(ledger: Ledger) -> None:
    """REQUIREMENTS K10."""
    failed = ledger.fail(ledger.start(ledger.new_job("sync", POLICY)), Permanent("gone"))
    assert [job["job_id"] for job in get("/api/dead-letters").body["jobs"]] == [failed.job_id]
    again = post(f"/api/jobs/{failed.job_id}/redrive")
    assert (again.status, again.body["redrive_of"]) == (202, failed.job_id)
    assert get("/api/dead-letters").body == {"jobs": [], "next": None}
    assert problem(post(f"/api/jobs/{again.body['job_id']}/redrive"))[:2] == (409, "no-dead-letter")


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_worker_claims_beats_and_completes(ledger: Ledger, clock: FakeClock) -> None:
    job = post("/api/jobs", {"job_type": "analysis", "payload": {"library": 7}}).body
    path = f"/api/jobs/{job['job_id']}"
    claimed = post(f"{path}/claim", turn(job)).body
    assert (claimed["status"], claimed["payload"]) == ("running", {"library": 7})
    assert ledger.get(job["job_id"]).deadline_at == clock() + timedelta(minutes=60)  # REQUIREMENTS B1
    beaten = post(f"{path}/heartbeat", turn(claimed, progress=40, message="4 of 10")).body
    assert (beaten["progress"], beaten["message"], beaten["cancel_requested"]) == (40, "4 of 10", False)
    done = post(f"{path}/complete", turn(claimed, result={"analysed": 3})).body
    assert (done["status"], done["result"]) == ("completed", {"analysed": 3})


def test_a_worker_that_is_told_to_stop_ends_cancelled(ledger: Ledger) -> None:
    job = post("/api/jobs", {"job_type": "analysis"}).body
    path = f"/api/jobs/{job['job_id']}"
    claimed = post(f"{path}/claim", turn(job)).body
    assert problem(post(f"{path}/complete", turn(claimed, cancelled=True)))[:2] == (409, "not-cancelled")
    post(f"{path}/cancel")
    assert post(f"{path}/heartbeat", turn(claimed, progress=1)).body["cancel_requested"] is True
    ended = post(f"{path}/complete", turn(claimed, cancelled=True, result={"done": 1})).body
    assert (ended["status"], ended["result"]) == ("cancelled", {"done": 1})


@pytest.mark.parametrize(("retry", "status"), [(True, "pending"), (False, "failed")])
def test_a_workers_failure_is_retried_unless_that_cannot_help(ledger: Ledger, retry: bool, status: str) -> None:
    job = post("/api/jobs", {"job_type": "analysis"}).body
    claimed = post(f"/api/jobs/{job['job_id']}/claim", turn(job)).body
    failure = turn(claimed, type="IOError", message="the disk is full", stack_trace="line 1", retry=retry)
    failed = post(f"/api/jobs/{job['job_id']}/fail", failure).body
    assert failed["status"] == status
    if retry:  # it waits for its backoff, and no worker starts it sooner
        next_turn = turn(ledger.get(job["job_id"]))
        assert problem(post(f"/api/jobs/{job['job_id']}/claim", next_turn))[:2] == (409, "not-due")
        post(f"/api/jobs/{job['job_id']}/retry")
        assert post(f"/api/jobs/{job['job_id']}/claim", next_turn).status == 200
    error = failed["errors"][0]
    assert (error["type"], error["message"], error["stack_trace"]) == ("IOError", "the disk is full", "line 1")


def test_a_zombie_worker_changes_nothing(ledger: Ledger, clock: FakeClock) -> None:
    """REQUIREMENTS K2, FAILURES 1: a worker that was timed out, or was never first, is told so."""
    job = ledger.submit(ledger.new_job("analysis", POLICY))
    path = f"/api/jobs/{job.job_id}"
    claimed = post(f"{path}/claim", turn(job)).body
    assert problem(post(f"{path}/claim", turn(job)))[:2] == (409, "lost-lease")
    clock.tick(minutes=31)
    expired = ledger.expire(ledger.get(job.job_id))
    ledger.store.apply_many(ledger.releases([expired]))
    assert post(f"{path}/claim", turn(expired)).status == 200
    before = ledger.get(job.job_id)
    for call, body in (
        ("heartbeat", turn(claimed, progress=99)),
        ("complete", turn(claimed)),
        ("fail", turn(claimed, message="no")),
        ("claim", turn(job)),
        ("heartbeat", turn(claimed, progress=99) | {"continuation": 1}),
        ("complete", turn(claimed) | turn(expired)),  # the attempt that runs, under the lease of the one before
    ):
        assert problem(post(f"{path}/{call}", body))[:2] == (409, "lost-lease")
    assert ledger.get(job.job_id) == before


@pytest.mark.parametrize("target", ["lambda:orphan-cleanup", "states:cleanup"])
@pytest.mark.parametrize("call", ["claim", "heartbeat", "complete", "fail"])
def test_nobody_outside_works_at_our_own_jobs(ledger: Ledger, target: str, call: str) -> None:
    policy = replace(POLICY, target=target)
    new = ledger.new_job("orphan_cleanup", policy)
    job = ledger.submit(new) if call == "claim" else ledger.start(new)
    body = turn(job) | {"heartbeat": {"progress": 1}, "fail": {"message": "no"}}.get(call, {})
    assert problem(post(f"/api/jobs/{job.job_id}/{call}", body))[:2] == (409, "not-for-workers")
    assert ledger.get(job.job_id) == job


def test_our_own_job_types_are_not_submitted() -> None:
    answer = post("/api/jobs", {"job_type": "orphan_cleanup", "payload": {"dry_run": False}})
    assert problem(answer)[0] == 422
    assert "POST /api/jobs/run" in answer.body["detail"]


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("claim", {"attempt": 1}, "body.continuation"),
        ("claim", {"attempt": 0, "continuation": 0}, "body.attempt"),
        ("claim", {"attempt": "1", "continuation": 0}, "body.attempt"),
        ("claim", {"attempt": True, "continuation": 0}, "body.attempt"),
        ("heartbeat", {"attempt": 1, "continuation": 0, "progress": 101}, "body.progress"),
        ("complete", {"attempt": 1, "continuation": 0, "result": [1]}, "body.result"),
        ("complete", {"attempt": 1, "continuation": 0, "result": {"x": "x" * 200_001}}, "body.result"),
        ("fail", {"attempt": 1, "continuation": 0}, "body.message"),
    ],
)
def test_a_bad_report_is_named(call: str, body: dict[str, Any], field: str) -> None:
    answer = post(f"/api/jobs/{NOBODY}/{call}", body)
    assert problem(answer)[:2] == (422, "invalid-request")
    assert answer.body["errors"][0]["field"] == field


@pytest.mark.parametrize(("body", "status"), [("A", 400), ("/w==", 400), ("{}", 422), ("é", 422), ("====", 422)])
def test_a_body_said_to_be_base64_that_is_none_is_refused(body: str, status: int) -> None:
    event = event_of("POST", "/api/jobs/run", body) | {"isBase64Encoded": True}
    assert api.handler(event, FakeContext())["statusCode"] == status


def test_a_run_without_a_body_needs_no_content_type() -> None:
    for headers, status in (({}, 202), ({"content-type": "text/plain"}, 415)):
        event = event_of("POST", "/api/jobs/run/token_cleanup") | {"headers": headers}
        assert api.handler(event, FakeContext())["statusCode"] == status


@pytest.mark.parametrize("path", ["/api/jobs/\ud800", "/api/\0"])
def test_a_path_that_no_message_can_hold_is_refused(path: str) -> None:
    assert problem(ask("GET", path))[:2] == (422, "invalid-request")
    assert problem(ask("GET", "/api/jobs/" + "x" * 9000))[2][-4:] != "x" * 4


def test_many_wrong_fields_are_not_all_listed() -> None:
    answer = post("/api/jobs/run/cleanup", {f"nonesuch{n}": n for n in range(500)})
    assert (len(answer.body["errors"]), answer.body["detail"][-26:]) == (10, "490 more fields are wrong.")


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/api/nothing"), ("DELETE", "/api/jobs"), ("PUT", "/x")]
)
def test_where_there_is_nothing_is_told_as_a_problem(method: str, path: str) -> None:
    assert problem(ask(method, path)) == (404, "not-found", f"There is nothing at {method} {path}.")


def test_what_cannot_be_reached_now_is_told_with_when_to_ask_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: str) -> Job:
        raise Retryable("The settings parameter cannot be read.")

    monkeypatch.setattr(ledger, "get", unreachable)
    answer = get(f"/api/jobs/{NOBODY}")
    assert problem(answer)[:2] == (503, "unavailable")
    assert answer.headers["retry-after"] == "10"


def test_what_the_api_may_not_read_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS K14."""

    def denied(_: str) -> Job:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "GetItem")

    monkeypatch.setattr(ledger, "get", denied)
    told = problem(get(f"/api/jobs/{NOBODY}"))
    assert told == (409, "unreadable", "AWS refuses GetItem (AccessDeniedException): no.")


def test_an_unexpected_error_tells_nothing_but_where_it_is_logged(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> Job:
        raise RuntimeError("secret of /var/task")

    monkeypatch.setattr(ledger, "get", broken)
    answer = get(f"/api/jobs/{NOBODY}")
    assert problem(answer)[:2] == (500, "unexpected")
    assert "secret" not in json.dumps(answer.body)


def test_the_document_tells_of_every_answer() -> None:
    document = get("/openapi.json").body
    assert document["openapi"].startswith("3.1")
    whole = document["components"]["schemas"]["Whole"]["properties"]
    assert whole["deadline_at"]["description"] == "When the attempt is dead, or should have been picked up."
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) >= 18
    of_one_thing = [each for path, each in document["paths"].items() if "{job_id}" in path]
    assert len(of_one_thing) >= 8
    assert all("404" in operation["responses"] for each in of_one_thing for operation in each.values())
    for operation in operations:
        assert {"403", "422", "429", "500", "503"} <= operation["responses"].keys()
        for status, answer in operation["responses"].items():
            media = (
                {"application/json"} if int(status) < 400 or status in ("403", "429") else {"application/problem+json"}
            )
            assert answer["content"].keys() == media
            assert answer["description"]
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= operation["responses"].keys()
