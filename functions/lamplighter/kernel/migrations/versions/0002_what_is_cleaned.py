"""What the cleanup cleans: downloads, plans, requests, cloud accounts, sessions, tokens, the audit log (B, C16, E1),
and the finished jobs' history (B3, D4)."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create("handled_downloads", _number(), sa.Column("timestamp", MOMENT, nullable=False), index="timestamp")
    _create(
        "analysis_plans",
        _number(),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("updated_at", MOMENT, nullable=False, server_default=sa.func.now()),
        index="status",
    )
    _create(
        "onboarding_requests",
        _number(),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("completed_at", MOMENT),
        index="completed_at",
    )
    _create("cloud_accounts", _name(), sa.Column("deleted_at", MOMENT))
    _create(
        "instances",
        _name(),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("needs_review", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("updated_at", MOMENT, nullable=False, server_default=sa.func.now()),
        index="account_id",
    )
    _create(
        "sessions",
        _name(),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("expires_at", MOMENT),
        index="expires_at",
    )
    _create(
        "tokens", _name(), sa.Column("expires_at", MOMENT), sa.Column("refresh_expires_at", MOMENT), index="expires_at"
    )
    _create(
        "audit_log",
        _number(),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text),
        sa.Column("details", JSONB, nullable=False, server_default="{}"),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        index="created_at",
    )
    op.create_table(
        "job_history",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT, nullable=False),
        sa.Column("copied_at", MOMENT, nullable=False),
        sa.Column("job", JSONB, nullable=False),
    )
    op.create_index("ix_job_history_job_type", "job_history", ["job_type", "finished_at"])
    op.create_index("ix_job_history_copied_at", "job_history", ["copied_at"])


def _number() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def _name() -> sa.Column[str]:
    return sa.Column("id", sa.Text, primary_key=True)


def _create(table: str, *columns: sa.Column[Any], index: str | None = None) -> None:
    """The table and its index, unless an owner's application has a table of that name: that one is left as it is."""
    if sa.inspect(op.get_bind()).has_table(table):
        return
    op.create_table(table, *columns)
    if index:
        op.create_index(f"ix_{table}_{index}", table, [index])
