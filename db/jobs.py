"""Jobs: submit, read, list, cancel, retry, delete."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from db.clock import now
from db.errors import AmbiguousJobError, JobActiveError, JobNotFoundError
from db.identifiers import PREFIX, is_like_job_id
from db.session import Ledger, reading, writing
from db.submission import NewJob, NewRow, store
from db.tables import JobStatus, ShardState, completions, jobs, requests, shards
from db.views import job_progress

__all__ = ["Job", "JobProgress", "JobStatus", "NewJob", "NewRow"]


@dataclass(frozen=True)
class Job:
    """A job as it stands."""

    id: str
    kind: str
    name: str | None
    key: str | None
    """Given at its submission; the same dataset and spec with the same key are this job."""
    sweep: dict[str, list[float]] | None
    """The weights that it sweeps, by ARM: each row of the dataset is there once for every combination."""
    status: JobStatus
    priority: int
    """0 to 9; 9 runs first."""
    spec: dict[str, Any]
    samples: int
    total_rows: int
    error_code: str | None
    """Why the job itself failed, for scripts."""
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    """When the first worker began; None: none has."""
    finished_at: datetime | None

    @property
    def arms(self) -> list[str]:
        """The names of its ARMs."""
        return [arm["name"] for arm in self.spec.get("arms", ())]


@dataclass(frozen=True)
class JobProgress:
    """A job and how far it is; the view `job_progress` has the same."""

    job: Job
    completed_rows: int
    failed_rows: int
    pending_rows: int
    open_shards: int
    leased_shards: int
    workers: int
    """Workers that hold shards of it now."""
    generated_tokens: int
    seconds: float | None
    """From the start, of a job that was retried from that of the latest retry, to now or the end; None: not started."""
    rows_per_second: float | None
    eta_seconds: float | None
    tokens_per_second: float | None


def submit(
    ledger: Ledger,
    job: NewJob,
    rows: Iterable[NewRow],
    on_rows: Callable[[int], None] | None = None,
    *,
    is_slow: bool = False,
) -> Job:
    """Store a job with its rows, all or nothing, in bounded memory; a dispatcher announces it.

    Where a job has the same key already, and the same spec and rows, that job is returned and nothing is written.

    Args:
        ledger: the database.
        job: the job.
        rows: its rows, read once; an error that they raise leaves nothing written.
        on_rows: called with the number of rows read so far.
        is_slow: the rows come from a pipe or the network. On SQLite, where a transaction that stores a job keeps all
            other writers waiting, they are read into a temporary file beside the database first.

    Raises:
        DatasetError: there are no rows.
        KeyReusedError: the key belongs to a job with another spec or other rows.
        DatabaseUnreachableError: the database does not answer; the job may be there all the same.
    """
    return find(ledger, store(ledger, job, rows, on_rows, is_slow))


def find(ledger: Ledger, job_id: str) -> Job:
    """The job of this id, or whose id alone begins like this.

    Raises:
        JobNotFoundError: there is none.
        AmbiguousJobError: there are several.
    """
    with reading(ledger) as connection:
        return _find(connection, job_id)


def _find(connection: sa.Connection, job_id: str) -> Job:
    beginning = job_id if job_id.startswith(PREFIX) else PREFIX + job_id
    query = sa.select(jobs).where(jobs.c.id.startswith(beginning, autoescape=True)).order_by(jobs.c.id).limit(4)
    found = [_job(row) for row in connection.execute(query)] if is_like_job_id(job_id) else []
    if not found:
        raise JobNotFoundError(f"there is no job {job_id!r}; `genarm job list` shows what there is")
    exact = [job for job in found if job.id == beginning]
    if len(found) > 1 and not exact:
        names = ", ".join(job.id for job in found[:3])
        raise AmbiguousJobError(f"several jobs begin with {job_id!r}: {names}{', …' if found[3:] else ''}")
    return (exact or found)[0]


def _job(row: Any) -> Job:
    values = {field.name: getattr(row, field.name) for field in fields(Job)}
    return Job(**{**values, "status": JobStatus(row.status)})


def list_jobs(ledger: Ledger, limit: int = 50) -> list[JobProgress]:
    """The jobs submitted last, newest first."""
    with reading(ledger) as connection:
        newest = sa.select(jobs.c.id).order_by(jobs.c.id.desc()).limit(limit)
        return _progress(connection, jobs.c.id.in_(newest))


def progress(ledger: Ledger, job_id: str) -> JobProgress:
    """How far a job is; `job_id` is its whole id.

    Raises:
        JobNotFoundError: there is no such job.
    """
    with reading(ledger) as connection:
        found = _progress(connection, jobs.c.id == job_id)
    if not found:
        raise JobNotFoundError(f"there is no job {job_id!r}; it may have been deleted")
    return found[0]


def _progress(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[JobProgress]:
    query = (
        sa.select(jobs, *(column for column in job_progress.columns if column.name not in jobs.columns))
        .join(job_progress, job_progress.c.job_id == jobs.c.id)
        .where(which)
        .order_by(jobs.c.id.desc())
    )
    return [
        JobProgress(
            job=_job(row),
            completed_rows=int(row.completed_rows),
            failed_rows=int(row.failed_rows),
            pending_rows=int(row.pending_rows),
            open_shards=int(row.open_shards),
            leased_shards=int(row.leased_shards),
            workers=int(row.workers),
            generated_tokens=int(row.generated_tokens),
            seconds=row.seconds,
            rows_per_second=row.rows_per_second,
            eta_seconds=row.eta_seconds,
            tokens_per_second=row.tokens_per_second,
        )
        for row in connection.execute(query)
    ]


def lock(connection: sa.Connection, job_id: str, *, shared: bool = False) -> Job | None:
    """Lock a job's row until the transaction ends; None when the job is gone.

    Everything that may end a job takes this lock first: of two workers that finish the last two shards, the second
    sees what the first did. A shared lock only keeps the job as it is.
    """
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update(read=shared)).one_or_none()
    return None if row is None else _job(row)


def finish_if_done(connection: sa.Connection, job: Job) -> None:
    """Give a locked job its final status when no shard of it is left to do."""
    unfinished = (ShardState.OPEN, ShardState.PUBLISHED, ShardState.LEASED)
    left = sa.select(sa.literal(1)).where(shards.c.job_id == job.id, shards.c.state.in_(unfinished)).limit(1)
    if job.status.is_final or connection.execute(left).first():
        return
    cut_short = sa.select(sa.literal(1)).where(shards.c.job_id == job.id, shards.c.state == ShardState.CANCELLED)
    is_cancelled = connection.execute(cut_short.limit(1)).first() is not None
    status = JobStatus.CANCELLED if is_cancelled else JobStatus.COMPLETED
    connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(status=status, finished_at=now()))


def cancel(ledger: Ledger, job_id: str) -> Job:
    """Cancel a job: shards that nobody has end now, workers let go of theirs at their next heartbeat.

    Rows that are finished stay. Cancelling a job that has ended changes nothing.

    Raises:
        JobNotFoundError: there is no such job.
        AmbiguousJobError: several have ids that begin like this.
    """
    with writing(ledger) as connection:
        job = lock(connection, _find(connection, job_id).id)
        if job is not None and not job.status.is_final:
            waiting = shards.c.state.in_((ShardState.OPEN, ShardState.PUBLISHED))
            connection.execute(
                sa.update(shards).where(shards.c.job_id == job.id, waiting).values(state=ShardState.CANCELLED)
            )
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(status=JobStatus.CANCELLING))
            finish_if_done(connection, job)
        return _find(connection, job_id)


def _lock_ended(connection: sa.Connection, job_id: str) -> Job:
    job = lock(connection, _find(connection, job_id).id)
    if job is None or not job.status.is_final:
        raise JobActiveError(f"{job_id} has not ended; wait, or cancel it first: genarm job cancel {job_id}")
    return job


def retry_failed(ledger: Ledger, job_id: str) -> int:
    """Do again what failed or was cancelled, and return how many rows that is; rows that succeeded stay.

    Raises:
        JobNotFoundError, AmbiguousJobError: as `find`.
        JobActiveError: the job has not ended yet.
    """
    with writing(ledger) as connection:
        job = _lock_ended(connection, job_id)
        of_job = sa.select(requests.c.id).where(requests.c.job_id == job.id)
        connection.execute(
            sa.delete(completions).where(completions.c.error_code.is_not(None), completions.c.request_id.in_(of_job))
        )
        reopened = sa.update(shards).where(
            shards.c.job_id == job.id, sa.or_(shards.c.failed_rows > 0, shards.c.completed_rows < shards.c.row_count)
        )
        connection.execute(
            reopened.values(
                state=ShardState.OPEN, failed_rows=0, attempts=0, lone_attempts=0, published_at=None, lease_owner=None
            )
        )
        kept = sa.select(sa.func.sum(shards.c.completed_rows), sa.func.sum(shards.c.generated_tokens))
        kept_rows, kept_tokens = map(int, connection.execute(kept.where(shards.c.job_id == job.id)).one())
        if count := job.total_rows - kept_rows:
            again = {"status": JobStatus.QUEUED, "error_code": None, "error_message": None, "finished_at": None}
            begun = {"started_at": None, "kept_rows": kept_rows, "kept_tokens": kept_tokens}
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(again | begun))
        return count


def delete(ledger: Ledger, job_id: str) -> None:
    """Remove a job with all its rows and completions.

    Raises:
        JobNotFoundError, AmbiguousJobError: as `find`.
        JobActiveError: the job has not ended yet.
    """
    with writing(ledger) as connection:
        job = _lock_ended(connection, job_id)
        connection.execute(sa.delete(jobs).where(jobs.c.id == job.id))


def fail_job(ledger: Ledger, job_id: str, code: str, message: str) -> None:
    """End a job that cannot run: every row without an outcome becomes a failed row with this error.

    Workers lose their leases of it. A job that has ended already stays as it is.
    """
    with writing(ledger) as connection:
        job = lock(connection, job_id)
        if job is None or job.status.is_final:
            return
        of_job = shards.c.job_id == job_id
        # In the order in which group commits and heartbeats lock shards, against deadlocks.
        connection.execute(sa.select(shards.c.id).where(of_job).order_by(shards.c.id).with_for_update())
        connection.execute(
            sa.update(shards)
            .where(of_job, shards.c.state != ShardState.DONE)
            .values(state=ShardState.DONE, lease_token=shards.c.lease_token + 1, lease_owner=None)
        )
        fail_pending_rows(connection, requests.c.job_id == job_id, code, message)
        connection.execute(
            sa.update(shards).where(of_job).values(failed_rows=shards.c.row_count - shards.c.completed_rows)
        )
        failed = {"status": JobStatus.FAILED, "error_code": code, "error_message": message, "finished_at": now()}
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**failed))


def fail_pending_rows(connection: sa.Connection, which: sa.ColumnElement[bool], code: str, message: str) -> int:
    """Give the requests that match and have no outcome a failed one, and return how many there were."""
    has_outcome = sa.exists().where(completions.c.request_id == requests.c.id)
    pending = sa.select(requests.c.id, sa.literal(0), sa.literal(code), sa.literal(message), now()).where(
        which, ~has_outcome
    )
    columns = ["request_id", "sample", "error_code", "error_message", "created_at"]
    failing = sa.insert(completions).from_select(columns, pending)
    return connection.execute(failing, execution_options={"preserve_rowcount": True}).rowcount
