"""The preflight where nothing is as it should be: one sentence each, and the rest of the report complete (K14)."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lamplighter import rules
from lamplighter.catalogue import PREFLIGHTS
from lamplighter.kernel import database
from lamplighter.kernel.preflight import Severity, Verdict
from lamplighter.kernel.retention import Archive, Delete, Rule, Set
from lamplighter.preflight import preflight
from lamplighter.preflight.preflight import Document
from tests.integration.preflight_world import Estate, applied, faults_of, notes_of
from tests.integration.test_preflight import estate

__all__ = ["estate"]

DAY = timedelta(days=1)


def assert_complete(report: Document) -> None:
    """Every part ran to its end, and every item is one line with something to do."""
    assert [section.title for section in report.sections] == list(PREFLIGHTS)
    for item in faults_of(report):
        assert "could not be looked at to its end" not in item.sentence, item
        assert "\n" not in item.sentence and len(item.sentence) < 700, item
        assert item.sentence.endswith(".") and item.advice, item
        assert not any(word in item.sentence for word in ("Traceback", "sqlalchemy", "pg8000", "{'")), item


def with_rules(monkeypatch: pytest.MonkeyPatch, *others: Rule) -> None:
    """More rules than the deployment's."""
    monkeypatch.setattr(rules, "RULES", MappingProxyType({**rules.RULES, **{rule.name: rule for rule in others}}))


def test_no_rights_at_all(estate: Estate) -> None:
    estate.sql(f"DROP OWNED BY {estate.quoted}", "REVOKE ALL ON SCHEMA public FROM public")
    report = estate.look(applied("sessions", "plans", "audit_log"))
    assert_complete(report)
    found = {item.name for item in faults_of(report)}
    assert found >= {"database.schema", "retention.rules.system_logs", "media.references", "cloud.findings"}
    assert report.verdict is Verdict.BLOCKED


ODD = 'Größe "x" :id 100% \' ; --'


