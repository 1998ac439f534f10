"""Why owners may let the cleanups act, on a stack that allows no override (REQUIREMENTS S1-S10, K13, K14)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unicodedata import normalize

import pytest

from lamplighter.deletion.claims import KEY as CLAIM
from lamplighter.kernel.deletion import ManifestAddress, verified
from lamplighter.kernel.ledger.ledger import utc_now
from lamplighter.kernel.ledger.row import Status, to_text
from local.signed import Api
from tests.e2e.deployed import Deployed, FunctionFailed, Machine, Shelf


def names(count: int, start: str = "") -> list[str]:
    return [f"{start}{n:03}.jpg" for n in range(count)]


def write(shelf: Shelf, *values: str) -> None:
    """Rows with these values as they stand."""
    rows = ({"value": value} for value in values)
    shelf.stack.sql(f"INSERT INTO {shelf.name} (storage_key) VALUES (:value)", *rows)


def clean_refused(shelf: Shelf, **params: Any) -> str:
    """The one sentence with which a cleanup is refused for good, holding no lock; nothing was deleted."""
    before = shelf.keys()
    with pytest.raises(FunctionFailed) as refused:
        shelf.clean(**params)
    assert shelf.keys() == before
    row, *others = shelf.stack.of_type("orphan_cleanup")
    assert (row.status, row.attempt) == (Status.FAILED, 1)
    assert all(job.status.terminal for job in others)
    return str(refused.value)


# -- S1: every reference is accounted for ------------------------------------------------------------------------------


def test_rows_in_an_unknown_form_are_refused_until_they_are_declared(stack: Deployed, shelf: Shelf) -> None:
    """S1; FAILURES 19: a sample of 20 called all of 100 mapped, and the files of 40 went."""
    kept = shelf.put(*names(100))
    shelf.put(*names(5, "orphan-"))
    write(shelf, *names(60), *(f"static/{name}" for name in names(100)[60:]))

    refusal = clean_refused(shelf)
    assert f"40 of 100 references in {shelf.name}.storage_key name no file that exists; 0 may" in refusal
    assert 'static/ (40, declare "strip": ["static/"]): static/060.jpg' in refusal
    refused = shelf.jobs()[0].result or {}
    assert (refused["status"], refused["matched"], refused["unmatched"]) == ("refused", 60, 40)

    with stack.with_settings({"media": {"references": [shelf.reference(strip=["static/"])]}}):
        report = shelf.clean(references=None)
    assert (report["deleted_files"], report["matched"], report["outside"], report["unmatched"]) == (5, 100, 0, 0)
    assert shelf.keys() == kept


FORMS: Mapping[str, Callable[[str], str]] = {
    "encoded.jpg": lambda key: key.replace("/", "%2F"),
    normalize("NFC", "Größe.jpg"): lambda key: normalize("NFD", key),
    "tom & jerry.jpg": lambda key: key.replace("&", "&amp;"),
    "UPPER.JPG": str.lower,
    "dot.jpg": lambda key: f"./{key}",
    "blank.jpg": lambda key: f"{key} ",
    "slashes.jpg": lambda key: key.replace("/", "//"),
    "no-extension.jpg": lambda key: key.removesuffix(".jpg"),
    "album/in/it.jpg": lambda key: key.removesuffix("/in/it.jpg"),
}
"""Files, and how their rows write them."""


def test_whatever_form_a_row_has_it_keeps_its_file(stack: Deployed, shelf: Shelf) -> None:
    """S1; FAILURES 19 and 20. The last two match no file, and are refused until they are accepted."""
    kept = shelf.put(*FORMS, "plain.jpg")
    shelf.put("orphan.jpg")
    write(shelf, *(form(shelf.key(name)) for name, form in FORMS.items()), shelf.key("plain.jpg"))

    refusal = clean_refused(shelf)
    assert f"2 of 10 references in {shelf.name}.storage_key name no file" in refusal
    with stack.with_settings({"media": {"references": [shelf.reference(max_unmatched=2, max_unreadable=2)]}}):
        report = shelf.clean(references=None)
    assert (report["deleted_files"], report["kept_ambiguous"], report["matched"], report["unmatched"]) == (1, 2, 8, 2)
    assert shelf.keys() == kept


def test_columns_of_json_arrays_and_folders_keep_their_files(stack: Deployed, shelf: Shelf) -> None:
    """S1, A1."""
    kept = shelf.put("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "album/f.jpg", "album/deep/g.jpg")
    shelf.put("orphan.jpg")
    stack.sql(f"ALTER TABLE {shelf.name} ADD COLUMN gallery jsonb, ADD COLUMN files text[], ADD COLUMN album text")
    stack.sql(
        f"INSERT INTO {shelf.name} VALUES (:key, CAST(:gallery AS jsonb), ARRAY[:d, :e], :album)",
        key=shelf.key("a.jpg"),
        gallery=json.dumps({"cover": shelf.key("b.jpg"), "more": [{"url": f"/{shelf.key('c.jpg')}?w=9"}]}),
        d=shelf.key("d.jpg"),
        e=shelf.key("e.jpg"),
        album=shelf.key("album"),
    )
    columns = [
        {"column": "storage_key"},
        {"column": "gallery"},
        {"column": "files"},
        {"column": "album", "folder": True},
    ]
    report = shelf.clean(references=[{"table": shelf.name} | column for column in columns])
    assert (report["deleted_files"], report["matched"], report["unmatched"]) == (1, 6, 0)
    assert shelf.keys() == kept


def test_missing_files_are_named_and_accepted_by_their_exact_number(stack: Deployed, shelf: Shelf) -> None:
    """S1."""
    kept = shelf.put("there.jpg")
    shelf.put("orphan.jpg")
    shelf.refer("there.jpg", "gone-1.jpg", "gone-2.jpg", "lost.mp4")

    def accepted(count: int) -> dict[str, Any]:
        return {"media": {"references": [shelf.reference(max_unmatched=count)]}}

    with stack.with_settings(accepted(2)):
        assert "3 of 4 references" in clean_refused(shelf, references=None)
    with stack.with_settings(accepted(3)):
        report = shelf.clean(references=None)
    assert (report["deleted_files"], report["missing_files"], report["unmatched"]) == (1, 3, 3)
    assert "name no file; max_unmatched accepts them" in report["warnings"][0]
    manifest = verified(stack.client("s3"), ManifestAddress.model_validate(report["manifest"]))
    assert manifest.missing_files == 3
    assert {one.value for one in manifest.missing} == {shelf.key(n) for n in ("gone-1.jpg", "gone-2.jpg", "lost.mp4")}
    assert shelf.keys() == kept


# -- S2: parameters only tighten ---------------------------------------------------------------------------------------


def test_a_run_may_be_stricter_than_the_settings_and_never_looser(stack: Deployed, shelf: Shelf) -> None:
    """S2; FAILURES 22: from Lambda and from the API, one sentence, and no row."""
    files = shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    limits = {"min_age_hours": 2, "quarantine_hours": 2, "max_orphan_share": 0.5, "max_delete_gb": 1, "apply": False}
    scope = {"base_path": shelf.name, "references": [shelf.reference()]}
    looser: dict[str, Any] = {
        "min_age_hours": 1.9,
        "quarantine_hours": 0,
        "max_orphan_share": 0.6,
        "max_delete_gb": 1.5,
        "dry_run": False,
        "base_path": "",
        "bucket": stack.uploads,
        "references": [shelf.reference(max_unmatched=1)],
    }
    stricter: dict[str, Any] = {
        "min_age_hours": 2.1,
        "quarantine_hours": 3,
        "max_orphan_share": 0.4,
        "max_delete_gb": 0.5,
        "dry_run": True,
        "base_path": f"{shelf.name}/below",
        "bucket": stack.media,
        "references": [{"table": "media_files", "column": "storage_key"}],
    }
    api = Api(stack.api_url)
    with stack.with_settings({"media": limits | scope}):
        before = stack.of_type("orphan_cleanup")
        for name, value in looser.items():
            with pytest.raises(FunctionFailed, match=f"^InvalidParams: {name}: .*(media|bucket).*\\.$"):
                stack.clean(**{name: value})
            answers = [
                api.post("/api/jobs/run/orphan_cleanup", {"params": {name: value}}),
                api.post("/api/jobs/run", {"job_type": "orphan_cleanup", "params": {name: value}}),
            ]
            assert [answer.status_code for answer in answers] == [422, 422]
            assert all(f"{name}: " in answer.json()["detail"] for answer in answers), answers[0].text
        assert stack.of_type("orphan_cleanup") == before
        report = stack.clean(**stricter)
        assert (report["status"], report["dry_run"]) == ("completed", True)
        started = api.post("/api/jobs/run/orphan_cleanup", {"params": stricter})
        assert started.status_code == 202, started.text
        assert stack.becomes(started.json()["job_id"], "completed").dry_run
    assert shelf.keys() == files


def test_a_column_that_a_run_adds_excuses_no_configured_one(stack: Deployed, shelf: Shelf) -> None:
    """S2: the configured column holds nothing, the added one names a file."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    with stack.with_settings({"media": {"references": ["media_files.storage_key"]}}):
        assert "There are no references at all in media_files.storage_key: " in clean_refused(shelf)


