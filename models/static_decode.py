"""The decode step in static shapes: one token of each sequence, padded to a few sizes, which a CUDA graph replays."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from models.adapters import Segments
from models.attention import AttentionStep
from models.blocks import BLOCK_SIZE
from models.errors import first_line
from models.failures import is_out_of_memory
from models.gathered_attention import GatheredAttention, GatheredCache, Run, begun_block
from models.graph_capture import Capture
from models.packing import Integers
from models.sequence import Chunk

log = logging.getLogger(__name__)

SMALL_BATCHES = (1, 2, 4, 8)
BATCH_STEP = 16
MOST_WASTE = 2
"""A step that would gather more than so many times the tokens that its sequences have runs in its own shape instead."""
MOST_GRAPHS = 64

ILLEGAL_IN_CAPTURES = "captur"
"""CUDA says "operation not permitted when stream is capturing", or "… due to a previous error during capture"."""
MOST_FAILED_CAPTURES = 3
"""In a row: then the model runs without graphs."""

Forward = Callable[[Tensor, Tensor, Tensor, AttentionStep], Tensor]
"""Ids, positions, where logits are wanted (int64 [rows] each) and attention, to logits [rows, rows of the LM head]."""


@dataclass(frozen=True)
class Shape:
    """The shape of a step: all that a captured one depends on beside its static memory."""

    segments: tuple[tuple[str | None, int], ...]
    """Adapter and rows, padding included, in the order of the rows."""
    blocks: int
    """Blocks of each row's table, padding included."""

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return sum(rows for _, rows in self.segments)

    @property
    def adapters(self) -> list[tuple[str, slice]]:
        """The rows of each adapter; rows without one are left out."""
        ends = accumulate(size for _, size in self.segments)
        return [
            (adapter, slice(end - size, end))
            for (adapter, size), end in zip(self.segments, ends, strict=True)
            if adapter is not None
        ]


def shape_of(chunks: Sequence[Chunk]) -> tuple[Shape, list[Chunk | None]]:
    """The padded shape of a decode step, and which chunk is in which of its rows."""
    by_adapter: dict[str | None, list[Chunk]] = {}
    for chunk in sorted(chunks, key=lambda chunk: chunk.stream.adapter or ""):
        by_adapter.setdefault(chunk.stream.adapter, []).append(chunk)
    segments, rows = [], list[Chunk | None]()
    for adapter, own in by_adapter.items():
        size = _batch_bucket(len(own))
        segments.append((adapter, size))
        rows += [*own, *[None] * (size - len(own))]
    return Shape(tuple(segments), _power_of_two(max(_blocks(chunk) for chunk in chunks))), rows


def is_worth_padding(shape: Shape, chunks: Sequence[Chunk]) -> bool:
    """Whether the padded step gathers few enough blocks beyond those that there are."""
    return shape.rows * shape.blocks <= MOST_WASTE * sum(_power_of_two(_blocks(chunk)) for chunk in chunks)


def _blocks(chunk: Chunk) -> int:
    return chunk.stream.cached // BLOCK_SIZE + 1


