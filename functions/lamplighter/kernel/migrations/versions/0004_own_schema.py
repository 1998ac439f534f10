"""Lamplighter's own tables, in a schema of their own (REQUIREMENTS S4).

Versions 0001 to 0003 made them in the application's schema, and also made the application's tables where it had none.
This one moves the tables that only those versions can have made, with their rows. The application may have had
`instances` before: that table moves only if it is exactly as those versions made it. All else stays as it is.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from lamplighter.kernel.errors import Permanent

revision = "0004"
down_revision = None

SCHEMA = "lamplighter"
MOMENT = sa.DateTime(timezone=True)

MADE_BY = {
    "0001": ("system_logs",),
    "0002": ("job_history",),
    "0003": ("unattached_volumes", "judged_checks", "findings", "unjudged", "cloud_reports"),
}
"""Tables that a version made and could not have found, in the order in which jobs lock them."""


def upgrade() -> None:
    former, version = _former()
    made = [table for made_by, tables in MADE_BY.items() if version >= made_by for table in tables]
    there = sa.inspect(op.get_bind()).get_table_names(former) if former else []
    ours = [table for table in made if table in there]  # the owner may have removed one
    if former != SCHEMA:
        for table in ours:
            _move(table, former)
    elif sa.inspect(op.get_bind()).has_table("instances", SCHEMA):
        ours.append("instances")
    for table, (elements, indexes) in _tables().items():
        if table not in ours:
            op.create_table(table, *elements, schema=SCHEMA)
            for name, columns in indexes.items():
                op.create_index(name, table, columns, schema=SCHEMA)
    if former not in (None, SCHEMA) and _shape("instances", former) == _shape("instances", SCHEMA):
        op.drop_table("instances", schema=SCHEMA)
        _move("instances", former)
    if former:
        op.drop_table("lamplighter_schema", schema=former)


def _former() -> tuple[str | None, str]:
    """The schema that a former version worked in, and which version; None and an empty text if none did.

    Raises:
        Permanent: it is one that the search path does not have: its tables would seem lost.
    """
    where = sa.text(
        "SELECT nspname, quote_ident(nspname) AS shown, current_user AS user,"
        " pg_class.oid = to_regclass('lamplighter_schema') AS found FROM pg_class"
        " JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relname = 'lamplighter_schema' AND relkind = 'r'"
        " ORDER BY found DESC NULLS LAST, nspname LIMIT 1"
    )
    if not (row := op.get_bind().execute(where).one_or_none()):
        return None, ""
    former = row.nspname
    if not row.found:
        raise Permanent(
            f"Tables of a former version are in the schema {row.shown}, which is not in the search path of the user "
            f"{row.user}. Migrate with that search path; or DROP TABLE {row.shown}.lamplighter_schema to leave them."
        )
    versions = sa.table("lamplighter_schema", sa.column("version_num"), schema=former)
    return former, op.get_bind().execute(sa.select(versions.c.version_num)).scalar_one_or_none() or ""


def _move(table: str, former: str | None) -> None:
    quoted = op.get_bind().dialect.identifier_preparer.quote
    op.get_bind().exec_driver_sql(f"ALTER TABLE {quoted(former or '')}.{table} SET SCHEMA {SCHEMA}")


def _shape(table: str, schema: str | None) -> Any:
    """All that may have been done to a table but its rows; None if there is no such table."""
    return op.get_bind().execute(sa.text(_SHAPE), {"table": table, "schema": schema}).scalar_one_or_none()


_SHAPE = """
    SELECT jsonb_build_array(
        relkind, relpersistence, relrowsecurity,
        (SELECT jsonb_agg(jsonb_build_array(attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                attgenerated, pg_get_expr(adbin, adrelid)) ORDER BY attname)
            FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
            WHERE attrelid = it.oid AND attnum > 0 AND NOT attisdropped),
        (SELECT jsonb_agg(jsonb_build_array(index.relname, indisunique, indisvalid,
                substring(pg_get_indexdef(indexrelid) FROM ' USING .*')) ORDER BY index.relname)
            FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid WHERE indrelid = it.oid),
        (SELECT jsonb_agg(jsonb_build_array(conname, pg_get_constraintdef(pg_constraint.oid)) ORDER BY conname)
            FROM pg_constraint WHERE it.oid IN (conrelid, confrelid) AND contype <> 'n'),
        (SELECT jsonb_agg(tgname ORDER BY tgname) FROM pg_trigger WHERE tgrelid = it.oid),
        (SELECT jsonb_agg(rulename ORDER BY rulename) FROM pg_rewrite WHERE ev_class = it.oid),
        (SELECT count(*) FROM pg_inherits WHERE it.oid IN (inhrelid, inhparent))
    )
    FROM pg_class AS it JOIN pg_namespace ON pg_namespace.oid = it.relnamespace
    WHERE (nspname, it.relname) = (:schema, :table)
