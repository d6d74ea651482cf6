"""All checks of a GPU, in one call of under nine minutes on a machine that may be bare and offline.

    make gpu                               # with the environment of this folder
    make gpu WHEELS=folder PYTHON=python3  # with a Python that has torch, and wheels of what it lacks

Each check has a process of its own, so that one that kills the device spares the next. A line is printed for each thing
that a check saw: `ok`, `FAIL`, or `..` before a figure. With `--device cpu --quick` the same paths run without a GPU.
"""

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.report import Finding

CHECKS = {
    "exactness": ("exactness", 130),
    "nan_row": ("faults", 40),
    "failed_capture": ("faults", 40),
    "out_of_memory": ("faults", 40),
    "drift": ("exactness", 40),
    "waits": ("device", 40),
    "new_shapes": ("device", 40),
    "floors": ("device", 40),
    "throughput": ("throughput", 240),
}
"""The module of each, where a function has its name, and the most seconds that it gets on a GPU."""
GPU_SECONDS, CPU_SECONDS = 530, 3600
RESULTS = Path("benchmarks/results/gpu.json")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes and two families")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--seconds", type=float, help=f"of all checks; {GPU_SECONDS} on a GPU, else {CPU_SECONDS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON is written")
    parser.add_argument("--here", choices=CHECKS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_here(name: str, where: str, is_quick: bool) -> None:
    """Run a check in this process, and print its findings as JSON; what it raises is one too."""

    def note(what: str, is_ok: bool | None, text: str, figures: dict[str, float]) -> None:
        print(Finding(name, what, is_ok, text, figures).json(), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        try:
            module = importlib.import_module(f"benchmarks.gpu.{CHECKS[name][0]}")
            getattr(module, name)(Path(folder), where, is_quick, note)
        except Exception as error:
            note("ended", False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", {})


def run_apart(name: str, options: argparse.Namespace, seconds: float) -> Iterator[Finding]:
    """Run a check in a process of its own; one that dies or takes too long is a finding."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--here", name, "--device", options.device]
    child = subprocess.Popen(
        [*command, *["--quick"] * options.quick], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate(timeout=seconds)
        why = (err.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        child.kill()
        out, why = child.communicate()[0], f"took more than {seconds:.0f} s"
    finally:
        child.kill()
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # libraries print too
            yield Finding(**json.loads(line))
    if child.returncode:
        yield Finding(name, "ended", False, f"exit {child.returncode}: {why[:200]}")


def findings(options: argparse.Namespace) -> Iterator[Finding]:
    """Run the checks, one after the other, as long as there is time."""
    is_gpu = options.device.startswith("cuda")
    end = time.monotonic() + (options.seconds or (GPU_SECONDS if is_gpu else CPU_SECONDS))
    for name in options.only:
        left = end - time.monotonic()
        if left > 0:
            yield from run_apart(name, options, min(left, CHECKS[name][1]) if is_gpu else left)
        else:
            yield Finding(name, "left out", False, "there was no time for it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; 1 where one failed."""
    options = parse(arguments)
    if options.here:
        run_here(options.here, options.device, options.quick)
        return 0
    found: list[Finding] = []
    for one in findings(options):
        found.append(one)
        print(one.line(), flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(one.json() for one in found)
    options.results.write_text(f"[\n{lines}\n]\n")
    print(f"-> {options.results}")
    return int(any(one.is_ok is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
