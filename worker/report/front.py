"""Which points of a sweep are worth having, and how much they dominate; larger is better in every direction."""

from collections.abc import Sequence

Vector = tuple[float, ...]


def dominates(one: Vector, other: Vector) -> bool:
    """True where `one` is nowhere worse than `other`, and somewhere better."""
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def front(points: Sequence[Vector]) -> list[bool]:
    """For each point, whether no other dominates it."""
    return [not any(dominates(other, point) for other in points) for point in points]


def worst(points: Sequence[Vector]) -> Vector:
    """The worst value in each direction: the reference of a hypervolume where no other is given."""
    return tuple(min(values) for values in zip(*points, strict=True))


def hypervolume(points: Sequence[Vector], reference: Vector) -> float:
    """The volume that is dominated by the points and dominates the reference.

    Slices along the last direction: between two values of it, the volume of the others' slice times the distance.

    Args:
        points: any number, of one dimension each.
        reference: what is as bad as nothing; points that are not better in every direction add nothing.
    """
    better = [point for point in points if all(a > b for a, b in zip(point, reference, strict=True))]
    if not better:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in better) - reference[0]
    levels = sorted({point[-1] for point in better}, reverse=True)
    volume = 0.0
    for level, lower in zip(levels, [*levels[1:], reference[-1]], strict=True):
        at_least = [point[:-1] for point in better if point[-1] >= level]
        volume += (level - lower) * hypervolume(at_least, reference[:-1])
    return volume