"""


def _tables() -> dict[str, tuple[list[Any], dict[str, list[str]]]]:
    """Columns and constraints of each table, and its indexes."""
    return {
        "system_logs": (
            [
                sa.Column("id", sa.Uuid, primary_key=True),
                sa.Column("job_id", sa.Text, nullable=False),
                sa.Column("job_type", sa.Text, nullable=False),
                sa.Column("level", sa.Text, nullable=False),
                sa.Column("message", sa.Text, nullable=False),
                sa.Column("details", JSONB, nullable=False, server_default="{}"),
                sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
            ],
            {"ix_system_logs_job_id": ["job_id"], "ix_system_logs_created_at": ["created_at"]},
        ),
        "job_history": (
            [
                sa.Column("job_id", sa.Text, primary_key=True),
                sa.Column("job_type", sa.Text, nullable=False),
                sa.Column("status", sa.Text, nullable=False),
                sa.Column("created_at", MOMENT, nullable=False),
                sa.Column("finished_at", MOMENT, nullable=False),
                sa.Column("copied_at", MOMENT, nullable=False),
                sa.Column("job", JSONB, nullable=False),
            ],
            {"ix_job_history_job_type": ["job_type", "finished_at"], "ix_job_history_copied_at": ["copied_at"]},
        ),
        "instances": (
            [
                sa.Column("id", sa.Text, primary_key=True),
                sa.Column("account_id", sa.Text, nullable=False),
                sa.Column("region", sa.Text, nullable=False),
                sa.Column("needs_review", sa.Boolean, nullable=False, server_default=sa.false()),
                sa.Column("updated_at", MOMENT, nullable=False, server_default=sa.func.now()),
                sa.Column("instance_type", sa.Text),
                sa.Column("state", sa.Text),
                sa.Column("status", sa.Text),
                sa.Column("cpu_percent", sa.Double),
                sa.Column("memory_percent", sa.Double),
                sa.Column("measured_at", MOMENT),
            ],
            {"ix_instances_account_id": ["account_id"]},
        ),
        "findings": (
            [
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
            ],
            {"ix_findings_status": ["status", "check_id"]},
        ),
        "judged_checks": (
            [
                sa.Column("account_id", sa.Text, primary_key=True),
                sa.Column("region", sa.Text, primary_key=True),
                sa.Column("check_id", sa.Text, primary_key=True),
                sa.Column("judged_at", MOMENT, nullable=False),
                sa.Column("job_id", sa.Text, nullable=False),
            ],
            {},
        ),
        "unjudged": (
            [
                sa.Column("account_id", sa.Text, primary_key=True),
                sa.Column("region", sa.Text, primary_key=True),
                sa.Column("check_id", sa.Text, primary_key=True),
                sa.Column("reason", sa.Text, primary_key=True),
                sa.Column("resources", JSONB, nullable=False),
                sa.Column("read_at", MOMENT, nullable=False),
                sa.Column("job_id", sa.Text, nullable=False),
            ],
            {"ix_unjudged_job_id": ["job_id"]},
        ),
        "unattached_volumes": (
            [
                sa.Column("account_id", sa.Text, primary_key=True),
                sa.Column("region", sa.Text, primary_key=True),
                sa.Column("volume_id", sa.Text, primary_key=True),
                sa.Column("first_seen_at", MOMENT, nullable=False),
                sa.Column("last_seen_at", MOMENT, nullable=False, server_default=sa.func.now()),
            ],
            {},
        ),
        "cloud_reports": (
            [
                sa.Column("job_id", sa.Text, primary_key=True),
                sa.Column("job_type", sa.Text, nullable=False),
                sa.Column("created_at", MOMENT, nullable=False),
                sa.Column("monthly_usd", sa.Double, nullable=False),
                sa.Column("totals", JSONB, nullable=False),
                sa.Column("documents", JSONB, nullable=False),
            ],
            {"ix_cloud_reports_created_at": ["job_type", "created_at"]},
        ),
    }
