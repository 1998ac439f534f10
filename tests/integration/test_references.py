"""Every reference is accounted for, through SQL and S3: what a row names in any way stays (REQUIREMENTS S1)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError

from lamplighter.deletion import claims, ramp
from lamplighter.kernel.deletion import Refused, verified
from lamplighter.kernel.errors import Permanent
from lamplighter.media import listing, orphan_cleanup, scan
from tests.integration.media_world import World, before

MATCHED: dict[str, Callable[[str], str]] = {
    "encoded slashes": lambda key: quote(key, safe=""),
    "encoded URL": lambda key: f"https://cdn.example.com/{quote(key)}",
    "another Unicode form": lambda key: unicodedata.normalize("NFD", key),
    "HTML": lambda key: key.replace("&", "&amp;"),
    "another case": str.upper,
    "a dot": lambda key: f"./{key}",
    "two dots": lambda key: f"uploads/x/../{key.removeprefix('uploads/')}",
    "blanks": lambda key: f" {key} ",
    "doubled slashes": lambda key: key.replace("/", "//"),
    "query": lambda key: f"https://cdn.example.com/{quote(key)}?width=100#top",
    "backslashes": lambda key: key.replace("/", "\\"),
}
"""Forms that are understood, and counted as matched."""
RESCUED: dict[str, Callable[[str], str]] = {
    "no folder": lambda key: key.removeprefix("uploads/"),
    "another folder": lambda key: f"static/{key}",
    "no extension": lambda key: key.removesuffix(".jpg"),
    "only a name": lambda key: key.removeprefix("uploads/").removesuffix(".jpg"),
    "another extension": lambda key: key.replace(".jpg", ".webp"),
    "cut off": lambda key: key[:-6],
}
"""Forms that match nothing, but keep what they could mean."""


def names(count: int) -> list[str]:
    """Keys that are written differently in every form."""
    return [f"uploads/Größe & Maß {n:03}, Sommerferien.jpg" for n in range(count)]


@pytest.mark.parametrize(("odd", "of"), [(1, 20), (6, 26), (40, 100)])
@pytest.mark.parametrize("form", MATCHED)
def test_a_minority_in_another_form_is_matched(world: World, form: str, odd: int, of: int) -> None:
    """FAILURES 19 and 20: a sample of 20 called all of 100 mapped, and the files of 40 went."""
    keys = names(of)
    world.put(*keys, "uploads/orphan.jpg")
    world.refer(*(MATCHED[form](key) for key in keys[:odd]), *keys[odd:])

    report = world.clean()

    assert world.keys() == sorted(keys)
    assert (report.deleted_files, report.matched, report.outside, report.unmatched) == (1, of, 0, 0)


@pytest.mark.parametrize(("odd", "of"), [(1, 20), (6, 26), (40, 100)])
@pytest.mark.parametrize("form", RESCUED)
def test_a_minority_that_cannot_be_matched_is_refused_and_then_kept(world: World, form: str, odd: int, of: int) -> None:
    keys = names(of)
    world.put(*keys, "uploads/orphan.jpg")
    world.refer(*(RESCUED[form](key) for key in keys[:odd]), *keys[odd:])
    declared = {"table": "media_files", "column": "storage_key", "max_unmatched": odd, "max_unreadable": odd}

    with pytest.raises(Refused, match=f"{odd} of {of} references in media_files.storage_key name no file"):
        world.clean()
    report = world.clean(references=[declared])

    assert world.keys() == sorted(keys)
    assert (report.deleted_files, report.kept_ambiguous) == (1, odd)
    assert (report.matched, report.unmatched) == (of - odd, odd)


def test_the_refusal_names_what_to_declare_and_the_declaration_settles_it(world: World) -> None:
    keys = names(30)
    world.put(*keys, "uploads/orphan.jpg")
    world.refer(*(f"static/{key}" for key in keys[:10]), *keys[10:], *(f"https://img.other.com/{n}" for n in range(5)))

    with pytest.raises(Refused) as caught:
        world.clean()

    assert 'static/ (10, declare "strip": ["static/"]): static/' in str(caught.value)
    assert '//img.other.com/ (5, declare "elsewhere": ["img.other.com"])' in str(caught.value)
    declared = {"strip": ["static/"], "elsewhere": ["img.other.com"]}
    report = world.clean(references=[{"table": "media_files", "column": "storage_key"} | declared])
    assert (report.deleted_files, report.matched, report.outside, report.unmatched) == (1, 30, 5, 0)
    assert world.keys() == sorted(keys)


def test_empty_and_blank_values_are_no_references(world: World) -> None:
    """FAILURES 27: Django's empty string for "no file" made every run refuse."""
    world.put("a.jpg", "orphan.jpg")
    world.refer("a.jpg", "", " ", "\t\n", "\u00a0", "\u200b")

    report = world.clean()

    assert (report.deleted_files, report.references[0].values) == (1, 1)


