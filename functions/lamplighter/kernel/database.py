"""Postgres: where it is, how to reach it, and the tables that are ours.

One engine a process, made when first asked for. The address comes from the first of these that is set:
`DATABASE_URL`; `DATABASE_SECRET_ARN` (a Secrets Manager secret as RDS makes them); `DATABASE_HOST` with
`DATABASE_NAME`, `DATABASE_USER` and perhaps `DATABASE_PORT` (an IAM token as the password). Secret and token are read
anew for each connection, so rotating them needs no restart.

This module imports SQLAlchemy and pg8000: import it inside the function that needs it, to keep cold starts short.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Final

import pg8000.dbapi
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Index,
    MetaData,
    Table,
    Text,
    Uuid,
    create_engine,
    event,
    func,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ArgumentError

from lamplighter.kernel.errors import DatabaseUnavailable, Permanent, Retryable
from lamplighter.kernel.no_database import NoDatabase

CONNECT_TIMEOUT: Final = timedelta(seconds=5)
STATEMENT_TIMEOUT: Final = timedelta(seconds=60)
LOCK_TIMEOUT: Final = timedelta(seconds=5)
RECYCLE: Final = timedelta(minutes=5)
"""A connection that a frozen process kept for longer is not trusted."""

_SSL_REQUEST: Final = (8).to_bytes(4) + (80877103).to_bytes(4)
"""What a client sends to ask for TLS (PostgreSQL, "Message Formats", SSLRequest)."""
_GONE: Final = ("08", "57P")
"""SQLSTATE classes of a server that is out of reach or shutting down: they pass."""
_NO_ROOM: Final = "53"
"""SQLSTATE class insufficient_resources: disk, memory, connections. It passes, too."""
_READ_ONLY: Final = "25006"
"""SQLSTATE read_only_sql_transaction. After a failover, a new connection leads to the new primary."""
_UNSUPPORTED: Final = "unsupported startup parameter"
"""PgBouncer's words for a parameter that its ignore_startup_parameters does not name."""

SCHEMA: Final = "lamplighter"
"""Holds Lamplighter's own tables; nothing is created, altered or adopted outside it (REQUIREMENTS S4).

Each statement on them names it: the search path is the owner's."""
VERSION_TABLE: Final = {"version_table": "schema_version", "version_table_schema": SCHEMA}
"""Where Alembic writes the newest migration that was applied: options of its `MigrationContext`."""

metadata = MetaData(schema=SCHEMA)
"""Our own tables as the newest migration leaves them, those that are written through SQLAlchemy."""

system_logs = Table(
    "system_logs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("details", JSONB, nullable=False, server_default="{}"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_system_logs_job_id", "job_id"),
    Index("ix_system_logs_created_at", "created_at"),
)

