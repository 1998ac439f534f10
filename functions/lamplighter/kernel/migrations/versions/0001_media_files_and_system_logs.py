"""The media files' references (A1) and the jobs' history (K9)."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "media_files",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("storage_key", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        if_not_exists=True,  # an owner's application may already have made it
    )
    op.create_index("ix_media_files_storage_key", "media_files", ["storage_key"], if_not_exists=True)
    op.create_table(
        "system_logs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("details", JSONB, nullable=False, server_default="{}"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("ix_system_logs_job_id", "system_logs", ["job_id"])
    op.create_index("ix_system_logs_created_at", "system_logs", ["created_at"])