@pytest.mark.parametrize(
    ("column", "value", "declared"),
    [
        ("text[]", ["b.jpg", "a/c d.jpg"], {}),
        ("jsonb", json.dumps({"cover": "b.jpg", "all": [{"src": "/a/c%20d.jpg", "title": "No file"}]}), {}),
        ("json", json.dumps(["b.jpg", "https://x.example/a/c%20d.jpg"]), {}),
        ("jsonb", json.dumps({"ids": ["b.jpg", "a/c d.jpg"], "n": "gone.jpg"}), {"kind": "json", "path": "$.ids[*]"}),
        ("text", '<p>A <img src="b.jpg"> and <a href="/about" style="b: url(/a/c%20d.jpg)">', {"kind": "html"}),
        ("text", "![x](b.jpg) and [y](a/c%20d.jpg)", {"kind": "html"}),
    ],
)
def test_columns_that_hold_several_references_keep_them_all(
    world: World, column: str, value: Any, declared: dict[str, Any]
) -> None:
    world.put("b.jpg", "a/c d.jpg", "orphan.jpg")
    world.sql(f"CREATE TABLE pages (id int, body {column})")
    world.sql(f"INSERT INTO pages VALUES (1, CAST(:value AS {column})), (2, NULL)", {"value": value})

    report = world.clean(references=[{"table": "pages", "column": "body"} | declared])

    assert world.keys() == ["a/c d.jpg", "b.jpg"]
    assert (report.deleted_files, report.matched, report.unmatched) == (1, 2, 0)


@pytest.mark.parametrize("column", ["char(30)", "varchar(30)", "media_path", "name_of_file"])
def test_columns_of_other_types_of_text_keep_their_files(world: World, column: str) -> None:
    world.put("b.jpg", "c.jpg", "orphan.jpg")
    world.sql("CREATE DOMAIN media_path AS text CHECK (value <> '')")
    world.sql("CREATE DOMAIN name_of_file AS media_path")
    world.sql(f"CREATE TABLE pages (file {column})")
    world.sql("INSERT INTO pages VALUES ('b.jpg'), ('c.jpg')")

    report = world.clean(references=[{"table": "pages", "column": "file"}])

    assert world.keys() == ["b.jpg", "c.jpg"]
    assert (report.deleted_files, report.matched) == (1, 2)


def test_a_column_of_folders_keeps_all_below_them(world: World) -> None:
    world.put("albums/1/a.jpg", "albums/1/b/c.jpg", "albums/2/a.jpg", "albums/10/a.jpg")
    world.sql("CREATE TABLE albums (folder text)")
    world.sql("INSERT INTO albums VALUES ('albums/1'), ('/albums/2/')")

    report = world.clean(references=[{"table": "albums", "column": "folder", "folder": True}])

    assert world.keys() == ["albums/1/a.jpg", "albums/1/b/c.jpg", "albums/2/a.jpg"]
    assert (report.deleted_files, report.matched) == (1, 2)


def test_files_derived_from_one_that_stays_are_kept(world: World) -> None:
    derived = ["a-150x150.jpg", "a-scaled.jpg", "a.jpg.245x245_q85_crop.jpg", "a.webp", "a@2x.jpg", "thumbnail_a.jpg"]
    world.put("up/a.jpg", *(f"up/{one}" for one in derived), "up/orphan.jpg", "up/orphan-150x150.jpg")
    world.refer("up/a.jpg")

    report = world.clean()

    assert world.keys() == sorted(["up/a.jpg", *(f"up/{one}" for one in derived)])
    assert (report.deleted_files, report.kept_derived, report.orphaned_files) == (2, 6, 2)


def test_what_an_exclusion_names_is_kept(world: World) -> None:
    world.put("a.jpg", "brand/logo.jpg", "orphan.jpg")
    world.refer("a.jpg")

    report = world.clean(world.run(settings={"media": {"exclude": ["brand/**"]}}))

    assert world.keys() == ["a.jpg", "brand/logo.jpg"]
    assert (report.deleted_files, report.excluded) == (1, 1)


