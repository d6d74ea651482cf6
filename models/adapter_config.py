"""What an adapter_config.json asks for: each field of PEFT's LoraConfig is done as PEFT does it, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import UnsupportedModelError

HANDED_TO_PEFT = frozenset(
    {
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern", "fan_in_fan_out", "ensure_weight_tying",
    }
)  # fmt: skip
"""They decide which layers are adapted and by how much; PEFT applies them itself."""

WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping", "peft_version", "inference_mode", "runtime_config",  # about the program that wrote the file
        "base_model_name_or_path", "revision",  # where the backbone is: see models/references.py
        "lora_dropout",  # in training only
        "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # of initialisations, which are below
        "megatron_core", "qalora_group_size",  # of methods that are below
    }
)  # fmt: skip
"""They do not change what the adapter computes, or belong to a field that is refused."""

DONE = HANDED_TO_PEFT | WITHOUT_EFFECT

MERGE = "merge it with peft's merge_and_unload() and give the merged model's folder"
RETRAIN = "it cannot be merged either: train a LoRA adapter without it"
CONVERT = (
    "convert it with peft's save_pretrained(folder, path_initial_model_for_weight_conversion=...), or " + MERGE
)  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused unless it asks for nothing, and what to do instead."""

    reason: str
    remedy: str = MERGE
    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, in small letters, besides null, false and empty ones."""


INITIALISED_ALONE = (True, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the backbone's weights as they were; any other may have changed them."""

REFUSED = {
    "peft_type": Refusal("is not LoRA", neutral=("lora",)),
    "task_type": Refusal("is not for language models", "train it with task_type CAUSAL_LM", ("causal_lm",)),
    "init_lora_weights": Refusal("changed the backbone's weights before training", CONVERT, INITIALISED_ALONE),
    "bias": Refusal("changes the backbone's biases", neutral=("none",)),
    "lora_bias": Refusal("adds a bias to layers"),
    "use_dora": Refusal("scales the backbone's weights (DoRA)"),
    "modules_to_save": Refusal("replaces whole modules of the backbone"),
    "trainable_token_indices": Refusal("replaces rows of the embeddings"),
    "target_parameters": Refusal("adapts parameters that are no linear layer's weight"),
    "layer_replication": Refusal("repeats the backbone's layers"),
    "use_qalora": Refusal("pools the inputs of layers (QA-LoRA)"),
    "velora_config": Refusal("keeps more than LoRA's two matrices (VeLoRA)"),
    "kasa_config": Refusal("changed the backbone's weights before training (KaSA)"),
    "monteclora_config": Refusal("draws its weights at random (MonteCLoRA)"),
    "use_bdlora": Refusal("has block-diagonal matrices (BD-LoRA)"),
    "alora_invocation_tokens": Refusal("acts on some tokens only (activated LoRA)", RETRAIN),
    "arrow_config": Refusal("chooses between adapters for each token (Arrow)", RETRAIN),
    "megatron_config": Refusal("names a Python module to import", "train it without Megatron"),
}

PROMPTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
}  # fmt: skip
"""PEFT's methods that add to the prompt, so that there is nothing to merge."""


def lora_fields(fields: Mapping[str, Any], ref: str) -> dict[str, Any]:
    """The fields of an adapter's configuration that PEFT is to apply.

    Args:
        fields: the contents of adapter_config.json.
        ref: the adapter's reference, for messages.

    Raises:
        UnsupportedModelError: a field changes what the adapter computes in a way that is not done here; the message
            names the field and the remedy.
    """
    if not fields.get("peft_type"):
        raise UnsupportedModelError(f"{ref}: adapter_config.json has no peft_type; save the adapter again with peft")
    for name in ("peft_type", *fields):
        if name not in DONE and not _asks_for_nothing(name, fields[name]):
            raise UnsupportedModelError(f"{ref}: {_refusal(name, fields[name])}")
    return {name: fields[name] for name in HANDED_TO_PEFT if fields.get(name) is not None}


def _asks_for_nothing(name: str, value: Any) -> bool:
    neutral = REFUSED[name].neutral if name in REFUSED else ()
    plain = value.lower() if isinstance(value, str) else value
    return not value or any(plain is one or (isinstance(plain, str) and plain == one) for one in neutral)


def _refusal(name: str, value: Any) -> str:
    shown = repr(value) if isinstance(value, str | bool | int) else "set"
    if name not in REFUSED:
        return f"genarm does not know {name[:80]} of its adapter_config.json ({shown[:80]}); {MERGE}"
    refusal = REFUSED[name]
    remedy = "train a LoRA adapter instead" if name == "peft_type" and str(value) in PROMPTS else refusal.remedy
    return f"only plain LoRA rides on a backbone, and its {name} ({shown[:80]}) {refusal.reason}; {remedy}"
