"""The figures of docs/alignment.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.alignment.evaluation import Bootstrap, Point, estimate, objectives

Figures = Sequence[Mapping[str, Any]]
STYLES = {
    "GenARM": ("#1f5fbf", "o"),
    "GenARM − base": ("#123a75", "X"),
    "weak-to-strong": ("#5fa8e8", "s"),
    "DPO": ("#c0392b", "D"),
    "ARGS-greedy": ("#2e8b57", "^"),
    "ARGS-stochastic": ("#7cc08a", "v"),
    "best-of-n": ("#7f7f7f", "P"),
    "two ARMs": ("#1f5fbf", "o"),
    "soups of ARMs": ("#e08a1e", "s"),
    "soups of DPO": ("#c0392b", "D"),
}
SETTINGS = {
    "figure.figsize": (7.0, 4.2),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "genarm",  # the same figures give the same file
    "svg.fonttype": "none",
}


def draw(figures: Figures, points: Mapping[str, Sequence[Point]], bootstrap: Bootstrap, folder: Path) -> None:
    """Write alignment-kl.svg, alignment-compute.svg and alignment-two.svg.

    Args:
        figures: of all points, as in results.json.
        points: by method, the base's among them.
        bootstrap: of the intervals of the two objectives.
        folder: where they are written.
    """
    with mpl.rc_context(SETTINGS):
        _fronts(figures, "kl", "KL from the base (nats per completion)", "symlog", folder / "alignment-kl.svg")
        _fronts(
            figures,
            "forward_tokens",
            "tokens run by all models, per completion",
            "log",
            folder / "alignment-compute.svg",
        )
        _two_objectives(points, bootstrap, folder / "alignment-two.svg")


def _fronts(figures: Figures, cost: str, label: str, scale: str, path: Path) -> None:
    figure, axes = plt.subplots()
    base = next(one for one in figures if one["method"] == "base")
    axes.axhline(base["positive"]["value"], color="black", linewidth=0.8, linestyle=":", label="base")
    for method in ("GenARM", "GenARM − base", "weak-to-strong", "DPO", "ARGS-greedy", "ARGS-stochastic", "best-of-n"):
        own = sorted((one for one in figures if one["method"] == method), key=lambda one: one[cost]["value"])
        if own:
            color, marker = STYLES[method]
            reward = [one["positive"] for one in own]
            axes.errorbar(
                [one[cost]["value"] for one in own],
                [one["value"] for one in reward],
                yerr=[[one["value"] - one["low"] for one in reward], [one["high"] - one["value"] for one in reward]],
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                capsize=2,
                label=method,
            )
    axes.set_xscale(scale)
    axes.set(xlabel=label, ylabel="mean VADER score")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _two_objectives(points: Mapping[str, Sequence[Point]], bootstrap: Bootstrap, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 5.0))
    (base,) = points["base"]
    for method in ("two ARMs", "soups of ARMs", "soups of DPO"):
        if method not in points:
            continue
        both = [[estimate(row) for row in objectives(point, base, bootstrap)] for point in points[method]]
        color, marker = STYLES[method]
        axes.errorbar(
            [x.value for x, _ in both],
            [y.value for _, y in both],
            xerr=[[x.value - x.low for x, _ in both], [x.high - x.value for x, _ in both]],
            yerr=[[y.value - y.low for _, y in both], [y.high - y.value for _, y in both]],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            elinewidth=0.6,
            label=method,
        )
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="VADER: gain over the base (σ of the base)", ylabel="Flesch: gain over the base (σ of the base)")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
