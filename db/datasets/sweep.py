"""A sweep: every row of a dataset once for each combination of weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from db.submission import NewRow


def points(sweep: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """The combinations of a sweep: for each a weight by ARM, in the order of an odometer."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def expanded(rows: Iterable[NewRow], sweep: Mapping[str, Sequence[float]]) -> Iterator[NewRow]:
    """Each row once for each point, one after the other, so that they share the prompt's prefill.

    A row without an id gets its position in the dataset, by which its points are known.
    """
    chosen = points(sweep)
    for index, row in enumerate(rows):
        weights = row.row.get("weights") or {}
        for point in chosen:
            # Weights that are no object stay as they are: that row fails, as it would outside a sweep.
            merged = {**weights, **point} if isinstance(weights, dict) else weights
            fields = {**row.row, "weights": merged}
            if row.custom_id is None:
                fields["id"] = index
            yield NewRow(row.custom_id if row.custom_id is not None else str(index), fields, row.place)
