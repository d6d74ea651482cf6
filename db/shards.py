"""The lease protocol: which worker may write the outcomes of which rows.

A shard is a run of rows of one job. Its states:

    open ──due──► published ──claim──► leased ──complete──► done
      ▲              │ (a message got lost)  │ release, or its lease ran out
      └──────────────┴───────────────────────┘             (cancelled, where its job is)

Invariants:
1. A claim counts `lease_token` up. Who writes shows the token, which is checked under a lock in the transaction of the
   write: a worker that lost its lease writes nothing, however late it comes.
2. A completion is unique by (request, sample), so that a transaction repeated after a lost answer changes nothing.
3. A shard is done only when each of its rows has an outcome: all samples, written together, or one error.
4. Whoever may end a job locks the job's row before its shards.
5. All times are of the database's clock.

A message carries a shard's id and no right: lost, doubled or late, it changes nothing but the time of a claim.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.clock import from_now, now
from db.jobs import Job, fail_pending_rows, finish_if_done, lock
from db.outcomes import NewCompletion, RowOutcome, insert_outcomes
from db.session import Ledger, reading, writing
from db.tables import JobStatus, ShardState, completions, jobs, requests, shards

__all__ = ["Heartbeat", "Lease", "NewCompletion", "RequestRow", "RowOutcome", "Ticket", "Written"]

ACTIVE = (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
JOBS_AT_ONCE = 100
TICKETS_AT_ONCE = 1000


@dataclass(frozen=True)
class Ticket:
    """A shard whose id is to be sent to the queue."""

    shard_id: int
    job_id: str
    priority: int
    """0 to 9; 9 runs first."""


@dataclass(frozen=True)
class Lease:
    """The right to write the outcomes of a shard's rows, until it runs out."""

    shard_id: int
    job_id: str
    token: int
    owner: str
    attempt: int
    """How many workers lost this shard before."""


@dataclass(frozen=True)
class Heartbeat:
    """What a heartbeat learned, as shard ids."""

    lost: set[int]
    """Their leases are gone."""
    cancelled: set[int]
    """Their jobs are being cancelled; the leases hold until released."""


