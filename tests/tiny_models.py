"""Tiny random models of real families, with tokenizers and chat templates, made in a folder in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SPECIAL = ["<pad>", "<s>", "</s>"]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
OTHER_TEMPLATE = "{% for m in messages %}Q: {{ m.content }} {% endfor %}A:"

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda **k: LlamaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=48, **k),
    "qwen3": lambda **k: Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=12, intermediate_size=48, **k),
    "gemma3": lambda **k: Gemma3TextConfig(
        **SHAPE, num_key_value_heads=1, head_dim=12, intermediate_size=48, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], query_pre_attn_scalar=12, **k,
    ),
    "gpt2": lambda **k: GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=k.pop("max_position_embeddings"), **k
    ),
    "gpt_neox": lambda **k: GPTNeoXConfig(**SHAPE, intermediate_size=48, **k),
}  # fmt: skip


def make_tokenizer(
    template: str | None = TEMPLATE, words: list[str] | None = None, extra: list[str] | None = None
) -> Any:
    """A byte-level tokenizer, or one of a few words; `extra` tokens get the ids after the others."""
    tokens = SPECIAL + (words or sorted(pre_tokenizers.ByteLevel.alphabet())) + (extra or [])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if words:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


def make_model(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    words: list[str] | None = None,
    extra: list[str] | None = None,
    padding_rows: int = 0,
    context: int = 256,
    sharpness: float = 3.0,
) -> Path:
    """Save a random model and its tokenizer; `padding_rows` are added to the LM head beyond the tokenizer's tokens."""
    tokenizer = make_tokenizer(template, words, extra)
    torch.manual_seed(seed)
    config = FAMILIES[family](
        vocab_size=len(tokenizer) + padding_rows,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.25 if "embed" not in name else 1.0)
        head = model.get_output_embeddings().weight
        head.mul_(sharpness / 0.25 / head.shape[1] ** 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, backbone: Path, *, seed: int = 0, targets: list[str] | None = None) -> Path:
    """Save a LoRA adapter of a backbone with weights large enough to matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets or ["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.4)
    adapted.save_pretrained(folder)
    return folder
