"""Milliseconds for all linear layers of a llama by rows: PyTorch's, oneDNN's with packed weights, and our kernels.

    python -m benchmarks.linear --base MODEL

The CPU only, in bfloat16. Every layer has weights of its own, so that they come from memory as in a forward pass.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from models.loading import describe
from models.native.kernels import kernels_for
from models.native.modules import PackedLinear

ROWS = (1, 8, 32, 64, 128, 512)
TURNS = 9

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


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    options = parser.parse_args()
    kernels = kernels_for(torch.device("cpu"), torch.bfloat16)
    if kernels is None:
        parser.error("the kernels do not compile here")
    model = AutoModelForCausalLM.from_config(describe(options.base, options.home).config, dtype=torch.bfloat16)
    plain = [module for module in model.model.modules() if type(module) is nn.Linear]
    ours: list[Layer] = [PackedLinear(kernels, layer) for layer in plain]
    print("| rows | PyTorch | oneDNN, packed | ours |\n| ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for rows in ROWS:
            states = [torch.randn(rows, layer.in_features, dtype=torch.bfloat16) for layer in plain]
            sides: list[list[Layer]] = [list(plain), [onednn(layer, rows) for layer in plain], ours]
            turns = [[milliseconds(side, states) for side in sides] for _ in range(TURNS)]
            medians = (statistics.median(side) for side in zip(*turns[1:], strict=True))
            print(f"| {rows} | {' | '.join(f'{one:.1f}' for one in medians)} |", flush=True)


if __name__ == "__main__":
    main()
