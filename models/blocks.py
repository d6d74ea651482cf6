"""Accounting of KV cache memory: which blocks are whose, and what they hold; knows no tensors and no requests."""

from array import array
from collections import OrderedDict

BLOCK_SIZE = 16
"""Tokens per block, in every KV cache."""


class BlockPool:
    """Hands out block numbers 0..count-1 of one KV cache.

    A full block may be published under a digest of all tokens up to its end; a sequence that begins with the same
    tokens shares it instead of computing it again. A block that nobody holds any more keeps what it holds until its
    memory is needed, least recently used first.

    Args:
        count: how many blocks there are.
        block_size: tokens per block.
    """

    def __init__(self, count: int, block_size: int = BLOCK_SIZE) -> None:
        self.count = count
        self.block_size = block_size
        self._empty = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Published blocks that nobody holds, the least recently used first."""
        self._holders: dict[int, int] = {}
        """How many tables hold each block."""
        self._digests: dict[int, bytes] = {}
        self._published: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._empty) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks `tokens` tokens fill."""
        return -(-tokens // self.block_size)

    def grow(self, table: "array[int]", tokens: int) -> None:
        """Append blocks to a block table until it holds `tokens` tokens; the caller has checked that they are free."""
        for _ in range(self.blocks_for(tokens) - len(table)):
            block = self._empty.pop() if self._empty else self._evict()
            self._holders[block] = 1
            table.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._published[self._digests.pop(block)]
        return block

    def release(self, table: "array[int]") -> None:
        """Let go of all blocks of a table and empty it; the ends of sequences are evicted before their beginnings."""
        for block in reversed(table):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                if block in self._digests:
                    self._idle[block] = None
                else:
                    self._empty.append(block)
        del table[:]

    def publish(self, block: int, digest: bytes) -> None:
        """Offer a full block that somebody holds to others; the first one with a digest stays."""
        if digest not in self._published and block not in self._digests:
            self._published[digest] = block
            self._digests[block] = digest

    def share(self, table: "array[int]", digest: bytes) -> bool:
        """Append the block published under a digest to a table; False where there is none."""
        block = self._published.get(digest)
        if block is None:
            return False
        self._idle.pop(block, None)
        self._holders[block] = self._holders.get(block, 0) + 1
        table.append(block)
        return True

    def forget(self) -> None:
        """Take back all that was published: what the blocks hold is in doubt."""
        self._empty.extend(self._idle)
        self._idle.clear()
        self._digests.clear()
        self._published.clear()
