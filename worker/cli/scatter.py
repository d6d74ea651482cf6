"""A small chart of points in characters."""

from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 56, 12
ORDINARY, BEST = "·", "●"


def scatter(points: Sequence[tuple[float, float, bool]], x_name: str, y_name: str) -> Iterator[str]:
    """The lines of a chart, at most 80 columns wide where the names are short.

    Args:
        points: x, y, and whether the point is marked as one of the best; at least one.
        x_name: stands at the end of the horizontal axis.
        y_name: stands over the vertical axis.
    """
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for x, y, is_best in sorted(points, key=lambda point: point[2]):  # the best over the others
        cells[HEIGHT - 1 - _cell(y, ys, HEIGHT)][_cell(x, xs, WIDTH)] = BEST if is_best else ORDINARY
    ends = {0: f"{max(ys):.3f}", HEIGHT - 1: f"{min(ys):.3f}"}
    margin = max(map(len, ends.values()))
    yield f"{'':{margin}} {y_name}"
    for place, line in enumerate(cells):
        yield f"{ends.get(place, ''):>{margin}} │{''.join(line)}".rstrip()
    yield f"{'':{margin}} └{'─' * WIDTH} {x_name}"
    yield f"{'':{margin}}  {min(xs):<{WIDTH // 2}.3f}{max(xs):>{WIDTH // 2}.3f}"


def _cell(value: float, values: Sequence[float], count: int) -> int:
    """In which of so many cells a value lies; in the first where all are the same."""
    span = max(values) - min(values)
    return round((value - min(values)) / span * (count - 1)) if span else 0
