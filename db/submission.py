"""Storing a new job: its row, its requests and its shards in one transaction."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from db.clock import now
from db.errors import DatasetError, KeyReusedError
from db.identifiers import new_job_id
from db.session import Ledger, reading, writing
from db.storable import storable_json
from db.tables import JobStatus, ShardState, jobs, requests, shards

BATCH_ROWS = 1000
BATCH_CHARACTERS = 8 << 20
"""Rows in memory at once are bounded by their texts too: a row may have a megabyte."""
BACKSLASH = "\\"
COPY_ESCAPES = str.maketrans({BACKSLASH: 2 * BACKSLASH, "\t": "\\t", "\n": "\\n", "\r": "\\r"})
COUNTS = ("attempts", "lone_attempts", "lease_token", "completed_rows", "failed_rows", "generated_tokens")


@dataclass(frozen=True)
class NewJob:
    """A job to store."""

    spec: dict[str, Any]
    """What is asked for."""
    samples: int
    kind: str = "generate"
    name: str | None = None
    priority: int = 5
    """0 to 9; 9 runs first."""
    shard_rows: int = 32
    """Rows in one shard, the unit that workers claim."""
    key: str | None = None
    """Makes a repeated submission find the first one's job."""
    sweep: dict[str, list[float]] | None = None
    """The weights that its rows go through, by ARM."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Fields of the spec that its submission decided; the same submission on another day is still the same."""


@dataclass(frozen=True)
class NewRow:
    """A row of a dataset to store."""

    custom_id: str | None
    """The row's own id, as text."""
    row: dict[str, Any]
    """The whole row."""
    place: str = "a row"
    """Where it came from, for messages: "rows.jsonl, line 7". It is not stored."""


def store(
    ledger: Ledger, job: NewJob, rows: Iterable[NewRow], on_rows: Callable[[int], None] | None, is_slow: bool
) -> str:
    """Store a job as `db.jobs.submit` says, and return its id."""
    if is_slow and ledger.dialect.name == "sqlite":
        with _put_aside(rows, Path(str(ledger.url.database)).parent, on_rows) as kept:
            return store(ledger, job, kept, None, is_slow=False)
    job_id = new_job_id()
    fingerprint = Fingerprint(job)
    read = fingerprint.watch(rows) if job.key is not None else rows
    with writing(ledger) as connection:
        if _reserve(connection, job, job_id):
            store_requests = _copy_requests if connection.dialect.name == "postgresql" else _insert_requests
            total = 0
            for total in store_requests(connection, job_id, read):
                if on_rows is not None:
                    on_rows(total)
            if not total:
                raise DatasetError("the dataset has no rows")
            _store_shards(connection, job_id, total, job.shard_rows)
            values = {"total_rows": total, "fingerprint": fingerprint.digest if job.key is not None else None}
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values))
            return job_id
    for _ in read:
        pass
    return _job_of_key(ledger, job, fingerprint.digest)


@contextmanager
def _put_aside(
    rows: Iterable[NewRow], folder: Path, on_rows: Callable[[int], None] | None
) -> Iterator[Iterator[NewRow]]:
    """The rows, read to their end and kept in a file without a name."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as file:
        try:
            for count, row in enumerate(rows, 1):
                file.write(json.dumps([row.custom_id, row.row]) + "\n")
                if on_rows is not None and count % BATCH_ROWS == 0:
                    on_rows(count)
            file.seek(0)
        except OSError as error:
            raise DatasetError(f"the rows cannot be kept in {folder} until all are read ({error.strerror})") from None
        yield (NewRow(*json.loads(line)) for line in file)


class Fingerprint:
    """A hash of what a job asks for, and of its rows as they pass."""

    def __init__(self, job: NewJob) -> None:
        self._hash = hashlib.sha256()
        self._add([job.kind, job.spec, job.samples, job.sweep])

    def watch(self, rows: Iterable[NewRow]) -> Iterator[NewRow]:
        """The rows, each added to the hash."""
        for row in rows:
            self._add([row.custom_id, row.row])
            yield row

    def _add(self, value: Any) -> None:
        self._hash.update(json.dumps(value, sort_keys=True).encode() + b"\n")

    @property
    def digest(self) -> str:
        """Of all that was added so far."""
        return self._hash.hexdigest()


def _reserve(connection: sa.Connection, job: NewJob, job_id: str) -> bool:
    """Insert the job, unless its key is taken; waits for a submission with the same key that is on its way."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(jobs).values(_job_values(job, job_id)).on_conflict_do_nothing(index_elements=["key"])
    return connection.execute(insert.returning(jobs.c.id)).first() is not None


