"""What each combination of weights gave: the points of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from db.datasets.sweep import points
from db.jobs import Job
from db.session import Ledger, reading
from db.tables import completions, requests, token_rewards


@dataclass(frozen=True)
class Point:
    """The completions of one combination of weights, together."""

    weights: dict[str, float]
    """Of the ARMs that are swept, in the order of the sweep."""
    completions: int
    failed: int
    tokens: float | None
    """Mean length; None where nothing was generated."""
    rewards: dict[str, float] = field(default_factory=dict)
    """By ARM: the mean over completions of their mean token reward."""


def sweep_points(ledger: Ledger, job: Job) -> list[Point]:
    """The points of a sweep that have outcomes, in the sweep's order; none where the job is no sweep.

    Rows whose `weights` are no object are failed rows of no point.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    if not job.sweep:
        return []
    weights = [_weight(arm).label(f"weight_{place}") for place, arm in enumerate(job.sweep)]
    rewards: dict[tuple[float, ...], dict[str, float]] = {}
    with reading(ledger) as connection:
        counts = {_key(row, weights): row for row in connection.execute(_counts(job.id, weights))}
        for row in connection.execute(_rewards(job.id, weights)):
            rewards.setdefault(_key(row, weights), {})[row.arm] = row.mean
    found = {tuple(point.values()): point for point in points(job.sweep)}
    return [_point(found[key], counts[key], rewards.get(key, {})) for key in found if key in counts]


def _point(weights: dict[str, float], row: sa.Row[Any], rewards: dict[str, float]) -> Point:
    tokens = None if row.tokens is None else float(row.tokens)
    return Point(weights, row.completions, row.failed, tokens, rewards)


def _weight(arm: str) -> sa.ColumnElement[Any]:
    """A row's weight of an ARM as JSON text, which both databases keep as it was written; NULL where it has none."""
    return sa.cast(requests.c.row.op("->")("weights").op("->")(arm), sa.Text)


def _key(row: sa.Row[Any], weights: Sequence[sa.Label[Any]]) -> tuple[float, ...]:
    return tuple(float(getattr(row, weight.name)) for weight in weights)


def _counts(job_id: str, weights: Sequence[sa.Label[Any]]) -> sa.Select[Any]:
    return (
        sa.select(
            *weights,
            sa.func.count(completions.c.completion).label("completions"),
            sa.func.count(completions.c.error_code).label("failed"),
            sa.func.avg(completions.c.completion_tokens).label("tokens"),
        )
        .join(completions, completions.c.request_id == requests.c.id)
        .where(requests.c.job_id == job_id, *(weight.element.is_not(None) for weight in weights))
        .group_by(*weights)
    )


def _rewards(job_id: str, weights: Sequence[sa.Label[Any]]) -> sa.Select[Any]:
    mean = sa.func.avg(token_rewards.c.total / completions.c.completion_tokens).label("mean")
    same = sa.and_(
        token_rewards.c.request_id == completions.c.request_id, token_rewards.c.sample == completions.c.sample
    )
    return (
        sa.select(*weights, token_rewards.c.arm, mean)
        .select_from(requests)
        .join(completions, completions.c.request_id == requests.c.id)
        .join(token_rewards, same)
        .where(requests.c.job_id == job_id, completions.c.completion_tokens > 0)
        .where(*(weight.element.is_not(None) for weight in weights))
        .group_by(*weights, token_rewards.c.arm)
    )
