"""float32 on the device gives the CPU's tokens, for every family, with graphs and without, in chunks and preempted."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import Note
from benchmarks.gpu.tiny import Started, differences, rows
from models.completion import Completion
from models.errors import RowError
from tests.tiny_models import FAMILIES, make_adapter, make_model, spec_of

TARGETS = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}
MODES: dict[str, dict[str, Any]] = {
    "graphs": {"static_decode": True},
    "no graphs": {"static_decode": False},
    "chunks of 7": {"prefill_tokens": 7},
    "4 at once": {"max_running": 4},
}
MOST_REWARD_ERROR = 1e-3
SCARCE = (3 * 2**14, 2**16, 3 * 2**15, 2**17, 2**18, 2**19)
"""Bytes of a KV cache; the first that holds the longest row holds few beside it."""


def spec_for(folder: Path, family: str) -> dict[str, Any]:
    """A base, a LoRA ARM that rides on it, and another ARM; two samples of each row."""
    base = make_model(folder / "base", family, seed=1)
    own = make_adapter(folder / "own", base, seed=2, targets=TARGETS.get(family))
    other = make_model(folder / "other", seed=3)
    return spec_of(base, ("own", own, 0.7), ("other", other, 0.5), temperature=1.0, ignore_eos=True, samples=2)


def exactness(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """See the module."""
    written = rows(4 if is_quick else 9)
    for family in list(FAMILIES)[: 2 if is_quick else None]:
        spec = spec_for(folder / family, family)
        expected = Started(folder, "cpu", spec, static_decode=False).completions(written)

        def compare(mode: str, found: list[Completion], expected: Any = expected, family: str = family) -> None:
            total, differing, rewards = differences(found, expected)
            is_ok = differing == 0 and rewards < MOST_REWARD_ERROR
            text = f"{total} tokens, {differing} differ; rewards within {rewards:.1e}"
            note(f"{family}, {mode}", is_ok, text, {"tokens": total, "differing": differing, "rewards": rewards})

        for mode, settings in MODES.items():
            compare(mode, Started(folder, device, spec, **settings).completions(written))
        found, preemptions = scarce(folder, device, spec, written)
        compare(f"preempted {preemptions} times", found)


def scarce(folder: Path, device: str, spec: dict[str, Any], written: Any) -> tuple[list[Completion], int]:
    """Completions with a KV cache that holds a few rows at once, and how often rows were preempted."""
    for size in SCARCE:
        with suppress(RowError):
            started = Started(folder, device, spec, kv_cache_bytes=size)
            return started.completions(written), started.engine.stats().preemptions
    raise AssertionError("no KV cache is large enough")


def drift(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """In bfloat16 another batch may draw another token: how many rows keep all of theirs."""
    written = rows(4 if is_quick else 9)
    started = Started(folder, device, spec_of(make_model(folder / "base"), ignore_eos=True), dtype="bfloat16")
    together = started.completions(written)
    alone = [started.completions([row], [index])[0] for index, row in enumerate(written)]
    same = sum(one.tokens == other.tokens for one, other in zip(together, alone, strict=True))
    note("bfloat16, alone and together", None, f"{same} of {len(written)} rows are the same", {"same": same})
