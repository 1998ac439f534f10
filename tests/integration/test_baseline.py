"""The governor's baseline has a key of its own (REQUIREMENTS S7; FAILURES 24)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from lamplighter.kernel.deletion import Archive, Manifest
from lamplighter.kernel.errors import Permanent
from tests.integration.media_world import before

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
DAY = timedelta(days=1)
SCOPE = "media/uploads%2F"
KEY = f"baselines/orphan_cleanup/{SCOPE}.json"

OLD_MANIFEST = """{
 "job_id": "01KAMSZ3V0ZBFRZF1QXHTXQ5ZR", "scope": "media/uploads%2F", "planned_at": "2026-11-01T03:00:12Z",
 "finished_at": "2026-11-01T03:01:00Z", "dry_run": true, "complete": true, "accepted": true, "refusals": [],
 "references": {"media_files.storage_key": 1000}, "parts": []
}"""
"""As versions before the baseline's key wrote them."""


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"archive-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def archive(s3: Any, bucket: str) -> Archive:
    return Archive(s3, bucket, job_type="orphan_cleanup", scope=SCOPE, job_id="job")


def write(archive: Archive, references: dict[str, int], day: int = 0, *, dry_run: bool = False) -> None:
    archive.write_baseline(references, planned_at=NOW + day * DAY, dry_run=dry_run)


def refuse(archive: Archive, number: int, **values: Any) -> Manifest:
    """A manifest as a refused preview leaves it."""
    manifest = Manifest(
        **{
            "job_id": f"r{number:04}",
            "scope": SCOPE,
            "planned_at": NOW + number * timedelta(minutes=1),
            "finished_at": NOW,
            "dry_run": True,
            "complete": True,
            "accepted": False,
            "refusals": ["no"],
            "references": {"t.c": 1},
            "parts": [],
        }
        | values
    )
    archive.write_manifest(manifest)
    return manifest


def test_there_is_none_at_first(archive: Archive) -> None:
    assert archive.baseline() is None


def test_an_earnest_run_sets_it(s3: Any, bucket: str, archive: Archive) -> None:
    write(archive, {"t.c": 100, "u.d": 5})
    assert archive.baseline() == {"t.c": 100, "u.d": 5}
    assert s3.head_object(Bucket=bucket, Key=KEY)

    write(archive, {"t.c": 90}, 1)
    assert archive.baseline() == {"t.c": 90}


def test_refused_previews_cannot_bury_it(archive: Archive) -> None:
    write(archive, {"t.c": 100})
    for number in range(210):
        refuse(archive, number)

    assert archive.baseline() == {"t.c": 100}


def test_an_old_manifest_is_found_beneath_any_number_of_refused_previews(
    s3: Any, bucket: str, archive: Archive
) -> None:
    name = f"manifests/orphan_cleanup/{SCOPE}/2026-11-01T03:00:12Z-01KAMSZ3V0ZBFRZF1QXHTXQ5ZR.json"
    s3.put_object(Bucket=bucket, Key=name, Body=OLD_MANIFEST.encode())
    for number in range(210):
        refuse(archive, number)
    refuse(archive, 999, accepted=True, complete=False)

    assert archive.baseline() == {"media_files.storage_key": 1_000}


def test_an_older_run_never_replaces_a_newer_one(archive: Archive) -> None:
    write(archive, {"t.c": 100}, 2)
    write(archive, {"t.c": 50}, 1)

    assert archive.baseline() == {"t.c": 100}


def test_of_two_runs_at_once_the_newer_one_stands(s3: Any, archive: Archive) -> None:
    write(archive, {"t.c": 100})

    def newer(params: Any) -> None:
        end()
        write(archive, {"t.c": 99}, 2)

    end = before(s3, "PutObject", newer)
    write(archive, {"t.c": 98}, 1)

    assert archive.baseline() == {"t.c": 99}


def test_a_preview_raises_it_and_never_lowers_it(archive: Archive) -> None:
    write(archive, {"t.c": 100, "u.d": 50})

    write(archive, {"t.c": 120, "u.d": 45}, 1, dry_run=True)
    assert archive.baseline() == {"t.c": 120, "u.d": 50}
    write(archive, {"t.c": 119}, 2, dry_run=True)
    assert archive.baseline() == {"t.c": 120, "u.d": 50}


def test_a_preview_adds_no_column_that_earnest_runs_do_not_have(archive: Archive) -> None:
    """It would refuse every later run without that column."""
    write(archive, {"t.c": 100})
    write(archive, {"t.c": 100, "extra.column": 7}, 1, dry_run=True)

    assert archive.baseline() == {"t.c": 100}


def test_previews_cannot_lower_it_step_by_step(archive: Archive) -> None:
    """As the governor judges them: more than 20 % fewer than the baseline are refused."""
    references, refused = 1_000, 0
    write(archive, {"t.c": references})
    for day in range(1, 11):
        references = int(references * 0.81)
        baseline = archive.baseline()
        assert baseline
        if references < 0.8 * baseline["t.c"]:
            refused += 1
        else:
            write(archive, {"t.c": references}, day, dry_run=True)

    assert (refused, archive.baseline()) == (9, {"t.c": 1_000})


def test_the_first_preview_makes_one(archive: Archive) -> None:
    write(archive, {"t.c": 100}, dry_run=True)
    assert archive.baseline() == {"t.c": 100}


def test_a_preview_does_not_lower_what_an_old_manifest_says(s3: Any, bucket: str, archive: Archive) -> None:
    name = f"manifests/orphan_cleanup/{SCOPE}/2026-11-01T03:00:12Z-01KAMSZ3V0ZBFRZF1QXHTXQ5ZR.json"
    s3.put_object(Bucket=bucket, Key=name, Body=OLD_MANIFEST.encode())

    write(archive, {"media_files.storage_key": 810}, dry_run=True)

    assert archive.baseline() == {"media_files.storage_key": 1_000}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"references": {"t.c": "many"}}', json.dumps({"references": {"t.c": 1}}).encode()]
)
def test_a_damaged_one_is_one_sentence_and_no_free_pass(s3: Any, bucket: str, archive: Archive, body: bytes) -> None:
    s3.put_object(Bucket=bucket, Key=KEY, Body=body)

    with pytest.raises(Permanent, match=rf"{KEY} in {bucket} is not a baseline"):
        archive.baseline()
    with pytest.raises(Permanent, match="is not a baseline"):
        write(archive, {"t.c": 1})
