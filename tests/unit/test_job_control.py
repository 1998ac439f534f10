"""Job control: what operators can do by hand (REQUIREMENTS K7, K10)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.jobs import job_control
from lamplighter.kernel.errors import LostLease, Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy
from tests.unit.conftest import FakeClock, FakeContext

POLICY = Policy(timeout=timedelta(minutes=30), target="bus")


@pytest.fixture(autouse=True)
def deployed_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)


def ask(**event: Any) -> dict[str, Any]:
    answer: dict[str, Any] = job_control.handler(event, FakeContext())
    json.dumps(answer)  # as Lambda does
    return answer


def test_a_job_is_shown_with_its_payload_errors_and_result(ledger: Ledger) -> None:
    job = ledger.fail(ledger.start(ledger.new_job("sync", POLICY, payload={"library": 7})), Permanent("gone"))
    shown = ask(action="show", job_id=job.job_id)
    assert (shown["status"], shown["payload"], shown["errors"][0]["message"]) == ("failed", {"library": 7}, "gone")
    assert not {"pk", "status_shard", "ttl"} & shown.keys()


def test_the_newest_jobs_of_a_type_come_first(ledger: Ledger, clock: FakeClock) -> None:
    ids = []
    for _ in range(4):
        ids.append(ledger.submit(ledger.new_job("sync", POLICY)).job_id)
        clock.tick(minutes=1)
    ledger.submit(ledger.new_job("other", POLICY))
    listed = ask(action="list", job_type="sync", limit=3)["jobs"]
    assert [job["job_id"] for job in listed] == ids[:0:-1]


def test_a_waiting_job_is_cancelled_and_an_ended_one_is_not(ledger: Ledger) -> None:
    job = ledger.submit(ledger.new_job("sync", POLICY))
    assert ask(action="cancel", job_id=job.job_id)["status"] == "cancelled"
    with pytest.raises(LostLease, match="is cancelled, not running"):
        ask(action="cancel", job_id=job.job_id)


def test_a_dead_letter_is_listed_and_redriven(ledger: Ledger) -> None:
    job = ledger.fail(ledger.start(ledger.new_job("sync", POLICY)), Permanent("gone"))
    (dead,) = ask(action="dead_letters")["jobs"]
    assert (dead["job_id"], dead["dead_letter"]) == (job.job_id, "permanent")
    again = ask(action="redrive", job_id=job.job_id)
    assert (again["status"], again["redrive_of"]) == ("pending", job.job_id)
    assert ask(action="dead_letters") == {"jobs": []}


@pytest.mark.parametrize(("job_type", "minutes"), [("analysis", 60), ("import", 15), ("anything", 30)])
def test_a_submitted_job_is_timed_by_its_type(ledger: Ledger, clock: FakeClock, job_type: str, minutes: int) -> None:
    """REQUIREMENTS B1."""
    shown = ask(action="submit", job_type=job_type, payload={"library": 7})
    job = ledger.claim(shown["job_id"], attempt=1, continuation=0)
    assert (job.payload, job.policy.target) == ({"library": 7}, "bus")
    assert job.deadline_at == clock() + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"action": "destroy"}, "action: .*'show'"),
        ({"action": "show"}, "show needs job_id"),
        ({"action": "list"}, "list needs job_type"),
        ({"action": "submit", "job_type": "No Such Thing"}, "job_type: .*pattern"),
        ({"action": "submit", "job_type": "sync", "payload": {"x": "x" * 100_000}}, "payload takes 100000 characters"),
        ({"action": "submit", "job_type": "orphan_cleanup"}, "job_type: orphan_cleanup is run by Lamplighter itself"),
        ({"action": "dead_letters", "limit": 0}, "limit: .*greater than or equal to 1"),
        ({"action": "show", "job_id": "x", "jobid": "y"}, "jobid: is not known here"),
        ({"action": "show", "job_id": "nonesuch"}, "there is no job 'nonesuch'"),
    ],
)
def test_a_bad_request_is_one_sentence(event: dict[str, Any], said: str) -> None:
    with pytest.raises(Permanent, match=f"(?i){said}"):
        ask(**event)