def test_the_ramp_holds_back_what_a_scope_has_not_earned_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS S3: what a preview says is what a run in earnest does."""
    monkeypatch.setattr(ramp, "FIRST_OBJECTS", 3)
    world.put("used.jpg", *(f"{n}.jpg" for n in range(8)))
    world.refer("used.jpg")

    preview = world.clean(dry_run=True)
    first = world.clean(world.run())
    second = world.clean(world.run(after=timedelta(hours=25)))

    assert (preview.would_delete_files, preview.held_by_ramp) == (3, 5)
    assert (first.deleted_files, first.held_by_ramp) == (3, 5)
    assert (second.deleted_files, second.held_by_ramp) == (5, 0)


def test_an_accepted_missing_file_does_not_start_the_ramp_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIREMENTS S3: the definition is the columns and how they are read, not how many missing files are accepted."""
    monkeypatch.setattr(ramp, "FIRST_OBJECTS", 3)
    world.put("used.jpg", *names(8))
    world.refer("used.jpg")
    world.clean(world.run(settings={"media": {"ramp": True}}))
    world.refer("gone.jpg")
    reference = {"table": "media_files", "column": "storage_key", "max_unmatched": 1}

    later = world.run(settings={"media": {"ramp": True, "references": [reference]}}, after=timedelta(days=1, hours=1))
    report = world.clean(later)

    assert (report.deleted_files, report.held_by_ramp, report.missing_files) == (5, 0, 1)


