"""Jobs, requests, shards, completions and token rewards, with the views that people poll."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
REALS: sa.types.TypeEngine[Any] = postgresql.ARRAY(sa.REAL()).with_variant(sa.JSON(), "sqlite")
INTEGERS: sa.types.TypeEngine[Any] = postgresql.ARRAY(sa.Integer()).with_variant(sa.JSON(), "sqlite")

RESULTS = """
CREATE VIEW results AS
SELECT
    requests.job_id,
    requests.row_index,
    requests.custom_id,
    completions.sample,
    completions.completion,
    completions.finish_reason,
    completions.prompt_tokens,
    completions.completion_tokens,
    (
        SELECT {object_agg}(token_rewards.arm, token_rewards.total)
        FROM token_rewards
        WHERE token_rewards.request_id = completions.request_id AND token_rewards.sample = completions.sample
    ) AS rewards,
    completions.error_code,
    completions.error_message,
    completions.created_at,
    requests.id AS request_id,
    requests."row"
FROM requests JOIN completions ON completions.request_id = requests.id
"""

JOB_PROGRESS = """
CREATE VIEW job_progress AS
SELECT
    counts.*,
    CASE WHEN seconds > 0 THEN (completed_rows + failed_rows) / seconds END AS rows_per_second,
    CASE WHEN seconds > 0 AND finished_at IS NULL AND completed_rows + failed_rows > 0
        THEN pending_rows * seconds / (completed_rows + failed_rows) END AS eta_seconds
FROM (
    SELECT
        jobs.id AS job_id,
        jobs.name,
        jobs.status,
        jobs.total_rows,
        coalesce(sum(shards.completed_rows), 0) AS completed_rows,
        coalesce(sum(shards.failed_rows), 0) AS failed_rows,
        jobs.total_rows - coalesce(sum(shards.completed_rows + shards.failed_rows), 0) AS pending_rows,
        coalesce(sum(CASE WHEN shards.state IN ('open', 'published') THEN 1 ELSE 0 END), 0) AS open_shards,
        coalesce(sum(CASE WHEN shards.state = 'leased' THEN 1 ELSE 0 END), 0) AS leased_shards,
        count(DISTINCT CASE WHEN shards.state = 'leased' THEN shards.lease_owner END) AS workers,
        coalesce(sum(shards.generated_tokens), 0) AS generated_tokens,
        jobs.created_at,
        jobs.started_at,
        jobs.finished_at,
        {seconds} AS seconds
    FROM jobs LEFT JOIN shards ON shards.job_id = jobs.id
    GROUP BY jobs.id
) AS counts
"""

DIALECTS = {
    "postgresql": {
        "object_agg": "json_object_agg",
        "seconds": "CAST(extract(epoch FROM coalesce(jobs.finished_at, clock_timestamp()) - jobs.started_at) "
        "AS double precision)",
    },
    "sqlite": {
        "object_agg": "json_group_object",
        "seconds": "(julianday(coalesce(jobs.finished_at, strftime('%Y-%m-%d %H:%M:%f', 'now'))) "
        "- julianday(jobs.started_at)) * 86400.0",
    },
}


def upgrade() -> None:
    """Make the tables and views."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("total_rows", sa.BigInteger, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
    )
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_table(
        "requests",
        sa.Column("id", ID, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.Text, _of_job(), nullable=False),
        sa.Column("row_index", sa.BigInteger, nullable=False),
        sa.Column("custom_id", sa.Text),
        sa.Column("row", sa.JSON, nullable=False),
    )
    op.create_index("uq_requests_job_id_row_index", "requests", ["job_id", "row_index"], unique=True)
    op.create_table(
        "shards",
        sa.Column("id", ID, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.Text, _of_job(), nullable=False),
        sa.Column("first_row", sa.BigInteger, nullable=False),
        sa.Column("row_count", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("published_at", TIME),
        sa.Column("lease_token", sa.BigInteger, nullable=False),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_expires_at", TIME),
        sa.Column("completed_rows", sa.Integer, nullable=False),
        sa.Column("failed_rows", sa.Integer, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_shards_job_id_state_first_row", "shards", ["job_id", "state", "first_row"])
    op.create_index("ix_shards_state_lease_expires_at", "shards", ["state", "lease_expires_at"])
    _create_outcomes()
    words = DIALECTS[op.get_bind().dialect.name]
    op.execute(RESULTS.format(**words))
    op.execute(JOB_PROGRESS.format(**words))


def _of_job() -> sa.ForeignKey:
    return sa.ForeignKey("jobs.id", ondelete="CASCADE")


def _create_outcomes() -> None:
    op.create_table(
        "completions",
        sa.Column("request_id", ID, sa.ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sample", sa.Integer, primary_key=True),
        sa.Column("completion", sa.Text),
        sa.Column("finish_reason", sa.Text),
        sa.Column("tokens", INTEGERS),
        sa.Column("logprobs", REALS),
        sa.Column("base_logprobs", REALS),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.create_table(
        "token_rewards",
        sa.Column("request_id", ID, primary_key=True),
        sa.Column("sample", sa.Integer, primary_key=True),
        sa.Column("arm", sa.Text, primary_key=True),
        sa.Column("total", sa.Double, nullable=False),
        sa.Column("token_values", REALS, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id", "sample"], ["completions.request_id", "completions.sample"], ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    """Remove them all."""
    op.execute("DROP VIEW job_progress")
    op.execute("DROP VIEW results")
    for table in ("token_rewards", "completions", "shards", "requests", "jobs"):
        op.drop_table(table)