def test_a_column_that_a_run_adds_lowers_no_share(stack: Deployed, shelf: Shelf) -> None:
    """S2: of ten files the settings' column names seven and the added one two."""
    files = names(10)
    shelf.put(*files)
    shelf.refer(*files[:7])
    with Shelf(stack) as added:
        stack.sql(f"INSERT INTO {added.name} (storage_key) VALUES (:key)", *({"key": shelf.key(f)} for f in files[7:9]))
        with stack.with_settings({"media": {"references": [shelf.reference()]}}):
            refusal = clean_refused(shelf, references=[added.reference()], max_orphan_share=0.2)
            assert "3 of 10 files (30%) are orphans; 20% may be. Files that only columns of the run keep" in refusal
        with stack.with_settings({"media": {"references": [shelf.reference(), added.reference()]}}):
            assert shelf.clean(references=[added.reference()], max_orphan_share=0.2)["deleted_files"] == 1


# -- S3: trust is earned -----------------------------------------------------------------------------------------------


def a_day_passes(stack: Deployed, scope: str) -> None:
    """What the ramp knows of a scope happened a day earlier."""
    yesterday = {"S": to_text(utc_now() - timedelta(hours=25))}
    stack.client("dynamodb").update_item(
        TableName=stack.table,
        Key={"pk": {"S": f"trust#{scope}"}},
        UpdateExpression="SET since = :then, acted_at = :then",
        ConditionExpression="attribute_exists(acted_at)",
        ExpressionAttributeValues={":then": yesterday},
    )