def test_files_that_cannot_be_deleted_do_not_use_up_the_ramp(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 26: what is kept must not starve the rest."""
    monkeypatch.setattr(ramp, "FIRST_OBJECTS", 2)
    world.put("used.jpg", *(f"{n}.jpg" for n in range(6)))
    world.refer("used.jpg")
    delete = world.s3.delete_objects

    def deny(**request: Any) -> Any:
        objects = request["Delete"]["Objects"]
        denied = [{"Key": one["Key"], "Code": "AccessDenied"} for one in objects if one["Key"] < "3"]
        allowed = [one for one in objects if one["Key"] >= "3"]
        answer = delete(Bucket=world.media, Delete={"Objects": allowed}) if allowed else {"ResponseMetadata": {}}
        return answer | {"Errors": denied}

    monkeypatch.setattr(world.s3, "delete_objects", deny)
    report = world.clean()

    assert (report.deleted_files, len(report.failed_deletions), report.held_by_ramp) == (2, 3, 1)


def test_a_folder_that_another_stack_cleans_and_an_unversioned_bucket_are_refused(world: World) -> None:
    """FAILURES 25; REQUIREMENTS S5 and S10: nothing is deleted, and the preview has said so."""
    world.put("used.jpg", "orphan.jpg")
    world.refer("used.jpg")
    other = claims.Stack(name="staging", account="111122223333", region="us-east-1")
    claims.claim(world.s3, world.media, "", stack=other, now=world.run().now())

    assert "The stack staging" in world.clean(dry_run=True).warnings[0]
    with pytest.raises(Permanent, match="The stack staging"):
        world.clean()
    world.s3.create_bucket(Bucket=world.plain)
    world.put("used.jpg", "orphan.jpg", bucket=world.plain)
    assert "Versioning of" in world.clean(bucket=world.plain, dry_run=True).warnings[0]
    with pytest.raises(Permanent, match="Versioning of"):
        world.clean(bucket=world.plain)
    assert world.keys() == world.keys(world.plain) == ["orphan.jpg", "used.jpg"]


def test_missing_files_are_counted_and_named(world: World) -> None:
    world.put("a.jpg", "orphan.jpg")
    world.refer("a.jpg", "gone.jpg", "gone.jpg", "https://cdn.example.com/away.png", "no-name")
    declared = {"table": "media_files", "column": "storage_key", "max_unmatched": 4, "max_unreadable": 1}

    report = world.clean(references=[declared])

    assert (report.missing_files, report.unmatched) == (3, 4)
    assert report.manifest
    manifest = verified(world.s3, report.manifest)
    assert manifest.missing_files == 3
    assert sorted(one.value for one in manifest.missing) == ["gone.jpg", "gone.jpg", "https://cdn.example.com/away.png"]
    assert manifest.sources == report.references
    assert "4 of 5 references in media_files.storage_key (80.0%) name no file" in report.warnings[0]


# -- rows and files that come during the run -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{key}", "HTTPS://CDN.example.com/{key}?x", "./{key}", "static/{key}"])
def test_a_row_that_comes_after_the_first_reading_keeps_its_file(world: World, form: str) -> None:
    """FAILURES 5 (immich #30933), in forms that no index finds."""
    world.put("uploads/used.jpg", "uploads/adopted.jpg", "uploads/orphan.jpg")
    world.refer("uploads/used.jpg")
    end = before(world.s3, "PutObject", lambda params: adopt() if "references-1" in params["Key"] else None)

    def adopt() -> None:
        world.refer(form.format(key="uploads/adopted.jpg"))

    declared = {"table": "media_files", "column": "storage_key", "max_unmatched": 1}
    report = world.clean(references=[declared])
    end()

    assert world.keys() == ["uploads/adopted.jpg", "uploads/used.jpg"]
    assert report.deleted_files == 1
    assert report.kept_referenced_again + report.kept_ambiguous == 1


def test_a_row_that_comes_between_two_invocations_keeps_its_file(world: World) -> None:
    world.put("uploads/used.jpg", "uploads/adopted.jpg", "uploads/orphan.jpg")
    world.refer("uploads/used.jpg")
    first = world.run(stops={5: "out_of_time"})
    world.attempt(first)
    world.refer("HTTPS://CDN.example.com/uploads/adopted.jpg?x")

    report = world.clean(world.run(job_id=first.job_id))

    assert world.keys() == ["uploads/adopted.jpg", "uploads/used.jpg"]
    assert (report.deleted_files, report.kept_referenced_again) == (1, 1)


def test_a_reading_that_is_no_longer_fresh_is_repeated_before_a_deletion(world: World) -> None:
    world.put("uploads/used.jpg", "uploads/adopted.jpg", "uploads/orphan.jpg")
    world.refer("uploads/used.jpg")
    run = world.run()
    end = before(world.s3, "PutObject", lambda params: wait() if params["Key"].endswith("plan.json") else None)

    def wait() -> None:
        world.refer("HTTPS://CDN.example.com/uploads/adopted.jpg?x")
        later = run.now() + orphan_cleanup.READING_IS_FRESH + timedelta(seconds=1)
        run._clock = lambda: later

    report = world.clean(run)
    end()

    assert world.keys() == ["uploads/adopted.jpg", "uploads/used.jpg"]
    assert (report.deleted_files, report.kept_referenced_again) == (1, 1)


def test_a_row_that_comes_between_two_parts_keeps_its_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column without an index, read in milliseconds: it is read again before each part."""
    monkeypatch.setattr(scan, "PART", 2)
    world.put("uploads/used.jpg", *(f"uploads/{n}.jpg" for n in range(6)))
    world.refer("uploads/used.jpg")
    run = world.run()
    began = run.now()
    seconds = iter(range(1, 100))
    run._clock = lambda: began
    end = before(world.s3, "DeleteObjects", lambda params: adopt())

    def adopt() -> None:
        if (now := next(seconds)) == 1:
            world.refer("HTTPS://CDN.example.com/uploads/5.jpg?x")
        run._clock = lambda: began + timedelta(seconds=now)

    report = world.clean(run)
    end()

    assert world.keys() == ["uploads/5.jpg", "uploads/used.jpg"]
    assert (report.deleted_files, report.kept_referenced_again) == (5, 1)


def test_files_uploaded_behind_the_listing_refuse_nothing(world: World) -> None:
    world.put("uploads/m.jpg", "uploads/orphan.jpg")
    world.refer("uploads/m.jpg")
    end = before(world.s3, "PutObject", lambda params: upload() if "references-1" in params["Key"] else None)

    def upload() -> None:
        world.put("uploads/a b.jpg", "uploads/c.jpg")
        world.refer("https://cdn.example.com/uploads/a%20b.jpg", "uploads/c.jpg")

    report = world.clean()
    end()

    assert (report.deleted_files, report.matched, report.unmatched, report.missing_files) == (1, 3, 0, 0)
    assert world.keys() == ["uploads/a b.jpg", "uploads/c.jpg", "uploads/m.jpg"]


# -- what cannot be read ---------------------------------------------------------------------------------------------


def test_row_security_that_hides_a_tenant_deletes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 21 (wpmgr #408)."""
    from lamplighter.kernel import database
    from tests.integration.test_values import as_role

    keys = names(20)
    world.put(*keys)
    world.sql("CREATE TABLE files (tenant text, key text)")
    world.sql("INSERT INTO files VALUES (:t, :k)", *({"t": "ab"[n % 5 == 0], "k": key} for n, key in enumerate(keys)))
    world.sql("ALTER TABLE files ENABLE ROW LEVEL SECURITY")
    world.sql("CREATE POLICY own ON files USING (tenant = 'a')")
    with as_role(world.engine, "SELECT ON files") as reader:
        monkeypatch.setattr(database, "engine", lambda: reader)
        with pytest.raises(Permanent, match=r'files\.key cannot be read in full: .* for table "files"'):
            world.clean(references=[{"table": "files", "column": "key"}])
        monkeypatch.undo()
    assert world.keys() == sorted(keys)


def test_a_bucket_that_may_not_be_listed_is_one_final_sentence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("a.jpg")
    world.refer("a.jpg")

    class Denied:
        def list_objects_v2(self, **_: Any) -> Any:
            facts = {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(facts, "ListObjectsV2")  # type: ignore[arg-type]

    fetch = listing._list
    monkeypatch.setattr(listing, "_list", lambda _client, **request: fetch(Denied(), **request))
    with pytest.raises(Permanent, match=f"bucket: {world.media} may not be listed"):
        world.clean()


def test_a_table_whose_name_holds_nul_is_one_final_sentence(world: World) -> None:
    with pytest.raises(Permanent, match="references"):
        world.clean(references=[{"table": "t\0", "column": "c"}])
