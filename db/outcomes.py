"""The outcomes of rows, and how they are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from db.tables import completions, token_rewards

if TYPE_CHECKING:
    from db.shards import Lease


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
    insert = _insert(connection, completions)
    first = insert.on_conflict_do_nothing().returning(completions.c.request_id)
    new = set(connection.execute(first, [samples[0] for samples in rows.values()]).scalars())
    if others := [sample for request_id in new for sample in rows[request_id][1:]]:
        connection.execute(insert, others)
    rewards = [
        reward
        for outcome in {outcome.request_id: outcome for outcome in outcomes if outcome.request_id in new}.values()
        for completion in outcome.completions
        for reward in _reward_rows(outcome.request_id, completion)
    ]
    if rewards:
        connection.execute(_insert(connection, token_rewards), rewards)
    return new


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _completion_rows(outcome: RowOutcome) -> list[dict[str, Any]]:
    empty: dict[str, Any] = dict.fromkeys(column.name for column in completions.columns if column.name != "created_at")
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
            "total": sum(values),
            "token_values": values,
        }
        for arm, values in completion.token_rewards.items()
    ]


def storable(text: str) -> str:
    """The text with U+FFFD for the NUL character, which PostgreSQL's text cannot hold."""
    return text.replace("\x00", "\ufffd")
