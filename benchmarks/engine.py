"""How fast the engine decodes, beside its peers: a table, or one JSON object per workload.

    python benchmarks/engine.py --base MODEL [--vllm PYTHON] [--only NAME ...]
        [--dtype float32] [--isa avx2] [--json]

MODEL is a reference, such as a folder or a .gguf file; the ARM is a second full copy of the same weights unless the
workload says otherwise. A workload and its peer run in turn, and medians are compared, since machines are shared and
noisy. Exit 1: a bar was missed.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

if not __package__:  # run as a file, beside whose folder the packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import isa
from benchmarks.workloads import WORKLOADS, Bench, Measured, Workload
from models.errors import ModelsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--vllm", help="Python of an environment with vLLM")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; vLLM chooses its own")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16, of all models")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="some of the workloads")
    parser.add_argument("--repeats", type=int, default=5, help="turns after one to warm up; uneven: two at most")
    parser.add_argument("--json", action="store_true", help="one JSON object per workload")
    isa.add_option(parser)
    options = parser.parse_args(arguments)
    isa.hold_to(options.isa, parser)
    met = []
    with ExitStack() as stack:
        try:
            bench = Bench(
                options.base, options.home, options.device, options.dtype, options.repeats, options.vllm, stack
            )
        except ModelsError as error:
            parser.error(str(error))
        if not options.json:
            print("| workload | what | ours | peer | ratio | bar | |\n| --- | --- | ---: | ---: | ---: | --- | --- |")
        for name in options.only:
            workload = WORKLOADS[name]
            measured = workload.measure(bench)
            met.append(workload.is_met(measured))
            print((_json if options.json else _row)(name, workload, measured), flush=True)
            _free()
    return int(False in met)


def _free() -> None:
    """Let go of the engines of the last workload, which the next has no memory beside on a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _json(name: str, workload: Workload, measured: Measured) -> str:
    figures = {"ours": measured.ours, "peer": measured.peer}
    facts = {
        "workload": name,
        "what": workload.what,
        **{side: taken and _short(statistics.median(taken)) for side, taken in figures.items()},
        "ratio": measured.ratio and _short(measured.ratio),
        "bar": workload.bar,
        "at_most": workload.at_most,
        "met": workload.is_met(measured),
        "spread": {side: taken and [_short(min(taken)), _short(max(taken))] for side, taken in figures.items()},
    }
    return json.dumps(facts, ensure_ascii=False)


def _row(name: str, workload: Workload, measured: Measured) -> str:
    bar = f"{'≤' if workload.at_most else '≥'} {workload.bar}" if workload.bar is not None else ""
    met = {True: "met", False: "MISSED", None: ""}[workload.is_met(measured)]
    ratio = f"{measured.ratio:.4g}" if measured.ratio is not None else ""
    figures = f"{_shown(measured.ours)} | {_shown(measured.peer)} | {ratio}"
    return f"| {name} | {workload.what} | {figures} | {bar} | {met} |"


def _shown(figures: list[float] | None) -> str:
    """Their median, and the least and the greatest beside it where they differ."""
    if not figures:
        return ""
    least, median, greatest = (f"{_short(one):g}" for one in (min(figures), statistics.median(figures), max(figures)))
    return median if least == greatest else f"{median} ({least} – {greatest})"


if __name__ == "__main__":
    sys.exit(main())
