"""The decode step in static shapes: one token of each sequence, padded to a few sizes, which a CUDA graph replays."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.adapters import Segments
from models.attention import AttentionStep
from models.blocks import BLOCK_SIZE
from models.errors import first_line
from models.gathered_attention import GatheredAttention, GatheredCache, Run, begun_block
from models.packing import Integers
from models.sequence import Chunk

log = logging.getLogger(__name__)

SMALL_BATCHES = (1, 2, 4, 8)
BATCH_STEP = 16
MOST_WASTE = 2
"""A step that would gather more than so many times the tokens that its sequences have runs in its own shape instead."""
MOST_GRAPHS = 64
WARM_UPS = 2

Forward = Callable[[Tensor, Tensor, Tensor, AttentionStep], Tensor]
"""Ids, positions, where logits are wanted (int64 [rows] each) and attention, to logits [rows, rows of the LM head]."""
Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]


def capture_for(device: torch.device) -> Capture:
    """How the steps of a backbone are made to run again: as CUDA graphs over one pool, elsewhere by calling them."""
    if device.type != "cuda":
        return lambda step: step
    pool = torch.cuda.graph_pool_handle()
    return lambda step: _cuda_graph(step, pool)


def _cuda_graph(step: Step, pool: Any) -> Step:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):  # libraries allocate their workspaces at first; the keys written are the same
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # another thread may be loading a model
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


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
    """Memory of one shape, and the step over it."""

    def __init__(
        self, shape: Shape, cache: GatheredCache, segments: Segments, forward: Forward, capture: Capture
    ) -> None:
        self._shape = shape
        self._scratch = cache.scratch
        rows = shape.rows
        self._host = torch.zeros(rows * (4 + shape.blocks), dtype=torch.int64, pin_memory=cache.device.type == "cuda")
        self._numbers: Integers = self._host.numpy()
        self._static = torch.zeros_like(self._host, device=cache.device)
        ids, positions, slots, begun = self._static[: 4 * rows].view(4, rows)
        tables = self._static[4 * rows :].view(rows, shape.blocks)
        everyone = torch.arange(rows, device=cache.device)
        layout, first = [], 0
        for adapter, size in shape.segments:
            if adapter is not None:
                layout.append((adapter, slice(first, first + size)))
            first += size

        def step() -> Tensor:
            segments.tokens = layout
            run = Run(slice(0, rows), rows, tables, positions[:, None])
            return forward(ids, positions, everyone, GatheredAttention(cache, slots, [run], begun))

        self._fill([None] * rows)
        self._replay = capture(step)

    def __call__(self, rows: Sequence[Chunk | None]) -> Tensor:
        """The logits of the rows, padding included, [rows, rows of the LM head]; the next call overwrites them."""
        self._fill(rows)
        return self._replay()

    def _fill(self, rows: Sequence[Chunk | None]) -> None:
        """Write the step's tokens into static memory, in one copy; padding writes its keys where nobody reads."""
        count = self._shape.rows
        ids, positions, slots, begun = self._numbers[: 4 * count].reshape(4, count)
        tables = self._numbers[4 * count :].reshape(count, self._shape.blocks)
        begun[:] = self._scratch
        for index, chunk in enumerate(rows):
            if chunk is None:
                ids[index] = positions[index] = 0
                slots[index], tables[index] = self._scratch * BLOCK_SIZE, self._scratch
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
    """Decode steps of one backbone, by shape; the least recently used are forgotten."""

    def __init__(self, cache: GatheredCache, segments: Segments, forward: Forward, capture: Capture) -> None:
        self._make: Callable[[Shape], StaticStep] = lambda shape: StaticStep(shape, cache, segments, forward, capture)
        self._steps: OrderedDict[Shape, StaticStep] = OrderedDict()
        self._is_off = False

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Chunk]] | None:
        """Run a step of decodes; None where it has no shape worth padding, or the model cannot be captured.

        Returns:
            Logits [n, rows of the LM head], which the next step overwrites, and the chunks that they belong to.
        """
        if self._is_off or any(chunk.count != 1 or chunk.wants != 1 for chunk in chunks):
            return None
        shape, rows = shape_of(chunks)
        if not is_worth_padding(shape, chunks) or (step := self._step(shape)) is None:
            return None
        logits, real = step(rows), [index for index, chunk in enumerate(rows) if chunk is not None]
        is_padded_inside = real[-1] >= len(real)
        wanting = [chunk for chunk in rows if chunk is not None]
        return logits[torch.tensor(real, device=logits.device)] if is_padded_inside else logits[: len(real)], wanting

    def _step(self, shape: Shape) -> StaticStep | None:
        if (step := self._steps.get(shape)) is None:
            try:
                step = self._steps[shape] = self._make(shape)
            except torch.OutOfMemoryError:
                self._steps.clear()  # graphs hold memory of their own
                raise
            except RuntimeError as error:
                log.warning("decoding without CUDA graphs: the model cannot be captured (%s)", first_line(error))
                self._is_off = True
                self._steps.clear()
                return None
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(shape)
        return step
