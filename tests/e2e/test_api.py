"""The jobs API as programs use it: signed, over HTTP, on the deployed stack (REQUIREMENTS A6, B7, K3, K7, K10, K11)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import requests
from botocore.credentials import Credentials

from lamplighter.jobs.shown import Whole
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.history import row_of
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status, Trigger
from local.signed import Api, Signature
from tests.e2e.deployed import Deployed, Shelf, eventually
from tests.e2e.signed import as_somebody

NOBODY = "01KB2T5V8Q4W3N6E7R8T9Y0Z1A"


@pytest.fixture(scope="module")
def api(stack: Deployed) -> Api:
    return Api(stack.api_url)


def run(api: Api, path: str, params: dict[str, Any]) -> dict[str, Any]:
    """The orphan cleanup that was started."""
    answer = api.post(path, {"job_type": "orphan_cleanup", "params": params})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


# -- who gets in -------------------------------------------------------------------------------------------------------


def test_only_signed_requests_get_in(stack: Deployed, api: Api) -> None:
    real = as_somebody(stack, "GET/*")
    forged = Signature(Credentials(real.credentials.access_key, "a guess", real.credentials.token))
    for path in ("/api/jobs", "/openapi.json"):
        assert requests.get(api.url + path, timeout=30).status_code == 403
        assert Api(stack.api_url, forged).get(path).status_code == 403
        assert Api(stack.api_url, real).get(path).status_code == 200


def test_only_who_may_invoke_gets_in(stack: Deployed) -> None:
    outsider, reader = Api(stack.api_url, as_somebody(stack)), Api(stack.api_url, as_somebody(stack, "GET/api/*"))
    assert outsider.get("/api/jobs").status_code == 403
    assert reader.get("/api/jobs").status_code == 200
    assert reader.post("/api/jobs", {"job_type": "sync"}).status_code == 403


# -- run ---------------------------------------------------------------------------------------------------------------


def test_a_cleanup_is_previewed_and_run(stack: Deployed, shelf: Shelf, api: Api) -> None:
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    previewed = run(api, "/api/jobs/preview", {name: v for name, v in shelf.params.items() if name != "dry_run"})
    done = stack.becomes(previewed["job_id"], "completed")
    assert (done.dry_run, (done.result or {})["would_delete_files"]) == (True, 1)
    started = run(api, "/api/jobs/run", shelf.params)
    assert (started["status"], started["trigger"]) == ("pending", "api")
    stack.becomes(started["job_id"], "completed")
    shown = api.get(f"/api/jobs/{started['job_id']}").json()
    assert (shown["result"]["deleted_files"], shown["trigger"]) == (1, "api")
    assert stack.keys(f"{shelf.name}/") == {shelf.key("kept.jpg")}
    undone = api.post("/api/undo", {"job_id": started["job_id"], "dry_run": False})
    assert undone.status_code == 202
    stack.becomes(undone.json()["job_id"], "completed")
    assert stack.keys(f"{shelf.name}/") == {shelf.key("kept.jpg"), shelf.key("orphan.jpg")}


def test_the_cleanup_is_started_by_hand(stack: Deployed, api: Api) -> None:
    """REQUIREMENTS B7, to the letter."""
    answer = api.post("/api/jobs/run", {"job_type": "cleanup"})
    assert answer.status_code == 202, answer.text
    done = stack.becomes(answer.json()["job_id"], "completed")
    assert (done.trigger, done.dry_run, (done.result or {})["status"]) == (Trigger.API, False, "completed")


def test_retention_is_simulated(stack: Deployed, api: Api) -> None:
    """REQUIREMENTS B11."""
    stack.sql(
        "INSERT INTO handled_downloads (timestamp) SELECT now() - n * '1 d'::interval FROM generate_series(1, 5) n"
    )
    answer = api.post("/api/retention/simulate", {"rule": "downloads", "keep_days": 2.5})
    assert answer.status_code == 200, answer.text
    assert answer.json()["proposed"]["rows"] >= 3
    assert answer.json()["current"]["keep_days"] == 14


def test_of_many_requests_with_one_key_one_makes_a_job(stack: Deployed, api: Api, job_type: str) -> None:
    """FAILURES 15."""
    key, body = uuid4().hex, {"job_type": job_type, "payload": {"n": 1}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: Api(stack.api_url).post("/api/jobs", body, **{"Idempotency-Key": key}), range(8))
        )
    assert sorted(answer.status_code for answer in answers) == [*[200] * 7, 202]
    assert {answer.json()["job_id"] for answer in answers} == {job.job_id for job in stack.of_type(job_type)}
    assert len(stack.of_type(job_type)) == 1
    assert api.post("/api/jobs", body | {"payload": {"n": 2}}, **{"Idempotency-Key": key}).status_code == 422


# -- look --------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_page_by_page(stack: Deployed, api: Api, job_type: str) -> None:
    now = utc_now()
    made = [stack.seed(job_type, trigger=Trigger.API if n % 2 else Trigger.CLI) for n in range(9)]
    for job in made[:4]:
        stack.ledger.cancel(job.job_id)

    def pages(**query: Any) -> list[str]:
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            answer = api.get("/api/jobs", job_type=job_type, limit=2, **query, **cursor)
            assert answer.status_code == 200, answer.text
            found += [job["job_id"] for job in answer.json()["jobs"]]
            if answer.json()["next"] is None:
                return found
            cursor = {"cursor": answer.json()["next"]}

    def ids(some: list[Any]) -> list[str]:
        return sorted(job.job_id for job in some)

    assert sorted(pages()) == ids(made)
    assert sorted(pages(status="cancelled", trigger="api")) == ids([made[1], made[3]])
    assert sorted(pages(created_since=now.isoformat())) == ids(made)
    assert pages(created_until="2026-01-01T00:00:00Z") == []
    everything = api.get("/api/jobs", limit=100).json()["jobs"]
    assert [job["created_at"] for job in everything] == sorted((job["created_at"] for job in everything), reverse=True)


def test_a_job_that_left_the_ledger_is_shown_from_the_history(stack: Deployed, api: Api, job_type: str) -> None:
    """REQUIREMENTS B3."""
    from lamplighter.kernel.database import job_history

    job = stack.ledger.complete(
        stack.ledger.start(stack.ledger.new_job(job_type, stack.seed(job_type).policy)), {"n": 1}
    )
    with stack.engine.begin() as connection:
        connection.execute(job_history.insert(), [row_of(job, utc_now())])
    key = {"pk": {"S": f"JOB#{job.job_id}"}}
    stack.client("dynamodb").delete_item(TableName=stack.table, Key=key)
    assert api.get(f"/api/jobs/{job.job_id}").json() == Whole.of(job).model_dump(mode="json")
    assert api.get(f"/api/jobs/{NOBODY}").status_code == 404


def test_without_the_database_the_ledger_is_still_shown(stack: Deployed, api: Api, job_type: str) -> None:
    job = stack.seed(job_type)
    stack.aws.postgres().stop()
    try:
        assert api.get(f"/api/jobs/{job.job_id}").status_code == 200
        unknown = api.get(f"/api/jobs/{NOBODY}")
        assert (unknown.status_code, unknown.headers["Content-Type"]) == (503, "application/problem+json")
        assert unknown.headers["Retry-After"]
    finally:
        stack.aws.postgres().start()
    assert api.get(f"/api/jobs/{NOBODY}").status_code == 404


# -- change ------------------------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_retried_and_redriven(stack: Deployed, api: Api, job_type: str) -> None:
    job = stack.seed(job_type, target="none")
    assert [api.post(f"/api/jobs/{job.job_id}/cancel").json()["status"] for _ in range(2)] == ["cancelled"] * 2
    again = [api.post(f"/api/jobs/{job.job_id}/retry").json()["job_id"] for _ in range(2)]
    assert again[0] == again[1] != job.job_id
    claimed = stack.ledger.claim(again[0], attempt=1, continuation=0)
    stack.ledger.fail(claimed, Permanent("gone"))
    dead = api.get("/api/dead-letters", limit=100).json()["jobs"]
    assert again[0] in {letter["job_id"] for letter in dead}
    redriven = api.post(f"/api/jobs/{again[0]}/redrive").json()
    assert (redriven["redrive_of"], redriven["status"]) == (again[0], "pending")
    assert stack.ledger.cancel(redriven["job_id"]).status is Status.CANCELLED


def test_a_singleton_that_runs_refuses_a_second_and_names_itself(stack: Deployed, api: Api, job_type: str) -> None:
    """REQUIREMENTS K3."""
    failed = stack.seed(job_type, target="none", singleton=True)
    stack.ledger.fail(stack.ledger.claim(failed.job_id, attempt=1, continuation=0), Permanent("gone"))
    holder = stack.seed(job_type, target="none", singleton=True)
    refused = api.post(f"/api/jobs/{failed.job_id}/retry")
    assert (refused.status_code, holder.job_id in refused.json()["detail"]) == (409, True)
    stack.ledger.cancel(holder.job_id)
    assert api.post(f"/api/jobs/{failed.job_id}/retry").status_code == 202


def test_a_schedule_is_stopped_and_started_and_doing_it_twice_is_once(stack: Deployed, api: Api) -> None:
    """REQUIREMENTS A6."""

    def watch() -> dict[str, Any]:
        found: list[dict[str, Any]] = api.get("/api/schedules").json()["schedules"]
        return next(schedule for schedule in found if schedule["name"] == "schedule-watch")

    assert watch() == {"name": "schedule-watch", "enabled": True, "expression": "rate(5 minutes)"}
    try:
        stopped = [api.post("/api/schedules/schedule-watch/stop").json() for _ in range(2)]
        assert [(answer["enabled"], answer["changed"]) for answer in stopped] == [(False, True), (False, False)]
        assert watch()["enabled"] is False
    finally:
        started = [api.post("/api/schedules/schedule-watch/start").json() for _ in range(2)]
    assert [(answer["enabled"], answer["changed"]) for answer in started] == [(True, True), (True, False)]
    assert watch()["enabled"] is True
    assert api.post("/api/schedules/nonesuch/start").status_code == 404


def test_what_went_wrong_inside_is_logged_under_the_request_id(stack: Deployed, api: Api) -> None:
    with stack.configured("api", Environment={"Variables": {"LAMPLIGHTER_NONSENSE": "1"}}):
        answer = api.post("/api/jobs", {"job_type": "sync"})
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (500, "urn:lamplighter:problem:unexpected")
    (line,) = eventually(lambda: stack.logs("api", problem["request_id"]))
    assert line["level"] == "ERROR"
