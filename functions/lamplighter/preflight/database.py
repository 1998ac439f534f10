"""The preflight of the database as a whole: server, user, connections, pooler, Lamplighter's own schema."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter.kernel.preflight import Item, Look, Severity, explained, failures, sentence

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME: Final = "database"
STATEMENT: Final = timedelta(seconds=10)
OLDEST: Final = 140_000
"""PostgreSQL 14, in numbers."""
CONNECTIONS: Final = 30
"""What docs/operations.md bounds the stack's connections to."""
FEWEST: Final = 2
"""With fewer a single function cannot work: one holds at most so many."""

_SERVER: Final = """
    SELECT CAST(current_setting('server_version_num') AS int) AS version, current_setting('server_version') AS shown,
        pg_is_in_recovery() AS standby, CAST(quote_ident(current_user) AS text) AS user,
        CAST(quote_ident(current_database()) AS text) AS database,
        current_setting('default_transaction_read_only') = 'on' AS read_only,
        CAST(current_setting('max_connections') AS int) - CAST(current_setting('superuser_reserved_connections') AS int)
            AS most,
        (SELECT sum(numbackends) FROM pg_stat_database) AS used,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS user_limit,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
        to_regnamespace('lamplighter') IS NOT NULL AS has_schema,
        coalesce(has_schema_privilege(to_regnamespace('lamplighter'), 'USAGE'), false) AS usage
"""
_OWN: Final = """
    SELECT quote_ident(relname) AS name FROM pg_class
    WHERE relnamespace = to_regnamespace('lamplighter') AND relkind = 'r' AND relname <> 'schema_version'
        AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
            AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
    ORDER BY relname
"""
_TABLES: Final = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('lamplighter') AND relkind = 'r'"


def part(look: Look) -> Iterator[Item]:
    """Items on the server, the user and the schema."""
    if look.engine is None:
        return  # the job says why
    try:
        with look.reading(statement=STATEMENT) as connection:
            yield from _server(connection)
            yield from _schema(connection)
        yield from _limits(look)
    except failures() as error:
        yield Item(
            severity=Severity.BLOCKED,
            name=NAME,
            sentence=f"The database could not be looked at. {explained(error)}",
            advice="Correct what the sentence names, then run the preflight again.",
        )


def _server(connection: Connection) -> Iterator[Item]:
    from sqlalchemy import text

    row = connection.execute(text(_SERVER)).one()
    yield from judged(row._asdict())


def judged(row: dict[str, Any]) -> Iterator[Item]:
    """What the facts about a server mean. `row` has the columns of the query."""
    free = row["most"] - int(row["used"] or 0)
    yield Item(
        severity=Severity.NOTE,
        name=NAME,
        sentence=f"PostgreSQL {row['shown']}, database {row['database']}, user {row['user']}"
        f"{', a superuser: docs/grants.sql makes one with less rights' if row['superuser'] else ''}.",
        facts={"connections_free": free, "max_connections": row["most"], "user_limit": row["user_limit"]},
    )
    if row["version"] < OLDEST:
        yield Item(
            severity=Severity.BLOCKED,
            name=NAME,
            sentence=f"PostgreSQL {row['shown']} is too old: retention needs 14 or newer.",
            advice="Upgrade the server.",
        )
    if row["standby"]:
        yield Item(
            severity=Severity.BLOCKED,
            name=NAME,
            sentence="The server is a standby, a read-only replica: nothing can be written, and no history is kept.",
            advice="Deploy with the address of the primary (of Aurora: the writer endpoint).",
        )
    elif row["read_only"]:
        yield Item(
            severity=Severity.BLOCKED,
            name=NAME,
            sentence=f"Transactions of the user {row['user']} are read-only (default_transaction_read_only is on): "
            "nothing can be written, and no history is kept.",
            advice=f"ALTER ROLE {row['user']} RESET default_transaction_read_only; or the same for the database.",
        )
    yield from _connections(row, free)


def _connections(row: dict[str, Any], free: int) -> Iterator[Item]:
    limits = [limit for limit in (row["user_limit"], row["database_limit"]) if limit >= 0]
    least = min([free, *limits])
    if least < FEWEST:
        yield Item(
            severity=Severity.BLOCKED,
            name="database.connections",
            sentence=f"{max(least, 0)} connections are left for the stack; one function may hold {FEWEST}.",
            advice="Raise max_connections or the connection limit of the user or the database.",
        )
    elif free < CONNECTIONS and (row["user_limit"] < 0 or row["user_limit"] > free):
        yield Item(
            severity=Severity.WARNING,
            name="database.connections",
            sentence=f"{free} of {row['most']} connections are free; the stack may use {CONNECTIONS}, and then "
            "others get none.",
            advice=f"ALTER ROLE {row['user']} CONNECTION LIMIT {max(FEWEST, free // 2)}; a job that gets none retries.",
        )


def _schema(connection: Connection) -> Iterator[Item]:
    from sqlalchemy import text

    row = connection.execute(text(_SERVER)).one()
    if not row.has_schema or not connection.execute(text(_TABLES)).scalar_one():
        yield Item(
            severity=Severity.BLOCKED,
            name="database.schema",
            sentence="The schema lamplighter has no tables: the migrations have not run.",
            advice="Run docs/grants.sql, then deploy, or call the function migrate.",
        )
        return
    closed = list(connection.execute(text(_OWN)).scalars())
    if not row.usage or closed:
        named = ", ".join(closed) or "all"
        yield Item(
            severity=Severity.BLOCKED,
            name="database.schema",
            sentence=sentence(f"The user {row.user} may not use these tables of the schema lamplighter: {named}"),
            advice="Run docs/grants.sql.",
        )


def _limits(look: Look) -> Iterator[Item]:
    """Whether the limits arrive that each connection asks for: a pooler may ignore them."""
    from sqlalchemy import text

    from lamplighter.kernel.database import one_snapshot

    assert look.engine is not None
    query = text("SELECT current_setting('statement_timeout') AS most, CAST(quote_ident(current_user) AS text) AS user")
    with look.engine.connect() as connection, connection.begin():
        one_snapshot(connection)  # and no limit, which would stand in the place of the one that is asked for
        row = connection.execute(query).one()
    yield from without_limits(row.most, row.user)


def without_limits(limit: str, user: str) -> Iterator[Item]:
    """What a `statement_timeout` of a new connection means."""
    if limit == "0":
        yield Item(
            severity=Severity.WARNING,
            name="database.pooler",
            sentence="A pooler drops the limits that connections ask for, so most statements have no time limit.",
            advice=f"ALTER ROLE {user} SET statement_timeout = '60s'; ALTER ROLE {user} SET lock_timeout = '5s';",
        )
