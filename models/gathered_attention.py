"""Attention in PyTorch's own operations, on any device: gathers a sequence's blocks, then attends over them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.attention import AttentionStep, LayerShape
from models.blocks import BLOCK_SIZE
from models.packing import PackedStep
from models.sequence import Chunk


class GatheredCache:
    """Preallocated keys and values of one backbone, one pair of tensors a layer, in blocks.

    Block b holds the tokens at slots b·BLOCK_SIZE .. (b+1)·BLOCK_SIZE − 1; a sequence's tokens lie in the blocks of its
    block table, in order.

    Args:
        shapes: a shape for each layer index of the model.
        blocks: how many blocks to hold.
        devices: the device of each layer, or the one of all.
    """

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        blocks: int,
        dtype: torch.dtype,
        devices: torch.device | dict[int, torch.device],
    ) -> None:
        self.device = next(iter(devices.values())) if isinstance(devices, dict) else devices
        """Of the first layer."""
        self.scratch = blocks
        """One more block, where padding writes; nobody reads it."""

        def storage(layer: int, heads: int, dim: int) -> Tensor:
            device = devices[layer] if isinstance(devices, dict) else devices
            return torch.zeros(blocks + 1, BLOCK_SIZE, heads, dim, dtype=dtype, device=device)

        self.keys = {layer: storage(layer, shape.heads, shape.key_dim) for layer, shape in shapes.items()}
        self.values = {layer: storage(layer, shape.heads, shape.value_dim) for layer, shape in shapes.items()}

    def clear(self, layer: int, blocks: Tensor) -> None:
        """Zero some blocks, int64 [n]."""
        self.keys[layer].index_fill_(0, blocks, 0)
        self.values[layer].index_fill_(0, blocks, 0)

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
            tables: block numbers, int64 [n, blocks], padded with blocks of the same sequence: zero times what is there
                is added, and that must not be another's NaN.

        Returns:
            keys [n, heads, blocks·BLOCK_SIZE, key_dim] and values [n, heads, blocks·BLOCK_SIZE, value_dim].
        """
        n, blocks = tables.shape
        flat = tables.flatten()
        length = blocks * BLOCK_SIZE
        keys = self.keys[layer].index_select(0, flat).view(n, length, *self.keys[layer].shape[2:])
        values = self.values[layer].index_select(0, flat).view(n, length, *self.values[layer].shape[2:])
        return keys.transpose(1, 2), values.transpose(1, 2)

    def step(self, packed: PackedStep) -> AttentionStep:
        """See AttentionCache.step."""
        slots = [
            chunk.stream.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for chunk in packed.chunks
            for position in range(chunk.stream.cached, chunk.stream.cached + chunk.count)
        ]
        begun = [block for chunk in packed.chunks if (block := begun_block(chunk)) is not None]
        return GatheredAttention(
            self,
            torch.tensor(slots, device=self.device),
            runs(packed, self.device),
            torch.tensor(begun, device=self.device) if begun else None,
        )


