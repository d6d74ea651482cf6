"""Modules over the kernels, and how a loaded model gets them."""

import math
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from models.native.kernels import Kernels


class PackedLinear(nn.Module):
    """A linear layer with packed weights."""

    def __init__(self, kernels: Kernels, linear: Any) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = kernels.pack(_weight(linear))
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        out = states.new_empty(*states.shape[:-1], self.weight.features)
        self.kernels.linear(states, self.weight, self.bias, out)
        return out


class PackedHead(PackedLinear):
    """The LM head. Its logits are float32, never rounded to bfloat16, and the next pass overwrites them.

    The system would clear fresh memory for them page by page in every step, which takes longer than a tenth of it.
    """

    def __init__(self, kernels: Kernels, linear: Any) -> None:
        super().__init__(kernels, linear)
        self._kept = torch.empty(0)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] to float32 [..., out_features]."""
        shape = (*states.shape[:-1], self.weight.features)
        count = math.prod(shape)
        if self._kept.numel() < count:
            self._kept = torch.empty(count)
        out = self._kept[:count].view(shape)
        self.kernels.linear(states, self.weight, self.bias, out)
        return out


def _weight(linear: Any) -> Tensor:
    """[out_features, in_features]; the Conv1D of GPT-2 has it the other way round."""
    weight: Tensor = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight
    return weight


class FusedRMSNorm(nn.Module):
    """RMSNorm in one pass."""

    def __init__(self, kernels: Kernels, norm: Any) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = norm.weight
        self.epsilon = float(norm.variance_epsilon)

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim] to the same."""
        return self.kernels.rms_norm(states, self.weight, self.epsilon)


class FusedGatedMLP(nn.Module):
    """SwiGLU with one pass between its linear layers, which keep their names, since adapters name them."""

    def __init__(self, kernels: Kernels, mlp: Any) -> None:
        super().__init__()
        self.kernels = kernels
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim] to the same."""
        out: Tensor = self.down_proj(self.kernels.silu_mul(self.gate_proj(states), self.up_proj(states)))
        return out


ROTATE = "apply_rotary_pos_emb"
"""The function of most of transformers' attention modules that turns queries and keys to their positions."""


class FusedRotation:
    """Rotary positions in one pass, with the arguments that transformers gives to its own function."""

    def __init__(self, kernels: Kernels, original: Any) -> None:
        self.kernels = kernels
        self.original = original

    def __call__(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *others: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """[1, heads, tokens, dim] to the same, with cos and sin [1, tokens, dim]."""
        is_usual = cos.shape == (1, *query.shape[-2:]) and cos.dtype == query.dtype
        if others or options or not is_usual:
            return self.original(query, key, cos, sin, *others, **options)  # type: ignore[no-any-return]
        query, key = self.kernels.rotate([query[0].transpose(0, 1), key[0].transpose(0, 1)], cos[0], sin[0])
        return query.transpose(0, 1).unsqueeze(0), key.transpose(0, 1).unsqueeze(0)


def use_kernels(model: Any, kernels: Kernels) -> None:
    """Replace a model's linear layers, and the norms, MLPs and rotations that compute what ours do, by the kernels.

    The original weights are let go of as they are packed.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if _is_plain_linear(module, kernels):
            packed = PackedHead if module is head else PackedLinear
            model.set_submodule(name, packed(kernels, module))
        elif _is_plain_rms_norm(module):
            norm = FusedRMSNorm(kernels, module)
            if _agree(norm, module, len(module.weight), kernels.dtype):
                model.set_submodule(name, norm)
        elif _rotates(module):
            _fuse_rotation(module, kernels)
    for name, module in list(model.named_modules()):
        if _is_gated_mlp(module):
            mlp = FusedGatedMLP(kernels, module)
            if _agree(mlp, module, module.gate_proj.weight.inner, kernels.dtype):
                model.set_submodule(name, mlp)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # what is left lets go of the mapped file, which counts as memory


def _is_plain_linear(module: Any, kernels: Kernels) -> bool:
    """Whether its weights are plain numbers of the kernels' dtype; quantised ones may sit in a plain nn.Linear."""
    return (
        type(module) in (nn.Linear, Conv1D)
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == kernels.dtype
        and _weight(module).shape[1] % kernels.step == 0
    )


def _is_plain_rms_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_gated_mlp(module: Any) -> bool:
    layers = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    return all(isinstance(layer, PackedLinear) for layer in layers) and hasattr(module, "act_fn")


def _agree(fused: Any, original: Any, dim: int, dtype: torch.dtype) -> bool:
    """Whether a module computes what another does, up to rounding, on small, usual and large numbers.

    Small and large ones tell other activations and clamps apart.
    """
    sample = torch.randn(8, dim, generator=torch.Generator().manual_seed(0))
    for scale in (1e-2, 1.0, 1e4):
        states = (sample * scale).to(dtype)
        with torch.inference_mode():
            found, expected = fused(states), original(states)
        if found.dtype != expected.dtype or not expected.isfinite().all():
            return False
        difference, most = (found - expected).abs().max(), expected.abs().max()
        if difference > 4 * torch.finfo(dtype).eps * most:
            return False
    return True


def _rotates(module: Any) -> bool:
    forward = type(module).forward
    return isinstance(forward, FunctionType) and ROTATE in forward.__code__.co_names and ROTATE in forward.__globals__


def _fuse_rotation(attention: nn.Module, kernels: Kernels) -> None:
    """Let the forward pass of one attention module, and no other's, call our rotation by the name of its own."""
    forward: Any = type(attention).forward
    fused = FusedRotation(kernels, forward.__globals__[ROTATE])
    if _rotate_alike(fused, fused.original):
        names = {**forward.__globals__, ROTATE: fused}
        ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        ours.__kwdefaults__ = forward.__kwdefaults__
        attention.forward = MethodType(ours, attention)


def _rotate_alike(fused: FusedRotation, original: Any) -> bool:
    """Whether a function of transformers turns what ours does; some turn neighbours, or in another precision."""
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(1, *shape, generator=generator).to(fused.kernels.dtype)
        for shape in ((4, 3, 8), (2, 3, 8), (3, 8), (3, 8))
    )
    try:
        expected = original(query, key, cos, sin)
    except (RuntimeError, TypeError):  # other arguments
        return False
    return all(
        found.dtype == one.dtype and torch.equal(found, one)
        for found, one in zip(fused(query, key, cos, sin), expected, strict=True)
    )
