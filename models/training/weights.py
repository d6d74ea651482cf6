"""The model that is trained: the base's weights, frozen under a LoRA adapter or all trainable; and what is saved."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM

from models.errors import SpecError, UnsupportedModelError, first_line
from models.loading import Description
from models.rights import give_usual_rights
from models.training.settings import ALL_LINEAR, TrainingSettings
from models.zoo import Placement

SAMPLED_BYTES = 1 << 20
"""Read of each end of a file to know it again; a 70B model is not read whole."""


def load_trainable(base: Description, settings: TrainingSettings, declared_base: str) -> Any:
    """The model to train.

    Args:
        declared_base: what an adapter says that it was trained on.

    Raises:
        UnsupportedModelError: transformers cannot load the weights.
        SpecError: the base has no layers of the names in `settings.targets`.
    """
    if settings.tuning == "full":
        return load_weights(base, torch.float32).requires_grad_(True)
    return add_adapter(load_frozen(base, settings), settings, declared_base)


def load_frozen(base: Description, settings: TrainingSettings) -> Any:
    """The base's weights, frozen, without dropout, in the precision of `settings`.

    Raises:
        UnsupportedModelError: transformers cannot load them.
    """
    return load_weights(base, Placement.choose("auto", settings.dtype).dtype)


def load_weights(base: Description, dtype: torch.dtype) -> Any:
    """The base's weights, frozen, without dropout, as a transformers causal language model.

    Raises:
        UnsupportedModelError: transformers cannot load them.
    """
    config = without_dropout(base.config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.backbone.folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{base.source.ref}: its weights cannot be loaded ({first_line(error)})") from None
    return model.requires_grad_(False)


def without_dropout(config: Any) -> Any:
    """A copy of a transformers configuration in which every dropout probability is zero."""
    zeros = {name: 0.0 for name, value in vars(config).items() if _is_dropout(name) and isinstance(value, float)}
    return type(config).from_dict({**config.to_dict(), **zeros})


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")


def add_adapter(model: Any, settings: TrainingSettings, declared_base: str) -> Any:
    """A LoRA adapter around frozen weights, without dropout; its own weights are float32.

    Raises:
        SpecError: the model has no layers of the names in `settings.targets`.
    """
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=target_layers(model, settings.targets),
    )
    adapted = get_peft_model(model, lora)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # `precision` casts the adapter's weights, which are far smaller
    adapted.peft_config["default"].base_model_name_or_path = declared_base
    return adapted


def precision(device: torch.device, settings: TrainingSettings) -> torch.autocast:
    """The context in which a trainable model runs: bfloat16 over float32 weights, where the settings say so."""
    dtype = Placement.choose("auto", settings.dtype).dtype
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def target_layers(model: Any, targets: tuple[str, ...]) -> list[str]:
    """The names of the linear layers to adapt.

    Raises:
        SpecError: the model has no layers of these names.
    """
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, part in model.named_modules()
        if hasattr(part, "in_features") and part is not head
    }
    if targets == (ALL_LINEAR,):
        return sorted(linear)
    if unknown := sorted(set(targets) - linear):
        raise SpecError(
            f"targets: the model has no linear layer named {', '.join(unknown)}; "
            f"it has {', '.join(sorted(linear))} ({ALL_LINEAR} for all of them)"
        )
    return list(targets)


def require_place(folder: Path, settings: TrainingSettings) -> None:
    """Check that a folder holds no model of another kind, which would be taken for what is trained.

    Raises:
        SpecError: it does.
    """
    other = "adapter_config.json" if settings.tuning == "full" else "config.json"
    if (folder / other).is_file():
        kind = "an adapter" if settings.tuning == "full" else "a whole model"
        raise SpecError(f"{folder}: holds {kind} ({other}); choose another folder")


def save(model: nn.Module, base: Description, folder: Path, settings: TrainingSettings) -> None:
    """Write what was trained: an adapter in PEFT's layout, or a whole model with its tokenizer."""
    if settings.tuning == "full":
        model.save_pretrained(str(folder))  # type: ignore[operator]
        base.tokenizer.save_pretrained(str(folder))
    else:
        model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]
    give_usual_rights(folder.glob("*.safetensors"))


def fingerprint(folder: Path) -> str:
    """A digest by which the weights of a model folder are known again: names, sizes, both ends of each file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            file.seek(max(0, size - SAMPLED_BYTES))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()
