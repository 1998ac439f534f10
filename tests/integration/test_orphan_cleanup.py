"""`lamplighter.media.orphan_cleanup` on a real Postgres and an S3 that keeps its promises."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lamplighter.deletion import ramp
from lamplighter.kernel.deletion import Refused
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent
from lamplighter.kernel.job import Unfinished
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Policy, Trigger
from lamplighter.kernel.media import DERIVED
from lamplighter.media import fingerprints, listing, orphan_cleanup, scan, undo
from tests.integration.media_world import STRICT, ScriptedRun, World, before, numbered
from tests.memory_store import MemoryStore

ODD_KEYS = [
    "uploads/with space.jpg",
    "uploads/a+b.jpg",
    "uploads/a%2Bb.jpg",
    "uploads/Übergröße-日本-🎞.jpg",
    "uploads/<&\">'.jpg",
    "uploads/&lt;.jpg",
    "uploads/line\nbreak\ttab\r.jpg",
    "uploads/unit\x1fseparator.jpg",
    "uploads/back\\slash.jpg",
    "uploads/query?a=b#c.jpg",
    "uploads//double.jpg",
    f"uploads/{'long' * 253}.jpg",
]


def test_orphans_are_deleted_and_nothing_else(world: World) -> None:
    world.put(
        "uploads/used.jpg", "uploads/orphan.jpg", "uploads/ORPHAN.MP4", "uploads/notes.txt", "uploads/folder.jpg/"
    )
    world.put("elsewhere/orphan.jpg")
    world.refer("uploads/used.jpg")

    report = world.clean(base_path="uploads")

    assert world.keys() == ["elsewhere/orphan.jpg", "uploads/folder.jpg/", "uploads/notes.txt", "uploads/used.jpg"]
    assert (report.status, report.scanned_files, report.orphaned_files, report.deleted_files) == ("completed", 3, 2, 2)
    assert (report.deleted_bytes, report.skipped_not_media, report.dry_run) == (2, 2, False)
    assert {e.outcome for e in world.outcomes(report.manifest).values()} == {"deleted"}


def test_a_preview_is_the_default_and_lists_what_would_go(world: World) -> None:
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")
    run = world.run()
    params = orphan_cleanup.handler.validated({"min_age_hours": 0, "quarantine_hours": 0}).resolved(run.settings)

    report = orphan_cleanup.handler.body(run, params)

    assert isinstance(report, orphan_cleanup.Report)
    assert world.keys() == ["orphan.jpg", "used.jpg"]
    assert (report.dry_run, report.orphaned_files, report.would_delete_files, report.deleted_files) == (True, 1, 1, 0)
    assert world.outcomes(report.manifest)["orphan.jpg"].outcome == "would_delete"


def test_a_schedule_cleans_the_folder_and_asks_the_columns_of_the_settings(world: World) -> None:
    """REQUIREMENTS A1: references may come from several columns."""
    world.sql("CREATE TABLE avatars (id int, url text)")
    world.sql("INSERT INTO avatars VALUES (1, 'shop/a.jpg')")
    world.put("shop/a.jpg", "shop/b.jpg", "shop/orphan.jpg", "elsewhere/orphan.jpg")
    world.refer("shop/b.jpg")
    settings = {
        "orphan_cleanup_base_path": "/shop",
        "orphan_cleanup_references": "media_files.storage_key, public.avatars.url",
    }

    report = world.clean(world.run(settings=settings))

    assert (report.scanned_files, report.deleted_files) == (3, 1)
    assert [count.column for count in report.references] == ["media_files.storage_key", "public.avatars.url"]
    assert world.keys() == ["elsewhere/orphan.jpg", "shop/a.jpg", "shop/b.jpg"]


def test_young_files_are_skipped_and_counted(world: World) -> None:
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")

    early = world.clean(world.run(after=timedelta(hours=23)), min_age_hours=24)
    late = world.clean(world.run(after=timedelta(hours=25)), min_age_hours=24)

    assert (early.skipped_young, early.orphaned_files, early.deleted_files) == (2, 0, 0)
    assert (late.skipped_young, late.orphaned_files, late.deleted_files) == (0, 1, 1)


def test_deletion_stops_before_the_size_limit_and_counts_the_rest(world: World) -> None:
    world.put(*numbered(range(5)), body=b"x" * 400)

    world.put("kept.jpg")
    world.refer("kept.jpg")
    report = world.clean(max_delete_gb=1000e-9)

    assert (report.deleted_files, report.deleted_bytes, report.skipped_size_limit) == (2, 800, 3)
    assert world.keys() == ["kept.jpg", *numbered(range(2, 5))]


def test_odd_keys_are_kept_when_referenced_and_deleted_when_not(world: World) -> None:
    world.put(*ODD_KEYS, "uploads/used.jpg")
    world.refer("uploads/used.jpg", *ODD_KEYS)

    assert world.clean(base_path="uploads").orphaned_files == 0

    world.sql("DELETE FROM media_files WHERE storage_key <> 'uploads/used.jpg'")
    report = world.clean(world.run(settings={"allow_override": True}), base_path="uploads", override=True)

    assert (report.failed_deletions, report.deleted_files) == ([], len(ODD_KEYS))
    assert world.keys() == ["uploads/used.jpg"]
    assert world.undo(report.manifest).restored_files == len(ODD_KEYS)
    assert set(world.keys()) == {*ODD_KEYS, "uploads/used.jpg"}


@pytest.mark.parametrize(
    "form",
    [
        "{key}",
        "/{key}",
        "{rest}",
        "/{rest}",
        "https://cdn.example.com/{key}",
        "https://cdn.example.com/{rest}",
        "https://{bucket}.s3.amazonaws.com/{encoded}",
        "https://s3.us-east-1.amazonaws.com/{bucket}/{encoded}",
        "s3://{bucket}/{key}",
    ],
)
def test_each_way_of_storing_a_key_keeps_its_object(world: World, form: str) -> None:
    """FAILURES 6 (immich #7436): absolute and relative paths mixed up made nine files of ten look untracked."""
    from urllib.parse import quote

    used = [f"prod/uploads/{n} ä.jpg" for n in range(30)]
    world.put(*used, "prod/uploads/orphan.jpg")
    for key in used:
        rest = key.removeprefix("prod/")
        world.refer(form.format(key=key, rest=rest, encoded=quote(key), bucket=world.media))

    report = world.clean(base_path="prod/uploads", max_orphan_share=0.1)

    assert world.keys() == sorted(used)
    assert report.deleted_files == 1
    assert (report.references[0].values, report.references[0].unmatched) == (30, 0)


def test_rare_forms_beside_a_usual_one_keep_their_objects(world: World) -> None:
    keys = numbered(range(40))
    world.put(*keys, "uploads/orphan.jpg")
    world.refer(
        *keys[:36], f"/{keys[36]}", f"https://a.example/{keys[37]}", f"http://b.example/{world.media}/{keys[38]}"
    )
    world.refer(keys[39].removeprefix("uploads/"))

    report = world.clean(base_path="uploads")

    assert report.deleted_files == 1
    assert world.keys() == keys


def test_several_columns_keep_objects(world: World) -> None:
    world.sql("CREATE TABLE users (id int, avatar varchar(200))")
    world.put("a.jpg", "b.jpg", "c.jpg")
    world.refer("a.jpg")
    world.sql("INSERT INTO users VALUES (1, 'https://cdn.example/b.jpg'), (2, NULL)")

    report = world.clean(
        references=[{"table": "media_files", "column": "storage_key"}, {"table": "public.users", "column": "avatar"}]
    )

    assert world.keys() == ["a.jpg", "b.jpg"]
    assert [(r.column, r.values, r.matched) for r in report.references] == [
        ("media_files.storage_key", 1, 1),
        ("public.users.avatar", 1, 1),
    ]


# -- the governor ----------------------------------------------------------------------------------------------------


def refused(world: World, run: Any = None, **params: Any) -> Refused:
    held = world.keys()
    with pytest.raises(Refused) as caught:
        world.clean(run, **params)
    assert world.keys() == held, "a refused run touches nothing"
    assert isinstance(caught.value.report, orphan_cleanup.Report)
    assert caught.value.report.status == "refused"
    assert caught.value.report.refusals
    return caught.value


def test_an_empty_database_deletes_nothing(world: World) -> None:
    """FAILURES 8 (romm #3971)."""
    world.put("a.jpg", "b.jpg")

    assert "no references at all in media_files.storage_key" in str(refused(world))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "There are no references at all in media_files.storage_key"),
        ("https://cdn.example/gone.jpg", "No reference in media_files.storage_key names a file"),
    ],
)
def test_a_column_of_the_run_excuses_no_configured_one(world: World, value: str | None, sentence: str) -> None:
    """REQUIREMENTS S2: an added column is read, and keeps its files; the configured ones are judged alone."""
    world.sql("CREATE TABLE users (avatar text)")
    world.sql("INSERT INTO users VALUES ('a.jpg')")
    world.put("a.jpg", "b.jpg")
    if value:
        world.refer(value)
    configured = {"table": "media_files", "column": "storage_key", "elsewhere": ["cdn.example"]}
    settings = STRICT | {"media": STRICT["media"] | {"references": [configured]}}  # type: ignore[dict-item]
    added = [{"table": "users", "column": "avatar"}]

    refusal = refused(world, world.run(settings=settings), references=added)

    assert sentence in str(refusal)
    report = refusal.report
    assert isinstance(report, orphan_cleanup.Report)
    assert [(one.column, one.matched) for one in report.references] == [
        ("media_files.storage_key", 0),
        ("users.avatar", 1),
    ]
    if not value:
        world.refer("b.jpg")
        assert world.clean(world.run(settings=settings), references=added).refusals == []


