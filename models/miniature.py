"""A tiny configuration that asks for the same as a real one: the same kinds of layers and options, in small numbers."""

from typing import Any

from models.errors import UnsupportedModelError

LAYERS, HEADS, HIDDEN, VOCABULARY = 2, 4, 32, 64
WINDOW = 8
MOST_KINDS = 6
"""Layers that differ from each other, at most."""
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), HIDDEN // HEADS
    ),
    **dict.fromkeys(("swa_v_head_dim", "attention_head_dim", "rotary_dim"), HIDDEN // HEADS),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "ffn_dim", "decoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 256),
    "vocab_size": VOCABULARY,
}
KEY_HEADS = ("num_key_value_heads", "swa_num_key_value_heads", "n_head_kv")
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
OF_WEIGHTS = {"quantization_config", "dtype", "torch_dtype", "transformers_version", "architectures"}
TOKENS = ("_token_id", "_token_index")


def miniature(kind: Any, fields: dict[str, Any], *, windows: bool) -> Any:
    """A small configuration.

    Args:
        kind: a class of transformers' configurations.
        fields: of a model's configuration, as its `to_dict` has them.
        windows: make attention windows and chunks small too.

    Raises:
        Exception: whatever the class raises where small numbers do not go together.
    """
    small = _small(fields, windows)
    return kind.from_dict({name: value for name, value in small.items() if name not in OF_WEIGHTS})


def _small(fields: dict[str, Any], windows: bool) -> dict[str, Any]:
    """Of one configuration, and of those within it."""
    inner = {
        name: _small(value, windows)
        for name, value in fields.items()
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config"))
    }
    fields = _fewer_layers(fields) | inner
    heads = next(
        (fields[name] for name in ("num_attention_heads", "n_head") if isinstance(fields.get(name), int)), None
    )
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name in SIZES:
            fields[name] = SIZES[name]
        elif name in KEY_HEADS:
            fields[name] = 1 if value == 1 else HEADS if value == heads else HEADS // 2
        elif windows and name in WINDOWS:
            fields[name] = WINDOW
        elif name.endswith(TOKENS):
            fields[name] = min(value, VOCABULARY - 1)
    if isinstance(fields.get("eos_token_id"), list):
        fields["eos_token_id"] = VOCABULARY - 1
    return fields


def _fewer_layers(fields: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, at least two; the kinds are told by the lists that have an entry for each layer."""
    name = next((one for one in LAYER_COUNTS if isinstance(fields.get(one), int)), None)
    if name is None:
        return dict(fields)
    count = fields[name]
    numbers = {key: value for key, value in fields.items() if _numbers_layers(key, value, count)}
    lists = {
        key: value
        for key, value in fields.items()
        if isinstance(value, list) and len(value) == count and key not in numbers
    }
    kinds: dict[str, int] = {}
    for layer in range(count):
        kind = [*(value[layer] for value in lists.values()), *(layer in value for value in numbers.values())]
        kinds.setdefault(repr(kind), layer)
    layers = sorted(kinds.values())
    if len(layers) > MOST_KINDS:
        raise UnsupportedModelError("its layers are all different")
    layers = sorted(layers + [one for one in range(count) if one not in layers][: max(0, LAYERS - len(layers))])
    chosen = {key: [value[layer] for layer in layers] for key, value in lists.items()}
    chosen |= {key: [new for new, old in enumerate(layers) if old in value] for key, value in numbers.items()}
    return fields | chosen | {name: len(layers)}


def _numbers_layers(name: str, value: Any, count: int) -> bool:
    """Whether a field lists layers by their numbers."""
    is_listed = isinstance(value, list) and all(type(one) is int and 0 <= one < count for one in value)
    return is_listed and len(set(value)) == len(value) and ("layer" in name or "idx" in name)
