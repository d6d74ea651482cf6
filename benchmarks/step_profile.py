"""Where the time of a decode step goes: 64 rows, a base and a full-size ARM, a table of medians.

    python -m benchmarks.step_profile --base MODEL [--waiting REQUESTS]

Times are exclusive: what a part spends in another part counts there. The kernels' own parts show on a CPU with kernels;
elsewhere the forward pass is one line. Freeing the logits (float32, rows × vocabulary for each model) has a line of its
own, since it gives their pages back to the kernel in every step; with it the engine's own loop is next to nothing.
"""

import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import models.engine
from benchmarks import isa
from benchmarks.clock import OUTSIDE, PACKING_PARTS, Clock, Part
from benchmarks.ours import OurEngine, Request
from benchmarks.prompts import prompts
from models.backbone import Backbone
from models.engine import Engine
from models.native.kernels import Kernels
from models.references import resolve
from models.scheduler import Scheduler

NEW_TOKENS = 64
PARTS: list[Part] = [
    (Engine, "_take_arrivals", "taking arrivals and cancellations"),
    (Scheduler, "schedule", "scheduling"),
    *PACKING_PARTS,
    (Backbone, "run", "the rest of the forward pass (PyTorch's and transformers' own Python)"),
    (Kernels, "linear", "linear layers, the LM head included"),
    (Kernels, "attend", "attention over the KV cache"),
    (Kernels, "rms_norm", "norms"),
    (Kernels, "rotate", "rotary positions"),
    (Kernels, "silu_mul", "activation of the MLPs"),
    (models.engine, "draw_tokens", "drawing: preparing the rows"),
    (Kernels, "draw", "drawing: the pass over the vocabulary"),
    (Engine, "_run", "freeing the logits"),  # as it returns; what it calls counts as other parts
    (Engine, "_collect", "collecting tokens, log-probabilities and rewards"),
]


def measure(engine: OurEngine, requests: Sequence[Request], waiting: Sequence[Request] = ()) -> dict[str, float]:
    """Median seconds of each part over the steps in which all requests decode, while others wait for their places."""
    clock, laps = Clock(), []
    with clock.timing(PARTS):
        running, queued = engine.submit(requests), engine.submit(waiting)
        clock.lap()
        while not any(future.done() for future in running):
            engine.engine.step()
            lap = clock.lap()
            if engine.engine.stats().running == len(requests):
                laps.append(lap)
            clock.lap()
    for future in queued:
        future.cancel()
    while engine.engine.step():
        pass
    decodes = laps[len(laps) // 4 :]  # the first steps still run prompts
    names = dict.fromkeys([*(part for *_, part in PARTS), OUTSIDE])
    return {part: statistics.median(lap[part] for lap in decodes) for part in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=0, help="so many more requests wait for places")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    isa.add_option(parser)
    options = parser.parse_args(arguments)
    isa.hold_to(options.isa, parser)
    with tempfile.TemporaryDirectory() as folder:
        base = str(resolve(options.base, options.home).folder)
        arm = str(shutil.copytree(base, Path(folder) / "arm"))
        engine = OurEngine(Path(folder), base, [arm], max_running=options.rows, dtype=options.dtype)
        draw = random.Random(0)
        for _ in range(2):  # the first warms up
            running = [Request(text, NEW_TOKENS) for text in prompts(engine.tokenizer, options.rows, 32, draw)]
            seconds = measure(engine, running, [running[0]] * options.waiting)
    whole = sum(seconds.values())
    print("| part | ms a step | share |\n| --- | ---: | ---: |")
    for part, taken in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"| {part} | {1000 * taken:.2f} | {100 * taken / whole:.1f} % |")
    print(f"| all | {1000 * whole:.2f} | |")


if __name__ == "__main__":
    main()
