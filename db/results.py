"""Reading the results of a job: as rows, as Arrow tables, as pandas frames; whole, or as they come."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from db.datasets.columns import set_aside
from db.errors import DatasetError
from db.session import Ledger, reading
from db.spans import Span, all_spans, ready_span
from db.tables import completions, requests, token_rewards

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

OWN_COLUMNS = (
    "id", "sample", "completion", "finish_reason", "tokens", "logprobs", "base_logprobs",
    "rewards", "token_rewards", "prompt_tokens", "error",
)  # fmt: skip
"""Columns of an output row; but for `id`, one of the input with such a name comes out as `input_NAME`."""
CURSOR_ROWS = 1000


def export_rows(ledger: Ledger, job_id: str, spans: Iterable[Span] | None = None) -> Iterator[dict[str, Any]]:
    """The output rows of a job in the order of its input, those of a row by sample; in bounded memory.

    Rows without an outcome yet are left out.

    Args:
        ledger: the database.
        job_id: the whole id.
        spans: which rows of the input; all where not given.
    """
    for span in all_spans(ledger, job_id) if spans is None else spans:
        yield from _rows_of(ledger, job_id, span)


def export_groups(
    ledger: Ledger, job_id: str, spans: Iterable[Span] | None = None
) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Each row of the input that has its outcome (id, row_index, row), with its output rows, one per sample."""
    for span in all_spans(ledger, job_id) if spans is None else spans:
        yield from (group for group in groups_of(ledger, job_id, span) if group[1])


def _rows_of(ledger: Ledger, job_id: str, span: Span) -> Iterator[dict[str, Any]]:
    return (row for _, rows in groups_of(ledger, job_id, span) for row in rows)


def groups_of(ledger: Ledger, job_id: str, span: Span) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Each row of the input in a span, with its output rows; none where it has no outcome."""
    page = (
        sa.select(requests.c.id, requests.c.row_index, requests.c.row)
        .where(requests.c.job_id == job_id, requests.c.row_index >= span.first, requests.c.row_index < span.last)
        .order_by(requests.c.row_index)
    )
    with reading(ledger) as connection:
        rows = connection.execute(page).all()
        if not rows:
            return
        ids = [row.id for row in rows]
        by_request = _completions(connection, ids)
        rewards = _rewards(connection, ids)
    for row in rows:
        found = by_request.get(row.id, [])
        yield row, [output_row(row, one, rewards.get((row.id, one.sample), [])) for one in found]


def input_rows(ledger: Ledger, job_id: str, span: Span) -> list[tuple[int, dict[str, Any]]]:
    """The rows of the input in a span: (row_index, row)."""
    query = sa.select(requests.c.row_index, requests.c.row).where(
        requests.c.job_id == job_id, requests.c.row_index >= span.first, requests.c.row_index < span.last
    )
    with reading(ledger) as connection:
        return list(connection.execute(query.order_by(requests.c.row_index)).tuples())


def _completions(connection: sa.Connection, request_ids: list[int]) -> dict[int, list[Any]]:
    query = sa.select(completions).where(completions.c.request_id.between(min(request_ids), max(request_ids)))
    found: dict[int, list[Any]] = {request_id: [] for request_id in request_ids}
    for row in connection.execute(query.order_by(completions.c.request_id, completions.c.sample)):
        if row.request_id in found:
            found[row.request_id].append(row)
    return found


def _rewards(connection: sa.Connection, request_ids: list[int]) -> dict[tuple[int, int], list[Any]]:
    query = sa.select(token_rewards).where(token_rewards.c.request_id.between(min(request_ids), max(request_ids)))
    found: dict[tuple[int, int], list[Any]] = {}
    for row in connection.execute(
        query.order_by(token_rewards.c.request_id, token_rewards.c.sample, token_rewards.c.arm)
    ):
        found.setdefault((row.request_id, row.sample), []).append(row)
    return found


def output_row(request: Any, completion: Any, rewards: list[Any]) -> dict[str, Any]:
    """One output row: the system's own columns, then the columns of the input."""
    own = {"id": row_id(request.row, request.row_index), "sample": completion.sample}
    if completion.error_code is None:
        own |= {name: getattr(completion, name) for name in OWN_COLUMNS if hasattr(completion, name)}
        own["rewards"] = {reward.arm: reward.total for reward in rewards}
        own["token_rewards"] = {reward.arm: reward.token_values for reward in rewards}
        own = {name: own.get(name) for name in OWN_COLUMNS}
    else:
        own["error"] = {"code": completion.error_code, "message": completion.error_message}
    return own | passed_on(request.row)


