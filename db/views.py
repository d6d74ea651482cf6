"""The views, as far as the code here reads them; migrations make them."""

import sqlalchemy as sa

job_progress = sa.table(
    "job_progress",
    sa.column("job_id", sa.Text),
    sa.column("completed_rows", sa.BigInteger),
    sa.column("failed_rows", sa.BigInteger),
    sa.column("pending_rows", sa.BigInteger),
    sa.column("open_shards", sa.BigInteger),
    sa.column("leased_shards", sa.BigInteger),
    sa.column("workers", sa.BigInteger),
    sa.column("generated_tokens", sa.BigInteger),
    sa.column("seconds", sa.Double),
    sa.column("rows_per_second", sa.Double),
    sa.column("eta_seconds", sa.Double),
    sa.column("tokens_per_second", sa.Double),
)

results = sa.table("results", sa.column("request_id", sa.BigInteger), sa.column("kl", sa.Double))
