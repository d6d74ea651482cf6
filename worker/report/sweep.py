"""A sweep's points with their front, as `genarm job show` and the report have them."""

from collections.abc import Mapping
from dataclasses import dataclass

from db.jobs import Job
from db.points import Point, sweep_points
from db.session import Ledger
from worker.report.front import Vector, front, hypervolume, worst


@dataclass(frozen=True)
class Front:
    """The points of a sweep; each is good by the mean token rewards of the swept ARMs, one ARM's by its KL too."""

    arms: list[str]
    points: list[Point]
    on_front: list[bool]
    hypervolume: float | None
    """Of the points, with the worst value in each direction as the reference; None while points lack results."""


def label(weights: Mapping[str, float]) -> str:
    """A combination of weights for people."""
    return ", ".join(f"{arm} {weight:g}" for arm, weight in weights.items())


def front_of(ledger: Ledger, job: Job) -> Front | None:
    """The front of a job; None where it is no sweep.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    if not job.sweep:
        return None
    arms = list(job.sweep)
    points = sweep_points(ledger, job)
    found = [_vector(point, arms) for point in points]
    vectors = [vector for vector in found if vector is not None]
    best = {vector for vector, is_on_front in zip(vectors, front(vectors), strict=True) if is_on_front}
    volume = hypervolume(vectors, worst(vectors)) if vectors else None
    return Front(arms, points, [vector in best for vector in found], volume)


def _vector(point: Point, arms: list[str]) -> Vector | None:
    """How good a point is in each direction; None where it lacks results."""
    if not all(arm in point.rewards for arm in arms):
        return None
    rewards = tuple(point.rewards[arm] for arm in arms)
    if len(arms) > 1:
        return rewards
    return None if point.kl is None else (*rewards, -point.kl)  # in one direction a front would be a point
