"""Storing a new job: its row, its requests and its shards in one transaction."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from db.clock import now
from db.errors import DatasetError
from db.identifiers import new_job_id
from db.session import Ledger, writing
from db.tables import JobStatus, ShardState, jobs, requests, shards

BATCH_ROWS = 1000


@dataclass(frozen=True)
class NewJob:
    """A job to store."""

    spec: dict[str, Any]
    samples: int
    kind: str = "generate"
    name: str | None = None
    priority: int = 5
    """0 to 9; 9 runs first."""
    shard_rows: int = 32
    """Rows in one shard, the unit that workers claim."""


@dataclass(frozen=True)
class NewRow:
    """A row of a dataset to store."""

    custom_id: str | None
    """The row's own id, as text."""
    row: dict[str, Any]
    """The whole row."""


def store(ledger: Ledger, job: NewJob, rows: Iterable[NewRow], on_rows: Callable[[int], None] | None) -> str:
    """Store a job as `db.jobs.submit` says, and return its id."""
    job_id = new_job_id()
    with writing(ledger) as connection:
        connection.execute(sa.insert(jobs).values(_job_values(job, job_id)))
        total = 0
        for batch in _batches(rows):
            _store_requests(connection, job_id, total, batch)
            total += len(batch)
            if on_rows is not None:
                on_rows(total)
        if not total:
            raise DatasetError("the dataset has no rows")
        _store_shards(connection, job_id, total, job.shard_rows)
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(total_rows=total))
    return job_id


def _job_values(job: NewJob, job_id: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "kind": job.kind,
        "name": job.name,
        "status": JobStatus.QUEUED,
        "priority": job.priority,
        "spec": job.spec,
        "samples": job.samples,
        "total_rows": 0,
        "created_at": now(),
    }


def _batches(rows: Iterable[NewRow]) -> Iterator[list[NewRow]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def _store_requests(connection: sa.Connection, job_id: str, first: int, batch: list[NewRow]) -> None:
    if connection.dialect.name == "postgresql":
        _copy_requests(connection, job_id, first, batch)
        return
    values = [
        {"job_id": job_id, "row_index": index, "custom_id": row.custom_id, "row": row.row}
        for index, row in enumerate(batch, first)
    ]
    connection.execute(sa.insert(requests), values)


def _copy_requests(connection: sa.Connection, job_id: str, first: int, batch: list[NewRow]) -> None:
    """COPY is several times as fast as INSERT."""
    cursor = connection.connection.cursor()
    with cursor.copy("COPY requests (job_id, row_index, custom_id, row) FROM STDIN") as copy:
        for index, row in enumerate(batch, first):
            copy.write_row((job_id, index, row.custom_id, json.dumps(row.row)))


def _store_shards(connection: sa.Connection, job_id: str, total: int, shard_rows: int) -> None:
    values = [
        {
            "job_id": job_id,
            "first_row": first,
            "row_count": min(shard_rows, total - first),
            "state": ShardState.OPEN,
        }
        for first in range(0, total, shard_rows)
    ]
    connection.execute(sa.insert(shards), values)