def test_the_first_runs_remove_few_files_and_an_undo_starts_again(stack: Deployed, shelf: Shelf) -> None:
    """S3."""
    shelf.put(*names(150), "kept.jpg")
    shelf.refer("kept.jpg")

    def act() -> tuple[str, int, int]:
        report = shelf.clean()
        return report["job_id"], report["deleted_files"], report["held_by_ramp"]

    with stack.with_settings({"media": {"ramp": True}}):
        assert shelf.clean(dry_run=True)["held_by_ramp"] == 50
        assert act()[1:] == (100, 50)
        assert act()[1:] == (50, 0)
        shelf.put(*names(120, "new-"))
        assert act()[1:] == (100, 20), "within the day the limit stays"
        a_day_passes(stack, f"objects/{stack.media}/-")
        shelf.put(*names(120, "newer-"))
        job_id, *counts = act()
        assert counts == [140, 0], "a day later it is ten times as high"
        assert stack.invoke("undo", {"job_id": job_id, "dry_run": False})["restored_files"] == 140
        assert act()[1:] == (100, 40), "an undo starts again"


def test_the_first_runs_of_a_rule_change_few_rows(stack: Deployed) -> None:
    """S3."""
    stack.sql("DELETE FROM sessions")
    machine = Machine(stack, "cleanup", ["session_cleanup"])
    expire = "INSERT INTO sessions SELECT :name || n, 'u', now() - interval '1 hour' FROM generate_series(1, :rows) n"

    def act() -> tuple[int, int]:
        phase = machine.run()["phases"]["sessions"]
        return phase["rows"], phase["held_by_ramp"]

    with stack.with_settings({"retention": {"rules": {"sessions": {"ramp": True}}}}):
        stack.sql(expire, name="first", rows=1_500)
        assert act() == (1_000, 500)
        assert act() == (500, 0)
        a_day_passes(stack, "rows/sessions")
        stack.sql(expire, name="second", rows=1_500)
        assert act() == (1_500, 0)


