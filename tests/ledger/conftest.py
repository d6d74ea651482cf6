"""Jobs in an empty ledger."""

import pytest
import sqlalchemy as sa

from db import jobs, publishing, shards, tables
from db.clock import from_now
from db.session import writing
from db.shards import NewCompletion, RowOutcome


@pytest.fixture
def submit(ledger):
    """Store a job of so many rows."""

    def submit(rows=6, shard_rows=2, samples=1, priority=5, columns=None):
        new = [jobs.NewRow(f"id{i}", {"id": f"id{i}", "prompt": f"prompt {i}", **(columns or {})}) for i in range(rows)]
        spec = {"base": "b", "arms": [{"name": "arm", "ref": "r", "weight": 1.0}]}
        job = jobs.NewJob(spec=spec, samples=samples, shard_rows=shard_rows, priority=priority)
        return jobs.submit(ledger, job, new)

    return submit


@pytest.fixture
def publish(ledger):
    """Publish what is due, and return the shards' ids."""
    return lambda window=100, after=60.0: [
        ticket.shard_id for ticket in publishing.due(ledger, window=window, republish_after_seconds=after)
    ]


@pytest.fixture
def finish(ledger):
    """Write an outcome for each pending row of a lease, or for some; rows whose index is in `failing` fail."""

    def finish(lease, failing=(), samples=1, tokens=(5, 6), only=None):
        rows = shards.pending_rows(ledger, lease) if only is None else only
        outcomes = [outcome(lease, row, row.index in failing, samples, tokens) for row in rows]
        return shards.write(ledger, outcomes)

    return finish


def outcome(lease, row, fails, samples, tokens):
    if fails:
        return RowOutcome(lease, row.request_id, [], ("prompt_too_long", "too long"))
    logprobs = [-0.25] * len(tokens)
    completions = [
        NewCompletion(sample, f"text {row.index}", "stop", list(tokens), logprobs, logprobs, {"arm": logprobs}, 3)
        for sample in range(samples)
    ]
    return RowOutcome(lease, row.request_id, completions, None)


@pytest.fixture
def run_all(ledger, publish, finish):
    """Run all shards that are due, as one worker would."""

    def run_all(failing=(), samples=1):
        for shard_id in publish():
            lease = shards.claim(ledger, shard_id, "worker", 60)
            finish(lease, failing, samples)
            assert shards.complete(ledger, [lease])

    return run_all


@pytest.fixture
def expire(ledger):
    """Let a lease run out, without waiting for it."""

    def expire(shard_id):
        with writing(ledger) as connection:
            gone = sa.update(tables.shards).where(tables.shards.c.id == shard_id)
            connection.execute(gone.values(lease_expires_at=from_now(-1)))

    return expire