def _batch_bucket(count: int) -> int:
    return next((size for size in SMALL_BATCHES if size >= count), -(-count // BATCH_STEP) * BATCH_STEP)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


class StaticStep:
    """Memory of one shape, and the step over it; it owns all that a replay reads beside the model and its cache."""

    def __init__(
        self, shape: Shape, cache: GatheredCache, segments: Segments, forward: Forward, capture: Capture
    ) -> None:
        self._shape, self._cache, self._segments, self._forward = shape, cache, segments, forward
        rows = shape.rows
        self._host = torch.zeros(rows * (4 + shape.blocks), dtype=torch.int64, pin_memory=cache.device.type == "cuda")
        self._numbers: Integers = self._host.numpy()
        self._static = torch.zeros_like(self._host, device=cache.device)
        self._everyone = torch.arange(rows, device=cache.device)
        self._fill([None] * rows)
        self._replay = capture(self._run)

    def _run(self) -> Tensor:
        """The step, as it is captured: it may read nothing that this object does not keep."""
        rows = self._shape.rows
        ids, positions, slots, begun = self._static[: 4 * rows].view(4, rows)
        tables = self._static[4 * rows :].view(rows, self._shape.blocks)
        self._segments.tokens = self._shape.adapters
        run = Run(slice(0, rows), rows, tables, positions[:, None])
        attention = GatheredAttention(self._cache, slots, [run], begun)
        return self._forward(ids, positions, self._everyone, attention)

    def __call__(self, rows: Sequence[Chunk | None]) -> Tensor:
        """The logits of the rows, padding included, [rows, rows of the LM head]; the next call overwrites them."""
        self._fill(rows)
        return self._replay()

    def _fill(self, rows: Sequence[Chunk | None]) -> None:
        """Write the step's tokens into static memory, in one copy; padding writes its keys where nobody reads."""
        count = self._shape.rows
        ids, positions, slots, begun = self._numbers[: 4 * count].reshape(4, count)
        tables = self._numbers[4 * count :].reshape(count, self._shape.blocks)
        begun[:] = scratch = self._cache.scratch
        for index, chunk in enumerate(rows):
            if chunk is None:
                ids[index] = positions[index] = 0
                slots[index], tables[index] = scratch * BLOCK_SIZE, scratch
                continue
            stream = chunk.stream
            ids[index], positions[index] = stream.tokens[stream.cached], stream.cached
            blocks = np.frombuffer(stream.blocks, np.int64)[: _blocks(chunk)]
            slots[index] = blocks[-1] * BLOCK_SIZE + stream.cached % BLOCK_SIZE
            if (block := begun_block(chunk)) is not None:
                begun[index] = block
            tables[index, : len(blocks)] = blocks
            tables[index, len(blocks) :] = blocks[0]
        self._static.copy_(self._host, non_blocking=True)


class StaticDecode:
    """Decode steps of one backbone, by shape; the least recently used are forgotten.

    Args:
        new_capture: how steps are captured; asked again after all of them have been forgotten.
    """

    def __init__(
        self, cache: GatheredCache, segments: Segments, forward: Forward, new_capture: Callable[[], Capture]
    ) -> None:
        self._new_capture = new_capture
        self._capture: Capture | None = None
        self._make: Callable[[Shape, Capture], StaticStep] = lambda shape, capture: StaticStep(
            shape, cache, segments, forward, capture
        )
        self._steps: OrderedDict[Shape, StaticStep] = OrderedDict()
        self._failures = 0
        """Captures that failed since the last one that did not."""

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Chunk]] | None:
        """Run a step of decodes; None where it has no shape worth padding, or cannot be captured.

        Returns:
            Logits [n, rows of the LM head], which the next step overwrites, and the chunks that they belong to.
        """
        if self._failures >= MOST_FAILED_CAPTURES or any(chunk.count != 1 or chunk.wants != 1 for chunk in chunks):
            return None
        shape, rows = shape_of(chunks)
        if not is_worth_padding(shape, chunks) or (step := self._step(shape)) is None:
            return None
        logits, real = step(rows), [index for index, chunk in enumerate(rows) if chunk is not None]
        is_padded_inside = real[-1] >= len(real)
        wanting = [chunk for chunk in rows if chunk is not None]
        return logits[torch.tensor(real, device=logits.device)] if is_padded_inside else logits[: len(real)], wanting

    def forget(self, adapter: str) -> None:
        """Forget the steps of an adapter that is detached, with their memory."""
        for shape in [shape for shape in self._steps if any(name == adapter for name, _ in shape.segments)]:
            del self._steps[shape]
        if not self._steps:
            self._forget_all()

    def _forget_all(self) -> None:
        self._steps.clear()
        self._capture = None  # the memory of its graphs may be gone

    def _step(self, shape: Shape) -> StaticStep | None:
        if (step := self._steps.get(shape)) is None:
            self._capture = self._capture or self._new_capture()
            try:
                step = self._steps[shape] = self._make(shape, self._capture)
            except Exception as error:
                self._forget_all()  # graphs hold memory of their own
                if not isinstance(error, RuntimeError) or is_out_of_memory(error):
                    raise
                self._note_failure(error)
                return None
            self._failures = 0
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(shape)
        return step

    def _note_failure(self, error: RuntimeError) -> None:
        self._failures = MOST_FAILED_CAPTURES if ILLEGAL_IN_CAPTURES in str(error) else self._failures + 1
        is_off = self._failures >= MOST_FAILED_CAPTURES
        what = "decoding without CUDA graphs: the model" if is_off else "this step runs without CUDA graphs: it"
        log.warning("%s cannot be captured (%s)", what, first_line(error))
