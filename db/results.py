"""Reading the results of a job."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from db.session import Ledger, reading
from db.tables import completions, requests, token_rewards

PAGE_ROWS = 500
OWN_COLUMNS = (
    "id", "sample", "completion", "finish_reason", "tokens", "logprobs", "base_logprobs",
    "rewards", "token_rewards", "prompt_tokens", "error",
)  # fmt: skip
"""Columns of an output row; one of the input with such a name comes out as `input_NAME`."""


def export_rows(ledger: Ledger, job_id: str) -> Iterator[dict[str, Any]]:
    """The output rows of a job in the order of its input, those of a row by sample; in bounded memory.

    Rows without an outcome yet are left out. `job_id` is the whole id.
    """
    first = 0
    while True:
        page = (
            sa.select(requests.c.id, requests.c.row_index, requests.c.row)
            .where(requests.c.job_id == job_id, requests.c.row_index >= first)
            .order_by(requests.c.row_index)
            .limit(PAGE_ROWS)
        )
        with reading(ledger) as connection:
            rows = connection.execute(page).all()
            if not rows:
                return
            by_request = _completions(connection, [row.id for row in rows])
            rewards = _rewards(connection, [row.id for row in rows])
        for row in rows:
            for completion in by_request.get(row.id, []):
                yield output_row(row, completion, rewards.get((row.id, completion.sample), []))
        first = rows[-1].row_index + 1


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
    source = request.row
    own = {"id": _row_id(source, request.row_index), "sample": completion.sample}
    if completion.error_code is None:
        own |= {name: getattr(completion, name) for name in OWN_COLUMNS if hasattr(completion, name)}
        own["rewards"] = {reward.arm: reward.total for reward in rewards}
        own["token_rewards"] = {reward.arm: reward.token_values for reward in rewards}
        own = {name: own.get(name) for name in OWN_COLUMNS}
    else:
        own["error"] = {"code": completion.error_code, "message": completion.error_message}
    passed_on = {name if name not in OWN_COLUMNS else f"input_{name}": value for name, value in source.items()}
    return own | {name: value for name, value in passed_on.items() if name != "input_id"}


def _row_id(row: dict[str, Any], index: int) -> Any:
    """The row's own id, as it was given; the row's position where it has none."""
    for name in ("id", "custom_id"):
        if row.get(name) is not None:
            return row[name]
    return index
