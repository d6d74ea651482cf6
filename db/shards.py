"""The lease protocol: which worker may write the outcomes of which rows.

A shard is a run of rows of one job. Its states:

    open ──due──► published ──claim──► leased ──complete──► done
      ▲              │ (a message got lost)  │ release, or its lease ran out
      └──────────────┴───────────────────────┘             (cancelled, where its job is)

`publishing.py` has `due`, `rescue.py` what happens when a lease ran out. Invariants:
1. A claim counts `lease_token` up. Who writes shows the token, which is checked under a lock in the transaction of the
   write: a worker that lost its lease writes nothing, however late it comes.
2. A completion is unique by (request, sample), so that a transaction repeated after a lost answer changes nothing.
3. A shard is done only when each of its rows has an outcome: all samples, written together, or one error.
4. Whoever may end a job locks the job's row before its shards.
5. All times are of the database's clock.

A message carries a shard's id and no right: lost, doubled or late, it changes nothing but the time of a claim.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.clock import from_now, now
from db.faults import Point, reach
from db.jobs import Job, finish_if_done, lock
from db.outcomes import NewCompletion, RowOutcome, insert_outcomes
from db.session import Ledger, reading, writing
from db.tables import JobStatus, ShardState, completions, jobs, requests, shards

__all__ = ["Heartbeat", "Lease", "NewCompletion", "RequestRow", "RowOutcome", "Written"]

ACTIVE = (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
HAS_OUTCOME = (
    sa.select(sa.literal_column("1"))
    .where(completions.c.request_id == requests.c.id)
    .limit(1)
    .correlate(requests)
    .scalar_subquery()
    .is_not(None)
)
"""No EXISTS: PostgreSQL makes a join of it, which reads all completions to look at the rows of one shard."""


@dataclass(frozen=True)
class Lease:
    """The right to write the outcomes of a shard's rows, until it runs out."""

    shard_id: int
    job_id: str
    token: int
    owner: str
    attempt: int
    """How many workers lost this shard, or the one it was split from, before."""
    is_suspect: bool = False
    """The one row left to do lost a worker before: it must run alone in its worker, see `begin_alone`."""
    lone_attempts: int = 0
    """How many workers lost that row while it ran alone."""


@dataclass(frozen=True)
class Heartbeat:
    """What a heartbeat learned."""

    lost: set[Lease]
    """Gone."""
    cancelled: set[Lease]
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
    lost: set[Lease]
    """Gone; nothing was written for them."""
    requests: set[int]
    """The requests of `rows`."""


def claim(ledger: Ledger, shard_id: int, owner: str, lease_seconds: float) -> Lease | None:
    """Lease a shard; None when it is not to be had: somebody has it, it is done, or its job has ended."""
    with writing(ledger) as connection:
        job = lock_job_of(connection, shard_id, shared=True)
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
            .returning(shards.c.lease_token, shards.c.attempts, shards.c.lone_attempts)
        )
        row = connection.execute(claimed).one_or_none()
        if row is None:
            return None
        if job.status is JobStatus.QUEUED:
            started = {"status": JobStatus.IN_PROGRESS, "started_at": now()}
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(started))
        is_suspect = row.attempts > 0 and len(pending_indices(connection, shard_id, limit=2)) == 1
        return Lease(shard_id, job.id, row.lease_token, owner, row.attempts, is_suspect, row.lone_attempts)


def lock_job_of(connection: sa.Connection, shard_id: int, *, shared: bool = False) -> Job | None:
    """Lock the job of a shard; None when either is gone. Shared, claims of one job do not wait for each other."""
    found = connection.execute(
        sa.select(shards.c.job_id, jobs.c.status)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(shards.c.id == shard_id)
    ).one_or_none()
    if found is None:
        return None
    # The first claim writes the job's row: upgrading a shared lock could deadlock with another first claim.
    return lock(connection, found.job_id, shared=shared and found.status != JobStatus.QUEUED)


def begin_alone(ledger: Ledger, lease: Lease) -> bool:
    """Count that a suspect row begins while its worker runs nothing else: a death now is its own doing.

    Returns:
        False: the lease was lost.
    """
    with writing(ledger) as connection:
        held = _lock_held(connection, [lease])
        connection.execute(sa.update(shards).where(_shards_of(held)).values(lone_attempts=lease.lone_attempts + 1))
    return bool(held)


def _lock_held(connection: sa.Connection, leases: Collection[Lease]) -> set[Lease]:
    """Lock the shards of the leases, always in the same order, and return the leases that still hold.

    A worker may come with two leases of one shard: one that it lost, and the one that it has by now.
    """
    held = (
        sa.select(shards.c.id, shards.c.lease_token)
        .where(_shards_of(leases), shards.c.state == ShardState.LEASED)
        .order_by(shards.c.id)
        .with_for_update()
    )
    tokens = dict(connection.execute(held).tuples().all())
    return {lease for lease in leases if tokens.get(lease.shard_id) == lease.token}


def _shards_of(leases: Collection[Lease]) -> sa.ColumnElement[bool]:
    return shards.c.id.in_({lease.shard_id for lease in leases})


def heartbeat(ledger: Ledger, leases: Collection[Lease], lease_seconds: float) -> Heartbeat:
    """Extend leases, and learn which are lost and whose jobs are being cancelled."""
    with writing(ledger) as connection:
        held = _lock_held(connection, leases)
        connection.execute(sa.update(shards).where(_shards_of(held)).values(lease_expires_at=from_now(lease_seconds)))
        cancelling = (
            sa.select(shards.c.id)
            .join(jobs, jobs.c.id == shards.c.job_id)
            .where(_shards_of(held), jobs.c.status == JobStatus.CANCELLING)
        )
        cancelled = set(connection.execute(cancelling).scalars())
    return Heartbeat(set(leases) - held, {lease for lease in held if lease.shard_id in cancelled})