@dataclass(frozen=True)
class RequestRow:
    """A row to generate."""

    request_id: int
    index: int
    """Position in the dataset, from 0."""
    row: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What a group commit did."""

    rows: int
    """Rows that now have their outcome."""
    duplicates: int
    """Rows that had one already; it stays."""
    lost: set[int]
    """Shards whose lease is gone; nothing was written for them."""


def due(ledger: Ledger, *, window: int, republish_after_seconds: float) -> list[Ticket]:
    """Mark shards as published and return them, for the queue.

    At most `window` shards of a job are published or leased at once. Jobs take turns; those of higher priority first.

    Args:
        ledger: the database.
        window: shards of one job.
        republish_after_seconds: a shard published so long ago, and claimed by nobody, is published again.
    """
    with writing(ledger) as connection:
        published = connection.execute(_active_jobs_with_open_shards()).all()
        tickets = _republish(connection, republish_after_seconds)
        turns: list[tuple[int, int, Ticket]] = []
        for job_id, priority in published:
            if lock(connection, job_id) is None:
                continue
            for turn, shard_id in enumerate(_publish(connection, job_id, window)):
                turns.append((-priority, turn, Ticket(shard_id, job_id, priority)))
    return tickets + [ticket for *_, ticket in sorted(turns, key=lambda entry: entry[:2])]


def _active_jobs_with_open_shards() -> sa.Select[Any]:
    has_open = sa.exists().where(shards.c.job_id == jobs.c.id, shards.c.state == ShardState.OPEN)
    return (
        sa.select(jobs.c.id, jobs.c.priority)
        .where(jobs.c.status.in_(ACTIVE), has_open)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(JOBS_AT_ONCE)
    )


def _republish(connection: sa.Connection, after_seconds: float) -> list[Ticket]:
    stale = (
        sa.select(shards.c.id)
        .where(shards.c.state == ShardState.PUBLISHED, shards.c.published_at < from_now(-after_seconds))
        .order_by(shards.c.id)
        .limit(TICKETS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    priority = sa.select(jobs.c.priority).where(jobs.c.id == shards.c.job_id).scalar_subquery()
    again = (
        sa.update(shards)
        .where(shards.c.id.in_(stale))
        .values(published_at=now())
        .returning(shards.c.id, shards.c.job_id, priority)
    )
    return [Ticket(*row) for row in sorted(connection.execute(again).tuples())]


def _publish(connection: sa.Connection, job_id: str, window: int) -> list[int]:
    of_job = shards.c.job_id == job_id
    busy = sa.select(sa.func.count()).where(of_job, shards.c.state.in_((ShardState.PUBLISHED, ShardState.LEASED)))
    room = window - int(connection.execute(busy).scalar_one())
    if room <= 0:
        return []
    first = sa.select(shards.c.id).where(of_job, shards.c.state == ShardState.OPEN)
    chosen = first.order_by(shards.c.first_row).limit(room)
    published = sa.update(shards).where(shards.c.id.in_(chosen)).returning(shards.c.id)
    values = {"state": ShardState.PUBLISHED, "published_at": now()}
    return sorted(connection.execute(published.values(values)).scalars())


def unpublish(ledger: Ledger, shard_ids: Collection[int]) -> None:
    """Take back the mark of `due` from shards whose message could not be sent."""
    with writing(ledger) as connection:
        connection.execute(
            sa.update(shards)
            .where(shards.c.id.in_(shard_ids), shards.c.state == ShardState.PUBLISHED)
            .values(state=ShardState.OPEN, published_at=None)
        )


def claim(ledger: Ledger, shard_id: int, owner: str, lease_seconds: float) -> Lease | None:
    """Lease a shard; None when it is not to be had: somebody has it, it is done, or its job has ended."""
    with writing(ledger) as connection:
        job = _lock_job_of(connection, shard_id)
        if job is None or job.status not in ACTIVE:
            return None
        claimed = (
            sa.update(shards)
            .where(shards.c.id == shard_id, shards.c.state.in_((ShardState.OPEN, ShardState.PUBLISHED)))
            .values(
                state=ShardState.LEASED,
                lease_token=shards.c.lease_token + 1,
                lease_owner=owner,
                lease_expires_at=from_now(lease_seconds),
            )
            .returning(shards.c.lease_token, shards.c.attempts)
        )
        row = connection.execute(claimed).one_or_none()
        if row is None:
            return None
        if job.status is JobStatus.QUEUED:
            started = {"status": JobStatus.IN_PROGRESS, "started_at": now()}
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(started))
        return Lease(shard_id, job.id, row.lease_token, owner, row.attempts)


def _lock_job_of(connection: sa.Connection, shard_id: int) -> Job | None:
    job_id = connection.execute(sa.select(shards.c.job_id).where(shards.c.id == shard_id)).scalar_one_or_none()
    return None if job_id is None else lock(connection, job_id)


def _lock_held(connection: sa.Connection, leases: Collection[Lease]) -> set[int]:
    """Lock the shards of the leases that still hold, always in the same order, and return their ids."""
    held = (
        sa.select(shards.c.id, shards.c.lease_token)
        .where(shards.c.id.in_({lease.shard_id for lease in leases}), shards.c.state == ShardState.LEASED)
        .order_by(shards.c.id)
        .with_for_update()
    )
    tokens = dict(connection.execute(held).tuples().all())
    return {lease.shard_id for lease in leases if tokens.get(lease.shard_id) == lease.token}


def heartbeat(ledger: Ledger, leases: Collection[Lease], lease_seconds: float) -> Heartbeat:
    """Extend leases, and learn which are lost and whose jobs are being cancelled."""
    with writing(ledger) as connection:
        held = _lock_held(connection, leases)
        connection.execute(
            sa.update(shards).where(shards.c.id.in_(held)).values(lease_expires_at=from_now(lease_seconds))
        )
        cancelling = (
            sa.select(shards.c.id)
            .join(jobs, jobs.c.id == shards.c.job_id)
            .where(shards.c.id.in_(held), jobs.c.status == JobStatus.CANCELLING)
        )
        cancelled = set(connection.execute(cancelling).scalars())
    return Heartbeat({lease.shard_id for lease in leases} - held, cancelled)


def pending_rows(ledger: Ledger, lease: Lease) -> list[RequestRow]:
    """The rows of a leased shard that have no outcome yet, in order."""
    has_outcome = sa.exists().where(completions.c.request_id == requests.c.id)
    query = (
        sa.select(requests.c.id, requests.c.row_index, requests.c.row)
        .where(_rows_of(lease.shard_id), ~has_outcome)
        .order_by(requests.c.row_index)
    )
    with reading(ledger) as connection:
        return [RequestRow(*row) for row in connection.execute(query).tuples()]


def _rows_of(shard_id: int) -> sa.ColumnElement[bool]:
    """Requests that belong to a shard."""
    first = sa.select(shards.c.first_row).where(shards.c.id == shard_id).scalar_subquery()
    count = sa.select(shards.c.row_count).where(shards.c.id == shard_id).scalar_subquery()
    job_id = sa.select(shards.c.job_id).where(shards.c.id == shard_id).scalar_subquery()
    return sa.and_(requests.c.job_id == job_id, requests.c.row_index >= first, requests.c.row_index < first + count)


def write(ledger: Ledger, outcomes: Sequence[RowOutcome]) -> Written:
    """Store the outcomes of rows of any number of leases in one transaction; safe to repeat."""
    leases = {outcome.lease for outcome in outcomes}
    with writing(ledger) as connection:
        held = _lock_held(connection, leases)
        kept = [outcome for outcome in outcomes if outcome.lease.shard_id in held]
        new_requests = insert_outcomes(connection, kept)
        new = [outcome for outcome in kept if outcome.request_id in new_requests]
        for shard_id in sorted({outcome.lease.shard_id for outcome in new}):
            _count(connection, shard_id, [outcome for outcome in new if outcome.lease.shard_id == shard_id])
    return Written(len(new), len(kept) - len(new), {lease.shard_id for lease in leases} - held)


def _count(connection: sa.Connection, shard_id: int, outcomes: Sequence[RowOutcome]) -> None:
    failed = sum(outcome.error is not None for outcome in outcomes)
    tokens = sum(len(completion.tokens) for outcome in outcomes for completion in outcome.completions)
    connection.execute(
        sa.update(shards)
        .where(shards.c.id == shard_id)
        .values(
            completed_rows=shards.c.completed_rows + len(outcomes) - failed,
            failed_rows=shards.c.failed_rows + failed,
            generated_tokens=shards.c.generated_tokens + tokens,
        )
    )


def complete(ledger: Ledger, lease: Lease) -> bool:
    """End a shard whose rows all have an outcome, and its job with the last one; safe to repeat.

    Returns:
        False: the lease was lost, or rows are pending; nothing was changed.
    """
    with writing(ledger) as connection:
        job = lock(connection, lease.job_id)
        if job is None or not _lock_held(connection, [lease]) or _has_pending_rows(connection, lease.shard_id):
            return False
        _end(connection, lease.shard_id, ShardState.DONE)
        finish_if_done(connection, job)
        return True


def _has_pending_rows(connection: sa.Connection, shard_id: int) -> bool:
    has_outcome = sa.exists().where(completions.c.request_id == requests.c.id)
    query = sa.select(sa.literal(1)).select_from(requests).where(_rows_of(shard_id), ~has_outcome).limit(1)
    return connection.execute(query).first() is not None


def _end(connection: sa.Connection, shard_id: int, state: ShardState, **changes: Any) -> None:
    """Take a shard out of its lease."""
    values = {"state": state, "lease_owner": None, "lease_expires_at": None, "published_at": None, **changes}
    connection.execute(sa.update(shards).where(shards.c.id == shard_id).values(values))


def release(ledger: Ledger, lease: Lease) -> None:
    """Hand a shard back at once, not counted as an attempt; nothing happens when the lease was lost."""
    with writing(ledger) as connection:
        job = lock(connection, lease.job_id)
        if job is not None and _lock_held(connection, [lease]):
            is_active = job.status in ACTIVE
            _end(connection, lease.shard_id, ShardState.OPEN if is_active else ShardState.CANCELLED)
            finish_if_done(connection, job)


def rescue(ledger: Ledger, *, max_attempts: int = 5) -> int:
    """Take back the shards whose lease ran out, and return how many.

    After `max_attempts` workers lost a shard, its rows without an outcome fail with `worker_died`.
    """
    expired = sa.select(shards.c.id).where(shards.c.state == ShardState.LEASED, shards.c.lease_expires_at < now())
    with reading(ledger) as connection:
        found = connection.execute(expired.order_by(shards.c.id).limit(TICKETS_AT_ONCE)).scalars().all()
    return sum(_rescue_one(ledger, expired, shard_id, max_attempts) for shard_id in found)


def _rescue_one(ledger: Ledger, expired: sa.Select[tuple[int]], shard_id: int, max_attempts: int) -> bool:
    with writing(ledger) as connection:
        job = _lock_job_of(connection, shard_id)
        still = expired.where(shards.c.id == shard_id).with_for_update()
        if job is None or connection.execute(still).first() is None:
            return False
        attempts = connection.execute(sa.select(shards.c.attempts).where(shards.c.id == shard_id)).scalar_one() + 1
        if job.status not in ACTIVE:
            _end(connection, shard_id, ShardState.CANCELLED)
        elif attempts < max_attempts:
            _end(connection, shard_id, ShardState.OPEN, attempts=attempts)
        else:
            message = f"{attempts} workers died or fell silent with the rows around this one"
            failed = fail_pending_rows(connection, _rows_of(shard_id), "worker_died", message)
            more_failed = shards.c.failed_rows + failed
            _end(connection, shard_id, ShardState.DONE, attempts=attempts, failed_rows=more_failed)
        finish_if_done(connection, job)
        return True
