"""Points of a front, fronts compared at equal cost, and bootstrap intervals over prompts.

Every point has one completion for each prompt, in the same order, so a resample takes the same prompts for all methods:
differences between them are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.alignment.cache import Row
from benchmarks.alignment.judges import JUDGES, distinct_2, variety
from worker.report.front import hypervolume

Values = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Rounded, for results.json."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def estimate(figures: Values) -> Estimate:
    """From a figure and what it is in each resample, [1 + resamples]; NaN where it is not defined."""
    low, high = np.nanquantile(figures[1:], [0.025, 0.975])
    return Estimate(float(figures[0]), float(low), float(high))


class Bootstrap:
    """Resamples of prompts, always the same ones for a seed.

    Args:
        prompts: how many there are.
        seed: of the resamples.
    """

    def __init__(self, prompts: int, seed: int, resamples: int = RESAMPLES) -> None:
        self.indices = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))

    def means(self, values: Values) -> Values:
        """[prompts] to means [1 + resamples]: first that of the prompts themselves."""
        return np.concatenate([[values.mean()], values[self.indices].mean(1)])


@dataclass(frozen=True)
class Point:
    """One method at one strength, judged."""

    method: str
    strength: str
    rows: Sequence[Row]

    @cached_property
    def values(self) -> dict[str, Values]:
        """By name, one number for each prompt: gold scores, log-ratio, tokens, variety."""
        texts = [row["text"] for row in self.rows]
        columns: dict[str, list[float]] = {name: [judge(text) for text in texts] for name, judge in JUDGES.items()}
        columns["kl"] = [row["log_ratio"] for row in self.rows]
        columns["forward_tokens"] = [row["forward_tokens"] for row in self.rows]
        columns["tokens"] = [len(row["token_ids"]) for row in self.rows]
        columns["variety"] = [variety(text) for text in texts]
        return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}

    def wins(self, base: "Point", judge: str) -> Values:
        """For each prompt 1, ½ or 0: whether this completion is scored above the base's, the same, or below."""
        mine, its = self.values[judge], base.values[judge]
        return np.where(mine > its, 1.0, np.where(mine == its, 0.5, 0.0))

    def figures(self, base: "Point", bootstrap: Bootstrap) -> dict[str, Any]:
        """Everything that is reported of it."""
        columns = self.values | {f"win_{judge}": self.wins(base, judge) for judge in JUDGES}
        estimates = {name: estimate(bootstrap.means(column)).as_json() for name, column in columns.items()}
        return {
            "method": self.method,
            "strength": self.strength,
            "n": len(self.rows),
            "distinct_2": round(distinct_2([row["text"] for row in self.rows]), 4),
            **estimates,
        }


class Front:
    """What a method reaches over its strengths, beginning with the base, which spends nothing.

    Args:
        base: the base alone.
        points: of one method.
        judge: the gold score.
        cost: what is spent: `kl` or `forward_tokens`.
    """

    def __init__(self, base: Point, points: Sequence[Point], judge: str, cost: str, bootstrap: Bootstrap) -> None:
        all_points = [base, *points]
        self.costs = np.stack([bootstrap.means(point.values[cost]) for point in all_points])
        self.gains = np.stack([bootstrap.means(point.values[judge] - base.values[judge]) for point in all_points])

    @property
    def reach(self) -> float:
        """The most that any of its points spends."""
        return float(self.costs[:, 0].max())

    def gain_at(self, costs: Values) -> Values:
        """The gain over the base at costs, both [1 + resamples]: linear between neighbours, NaN past the last point."""
        gains = np.full(len(costs), np.nan)
        for index, cost in enumerate(costs):
            order = np.argsort(self.costs[:, index])
            gains[index] = np.interp(
                cost, self.costs[order, index], self.gains[order, index], left=self.gains[0, index], right=np.nan
            )
        return gains


def compare(ours: Front, theirs: Front, at: Front, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Our gain and theirs at the cost of each point of one of the two; points beyond the other's reach are left out.

    Args:
        ours, theirs: fronts over the same cost.
        at: one of them.
        labels: of its points, the base not among them.
    """
    found = []
    for place, label in enumerate(labels, start=1):  # place 0 is the base
        costs = at.costs[place]
        if costs[0] > min(ours.reach, theirs.reach):
            continue
        mine, its = (front.gains[place] if front is at else front.gain_at(costs) for front in (ours, theirs))
        found.append(
            {
                "at": label,
                "cost": round(float(costs[0]), 3),
                "our_gain": estimate(mine).as_json(),
                "their_gain": estimate(its).as_json(),
                "difference": estimate(mine - its).as_json(),
                "ratio": estimate(mine / its).as_json(),
            }
        )
    return found


def objectives(point: Point, base: Point, bootstrap: Bootstrap) -> Values:
    """Both gold scores as gains over the base in standard deviations of the base's own scores, [2, 1 + resamples]."""
    return np.stack(
        [
            bootstrap.means(point.values[judge] - base.values[judge]) / base.values[judge].std()
            for judge in ("positive", "plain")
        ]
    )


def hypervolumes(points: Sequence[Point], base: Point, bootstrap: Bootstrap) -> Values:
    """The hypervolume of a front over the base, the reference that both objectives must beat, [1 + resamples]."""
    both = np.stack([objectives(point, base, bootstrap) for point in points], axis=1)  # [2, points, 1 + resamples]
    return np.array([hypervolume([tuple(one) for one in drawn.T], (0.0, 0.0)) for drawn in np.moveaxis(both, 2, 0)])
