"""Which rows of a job can be read: spans of row indexes, so that every reader goes through them in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple

import sqlalchemy as sa

from db import jobs
from db.session import Ledger, reading
from db.tables import completions, requests
from db.tables import jobs as jobs_table

SPAN_COMPLETIONS = 500


class Span(NamedTuple):
    """Rows of the dataset from `first` to before `last`."""

    first: int
    last: int


def all_spans(ledger: Ledger, job_id: str) -> Iterator[Span]:
    """The whole of a job; nothing where there is no such job."""
    query = sa.select(jobs_table.c.total_rows, jobs_table.c.samples).where(jobs_table.c.id == job_id)
    with reading(ledger) as connection:
        found = connection.execute(query).one_or_none()
    total, rows = (0, 1) if found is None else (found.total_rows, rows_at_once(found.samples))
    for first in range(0, total, rows):
        yield Span(first, min(first + rows, total))


def rows_at_once(samples: int) -> int:
    """Rows whose completions are in memory at once."""
    return max(SPAN_COMPLETIONS // samples, 1)


def ready_span(ledger: Ledger, job_id: str, first: int, limit: int | None = None) -> tuple[Span, bool]:
    """The rows from `first` on that have their outcome, up to the first one that has not, and whether that is all.

    Of a job that has ended, rows without an outcome (it was cancelled) do not hold up those behind them.

    Raises:
        JobNotFoundError: there is no such job.
    """
    job = jobs.progress(ledger, job_id).job  # before the rows: when it has ended, all of its rows are there
    last = min(first + (limit or rows_at_once(job.samples)), job.total_rows)
    if not job.status.is_final:
        has_outcome = sa.exists().where(completions.c.request_id == requests.c.id)
        pending = sa.select(sa.func.min(requests.c.row_index)).where(
            requests.c.job_id == job_id, requests.c.row_index >= first, requests.c.row_index < last, ~has_outcome
        )
        with reading(ledger) as connection:
            found = connection.execute(pending).scalar_one()
        last = last if found is None else found
    return Span(first, last), job.status.is_final and last == job.total_rows
