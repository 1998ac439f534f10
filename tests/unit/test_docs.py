"""The code in docs/adding-a-job.md runs as it stands there."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lamplighter.kernel.errors import LostLease
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy, Status
from tests.unit.conftest import FakeClock, FakeContext

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-job.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_example_job_runs_and_goes_on_from_its_checkpoint(
    ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1200]

    def remove_links(*, before: Any, limit: int, dry_run: bool) -> int:
        clock.tick(seconds=30)
        batch = min(limit, left[0])
        left[0] -= batch
        return batch

    names: dict[str, Any] = {"remove_links": remove_links, "__name__": "shared_links"}
    exec(compile(blocks()[0], PAGE.name, "exec"), names)
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    names["Params"].model_rebuild(_types_namespace=names)
    first = names["handler"]({"keep_days": 30}, FakeContext(timedelta(seconds=60)))
    assert (first["finished"], first["removed"]) == (False, 1000)
    turn = {"job_id": first["job_id"], "attempt": 1, "continuation": 1}
    assert names["handler"](turn, FakeContext())["removed"] == 1200


@pytest.mark.parametrize(
    ("fails", "status"), [(False, Status.COMPLETED), (True, Status.PENDING)], ids=["completes", "fails"]
)
def test_the_example_worker_is_fenced(ledger: Ledger, fails: bool, status: Status) -> None:
    def do_a_tenth(payload: dict[str, Any]) -> None:
        if fails:
            raise OSError("the disk is full")

    names: dict[str, Any] = {"do_a_tenth": do_a_tenth}
    exec(compile(blocks()[1], PAGE.name, "exec"), names)
    job = ledger.submit(ledger.new_job("sync", Policy(timeout=timedelta(hours=2), target="bus")))
    event = {"job_id": job.job_id, "attempt": 1, "continuation": 0}
    assert names["work"](ledger, event).status is status
    with pytest.raises(LostLease):
        names["work"](ledger, event)
