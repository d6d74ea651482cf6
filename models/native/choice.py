"""What runs models fastest on this machine's CPU: measured once, and kept beside the compiled kernels."""

import hashlib
import json
import logging
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from models.errors import SpecError
from models.native.build import (
    NO_COMPILER,
    Build,
    alone,
    compile_missing,
    find_build,
    find_compiler,
    folder,
    held_to,
    instruction_set,
)
from models.native.kernels import DEFINES, Kernels, kernels_for
from models.native.speeds import measure_speeds

log = logging.getLogger(__name__)

CLEARLY = 1.2
"""How many times faster something must be to be preferred to what rounds less, or gives the same bits in any batch."""
PREFERENCES = ("native float32", "native bfloat16", "torch float32", "torch bfloat16")


@dataclass(frozen=True)
class Speeds:
    """GFLOP/s of linear layers by `native float32`, `torch bfloat16` and so on; empty where nothing was measured."""

    gflops: dict[str, float]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of models that leave it open: the first of PREFERENCES that nothing is clearly faster than."""
        best = max(self.gflops.values(), default=0.0)
        chosen = (name for name in PREFERENCES if self.gflops.get(name, 0.0) * CLEARLY >= best)
        return torch.bfloat16 if next(chosen).endswith("bfloat16") else torch.float32

    def prefer_kernels(self, dtype: torch.dtype) -> bool:
        """Whether our kernels run models of a dtype: unless PyTorch's operations are clearly faster."""
        if dtype == torch.bfloat16 and has_bfloat16():
            return True  # in whole models the rest decides, where PyTorch has matrix units (AMX) for its products
        name = _name(dtype)
        return self.gflops.get(f"native {name}", 0.0) * CLEARLY >= self.gflops.get(f"torch {name}", 0.0)


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16, and PyTorch is not held to a lesser one."""
    return held_to() == "native" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def auto_dtype(use_kernels: bool | None) -> torch.dtype:
    """The dtype of models that leave it open.

    Args:
        use_kernels: run them with our kernels, or with PyTorch's operations; None: with what is faster.
    """
    if has_bfloat16():
        return torch.bfloat16
    if use_kernels is False or find_compiler() is None:
        return torch.float32
    gflops = speeds().gflops
    if use_kernels:
        gflops = {name: speed for name, speed in gflops.items() if name.startswith("native")}
    return Speeds(gflops).dtype


def chosen_kernels(dtype: torch.dtype, use_kernels: bool | None) -> Kernels | None:
    """The kernels that models of a dtype run with on the CPU; None: PyTorch's operations.

    Args:
        use_kernels: as of `auto_dtype`.

    Raises:
        SpecError: they are to run with kernels that cannot be had.
    """
    if use_kernels is False or dtype not in DEFINES:
        return None
    if use_kernels is None and find_compiler() is not None and not speeds().prefer_kernels(dtype):
        return None
    kernels = kernels_for(torch.device("cpu"), dtype)
    if use_kernels and kernels is None:
        why = "the kernels do not compile here; the log says why" if find_compiler() else NO_COMPILER
        raise SpecError(f"GENARM_KERNELS=native: {why}")
    return kernels


def is_known(use_kernels: bool | None) -> bool:
    """Whether `auto_dtype` has its answer without compiling and measuring."""
    return has_bfloat16() or use_kernels is False or find_compiler() is None or kept_speeds() is not None


@cache
def speeds() -> Speeds:
    """The speeds of this machine, measured where they are not kept from an earlier time, and then kept."""
    return kept_speeds() or measured_speeds()


def kept_speeds() -> Speeds | None:
    """The speeds that were measured before; None where they were not."""
    path = _path()
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())["gflops"]
        return Speeds({name: float(found[name]) for name in PREFERENCES})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def measured_speeds(anew: bool = False) -> Speeds:
    """Compile the kernels, measure, and keep what was found; another process may have done so meanwhile.

    Args:
        anew: measure although speeds are kept.
    """
    with suppress(OSError, subprocess.SubprocessError):  # which is logged where the kernels are loaded
        compile_missing(_builds())
    path = _path()
    with alone():
        if not anew and (kept := kept_speeds()) is not None:
            return kept
        log.info("measuring our kernels and PyTorch, once for this machine (about 2 s)")
        found = Speeds(measure_speeds())
        if path is not None and set(found.gflops) == set(PREFERENCES):
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps({"gflops": found.gflops}))
            unfinished.replace(path)
    log.info("measured %s", described(found))
    return found


def described(found: Speeds) -> str:
    """Speeds and what follows from them, for people."""
    figures = ", ".join(f"{name} {found.gflops[name]:.0f}" for name in PREFERENCES if name in found.gflops)
    ours = [_name(dtype) for dtype in (torch.float32, torch.bfloat16) if found.prefer_kernels(dtype)]
    dtype = torch.bfloat16 if has_bfloat16() else found.dtype
    kernels = f"our kernels run models in {' and '.join(ours)}" if ours else "PyTorch's operations run all models"
    return f"{figures} GFLOP/s a thread; dtype auto is {_name(dtype)}, and {kernels}"


def state() -> str:
    """Whether the kernels are compiled, and what was measured, for people; compiles and measures nothing."""
    builds = _builds()
    if not builds:
        return NO_COMPILER
    how = f"with {builds[0].compiler} for {instruction_set()}"
    if not all(build.is_compiled for build in builds):
        return f"not compiled yet; the first model has them compiled {how}, which takes about 20 s"
    found = kept_speeds()
    return f"compiled {how}; {described(found) if found else 'not measured yet'}"


def _builds() -> list[Build]:
    return [build for define in DEFINES.values() if (build := find_build(define)) is not None]


def _path() -> Path | None:
    """Where the speeds are kept: named by all that they depend on; None where there is no compiler."""
    builds = _builds()
    if not builds:
        return None
    digest = hashlib.sha256("\0".join([torch.__version__, *(build.path.name for build in builds)]).encode())
    return folder() / f"speeds-{digest.hexdigest()[:16]}.json"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
