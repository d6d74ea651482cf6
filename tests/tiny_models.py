"""Tiny models of real families, random or made to say something, with tokenizers and templates, in milliseconds."""

from collections.abc import Sequence
from itertools import pairwise
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
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()

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


def pad_head(folder: Path, model: Path, rows: int) -> Path:
    """Save a model again with more rows of the LM head, which win every argmax unless they are cut off."""
    padded = AutoModelForCausalLM.from_pretrained(model)
    size = padded.get_output_embeddings().weight.shape[0]
    padded.resize_token_embeddings(size + rows, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[size:] = padded.get_output_embeddings().weight[:rows] * 4
    padded.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(model).save_pretrained(folder)
    return folder


def make_reciter(folder: Path, pieces: Sequence[bytes], *, eos: bool = True) -> Path:
    """Save a model that answers every prompt with tokens of these bytes, one after the other, and then EOS.

    Its layers do nothing and its LM head names each token's successor; so no piece may come twice.
    """
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = "".join(part for part, _ in spelling.pre_tokenize_str(b"".join(pieces).decode()))  # a character per byte
    ends = [sum(len(piece) for piece in pieces[: count + 1]) for count in range(len(pieces))]
    tokens = [spelt[end - len(piece) : end] for piece, end in zip(pieces, ends, strict=True)]
    make_model(folder, extra=[token for token in tokens if len(token) > 1])
    vocabulary = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    chain = [vocabulary[TEMPLATE[-1]], *(vocabulary[token] for token in tokens), *([2] if eos else [])]
    assert len(set(chain)) == len(chain)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head, embeddings = model.get_output_embeddings().weight.zero_(), model.get_input_embeddings().weight
        for token, successor in pairwise(chain):
            head[successor] = 10 * embeddings[token] / embeddings[token].norm()
    model.save_pretrained(folder)
    return folder


def spec_of(base: Path, *arms: tuple[str, Path, float], samples: int = 1, **sampling: Any) -> dict[str, Any]:
    """A job as a user writes it: arms as (name, folder, weight); short and greedy unless `sampling` says otherwise."""
    return {
        "base": str(base),
        "arms": [{"name": name, "ref": str(ref), "weight": weight} for name, ref, weight in arms],
        "samples": samples,
        "sampling": {"max_new_tokens": 12, "temperature": 0.0, **sampling},
    }
