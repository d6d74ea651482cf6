"""The tokens that a backbone runs in one step, one after the other; knows no tensors of torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.sequence import Chunk

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class PackedStep:
    """Chunks side by side."""

    chunks: Sequence[Chunk]
    starts: list[int]
    """Where each chunk's tokens begin."""
    ids: Integers
    """[tokens]."""
    positions: Integers
    """[tokens]."""
    wanted_tokens: list[int]
    """Where the logits are wanted."""
    wanting: list[Chunk]
    """Whose logits these are, in the same order, as many as each wants."""
    adapters: list[tuple[str, slice]]
    """The rows of each adapter; rows without one are left out."""


def pack(chunks: Sequence[Chunk]) -> PackedStep:
    """Order a step's chunks, those of one adapter together and decodes of similar length together, and lay them out."""
    order = sorted(chunks, key=_by_adapter_then_length)
    ids: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    wanted_tokens: list[int] = []
    wanting: list[Chunk] = []
    adapters: list[tuple[str, slice]] = []
    for chunk in order:
        stream, first = chunk.stream, chunk.stream.cached
        start, end = len(ids), len(ids) + chunk.count
        starts.append(start)
        ids.extend(stream.tokens[first : first + chunk.count])
        positions.extend(range(first, first + chunk.count))
        if chunk.wants:
            wanted_tokens.extend(range(end - chunk.wants, end))
            wanting.append(chunk)
        if stream.adapter is not None:
            if adapters and adapters[-1][0] == stream.adapter:
                start = adapters.pop()[1].start
            adapters.append((stream.adapter, slice(start, end)))
    return PackedStep(
        order, starts, np.array(ids, np.int64), np.array(positions, np.int64), wanted_tokens, wanting, adapters
    )


def _by_adapter_then_length(chunk: Chunk) -> tuple[str, int, int]:
    return chunk.stream.adapter or "", chunk.count, chunk.stream.cached
