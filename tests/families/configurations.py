"""A tiny configuration of each decoder-only family of transformers."""

from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from models.miniature import miniature

FAMILIES = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


DEFAULTS: dict[str, dict[str, Any]] = {
    "lfm2": {"full_attn_idxs": [1, 3, 5], "num_hidden_layers": 6},
    "falcon": {"new_decoder_architecture": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "reformer": {"is_decoder": True},
}
"""What a family's own defaults leave out, so that no model can be made of them, or one of its kinds of layers."""
SMALL: dict[str, dict[str, Any]] = {}
"""Numbers that must go together in a family."""


def configuration(family: str, vocabulary: int) -> Any:
    """The configuration of a family with few and small layers, which is a decoder.

    Raises:
        Exception: whatever the class raises where it cannot be made.
    """
    kind = CONFIG_MAPPING[family]
    fields = kind(**DEFAULTS.get(family, {})).to_dict()
    if "is_decoder" in fields:
        fields["is_decoder"] = True
    small = miniature(kind, fields | SMALL.get(family, {}), windows=True)
    text = small.get_text_config()
    for one in {id(small): small, id(text): text}.values():
        if hasattr(one, "vocab_size"):
            one.vocab_size = vocabulary
        one.bos_token_id, one.eos_token_id, one.pad_token_id = 1, 2, 0
    return small
