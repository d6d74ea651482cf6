"""Milliseconds for all linear layers of a llama by rows: PyTorch's, oneDNN's with packed weights, and our kernels.

    python -m benchmarks.linear --base MODEL [--isa avx2]

The CPU only. Every layer has weights of its own, so that they come from memory as in a forward pass. The sides take
turns; a side that cannot run, or takes longer than five seconds for a pass, is left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks import isa
from models.loading import describe
from models.native.kernels import Kernels, kernels_for
from models.native.modules import PackedLinear

ROWS = (1, 8, 32, 64, 128, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDES = ("PyTorch", "oneDNN, packed", "ours")
TURNS = 9
SLOW_MS = 5000.0
"""A side that takes longer for a pass is left out for that and more rows: bfloat16 where the CPU has none."""

Layer = Callable[[Tensor], Tensor]


def onednn(layer: nn.Linear, rows: int) -> Layer:
    """The layer with its weights in the order that oneDNN wants for so many rows, as torch.compile freezes them."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    return lambda states: torch.ops.mkldnn._linear_pointwise(states, weight, layer.bias, "none", [], "")


def milliseconds(layers: list[Layer], states: list[Tensor]) -> float:
    """Of one pass through all layers."""
    started = time.perf_counter()
    for layer, state in zip(layers, states, strict=True):
        layer(state)
    return 1000 * (time.perf_counter() - started)


class Bench:
    """All linear layers of a model but the LM head, on each side."""

    def __init__(self, config: object, kernels: Kernels) -> None:
        model = AutoModelForCausalLM.from_config(config, dtype=kernels.dtype)
        self.dtype = kernels.dtype
        self.plain = [module for module in model.model.modules() if type(module) is nn.Linear]
        self.ours: list[Layer] = [PackedLinear(kernels, layer) for layer in self.plain]
        self._left_out: set[str] = set()

    def medians(self, rows: int) -> dict[str, float]:
        """Milliseconds of each side for so many rows; none for a side that cannot run or takes too long."""
        states = [torch.randn(rows, layer.in_features, dtype=self.dtype) for layer in self.plain]
        sides = {name: found for name in SIDES if (found := self._warmed(name, rows, states)) is not None}
        turns = [{name: milliseconds(layers, states) for name, layers in sides.items()} for _ in range(TURNS)]
        return {name: statistics.median(turn[name] for turn in turns) for name in sides}

    def _warmed(self, side: str, rows: int, states: list[Tensor]) -> list[Layer] | None:
        """The layers of a side after one pass; None if there is no such pass in time, now and for more rows."""
        if side in self._left_out:
            return None
        started = time.perf_counter()
        try:
            layers = self._layers(side, rows)
            for layer, state in zip(layers, states, strict=True):
                layer(state)
                if 1000 * (time.perf_counter() - started) > SLOW_MS:
                    break
            else:
                return layers
        except RuntimeError as error:  # oneDNN has no bfloat16 on every CPU
            print(f"{side}: {str(error).splitlines()[0]}", file=sys.stderr)
        self._left_out.add(side)
        return None

    def _layers(self, side: str, rows: int) -> list[Layer]:
        if side == "oneDNN, packed":
            return [onednn(layer, rows) for layer in self.plain]
        return self.ours if side == "ours" else list(self.plain)


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    isa.add_option(parser)
    options = parser.parse_args()
    isa.hold_to(options.isa, parser)
    config = describe(options.base, options.home).config
    for dtype in options.dtypes:
        kernels = kernels_for(torch.device("cpu"), DTYPES[dtype])
        if kernels is None:
            parser.error("the kernels do not compile here")
        bench = Bench(config, kernels)
        print(f"\n| {dtype}, rows | {' | '.join(SIDES)} |\n| ---: {'| ---: ' * len(SIDES)}|")
        with torch.inference_mode():
            for rows in options.rows:
                medians = bench.medians(rows)
                cells = (f"{medians[side]:.1f}" if side in medians else "" for side in SIDES)
                print(f"| {rows} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
