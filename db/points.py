"""What each combination of weights gave: the points of a sweep."""

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from db.session import Ledger, reading
from db.tables import completions, requests, token_rewards


@dataclass(frozen=True)
class Point:
    """The completions of one combination of weights, together."""

    weights: dict[str, float]
    """As the rows asked for them; empty where they asked for none."""
    completions: int
    failed: int
    tokens: float | None
    """Mean length; None where nothing was generated."""
    rewards: dict[str, float] = field(default_factory=dict)
    """By ARM: the mean over completions of their mean token reward."""


def sweep_points(ledger: Ledger, job_id: str) -> list[Point]:
    """The points of a job, ordered by their weights; one where it is no sweep.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    with reading(ledger) as connection:
        counts = connection.execute(_counts(connection, job_id)).all()
        rewards: dict[str, dict[str, float]] = {}
        for weights, arm, mean in connection.execute(_rewards(connection, job_id)).tuples():
            rewards.setdefault(weights, {})[arm] = mean
    found = [
        Point(
            weights=json.loads(row.weights) or {},
            completions=row.completions,
            failed=row.failed,
            tokens=None if row.tokens is None else float(row.tokens),
            rewards=rewards.get(row.weights, {}),
        )
        for row in counts
    ]
    return sorted(found, key=lambda point: list(point.weights.values()))


def _weights(connection: sa.Connection) -> sa.ColumnElement[Any]:
    """The weights of a row as JSON text."""
    if connection.dialect.name == "postgresql":
        text: sa.ColumnElement[Any] = sa.cast(requests.c.row.op("->")("weights"), sa.Text)
    else:
        text = sa.func.json_extract(requests.c.row, "$.weights")
    return sa.func.coalesce(text, "null").label("weights")


def _counts(connection: sa.Connection, job_id: str) -> sa.Select[Any]:
    weights = _weights(connection)
    return (
        sa.select(
            weights,
            sa.func.count(completions.c.completion).label("completions"),
            sa.func.count(completions.c.error_code).label("failed"),
            sa.func.avg(completions.c.completion_tokens).label("tokens"),
        )
        .join(completions, completions.c.request_id == requests.c.id)
        .where(requests.c.job_id == job_id)
        .group_by(weights)
    )


def _rewards(connection: sa.Connection, job_id: str) -> sa.Select[Any]:
    weights = _weights(connection)
    mean = sa.func.avg(token_rewards.c.total / completions.c.completion_tokens)
    same = sa.and_(
        token_rewards.c.request_id == completions.c.request_id, token_rewards.c.sample == completions.c.sample
    )
    return (
        sa.select(weights, token_rewards.c.arm, mean)
        .select_from(requests)
        .join(completions, completions.c.request_id == requests.c.id)
        .join(token_rewards, same)
        .where(requests.c.job_id == job_id, completions.c.completion_tokens > 0)
        .group_by(weights, token_rewards.c.arm)
    )
