"""What the device does: the floors that other figures are shares of, and what a step waits for."""

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.report import Note
from benchmarks.gpu.tiny import Started
from models.devices import running_on
from models.spec import PromptRow
from tests.tiny_models import make_adapter, make_model, spec_of

SECONDS_OF_A_PLAN = 5e-3
"""A first call that takes longer makes a plan."""


def timed(device: torch.device, run: Callable[[], Any], repeats: int = 10) -> float:
    """Median seconds of a call, the device's work included."""
    taken = []
    for _ in range(repeats + 2):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, is_quick: bool) -> tuple[float, float]:
    """Bytes a second of a copy, read and written; operations a second of a product in bfloat16."""
    count = 2**24 if is_quick else 2**31
    source, target = (torch.empty(count, dtype=torch.int8, device=device) for _ in range(2))
    rate = 2 * count / timed(device, lambda: target.copy_(source))
    size = 256 if is_quick else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return rate, 2 * size**3 / timed(device, lambda: left @ right)


def floors(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """What the card does at best, and what a launch and a small upload cost the host."""
    place = torch.device(device)
    if place.type == "cuda":
        found = torch.cuda.get_device_properties(place)
        note("device", None, f"{found.name}, {found.total_memory / 2**30:.0f} GiB", {"bytes": found.total_memory})
    rate, operations = ceilings(place, is_quick)
    text = f"{rate / 1e12:.2f} TB/s, {operations / 1e12:.0f} TFLOP/s"
    note("copy, product in bfloat16", None, text, {"bytes_per_second": rate, "flops": operations})
    numbers = torch.zeros(1, device=place)
    launch = timed(place, lambda: [numbers.add_(1) for _ in range(200)]) / 200
    upload = timed(place, lambda: [torch.tensor([1, 2, 3], device=place) for _ in range(50)]) / 50
    text = f"{launch * 1e6:.1f} µs, {upload * 1e6:.1f} µs"
    note("a launch, a torch.tensor(device)", None, text, {"launch": launch, "upload": upload})


def new_shapes(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """What attention over a prompt of a new length costs, as the engine runs it."""
    place, taken = torch.device(device), []
    with running_on(place):
        for tokens in (33, 57, 91, 143):
            query = torch.randn(1, 8, 4 * tokens, 128, device=place, dtype=torch.bfloat16)
            keys = torch.randn(1, 8, -(-tokens // 16) * 16, 128, device=place, dtype=torch.bfloat16)
            mask = torch.ones(1, 1, 4 * tokens, keys.shape[2], dtype=torch.bool, device=place)
            synchronize(place)
            start = time.perf_counter()
            scaled_dot_product_attention(query, keys, keys, attn_mask=mask)
            synchronize(place)
            taken.append(time.perf_counter() - start)
    first = statistics.median(taken[1:])
    is_ok = first < SECONDS_OF_A_PLAN if place.type == "cuda" else None
    note("attention of a new shape", is_ok, f"{first * 1e3:.2f} ms", {"seconds": first})


def waits(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """Every place where a step waits for the device, by line; on CUDA alone."""
    if torch.device(device).type != "cuda":
        return
    base = make_model(folder / "base")
    arms = ("own", make_adapter(folder / "own", base), 0.7), ("other", make_model(folder / "other", seed=3), 0.5)
    started = Started(folder, device, spec_of(base, *arms, temperature=0.9, ignore_eos=True))
    for index in range(5):
        row = {"prompt": "p" * (3 + index), "sampling": {"max_new_tokens": 30}}
        started.engine.submit(started.guided, PromptRow.parse(row, index, started.spec))
    for name, before in (("of a step with prompts", 0), ("of a decode step", 4)):
        for _ in range(before):
            started.engine.step()
        found = places_of_waits(started.engine.step)
        note(f"waits {name}", None, f"{found.total()}: {dict(found)}", {"waits": found.total()})


def places_of_waits(run: Callable[[], Any]) -> Counter[str]:
    """Where a call waits for the current CUDA device, by the innermost line of the engine."""
    found: Counter[str] = Counter()

    def count(*told: Any, **named: Any) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/models/" in frame.filename]
        ours = [frame for frame in ours if "site-packages" not in frame.filename]
        found[f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found
