"""Keys and sweeps of jobs; the KL and the weights of a result."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

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
    requests."row"{more}
FROM requests JOIN completions ON completions.request_id = requests.id
"""

MORE = """,
    (SELECT sum({value}) FROM {each}(completions.logprobs){alias})
        - (SELECT sum({value}) FROM {each}(completions.base_logprobs){alias}) AS kl,
    {weights} AS weights"""

DIALECTS = {
    "postgresql": {
        "object_agg": "json_object_agg",
        "value": "CAST(logprob AS double precision)",
        "each": "unnest",
        "alias": " AS logprob",
        "weights": "requests.\"row\" -> 'weights'",
    },
    "sqlite": {
        "object_agg": "json_group_object",
        "value": "value",
        "each": "json_each",
        "alias": "",
        "weights": "json_extract(requests.\"row\", '$.weights')",
    },
}


def upgrade() -> None:
    """Add the columns, and make the view again."""
    for column in (sa.Column("key", sa.Text), sa.Column("fingerprint", sa.Text), sa.Column("sweep", sa.JSON)):
        op.add_column("jobs", column)
    op.create_index("uq_jobs_key", "jobs", ["key"], unique=True)
    _make_results(MORE)


def downgrade() -> None:
    """Remove them, and make the view as it was."""
    _make_results("")
    op.drop_index("uq_jobs_key", "jobs")
    for name in ("sweep", "fingerprint", "key"):
        op.drop_column("jobs", name)


def _make_results(more: str) -> None:
    words = DIALECTS[op.get_bind().dialect.name]
    op.execute("DROP VIEW results")
    op.execute(RESULTS.format(**words, more=more.format(**words)))
