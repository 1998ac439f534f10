"""Brings the database's schema up to date, at a deploy or by hand; safe to run twice, and at once.

Not a ledger job: it is what has to work before jobs can be recorded in Postgres.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger

from lamplighter.jobs import custom_resource
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.events import json_object

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

logger = Logger()

_SCRIPTS: Final = Path(__file__).parents[1] / "kernel" / "migrations"
_LOCK: Final = 7_263_001
"""Advisory lock that migrations of this schema take; any number, but always the same."""
_STATEMENT: Final = timedelta(minutes=4)
"""How long a statement may take; the function ends after five, and has to say what went wrong."""
_LOCK_WAIT: Final = timedelta(minutes=2)
"""How long one waits for a lock."""


def handler(event: object, context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Applies what is missing: `{"revision": "0001", "applied": ["0001"]}`.

    As the custom resource of the template it tells CloudFormation how it went: a migration that fails fails the deploy,
    with its sentence. (AWS CloudFormation, "Custom resource request objects" and "... response objects".)

    Raises:
        DatabaseUnavailable: by hand, the database cannot be reached.
        Permanent: by hand, none is configured, or the user may not migrate it; or the event has another shape.
    """
    event = json_object(event, "nothing, or a request of CloudFormation")
    if custom_resource.is_request(event):
        return custom_resource.serve(event, physical_id="schema", work=lambda _: _apply())  # tables outlive the stack
    json_object(event, "nothing", ())
    return _apply()


def _apply() -> dict[str, Any]:
    from lamplighter.kernel.database import engine

    with engine().begin() as connection:
        done = migrate(connection)
    logger.info("migrated", extra=done)
    return done


def migrate(connection: Connection) -> dict[str, Any]:
    """Applies what is missing, all or nothing, in the connection's transaction; whoever comes second waits.

    A schema that a later version has migrated stays as it is: that version's deployment was rolled back, and an error
    would stop the rollback.

    Raises:
        Permanent: the database user has not the rights, or the schema holds tables that are not ours.
        Retryable: somebody holds one of our tables for too long.
    """
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    from lamplighter.kernel.database import VERSION_TABLE, bound_statements

    bound_statements(connection, statement=_STATEMENT, lock=_LOCK_WAIT)
    applied: list[str] = []
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = lambda step, **_: applied.append(step.up_revision_id)
    try:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        _make_schema(connection)
        context = MigrationContext.configure(connection, opts=VERSION_TABLE)
        scripts, found = ScriptDirectory.from_config(config), context.get_current_revision()
        if found and found not in {script.revision for script in scripts.walk_revisions()}:
            logger.warning("a later version has migrated the schema", extra={"revision": found})
            return {"revision": found, "applied": []}
        command.upgrade(config, "head")
    except DBAPIError as error:
        raise _named(error) from error
    return {"revision": scripts.get_current_head(), "applied": applied}


def _make_schema(connection: Connection) -> None:
    """Creates the schema if it is not there.

    Raises:
        Permanent: the user may not.
    """
    from sqlalchemy import text

    from lamplighter.kernel.database import SCHEMA

    state = connection.execute(
        text(
            "SELECT to_regnamespace(:schema) IS NOT NULL AS there, current_user AS user,"
            " current_database() AS database, has_database_privilege(current_database(), 'CREATE') AS allowed"
        ),
        {"schema": SCHEMA},
    ).one()
    if state.there:
        return
    if not state.allowed:
        raise Permanent(
            f"The database user {state.user} may not create the schema {SCHEMA} in the database {state.database}. As "
            f'an administrator of it, run `psql -v user="{state.user}" -f docs/grants.sql`; then deploy again.'
        )
    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))


def _named(error: DBAPIError) -> Exception:
    """The error in a sentence that says what to do, where it is about rights, names or locks."""
    from lamplighter.kernel.database import SCHEMA, reason

    cause = error.orig or error
    match getattr(cause, "args", None):
        case ({"C": "42501"}, *_):
            return Permanent(
                f"The database user has not the rights to migrate the schema {SCHEMA}: {reason(cause)}. Run "
                "docs/grants.sql for it as an administrator, or run the migrations as the owner of the tables "
                "(docs/adopting-a-database.md)."
            )
        case ({"C": "42P07"}, *_):
            return Permanent(
                f"The schema {SCHEMA} holds something that Lamplighter did not make: {reason(cause)}. Rename or move "
                "it, and deploy again."
            )
        case ({"C": "55P03" | "40P01"}, *_):
            return Retryable(f"The migration got no lock in time: {reason(cause)}. Nothing was changed; try again.")
    return error


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.set_main_option("path_separator", "os")
    return config
