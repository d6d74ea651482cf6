"""What a job had before it was retried, which its rates leave out; tokens per second."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JOB_PROGRESS = """
CREATE VIEW job_progress AS
SELECT
    job_id, name, status, total_rows, completed_rows, failed_rows, pending_rows, open_shards, leased_shards, workers,
    generated_tokens, created_at, started_at, finished_at, seconds,
    CASE WHEN seconds > 0 THEN new_rows / seconds END AS rows_per_second,
    CASE WHEN seconds > 0 AND finished_at IS NULL AND new_rows > 0
        THEN pending_rows * seconds / new_rows END AS eta_seconds{more}
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
        coalesce(sum(shards.completed_rows + shards.failed_rows), 0){kept_rows} AS new_rows,
        coalesce(sum(shards.generated_tokens), 0){kept_tokens} AS new_tokens,
        jobs.created_at,
        jobs.started_at,
        jobs.finished_at,
        {seconds} AS seconds
    FROM jobs LEFT JOIN shards ON shards.job_id = jobs.id
    GROUP BY jobs.id
) AS counts
"""

AFTER = {
    "more": ",\n    CASE WHEN seconds > 0 THEN new_tokens / seconds END AS tokens_per_second",
    "kept_rows": " - jobs.kept_rows",
    "kept_tokens": " - jobs.kept_tokens",
}
SECONDS = {
    "postgresql": "CAST(extract(epoch FROM coalesce(jobs.finished_at, clock_timestamp()) - jobs.started_at) "
    "AS double precision)",
    "sqlite": "(julianday(coalesce(jobs.finished_at, strftime('%Y-%m-%d %H:%M:%f', 'now'))) "
    "- julianday(jobs.started_at)) * 86400.0",
}
KEPT = ("kept_rows", "kept_tokens")


def upgrade() -> None:
    """Add the columns, and make the view again."""
    op.execute("DROP VIEW job_progress")
    for name in KEPT:
        op.add_column("jobs", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    _make_view(AFTER)


def downgrade() -> None:
    """Remove them, and make the view as it was."""
    op.execute("DROP VIEW job_progress")
    for name in KEPT:
        op.drop_column("jobs", name)
    _make_view(dict.fromkeys(AFTER, ""))


def _make_view(words: dict[str, str]) -> None:
    op.execute(JOB_PROGRESS.format(seconds=SECONDS[op.get_bind().dialect.name], **words))
