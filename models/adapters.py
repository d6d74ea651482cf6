"""LoRA adapters that ride on a backbone: each adapts its own rows of a packed forward pass."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from models.native.kernels import LowRankSegment, PackedWeight
from models.native.modules import PackedLinear


@dataclass(frozen=True)
class LowRank:
    """One adapter's update of one linear layer, ΔW = scaling · B A (LoRA, arXiv 2106.09685)."""

    a: Tensor
    """[rank, in_features]."""
    b: Tensor
    """[out_features, rank]."""
    scaling: float


@dataclass
class Segments:
    """Which rows of the current pass belong to which adapter; set before each pass, read by every adapted layer."""

    tokens: list[tuple[str, slice]] = field(default_factory=list)
    """Adapter and rows, over the packed tokens."""


class AdaptedLinear(nn.Module):
    """A linear layer of the backbone whose adapters act on their own rows only."""

    def __init__(self, linear: nn.Linear, segments: Segments, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = linear
        self.segments = segments
        self.dtype = dtype
        self.updates: dict[str, LowRank] = {}

    def add(self, adapter: str, update: LowRank) -> None:
        """Let an adapter act here."""
        device = self.linear.weight.device
        a, b = (part.to(device, self.dtype) for part in (update.a, update.b))
        self.updates[adapter] = LowRank(a, b, update.scaling)

    def forward(self, states: Tensor) -> Tensor:
        """[1, tokens, in_features] to [1, tokens, out_features]."""
        out: Tensor = self.linear(states)
        for adapter, rows in self.segments.tokens:
            if (update := self.updates.get(adapter)) is not None:
                low = nn.functional.linear(states[:, rows], update.a)
                out[:, rows] += nn.functional.linear(low, update.b) * update.scaling
        return out


class AdaptedPackedLinear(nn.Module):
    """The same over the kernels: all adapters of a layer in one call."""

    def __init__(self, linear: PackedLinear, segments: Segments) -> None:
        super().__init__()
        self.linear = linear
        self.segments = segments
        self.updates: dict[str, tuple[PackedWeight, PackedWeight, float]] = {}

    def add(self, adapter: str, update: LowRank) -> None:
        """Let an adapter act here."""
        kernels = self.linear.kernels
        padding = -update.a.shape[0] % kernels.step  # of the rank, with zeros
        a, b = nn.functional.pad(update.a, (0, 0, 0, padding)), nn.functional.pad(update.b, (0, padding))
        self.updates[adapter] = (kernels.pack(a), kernels.pack(b), update.scaling)

    def forward(self, states: Tensor) -> Tensor:
        """[1, tokens, in_features] to [1, tokens, out_features]."""
        states = states.contiguous()
        out: Tensor = self.linear(states)
        segments = [
            LowRankSegment(rows.start, rows.stop - rows.start, *self.updates[adapter])
            for adapter, rows in self.segments.tokens
            if adapter in self.updates
        ]
        if segments:
            self.linear.kernels.add_low_rank(states, out, segments)
        return out


def attach(model: nn.Module, segments: Segments, adapter: str, updates: dict[str, LowRank]) -> None:
    """Let an adapter ride on a model: wrap its linear layers, and give each its update, in the model's dtype."""
    for name, update in updates.items():
        module = model.get_submodule(name)
        if not isinstance(module, AdaptedLinear | AdaptedPackedLinear):
            if isinstance(module, PackedLinear):
                module = AdaptedPackedLinear(module, segments)
            else:
                module = AdaptedLinear(cast(nn.Linear, module), segments, cast(torch.dtype, model.dtype))
            model.set_submodule(name, module)
        module.add(adapter, update)


def detach(model: nn.Module, adapter: str) -> None:
    """Let an adapter ride no longer; its memory is free."""
    for module in model.modules():
        if isinstance(module, AdaptedLinear | AdaptedPackedLinear):
            module.updates.pop(adapter, None)