def begun_block(chunk: Chunk) -> int | None:
    """The block that a chunk begins and does not fill, if there is one.

    What another sequence left behind its tokens is masked, but zero times that is added, and it may be NaN.
    """
    end = chunk.stream.cached + chunk.count
    begins = end // BLOCK_SIZE * BLOCK_SIZE >= chunk.stream.cached
    return chunk.stream.blocks[end // BLOCK_SIZE] if end % BLOCK_SIZE and begins else None


@dataclass(frozen=True)
class Run:
    """Some tokens of one step that attend together: q consecutive tokens of each of n sequences.

    A run is a group of decodes of similar length (q = 1), or one chunk of a prefill (n = 1).
    """

    tokens: slice
    """Where the n·q tokens lie in the packed step."""
    rows: int
    """n."""
    tables: Tensor
    """Block tables, int64 [n, blocks]."""
    positions: Tensor
    """The position of each token, int64 [n, q]."""

    def on(self, device: torch.device) -> "Run":
        """The same on another device."""
        return replace(self, tables=self.tables.to(device), positions=self.positions.to(device))

    def mask(self, length: int, window: int | None) -> Tensor:
        """Which keys each token sees: bool [n, 1, q, length]; key j of a sequence is its position j."""
        keys = torch.arange(length, device=self.positions.device)
        last = self.positions[:, None, :, None]
        seen = keys <= last
        return seen & (keys > last - window) if window is not None else seen


def runs(packed: PackedStep, device: torch.device) -> list[Run]:
    """Group consecutive decodes of similar length into one run each; a longer chunk is a run of its own."""
    found: list[Run] = []
    group: list[Chunk] = []
    first = 0
    for index, chunk in enumerate(packed.chunks):
        if group and (chunk.count > 1 or group[0].count > 1 or _length_bucket(chunk) != _length_bucket(group[0])):
            found.append(_run_of(group, packed.starts[first], device))
            first, group = index, []
        group.append(chunk)
    if group:
        found.append(_run_of(group, packed.starts[first], device))
    return found


def _run_of(group: Sequence[Chunk], start: int, device: torch.device) -> Run:
    count = group[0].count
    blocks = max(-(-(chunk.stream.cached + count) // BLOCK_SIZE) for chunk in group)
    tables = [[*chunk.stream.blocks, *[chunk.stream.blocks[0]] * blocks][:blocks] for chunk in group]
    positions = [list(range(chunk.stream.cached, chunk.stream.cached + count)) for chunk in group]
    return Run(
        tokens=slice(start, start + len(group) * count),
        rows=len(group),
        tables=torch.tensor(tables, device=device),
        positions=torch.tensor(positions, device=device),
    )


def _length_bucket(chunk: Chunk) -> int:
    """Lengths in one bucket differ by less than a factor of two, which bounds the padding."""
    return (chunk.stream.cached + chunk.count).bit_length()


class GatheredAttention:
    """Attention of one step: writes the step's keys and values, and attends over the cache, run by run.

    Args:
        cache: the backbone's cache.
        slots: where each token's key and value go, int64 [tokens].
        runs: they cover all tokens of the step.
        begun: blocks that the step begins and does not fill, int64 [n]; None: there are none.
    """

    def __init__(self, cache: GatheredCache, slots: Tensor, runs: list[Run], begun: Tensor | None) -> None:
        self.cache = cache
        self._here = {slots.device: (slots, runs, begun)}
        """The same on each device that layers lie on."""
        self._masks: dict[tuple[torch.device, int, int | None], Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        device = key.device
        slots, runs, begun = self._on(device)
        if begun is not None:
            self.cache.clear(layer, begun)
        self.cache.write(layer, slots, key, value)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        for index, run in enumerate(runs):
            keys, values = self.cache.read(layer, run.tables)
            if (mask := self._masks.get((device, index, window))) is None:
                mask = self._masks[device, index, window] = run.mask(keys.shape[2], window)
            out[run.tokens] = grouped_attention(query[run.tokens], keys, values, mask, scaling, run.rows)
        return out

    def _on(self, device: torch.device) -> tuple[Tensor, list[Run], Tensor | None]:
        if device not in self._here:
            slots, runs, begun = next(iter(self._here.values()))
            begun = begun.to(device) if begun is not None else None
            self._here[device] = slots.to(device), [run.on(device) for run in runs], begun
        return self._here[device]


def grouped_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, rows: int) -> Tensor:
    """Attention with the query heads of one key head folded into the query length, which the CPU kernel runs fastest.

    Args:
        query: [n·q, query_heads, key_dim], the tokens of one sequence consecutive.
        keys: [n, heads, length, key_dim]; values: [n, heads, length, value_dim].
        mask: bool [n, 1, q, length].
        rows: n.

    Returns:
        [n·q, query_heads, value_dim].
    """
    heads = keys.shape[1]
    tokens, query_heads, dim = query.shape
    q, group = tokens // rows, query_heads // heads
    folded = query.view(rows, q, heads, group, dim).permute(0, 2, 3, 1, 4).reshape(rows, heads, group * q, dim)
    mask = mask.unsqueeze(2).expand(rows, 1, group, q, mask.shape[-1]).reshape(rows, 1, group * q, mask.shape[-1])
    out = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    unfolded = out.view(rows, heads, group, q, values.shape[-1]).permute(0, 3, 1, 2, 4)
    return unfolded.reshape(tokens, query_heads, values.shape[-1])
