"""Accounting of KV cache memory: which blocks are free; knows no tensors and no requests."""

from array import array

BLOCK_SIZE = 16
"""Tokens per block, in every KV cache."""


class BlockPool:
    """Hands out block numbers 0..count-1 of one KV cache.

    Args:
        count: how many blocks there are.
        block_size: tokens per block.
    """

    def __init__(self, count: int, block_size: int = BLOCK_SIZE) -> None:
        self.count = count
        self.block_size = block_size
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks `tokens` tokens fill."""
        return -(-tokens // self.block_size)

    def grow(self, table: "array[int]", tokens: int) -> None:
        """Append blocks to a block table until it holds `tokens` tokens; the caller has checked that they are free."""
        for _ in range(self.blocks_for(tokens) - len(table)):
            table.append(self._free.pop())

    def release(self, table: "array[int]") -> None:
        """Take back all blocks of a table and empty it."""
        self._free.extend(reversed(table))
        del table[:]