# -- S4: what is the owner's is previewed until it is named ----------------------------------------------------------


def test_a_tick_acts_once_the_settings_apply_it_by_name(stack: Deployed, shelf: Shelf) -> None:
    """S4. That a tick previews before is in `test_schedules`; rules are in `test_settings`."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    scope = {"base_path": shelf.name, "references": [shelf.reference()]}
    with stack.with_settings({"media": scope | {"apply": True}}):
        row, _ = stack.ticked("orphan-cleanup")
    assert (row.status, row.dry_run, (row.result or {})["deleted_files"]) == (Status.COMPLETED, False, 1)
    assert shelf.keys() == {shelf.key("kept.jpg")}


# -- S5: no earnest run without the undo that is promised -------------------------------------------------------------


@contextmanager
def versioning(stack: Deployed, status: str) -> Iterator[None]:
    """The media bucket's versioning in another state for a while."""

    def put(status: str) -> None:
        configuration = {"Bucket": stack.media, "VersioningConfiguration": {"Status": status}}
        stack.client("s3").put_bucket_versioning(**configuration)

    put(status)
    try:
        yield
    finally:
        put("Enabled")


def test_without_versioning_nothing_is_deleted_unless_the_owner_accepts_it(stack: Deployed, shelf: Shelf) -> None:
    """S5; FAILURES 25."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")
    with versioning(stack, "Suspended"):
        [warning] = shelf.clean(dry_run=True)["warnings"]
        assert warning.startswith(f"Versioning of {stack.media} is suspended")
        assert clean_refused(shelf).startswith(f"Permanent: {warning} Nothing was deleted.")
        with stack.with_settings({"media": {"allow_unversioned": True}}):
            report = shelf.clean()
            assert (report["deleted_files"], report["warnings"]) == (1, [])
        undone = stack.invoke("undo", {"job_id": report["job_id"]})
        assert (undone["would_restore_files"], undone["not_restorable"]) == (0, 1)
    assert shelf.keys() == {shelf.key("kept.jpg")}


def test_the_preview_of_an_undo_counts_only_what_can_be_restored(stack: Deployed, shelf: Shelf) -> None:
    """S5."""
    lost, *_ = sorted(shelf.put("a.jpg", "b.jpg", "c.jpg"))
    shelf.put("kept.jpg")
    shelf.refer("kept.jpg")
    job = {"job_id": shelf.clean()["job_id"]}
    s3 = stack.client("s3")
    [version] = s3.list_object_versions(Bucket=stack.media, Prefix=lost)["Versions"]
    s3.delete_object(Bucket=stack.media, Key=lost, VersionId=version["VersionId"])
    preview = stack.invoke("undo", job)
    assert (preview["would_restore_files"], preview["not_restorable"]) == (2, 1)
    undone = stack.invoke("undo", job | {"dry_run": False})
    assert (undone["restored_files"], undone["not_restorable"]) == (2, 1)
    assert shelf.keys() == {shelf.key(name) for name in ("b.jpg", "c.jpg", "kept.jpg")}


# -- S6: a partial view is an error -----------------------------------------------------------------------------------


@pytest.fixture
def tenant(stack: Deployed) -> Iterator[str]:
    """The database as a role sees it that row security holds for; the local one's own user is a superuser."""
    stack.sql("CREATE ROLE e2e_tenant LOGIN")
    stack.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO e2e_tenant")
    yield stack.aws.database_url.replace("//postgres@", "//e2e_tenant@")
    stack.sql("DROP OWNED BY e2e_tenant")
    stack.sql("DROP ROLE e2e_tenant")


