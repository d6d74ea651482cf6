"""Tokens per second of the engine, by the base alone and guided by an ARM; one JSON object per measurement.

    python benchmarks/engine.py --base MODEL --arm examples/arms/positive

The two are measured in turn, and medians are printed, since machines are shared and noisy.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from models.engine import Engine, EngineSettings
from models.spec import GenerationSpec, PromptRow

PROMPT = "Write a short review of a hotel."


def seconds_of(engine: Engine, spec: GenerationSpec, rows: int) -> float:
    """Time to generate so many rows at once."""
    guided = engine.load(spec)
    parsed = [PromptRow.parse({"prompt": PROMPT}, index, spec) for index in range(rows)]
    started = time.perf_counter()
    futures = [engine.submit(guided, row) for row in parsed]
    while engine.step():
        pass
    for future in futures:
        future.result(timeout=0)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sampling = {"max_new_tokens": options.tokens, "ignore_eos": True}
    arms: dict[str, list[dict[str, Any]]] = {"base": [], "guided": [{"name": "arm", "ref": options.arm, "weight": 1.0}]}
    specs = {
        name: GenerationSpec.parse({"base": options.base, "arms": chosen, "sampling": sampling})
        for name, chosen in arms.items()
    }
    with tempfile.TemporaryDirectory() as home:
        engine = Engine(EngineSettings(home=Path(home), max_running=max(options.rows)))
        for spec in specs.values():
            seconds_of(engine, spec, 1)
        for rows in options.rows:
            taken: dict[str, list[float]] = {name: [] for name in specs}
            for _ in range(options.repeats):
                for name, spec in specs.items():
                    taken[name].append(seconds_of(engine, spec, rows))
            speeds = {
                f"{name}_tokens_per_second": round(rows * options.tokens / statistics.median(seconds), 1)
                for name, seconds in taken.items()
            }
            print(json.dumps({"rows": rows, **speeds}), flush=True)


if __name__ == "__main__":
    main()