ADDED = [{"table": "users", "column": "avatar"}]


def shared_with_an_added_column(world: World) -> list[str]:
    """Of 20 files a configured column names 14, an added one 3, and the others are orphans; what the added one names.

    Of the 3 one is named as it is, one derives from it, and one is named without its folder.
    """
    world.sql("CREATE TABLE users (avatar text)")
    keys = numbered(range(14))
    orphans = [f"uploads/orphan{n}.jpg" for n in range(3)]
    added = ["avatars/big.jpg", "avatars/big-150x150.jpg", "avatars/deep/face.jpg"]
    world.put(*keys, *orphans, *added)
    world.refer(*keys)
    world.sql("INSERT INTO users VALUES ('avatars/big.jpg'), ('face.jpg')")
    return added


@pytest.mark.usefixtures("small")
def test_a_column_of_the_run_lowers_no_share(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS S2: what only an added column keeps counts as orphaned, however it keeps it, and however often the
    run is continued."""
    monkeypatch.setenv("MEDIA_BUCKET", world.media)
    kept_by_added, held = shared_with_an_added_column(world), world.keys()
    declared = [ADDED[0] | {"max_unmatched": 1}]
    settings = STRICT | {"media": STRICT["media"] | {"max_orphan_share": 0.29}}  # type: ignore[operator]
    continued = 0

    for asked in range(1, 40):
        run = world.run(settings=settings, stops={asked: "out_of_time"})
        try:
            outcome = world.attempt(run, references=declared, max_orphan_share=None)
            assert isinstance(outcome, Unfinished)
            continued += 1
            run = world.run(job_id=run.job_id, checkpoint=outcome.checkpoint, settings=settings)
            outcome = world.attempt(run, references=declared, max_orphan_share=None)
        except Refused as refusal:
            assert "6 of 20 files (30%) are orphans; 29% may be. Files that only columns of the run" in str(refusal)
        assert world.keys() == held
        if run.asked < asked:
            break
    assert continued > 5

    settings["media"]["max_orphan_share"] = 0.3  # type: ignore[index]
    report = world.clean(world.run(settings=settings), references=declared, max_orphan_share=None)
    assert report.deleted_files == 3
    assert set(kept_by_added) <= set(world.keys())


def test_too_large_a_share_of_orphans_deletes_nothing(world: World) -> None:
    """FAILURES 7 (mastodon #33948)."""
    world.put("a.jpg", "b.jpg", "c.jpg")
    world.refer("a.jpg")

    assert "2 of 3 files (67%) are orphans; 20% may be." in str(refused(world, max_orphan_share=None))


def test_references_that_shrank_delete_nothing(world: World) -> None:
    keys = numbered(range(20))
    world.put(*keys)
    world.refer(*keys)
    world.clean()
    world.sql("DELETE FROM media_files WHERE id % 4 = 0")

    assert "15 references, 20 at the last accepted run" in str(refused(world))
    preview = world.clean(dry_run=True)
    assert preview.refusals
    assert "15 references, 20 at" in str(refused(world)), (
        "neither a refused run nor a refused preview moves the baseline"
    )


def test_a_reference_column_that_is_dropped_from_the_parameters_deletes_nothing(world: World) -> None:
    """FAILURES 10 (restic #4764): a slip in what is to be kept."""
    world.sql("CREATE TABLE users (avatar text)")
    world.sql("INSERT INTO users VALUES ('b.jpg')")
    world.put("a.jpg", "b.jpg")
    world.refer("a.jpg")
    world.clean(references=[{"table": "media_files", "column": "storage_key"}, {"table": "users", "column": "avatar"}])

    assert "users.avatar holds 0 references, 1 at the last" in str(refused(world))


@pytest.mark.parametrize("value", ["https://cdn.example/assets/{}", "id:{}", "https://cdn.example/{}/"])
def test_references_that_match_nothing_delete_nothing(world: World, value: str) -> None:
    keys = numbered(range(40))
    world.put(*keys, "orphan.jpg")
    world.refer(*keys[:30], *(value.format(f"gone-{n}") for n in range(10)))

    refusal = refused(world)

    assert "10 of 40 references in media_files.storage_key name no file that exists; 0 may" in str(refusal)
    (count,) = refusal.report.references  # type: ignore[attr-defined]
    assert (count.values, count.matched, count.outside, count.unmatched) == (40, 30, 0, 10)
    assert len(count.groups[0].examples) == 3


def test_an_override_takes_both_switches(world: World) -> None:
    world.put("a.jpg")
    off = world.run(settings=STRICT)

    assert "set the parameter override and the setting allow_override to true" in str(refused(world, off))
    off = world.run(settings=STRICT)
    assert "set the setting allow_override to true" in str(refused(world, off, override=True))
    assert "set the parameter override to true" in str(refused(world))
    assert world.clean(override=True).deleted_files == 1


def stopped_before_acting(world: World, **params: Any) -> str:
    """The id of a run in earnest that wrote its plan, and then ran out of time."""
    for asked in range(1, 20):
        run = world.run(stops={asked: "out_of_time"})
        held = world.keys()
        world.attempt(run, **params)
        if f"runs/orphan_cleanup/{run.job_id}/plan.json" in world.keys(world.archive):
            assert world.keys() == held
            return run.job_id
    raise AssertionError("no plan was written")


def test_an_override_that_is_withdrawn_ends_the_runs_that_it_let_pass(world: World) -> None:
    """A continuation and a retry go by today's settings (S2)."""
    world.put("a.jpg")
    job_id = stopped_before_acting(world, override=True)

    withdrawn = world.run(job_id=job_id, settings=STRICT)
    assert "set the setting allow_override to true" in str(refused(world, withdrawn, override=True))
    assert world.clean(world.run(job_id=job_id), override=True).deleted_files == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"base_path": "new/"},
        {"references": [{"table": "media_files", "column": "storage_key", "strip": ["static/"]}]},
        {"references": ["media_files.storage_key", "media_files.id"]},
        {"exclude": ["orphan*"]},
        {"derived": ["preview_{name}"]},
        {"min_age_hours": 1},
        {"max_orphan_share": 0.9},
        {"max_reference_shrink": 0.1},
    ],
)
def test_a_plan_is_not_carried_out_under_other_settings(
    world: World, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """The owner has corrected a mistake: what was planned by it must not go."""
    monkeypatch.setenv("MEDIA_BUCKET", world.media)
    world.put("old/used.jpg", "old/orphan.jpg", "new/used.jpg", "new/orphan.jpg")
    world.refer("old/used.jpg", "new/used.jpg")
    settings = STRICT | {"media": STRICT["media"] | {"base_path": "old/", "max_orphan_share": 1}}  # type: ignore[operator]
    held = world.keys()

    def run(job_id: str | None = None, *, stops: Any = None, **media: Any) -> Any:
        given = settings | {"media": settings["media"] | media}
        run = world.run(job_id=job_id, settings=given, stops=stops)
        return run, orphan_cleanup.handler.body(run, orphan_cleanup.handler.validated({}).resolved(run.settings))

    stages = 0
    for asked in range(1, 20):
        first, outcome = run(stops={asked: "out_of_time"})
        if not isinstance(outcome, Unfinished):
            break
        if f"runs/orphan_cleanup/{first.job_id}/plan.json" not in world.keys(world.archive):
            continue
        stages += 1
        with pytest.raises(Permanent, match=r"changed since its plan: nothing more was deleted\. Start a new run\."):
            run(first.job_id, **changed)
        assert world.keys() == held
    assert stages


@pytest.mark.usefixtures("small")
def test_a_scan_starts_over_when_its_settings_have_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIA_BUCKET", world.media)
    old, new = [f"a/{key}" for key in numbered(range(12))], [f"b/{key}" for key in numbered(range(12))]
    world.put(*old, *new)
    world.refer(*old[::2], *new[::2])
    first = world.run(settings=STRICT | {"media": STRICT["media"] | {"base_path": "a/"}}, stops={3: "out_of_time"})  # type: ignore[operator]
    outcome = orphan_cleanup.handler.body(first, orphan_cleanup.handler.validated({}).resolved(first.settings))
    assert isinstance(outcome, Unfinished)
    assert outcome.checkpoint["after"]

    changed = STRICT | {"media": STRICT["media"] | {"base_path": "b/"}}  # type: ignore[operator]
    second = world.run(job_id=first.job_id, checkpoint=outcome.checkpoint, settings=changed)
    report = orphan_cleanup.handler.body(second, orphan_cleanup.handler.validated({}).resolved(second.settings))

    assert isinstance(report, orphan_cleanup.Report)
    assert (report.scanned_files, report.orphaned_files, report.deleted_files) == (12, 6, 6)
    assert world.keys() == [*old, *new[::2]]


@pytest.mark.usefixtures("small")
def test_versioning_that_is_suspended_in_mid_run_stops_the_run(world: World) -> None:
    """FAILURES 25: each part is asked for, and what went before can be undone."""
    keys = numbered(range(12))
    world.put(*keys)
    world.refer(keys[0])
    parts: list[str] = []

    def suspend(params: Any) -> None:
        if "/plan-" in params["Key"]:
            parts.append(params["Key"])
            if len(parts) == 2:
                world.s3.put_bucket_versioning(Bucket=world.media, VersioningConfiguration={"Status": "Suspended"})

    end = before(world.s3, "GetObject", suspend)
    first = world.run()
    with pytest.raises(Permanent, match=r"is suspended, so undo .* Nothing more was deleted\."):
        world.clean(first)
    end()
    left = world.keys()
    assert 1 < len(left) < len(keys)

    world.version(world.media)
    assert world.undo(world.clean(world.run(job_id=first.job_id, attempt=2)).manifest).restored_files == 11


# -- the re-check ----------------------------------------------------------------------------------------------------


def test_a_file_adopted_since_the_scan_is_kept(world: World) -> None:
    """FAILURES 5 (immich #30933) and 9 (django-cleanup #79)."""
    world.put("used.jpg", "adopted.jpg", "orphan.jpg")
    world.refer("used.jpg")
    end = before(world.s3, "GetObject", lambda params: adopt() if "/plan-" in params["Key"] else None)

    def adopt() -> None:
        world.refer("/adopted.jpg")

    report = world.clean()
    end()

    assert (report.deleted_files, report.kept_referenced_again) == (1, 1)
    assert world.keys() == ["adopted.jpg", "used.jpg"]


def test_an_object_that_changed_since_the_scan_is_kept(world: World) -> None:
    world.put("used.jpg", "changed.jpg", "gone.jpg", "orphan.jpg", "odd\x01.jpg")
    world.refer("used.jpg")

    def change(params: Any) -> None:
        if "/plan-" in params["Key"]:
            world.put("changed.jpg", "odd\x01.jpg", body=b"new")
            world.s3.delete_object(Bucket=world.media, Key="gone.jpg")

    end = before(world.s3, "GetObject", change)
    report = world.clean()
    end()

    assert (report.failed_deletions, report.deleted_files, report.kept_changed, report.already_gone) == ([], 1, 2, 1)
    assert world.keys() == ["changed.jpg", "odd\x01.jpg", "used.jpg"]


def test_one_object_that_cannot_be_deleted_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("used.jpg", "locked.jpg", "orphan.jpg")
    world.refer("used.jpg")
    delete = world.s3.delete_objects

    def deny(**request: Any) -> Any:
        objects = request["Delete"]["Objects"]
        answer = delete(Bucket=world.media, Delete={"Objects": [o for o in objects if o["Key"] != "locked.jpg"]})
        return answer | {"Errors": [{"Key": "locked.jpg", "Code": "AccessDenied", "Message": "Access Denied"}]}

    monkeypatch.setattr(world.s3, "delete_objects", deny)
    report = world.clean()

    assert (report.status, report.deleted_files) == ("completed_with_errors", 1)
    assert report.failed_deletions == ["locked.jpg: AccessDenied: Access Denied"]
    assert world.outcomes(report.manifest)["locked.jpg"].outcome == "failed"


def test_a_request_that_s3_refuses_as_a_whole_is_made_key_by_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("used.jpg", *numbered(range(5)))
    world.refer("used.jpg")
    one = world.s3.delete_object

    def malformed(**_: Any) -> Any:
        facts = {"Error": {"Code": "MalformedXML", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(facts, "DeleteObjects")  # type: ignore[arg-type]

    def deny(**request: Any) -> Any:
        if request["Key"] == numbered([3])[0]:
            facts = {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(facts, "DeleteObject")  # type: ignore[arg-type]
        return one(**request)

    monkeypatch.setattr(world.s3, "delete_objects", malformed)
    monkeypatch.setattr(world.s3, "delete_object", deny)
    report = world.clean()

    assert (report.status, report.deleted_files) == ("completed_with_errors", 4)
    assert report.failed_deletions[0].startswith("uploads/000003.jpg: AccessDenied: ")
    assert world.keys() == ["uploads/000003.jpg", "used.jpg"]


def test_the_same_content_uploaded_again_is_a_new_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ETag is the old one's: only the time of the second look tells."""
    world.put("used.jpg", "again.jpg", "orphan.jpg")
    world.refer("used.jpg")
    look = listing.look

    def later(s3: Any, bucket: str, key: str) -> Any:
        now = look(s3, bucket, key)
        assert now
        return (now[0], "2099-01-01T00:00:00.000Z", *now[2:]) if key == "again.jpg" else now

    monkeypatch.setattr(listing, "look", later)
    report = world.clean()

    assert (report.deleted_files, report.kept_changed) == (1, 1)
    assert world.keys() == ["again.jpg", "used.jpg"]


# -- quarantine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [Trigger.SCHEDULE, Trigger.RETRY])
def test_a_scheduled_run_deletes_only_what_an_old_enough_manifest_lists(world: World, trigger: Trigger) -> None:
    """FAILURES 7: nothing is deleted at first sight, nor when a failed tick is redriven."""
    world.put("used.jpg", "old.jpg", "changing.jpg")
    world.refer("used.jpg")

    def tick(hours: float) -> tuple[int, int]:
        run = world.run(schedule="orphan-cleanup", trigger=trigger, after=timedelta(hours=hours))
        report = world.clean(run, quarantine_hours=None)
        return report.deleted_files, report.skipped_quarantine

    first = tick(0)
    world.put("new.jpg", "aa.jpg")
    world.put("changing.jpg", body=b"new")

    assert [first, tick(23), tick(25), tick(48)] == [(0, 2), (0, 4), (1, 3), (3, 0)]
    assert world.keys() == ["used.jpg"]


def test_a_preview_starts_the_quarantine_and_a_refused_one_does_not(world: World) -> None:
    keys = numbered(range(10))
    world.put(*keys, "orphan.jpg")
    refused_preview = world.clean(dry_run=True)
    world.refer(*keys)

    assert refused_preview.refusals
    assert world.clean(world.run(after=timedelta(hours=3)), quarantine_hours=2).deleted_files == 0
    assert world.clean(world.run(after=timedelta(hours=6)), quarantine_hours=2, dry_run=True).would_delete_files == 1
    assert world.clean(world.run(after=timedelta(hours=6)), quarantine_hours=2).deleted_files == 1


def test_what_undo_brought_back_starts_its_quarantine_anew(world: World) -> None:
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")
    hours = [timedelta(hours=h) for h in range(10)]
    world.undo(world.clean().manifest)

    assert world.clean(world.run(after=hours[3]), quarantine_hours=2).skipped_quarantine == 1
    assert world.clean(world.run(after=hours[4]), quarantine_hours=2).skipped_quarantine == 1
    assert world.clean(world.run(after=hours[6]), quarantine_hours=2).deleted_files == 1


# -- time, cancellation, crashes -------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pages and parts, so that few objects make many."""
    monkeypatch.setattr(scan, "PART", 3)
    monkeypatch.setattr(listing, "PAGES_A_BATCH", 1)
    fetch = listing._list
    monkeypatch.setattr(listing, "_list", lambda client, **request: fetch(client, **{"MaxKeys": 5} | request))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_run_that_is_continued_again_and_again_counts_everything_once(world: World, dry_run: bool) -> None:
    keys = numbered(range(23))
    world.put(*keys)
    world.refer(*keys[::2])
    world.clean(dry_run=True)  # the baseline, and the manifest for the quarantine

    job_id, checkpoint, continuations = None, None, 0
    while True:
        run = world.run(job_id=job_id, checkpoint=checkpoint, stops={3: "out_of_time"})
        outcome = world.attempt(run, dry_run=dry_run)
        if not isinstance(outcome, Unfinished):
            break
        job_id, checkpoint = run.job_id, outcome.checkpoint
        continuations += 1

    assert isinstance(outcome, orphan_cleanup.Report)
    assert continuations > 3
    assert (outcome.scanned_files, outcome.orphaned_files) == (23, 11)
    assert outcome.would_delete_files + outcome.deleted_files == 11
    assert list(world.outcomes(outcome.manifest)) == keys[1::2]
    assert world.keys() == (keys if dry_run else keys[::2])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("reason", ["out_of_time", "cancelled"])
def test_a_run_can_be_stopped_at_each_question_of_every_stage(world: World, reason: Any) -> None:
    keys = numbered(range(9))
    world.put(*keys)
    world.refer(*keys[::2])
    asked, stages = 0, set[str]()
    while True:
        asked += 1
        first = world.run(stops={asked: reason})
        outcome = world.attempt(first)
        if first.asked < asked:
            break
        stages.add(first._progress[1].lstrip("0123456789 "))
        if isinstance(outcome, Unfinished):
            outcome = world.attempt(world.run(job_id=first.job_id, checkpoint=outcome.checkpoint))
            assert isinstance(outcome, orphan_cleanup.Report)
            assert (outcome.scanned_files, outcome.orphaned_files, outcome.deleted_files) == (9, 4, 4)
        assert isinstance(outcome, orphan_cleanup.Report)
        if outcome.deleted_files:
            assert world.undo(outcome.manifest).restored_files == outcome.deleted_files
        assert world.keys() == keys

    assert stages == {"references read", "files scanned", "candidates looked at", "orphans dealt with"}


def test_a_reading_that_never_comes_to_its_end_is_given_up(world: World) -> None:
    world.put("a.jpg")
    world.refer("a.jpg")
    checkpoint = None
    for _ in range(scan.MAX_RESTARTS):
        outcome = world.attempt(world.run(checkpoint=checkpoint, stops={1: "out_of_time"}))
        assert isinstance(outcome, Unfinished)
        checkpoint = outcome.checkpoint

    with pytest.raises(Permanent, match="references: the time was over after 1 values, 4 times in a row: raise"):
        world.attempt(world.run(checkpoint=checkpoint, stops={1: "out_of_time"}))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", ["another hash", "lost", "altered", "of an earlier version"])
def test_a_checkpoint_that_cannot_be_used_starts_the_scan_over(
    world: World, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = numbered(range(12))
    world.put(*keys)
    world.refer(*keys[::2])
    first = world.run(stops={3: "out_of_time"})
    outcome = world.attempt(first)
    assert isinstance(outcome, Unfinished)
    checkpoint = outcome.checkpoint
    assert checkpoint["after"]
    state = f"runs/orphan_cleanup/{first.job_id}/{checkpoint['first_reading']['name']}"
    match damage:
        case "another hash":
            monkeypatch.setattr(fingerprints, "PROBE", 7)
        case "lost":
            world.s3.delete_object(Bucket=world.archive, Key=state)
        case "altered":
            world.put(state, bucket=world.archive)
        case _:  # a part of the bucket counted, and no account of the references
            checkpoint = {"started_at": checkpoint["started_at"], "after": keys[4], "files": 5, "young": 0}
            checkpoint |= {"not_media": 0, "parts": 1, "orphans": 2, "orphan_bytes": 2}

    report = world.clean(world.run(job_id=first.job_id, checkpoint=checkpoint))

    assert (report.scanned_files, report.orphaned_files, report.deleted_files, report.matched) == (12, 6, 6, 6)
    assert world.keys() == keys[::2]


def test_a_run_whose_knowledge_is_lost_before_it_deletes_touches_nothing_more(world: World) -> None:
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")
    first = world.run(stops={5: "out_of_time"})
    world.attempt(first)
    state = next(key for key in world.keys(world.archive) if "references-" in key)
    world.s3.delete_object(Bucket=world.archive, Key=state)

    with pytest.raises(Permanent, match=r"nothing more was touched\. Start a new run\."):
        world.clean(world.run(job_id=first.job_id))
    assert world.keys() == ["orphan.jpg", "used.jpg"]


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    old = {"dry_run": True, "scanned_files": 3, "skipped_not_media": 1}
    old |= {"references": [{"column": "t.c", "values": 3, "mapped": 2, "unmapped": 1, "unmapped_examples": ["/ (1)"]}]}

    report = orphan_cleanup.Report.model_validate(old)

    assert (report.references[0].matched, report.references[0].unmatched, report.missing_files) == (2, 1, 0)


@pytest.mark.usefixtures("small")
def test_a_cancelled_run_says_what_it_had_done_and_that_can_be_undone(world: World) -> None:
    keys = numbered(range(12))
    world.put(*keys)
    world.refer(keys[0])

    report = world.clean(world.run(stops={12: "cancelled"}))

    assert 0 < report.deleted_files < 11
    assert len(world.outcomes(report.manifest)) == report.deleted_files
    assert world.undo(report.manifest).restored_files == report.deleted_files
    assert world.keys() == keys


@pytest.mark.usefixtures("small")
def test_cancelled_while_scanning_nothing_is_deleted(world: World) -> None:
    world.put(*numbered(range(12)))

    report = world.clean(world.run(stops={1: "cancelled"}))

    assert (report.deleted_files, report.manifest) == (0, None)
    assert len(world.keys()) == 12


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "written",
    [
        *("candidates-000001", "references-1", "listed-1", "plan-000001", "plan.json", ".lamplighter/claim.json"),
        *("outcome-000000", "outcome-000002", "manifests/", "baselines/"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_attempt_that_dies_anywhere_is_taken_up_by_the_next(world: World, written: str, when: str) -> None:
    keys = numbered(range(12))
    world.put(*keys)
    world.refer(keys[0])
    first = world.run()

    def crash(params: Any = None, **_: Any) -> None:
        if written in (params or {}).get("Key", "") or written in (params or {}).get("url_path", ""):
            raise Crash

    crashed: list[str] = []

    def note(params: Any, **_: Any) -> None:
        crashed.append(params["Key"])

    def after(**_: Any) -> None:
        if written in crashed[-1]:
            raise Crash

    event = "provide-client-params.s3.PutObject"
    world.s3.meta.events.register(event, crash if when == "before" else note)
    if when == "after":
        world.s3.meta.events.register("after-call.s3.PutObject", after)
    with pytest.raises(Crash):
        world.clean(first)
    world.s3.meta.events.unregister(event, crash if when == "before" else note)
    world.s3.meta.events.unregister("after-call.s3.PutObject", after)

    report = world.clean(world.run(job_id=first.job_id, attempt=2))

    assert (report.scanned_files, report.orphaned_files, report.deleted_files) == (12, 11, 11)
    assert world.keys() == keys[:1]
    assert world.undo(report.manifest).restored_files == 11
    assert world.keys() == keys


def test_a_database_that_goes_away_in_mid_run_stops_the_run_and_the_next_attempt_goes_on(world: World) -> None:
    """FAILURES 8."""
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")
    first = world.run()

    def kill(params: Any) -> None:
        if "/plan-" in params["Key"]:
            world.sql(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )

    end = before(world.s3, "GetObject", kill)
    with pytest.raises(DatabaseUnavailable):
        world.clean(first)
    end()

    assert world.keys() == ["orphan.jpg", "used.jpg"]
    assert world.clean(world.run(job_id=first.job_id, attempt=2)).deleted_files == 1


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"dry-run": True}, "dry-run is not a parameter of orphan_cleanup"),
        ({"min_age_hours": -1}, "min_age_hours: input should be greater than or equal to 0"),
        ({"max_delete_gb": -0.1}, "max_delete_gb: input should be greater than or equal to 0"),
        ({"max_orphan_share": 2}, "max_orphan_share: input should be less than or equal to 1"),
        ({"references": []}, "references: tuple should have at least 1 item"),
        ({"references": [{"table": "media_files", "colum": "x"}]}, "references.0.column"),
        ({"bucket": "no-such-bucket"}, "bucket: there is no bucket named no-such-bucket."),
        ({"references": [{"table": "nowhere", "column": "x"}]}, "references: there is no table nowhere"),
        (
            {"references": [{"table": "media_files", "column": "path"}]},
            "references: the table media_files has no column path.",
        ),
        (
            {"references": [{"table": "media_files", "column": "id"}]},
            "references: media_files.id is of type bigint; a column of text, varchar, char, ",
        ),
        (
            {"references": [{"table": 'media_files"; DROP TABLE media_files; --', "column": "x"}]},
            "references: there is no table",
        ),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(world: World, params: dict[str, Any], sentence: str) -> None:
    world.put("a.jpg", "b.jpg")
    world.refer("a.jpg")

    with pytest.raises(Permanent) as caught:
        world.clean(**params)

    assert sentence in str(caught.value)
    assert world.keys() == ["a.jpg", "b.jpg"]


def test_a_folder_without_objects_is_a_completed_run_that_scanned_nothing(world: World) -> None:
    world.put("a.jpg")
    world.refer("a.jpg")

    report = world.clean(base_path="/nothing/here/")

    assert (report.status, report.scanned_files, report.orphaned_files) == ("completed", 0, 0)


def test_without_a_bucket_or_an_archive_the_run_says_which_setting_is_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Permanent, match="MEDIA_BUCKET"):
        patch.delenv("MEDIA_BUCKET")
        world.clean(bucket=None)
    monkeypatch.delenv("ARCHIVE_BUCKET")
    with pytest.raises(Permanent, match="ARCHIVE_BUCKET"):
        world.clean()


# -- undo ------------------------------------------------------------------------------------------------------------


def deleted(world: World) -> orphan_cleanup.Report:
    world.put("used.jpg", "a.jpg", "b.jpg", "c.jpg")
    world.refer("used.jpg")
    return world.clean()


def test_undo_brings_everything_back_once(world: World) -> None:
    report = deleted(world)

    preview = world.undo(report.manifest, dry_run=True)
    assert (preview.would_restore_files, world.keys()) == (3, ["used.jpg"])
    assert world.undo(report.manifest).restored_files == 3
    assert world.keys() == ["a.jpg", "b.jpg", "c.jpg", "used.jpg"]
    again = world.undo(report.manifest)
    assert (again.restored_files, again.already_restored, again.status) == (0, 3, "completed")


def test_undo_leaves_alone_what_was_made_anew_or_deleted_again(world: World) -> None:
    report = deleted(world)
    world.put("a.jpg", "b.jpg", body=b"new")
    world.s3.delete_object(Bucket=world.media, Key="b.jpg")

    undone = world.undo(report.manifest)

    assert (undone.restored_files, undone.left_alone) == (1, 2)
    assert world.keys() == ["a.jpg", "c.jpg", "used.jpg"]
    assert world.s3.get_object(Bucket=world.media, Key="a.jpg")["Body"].read() == b"new"


def test_undo_says_when_the_bucket_was_not_versioned(world: World) -> None:
    world.s3.create_bucket(Bucket=world.plain)
    world.put("used.jpg", "a.jpg", bucket=world.plain)
    world.refer("used.jpg")
    report = world.clean(world.run(settings={"media": {"allow_unversioned": True}}), bucket=world.plain)

    undone = world.undo(report.manifest)

    assert (report.deleted_files, undone.restored_files, undone.not_restorable) == (1, 0, 1)
    assert undone.status == "completed_with_errors"


def test_undo_refuses_a_manifest_or_a_part_that_was_altered(world: World) -> None:
    report = deleted(world)
    assert report.manifest
    altered = report.manifest.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Permanent, match="SHA-256 differs"):
        world.undo(altered)
    part = next(key for key in world.keys(world.archive) if "/outcome-" in key)
    world.put(part, body=b"forged", bucket=world.archive)

    with pytest.raises(Permanent, match=rf"{part} is not what was written"):
        world.undo(report.manifest)

    assert world.keys() == ["used.jpg"]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"manifest": "nothing.json"}, "manifest: nothing.json is not one of orphan_cleanup"),
        ({"manifest": "manifests/orphan_cleanup/x.json"}, "manifest: there is no manifests/orphan_cleanup/x.json in"),
        ({"manifest": None, "sha256": None}, "give either job_id, or manifest and sha256"),
        ({"job_id": "x"}, "give either job_id, or manifest and sha256"),
        ({"sha256": "abc"}, "sha256: string should match pattern"),
    ],
)
def test_undo_explains_what_it_takes(world: World, params: dict[str, Any], sentence: str) -> None:
    report = deleted(world)

    with pytest.raises(Permanent) as caught:
        world.undo(report.manifest, **params)

    assert sentence in str(caught.value)


