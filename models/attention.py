"""Attention over the block cache, registered with transformers under the name "genarm".

A model loaded with `attn_implementation="genarm"` calls `_attend` in every layer; what it does there is decided by the
`attention` argument of the forward pass: a `CachedAttention` of one step, or a `ShapeProbe`.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from models.errors import UnsupportedModelError
from models.kv_cache import KVCache, LayerShape

NAME = "genarm"


class AttentionStep(Protocol):
    """What a layer's attention does in one forward pass over packed tokens."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            query: [tokens, query_heads, key_dim]; key: [tokens, heads, key_dim]; value: [tokens, heads, value_dim].
            scaling: factor on the dot products.
            window: a token sees itself and this many minus one before it, or all before it where None.

        Returns:
            [tokens, query_heads, value_dim].
        """
        ...


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    for option in ("softcap", "s_aux", "position_bias"):
        if options.get(option) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} uses attention with {option}, which is not supported")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = attention.attend(layer, query, key, value, scale, sliding_window)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _attend)


@dataclass
class ShapeProbe:
    """Records each layer's shapes in a forward pass; the attention itself is left out (zeros)."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


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

    def mask(self, length: int, window: int | None) -> Tensor:
        """Which keys each token sees: bool [n, 1, q, length]; key j of a sequence is its position j."""
        keys = torch.arange(length, device=self.positions.device)
        last = self.positions[:, None, :, None]
        seen = keys <= last
        return seen & (keys > last - window) if window is not None else seen


class CachedAttention:
    """Attention of one step: writes the step's keys and values, and attends over the cache, run by run.

    Args:
        cache: the backbone's cache.
        slots: where each token's key and value go, int64 [tokens].
        runs: they cover all tokens of the step.
    """

    def __init__(self, cache: KVCache, slots: Tensor, runs: list[Run]) -> None:
        self.cache = cache
        self.slots = slots
        self.runs = runs
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        self.cache.write(layer, self.slots, key, value)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        for index, run in enumerate(self.runs):
            keys, values = self.cache.read(layer, run.tables)
            if (mask := self._masks.get((index, window))) is None:
                mask = self._masks[index, window] = run.mask(keys.shape[2], window)
            out[run.tokens] = grouped_attention(query[run.tokens], keys, values, mask, scaling, run.rows)
        return out


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
