"""A sweep's points with their front, as `genarm job show` and the report have them."""

from collections.abc import Mapping
from dataclasses import dataclass

from db.jobs import Job
from db.points import Point, sweep_points
from db.session import Ledger
from worker.report.front import front, hypervolume, worst


@dataclass(frozen=True)
class Front:
    """The points of a sweep; each is good by the mean token rewards of the ARMs that are swept."""

    arms: list[str]
    points: list[Point]
    on_front: list[bool]
    hypervolume: float | None
    """Of the points, with the worst value of each ARM as the reference; None while points lack results."""


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
    measured = [point for point in points if all(arm in point.rewards for arm in arms)]
    vectors = [tuple(point.rewards[arm] for arm in arms) for point in measured]
    flags = dict(zip(map(id, measured), front(vectors), strict=True))
    volume = hypervolume(vectors, worst(vectors)) if vectors else None
    return Front(arms, points, [flags.get(id(point), False) for point in points], volume)
