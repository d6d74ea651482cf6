"""What becomes of a shard whose lease ran out: its worker died, hangs, or was cut off.

The culprit may be one of its rows. So the shard comes back in halves, until a row that lost its worker stands alone;
such a row then runs while its worker runs nothing else (`db.shards.begin_alone`), and fails with `worker_died` when it
has lost MOST_LONE_ATTEMPTS workers that way. Rows that were merely beside it are never blamed.
"""

import sqlalchemy as sa

from db.clock import now
from db.jobs import fail_pending_rows, finish_if_done
from db.session import Ledger, reading, writing
from db.shards import ACTIVE, end, lock_job_of, pending_indices, rows_of
from db.tables import ShardState, completions, requests, shards

SHARDS_AT_ONCE = 1000
MOST_LONE_ATTEMPTS = 3
"""More than one, since a worker may be killed for reasons of its own just then."""
WORKER_DIED = "worker_died"


def rescue(ledger: Ledger) -> int:
    """Take back the shards whose lease ran out, and return how many."""
    expired = sa.select(shards.c.id).where(shards.c.state == ShardState.LEASED, shards.c.lease_expires_at < now())
    with reading(ledger) as connection:
        found = connection.execute(expired.order_by(shards.c.id).limit(SHARDS_AT_ONCE)).scalars().all()
    return sum(_rescue_one(ledger, expired, shard_id) for shard_id in found)


def _rescue_one(ledger: Ledger, expired: sa.Select[tuple[int]], shard_id: int) -> bool:
    with writing(ledger) as connection:
        job = lock_job_of(connection, shard_id)
        still = expired.where(shards.c.id == shard_id).with_for_update()
        if job is None or connection.execute(still).first() is None:
            return False
        if job.status not in ACTIVE:
            end(connection, shard_id, ShardState.CANCELLED)
        else:
            _reopen(connection, shard_id)
        finish_if_done(connection, job)
        return True


def _reopen(connection: sa.Connection, shard_id: int) -> None:
    pending = pending_indices(connection, shard_id)
    shard = connection.execute(sa.select(shards).where(shards.c.id == shard_id)).one()
    attempts = shard.attempts + 1
    if not pending:
        end(connection, shard_id, ShardState.DONE)
    elif len(pending) > 1:
        end(connection, shard_id, ShardState.OPEN, attempts=attempts)
        _split(connection, shard, pending[len(pending) // 2], attempts)
    elif shard.lone_attempts < MOST_LONE_ATTEMPTS:
        end(connection, shard_id, ShardState.OPEN, attempts=attempts)
    else:
        message = f"{shard.lone_attempts} workers died or fell silent while they ran this row and nothing else"
        fail_pending_rows(connection, rows_of(shard_id), WORKER_DIED, message)
        end(connection, shard_id, ShardState.DONE, attempts=attempts)
        _recount(connection, shard_id)


def _split(connection: sa.Connection, shard: sa.Row[tuple[object, ...]], middle: int, attempts: int) -> None:
    """Move the rows from `middle` on into a shard of their own."""
    values = {
        "job_id": shard.job_id,
        "first_row": middle,
        "row_count": shard.first_row + shard.row_count - middle,
        "state": ShardState.OPEN,
        "attempts": attempts,
    }
    new_id = connection.execute(sa.insert(shards).values(values).returning(shards.c.id)).scalar_one()
    shorter = sa.update(shards).where(shards.c.id == shard.id)
    connection.execute(shorter.values(row_count=middle - shard.first_row))
    for shard_id in (shard.id, new_id):
        _recount(connection, shard_id)


def _recount(connection: sa.Connection, shard_id: int) -> None:
    """Count a shard's outcomes anew."""
    failed = sa.func.count().filter(completions.c.error_code.is_not(None))
    rows = sa.func.count(sa.distinct(completions.c.request_id))
    counted = (
        sa.select(rows - failed, failed, sa.func.coalesce(sa.func.sum(completions.c.completion_tokens), 0))
        .join(requests, requests.c.id == completions.c.request_id)
        .where(rows_of(shard_id))
    )
    completed_rows, failed_rows, tokens = connection.execute(counted).one()
    values = {"completed_rows": completed_rows, "failed_rows": failed_rows, "generated_tokens": tokens}
    connection.execute(sa.update(shards).where(shards.c.id == shard_id).values(values))
