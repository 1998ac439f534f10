"""Rules in the settings for tables as well-known applications make them: what goes, and above all what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine

from lamplighter import rules
from lamplighter.kernel.errors import Permanent
from tests.integration.test_rules import NOW, under, work

pytestmark = pytest.mark.usefixtures("any_moment")

AT = f"timestamptz '{NOW:%Y-%m-%d %H:%M:%S}Z'"
OLD = f"{AT} - interval '9 d'"
SECONDS = f"CAST(extract(epoch FROM {AT}) AS bigint)"


@dataclass(frozen=True)
class Case:
    """A table, a rule, and the rows that are left."""

    name: str
    rule: dict[str, Any]
    script: str
    """Makes the tables; each row has a label that begins with `goes` or `stays`."""
    label: str = "label"


CASES = [
    Case(
        "Laravel: failed jobs",
        {"table": "failed_jobs", "clock": "failed_at", "keep_days": 30},
        "CREATE TABLE failed_jobs (id bigserial PRIMARY KEY, label text, failed_at timestamp(0) NOT NULL);"
        f"INSERT INTO failed_jobs (label, failed_at) VALUES ('goes', {AT} - interval '31 d'), ('stays', {AT});",
    ),
    Case(
        "Laravel: expired cache",
        {"table": "cache", "key": "key", "clock": "expiration", "clock_unit": "seconds", "keep_days": 0},
        "CREATE TABLE cache (key varchar(255) PRIMARY KEY, label text, value text, expiration integer NOT NULL);"
        f"INSERT INTO cache VALUES ('a', 'goes', '', {SECONDS} - 60), ('b', 'stays', '', {SECONDS} + 60),"
        " ('c', 'stays forever', '', 2147483647), ('d', 'stays, zero', '', 0);",
    ),
    Case(
        "Laravel: tokens of users that are gone",
        {
            "table": "personal_access_tokens",
            "clock": "created_at",
            "keep_days": 1,
            "where": "tokenable_type = 'App\\Models\\User'",
            "orphan_of": {"table": "users", "column": "tokenable_id"},
        },
        "CREATE TABLE users (id bigserial PRIMARY KEY); INSERT INTO users VALUES (1), (2);"
        "CREATE TABLE personal_access_tokens (id bigserial PRIMARY KEY, label text, tokenable_type varchar(255),"
        " tokenable_id bigint NOT NULL, created_at timestamp(0));"
        "INSERT INTO personal_access_tokens (label, tokenable_type, tokenable_id, created_at) VALUES"
        f" ('stays', 'App\\Models\\User', 1, {OLD}), ('goes', 'App\\Models\\User', 7, {OLD}),"
        f" ('stays, of another kind', 'App\\Models\\Admin', 7, {OLD}),"
        f" ('stays, just made', 'App\\Models\\User', 8, {AT});",
    ),
    Case(
        "Keycloak: events",
        {"table": "event_entity", "clock": "event_time", "clock_unit": "milliseconds", "keep_days": 90},
        "CREATE TABLE event_entity (id varchar(36) PRIMARY KEY, label text, event_time bigint);"
        f"INSERT INTO event_entity VALUES ('a', 'goes', ({SECONDS} - 91 * 86400) * 1000),"
        f" ('b', 'stays', ({SECONDS} - 89 * 86400) * 1000), ('c', 'stays, null', NULL),"
        f" ('d', 'stays, in seconds', {SECONDS} - 91 * 86400);",
    ),
    Case(
        "Keycloak: offline sessions by their last use",
        {
            "table": "offline_user_session",
            "key": "user_session_id",
            "clock": "last_session_refresh",
            "clock_unit": "seconds",
            "keep_days": 30,
            "where": "offline_flag = '1'",
        },
        "CREATE TABLE offline_user_session (user_session_id varchar(36), label text, created_on integer, offline_flag"
        " varchar(4), last_session_refresh integer NOT NULL DEFAULT 0, PRIMARY KEY (user_session_id, offline_flag));"
        f"INSERT INTO offline_user_session VALUES ('a', 'goes', 0, '1', {SECONDS} - 31 * 86400),"
        f" ('b', 'stays', 0, '1', {SECONDS}), ('a', 'stays, online', 0, '0', {SECONDS} - 31 * 86400),"
        " ('c', 'stays, never used', 0, '1', 0);",
    ),
    Case(
        "Mattermost: 0 is a session that does not expire, mattermost/mattermost #8095",
        {"table": "sessions", "clock": "expiresat", "clock_unit": "milliseconds", "keep_days": 0},
        "DROP TABLE sessions; CREATE TABLE sessions (id varchar(26) PRIMARY KEY, label text, expiresat bigint);"
        f"INSERT INTO sessions VALUES ('a', 'goes', {SECONDS} * 1000 - 1), ('b', 'stays', {SECONDS} * 1000 + 1),"
        " ('c', 'stays, does not expire', 0);",
    ),
    Case(
        "Mattermost: posts that were deleted, 0 is one that was not",
        {"table": "posts", "clock": "deleteat", "clock_unit": "milliseconds", "keep_days": 30},
        "CREATE TABLE posts (id varchar(26) PRIMARY KEY, label text, deleteat bigint DEFAULT 0);"
        f"INSERT INTO posts VALUES ('a', 'goes', ({SECONDS} - 31 * 86400) * 1000), ('b', 'stays', 0),"
        f" ('c', 'stays, just deleted', {SECONDS} * 1000);",
    ),
    Case(
        "Django: the admin's log",
        {"table": "django_admin_log", "clock": "action_time", "keep_days": 365},
        "CREATE TABLE django_admin_log (id serial PRIMARY KEY, label text, action_time timestamptz NOT NULL);"
        f"INSERT INTO django_admin_log (label, action_time) VALUES ('goes', {AT} - interval '366 d'), ('stays', {AT});",
    ),
    Case(
        "Devise: users who never confirmed, unless something refers to them",
        {"table": "users", "clock": "confirmation_sent_at", "keep_days": 7, "where": "confirmed_at IS NULL"},
        "CREATE TABLE users (id bigserial PRIMARY KEY, label text, confirmation_sent_at timestamp(6), confirmed_at"
        " timestamp(6)); CREATE TABLE orders (id bigserial PRIMARY KEY, user_id bigint NOT NULL REFERENCES users);"
        f"INSERT INTO users VALUES (1, 'goes', {OLD}, NULL), (2, 'stays, confirmed', {OLD}, {AT}),"
        f" (3, 'stays, has an order', {OLD}, NULL), (4, 'stays, invited', NULL, NULL), (5, 'stays', {AT}, NULL);"
        "INSERT INTO orders (user_id) VALUES (3);",
    ),
    Case(
        "Rails: blobs that nothing is attached to",
        {
            "table": "active_storage_blobs",
            "clock": "created_at",
            "keep_days": 2,
            "where": "NOT EXISTS (SELECT FROM active_storage_attachments WHERE blob_id = active_storage_blobs.id)",
        },
        "CREATE TABLE active_storage_blobs (id bigserial PRIMARY KEY, label text, created_at timestamp(6) NOT NULL);"
        "CREATE TABLE active_storage_attachments (id bigserial PRIMARY KEY, blob_id bigint NOT NULL);"
        f"INSERT INTO active_storage_blobs VALUES (1, 'goes', {OLD}), (2, 'stays', {OLD}),"
        f" (3, 'stays, is uploaded', {AT}); INSERT INTO active_storage_attachments (blob_id) VALUES (2);",
    ),
    Case(
        "WordPress: meta of posts that are gone",
        {
            "table": "wp_postmeta",
            "key": "meta_id",
            "orphan_of": {"table": "wp_posts", "column": "post_id", "key": "ID"},
        },
        'CREATE TABLE wp_posts ("ID" bigserial PRIMARY KEY, post_parent bigint NOT NULL DEFAULT 0);'
        "CREATE TABLE wp_postmeta (meta_id bigserial PRIMARY KEY, label text, post_id bigint NOT NULL DEFAULT 0);"
        "INSERT INTO wp_posts VALUES (1, 0);"
        "INSERT INTO wp_postmeta (label, post_id) VALUES ('goes', 9), ('stays', 1), ('stays, of none', 0);",
    ),
    Case(
        "Nextcloud: files of a storage that is gone",
        {
            "table": "oc_filecache",
            "key": "fileid",
            "orphan_of": {"table": "oc_storages", "column": "storage", "key": "numeric_id"},
        },
        "CREATE TABLE oc_storages (id varchar(64), numeric_id bigserial PRIMARY KEY);"
        "CREATE TABLE oc_filecache (fileid bigserial PRIMARY KEY, label text, storage bigint NOT NULL DEFAULT 0);"
        "INSERT INTO oc_storages VALUES ('local', 1);"
        "INSERT INTO oc_filecache (label, storage) VALUES ('goes', 4), ('stays', 1), ('stays, zero', 0);",
    ),
    Case(
        "Nextcloud: activities, whose clock is a word of SQL",
        {"table": "oc_activity", "key": "activity_id", "clock": "timestamp", "clock_unit": "seconds", "keep_days": 365},
        'CREATE TABLE oc_activity (activity_id bigserial PRIMARY KEY, label text, "timestamp" integer NOT NULL);'
        f"""INSERT INTO oc_activity (label, "timestamp") VALUES ('goes', {SECONDS} - 366 * 86400),"""
        f" ('stays', {SECONDS}), ('stays, zero', 0);",
    ),
    Case(
        "Home Assistant: states with a fraction of a second",
        {"table": "states", "key": "state_id", "clock": "last_updated_ts", "clock_unit": "seconds", "keep_days": 10},
        "CREATE TABLE states (state_id bigserial PRIMARY KEY, label text, last_updated_ts double precision);"
        f"INSERT INTO states (label, last_updated_ts) VALUES ('goes', {SECONDS} - 864000.25),"
        f" ('stays', {SECONDS} - 863999), ('stays, null', NULL);",
    ),
    Case(
        "Go: a session with the zero time does not expire",
        {"table": "logins", "clock": "expires_at", "keep_days": 0},
        "CREATE TABLE logins (id bigserial PRIMARY KEY, label text, expires_at timestamptz NOT NULL);"
        f"INSERT INTO logins (label, expires_at) VALUES ('goes', {OLD}), ('stays', {AT} + interval '1 s'),"
        " ('stays, zero', '0001-01-01 00:00:00Z'), ('stays, Unix zero', '1970-01-01 00:00:00Z');",
    ),
    Case(
        "a licence ends at the end of its last day, coder/coder #21715",
        {"table": "leases", "clock": "ends_on", "keep_days": 0},
        "CREATE TABLE leases (id bigserial PRIMARY KEY, label text, ends_on date);"
        f"INSERT INTO leases (label, ends_on) VALUES ('goes', CAST({AT} AS date) - 1), ('stays', CAST({AT} AS date)),"
        " ('stays, null', NULL), ('stays, infinity', 'infinity');",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_to_go_goes_and_the_rest_stays(engine: Engine, case: Case) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(case.script.replace("%", "%%"))
    document = {"retention": {"rules": {"mine": case.rule}}}
    applied = under(document, {"retention": {"rules": {"mine": {"apply": True}}}})

    expected = asked(engine, case, "goes%%")
    previewed = work("mine", under(document))
    report = work("mine", applied)

    assert (previewed.dry_run, previewed.rows) == (True, len(expected) + report.failed)
    assert (report.dry_run, report.rows, report.skipped) == (False, len(expected), 0)
    assert report.failed == case.name.startswith("Devise")
    assert asked(engine, case, "goes%%") == []
    assert asked(engine, case, "stays%%")
    assert work("mine", applied).rows == 0


def asked(engine: Engine, case: Case, label: str) -> list[str]:
    with engine.connect() as connection:
        query = f"SELECT label FROM {case.rule['table']} WHERE label LIKE '{label}'"
        return list(connection.exec_driver_sql(query).scalars())


@pytest.mark.parametrize("case", [case for case in CASES if "clock_unit" in case.rule], ids=lambda case: case.name)
def test_without_its_unit_a_count_is_refused(engine: Engine, case: Case) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(case.script.replace("%", "%%"))
    rule = {name: value for name, value in case.rule.items() if name != "clock_unit"}
    settings = under({"retention": {"rules": {"mine": rule | {"apply": True}}}})
    assert rules.in_force(settings)["mine"].clock_unit == "timestamp"

    with pytest.raises(Permanent, match=r"^retention\.rules\.mine\.clock: the column "):
        work("mine", settings)
    assert asked(engine, case, "goes%%")
