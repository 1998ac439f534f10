"""Alembic's entry: runs the migrations on the connection that `jobs/migrate.py` (or a developer) hands over."""

from __future__ import annotations

from alembic import context

from lamplighter.kernel.database import VERSION_TABLE

options = context.config.attributes
context.configure(
    connection=options["connection"],
    target_metadata=options.get("target_metadata"),
    on_version_apply=options.get("on_version_apply"),
    version_table=VERSION_TABLE["version_table"],
    version_table_schema=VERSION_TABLE["version_table_schema"],
)
with context.begin_transaction():
    context.run_migrations()
