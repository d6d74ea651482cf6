"""Which shards go into the queue next: fair to all jobs, and few at a time."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

import sqlalchemy as sa

from db.clock import from_now, now
from db.session import Ledger, writing
from db.shards import ACTIVE
from db.tables import BASE, ShardState, jobs, shards

JOBS_AT_ONCE = 100
TICKETS_AT_ONCE = 1000
MOST_PUBLISHED = 512
"""Shards of one priority in the queue, of all jobs together: bounds Redis however many jobs there are."""


@dataclass(frozen=True)
class Ticket:
    """A shard whose id is to be sent to the queue."""

    shard_id: int
    job_id: str
    priority: int
    """0 to 9; 9 runs first."""
    base: str
    """Of its job's spec."""


@dataclass(frozen=True)
class _Waiting:
    """A job with shards to publish, and room for them."""

    job_id: str
    priority: int
    base: str
    published: int
    busy: int
    """Published or leased."""


def due(
    ledger: Ledger, *, window: int, republish_after_seconds: float, bases: Collection[str] | None = None
) -> list[Ticket]:
    """Mark shards as published and return them, for the queue.

    Jobs of higher priority come first; among equals, the job with the fewest shards published or leased has the next
    turn. About `window` shards of a job wait in the queue, and MOST_PUBLISHED of a priority; two calls at the same
    moment may exceed that by a few.

    Args:
        ledger: the database.
        window: shards of one job.
        republish_after_seconds: a shard published so long ago, and claimed by nobody, is published again.
        bases: only jobs with one of these; None: with any.
    """
    with writing(ledger) as connection:
        served = sa.true() if bases is None else BASE.in_(bases)
        tickets = _republish(connection, republish_after_seconds, served)
        waiting = _waiting_jobs(connection, window, served)
        turns = _take_turns(waiting, _published_by_priority(connection), window) if waiting else []
        counts = Counter(turns)
        shard_ids = {job: iter(_publish(connection, job.job_id, count)) for job, count in counts.items()}
    for job in turns:
        if (shard_id := next(shard_ids[job], None)) is not None:
            tickets.append(Ticket(shard_id, job.job_id, job.priority, job.base))
    return tickets


def _republish(connection: sa.Connection, after_seconds: float, served: sa.ColumnElement[bool]) -> list[Ticket]:
    stale = (
        sa.select(shards.c.id, shards.c.job_id, jobs.c.priority, BASE)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(shards.c.state == ShardState.PUBLISHED, shards.c.published_at < from_now(-after_seconds), served)
        .order_by(shards.c.id)
        .limit(TICKETS_AT_ONCE)
        .with_for_update(of=shards, skip_locked=True)
    )
    tickets = [Ticket(*row) for row in connection.execute(stale).tuples()]
    _mark(connection, [ticket.shard_id for ticket in tickets])
    return tickets


def _mark(connection: sa.Connection, shard_ids: Sequence[int]) -> None:
    if shard_ids:
        values = {"state": ShardState.PUBLISHED, "published_at": now()}
        connection.execute(sa.update(shards).where(shards.c.id.in_(shard_ids)).values(values))


def _waiting_jobs(connection: sa.Connection, window: int, served: sa.ColumnElement[bool]) -> list[_Waiting]:
    """The jobs whose turn it is, in order."""
    is_published = sa.case((shards.c.state == ShardState.PUBLISHED, 1), else_=0)
    counts = (
        sa.select(shards.c.job_id, sa.func.sum(is_published).label("published"), sa.func.count().label("busy"))
        .where(shards.c.state.in_((ShardState.PUBLISHED, ShardState.LEASED)))
        .group_by(shards.c.job_id)
        .subquery()
    )
    published, busy = sa.func.coalesce(counts.c.published, 0), sa.func.coalesce(counts.c.busy, 0)
    has_open = sa.exists().where(shards.c.job_id == jobs.c.id, shards.c.state == ShardState.OPEN)
    query = (
        sa.select(jobs.c.id, jobs.c.priority, BASE, published, busy)
        .outerjoin(counts, counts.c.job_id == jobs.c.id)
        .where(jobs.c.status.in_(ACTIVE), has_open, published < window, served)
        .order_by(jobs.c.priority.desc(), busy, jobs.c.id)
        .limit(JOBS_AT_ONCE)
    )
    return [_Waiting(*row) for row in connection.execute(query).tuples()]


def _published_by_priority(connection: sa.Connection) -> dict[int, int]:
    query = (
        sa.select(jobs.c.priority, sa.func.count())
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(shards.c.state == ShardState.PUBLISHED)
        .group_by(jobs.c.priority)
    )
    return dict(connection.execute(query).tuples().all())


def _take_turns(waiting: Sequence[_Waiting], published: dict[int, int], window: int) -> list[_Waiting]:
    """Whose shard is published first, second and so on; a job stands here once for each shard it may publish."""
    turns: list[_Waiting] = []
    for priority in sorted({job.priority for job in waiting}, reverse=True):
        room = MOST_PUBLISHED - published.get(priority, 0)
        peers = [job for job in waiting if job.priority == priority]
        heap = [(job.busy, place, window - job.published) for place, job in enumerate(peers)]
        heapify(heap)
        while heap and room > 0:
            busy, place, left = heap[0]
            turns.append(peers[place])
            room -= 1
            if left > 1:
                heapreplace(heap, (busy + 1, place, left - 1))
            else:
                heappop(heap)
    return turns


def _publish(connection: sa.Connection, job_id: str, count: int) -> list[int]:
    # Locked first: as a subquery of the UPDATE, PostgreSQL may run it again and so exceed its LIMIT.
    first = (
        sa.select(shards.c.id)
        .where(shards.c.job_id == job_id, shards.c.state == ShardState.OPEN)
        .order_by(shards.c.first_row)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    shard_ids = list(connection.execute(first).scalars())
    _mark(connection, shard_ids)
    return shard_ids


def unpublish(ledger: Ledger, shard_ids: Collection[int]) -> None:
    """Take back the mark of `due` from shards whose message could not be sent."""
    with writing(ledger) as connection:
        connection.execute(
            sa.update(shards)
            .where(shards.c.id.in_(shard_ids), shards.c.state == ShardState.PUBLISHED)
            .values(state=ShardState.OPEN, published_at=None)
        )