job_history = Table(
    "job_history",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("job_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("finished_at", DateTime(timezone=True), nullable=False),
    Column("copied_at", DateTime(timezone=True), nullable=False),
    Column("job", JSONB, nullable=False),
    Index("ix_job_history_job_type", "job_type", "finished_at"),
    Index("ix_job_history_copied_at", "copied_at"),
)

analysis_plans = Table(  # the owner's, found as the owner's connections find it
    "analysis_plans",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("status", Text, nullable=False),
    Column("job_id", Text),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the database is and who asks; without TLS only when the server is this machine or the URL says so."""

    name: str
    user: str
    password: str | None = field(repr=False)
    host: str
    """A host name, or the directory of a Unix socket (it starts with a slash)."""
    port: int = 5432
    tls: bool = True

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.name}"


def address(environment: Mapping[str, str]) -> Address:
    """The database that `environment` names.

    Raises:
        NoDatabase: none is named.
        Permanent: the settings are incomplete or contradict themselves.
        Retryable: the secret cannot be read now.
    """
    if url := environment.get("DATABASE_URL"):
        return _from_url(url)
    if arn := environment.get("DATABASE_SECRET_ARN"):
        return _from_secret(arn, environment)
    if environment.get("DATABASE_HOST"):
        return _from_token(environment)
    raise NoDatabase


def _from_url(url: str) -> Address:
    try:
        parts = make_url(url)
        host = str(parts.query.get("host") or parts.host or "")
        mode = str(parts.query.get("sslmode") or ("disable" if _is_local(host) else "verify-full"))
        if not (host and parts.database and parts.username and parts.get_backend_name() == "postgresql"):
            raise ArgumentError
    except (ArgumentError, ValueError):
        raise Permanent("DATABASE_URL must look like postgresql://user:password@host:port/name.") from None
    if mode not in {"disable", "require", "verify-ca", "verify-full"}:
        raise Permanent(f"DATABASE_URL: sslmode takes disable or verify-full (TLS is always verified), not {mode}.")
    return Address(
        name=parts.database,
        user=parts.username,
        password=parts.password,
        host=host,
        port=parts.port or 5432,
        tls=mode != "disable",
    )


def _is_local(host: str) -> bool:
    return host.startswith("/") or host in {"localhost", "127.0.0.1", "::1"}


def _from_secret(arn: str, environment: Mapping[str, str]) -> Address:
    from botocore.exceptions import BotoCoreError, ClientError

    from lamplighter.kernel.aws import client

    try:
        secret = json.loads(client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"])
        # The secret that RDS itself manages holds only the user and the password; the rest stands beside it.
        return Address(
            name=secret.get("dbname") or environment["DATABASE_NAME"],
            user=secret["username"],
            password=secret["password"],
            host=secret.get("host") or environment["DATABASE_HOST"],
            port=int(secret.get("port") or environment.get("DATABASE_PORT") or 5432),
        )
    except (BotoCoreError, ClientError) as error:
        raise Retryable(f"The database secret {arn} cannot be read: {error}") from error
    except KeyError as error:
        raise Permanent(
            f"The database secret {arn} lacks {error}: it must hold username and password, and host and dbname unless "
            "DATABASE_HOST and DATABASE_NAME give them."
        ) from None
    except (ValueError, AttributeError):
        raise Permanent(f"The database secret {arn} must hold a JSON object with username and password.") from None


def _from_token(environment: Mapping[str, str]) -> Address:
    from lamplighter.kernel.aws import client

    missing = [name for name in ("DATABASE_NAME", "DATABASE_USER") if not environment.get(name)]
    if missing:
        raise Permanent(f"DATABASE_HOST is set but {' and '.join(missing)} is not.")
    host, port, user = (
        environment["DATABASE_HOST"],
        environment.get("DATABASE_PORT") or "5432",
        environment["DATABASE_USER"],
    )
    if not port.isdecimal():
        raise Permanent(f"DATABASE_PORT takes a port number, not {port}.")
    token = client("rds").generate_db_auth_token(DBHostname=host, Port=int(port), DBUsername=user)
    return Address(name=environment["DATABASE_NAME"], user=user, password=token, host=host, port=int(port))


@cache
def engine() -> Engine:
    """The process's engine. Statements and lock waits are bounded; a lost server raises `DatabaseUnavailable`."""
    made = create_engine(
        "postgresql+pg8000://",
        creator=lambda: _connect(address(os.environ)),
        pool_size=1,  # a Lambda process works on one event at a time
        max_overflow=1,  # no job needs two at once, and max_connections is the owner's
        pool_pre_ping=True,
        pool_recycle=RECYCLE.total_seconds(),
        hide_parameters=True,  # what is in an owner's rows is nobody's who reads an error
    )
    event.listen(made, "handle_error", _without_values)
    event.listen(made, "handle_error", _name_the_loss)
    return made


def bound_statements(connection: Connection, *, statement: timedelta, lock: timedelta = LOCK_TIMEOUT) -> None:
    """Bounds each statement and lock wait of the current transaction; zero means without bound."""
    for name, limit in (("statement_timeout", statement), ("lock_timeout", lock)):
        connection.execute(
            text("SELECT set_config(:name, :limit, true)"), {"name": name, "limit": f"{_milliseconds(limit)}ms"}
        )


def one_snapshot(connection: Connection) -> None:
    """Makes all statements of the current transaction read one snapshot, and none write. Call it before any other.

    An option of the engine would set it for the session, which a pooler may give to others.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))


def whole_view(connection: Connection, *, max_lag: timedelta) -> None:
    """Makes every statement of the current transaction see all rows, or fail (REQUIREMENTS S6), and reckon in UTC.

    A table whose row security would hide rows from us then fails with SQLSTATE 42501. A pooler may drop the time zone
    that the connection asked for; a timestamp without time zone would then be due hours too early.

    Args:
        connection: in a transaction.
        max_lag: how far behind its primary a standby may be.

    Raises:
        Permanent: the server is a standby that is further behind, or does not say how far.
    """
    connection.execute(text("SELECT set_config('row_security', 'off', true), set_config('TimeZone', 'UTC', true)"))
    if not connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
        return
    seconds = connection.execute(
        text(
            "SELECT CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()"
            " AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0"
            " ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END"
        )
    ).scalar_one()
    if seconds is None or seconds > max_lag.total_seconds():
        behind = "does not say how far it is behind" if seconds is None else f"is {float(seconds):.0f} s behind"
        raise Permanent(
            f"The database is a standby that {behind} its primary; {max_lag.total_seconds():.0f} s are accepted (the "
            "age threshold). Connect to the primary, or wait until the standby has caught up."
        )


def _connect(where: Address) -> Any:
    """A pg8000 connection.

    Raises:
        DatabaseUnavailable: it cannot be reached, or it refuses us; never shows the password.
        Permanent: it is a pooler that does not take our limits.
    """
    try:
        sock = _dial(where)
        try:
            connection = pg8000.dbapi.connect(
                user=where.user,
                password=where.password,
                database=where.name,
                sock=sock,
                ssl_context=False,  # `_dial` has done it
                application_name="lamplighter",
                startup_params={
                    "statement_timeout": str(_milliseconds(STATEMENT_TIMEOUT)),
                    "lock_timeout": str(_milliseconds(LOCK_TIMEOUT)),
                    "TimeZone": "UTC",
                },
            )
        except BaseException:
            sock.close()
            raise
    except (OSError, pg8000.dbapi.Error) as error:
        sentence = f"The database at {where} cannot be reached: {reason(error)}"
        if _UNSUPPORTED in sentence:
            raise Permanent(
                f"{sentence}. Add statement_timeout and lock_timeout to the pooler's ignore_startup_parameters, or "
                "connect to the server itself."
            ) from None
        raise DatabaseUnavailable(sentence) from None
    sock.settimeout(None)  # from here on the server bounds statements, and keepalive finds a dead peer
    return connection


def _dial(where: Address) -> socket.socket:
    """An open socket to the server, TLS done and verified where it is asked for, that gives up connecting in time.

    pg8000 would dial by itself, but leaves Nagle's algorithm on (a large parameter then waits for the server's delayed
    acknowledgement: 2.30 s became 0.40 s) and keeps one timeout for connecting and for the longest statement.
    """
    seconds = CONNECT_TIMEOUT.total_seconds()
    if where.host.startswith("/"):
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.settimeout(seconds)
        try:
            local.connect(f"{where.host}/.s.PGSQL.{where.port}")
        except OSError:
            local.close()
            raise
        return local
    sock = socket.create_connection((where.host, where.port), seconds)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # not on every system that developers use
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return _secure(sock, where) if where.tls else sock
    except BaseException:
        sock.close()
        raise


def _secure(sock: socket.socket, where: Address) -> socket.socket:
    context = ssl.create_default_context(cafile=os.environ.get("DATABASE_CA_FILE") or None)
    sock.sendall(_SSL_REQUEST)
    if sock.recv(1) != b"S":
        raise ConnectionError("the server does not offer TLS")
    return context.wrap_socket(sock, server_hostname=where.host)


def reason(error: BaseException) -> str:
    """What the server says of an error of pg8000's, in its own sentence."""
    cause: BaseException | None = error
    while cause:  # pg8000's close, after a refusal, may fail over it: the first error is the reason
        error = cause if isinstance(cause, pg8000.dbapi.Error) else error
        cause = cause.__context__
    facts = error.args[0] if error.args else None
    return str(facts["M"] if isinstance(facts, dict) and "M" in facts else error)


_SAID: Final = frozenset("SVCMHstcn")
"""Fields of an error that hold no values of rows: not its detail, context and internal query (PostgreSQL, "Error and
Notice Message Fields")."""


def _without_values(context: Any) -> None:
    """Takes out of an error what holds values of rows, before anything logs, stores or sends it."""
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    facts = error.args[0] if error.args else None
    if not isinstance(facts, dict):
        return
    error.args = ({name: fact for name, fact in facts.items() if name in _SAID},)
    if wrapped is not None:
        wrapped.args = (f"({type(error).__module__}.{type(error).__qualname__}) {reason(error)}",)
    if facts.get("C") == _NOT_ALLOWED and "row-level security" in str(facts.get("M")):
        raise Permanent(
            f"The database hides rows from this user: {facts['M']}. Let the user bypass row security (ALTER ROLE ... "
            "BYPASSRLS)."
        ) from None


_NOT_ALLOWED: Final = "42501"
"""SQLSTATE insufficient_privilege."""


def _name_the_loss(context: Any) -> None:
    """Turns the many faces of a lost server into one error that says try again."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return  # somebody ends the process
    facts = error.args[0] if error.args else None
    state = str(facts.get("C", "")) if isinstance(facts, dict) else ""
    if state == _READ_ONLY:
        context.is_disconnect = True
    elif context.is_disconnect or state.startswith((*_GONE, _NO_ROOM)):
        context.is_disconnect = True
        if not context.is_pre_ping:
            what = "lacks a resource" if state.startswith(_NO_ROOM) else "went away"
            raise DatabaseUnavailable(f"The database {what}: {reason(error)}") from error


def _milliseconds(duration: timedelta) -> int:
    return int(duration / timedelta(milliseconds=1))
