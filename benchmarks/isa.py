"""An option that holds a benchmark, our kernels and PyTorch alike, to fewer instructions than the machine has."""

import argparse
import os
import sys

import torch

HELD = {
    "native": {},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
"""By the names of --isa: what PyTorch, MKL and oneDNN read as they are loaded. Our kernels follow PyTorch."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --isa."""
    parser.add_argument(
        "--isa",
        choices=HELD,
        default="native",
        help="instructions to use: all of the machine's, AVX-512 without AMX, or AVX2",
    )


def hold_to(isa: str, parser: argparse.ArgumentParser) -> None:
    """Start this process anew, held to an instruction set, unless it is already.

    A machine without these instructions is an error of the command line.
    """
    wanted = HELD[isa]
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
    capability = torch.backends.cpu.get_cpu_capability()
    if wanted and capability.lower() != wanted["ATEN_CPU_CAPABILITY"]:
        parser.error(f"--isa {isa}: this machine's PyTorch has {capability}")
