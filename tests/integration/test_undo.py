"""Undo promises what it can do, does it, and loses nothing (REQUIREMENTS S5; FAILURES 25, 28)."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lamplighter.deletion import ramp
from lamplighter.kernel.errors import Permanent
from tests.conftest import Seeded
from tests.integration.media_world import World, before
from tests.integration.undo_world import KEYS, History

WORLDS = 120


def outcomes(world: World, address: Any) -> dict[str, str]:
    return {key: entry.outcome for key, entry in world.outcomes(address).items()}


@pytest.mark.parametrize("first", range(0, WORLDS, 30))
def test_the_preview_is_what_undo_then_does(world: World, seeded: Seeded, first: int) -> None:
    seen: Counter[str] = Counter()
    for _, rng in seeded(range(first, first + 30)):
        began = datetime.now(UTC)
        history = History(world.s3, rng)
        history.before()
        there = [key for key in KEYS if history.stacks[key] and history.stacks[key][0][1]]
        for key in there:
            if history.rng.random() < 0.8:
                history.clean(key)
        if not history.entries:
            continue
        address = history.manifest(world.archive, began)
        history.after()
        assert history.listed() == history.expected()
        restorable = history.restorable()

        preview = world.undo(address, dry_run=True)
        promised = outcomes(world, preview.manifest)
        assert {key for key, outcome in promised.items() if outcome == "would_restore"} == restorable
        assert preview.would_restore_files == len(restorable)
        assert history.listed() == history.expected()

        undone = world.undo(address)
        done = outcomes(world, undone.manifest)
        assert {key for key, outcome in done.items() if outcome == "restored"} == restorable
        assert {key: outcome for key, outcome in promised.items() if key not in restorable} == {
            key: outcome for key, outcome in done.items() if key not in restorable
        }
        for key in restorable:
            del history.stacks[key][0]
            assert world.s3.get_object(Bucket=history.bucket, Key=key)["Body"].read() == history.bodies[key]
        assert history.listed() == history.expected()

        again = world.undo(address)
        assert (again.restored_files, again.failed_restorations) == (0, [])
        assert {key for key, outcome in outcomes(world, again.manifest).items() if outcome == "already_restored"} >= (
            restorable
        )
        assert history.listed() == history.expected()
        seen.update(done.values())
    assert seen.keys() == {"restored", "already_restored", "recreated", "deleted_since", "not_restorable"}, seen
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize("seed", range(12))
def test_what_happens_while_undo_works_is_never_lost(world: World, seed: int) -> None:
    """Each object is written, deleted or expired between the look and the removal of its marker."""
    rng = random.Random(seed)
    began = datetime.now(UTC)
    history = History(world.s3, rng)
    history.version("Enabled")
    for key in KEYS:
        history.put(key)
        history.clean(key)
    address = history.manifest(world.archive, began)
    if rng.random() < 0.5:
        history.version("Suspended")
    plans = {key: rng.choice(["put", "delete", "expire", "nothing"]) for key in KEYS}
    happened: set[str] = set()

    def interfere(params: Any) -> None:
        key = params["Key"]
        if key in happened or params.get("VersionId") is None:
            return
        happened.add(key)
        match plans[key]:
            case "put":
                history.put(key, b"newer")
            case "delete":
                history.delete(key)
            case "expire":
                history.remove(key, history.stacks[key][1][0])

    end = before(world.s3, "DeleteObject", interfere)
    undone = world.undo(address)
    end()

    done = outcomes(world, undone.manifest)
    assert happened == set(KEYS)
    for key in KEYS:
        history.stacks[key] = [one for one in history.stacks[key] if one[0] != history.markers[key]]
        expected = {"put": "recreated", "delete": "deleted_since", "expire": "failed", "nothing": "restored"}
        assert done[key] == expected[plans[key]], (key, plans[key])
    assert history.listed() == history.expected()


def test_a_marker_of_a_suspended_bucket_is_never_removed(world: World) -> None:
    """Its id `null` may be that of an object by then: removing it would destroy the object."""
    history = History(world.s3, random.Random(0))
    history.version("Enabled")
    history.put("a.jpg")
    history.version("Suspended")
    history.clean("a.jpg")
    address = history.manifest(world.archive, datetime.now(UTC) - timedelta(minutes=1))
    assert world.undo(address, dry_run=True).not_restorable == 1

    undone = world.undo(address)

    assert (undone.not_restorable, undone.restored_files, undone.status) == (1, 0, "completed_with_errors")
    assert "suspended" in str(world.outcomes(undone.manifest)["a.jpg"].error)
    assert history.listed() == history.expected()


def test_with_mfa_delete_nothing_is_promised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("used.jpg", "a.jpg")
    world.refer("used.jpg")
    deleted = world.clean()
    answer = {"Status": "Enabled", "MFADelete": "Enabled"}
    monkeypatch.setattr(world.s3, "get_bucket_versioning", lambda **_: answer)

    for dry_run in (True, False):
        report = world.undo(deleted.manifest, dry_run=dry_run)
        assert (report.would_restore_files, report.restored_files, report.not_restorable) == (0, 0, 1)
    assert world.keys() == ["used.jpg"]


def test_a_bucket_that_is_gone_is_one_sentence(world: World) -> None:
    history = History(world.s3, random.Random(0))
    history.put("a.jpg")
    history.clean("a.jpg")
    address = history.manifest(world.archive, datetime.now(UTC))
    world.s3.delete_bucket(Bucket=history.bucket)

    with pytest.raises(Permanent, match=f"There is no bucket {history.bucket}"):
        world.undo(address)


# -- the ramp --------------------------------------------------------------------------------------------------------


def trusted(world: World) -> tuple[Any, str]:
    """A manifest, and the scope of its run, which has earned something."""
    world.put("used.jpg", "a.jpg", "b.jpg")
    world.refer("used.jpg")
    address = world.clean().manifest
    scope = ramp.of_objects(f"{world.media}/-")
    now = datetime.now(UTC)
    world.trust.write(
        scope, ramp.Trust(definition="d", limit=1_000, since=now), version=world.trust.read(scope).version
    )
    return address, scope


def limit(world: World, scope: str) -> int:
    stored = world.trust.read(scope).trust
    assert stored
    return stored.limit


def test_an_undo_that_restores_something_resets_the_ramp(world: World) -> None:
    address, scope = trusted(world)

    assert world.undo(address, dry_run=True).would_restore_files == 2
    assert limit(world, scope) == 1_000
    assert world.undo(address).restored_files == 2
    assert limit(world, scope) == 0


def test_an_undo_that_restores_nothing_leaves_the_ramp(world: World) -> None:
    address, scope = trusted(world)
    world.put("a.jpg", "b.jpg", body=b"new")

    assert world.undo(address).left_alone == 2
    assert limit(world, scope) == 1_000


def test_where_the_ramp_cannot_be_reset_nothing_is_restored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    address, _ = trusted(world)

    def fail(*_: Any) -> None:
        raise Permanent("The ramp needs dynamodb:PutItem")

    monkeypatch.setattr(ramp, "reset", fail)
    with pytest.raises(Permanent, match="The ramp needs"):
        world.undo(address)
    assert world.keys() == ["used.jpg"]