def test_row_security_that_hides_rows_is_one_sentence(stack: Deployed, shelf: Shelf, tenant: str) -> None:
    """S6; FAILURES 21: the files of the tenants that the role does not see looked orphaned."""
    shelf.put("mine.jpg", "theirs.jpg")
    shelf.refer("mine.jpg", "theirs.jpg")
    stack.sql(f"GRANT ALL ON {shelf.name} TO e2e_tenant")
    with stack.overriding("orphan-cleanup", DATABASE_URL=tenant):
        assert shelf.clean(dry_run=True)["orphaned_files"] == 0, "without row security it can read all of it"
        stack.sql(f"ALTER TABLE {shelf.name} ENABLE ROW LEVEL SECURITY")
        stack.sql(f"CREATE POLICY mine ON {shelf.name} USING (storage_key LIKE '%mine.jpg')")
        sentence = clean_refused(shelf)
    assert sentence.startswith("Permanent: The database hides rows from this user: ")
    assert f'row-level security policy for table "{shelf.name}"' in sentence


def test_row_security_over_a_rules_table_is_one_sentence(stack: Deployed, tenant: str) -> None:
    """S6."""
    stack.sql("DELETE FROM sessions")
    stack.sql("INSERT INTO sessions VALUES ('mine', 'u', :at), ('theirs', 'u', :at)", at=utc_now() - timedelta(hours=1))
    machine = Machine(stack, "cleanup", ["session_cleanup"])
    stack.sql("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
    stack.sql("CREATE POLICY mine ON sessions USING (id = 'mine')")
    try:
        with stack.overriding("cleanup", DATABASE_URL=tenant):
            ended = machine.end(machine.start())
    finally:
        stack.sql("DROP POLICY mine ON sessions")
        stack.sql("ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
    assert (ended.status, ended.error) == ("FAILED", "AllPhasesFailed")
    assert 'row-level security policy for table "sessions"' in json.loads(ended.cause)["errorMessage"]
    row = stack.of_type("session_cleanup")[0]
    assert (row.status, row.attempt) == (Status.FAILED, 1)
    assert stack.sql("SELECT count(*) FROM sessions") == [(2,)]
    assert machine.run()["phases"]["sessions"]["rows"] == 2, "the lock is free"


# -- S7: the baseline -------------------------------------------------------------------------------------------------


def test_refused_previews_do_not_bury_the_baseline(stack: Deployed, shelf: Shelf) -> None:
    """S7; FAILURES 24: after 200 refused previews, the next run passed."""
    shelf.put(*names(10), "orphan.jpg")
    shelf.refer(*names(10))
    own = {"base_path": None, "references": None}
    scope = {"base_path": shelf.name, "references": [shelf.reference()], "max_reference_shrink": 0.2}
    with stack.with_settings({"media": scope}):
        assert shelf.clean(**own)["deleted_files"] == 1
        stack.sql(f"DELETE FROM {shelf.name} WHERE storage_key > :key", key=shelf.key(names(10)[4]))
        previews = [shelf.clean(**own, dry_run=True) for _ in range(30)]
        sentence = f"{shelf.name}.storage_key holds 5 references, 10 at the last accepted run: more than 20% fewer."
        assert {tuple(preview["refusals"]) for preview in previews} == {(sentence,)}
        assert sentence in clean_refused(shelf, **own)


# -- S8: preview and action agree -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["a trigger that marks the row", "a rule that does nothing"])
def test_rows_that_a_table_does_not_delete_are_an_error_that_names_it(stack: Deployed, mean: str) -> None:
    """S8."""
    stack.sql("DELETE FROM sessions")
    stack.sql("INSERT INTO sessions VALUES ('e2e', 'u', :at)", at=utc_now() - timedelta(hours=1))
    machine = Machine(stack, "cleanup", ["session_cleanup"])
    if mean == "a rule that does nothing":
        stack.sql("CREATE RULE e2e_kept AS ON DELETE TO sessions DO INSTEAD NOTHING")
        undo = ["DROP RULE e2e_kept ON sessions"]
    else:
        stack.sql(
            "CREATE FUNCTION e2e_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " UPDATE sessions SET user_id = 'deleted' WHERE id = OLD.id; RETURN NULL; END $$"
        )
        stack.sql("CREATE TRIGGER e2e_kept BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION e2e_kept()")
        undo = ["DROP TRIGGER e2e_kept ON sessions", "DROP FUNCTION e2e_kept()"]
    try:
        ended = machine.end(machine.start())
    finally:
        for statement in undo:
            stack.sql(statement)
    assert (ended.status, ended.error) == ("FAILED", "AllPhasesFailed")
    sentence = json.loads(ended.cause)["errorMessage"]
    assert sentence.startswith("sessions: Permanent: sessions: ") and "e2e_kept" in sentence
    assert stack.sql("SELECT id, user_id FROM sessions") == [("e2e", "u")]
    row = stack.of_type("session_cleanup")[0]
    assert (row.status, row.attempt) == (Status.FAILED, 1)
    assert machine.run()["phases"]["sessions"]["rows"] == 1, "the lock is free"


# -- S10: two stacks and one bucket ----------------------------------------------------------------------------------


def test_a_folder_that_another_stack_cleans_is_refused_with_its_name(stack: Deployed, shelf: Shelf) -> None:
    """S10; FAILURES 25."""
    shelf.put("orphan.jpg", "kept.jpg")
    shelf.refer("kept.jpg")

    def claim(days: int) -> None:
        other = {"stack": "staging", "account": "111122223333", "region": "eu-west-1", "folder": f"{shelf.name}/"}
        claims = {"claims": [other | {"renewed_at": to_text(utc_now() - timedelta(days=days))}]}
        stack.client("s3").put_object(Bucket=stack.media, Key=CLAIM, Body=json.dumps(claims))

    claim(days=29)
    try:
        [warning] = shelf.clean(dry_run=True)["warnings"]
        assert warning.startswith("The stack staging (account 111122223333, eu-west-1) cleans the folder ")
        assert clean_refused(shelf).startswith(f"Permanent: {warning} Nothing was deleted.")
        claim(days=30)
        assert shelf.clean(dry_run=True)["warnings"] == []
        assert shelf.clean()["deleted_files"] == 1
        body = stack.client("s3").get_object(Bucket=stack.media, Key=CLAIM)["Body"].read()
        assert [(one["stack"], one["folder"]) for one in json.loads(body)["claims"]] == [(stack.name, f"{shelf.name}/")]
    finally:
        stack.client("s3").delete_object(Bucket=stack.media, Key=CLAIM)


# -- K13: leases -----------------------------------------------------------------------------------------------------


def test_without_its_lease_nobody_changes_an_attempt(stack: Deployed, job_type: str) -> None:
    """K13; FAILURES 33: anybody could end another's job who guessed `attempt: 1`."""
    api = Api(stack.api_url)

    def claimed() -> tuple[str, dict[str, Any]]:
        made = api.post("/api/jobs", {"job_type": job_type, "payload": {}}).json()["job_id"]
        answer = api.post(f"/api/jobs/{made}/claim", {"attempt": 1, "continuation": 0})
        assert answer.status_code == 200, answer.text
        return made, {"attempt": 1, "continuation": 0, "lease": answer.json()["lease"]}

    job_id, own = claimed()
    _, others = claimed()
    calls = {"heartbeat": {"progress": 50}, "complete": {"result": {"n": 1}}, "fail": {"message": "no"}}
    before = stack.ledger.get(job_id)
    turn = {"attempt": 1, "continuation": 0}
    for call, body in calls.items():
        answers = [
            api.post(f"/api/jobs/{job_id}/{call}", turn | body | lease).status_code
            for lease in (
                {},
                {"lease": "x" * 43},
                {"lease": others["lease"]},
                {"lease": ""},
                {"lease": own["lease"][:-1]},
            )
        ]
        assert answers == [409, 409, 409, 422, 422], call
        stale = {"attempt": 2, "continuation": 0, "lease": own["lease"]}
        assert api.post(f"/api/jobs/{job_id}/{call}", stale | body).status_code == 409
    assert stack.ledger.get(job_id) == before
    assert api.post(f"/api/jobs/{job_id}/heartbeat", own | calls["heartbeat"]).json()["progress"] == 50
    assert api.post(f"/api/jobs/{job_id}/complete", own | calls["complete"]).json()["status"] == "completed"
    job_id, own = claimed()
    assert api.post(f"/api/jobs/{job_id}/fail", own | calls["fail"] | {"retry": False}).json()["status"] == "failed"


# -- K14: one sentence ------------------------------------------------------------------------------------------------

TICK = {"schedule": "e2e-odd"}
ODD: list[Any] = [
    5,
    None,
    {"attempt": 1},
    TICK | {"scheduled_time": "1969-12-31T23:59:59Z"},
    TICK | {"scheduled_time": "2099-01-01T00:00:00Z"},
]


@pytest.mark.parametrize("function", ["orphan-cleanup", "undo", "upload-processing", "upload-expiry"])
def test_an_event_of_any_shape_is_one_sentence(stack: Deployed, function: str) -> None:
    """K14."""
    job_type = function.replace("-", "_")
    before = stack.of_type(job_type)
    for event in ODD:
        with pytest.raises(FunctionFailed, match=r"^(Permanent|InvalidParams): [^\n]{10,400}\.$"):
            stack.invoke(function, event)
    assert stack.of_type(job_type) == before


def test_an_input_of_any_shape_ends_an_execution_at_once(stack: Deployed) -> None:
    """K14: no phase is tried again."""
    machine = Machine(stack, "cleanup", ["session_cleanup"])
    before = stack.of_type("session_cleanup")
    inputs = [event for event in ODD if isinstance(event, dict)]
    for arn in [machine.start(**one) for one in inputs]:
        ended = machine.end(arn)
        assert ended.status == "FAILED" and ended.error in ("Permanent", "InvalidParams"), ended
        sentence = json.loads(ended.cause)["errorMessage"]
        assert sentence.endswith(".") and len(sentence) < 400 and "\n" not in sentence
        history = machine.states.get_execution_history(executionArn=arn)["events"]
        assert sum(event["type"] in ("LambdaFunctionFailed", "TaskFailed") for event in history) == 1
    assert stack.of_type("session_cleanup") == before


def test_a_bucket_that_may_not_be_listed_is_one_sentence(stack: Deployed, shelf: Shelf) -> None:
    """K14: final, and no lock stays."""
    shelf.put("a.jpg")
    shelf.refer("a.jpg")
    stack.client("s3").create_bucket(Bucket="e2e-not-ours")
    try:
        with stack.with_settings({"allow_override": True}):
            sentence = clean_refused(shelf, bucket="e2e-not-ours")
    finally:
        stack.client("s3").delete_bucket(Bucket="e2e-not-ours")
    assert sentence.startswith("Permanent: bucket: e2e-not-ours may not be listed (")
    assert shelf.clean(dry_run=True)["status"] == "completed"
