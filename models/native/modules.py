"""Modules over the kernels, and how a loaded model gets them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from models.native.kernels import Kernels


class PackedLinear(nn.Module):
    """A linear layer with packed weights; `wide` ones give float32, so that logits are never rounded to bfloat16."""

    def __init__(self, kernels: Kernels, linear: Any, wide: bool) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = kernels.pack(_weight(linear))
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.wide = wide

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.kernels.linear(states, self.weight, self.bias, self.wide)


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


def use_kernels(model: Any, kernels: Kernels) -> None:
    """Replace a model's linear layers, and the norms and MLPs that compute what ours do, by modules over the kernels.

    The original weights are let go of as they are packed.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if _is_plain_linear(module) and _weight(module).shape[1] % kernels.step == 0:
            model.set_submodule(name, PackedLinear(kernels, module, wide=module is head))
        elif _is_plain_rms_norm(module) and _agree(fused := FusedRMSNorm(kernels, module), module):
            model.set_submodule(name, fused)
    for name, module in list(model.named_modules()):
        if _is_swiglu(module):
            fused_mlp = FusedGatedMLP(kernels, module)
            if _agree(fused_mlp, module):
                model.set_submodule(name, fused_mlp)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # what is left lets go of the mapped file, which counts as memory


def _is_plain_linear(module: Any) -> bool:
    """Whether a layer's weights are plain numbers; quantised ones may sit in a plain nn.Linear."""
    return type(module) in (nn.Linear, Conv1D) and type(module.weight) is nn.Parameter


def _is_plain_rms_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_swiglu(module: Any) -> bool:
    layers = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    return all(isinstance(layer, PackedLinear) for layer in layers) and hasattr(module, "act_fn")


def _agree(fused: Any, original: Any) -> bool:
    """Whether a module computes what another does, up to rounding, on a sample of numbers."""
    layer = getattr(original, "gate_proj", None)
    dim = layer.weight.inner if layer is not None else original.weight.shape[0]
    dtype = fused.kernels.dtype
    sample = torch.randn(8, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        return torch.allclose(fused(sample), original(sample), rtol=4 * torch.finfo(dtype).eps, atol=1e-3)
