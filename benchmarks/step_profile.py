"""Where the time of a decode step goes: 64 rows, a base and a full-size ARM, a table of medians.

    python benchmarks/step_profile.py --base MODEL

Times are exclusive: what a part spends in another part counts there. The kernels' own parts show on a CPU with kernels;
elsewhere the forward pass is one line, since a GPU's work does not end when its call does.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ours import OurEngine, Request
from prompts import prompts

import models.backbone
import models.engine
from models.backbone import Backbone
from models.engine import Engine
from models.native.kernels import Kernels
from models.references import resolve
from models.scheduler import Scheduler

REST = "the rest of the forward pass (PyTorch's and transformers' own Python)"
PARTS: list[tuple[Any, str, str]] = [
    (Scheduler, "schedule", "scheduling"),
    (models.backbone, "pack", "packing the rows"),
    (Backbone, "_run_model", REST),
    (Kernels, "linear", "linear layers, the LM head included"),
    (Kernels, "attend", "attention over the KV cache"),
    (Kernels, "rms_norm", "norms"),
    (Kernels, "silu_mul", "activation of the MLPs"),
    (models.engine, "draw_tokens", "drawing: preparing the rows"),
    (Kernels, "draw", "drawing: the pass over the vocabulary"),
    (Engine, "_collect", "collecting tokens, log-probabilities and rewards"),
]
OUTSIDE = "the engine's loop"


class Clock:
    """Exclusive seconds by part: the part that runs now is the innermost that was entered."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open = [OUTSIDE]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def lap(self) -> Counter[str]:
        """The seconds since the last lap."""
        self._switch()
        lap, self.seconds = self.seconds, Counter()
        return lap


def measure(engine: OurEngine, requests: list[Request]) -> dict[str, float]:
    """Median seconds of each part over the steps in which all requests decode."""
    clock, laps = Clock(), list[Counter[str]]()
    with ExitStack() as patched:
        for owner, name, part in PARTS:
            patched.enter_context(patch.object(owner, name, clock.around(getattr(owner, name), part)))
        engine.submit(requests)
        clock.lap()
        while engine.engine.step():
            lap = clock.lap()
            if engine.engine.stats().running == len(requests):
                laps.append(lap)
    decodes = laps[len(laps) // 4 :]  # the first steps still run prompts
    return {part: statistics.median(lap[part] for lap in decodes) for *_, part in [*PARTS, ((), "", OUTSIDE)]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = str(resolve(options.base, options.home).folder)
        arm = str(shutil.copytree(base, Path(folder) / "arm"))
        engine = OurEngine(Path(folder), base, [arm], max_running=options.rows)
        for seed in (0, 1):  # the first warms up
            texts = prompts(engine.tokenizer, options.rows, 32, seed)
            seconds = measure(engine, [Request(text, 64) for text in texts])
    whole = sum(seconds.values())
    print("| part | ms a step | share |\n| --- | ---: | ---: |")
    for part, taken in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"| {part} | {1000 * taken:.2f} | {100 * taken / whole:.1f} % |")
    print(f"| all | {1000 * whole:.2f} | |")


if __name__ == "__main__":
    main()
