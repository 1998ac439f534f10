"""What a run that destroys something writes down: once, whole, and proven by its hash (REQUIREMENTS A7, S7)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lamplighter.kernel.deletion import (
    Archive,
    Entry,
    Manifest,
    Plan,
    State,
    Tally,
    archive_bucket,
    carry_out,
    entries,
    verified,
)
from lamplighter.kernel.errors import Permanent, Retryable
from tests.memory_s3 import MemoryS3

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
JOB = "01KB2T5V8Q4W3N6E7R8T9Y0Z1A"


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3(buckets={"archive": {}})


def archive(s3: MemoryS3, job_id: str = JOB) -> Archive:
    return Archive(s3.client(), "archive", job_type="orphan_cleanup", scope="media", job_id=job_id)


def entry(key: str, outcome: str = "") -> Entry:
    return Entry(key=key, size=1, etag="e", outcome=outcome)


def plan(**values: Any) -> Plan:
    given = {
        "job_id": JOB,
        "scope": "media",
        "planned_at": NOW,
        "started_at": NOW,
        "parts": 3,
        "references": {"t.c": 9},
    }
    return Plan(**given | {"refusals": [], "accepted": True, "facts": {}} | values)


def manifest(**values: Any) -> Manifest:
    given = {"job_id": JOB, "scope": "media", "planned_at": NOW, "finished_at": NOW, "dry_run": False, "complete": True}
    return Manifest(**given | {"accepted": True, "refusals": [], "references": {"t.c": 9}, "parts": []} | values)


def test_of_two_attempts_the_first_writes_down_a_plan_an_outcome_and_a_manifest(s3: MemoryS3) -> None:
    """FAILURES 32: a zombie writes after the next attempt has; what it is told is what stands."""
    first, zombie = archive(s3), archive(s3)
    planned = first.write_plan(plan())
    part = first.write_outcome(0, [entry("a", "deleted")])
    told = first.write_manifest(manifest(parts=[part]))
    writes = s3.writes

    assert zombie.write_plan(plan(parts=9)) == planned
    with pytest.raises(Retryable, match="Another attempt of this run has dealt with part 0"):
        zombie.write_outcome(0, [entry("a", "kept_changed")])
    assert zombie.write_manifest(manifest(complete=False)) == told
    assert s3.writes == writes, "nothing was written over"
    assert first.write_outcome(0, [entry("a", "deleted")]) == part, "its own, whose answer was lost"


def altered(s3: MemoryS3, key: str) -> None:
    body = s3.buckets["archive"][key][-1].body
    s3.put("archive", key, (body or b"") + b" ")


@pytest.mark.parametrize("which", ["manifest", "part", "gone"])
def test_an_altered_manifest_or_part_is_refused(s3: MemoryS3, which: str) -> None:
    own = archive(s3)
    parts = [own.write_outcome(number, [entry(f"{number}", "deleted")]) for number in range(2)]
    address = own.write_manifest(manifest(parts=parts))
    assert [one.key for one in entries(s3.client(), "archive", verified(s3.client(), address))] == ["0", "1"]
    if which == "gone":
        del s3.buckets["archive"][parts[1].key]
    else:
        altered(s3, address.key if which == "manifest" else parts[1].key)
    with pytest.raises(Permanent, match=r"is not what was written \(its SHA-256 differs\): nothing was touched"):
        verified(s3.client(), address)


def test_the_baseline_is_the_newest_that_is_complete_accepted_and_old_enough(s3: MemoryS3) -> None:
    hour = timedelta(hours=1)
    for hours, values in enumerate([{}, {}, {"complete": False}, {"accepted": False}]):
        job_id = f"{hours}"
        at = NOW + hours * hour
        archive(s3, job_id).write_manifest(manifest(job_id=job_id, planned_at=at, **values))
    found = {by: archive(s3).earlier(planned_by=by) for by in (None, NOW + hour, NOW + hour - timedelta(seconds=1))}
    assert [one and one.job_id for one in found.values()] == ["1", "1", "0"]
    assert archive(s3).earlier(planned_by=NOW - hour) is None


def test_a_run_finds_its_own_plan_again_and_no_other_runs(s3: MemoryS3) -> None:
    """Were a plan made anew after a crash, what the first one named would not be accounted for."""
    assert archive(s3).plan() is None
    address = archive(s3).write_plan(plan())

    assert archive(s3).plan() == (plan(), address)
    assert archive(s3, "01KB2T5V8Q4W3N6E7R8T9Y0Z1B").plan() is None


def test_what_a_scan_has_come_to_counts_only_as_it_was_written(s3: MemoryS3) -> None:
    """A zombie scans, too, and under the same names."""
    state = archive(s3).write_state("listed-1.bin", b"so far")
    assert archive(s3).state(state) == b"so far"

    archive(s3).write_state("listed-1.bin", b"the zombie's")
    assert archive(s3).state(state) is None
    assert archive(s3).state(State(name="listed-2.bin", sha256=state.sha256)) is None


def test_a_part_of_the_plan_that_is_gone_stops_the_run(s3: MemoryS3) -> None:
    own = archive(s3)
    own.write_plan_part(0, [entry("a")])
    assert own.plan_part(0) == [entry("a")]
    with pytest.raises(Permanent, match="Part 1 of the plan is gone from archive: nothing more was touched"):
        own.plan_part(1)


def test_a_run_goes_on_from_the_first_part_without_an_outcome_and_stops_between_parts(s3: MemoryS3) -> None:
    acted: list[tuple[list[str], bool, int]] = []
    stops = iter([None, "cancelled"])

    def act(part: list[Entry], tally: Tally, begun: bool) -> list[Entry]:
        acted.append(([one.key for one in part], begun, tally.count["deleted"]))
        return [entry(one.key, "deleted") for one in part]

    def done(*, resumed: bool, stop: Any) -> Any:
        return carry_out(
            archive(s3),
            parts=4,
            resumed=resumed,
            read_part=lambda number: [entry(f"{number}")],
            act=act,
            stop=stop,
            progress=lambda number, parts: None,
        )

    archive(s3).write_outcome(0, [entry("0", "deleted")])
    first = done(resumed=True, stop=lambda: next(stops))
    assert (acted, first.stopped, len(first.parts)) == ([(["1"], True, 1)], "cancelled", 2)
    second = done(resumed=True, stop=lambda: None)
    assert acted[1:] == [(["2"], True, 2), (["3"], False, 3)]
    assert (second.stopped, second.tally.count["deleted"], len(second.parts)) == (None, 4, 4)
    acted.clear()
    assert done(resumed=True, stop=lambda: "cancelled").stopped is None
    assert acted == []


def test_what_a_run_that_died_had_done_is_known(s3: MemoryS3) -> None:
    own = archive(s3)
    for number in range(3):
        own.write_plan_part(number, [entry(f"{number}")])
    own.write_plan(plan())
    own.write_outcome(0, [entry("0", "deleted")])

    def keys(found: Sequence[Entry]) -> list[str]:
        return [one.key for one in found]

    parts, begun = own.done_so_far(plan())
    assert ([part.entries for part in parts], keys(begun)) == ([1], ["1"])
    for number in (1, 2):
        own.write_outcome(number, [entry(f"{number}", "deleted")])
    parts, begun = own.done_so_far(plan())
    assert (len(parts), begun) == (3, [])


def test_without_an_archive_nothing_may_be_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHIVE_BUCKET", raising=False)
    with pytest.raises(Permanent, match="ARCHIVE_BUCKET is not set"):
        archive_bucket()