# -- undo by the cleanup's job ---------------------------------------------------------------------------------------


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger that the undo finds as the deployed one."""
    made = Ledger(MemoryStore())
    monkeypatch.setattr(Ledger, "from_environment", classmethod(lambda cls: made))
    return made


def begun(ledger: Ledger, world: World, job_type: str = "orphan_cleanup") -> ScriptedRun:
    """A run of a job that the ledger knows as running."""
    policy = Policy(timeout=timedelta(minutes=15), max_attempts=1)
    return world.run(job_id=ledger.start(ledger.new_job(job_type, policy)).job_id)


def undo_job(world: World, job_id: str) -> undo.Report:
    report = undo.handler.body(world.run(job_type="undo"), undo.handler.validated({"job_id": job_id, "dry_run": False}))
    assert isinstance(report, undo.Report)
    return report


def test_undo_finds_the_manifest_of_a_cleanup_by_its_job(world: World, ledger: Ledger) -> None:
    world.put("used.jpg", "a.jpg", "b.jpg")
    world.refer("used.jpg")
    run = begun(ledger, world)
    report = world.clean(run)
    with pytest.raises(Permanent, match="is running; cancel it first"):
        undo_job(world, run.job_id)
    ledger.complete(ledger.get(run.job_id), report.model_dump(mode="json"))

    assert undo_job(world, run.job_id).restored_files == 2
    assert world.keys() == ["a.jpg", "b.jpg", "used.jpg"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("written", ["outcome-000000", "outcome-000002", "manifests/"])
def test_undo_restores_what_a_cleanup_deleted_that_died_for_good(world: World, ledger: Ledger, written: str) -> None:
    keys = numbered(range(12))
    world.put(*keys)
    world.refer(keys[0])
    run = begun(ledger, world)

    def crash(params: Any) -> None:
        if written in params["Key"]:
            raise Crash

    end = before(world.s3, "PutObject", crash)
    with pytest.raises(Crash):
        world.clean(run)
    end()
    ledger.fail(ledger.get(run.job_id), RuntimeError("died"))
    gone = 12 - len(world.keys())

    assert gone >= 3
    assert undo_job(world, run.job_id).restored_files == gone
    assert world.keys() == keys


def test_undo_of_a_refused_cleanup_says_that_it_deleted_nothing(world: World, ledger: Ledger) -> None:
    world.put("a.jpg")
    run = begun(ledger, world)
    refusal = refused(world, run)
    ledger.fail(ledger.get(run.job_id), refusal, result=refusal.report.model_dump(mode="json"))

    with pytest.raises(Permanent, match="was refused by the governor: it did nothing"):
        undo_job(world, run.job_id)


def test_undo_takes_no_other_document_for_a_manifest(world: World) -> None:
    world.put("a.jpg", "b.jpg", "c.jpg")
    world.refer("a.jpg")
    plan = refused(world, max_orphan_share=None).report.manifest
    undone = world.undo(world.clean().manifest)

    assert plan
    for other in (plan, undone.manifest):
        with pytest.raises(Permanent, match=f"manifest: {other.key} is not one of orphan_cleanup"):
            world.undo(other)
    assert world.keys() == ["a.jpg", "b.jpg", "c.jpg"]


def test_undo_takes_only_cleanups_that_the_ledger_knows(world: World, ledger: Ledger) -> None:
    other = begun(ledger, world, job_type="export")

    with pytest.raises(Permanent, match="is no orphan_cleanup but export"):
        undo_job(world, other.job_id)
    with pytest.raises(Permanent, match="no job 'nonsense' in the ledger"):
        undo_job(world, "nonsense")


# -- the ramp --------------------------------------------------------------------------------------------------------


def narrowed(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of the folder shop/ with a ramp of 2, 20, ... files, and files in folders below it."""
    monkeypatch.setenv("MEDIA_BUCKET", world.media)
    monkeypatch.setattr(ramp, "FIRST_OBJECTS", 2)
    folders = ["shop/a", "shop/b", "shop/c", "shop/ä ö/d"]
    world.put(*(f"{folder}/{n}.jpg" for folder in folders for n in range(9)))
    world.refer(*(f"{folder}/0.jpg" for folder in folders))
    return STRICT | {"media": STRICT["media"] | {"base_path": "shop"}}  # type: ignore[dict-item]


