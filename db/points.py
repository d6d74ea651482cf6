"""What each combination of weights gave: the points of a sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from db.datasets.sweep import points
from db.jobs import Job
from db.session import Ledger, reading
from db.tables import completions, requests, token_rewards
from db.views import results

Key = tuple[float, ...]
"""The weights of a point."""


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
    kl: float | None = None
    """Mean over completions of their KL from the base, in nats; read only where one ARM is swept, since it
    takes a look at every token."""


def sweep_points(ledger: Ledger, job: Job) -> list[Point]:
    """The points of a sweep that have outcomes, in the sweep's order; none where the job is no sweep.

    Rows whose `weights` are no object are failed rows of no point.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    if not job.sweep:
        return []
    columns = [_weight(arm).label(f"weight_{place}") for place, arm in enumerate(job.sweep)]
    rewards: dict[Key, dict[str, float]] = {}
    kls: dict[Key, float] = {}
    with reading(ledger) as connection:
        counts = {_key(row, columns): row for row in connection.execute(_counts(job.id, columns))}
        for row in connection.execute(_rewards(job.id, columns)):
            rewards.setdefault(_key(row, columns), {})[row.arm] = row.mean
        if len(columns) == 1:
            kls = {_key(row, columns): row.kl for row in connection.execute(_kls(job.id, columns))}
    found = {tuple(point.values()): point for point in points(job.sweep)}
    return [
        _point(weights, counts[key], rewards.get(key, {}), kls.get(key))
        for key, weights in found.items()
        if key in counts
    ]


def _point(weights: dict[str, float], row: sa.Row[Any], rewards: dict[str, float], kl: float | None) -> Point:
    tokens = None if row.tokens is None else float(row.tokens)
    return Point(weights, row.completions, row.failed, tokens, rewards, kl)


def _weight(arm: str) -> sa.ColumnElement[Any]:
    """A row's weight of an ARM as JSON text, which both databases keep as it was written; NULL where it has none."""
    return sa.cast(requests.c.row.op("->")("weights").op("->")(arm), sa.Text)


def _key(row: sa.Row[Any], weights: Sequence[sa.Label[Any]]) -> Key:
    return tuple(float(getattr(row, weight.name)) for weight in weights)


def _has_weights(job_id: str, weights: Sequence[sa.Label[Any]]) -> Iterator[sa.ColumnElement[bool]]:
    """The rows of a job that are of some point."""
    yield requests.c.job_id == job_id
    yield from (weight.element.is_not(None) for weight in weights)


def _counts(job_id: str, weights: Sequence[sa.Label[Any]]) -> sa.Select[Any]:
    return (
        sa.select(
            *weights,
            sa.func.count(completions.c.completion).label("completions"),
            sa.func.count(completions.c.error_code).label("failed"),
            sa.func.avg(completions.c.completion_tokens).label("tokens"),
        )
        .join(completions, completions.c.request_id == requests.c.id)
        .where(*_has_weights(job_id, weights))
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
        .where(*_has_weights(job_id, weights), completions.c.completion_tokens > 0)
        .group_by(*weights, token_rewards.c.arm)
    )


def _kls(job_id: str, weights: Sequence[sa.Label[Any]]) -> sa.Select[Any]:
    return (
        sa.select(*weights, sa.func.avg(results.c.kl).label("kl"))
        .join(results, results.c.request_id == requests.c.id)
        .where(*_has_weights(job_id, weights))
        .group_by(*weights)
    )
