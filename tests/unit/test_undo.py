"""What an undo takes (REQUIREMENTS A7, C13)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy
from lamplighter.kernel.undo import UndoParams, deeds
from tests.memory_s3 import MemoryS3

HASH = "0" * 64


def test_undo_takes_a_job_or_a_manifest_with_its_hash() -> None:
    for given in ({"job_id": "j"}, {"manifest": "m", "sha256": HASH}):
        assert UndoParams.model_validate(given).dry_run is True


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"manifest": "m"},
        {"sha256": HASH},
        {"job_id": "j", "manifest": "m", "sha256": HASH},
        {"job_id": "j", "manifest": "m"},
        {"job_id": "j", "sha256": HASH},
        {"manifest": "m", "sha256": "short"},
        {"manifest": "m", "sha256": f"{HASH}0"},
    ],
)
def test_undo_takes_no_less_and_no_more(given: dict[str, Any]) -> None:
    """A manifest without its hash could be anyone's."""
    with pytest.raises(ValidationError):
        UndoParams.model_validate(given)


@pytest.mark.parametrize(
    ("job_type", "said"), [("orphan_cleanup", "is running; cancel it first"), ("sync", "is no orphan_cleanup but sync")]
)
def test_undo_takes_only_what_has_ended_and_can_be_undone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, job_type: str, said: str
) -> None:
    """A cleanup that runs would delete what undo restores."""
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    monkeypatch.setenv("ARCHIVE_BUCKET", "archive")
    job = ledger.start(ledger.new_job(job_type, Policy(timeout=timedelta(minutes=15))))
    with pytest.raises(Permanent, match=said):
        deeds(
            MemoryS3(buckets={"archive": {}}).client(),
            UndoParams(job_id=job.job_id),
            job_types=["orphan_cleanup"],
            archived_as="orphan_cleanup",
            manifest_of=lambda row: {"bucket": "archive", "key": "any", "sha256": HASH},
        )