def pending_rows(ledger: Ledger, lease: Lease) -> list[RequestRow]:
    """The rows of a leased shard that have no outcome yet, in order."""
    query = (
        sa.select(requests.c.id, requests.c.row_index, requests.c.row)
        .where(rows_of(lease.shard_id), ~HAS_OUTCOME)
        .order_by(requests.c.row_index)
    )
    with reading(ledger) as connection:
        return [RequestRow(*row) for row in connection.execute(query).tuples()]


def pending_indices(connection: sa.Connection, shard_id: int, limit: int | None = None) -> list[int]:
    """Where in the dataset the rows of a shard stand that have no outcome yet, in order."""
    query = sa.select(requests.c.row_index).where(rows_of(shard_id), ~HAS_OUTCOME).order_by(requests.c.row_index)
    return list(connection.execute(query.limit(limit)).scalars())


def rows_of(shard_id: int) -> sa.ColumnElement[bool]:
    """The requests that belong to a shard."""
    first = sa.select(shards.c.first_row).where(shards.c.id == shard_id).scalar_subquery()
    count = sa.select(shards.c.row_count).where(shards.c.id == shard_id).scalar_subquery()
    job_id = sa.select(shards.c.job_id).where(shards.c.id == shard_id).scalar_subquery()
    return sa.and_(requests.c.job_id == job_id, requests.c.row_index >= first, requests.c.row_index < first + count)


def write(ledger: Ledger, outcomes: Sequence[RowOutcome]) -> Written:
    """Store the outcomes of rows of any number of leases in one transaction; safe to repeat."""
    leases = {outcome.lease for outcome in outcomes}
    with writing(ledger) as connection:
        held = _lock_held(connection, leases)
        kept = [outcome for outcome in outcomes if outcome.lease in held]
        new_requests = insert_outcomes(connection, kept)
        new = [outcome for outcome in kept if outcome.request_id in new_requests]
        _count(connection, new)
        reach(Point.INSIDE_COMMIT)
    return Written(len(new), len(kept) - len(new), leases - held, new_requests)


def _count(connection: sa.Connection, outcomes: Sequence[RowOutcome]) -> None:
    rows, failed, tokens = Counter[int](), Counter[int](), Counter[int]()
    for outcome in outcomes:
        shard_id = outcome.lease.shard_id
        rows[shard_id] += 1
        failed[shard_id] += outcome.error is not None
        tokens[shard_id] += sum(len(completion.tokens) for completion in outcome.completions)
    if not rows:
        return
    counted = (
        sa.update(shards)
        .where(shards.c.id == sa.bindparam("shard"))
        .values(
            completed_rows=shards.c.completed_rows + sa.bindparam("completed"),
            failed_rows=shards.c.failed_rows + sa.bindparam("failed"),
            generated_tokens=shards.c.generated_tokens + sa.bindparam("tokens"),
        )
    )
    connection.execute(
        counted,
        [
            {"shard": shard, "completed": rows[shard] - failed[shard], "failed": failed[shard], "tokens": tokens[shard]}
            for shard in rows
        ],
    )


def complete(ledger: Ledger, leases: Collection[Lease]) -> set[Lease]:
    """End the shards whose rows all have an outcome, and a job with the last of its shards; safe to repeat.

    Returns:
        those whose shards are done now. The others were lost, or rows are pending; they stay as they are.
    """
    with writing(ledger) as connection:
        found = [lock(connection, job_id) for job_id in sorted({lease.job_id for lease in leases})]
        held = _lock_held(connection, leases)
        query = sa.select(shards.c.id).where(_shards_of(held), _has_pending_rows())
        pending = set(connection.execute(query).scalars())
        done = {lease for lease in held if lease.shard_id not in pending}
        if done:
            _end(connection, _shards_of(done), ShardState.DONE)
            for job in filter(None, found):
                finish_if_done(connection, job)
    return done


def _has_pending_rows() -> sa.ColumnElement[bool]:
    of_shard = sa.and_(
        requests.c.job_id == shards.c.job_id,
        requests.c.row_index >= shards.c.first_row,
        requests.c.row_index < shards.c.first_row + shards.c.row_count,
    )
    return sa.exists().where(of_shard, ~HAS_OUTCOME)


def end(connection: sa.Connection, shard_id: int, state: ShardState, **changes: Any) -> None:
    """Take a shard out of its lease."""
    _end(connection, shards.c.id == shard_id, state, **changes)


def _end(connection: sa.Connection, which: sa.ColumnElement[bool], state: ShardState, **changes: Any) -> None:
    values = {"state": state, "lease_owner": None, "lease_expires_at": None, "published_at": None, **changes}
    connection.execute(sa.update(shards).where(which).values(values))


def release(ledger: Ledger, lease: Lease) -> None:
    """Hand a shard back at once, not counted as an attempt; nothing happens when the lease was lost."""
    with writing(ledger) as connection:
        job = lock(connection, lease.job_id)
        if job is not None and _lock_held(connection, [lease]):
            is_active = job.status in ACTIVE
            state = ShardState.OPEN if is_active else ShardState.CANCELLED
            end(connection, lease.shard_id, state, lone_attempts=0)
            finish_if_done(connection, job)
