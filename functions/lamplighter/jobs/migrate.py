"""Brings the database's schema up to date, at a deploy or by hand; safe to run twice, and at once.

Not a ledger job: it is what has to work before jobs can be recorded in Postgres.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger

from lamplighter.jobs import custom_resource
from lamplighter.kernel.events import json_object

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

logger = Logger()

_SCRIPTS: Final = Path(__file__).parents[1] / "kernel" / "migrations"
_LOCK: Final = 7_263_001
"""Advisory lock that migrations of this schema take; any number, but always the same."""


def handler(event: object, context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Applies what is missing: `{"revision": "0001", "applied": ["0001"]}`.

    As the custom resource of the template it tells CloudFormation how it went: a migration that fails fails the deploy,
    with its sentence. (AWS CloudFormation, "Custom resource request objects" and "... response objects".)

    Raises:
        DatabaseUnavailable: by hand, the database cannot be reached.
        Permanent: by hand, none is configured; or the event has another shape.
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
    """Applies what is missing, all or nothing, in the connection's transaction; whoever comes second waits."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from sqlalchemy import text

    from lamplighter.kernel.database import bound_statements

    bound_statements(connection, statement=timedelta(minutes=10), lock=timedelta(minutes=10))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    applied: list[str] = []
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = lambda step, **_: applied.append(step.up_revision_id)
    command.upgrade(config, "head")
    return {"revision": ScriptDirectory.from_config(config).get_current_head(), "applied": applied}


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.set_main_option("path_separator", "os")
    return config