def test_runs_of_folders_below_the_configured_one_share_its_ramp(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS S3: a narrowed run earns the trust of the configured folder, and has no first step of its own."""
    settings = narrowed(world, monkeypatch)

    def clean(folder: str | None, hours: float = 0, **params: Any) -> orphan_cleanup.Report:
        run = world.run(settings=settings, after=timedelta(hours=hours))
        return world.clean(run, base_path=folder, **params)

    assert clean("shop/a").deleted_files == 2
    assert clean("shop/a", 25, dry_run=True).would_delete_files == 6
    assert clean(None, 25).deleted_files == 20, "what a narrowed run earned counts for the configured folder"
    address = clean("shop/ä ö/d", 25).manifest
    assert list(world.trust.items) == [ramp.of_objects(f"{world.media}/shop%2F")]

    assert world.undo(address, world.run(job_type="undo", after=timedelta(hours=26))).restored_files > 2
    assert clean(None, 27).deleted_files == 2, "an undo of a narrowed run starts the configured folder again"


def test_trust_that_folders_earned_by_themselves_before_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the configured folder earned before counts; an undo of a run of that time starts it again, too."""
    settings = narrowed(world, monkeypatch)
    earlier = datetime.now(UTC) - timedelta(days=3)
    definition = {
        "bucket": world.media,
        "folder": "shop/",
        "references": [
            {
                "table": "media_files",
                "column": "storage_key",
                "kind": None,
                "path": None,
                "strip": [],
                "elsewhere": [],
                "folder": False,
            }
        ],
        "derived": list(DERIVED),
        "exclude": [],
    }
    for folder, limit in (("shop%2F", 2), ("shop%2Fa%2F", 2_000)):
        trust = ramp.Trust(
            definition=ramp.definition_of(definition), limit=limit, since=earlier, acted_at=earlier, epoch="e"
        )
        world.trust.write(f"objects/{world.media}/{folder}", trust, version=None)

    report = world.clean(world.run(settings=settings), base_path="shop/a")

    assert (report.deleted_files, report.held_by_ramp) == (8, 0)
    trust = world.trust.items[f"objects/{world.media}/shop%2F"].trust
    assert trust is not None and trust.limit == 20


def test_a_narrowed_run_is_compared_with_the_baseline_of_the_configured_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References of a column are the same whatever folder is cleaned: narrowing lifts no fuse (S2)."""
    settings = narrowed(world, monkeypatch)
    world.clean(world.run(settings=settings))
    world.sql("DELETE FROM media_files WHERE storage_key <> 'shop/a/0.jpg'")

    refusal = refused(world, world.run(settings=settings), base_path="shop/a")

    assert "media_files.storage_key holds 1 references, 4 at the last accepted run" in str(refusal)
