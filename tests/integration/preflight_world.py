"""A database, its buckets and a user with exactly the rights of docs/grants.sql, and faults to plant in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from lamplighter.kernel import database
from lamplighter.kernel.job import Run
from lamplighter.kernel.ledger.row import Job, Policy, Status, Trigger, new_job_id
from lamplighter.kernel.preflight import Item, Severity
from lamplighter.kernel.settings import parse
from lamplighter.preflight import preflight
from lamplighter.preflight.preflight import Document
from tests.integration.media_world import World

NOW = datetime.now(UTC).replace(microsecond=0)
RULES = ("downloads", "onboarding_requests", "deleted_accounts", "sessions", "tokens", "plans", "audit_log")


class Estate:
    """What a preflight looks at."""

    def __init__(self, world: World, admin: Engine, url: str, patch: pytest.MonkeyPatch) -> None:
        self.world, self.admin, self.url, self.patch = world, admin, url, patch
        self.user = f"fn-{uuid4().hex}"
        self.quoted = f'"{self.user}"'
        self.uploads = f"uploads-{uuid4().hex}"
        world.s3.create_bucket(Bucket=self.uploads)
        for name, value in {
            "UPLOADS_BUCKET": self.uploads,
            "ACCOUNT_ID": "111122223333",
            "AWS_REGION": "us-east-1",
            "UNDO_DAYS": "30",
        }.items():
            patch.setenv(name, value)
        user = self.quoted
        self.sql(
            f"CREATE ROLE {user} LOGIN",
            f"GRANT USAGE ON SCHEMA lamplighter TO {user}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lamplighter TO {user}",
            f"GRANT SELECT ON media_files, cloud_accounts TO {user}",
            "GRANT SELECT, DELETE, UPDATE (id) ON handled_downloads, onboarding_requests, sessions, tokens TO " + user,
            f"GRANT SELECT, UPDATE (status, updated_at) ON analysis_plans TO {user}",
            f"GRANT SELECT, DELETE ON audit_log TO {user}",
            "INSERT INTO media_files (storage_key) SELECT 'photos/' || n || '.jpg' FROM generate_series(1, 9) AS n",
            "INSERT INTO sessions VALUES ('due', 'ann', now() - interval '1 d'), ('new', 'x', now() + interval '1 d')",
        )
        for n in range(1, 10):
            world.s3.put_object(Bucket=world.media, Key=f"photos/{n}.jpg", Body=b"photo")

    def sql(self, *statements: str) -> list[Any]:
        """Statements of the administrator, in one transaction."""
        with self.admin.begin() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []

    def expire_sessions(self, count: int) -> None:
        """So many more rows that the rule `sessions` would delete."""
        rows = f"SELECT 'old-' || n, 'bob', now() - interval '9 days' FROM generate_series(1, {count}) AS n"
        self.sql(f"INSERT INTO sessions {rows}", "ANALYZE sessions")

    @contextmanager
    def as_user(self) -> Iterator[None]:
        """While the package connects as the functions' user."""
        with self.patch.context() as environment:
            environment.setenv("DATABASE_URL", self.url.replace("//postgres:", f"//{self.user}:"))
            database.engine.cache_clear()
            yield
            database.engine().dispose()
        database.engine.cache_clear()

    def run(self, settings: Mapping[str, Any]) -> Run:
        """A detached run of the job."""
        job = Job(
            job_id=new_job_id(NOW, bytes(10)),
            job_type="preflight",
            status=Status.RUNNING,
            attempt=1,
            payload={},
            created_at=NOW,
            run_at=NOW,
            trigger=Trigger.CLI,
            policy=Policy(timeout=timedelta(minutes=11)),
        )
        return Run(job, settings=parse(settings, source="the test"), stop_at=datetime.max.replace(tzinfo=UTC))

    def look(self, settings: Mapping[str, Any] | None = None) -> Document:
        """The report that the functions' user gets."""
        with self.as_user():
            return preflight.examine(self.run(settings or {}))


def faults_of(report: Document) -> list[Item]:
    """All items that are no notes."""
    return [item for section in report.sections for item in section.items if item.severity is not Severity.NOTE]


def notes_of(report: Document, name: str) -> list[Item]:
    """The notes of a name."""
    items = [item for section in report.sections for item in section.items]
    return [item for item in items if item.severity is Severity.NOTE and item.name == name]


