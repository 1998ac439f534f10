"""Which delete marker is ours: the one that an attempt made which died before it wrote it down (REQUIREMENTS A7)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lamplighter.kernel.deletion import Entry
from lamplighter.media.removal import own_marker

PLANNED = datetime(2026, 11, 22, 3, 0, 0, 500_000, tzinfo=UTC)
SECOND = timedelta(seconds=1)
VERSION = {"Key": "a.jpg", "ETag": '"e"', "VersionId": "v1"}
MARKER = {"Key": "a.jpg", "VersionId": "m1", "IsLatest": True, "LastModified": PLANNED + SECOND}


class S3:
    def __init__(self, versions: list[dict[str, Any]], markers: list[dict[str, Any]]) -> None:
        self._page = {"Versions": versions, "DeleteMarkers": markers}

    def list_object_versions(self, *, Bucket: str, Prefix: str, MaxKeys: int) -> dict[str, Any]:
        return self._page


def found(versions: list[dict[str, Any]], markers: list[dict[str, Any]]) -> str | None:
    return own_marker(S3(versions, markers), "media", Entry(key="a.jpg", etag="e"), PLANNED)


@pytest.mark.parametrize("at", [PLANNED + SECOND, PLANNED, PLANNED.replace(microsecond=0)])
def test_a_marker_since_the_plan_over_the_version_that_was_planned_for_is_ours(at: datetime) -> None:
    """S3 keeps whole seconds: a marker of the plan's own second is no older than the plan."""
    assert found([VERSION], [MARKER | {"LastModified": at}]) == "m1"


@pytest.mark.parametrize(
    ("version", "marker"),
    [
        ({"ETag": '"other"'}, {}),
        ({"Key": "a.jpg.old"}, {}),
        ({}, {"Key": "a.jpg.old"}),
        ({}, {"IsLatest": False}),
        ({}, {"LastModified": PLANNED.replace(microsecond=0) - SECOND}),
    ],
    ids=["of another state", "of another file", "over another file", "no longer on top", "older than the plan"],
)
def test_a_marker_is_ours_only_over_the_version_that_was_planned_since_the_plan(
    version: dict[str, Any], marker: dict[str, Any]
) -> None:
    """What undo takes away must be ours: any other marker is an owner's deletion."""
    assert found([VERSION | version], [MARKER | marker]) is None


def test_without_a_version_or_a_marker_there_is_none() -> None:
    assert found([], [MARKER]) is None
    assert found([VERSION], []) is None