def passed_on(row: dict[str, Any], own: Container[str] = OWN_COLUMNS) -> dict[str, Any]:
    """The columns of the input as they come out beside our `own` ones."""
    return {set_aside(name, own, row): value for name, value in row.items() if name != "id"}


def row_id(row: dict[str, Any], index: int) -> Any:
    """The row's own id, as it was given; the row's position where it has none."""
    for name in ("id", "custom_id"):
        if row.get(name) is not None:
            return row[name]
    return index


@dataclass(frozen=True)
class Failure:
    """The rows of a job that failed with one code."""

    code: str
    rows: int
    message: str
    """Of one of them."""


def failures(ledger: Ledger, job_id: str) -> list[Failure]:
    """Why rows of a job failed, the most frequent reason first.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    count = sa.func.count()
    query = (
        sa.select(completions.c.error_code, count, sa.func.min(completions.c.error_message))
        .join(requests, requests.c.id == completions.c.request_id)
        .where(requests.c.job_id == job_id, completions.c.error_code.is_not(None))
        .group_by(completions.c.error_code)
        .order_by(count.desc(), completions.c.error_code)
    )
    with reading(ledger) as connection:
        return [Failure(*row) for row in connection.execute(query)]


class Cursor:
    """Reads the results of a job as they come: each row of the input once, in its order, when it has its outcome.

        cursor = Cursor(connect("postgresql://…"), job_id)
        while not cursor.is_finished:
            frame = cursor.frame()      # what is new
            ...
            if frame.empty:
                time.sleep(5)           # nothing yet: each look asks the database

    A row without its outcome holds back those behind it. Rows that come later for a failed row (a retry) are not read
    again.
    """

    def __init__(self, ledger: Ledger, job_id: str, position: int = 0) -> None:
        """A cursor.

        Args:
            ledger: the database, from `db.session.connect`.
            job_id: the whole id.
            position: where to begin; a cursor's `position` of before goes on from there.
        """
        self._ledger = ledger
        self._job_id = job_id
        self._arrow: Any = None
        self.position = position
        self.is_finished = False
        """The job has ended, and all of its rows are read."""

    def rows(self, limit: int = CURSOR_ROWS) -> list[dict[str, Any]]:
        """The output rows of at most `limit` rows of the input.

        Raises:
            JobNotFoundError: there is no such job.
            DatabaseUnreachableError: the database does not answer; the position stays.
        """
        span, is_finished = ready_span(self._ledger, self._job_id, self.position, limit)
        rows = list(_rows_of(self._ledger, self._job_id, span))
        self.position, self.is_finished = span.last, is_finished
        return rows

    def table(self, limit: int = CURSOR_ROWS) -> "pa.Table":
        """The same as an Arrow table, whose schema is the same for every table of a job.

        Raises:
            JobNotFoundError, DatabaseUnreachableError: as `rows`.
            DatasetError: pyarrow is not installed.
        """
        from db.columnar import ArrowResults

        self._arrow = self._arrow or ArrowResults.of(self._ledger, self._job_id)
        span, is_finished = ready_span(self._ledger, self._job_id, self.position, limit)
        table = self._arrow.table(span)
        self.position, self.is_finished = span.last, is_finished
        return table

    def frame(self, limit: int = CURSOR_ROWS) -> "pd.DataFrame":
        """The same as a pandas frame.

        Raises:
            JobNotFoundError, DatabaseUnreachableError: as `rows`.
            DatasetError: pyarrow or pandas is not installed; the position stays.
        """
        try:
            import pandas  # noqa: F401 - pyarrow would miss it after the rows are read
        except ImportError:
            raise DatasetError("frames need pandas: pip install pandas") from None
        return self.table(limit).to_pandas()
