"""The outcomes of rows, and how they are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from db.storable import storable
from db.tables import completions, token_rewards

if TYPE_CHECKING:
    from db.shards import Lease

CREATED_AT = "created_at"


@dataclass(frozen=True)
class NewCompletion:
    """A completion to store; the fields are those of the engine's completion."""

    sample: int
    text: str
    finish_reason: str
    tokens: list[int]
    logprobs: list[float] | None
    """None: the response was scored, not drawn."""
    base_logprobs: list[float] | None
    """None: it was scored without a base."""
    token_rewards: dict[str, list[float]]
    prompt_tokens: int


@dataclass(frozen=True)
class RowOutcome:
    """All that came of a row: every sample, or an error (code, message)."""

    lease: "Lease"
    request_id: int
    completions: list[NewCompletion]
    error: tuple[str, str] | None


def insert_outcomes(connection: sa.Connection, outcomes: Sequence[RowOutcome]) -> set[int]:
    """Insert the outcomes of rows that have none, and return these rows' requests.

    A row's first sample decides whether its outcome is new, so that two outcomes of one row never mix.
    """
    rows = {outcome.request_id: _completion_rows(outcome) for outcome in outcomes}
    if not rows:
        return set()
    insert = _insert_arrays if connection.dialect.name == "postgresql" else _insert_new
    new = insert(connection, completions, [samples[0] for samples in rows.values()])
    if others := [sample for request_id in new for sample in rows[request_id][1:]]:
        insert(connection, completions, others)
    rewards = [
        reward
        for outcome in {outcome.request_id: outcome for outcome in outcomes if outcome.request_id in new}.values()
        for completion in outcome.completions
        for reward in _reward_rows(outcome.request_id, completion)
    ]
    if rewards:
        insert(connection, token_rewards, rewards)
    return new


def _insert_new(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> set[int]:
    """Insert on SQLite, where nobody else writes until this transaction ends, and return the requests that are new."""
    keys = [column.name for column in table.primary_key.columns]
    asked = {tuple(row[key] for key in keys) for row in rows}
    among = table.c.request_id.in_({row["request_id"] for row in rows})
    there = {tuple(row) for row in connection.execute(sa.select(*table.primary_key.columns).where(among))}
    if new := [row for row in rows if tuple(row[key] for key in keys) not in there]:
        connection.execute(sa.insert(table), new)
    return {key[0] for key in asked - there}


def _insert_arrays(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> set[int]:
    """Insert on PostgreSQL what is new, and return the requests of that.

    One array for each column: of the VALUES of a group commit, the parameters alone, thousands, cost more than the
    rest.
    """
    statement, processors = _array_insert(table, connection.dialect)
    arrays = {
        name: [row[name] if processor is None else processor(row[name]) for row in rows]
        for name, processor in processors.items()
    }
    return set(connection.execute(statement, arrays).scalars())


@lru_cache(maxsize=8)
def _array_insert(table: sa.Table, dialect: sa.Dialect) -> tuple[sa.TextClause, dict[str, Any]]:
    """The statement, and for each of its arrays what turns a value into an element."""
    columns = [column for column in table.columns if column.name != CREATED_AT]
    kinds = {column.name: column.type.compile(dialect) for column in columns}
    # An array of arrays would have to be rectangular: these go as text.
    sent = {name: "TEXT" if kind.endswith("[]") else kind for name, kind in kinds.items()}
    names, chosen = ", ".join(kinds), ", ".join(f"{name}::{kind}" for name, kind in kinds.items())
    if CREATED_AT in table.columns:
        names, chosen = f"{names}, {CREATED_AT}", f"{chosen}, clock_timestamp()"
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in sent.items())
    statement = sa.text(
        f"INSERT INTO {table.name} ({names}) SELECT {chosen} FROM unnest({arrays}) AS new ({', '.join(kinds)}) "
        "ON CONFLICT DO NOTHING RETURNING request_id"
    )
    return statement, {column.name: column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns}


def _completion_rows(outcome: RowOutcome) -> list[dict[str, Any]]:
    empty: dict[str, Any] = dict.fromkeys(column.name for column in completions.columns if column.name != CREATED_AT)
    if outcome.error is not None:
        code, message = outcome.error
        error = {"error_code": code, "error_message": storable(message)}
        return [{**empty, "request_id": outcome.request_id, "sample": 0, **error}]
    return [
        {
            **empty,
            "request_id": outcome.request_id,
            "sample": completion.sample,
            "completion": storable(completion.text),
            "finish_reason": completion.finish_reason,
            "tokens": completion.tokens,
            "logprobs": completion.logprobs,
            "base_logprobs": completion.base_logprobs,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": len(completion.tokens),
        }
        for completion in outcome.completions
    ]


def _reward_rows(request_id: int, completion: NewCompletion) -> list[dict[str, Any]]:
    return [
        {
            "request_id": request_id,
            "sample": completion.sample,
            "arm": arm,
            "total": float(sum(values)),
            "token_values": values,
        }
        for arm, values in completion.token_rewards.items()
    ]
