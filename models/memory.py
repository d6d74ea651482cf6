"""How much memory there is for models, and how much one takes."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.native.modules import PackedLinear

CUDA_SHARE = 0.9
CPU_SHARE = 0.8
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

MOST_CPU_CACHE_BYTES = 2 * 2**30
WANTED_CACHE_SHARE = 1 / 8
"""Of the budget: models that nobody uses are dropped for a KV cache of this size."""
LEAST_CACHE_SHARE = 1 / 32
"""Of the budget: a KV cache may be so small where the models in use leave no more."""
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""


def default_budget(device: torch.device) -> int:
    """Bytes for models and their KV caches where nothing is set: a share of what is free on a GPU, or of all memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_SHARE)
    return int(_physical_bytes() * CPU_SHARE)


def _physical_bytes() -> int:
    """The machine's memory, or what the container may have of it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CGROUP_LIMITS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def cache_bytes(device: torch.device, budget: int, left: int, need: int, others: int, spare: int) -> int:
    """Bytes of a model's KV cache where nothing is set: in proportion to need, so that none is full before the others.

    Args:
        budget: what all models and caches may take.
        left: what the weights leave of it.
        need: bytes that a token of a sequence takes in this model's cache.
        others: the same of the other models that will share `left`.
        spare: the same of a usual model: as much is kept for the next job's.
    """
    size = max(int(budget * LEAST_CACHE_SHARE) * need // spare, left * need // (need + others + spare))
    return size if device.type == "cuda" else min(size, MOST_CPU_CACHE_BYTES)


def stored_bytes(folder: Path, dtype: torch.dtype | None) -> int:
    """Bytes that the tensors of a folder's safetensors files take in memory, by the files' headers alone.

    Args:
        dtype: what floating-point tensors are loaded as; None: as what they are stored.
    """
    return sum(_tensor_bytes(entry, dtype) for file in folder.glob("*.safetensors") for entry in _header(file))


def _header(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(min(LONGEST_HEADER, int.from_bytes(opened.read(8), "little"))))
    except (OSError, ValueError, RecursionError):
        return  # whoever loads it will say what is wrong with it
    if isinstance(header, dict):
        yield from (entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict))


def _tensor_bytes(entry: dict[str, Any], dtype: torch.dtype | None) -> int:
    try:
        begin, end = entry["data_offsets"]
        if dtype is not None and str(entry["dtype"]).startswith(("F", "BF")):
            return int(math.prod(entry["shape"])) * dtype.itemsize
        return int(end - begin)
    except (KeyError, TypeError, ValueError):
        return 0


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights; what several modules share counts once."""
    packed = (module.weight.panels for module in model.modules() if isinstance(module, PackedLinear))
    storages = {}
    for tensor in (*model.parameters(), *model.buffers(), *packed):
        for part in _parts(tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors of one that may be quantised."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))
