"""Jobs that are filled with results, without an engine."""

import random
from dataclasses import replace

import sqlalchemy as sa

from db import jobs, shards, tables
from db.session import reading
from db.shards import NewCompletion, RowOutcome

WORDS = ["The", "cat", "sat", "on", "mats", "and", "looked", "at", "moons", "while", "rain", "fell", "roofs"]


def submit(ledger, rows, *, arms=("helpful", "harmless"), samples=2, shard_rows=16, **more):
    """Store a job; a row may be a prompt or a whole row."""
    rows = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    new = [jobs.NewRow(None if row.get("id") is None else str(row["id"]), row) for row in rows]
    arms = [{"name": arm, "ref": f"models/{arm}", "weight": 1.0} for arm in arms]
    spec = {"base": "models/base", "arms": arms, "samples": samples}
    job = jobs.NewJob(spec=spec, samples=samples, shard_rows=shard_rows, **more)
    return jobs.submit(ledger, job, new)


def shard_ids(ledger, job):
    """The shards of a job that are left to do, in order."""
    table = tables.shards
    left = sa.select(table.c.id).where(table.c.job_id == job.id, table.c.state == tables.ShardState.OPEN)
    with reading(ledger) as connection:
        return list(connection.execute(left.order_by(table.c.first_row)).scalars())


def fill(ledger, job, failing=(), shards_at_most=None, seed=0):
    """Give every row of the shards that are left an outcome; rows whose index is in `failing` fail."""
    for shard_id in shard_ids(ledger, job)[:shards_at_most]:
        lease = shards.claim(ledger, shard_id, "worker", 600)
        rows = shards.pending_rows(ledger, lease)
        shards.write(ledger, [outcome(lease, job, row, row.index in failing, seed) for row in rows])
        assert shards.complete(ledger, [lease])


def outcome(lease, job, row, fails, seed=0):
    """What a worker would store for a row."""
    if fails:
        return RowOutcome(lease, row.request_id, [], ("prompt_too_long", "the prompt has 9 tokens, the context 8"))
    made = [_completion(random.Random(f"{seed} {row.index} {s}"), s, job.arms, row) for s in range(job.samples)]
    if job.kind == "score":  # without a base
        made = [replace(completion, logprobs=None, base_logprobs=None) for completion in made]
    return RowOutcome(lease, row.request_id, made, None)


def _completion(chance, sample, arms, row):
    count = chance.randrange(4, 12)
    tokens = [chance.randrange(len(WORDS)) for _ in range(count)]
    base = [-chance.random() * 4 for _ in tokens]
    weights = row.row.get("weights") or {}
    rewards = {arm: [b + chance.gauss(0.2 * weights.get(arm, 1.0), 1.0) for b in base] for arm in arms}
    return NewCompletion(
        sample=sample,
        text=" ".join(WORDS[token] for token in tokens),
        finish_reason=chance.choice(["stop", "length"]),
        tokens=tokens,
        logprobs=[b + 0.1 for b in base],
        base_logprobs=base,
        token_rewards=rewards,
        prompt_tokens=5,
    )
