"""The block cache and attention of the kernels."""

import mmap

import numpy as np
import torch
from torch import Tensor

from models.attention import AttentionStep, LayerShape
from models.blocks import BLOCK_SIZE
from models.native.kernels import BLOCK, MOST_HEAD_DIM, MOST_LANES, Kernels
from models.packing import Integers, PackedStep

assert BLOCK_SIZE == BLOCK, "attention.c has another size of blocks"


class NativeCache:
    """Keys and values of one backbone in the layout of attention.c, one pair of tensors a layer.

    Memory is taken as it is first written.

    Args:
        shapes: a shape for each layer index of the model.
        blocks: how many blocks to hold.
    """

    def __init__(self, shapes: dict[int, LayerShape], blocks: int, kernels: Kernels) -> None:
        self.kernels = kernels
        self.keys = {
            layer: _zeros(blocks * shape.heads * BLOCK_SIZE * shape.key_dim, kernels.dtype)
            for layer, shape in shapes.items()
        }
        self.values = {
            layer: _zeros(blocks * shape.heads * BLOCK_SIZE * shape.value_dim + MOST_LANES, kernels.dtype)
            for layer, shape in shapes.items()
        }

    @staticmethod
    def fits(shapes: dict[int, LayerShape], kernels: Kernels) -> bool:
        """Whether the kernels can run heads of these shapes."""
        return all(
            shape.key_dim % kernels.step == 0 and max(shape.key_dim, shape.value_dim) <= MOST_HEAD_DIM
            for shape in shapes.values()
        )

    def step(self, packed: PackedStep) -> AttentionStep:
        """See AttentionCache.step."""
        chunks = [
            (start, chunk.count, chunk.stream.cached, chunk.stream.blocks.buffer_info()[0])
            for start, chunk in zip(packed.starts, packed.chunks, strict=True)
        ]
        return NativeAttention(self, np.array(chunks, np.int64))


def _zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take memory page by page as they are written (torch.zeros writes all, numpy asks for huge pages)."""
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype)


class NativeAttention:
    """Attention of one step.

    Args:
        chunks: first token, count, position, address of the block table; int64 [chunks, 4].
    """

    def __init__(self, cache: NativeCache, chunks: Integers) -> None:
        self.cache = cache
        self.chunks = chunks

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return self.cache.kernels.attend(query, key, value, keys, values, self.chunks, scaling, window)
