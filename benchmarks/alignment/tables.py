"""results.json as Markdown: what docs/alignment.md shows, and what the command prints."""

from collections.abc import Mapping
from typing import Any

VERDICTS = {True: "cleared", False: "**missed**", None: "not run"}


def markdown(results: Mapping[str, Any]) -> str:
    """The bars, what they were compared at, and all points."""
    base = next(point for point in results["points"] if point["method"] == "base")
    about = (
        f"n = {base['n']} prompts; {results['interval']}, seed {results['seed']}; made by commit "
        f"`{results['commit'][:12]}`."
    )
    comparisons = [_comparisons(results)] if any(bar["figures"] for bar in results["bars"]) else []
    return "\n\n".join([about, _pairs(results), _bars(results), *comparisons, _points(results)]) + "\n"


def _pairs(results: Mapping[str, Any]) -> str:
    lines = ["| ARM | held-out pairs | told apart | at least 0.75 |", "| --- | ---: | ---: | --- |"]
    for one in results["held_out_pairs"]:
        lines.append(f"| {one['arm']} | {one['n']} | {_estimate(one['accuracy'])} | {VERDICTS[one['met']]} |")
    return "\n".join(lines)


def _bars(results: Mapping[str, Any]) -> str:
    lines = ["| bar | |", "| --- | --- |"]
    lines += [f"| {bar['bar']} | {VERDICTS[bar['met']]} |" for bar in results["bars"]]
    return "\n".join(lines)


def _comparisons(results: Mapping[str, Any]) -> str:
    lines = [
        "| compared at | cost | ours | theirs | difference | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for bar in results["bars"]:
        for one in bar["figures"]:
            ours, theirs = (one.get(f"{side}_gain") or one.get(f"{side}_volume") for side in ("our", "their"))
            cells = [
                one.get("cost", ""),
                *(_estimate(cell) for cell in (ours, theirs, one.get("difference"), one.get("ratio"))),
            ]
            lines.append(f"| {one['at']} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _points(results: Mapping[str, Any]) -> str:
    heads = ("VADER", "Flesch", "win + ½ tie (VADER)", "KL", "variety", "distinct-2", "length", "tokens run")
    columns = ("positive", "plain", "win_positive", "kl", "variety", "distinct_2", "tokens", "forward_tokens")
    lines = ["| method | strength | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * len(heads)]
    for point in results["points"]:
        cells = [_cell(name, point[name]) for name in columns]
        lines.append(f"| {point['method']} | {point['strength']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, figure: Any) -> str:
    if isinstance(figure, float):
        return f"{figure:.3f}"
    if name in ("tokens", "forward_tokens"):
        return f"{figure['value']:.0f}"
    return _estimate(figure)


def _estimate(figure: Mapping[str, float] | None) -> str:
    """`0.412 (0.377 to 0.446)`; nothing where there is no figure."""
    if not figure:
        return ""
    digits = 1 if abs(figure["value"]) >= 10 else 3
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
