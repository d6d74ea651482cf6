"""LoRA adapters that ride on a backbone: each adapts its own rows of a packed forward pass."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.errors import UnsupportedModelError
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


def read_updates(folder: Path, config: Any, ref: str) -> dict[str, LowRank]:
    """The low-rank updates of a LoRA adapter by module name, read by PEFT onto a skeleton of its backbone.

    Args:
        folder: the adapter's folder, in PEFT's layout.
        config: transformers' configuration of the backbone.

    Raises:
        UnsupportedModelError: the adapter is no plain LoRA of linear layers, or does not fit the backbone.
    """
    from peft import PeftConfig, get_peft_model
    from peft.tuners.lora import Linear, LoraLayer
    from peft.utils.save_and_load import load_peft_weights
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    settings = PeftConfig.from_pretrained(str(folder))
    _require_plain_lora(settings, ref)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
        try:
            adapted = get_peft_model(skeleton, settings)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedModelError(f"{ref}: does not fit its backbone ({str(error).splitlines()[0]})") from None
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except SafetensorError as error:
        raise UnsupportedModelError(f"{ref}: its weights cannot be loaded ({error})") from None
    updates = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            if not isinstance(module, Linear):
                raise _not_inner_linear(ref, name)
            a, b = (
                _weight(weights, f"base_model.model.{name}.{part}.weight", getattr(module, part)["default"], ref)
                for part in ("lora_A", "lora_B")
            )
            updates[name] = LowRank(a, b, float(module.scaling["default"]))
    return updates


def _not_inner_linear(ref: str, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{ref}: adapts {name}; an adapter that rides on a backbone may adapt inner linear layers only; "
        "merge it with peft's merge_and_unload() and give the merged model's folder"
    )


def _weight(weights: dict[str, Tensor], key: str, expected: nn.Module, ref: str) -> Tensor:
    if key not in weights:
        raise UnsupportedModelError(f"{ref}: the adapter's file lacks {key}")
    shape = expected.get_parameter("weight").shape
    if weights[key].shape != shape:
        raise UnsupportedModelError(
            f"{ref}: does not fit its backbone ({key} is {list(weights[key].shape)}, not {list(shape)})"
        )
    return weights[key]


def _require_plain_lora(settings: Any, ref: str) -> None:
    is_plain = (
        str(getattr(settings.peft_type, "value", settings.peft_type)) == "LORA"
        and not settings.use_dora
        and not settings.modules_to_save
        and settings.bias == "none"
        and not getattr(settings, "trainable_token_indices", None)
    )
    if not is_plain:
        raise UnsupportedModelError(
            f"{ref}: only plain LoRA adapters can ride on a backbone (no DoRA, bias or modules_to_save); "
            "merge it with peft's merge_and_unload() and give the merged model's folder"
        )


def attach(model: nn.Module, segments: Segments, adapter: str, updates: dict[str, LowRank], ref: str) -> None:
    """Let an adapter ride on a model: wrap its linear layers, and give each its update, in the model's dtype.

    Raises:
        UnsupportedModelError: the adapter targets the LM head; the model is as it was.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name in updates:
        if model.get_submodule(name) is head:
            raise _not_inner_linear(ref, name)
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
