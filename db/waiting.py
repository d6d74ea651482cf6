"""What waits in the ledger: shards that no worker has taken yet, and the bases of their jobs."""

from dataclasses import dataclass

import sqlalchemy as sa

from db.clock import now
from db.session import Ledger, reading
from db.shards import ACTIVE
from db.tables import BASE, ShardState, jobs, shards


@dataclass(frozen=True)
class Outbox:
    """Shards on their way to the queue and from it."""

    seconds: float
    """How long ago the message was sent that has waited longest for a worker; 0 where none waits."""
    is_unsent: bool
    """No message is under way although there are shards to do: none can be sent, or nobody serves them."""


def outbox(ledger: Ledger) -> Outbox:
    """How far the queue is behind the ledger."""
    oldest = sa.select(sa.func.min(shards.c.published_at)).where(shards.c.state == ShardState.PUBLISHED)
    is_open = sa.exists().where(
        shards.c.state == ShardState.OPEN, shards.c.job_id == jobs.c.id, jobs.c.status.in_(ACTIVE)
    )
    with reading(ledger) as connection:
        row = connection.execute(sa.select(oldest.scalar_subquery(), now(), is_open)).one()
    sent_at, read_at, has_open = row
    seconds = max(0.0, (read_at - sent_at).total_seconds()) if sent_at is not None else 0.0
    return Outbox(seconds, bool(has_open) and sent_at is None)


def jobs_by_base(ledger: Ledger) -> dict[str, int]:
    """How many jobs of each base have shards that no worker has taken."""
    waiting = (ShardState.OPEN, ShardState.PUBLISHED)
    has_waiting = sa.exists().where(shards.c.job_id == jobs.c.id, shards.c.state.in_(waiting))
    query = sa.select(BASE, sa.func.count()).where(jobs.c.status.in_(ACTIVE), has_waiting).group_by(BASE)
    with reading(ledger) as connection:
        return {base: count for base, count in connection.execute(query).tuples() if base is not None}
