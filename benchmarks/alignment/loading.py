"""Base and ARMs as transformers runs them, for what is trained and judged outside of the engine."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from models.loading import Description

ATTENTION = "eager"
"""On a CPU and for texts this short, a training step takes a fifth less time with it than with the fused kernel."""


def load_base(base: Description, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The base as transformers runs it, frozen."""
    return load_model(base.backbone.folder, dtype)


def load_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A whole model as transformers runs it, frozen."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, attn_implementation=ATTENTION
    )
    return model.requires_grad_(False)


def load_arm(base: Description, folder: Path) -> Any:
    """An ARM as transformers runs it, frozen: a whole model, or an adapter of the base."""
    if (folder / "config.json").exists():
        return load_model(folder)
    return PeftModel.from_pretrained(load_base(base), folder)
