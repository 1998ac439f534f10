"""The preflight on a real Postgres and a real S3 endpoint: it names each planted fault, and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pkgutil import resolve_name
from typing import Any

import pytest
from sqlalchemy import event

from lamplighter.catalogue import PREFLIGHTS, SETTINGS_CHECKS
from lamplighter.kernel import database
from lamplighter.kernel.preflight import Severity, Verdict
from lamplighter.kernel.settings import parse
from lamplighter.preflight import preflight
from lamplighter.preflight.preflight import Document
from tests.conftest import Seeded
from tests.integration.media_world import World
from tests.integration.preflight_world import FAULTS, RULES, Estate, Fault, applied, faults_of, notes_of


@pytest.fixture
def estate(world: World, monkeypatch: pytest.MonkeyPatch) -> Estate:
    return Estate(world, world.engine, os.environ["DATABASE_URL"], monkeypatch)


def severity_of(fault: Fault, names: Iterable[str]) -> Severity:
    blocks = fault.of == "always" or (fault.of and fault.of in names)
    return Severity.BLOCKED if blocks else Severity.WARNING


def assert_names(report: Document, planted: Sequence[Fault], names: Iterable[str]) -> None:
    """The oracle: each planted fault is named with its severity, and nothing else is."""
    found = faults_of(report)
    for fault in planted:
        if fault.is_quiet and fault.of not in names:
            assert any(fault.words in note.sentence for note in notes_of(report, fault.name)), fault.words
            continue
        items = [one for one in found if one.name == fault.name and fault.words in f"{one.sentence} {one.advice}"]
        assert items, f"{fault.words}: not named among {[one.sentence for one in found]}"
        assert {one.severity for one in items} == {severity_of(fault, names)}, fault.words
        assert all(one.advice for one in items), fault.words
    for one in found:
        words = f"{one.sentence} {one.advice}"
        assert any(fault.name == one.name and fault.words in words for fault in planted), f"not planted: {one}"


def test_a_clean_database_is_ready(estate: Estate) -> None:
    report = estate.look()
    assert [str(one) for one in faults_of(report)] == []
    assert report.verdict is Verdict.READY


def test_a_clean_database_is_ready_with_all_applied(estate: Estate) -> None:
    report = estate.look(applied(*RULES, media=True))
    assert [str(one) for one in faults_of(report)] == []
    assert report.verdict is Verdict.READY


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.words[:40])
def test_each_fault_is_named(estate: Estate, fault: Fault) -> None:
    fault.plant(estate)
    for names, settings in (((), {}), ((*RULES, "media"), applied(*RULES, media=True))):
        report = estate.look(settings)
        assert_names(report, [fault], names)
        severity = severity_of(fault, names)
        expected = Verdict.READY if fault.is_quiet else Verdict.WARNINGS
        assert report.verdict is (Verdict.BLOCKED if severity is Severity.BLOCKED else expected)


@pytest.mark.parametrize("seed", range(12))
def test_faults_are_named_together(estate: Estate, seeded: Seeded, seed: int) -> None:
    """Several faults, of which none hides another; some rules are applied."""
    for _, rng in seeded([seed]):
        shapes = Counter[str]()
        planted = []
        for fault in rng.sample(FAULTS, rng.randint(2, 12)):
            shapes[fault.shape] += 1
            if not fault.shape or shapes[fault.shape] == 1:
                planted.append(fault)
        names = rng.sample(["media", *RULES], rng.randint(0, 6))
        for fault in planted:
            fault.plant(estate)
        rules = [name for name in names if name != "media"]
        assert_names(estate.look(applied(*rules, media="media" in names)), _seen(planted), names)


def _seen(planted: Sequence[Fault]) -> list[Fault]:
    """As they can be seen: where sessions may not be read, which rows are due is unknown, and a foreign key warns."""
    unread = ("no right to SELECT on public.sessions", "Row-level security of public.sessions hides rows")
    hidden = any(fault.words in unread for fault in planted)
    cascade = re.compile(r"Rows of (\w+) that are not due depend on due rows")
    return [
        replace(fault, words=f" of {found[1]} (ON DELETE", of="")
        if hidden and (found := cascade.fullmatch(fault.words))
        else fault
        for fault in planted
    ]


@pytest.mark.parametrize("names", [(), RULES], ids=["previewed", "applied"])
def test_every_proposal_is_a_document_of_settings_that_applies_nothing(estate: Estate, names: Sequence[str]) -> None:
    for fault in FAULTS:
        if "is not declared" in fault.words:
            fault.plant(estate)
    settings = applied(*names) | {"cloud": {"remedies": {"idle_cpu": {"action": "stop"}}}}
    report = estate.look(settings)
    proposals = [item.settings for section in report.sections for item in section.items if item.settings]
    assert len(proposals) >= 4
    for document in (*proposals, report.settings):
        parsed = parse(document, source="a proposal")
        for check in SETTINGS_CHECKS:
            resolve_name(check)(parsed)
        assert '"apply": true' not in json.dumps(document)
    assert len(parse(report.settings, source="all proposals").media.references) == 3


def test_it_says_what_each_rule_would_touch(estate: Estate) -> None:
    estate.sql(
        "INSERT INTO sessions SELECT 'old-' || n, 'bob', now() - interval '9 days' FROM generate_series(1, 4999) AS n"
    )
    estate.sql("ANALYZE sessions")
    [note] = notes_of(estate.look(), "retention.rules.sessions")
    assert note.sentence.startswith("The rule only previews. Due today: 5,000 rows of about 5,001, ")
    assert (note.facts["rows"], note.facts["rows_are"], note.facts["first_run_rows"]) == (5000, "counted", 1000)
    assert note.facts["bytes"] > 5000 and note.facts["oldest"] < note.facts["newest"]
    assert note.settings == {"retention": {"rules": {"sessions": {"apply": False}}}}
    lifted = {"retention": {"rules": {"sessions": {"apply": True, "ramp": False, "max_rows": 3000}}}}
    [note] = notes_of(estate.look(lifted), "retention.rules.sessions")
    assert (note.facts["first_run_rows"], note.settings) == (3000, None)


def test_what_takes_too_long_to_count_is_estimated_and_says_so(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    estate.expire_sessions(50_000)
    monkeypatch.setattr("lamplighter.library.preflight.COUNTING", timedelta(milliseconds=1))
    [note] = notes_of(estate.look(), "retention.rules.sessions")
    assert note.facts["rows_are"] == "estimated by the planner"
    assert 40_000 < note.facts["rows"] < 60_000
    assert "(estimated by the planner, since counting takes more than 0 s)" in note.sentence


def test_it_reads_only_and_takes_no_lock_but_access_share(estate: Estate) -> None:
    """Each statement runs in a read-only transaction; while each runs, its locks are looked at from outside."""
    statements, modes = Counter[bool](), Counter[str]()
    with estate.as_user():
        engine = database.engine()

        @event.listens_for(engine, "after_cursor_execute")
        def _look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            raw = connection.connection.dbapi_connection.cursor()
            raw.execute("SELECT current_setting('transaction_read_only'), pg_backend_pid()")
            read_only, pid = raw.fetchone()
            statements[read_only == "on"] += 1
            query = f"SELECT mode FROM pg_locks WHERE pid = {pid} AND locktype = 'relation'"
            modes.update(mode for (mode,) in estate.sql(query))

        report = preflight.examine(estate.run(applied(*RULES, media=True)))
    assert report.verdict is Verdict.READY
    assert modes.keys() == {"AccessShareLock"} and modes.total() > 100
    assert statements.keys() <= {True, False} and statements[True] > 50
    assert statements[False] == 0


def test_what_somebody_has_locked_is_an_item_and_waits_a_second_at_most(estate: Estate) -> None:
    with estate.admin.begin() as holder:
        holder.exec_driver_sql("LOCK TABLE sessions, media_files IN ACCESS EXCLUSIVE MODE")
        report = estate.look(applied("tokens"))
    found = {item.name: item for item in faults_of(report)}
    assert found.keys() == {"retention.rules.sessions", "media.references"}
    assert "Another session has locked sessions" in found["retention.rules.sessions"].sentence
    assert "is locked by another session" in found["media.references"].sentence


def test_without_a_database_the_rest_is_looked_at(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    report = preflight.examine(estate.run({"cloud": {"remedies": {"idle_cpu": {"action": "stop", "apply": True}}}}))
    assert (report.verdict, faults_of(report)) == (Verdict.READY, [])
    [note] = notes_of(report, "database")
    assert note.sentence.startswith("No database is configured")
    assert notes_of(report, "media.bucket") and notes_of(report, "retention.rules") and notes_of(report, "cost at rest")


def test_a_database_that_cannot_be_reached_blocks_and_the_rest_is_complete(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none?sslmode=disable")
    database.engine.cache_clear()
    report = preflight.examine(estate.run({}))
    database.engine.cache_clear()
    assert [item.name for item in faults_of(report)] == ["database"]
    assert "127.0.0.1:9/none cannot be reached" in faults_of(report)[0].sentence
    assert report.verdict is Verdict.BLOCKED
    assert notes_of(report, "media.bucket")


def test_the_report_is_a_document_and_a_page(estate: Estate) -> None:
    hostile = '"<img src=x onerror=alert(1)>"'
    estate.sql(
        f"CREATE TABLE {hostile} (id int, url text)",
        f"INSERT INTO {hostile} SELECT n, 'photos/1.jpg' FROM generate_series(1, 9) AS n",
        f"GRANT SELECT ON {hostile} TO {estate.quoted}",
    )
    with estate.as_user():
        answer = preflight.handler.body(estate.run({}), preflight.Params())
    assert (answer.verdict, answer.items.warnings, answer.items.blocked) == (Verdict.WARNINGS, 1, 0)
    stored = {}
    for kind, address in answer.documents.items():
        bucket, _, key = address.removeprefix("s3://").partition("/")
        assert (bucket, key) == (estate.world.archive, f"preflight/{estate.run({}).job_id}.{kind}")
        stored[kind] = estate.world.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    document = Document.model_validate_json(stored["json"])
    assert [section.title for section in document.sections] == list(PREFLIGHTS)
    assert document.counts == answer.items
    assert "<img" not in stored["html"] and "&lt;img" in stored["html"]
    assert stored["html"].index("Preflight: ready with warnings") < stored["html"].index("Database")


def test_an_archive_that_may_not_be_written_is_named_and_the_result_is_complete(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE_BUCKET", "no-such-bucket")
    with estate.as_user():
        answer = preflight.handler.body(estate.run({}), preflight.Params())
    assert (answer.verdict, answer.documents) == (Verdict.BLOCKED, {})
    assert sum("archive bucket" in one for one in answer.blocked) == 2


def test_a_cancelled_preflight_stops(estate: Estate) -> None:
    run = estate.run({})
    run.stop = lambda: "cancelled"  # type: ignore[method-assign]
    with estate.as_user():
        assert preflight.examine(run).sections == []


def test_a_preflight_that_runs_out_of_time_says_what_it_has_not_looked_at(estate: Estate) -> None:
    """A verdict over half of the parts must not read like one over all."""
    run = estate.run({})
    run.stop = lambda: "out_of_time" if run._progress[0] > 0 else None  # type: ignore[method-assign]
    with estate.as_user():
        report = preflight.examine(run)
    assert [section.title for section in report.sections] == list(PREFLIGHTS)
    assert report.verdict is Verdict.WARNINGS
    late = [item for section in report.sections[1:] for item in section.items]
    assert all("was not looked at" in item.sentence for item in late) and len(late) == len(PREFLIGHTS) - 1


def test_reasons_do_not_hide_one_another(estate: Estate) -> None:
    """A clock of the wrong type, a column that is missing, and a rewrite rule, all of one table."""
    estate.sql(
        "ALTER TABLE tokens ALTER expires_at TYPE text, DROP id",
        "CREATE RULE swallow AS ON DELETE TO tokens DO INSTEAD NOTHING",
    )
    found = " ".join(item.sentence for item in faults_of(estate.look(applied("tokens"))))
    assert "is of type text" in found and "has no column id" in found and "The rewrite rule swallow" in found


def _plant(estate: Estate, words: str) -> Document:
    [fault] = [fault for fault in FAULTS if words in fault.words]
    fault.plant(estate)
    report = estate.look()
    assert_names(report, [fault], ())
    return report


def test_a_column_that_nothing_declares(estate: Estate) -> None:
    report = _plant(estate, "avatars.url is not declared")
    assert report.settings["media"]["references"] == [
        {"table": "media_files", "column": "storage_key"},
        {"table": "avatars", "column": "url"},
    ]


def test_a_column_whose_values_name_nothing(estate: Estate) -> None:
    _plant(estate, "of a sample of 9, 0 name an object")


def test_a_column_of_names_that_the_bucket_does_not_have_is_no_reference(estate: Estate) -> None:
    estate.sql(
        "CREATE TABLE icons (url text)",
        "INSERT INTO icons SELECT '/static/' || n || '.png' FROM generate_series(1, 9) AS n",
        f"GRANT SELECT ON icons TO {estate.quoted}",
    )
    assert faults_of(estate.look()) == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("django_sessions", "django_session (session_key text, session_data text, expire_date timestamptz)"),
        ("laravel_sessions", "shop.sessions (id text, user_id int, payload text, last_activity int)"),
        ("rails_sessions", "shop.sessions (id int, session_id text, data text, updated_at timestamp)"),
    ],
)
def test_a_table_of_a_well_known_application_gets_a_rule_proposed(estate: Estate, name: str, table: str) -> None:
    estate.sql("CREATE SCHEMA shop", f"CREATE TABLE {table}")
    report = estate.look()
    assert faults_of(report) == []
    [note] = notes_of(report, f"retention.rules.{name}")
    assert note.settings is not None
    parsed = parse(note.settings, source="a proposal")
    for check in SETTINGS_CHECKS:
        resolve_name(check)(parsed)
    called = table.partition(" ")[0]
    assert parsed.retention.rules[name].table == called
    estate.sql(f"GRANT USAGE ON SCHEMA shop TO {estate.quoted}")
    estate.sql(f"GRANT SELECT, DELETE, UPDATE ON {called} TO {estate.quoted}")
    report = estate.look(note.settings)
    assert faults_of(report) == []
    [touched] = notes_of(report, f"retention.rules.{name}")
    assert touched.facts["rows"] == 0


@pytest.mark.parametrize(("change", "is_named"), [({}, True), ({"clock": "expires_at", "keep_days": 1}, False)])
def test_an_orphan_without_a_clock_is_a_warning(estate: Estate, change: dict[str, Any], is_named: bool) -> None:
    """Rows were deleted whose parent was about to be committed (VCell #1992)."""
    rule = {"table": "sessions", "orphan_of": {"table": "tokens", "column": "user_id"}} | change
    estate.sql("INSERT INTO tokens VALUES ('ann'), ('x')")
    found = [item.sentence for item in faults_of(estate.look({"retention": {"rules": {"lost": rule}}}))]
    assert any("committed before its parent in tokens" in sentence for sentence in found) == is_named


def test_a_clock_in_the_wrong_unit_is_named(estate: Estate) -> None:
    estate.sql(
        "CREATE TABLE visits (id int, at bigint)",
        "INSERT INTO visits SELECT n, 1700000000000 + n FROM generate_series(1, 9) AS n",
        f"GRANT SELECT, DELETE, UPDATE ON visits TO {estate.quoted}",
    )
    rule = {"table": "visits", "clock": "at", "clock_unit": "seconds", "keep_days": 1}
    [fault] = faults_of(estate.look({"retention": {"rules": {"visits": rule}}}))
    assert fault.sentence.endswith("but has some in milliseconds.") and fault.severity is Severity.WARNING