def applied(*names: str, media: bool = False) -> dict[str, Any]:
    """Settings that apply these rules."""
    document: dict[str, Any] = {"retention": {"rules": {name: {"apply": True} for name in names}}}
    return document | ({"media": {"apply": True}} if media else {})


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and how the preflight names it."""

    name: str
    """Of the item."""
    words: str
    """In its sentence or advice."""
    plant: Callable[[Estate], object]
    of: str
    """What the settings have to apply for it to block; empty: nothing, it only warns; `always`: it always blocks."""
    shape: str = field(default="", kw_only=True)
    """Of several faults of a shape only one can be planted."""
    is_quiet: bool = field(default=False, kw_only=True)
    """Whether it is no fault unless it is applied: a default rule that does not fit is for another table."""


def _sql(*statements: str) -> Callable[[Estate], object]:
    return lambda estate: estate.sql(*(one.replace("$user", estate.quoted) for one in statements))


def _referring(name: str, how: str, *, rows: int = 0, index: bool = True, readable: bool = True) -> tuple[str, ...]:
    """A table that refers to `sessions`, whose row keeps the due session, or many rows that refer to none."""
    return (
        f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY, session_id text REFERENCES sessions {how})",
        *([f"CREATE INDEX ON {name} (session_id)"] if index else []),
        f"INSERT INTO {name} (session_id) SELECT {'NULL' if rows else "'due'"} FROM generate_series(1, {rows or 1})",
        f"ANALYZE {name}",
        *([f"GRANT SELECT ON {name} TO $user"] if readable else []),
    )


def _claim(estate: Estate) -> None:
    claim = {"stack": "other", "account": "1" * 12, "region": "us-east-1", "folder": "", "renewed_at": NOW.isoformat()}
    body = json.dumps({"claims": [claim]}).encode()
    estate.world.s3.put_object(Bucket=estate.world.media, Key=".lamplighter/claim.json", Body=body)


def _version(bucket: Callable[[Estate], str], status: str) -> Callable[[Estate], object]:
    return lambda estate: estate.world.s3.put_bucket_versioning(
        Bucket=bucket(estate), VersioningConfiguration={"Status": status}
    )


def _lifecycle(estate: Estate) -> None:
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": "photos/"}}
    rule |= {"NoncurrentVersionExpiration": {"NoncurrentDays": 7}}
    configuration = {"Rules": [rule]}
    estate.world.s3.put_bucket_lifecycle_configuration(Bucket=estate.world.media, LifecycleConfiguration=configuration)


SESSIONS, TOKENS, MEDIA = "retention.rules.sessions", "retention.rules.tokens", "media.references"
_MANY = "FROM generate_series(1, 20000) AS n"

FAULTS = (
    Fault(SESSIONS, "no right to SELECT on public.sessions", _sql("REVOKE SELECT ON sessions FROM $user"), "sessions"),
    Fault(SESSIONS, "no right to DELETE on public.sessions", _sql("REVOKE DELETE ON sessions FROM $user"), "sessions"),
    Fault(SESSIONS, "UPDATE of any one column on", _sql("REVOKE UPDATE (id) ON sessions FROM $user"), "sessions"),
    Fault(
        SESSIONS,
        "Row-level security of public.sessions hides rows",
        _sql("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY", "CREATE POLICY own ON sessions USING (user_id = 'bob')"),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "A publication publishes changes of public.sessions, which has no replica identity",
        _sql("ALTER TABLE sessions REPLICA IDENTITY NOTHING", "CREATE PUBLICATION changes FOR TABLE sessions"),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "Triggers of sessions fire when the rule acts: soft",
        _sql(
            "CREATE FUNCTION soft() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER soft BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION soft()",
        ),
        "",
    ),
    Fault(
        SESSIONS,
        "The rewrite rule swallow of the table sessions",
        _sql("CREATE RULE swallow AS ON DELETE TO sessions DO INSTEAD NOTHING"),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "Rows of session_events that are not due depend on due rows",
        _sql(*_referring("session_events", "ON DELETE CASCADE")),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "Rows of session_carts that are not due depend on due rows",
        _sql(*_referring("session_carts", "ON DELETE SET NULL")),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "Rows of session_flags that are not due depend on due rows",
        _sql(*_referring("session_flags", "ON DELETE SET DEFAULT")),
        "sessions",
    ),
    Fault(
        SESSIONS,
        "No index of session_log begins with session_id",
        _sql(*_referring("session_log", "", rows=20_000, index=False)),
        "",
    ),
    Fault(SESSIONS, "cannot read session_keys", _sql(*_referring("session_keys", "", readable=False)), ""),
    Fault(
        TOKENS,
        "clock: the column expires_at of tokens is of type text",
        _sql("ALTER TABLE tokens ALTER expires_at TYPE text"),
        "tokens",
        shape="tokens",
        is_quiet=True,
    ),
    Fault(
        TOKENS,
        "The table tokens has no column expires_at",
        _sql("ALTER TABLE tokens RENAME expires_at TO ends_at"),
        "tokens",
        shape="tokens",
        is_quiet=True,
    ),
    Fault(
        TOKENS,
        "tokens is no ordinary or partitioned table",
        _sql(
            "ALTER TABLE tokens RENAME TO tokens_",
            "CREATE VIEW tokens AS SELECT * FROM tokens_",
            "GRANT SELECT, DELETE, UPDATE ON tokens TO $user",
        ),
        "tokens",
        shape="tokens",
        is_quiet=True,
    ),
    Fault(
        TOKENS,
        "No index of public.tokens begins with the clock expires_at",
        _sql(
            "DROP INDEX ix_tokens_expires_at",
            f"INSERT INTO tokens SELECT n, now() + interval '1 day' {_MANY}",
            "ANALYZE tokens",
        ),
        "",
        shape="tokens",
    ),
    Fault(
        "retention.rules.downloads",
        "no right to DELETE on public.downloads_old",
        _sql(
            "DROP TABLE handled_downloads",
            'CREATE TABLE handled_downloads (id int, "timestamp" timestamptz) PARTITION BY RANGE (id)',
            "CREATE TABLE downloads_old PARTITION OF handled_downloads DEFAULT",
            "GRANT SELECT, DELETE, UPDATE (id) ON handled_downloads TO $user",
            "GRANT SELECT, UPDATE (id) ON downloads_old TO $user",
        ),
        "downloads",
        shape="downloads",
    ),
    Fault(
        "retention.rules.deleted_accounts",
        "permission denied for table cloud_accounts",
        _sql("REVOKE SELECT ON cloud_accounts FROM $user"),
        "deleted_accounts",
    ),
    Fault(
        "retention.rules.plans",
        'no right to UPDATE ("status")',
        _sql("REVOKE UPDATE (status) ON analysis_plans FROM $user"),
        "plans",
        shape="plans",
    ),
    Fault(
        "retention.rules.plans",
        "operator does not exist: state = character varying",
        _sql(
            "CREATE TYPE state AS ENUM ('PENDING', 'DRAFT')",
            "ALTER TABLE analysis_plans ALTER status TYPE state USING 'DRAFT'",
        ),
        "plans",
        shape="plans",
    ),
    Fault(
        "retention.rules.plans",
        "COALESCE types uuid and character varying cannot be matched",
        _sql("ALTER TABLE analysis_plans ALTER job_id TYPE uuid USING NULL"),
        "plans",
        shape="plans",
    ),
    Fault(
        "retention.rules.audit_log",
        'invalid input syntax for type bigint: "-infinity"',
        _sql("ALTER TABLE audit_log ALTER created_at DROP DEFAULT, ALTER created_at TYPE bigint USING 1"),
        "audit_log",
        shape="audit_log",
    ),
    Fault(
        "retention.rules.audit_log",
        "no right to DELETE on public.audit_log",
        _sql("REVOKE DELETE ON audit_log FROM $user"),
        "audit_log",
        shape="audit_log",
    ),
    Fault(MEDIA, "there is no table media_files", _sql("DROP TABLE media_files"), "media", shape="media"),
    Fault(
        MEDIA,
        "the table media_files has no column storage_key",
        _sql("ALTER TABLE media_files RENAME storage_key TO name", "UPDATE media_files SET name = 'x'"),
        "media",
        shape="media",
    ),
    Fault(
        MEDIA,
        "is of type integer",
        _sql("ALTER TABLE media_files ALTER storage_key TYPE int USING 1"),
        "media",
        shape="media",
    ),
    Fault(
        MEDIA,
        "media_files.storage_key cannot be read in full",
        _sql("REVOKE SELECT ON media_files FROM $user"),
        "media",
        shape="media",
    ),
    Fault(
        MEDIA,
        "hides rows from this user",
        _sql("ALTER TABLE media_files ENABLE ROW LEVEL SECURITY"),
        "media",
        shape="media",
    ),
    Fault(MEDIA, "has no values", _sql("DELETE FROM media_files"), "", shape="media"),
    Fault(
        MEDIA,
        "of a sample of 9, 0 name an object",
        _sql("UPDATE media_files SET storage_key = 'static/' || id || '.jpg'"),
        "",
        shape="media",
    ),
    Fault(
        MEDIA,
        "avatars.url is not declared and seems to name files",
        _sql(
            "CREATE TABLE avatars (id int, url text)",
            "INSERT INTO avatars SELECT n, 'https://a.example/photos/' || n || '.jpg' FROM generate_series(1, 9) AS n",
            "GRANT SELECT ON avatars TO $user",
        ),
        "",
    ),
    Fault(
        MEDIA,
        "posts.body is not declared and seems to name files",
        _sql(
            "CREATE TABLE posts (body text)",
            "INSERT INTO posts VALUES ('<p>Hello</p>'), ('<img src=\"/photos/1.jpg\">')",
            "GRANT SELECT ON posts TO $user",
        ),
        "",
    ),
    Fault("media.bucket", "is suspended, so undo", _version(lambda estate: estate.world.media, "Suspended"), "media"),
    Fault("media.bucket", "The stack other (account 111111111111", _claim, "media"),
    Fault("media.bucket", "tidy removes deleted files permanently after 7 days", _lifecycle, ""),
    Fault("archive bucket", "Suspended", _version(lambda estate: estate.world.archive, "Suspended"), ""),
    Fault("uploads bucket", "Enabled", _version(lambda estate: estate.uploads, "Enabled"), ""),
    Fault(
        "database",
        "are read-only (default_transaction_read_only is on)",
        _sql("ALTER ROLE $user SET default_transaction_read_only = on"),
        "always",
    ),
    Fault(
        "database.connections",
        "1 connections are left for the stack",
        _sql("ALTER ROLE $user CONNECTION LIMIT 1"),
        "always",
    ),
    Fault(
        "database.schema",
        "these tables of the schema lamplighter: unattached_volumes, unjudged",
        _sql("REVOKE DELETE ON lamplighter.unjudged, lamplighter.unattached_volumes FROM $user"),
        "always",
    ),
)
