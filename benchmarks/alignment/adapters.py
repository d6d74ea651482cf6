"""LoRA adapters added up in weight space: one made stronger or weaker, or two interpolated into a soup."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def combine(adapters: Sequence[Path], coefficients: Sequence[float], backbone: Path, folder: Path) -> None:
    """Write the adapter whose update is Σ c_i ΔW_i, exactly: ranks are concatenated.

    Args:
        adapters: folders of plain LoRA adapters of the same layers.
        coefficients: c_i.
        backbone: the folder of the model that the adapter declares as its own.
        folder: where it is written; must exist.
    """
    configs = [json.loads((one / CONFIG).read_text()) for one in adapters]
    weights = [load_file(one / WEIGHTS) for one in adapters]
    factors = [c * _scaling(config) for c, config in zip(coefficients, configs, strict=True)]
    combined = {}
    for name in weights[0]:
        parts = [tensors[name] for tensors in weights]
        if ".lora_B." in name:
            combined[name] = torch.cat([factor * part for factor, part in zip(factors, parts, strict=True)], dim=1)
        else:
            combined[name] = torch.cat(parts, dim=0)
    rank = sum(config["r"] for config in configs)
    declared = {"r": rank, "lora_alpha": rank, "base_model_name_or_path": str(backbone)}
    (folder / CONFIG).write_text(json.dumps(configs[0] | declared, indent=2))
    save_file({name: tensor.contiguous() for name, tensor in combined.items()}, folder / WEIGHTS)


def _scaling(config: dict[str, Any]) -> float:
    if config.get("use_rslora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError("only adapters of one rank and one scaling can be combined")
    return float(config["lora_alpha"]) / float(config["r"])
