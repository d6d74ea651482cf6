"""The bars that guided decoding is held to, and whether it clears them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.alignment.cache import Row
from benchmarks.alignment.evaluation import Bootstrap, Front, Point, compare, estimate, hypervolumes

JUDGE = "positive"
LEAST_ACCURACY = 0.75
"""Of a shipped ARM on held-out pairs."""
Figures = list[dict[str, Any]]


class Bars:
    """Compares fronts on the gold score of `positive`.

    Args:
        points: by method; a method that was not run is missing.
        bootstrap: of all intervals.
    """

    def __init__(self, points: Mapping[str, Sequence[Point]], bootstrap: Bootstrap) -> None:
        self.points = points
        self.bootstrap = bootstrap
        (self.base,) = points["base"]

    def all(self) -> list[dict[str, Any]]:
        """Every bar: its name, its figures, and whether it is cleared; None where nothing could be compared."""
        dpo = [self.dpo("GenARM"), self.dpo("GenARM − base")]
        return [self.args(), self.best_of_n(), *dpo, self.weak(), self.soup("ARMs"), self.soup("DPO")]

    def args(self) -> dict[str, Any]:
        """Above ARGS at the KL of each of its points."""
        found = [one for method in ("ARGS-greedy", "ARGS-stochastic") for one in self._at_cost_of(method)]
        return _bar("above ARGS at equal KL", found, [one["difference"]["value"] > 0 for one in found])

    def dpo(self, method: str) -> dict[str, Any]:
        """At least 0.9 of DPO's gain at the KL of each of its points."""
        found = self._at_cost_of("DPO", method)
        name = f"{method}: at least 0.9 of DPO's gain at equal KL"
        return _bar(name, found, [one["ratio"]["value"] >= 0.9 for one in found])

    def best_of_n(self) -> dict[str, Any]:
        """Above best-of-n that runs as many tokens: what both reach at most within that compute.

        Every weight costs the same, down to those that hardly guide: only the one that gains most is held to it.
        """
        found: Figures = []
        if {"GenARM", "best-of-n"} <= self.points.keys():
            ours, theirs = (self._front(method, "forward_tokens") for method in ("GenARM", "best-of-n"))
            found = compare(ours, theirs, ours, self._labels("GenARM"))
        most = max(found, key=lambda one: one["our_gain"]["value"], default=None)
        return _bar("above best-of-n at equal compute", found, [most["difference"]["value"] > 0] if most else [])

    def weak(self) -> dict[str, Any]:
        """At least 0.7 of the full-size ARM's gain, at the KL of each of the small one's points and at the best."""
        found: Figures = []
        if {"GenARM", "weak-to-strong"} <= self.points.keys():
            full, small = (self._front(method, "kl") for method in ("GenARM", "weak-to-strong"))
            found = compare(small, full, small, self._labels("weak-to-strong"))
            best = small.gains[small.gains[:, 0].argmax()] / full.gains[full.gains[:, 0].argmax()]
            found.append({"at": "the best of each", "ratio": estimate(best).as_json()})
        name = "at least 0.7 of the full-size ARM's gain by the small one"
        return _bar(name, found, [one["ratio"]["value"] >= 0.7 for one in found])

    def soup(self, kind: str) -> dict[str, Any]:
        """A larger hypervolume than Rewarded Soups of two adapters."""
        found: Figures = []
        if {"two ARMs", f"soups of {kind}"} <= self.points.keys():
            ours, theirs = (
                hypervolumes(self.points[name], self.base, self.bootstrap) for name in ("two ARMs", f"soups of {kind}")
            )
            volumes = {"our_volume": ours, "their_volume": theirs, "difference": ours - theirs}
            found = [
                {"at": f"soups of {kind}, all shares"}
                | {name: estimate(values).as_json() for name, values in volumes.items()}
            ]
        name = f"a larger hypervolume than Rewarded Soups of {kind}"
        return _bar(name, found, [one["difference"]["value"] > 0 for one in found])

    def _at_cost_of(self, peer: str, method: str = "GenARM") -> Figures:
        if not {method, peer} <= self.points.keys():
            return []
        ours, theirs = self._front(method, "kl"), self._front(peer, "kl")
        prefix = "" if method == "GenARM" else f"{method} at "
        return compare(ours, theirs, theirs, [prefix + label for label in self._labels(peer)])

    def _front(self, method: str, cost: str) -> Front:
        return Front(self.base, self.points[method], JUDGE, cost, self.bootstrap)

    def _labels(self, method: str) -> list[str]:
        return [f"{method} {point.strength}" for point in self.points[method]]


def _bar(name: str, figures: Figures, cleared: Sequence[bool]) -> dict[str, Any]:
    return {"bar": name, "met": all(cleared) if figures else None, "figures": figures}


def accuracy(arm: str, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The share of held-out pairs whose chosen response has the higher reward; the bar is three quarters."""
    right = np.array([row["chosen"] > row["rejected"] for row in rows], dtype=np.float64)
    share = estimate(Bootstrap(len(rows), seed).means(right))
    return {"arm": arm, "n": len(rows), "accuracy": share.as_json(), "met": share.value >= LEAST_ACCURACY}
