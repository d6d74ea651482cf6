"""Storage of keys and values in blocks; knows no requests."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's keys and values."""

    heads: int
    key_dim: int
    value_dim: int


class KVCache:
    """Preallocated keys and values of one backbone, one pair of tensors a layer, in blocks.

    Block b holds the tokens at slots b·block_size .. (b+1)·block_size − 1; a sequence's tokens lie in the blocks of its
    block table, in order.

    Args:
        shapes: a shape for each layer index of the model.
        blocks: how many blocks to hold.
        block_size: tokens per block.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size

        def storage(heads: int, dim: int) -> Tensor:
            return torch.zeros(blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.keys = {layer: storage(shape.heads, shape.key_dim) for layer, shape in shapes.items()}
        self.values = {layer: storage(shape.heads, shape.value_dim) for layer, shape in shapes.items()}

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of a step's tokens.

        Args:
            slots: where each token goes, int64 [tokens].
            keys: [tokens, heads, key_dim].
            values: [tokens, heads, value_dim].
        """
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of sequences by their block tables.

        Args:
            tables: block numbers, int64 [n, blocks], padded with any valid block.

        Returns:
            keys [n, heads, blocks·block_size, key_dim] and values [n, heads, blocks·block_size, value_dim].
        """
        n, blocks = tables.shape
        flat = tables.flatten()
        length = blocks * self.block_size
        keys = self.keys[layer].index_select(0, flat).view(n, length, *self.keys[layer].shape[2:])
        values = self.values[layer].index_select(0, flat).view(n, length, *self.values[layer].shape[2:])
        return keys.transpose(1, 2), values.transpose(1, 2)


def bytes_per_token(shapes: dict[int, LayerShape], dtype: torch.dtype) -> int:
    """Bytes that one token takes in all layers."""
    return sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes.values()) * dtype.itemsize
