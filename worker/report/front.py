"""Which points of a sweep are worth having, and how much they dominate; larger is better in every direction."""

from collections.abc import Iterable, Sequence
from math import prod
from operator import ge, gt, itemgetter, sub

Vector = tuple[float, ...]


def front(points: Sequence[Vector]) -> list[bool]:
    """For each point, whether no other dominates it."""
    kept = set(_kept(points))
    return [point in kept for point in points]


def _kept(points: Iterable[Vector]) -> list[Vector]:
    """The different points that no other dominates; who dominates comes first in this order."""
    kept: list[Vector] = []
    for point in sorted(set(points), reverse=True):
        if not any(all(map(ge, other, point)) for other in kept):
            kept.append(point)
    return kept


def worst(points: Sequence[Vector]) -> Vector:
    """The worst value in each direction: the reference of a hypervolume where no other is given."""
    return tuple(min(values) for values in zip(*points, strict=True))


def hypervolume(points: Sequence[Vector], reference: Vector) -> float:
    """The volume that is dominated by the points and dominates the reference.

    By WFG (While, Bradstreet and Barone, 2012): each point of the front adds its box, less what the points that are
    better in the last direction cover of it. A thousand points in three dimensions take half a second.

    Args:
        points: any number, of one dimension each.
        reference: what is as bad as nothing; points that are not better in every direction add nothing.
    """
    better = _kept(point for point in points if all(map(gt, point, reference)))
    if len(reference) == 1:
        return max((point[0] for point in better), default=reference[0]) - reference[0]
    better.sort(key=itemgetter(-1))
    volume = 0.0
    for place, point in enumerate(better, 1):
        *base, height = map(sub, point, reference)
        covered = [tuple(map(min, point[:-1], other[:-1])) for other in better[place:]]
        volume += height * (prod(base) - hypervolume(covered, reference[:-1]))
    return volume