def _job_of_key(ledger: Ledger, job: NewJob, digest: str) -> str:
    query = sa.select(jobs.c.id, jobs.c.fingerprint).where(jobs.c.key == job.key)
    with reading(ledger) as connection:
        found = connection.execute(query).one_or_none()
    if found is None or found.fingerprint != digest:
        owner = "a job that was just deleted" if found is None else f"{found.id}, which has another spec or other rows"
        raise KeyReusedError(f"the key {job.key!r} belongs to {owner}; submit this with another --key")
    return str(found.id)


def _job_values(job: NewJob, job_id: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "kind": job.kind,
        "name": job.name,
        "key": job.key,
        "sweep": job.sweep,
        "status": JobStatus.QUEUED,
        "priority": job.priority,
        "spec": job.spec | job.fixed,
        "samples": job.samples,
        "total_rows": 0,
        "created_at": now(),
    }


def _batches(rows: Iterable[NewRow]) -> Iterator[tuple[int, list[NewRow]]]:
    """Rows in batches, with the position of the first."""
    batch: list[NewRow] = []
    first = characters = 0
    for row in rows:
        batch.append(row)
        characters += _characters(row.row)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield first, batch
            first, batch, characters = first + len(batch), [], 0
    if batch:
        yield first, batch


def _characters(value: Any) -> int:
    """Of the texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _insert_requests(connection: sa.Connection, job_id: str, rows: Iterable[NewRow]) -> Iterator[int]:
    """Store rows; gives the number stored so far."""
    for first, batch in _batches(rows):
        values = [
            {"job_id": job_id, "row_index": index, "custom_id": row.custom_id, "row": row.row}
            for index, row in enumerate(batch, first)
        ]
        connection.execute(sa.insert(requests), values)
        yield first + len(batch)


def _copy_requests(connection: sa.Connection, job_id: str, rows: Iterable[NewRow]) -> Iterator[int]:
    """The same by one COPY: the server stores rows while the next are read.

    Its text is made here, since psycopg's own way of writing rows takes twice as long.
    """
    cursor = connection.connection.cursor()
    with cursor.copy("COPY requests (job_id, row_index, custom_id, row) FROM STDIN") as copy:
        for first, batch in _batches(rows):
            copy.write("".join(_copy_line(job_id, index, row) for index, row in enumerate(batch, first)))
            yield first + len(batch)


def _copy_line(job_id: str, index: int, row: NewRow) -> str:
    return (
        f"{job_id}\t{index}\t{_copy_text(row.custom_id)}\t{storable_json(row.row).replace(BACKSLASH, 2 * BACKSLASH)}\n"
    )


def _copy_text(text: str | None) -> str:
    return "\\N" if text is None else text.translate(COPY_ESCAPES)


def _store_shards(connection: sa.Connection, job_id: str, total: int, shard_rows: int) -> None:
    """One shard for each row that begins one, all in SQL."""
    left = total - requests.c.row_index
    values = {
        "job_id": requests.c.job_id,
        "first_row": requests.c.row_index,
        "row_count": sa.case((left < shard_rows, left), else_=shard_rows),
        "state": sa.literal(ShardState.OPEN.value),
        **{name: sa.literal(0) for name in COUNTS},
    }
    begins = (
        sa.select(*values.values())
        .where(requests.c.job_id == job_id, requests.c.row_index % shard_rows == 0)
        .order_by(requests.c.row_index)
    )
    connection.execute(sa.insert(shards).from_select(list(values), begins, include_defaults=False))
