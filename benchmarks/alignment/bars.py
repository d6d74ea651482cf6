"""The bars that guided decoding is held to, and whether it clears them."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.alignment.evaluation import Bootstrap, Front, Point, compare, estimate, hypervolumes

Points = Mapping[str, Sequence[Point]]
JUDGE = "positive"


class Bars:
    """Compares fronts on the gold score of `positive`.

    Args:
        points: by method; a method that was not run is missing.
        bootstrap: of all intervals.
    """

    def __init__(self, points: Points, bootstrap: Bootstrap) -> None:
        self.points = points
        self.bootstrap = bootstrap
        (self.base,) = points["base"]

    def all(self) -> list[dict[str, Any]]:
        """Every bar whose methods were run: its name, whether it is cleared, and the figures."""
        bars = (self.args(), self.best_of_n(), self.dpo(), self.weak(), *self.soups())
        return [bar for bar in bars if bar is not None]

    def args(self) -> dict[str, Any] | None:
        """Above ARGS at the KL of each of its points."""
        found = self._at_their_cost("GenARM", ("ARGS-greedy", "ARGS-stochastic"), "kl")
        return _bar("equal KL: above ARGS", found, all(one["difference"]["value"] > 0 for one in found))

    def dpo(self) -> dict[str, Any] | None:
        """At least 0.9 of DPO's gain at the KL of each of its points."""
        found = self._at_their_cost("GenARM", ("DPO",), "kl")
        return _bar("equal KL: ≥ 0.9 × DPO's gain", found, all(one["ratio"]["value"] >= 0.9 for one in found))

    def best_of_n(self) -> dict[str, Any] | None:
        """Above best-of-n that runs as many tokens, at each weight."""
        if not {"GenARM", "best-of-n"} <= self.points.keys():
            return None
        ours, theirs = (self._front(method, "forward_tokens") for method in ("GenARM", "best-of-n"))
        found = compare(ours, theirs, ours, self._labels("GenARM"))
        return _bar("equal compute: above best-of-n", found, all(one["difference"]["value"] > 0 for one in found))

    def weak(self) -> dict[str, Any] | None:
        """At least 0.7 of the full-size ARM's gain, at equal KL and at the best of each."""
        found = self._at_their_cost("GenARM", ("weak-to-strong",), "kl")
        if not found:
            return None
        full, weak = (self._front(method, "kl").gains for method in ("GenARM", "weak-to-strong"))
        for one in found:  # ours is the small ARM here
            one["our_gain"], one["their_gain"] = one["their_gain"], one["our_gain"]
            one["ratio"] = {name: round(1 / value, 4) for name, value in one["ratio"].items()}
            one["ratio"]["low"], one["ratio"]["high"] = one["ratio"]["high"], one["ratio"]["low"]
            one["difference"] = {name: -value for name, value in one["difference"].items()}
        best = estimate(weak[weak[:, 0].argmax()] / full[full[:, 0].argmax()]).as_json()
        is_met = best["value"] >= 0.7 and all(one["ratio"]["value"] >= 0.7 for one in found)
        found.append({"at": "the best of each", "ratio": best})
        return _bar("weak-to-strong: ≥ 0.7 × the full-size ARM's gain", found, is_met)

    def soups(self) -> list[dict[str, Any] | None]:
        """A larger hypervolume than each kind of Rewarded Soups."""
        found: list[dict[str, Any] | None] = []
        for method in ("soups of ARMs", "soups of DPO"):
            if {"two ARMs", method} <= self.points.keys():
                ours, theirs = (
                    hypervolumes(self.points[name], self.base, self.bootstrap) for name in ("two ARMs", method)
                )
                figures = {"ours": ours, "theirs": theirs, "difference": ours - theirs}
                estimates = {name: estimate(values).as_json() for name, values in figures.items()}
                found.append(_bar(f"hypervolume above {method}", [estimates], ours[0] > theirs[0]))
        return found

    def _at_their_cost(self, ours: str, theirs: Sequence[str], cost: str) -> list[dict[str, Any]]:
        found = []
        for method in theirs:
            if {ours, method} <= self.points.keys():
                front, other = self._front(ours, cost), self._front(method, cost)
                found += compare(front, other, other, self._labels(method))
        return found

    def _front(self, method: str, cost: str) -> Front:
        return Front(self.base, self.points[method], JUDGE, cost, self.bootstrap)

    def _labels(self, method: str) -> list[str]:
        return [f"{method} {point.strength}" for point in self.points[method]]


def _bar(name: str, figures: Sequence[dict[str, Any]], is_met: bool) -> dict[str, Any] | None:
    """None where nothing could be compared."""
    return {"bar": name, "met": bool(is_met), "figures": list(figures)} if figures else None
