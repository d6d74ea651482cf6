"""A model gets the kernels where they compute what its own modules do, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from models.backbone import Backbone
from models.errors import UnsupportedModelError
from models.native.kernels import Kernels, kernels_for
from models.native.modules import FusedGatedMLP, FusedRMSNorm, PackedHead, PackedLinear, use_kernels
from tests.tiny_models import make_model


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def kernels(request: Any) -> Kernels:
    found = kernels_for(torch.device("cpu"), request.param)
    assert found is not None
    return found


def load(folder: Path, dtype: torch.dtype, family: str = "llama") -> Any:
    ref = make_model(folder / family, family, seed=1)
    return AutoModelForCausalLM.from_pretrained(ref, dtype=dtype, attn_implementation="genarm").eval()


def test_a_llama_runs_on_them(tmp_path: Path, kernels: Kernels) -> None:
    model = load(tmp_path, kernels.dtype)
    use_kernels(model, kernels)
    layer = model.model.layers[0]
    assert isinstance(layer.mlp, FusedGatedMLP)
    assert isinstance(layer.input_layernorm, FusedRMSNorm)
    assert isinstance(layer.self_attn.q_proj, PackedLinear)
    assert isinstance(model.lm_head, PackedHead)
    assert "forward" in layer.self_attn.__dict__, "its rotation is not the kernels'"
    assert LlamaAttention.forward.__globals__["apply_rotary_pos_emb"].__module__.startswith("transformers.")


class ClampedSiLU(nn.Module):
    """As some models limit their activations."""

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.silu(states).clamp(max=16.0)


@pytest.mark.parametrize("activation", [nn.GELU(), ClampedSiLU(), nn.SiLU()])
def test_other_activations_stay(tmp_path: Path, kernels: Kernels, activation: nn.Module) -> None:
    """The weights of a tiny model are small, so that only large numbers reach the limit."""
    model = load(tmp_path, kernels.dtype)
    model.model.layers[0].mlp.act_fn = activation
    use_kernels(model, kernels)
    assert isinstance(model.model.layers[0].mlp, FusedGatedMLP) == isinstance(activation, nn.SiLU)
    assert isinstance(model.model.layers[1].mlp, FusedGatedMLP)


def test_layers_of_another_dtype_stay(tmp_path: Path) -> None:
    """A few models keep a layer in float32, as routers of experts."""
    kernels = kernels_for(torch.device("cpu"), torch.bfloat16)
    assert kernels is not None
    model = load(tmp_path, torch.bfloat16)
    model.model.layers[1].mlp.down_proj.float()
    use_kernels(model, kernels)
    assert type(model.model.layers[1].mlp.down_proj) is nn.Linear
    assert isinstance(model.model.layers[0].mlp.down_proj, PackedLinear)


class InFloat32(nn.Module):
    """A projection that leaves the model's dtype."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states).float()  # type: ignore[no-any-return]


def test_attention_in_two_dtypes_is_refused(tmp_path: Path) -> None:
    model = load(tmp_path, torch.bfloat16)
    attention = model.model.layers[2].self_attn
    attention.k_proj = InFloat32(attention.k_proj)
    with pytest.raises(UnsupportedModelError, match="bfloat16 and float32 at once; give the dtype float32"):
        Backbone(model, "tiny", 2**20, None)


def test_logits_are_float32_and_memory_for_them_is_kept(tmp_path: Path, kernels: Kernels) -> None:
    model = load(tmp_path, kernels.dtype)
    use_kernels(model, kernels)
    states = torch.randn(1, 9, model.config.hidden_size).to(kernels.dtype)
    first = model.lm_head(states)
    expected, where = first.clone(), first.data_ptr()
    fewer = model.lm_head(states[:, 4:6])
    assert first.dtype == torch.float32
    assert fewer.data_ptr() == where
    assert torch.equal(fewer, expected[:, 4:6])