def test_odd_names(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    table, quoted = f"odd schema.{ODD}", f'"odd schema"."{ODD.replace(chr(34), chr(34) * 2)}"'
    select, clock = '"select"', f'"{ODD.replace(chr(34), chr(34) * 2)}"'
    estate.sql(
        'CREATE SCHEMA "odd schema"',
        f"CREATE TABLE {quoted} ({select} text PRIMARY KEY, {clock} timestamptz)",
        f"INSERT INTO {quoted} SELECT 'photos/' || n || '.jpg', now() - interval '9 d' FROM generate_series(1, 9) AS n",
        f"CREATE TABLE children (parent text REFERENCES {quoted} ON DELETE CASCADE)",
        "INSERT INTO children VALUES ('photos/1.jpg')",
        f"CREATE TABLE names ({select} text, {clock} text)",
        "INSERT INTO names SELECT 'photos/1.jpg', 'photos/2.jpg' FROM generate_series(1, 9)",
        f"GRANT SELECT ON names, children TO {estate.quoted}",
    )
    with_rules(monkeypatch, Rule(name="odd", table=table, clock=ODD, key="select", keep=DAY, action=Delete()))
    report = estate.look()
    assert_complete(report)
    found = [item for item in faults_of(report) if item.name == "retention.rules.odd"]
    assert 'may not use the schema "odd schema"' in found[0].sentence
    assert 'GRANT USAGE ON SCHEMA "odd schema" TO ' in found[0].advice
    for item in found:  # what it says to do, does it
        estate.sql(item.advice)
    report = estate.look()
    assert_complete(report)
    [cascade] = [item for item in faults_of(report) if item.name == "retention.rules.odd"]
    assert "Rows of children that are not due depend on due rows" in cascade.sentence
    [note] = notes_of(report, "retention.rules.odd")
    assert note.facts["rows"] == 9
    declared = [one["column"] for one in report.settings["media"]["references"]]
    assert declared == ["storage_key", "select", ODD] or set(declared) >= {"select"}


def test_three_thousand_tables(estate: Estate) -> None:
    for start in range(0, 3000, 500):
        estate.sql(
            "DO $$ BEGIN FOR n IN "
            f"{start}..{start + 499} LOOP EXECUTE format('CREATE TABLE many_%s (id int, image_url text)', n); "
            "END LOOP; END $$",
        )
    estate.sql("INSERT INTO many_2999 VALUES (1, 'photos/1.jpg')", "ANALYZE many_2999")
    estate.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {estate.quoted}")
    began = time.monotonic()
    report = estate.look()
    assert time.monotonic() - began < 60
    assert_complete(report)
    [found] = faults_of(report)
    assert found.sentence.startswith("many_2999.image_url is not declared") and found.severity is Severity.WARNING


def test_a_thousand_partitions(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    estate.sql("CREATE TABLE events (id bigint, at timestamptz, image text) PARTITION BY RANGE (id)")
    for start in range(0, 1000, 250):
        estate.sql(
            "DO $$ BEGIN FOR n IN "
            f"{start}..{start + 249} LOOP EXECUTE format('CREATE TABLE events_%s PARTITION OF events FOR VALUES "
            "FROM (%s) TO (%s)', n, n * 10, n * 10 + 10); END LOOP; END $$",
        )
    estate.sql(
        "INSERT INTO events SELECT n, now() - interval '9 days', 'photos/1.jpg' FROM generate_series(0, 9999) AS n",
        f"GRANT SELECT, DELETE, UPDATE (id) ON events TO {estate.quoted}",
    )
    with_rules(monkeypatch, Rule(name="events", table="events", clock="at", keep=DAY, action=Delete()))
    media = {"media": {"references": ["media_files.storage_key", "events.image"]}}
    report = estate.look(media)
    assert_complete(report)
    sentences = {item.sentence for item in faults_of(report) if item.name == "retention.rules.events"}
    assert {one.partition(" on ")[0].rpartition("no right to ")[2] for one in sentences} == {
        "SELECT",
        "DELETE",
        "UPDATE of any one column",
    }
    assert all("and 997 other partitions" in one for one in sentences)
    [note] = notes_of(report, "retention.rules.events")
    assert note.facts["rows"] == 10_000
    assert len(notes_of(report, "media.references")) == 2


def test_huge_values(estate: Estate) -> None:
    estate.sql(
        "CREATE TABLE blobs (id int, content text, image_url text)",
        "ALTER TABLE blobs ALTER content SET STORAGE EXTERNAL",
        "INSERT INTO blobs SELECT n, repeat('photos/1.jpg ', 4000000), repeat('x', 99999) FROM generate_series(1, 8) n",
        "DROP INDEX ix_media_files_storage_key",
        "INSERT INTO media_files (storage_key) SELECT repeat('photos/9.jpg', 2000000)",
        f"GRANT SELECT ON blobs TO {estate.quoted}",
    )
    began = time.monotonic()
    report = estate.look()
    assert time.monotonic() - began < 20
    assert_complete(report)
    assert faults_of(report) == []
    assert max(len(item.model_dump_json()) for section in report.sections for item in section.items) < 20_000


def test_rules_that_fit_nothing(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    estate.sql(
        "CREATE FOREIGN DATA WRAPPER nowhere",
        "CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere",
        "CREATE FOREIGN TABLE remote (id int, at timestamptz) SERVER nowhere",
        "CREATE SCHEMA app",
        "CREATE TABLE app.hidden (id int, at timestamptz)",
        "CREATE TABLE attic (id text)",
        f"GRANT SELECT, DELETE, UPDATE ON remote TO {estate.quoted}",
    )
    made: dict[str, dict[str, Any]] = {
        "foreign": {"table": "remote", "clock": "at"},
        "elsewhere": {"table": "hidden", "clock": "at"},
        "syntax": {"table": "sessions", "clock": "expires_at", "where": "id ="},
        "unknown": {"table": "sessions", "clock": "expires_at", "where": "nothing > 1"},
        "other": {"table": "sessions", "clock": "expires_at", "where": "EXISTS (SELECT FROM app.hidden)"},
        "slow": {"table": "sessions", "clock": "expires_at", "where": "pg_sleep(99) IS NULL"},
        "attic": {"table": "sessions", "clock": "expires_at", "action": Archive("attic")},
        "no_attic": {"table": "sessions", "clock": "expires_at", "action": Archive("none")},
        "wrong_value": {
            "table": "sessions",
            "clock": None,
            "where": "user_id = 'x'",
            "action": Set({"expires_at": "no moment"}),
        },
    }
    with_rules(
        monkeypatch,
        *(
            Rule(name=name, keep=DAY if of["clock"] else 0 * DAY, **({"action": Delete()} | of))
            for name, of in made.items()
        ),
    )
    monkeypatch.setattr("lamplighter.library.preflight.COUNTING", timedelta(milliseconds=300))
    report = estate.look(applied(*made))
    assert_complete(report)
    words = {
        "foreign": "remote is no ordinary or partitioned table",
        "elsewhere": "There is one in the schema app",
        "syntax": "where: syntax error",
        "unknown": 'column "nothing" does not exist',
        "other": "permission denied for schema app",
        "attic": "The table attic lacks user_id, expires_at",
        "no_attic": "There is no table none to archive into",
        "wrong_value": "invalid input syntax",
    }
    blocked = [item for item in faults_of(report) if item.severity is Severity.BLOCKED]
    for name, said in words.items():
        assert any(item.name == f"retention.rules.{name}" and said in item.sentence for item in blocked), (
            name,
            blocked,
        )
    [note] = notes_of(report, "retention.rules.slow")
    assert note.facts["rows_are"] == "estimated by the planner"


def test_ten_thousand_rules_end_in_time(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LIMIT", timedelta(seconds=20))
    with_rules(
        monkeypatch,
        *(Rule(name=f"r{n}", table="sessions", clock="expires_at", keep=DAY, action=Delete()) for n in range(10_000)),
    )
    began = time.monotonic()
    report = estate.look()
    assert time.monotonic() - began < 40
    late = [item for item in faults_of(report) if "the time of the preflight was over" in item.sentence]
    assert late and report.verdict is Verdict.WARNINGS
    assert len(json.dumps(preflight._named(faults_of(report), Severity.WARNING))) < 20_000


class Denied:
    """An S3 client that is refused what it asks of one bucket."""

    def __init__(self, s3: Any, bucket: str, code: str, status: int) -> None:
        self._s3, self._bucket, self._code, self._status = s3, bucket, code, status

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._s3, name)
        if name == "meta":
            return ask

        def refuse(**request: Any) -> Any:
            if request.get("Bucket") != self._bucket:
                return ask(**request)
            response = {
                "Error": {"Code": self._code, "Message": "no"},
                "ResponseMetadata": {
                    "HTTPStatusCode": self._status,
                    "HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"},
                },
            }
            raise ClientError(response, name)  # type: ignore[arg-type]

        return refuse


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "may not be listed (AccessDenied)"),
        ("NoSuchBucket", 404, "There is no bucket"),
        ("PermanentRedirect", 301, "is in eu-west-1, not in that of the stack"),
        ("SlowDown", 503, "cannot be listed"),
    ],
)
@pytest.mark.parametrize("which", ["media", "archive"])
def test_a_bucket_that_cannot_be_used(
    estate: Estate, monkeypatch: pytest.MonkeyPatch, which: str, code: str, status: int, words: str
) -> None:
    bucket = getattr(estate.world, which)
    denied = Denied(estate.world.s3, bucket, code, status)
    monkeypatch.setattr("lamplighter.kernel.aws.client", lambda service: denied)
    with estate.as_user():
        report = preflight.examine(estate.run({}))
        answer = preflight.handler.body(estate.run({}), preflight.Params())
    assert_complete(report)
    [found] = faults_of(report)
    assert words in found.sentence and found.name == {"media": "media.bucket", "archive": "archive bucket"}[which]
    assert bool(answer.documents) is (which == "media")
    assert notes_of(report, "retention.rules.sessions") and notes_of(report, "media.references")


def test_a_secret_that_may_not_be_read(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DATABASE_SECRET_ARN", "arn:aws:secretsmanager:us-east-1:111122223333:secret:db")
    database.engine.cache_clear()
    report = preflight.examine(estate.run({}))
    database.engine.cache_clear()
    assert_complete(report)
    [found] = faults_of(report)
    assert (found.severity, found.name) == (Severity.BLOCKED, "database")
    assert (
        "The database secret arn:aws:secretsmanager:us-east-1:111122223333:secret:db cannot be read" in found.sentence
    )
