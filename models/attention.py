"""The attention function registered with transformers under the name "genarm".

A model loaded with `attn_implementation="genarm"` calls `_attend` in every layer; what it does there is decided by the
`attention` argument of the forward pass: a step over a KV cache, or a `ShapeProbe`.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from models.errors import UnsupportedModelError
from models.packing import PackedStep

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


class AttentionCache(Protocol):
    """Keys and values of one backbone in blocks, and the attention over them."""

    def step(self, packed: PackedStep) -> AttentionStep:
        """The attention of a step over these tokens, whose block tables have room for them."""
        ...


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention: AttentionStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    name = type(module).__name__
    if attention is None:
        raise UnsupportedModelError(
            f"{name} does not hand on what its attention is given, so that genarm cannot run it"
        )
    if attention_mask is not None:
        raise UnsupportedModelError(f"{name} makes an attention mask of its own, which is not supported")
    for option in ("softcap", "s_aux", "position_bias"):
        if options.get(option) is not None:
            raise UnsupportedModelError(f"{name} uses attention with {option}, which is not supported")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = attention.attend(layer, query, key, value, scale, sliding_window)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _attend)


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's keys and values."""

    heads: int
    key_dim: int
    value_dim: int


def bytes_per_token(shapes: dict[int, LayerShape], dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take in all layers."""
    return sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes.values()) * dtype.itemsize


@dataclass
class ShapeProbe:
    """Records each layer's shapes and device in a forward pass; the attention itself is left out (zeros)."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    devices: dict[int, torch.device] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)
    """Of queries, keys and values."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        self.devices[layer] = key.device
        self.dtypes |= {query.dtype, key.dtype, value.dtype}
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
