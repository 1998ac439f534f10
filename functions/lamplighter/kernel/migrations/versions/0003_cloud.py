"""What the scans of cloud accounts find (C7, C14), what they need to remember (C5), and instances' metrics (C15)."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("check_id", sa.Text, nullable=False),
        sa.Column("resource_id", sa.Text, nullable=False),
        sa.Column("resource_type", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("monthly_usd", sa.Double),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("since", MOMENT),
        sa.Column("evidence", JSONB, nullable=False, server_default="{}"),
        sa.Column("exemption", JSONB),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("first_seen_at", MOMENT, nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=False),
        sa.Column("resolved_at", MOMENT),
        sa.Column("reopened_at", MOMENT),
        sa.Column("times_reopened", sa.Integer, nullable=False, server_default="0"),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.CheckConstraint("status IN ('open', 'resolved')", name="ck_findings_status"),
        sa.UniqueConstraint("account_id", "region", "check_id", "resource_id", name="uq_findings"),
    )
    op.create_index("ix_findings_status", "findings", ["status", "check_id"])
    op.create_table(
        "judged_checks",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("region", sa.Text, primary_key=True),
        sa.Column("check_id", sa.Text, primary_key=True),
        sa.Column("judged_at", MOMENT, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
    )
    op.create_table(
        "unjudged",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("region", sa.Text, primary_key=True),
        sa.Column("check_id", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("resources", JSONB, nullable=False),
        sa.Column("read_at", MOMENT, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
    )
    op.create_index("ix_unjudged_job_id", "unjudged", ["job_id"])
    op.create_table(
        "unattached_volumes",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("region", sa.Text, primary_key=True),
        sa.Column("volume_id", sa.Text, primary_key=True),
        sa.Column("first_seen_at", MOMENT, nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "cloud_reports",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("monthly_usd", sa.Double, nullable=False),
        sa.Column("totals", JSONB, nullable=False),
        sa.Column("documents", JSONB, nullable=False),
    )
    op.create_index("ix_cloud_reports_created_at", "cloud_reports", ["job_type", "created_at"])
    for column in (
        "instance_type text",
        "state text",
        "status text",
        "cpu_percent double precision",
        "memory_percent double precision",
        "measured_at timestamptz",
    ):
        # An owner's application may already have made the table, and columns of it.
        op.execute(f"ALTER TABLE instances ADD COLUMN IF NOT EXISTS {column}")
