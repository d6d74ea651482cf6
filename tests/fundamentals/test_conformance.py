"""A model that the engine would run differently from transformers is refused before its weights are read."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from models import conformance
from models.conformance import require_conformance
from models.errors import UnsupportedModelError
from models.miniature import miniature
from tests.tiny_models import FAMILIES

SIZES = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def problem(config: Any) -> str | None:
    try:
        require_conformance(config, "ref")
    except UnsupportedModelError as error:
        assert str(error).startswith("ref: ")
        return str(error)
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_run(family: str) -> None:
    assert problem(FAMILIES[family](max_position_embeddings=256, **SIZES)) is None


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma", "mixtral", "phi3", "olmo2", "gpt2", "opt"])
def test_models_of_their_real_size_are_tried_small(family: str) -> None:
    assert problem(CONFIG_MAPPING[family]()) is None


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("llama4_text", {}, "see other tokens"),
        ("bert", {}, "see other tokens"),
        ("llama", {"is_causal": False}, "see other tokens"),
        ("doge", {}, "mask of its own"),
        ("gemma2", {}, "softcap"),
        ("gpt_oss", {}, "s_aux"),
        ("diffllama", {}, "without plain attention"),
        ("mamba", {}, "keeps a state"),
        ("jamba", {}, "keeps a state"),
        ("lfm2", {"full_attn_idxs": [1, 3]}, "without plain attention"),
        ("falcon", {}, "does not let its attention be replaced"),
        ("stablelm", {}, "does not let its attention be replaced"),
        ("bloom", {}, "does not let its attention be replaced"),
        ("gptj", {}, "does not let its attention be replaced"),
        ("t5", {}, "no causal language model for a T5Config"),
    ],
)
def test_families_that_cannot_run_are_refused_by_what_they_do(family: str, fields: dict[str, Any], named: str) -> None:
    found = problem(CONFIG_MAPPING[family](**fields))
    assert found is not None
    assert named in found
    assert "\n" not in found


def test_a_bert_that_is_a_decoder_differs_by_nothing_or_is_refused() -> None:
    """RoBERTa counts positions from behind its padding token, which the engine is not told of."""
    assert problem(CONFIG_MAPPING["bert"](is_decoder=True)) is None
    found = problem(CONFIG_MAPPING["roberta"](is_decoder=True))
    assert found is not None
    assert "computes something else" in found


def test_a_chunk_is_found_however_long_it_is() -> None:
    """Longer than the sequences of a miniature: its mask is looked at far from the beginning."""
    config = CONFIG_MAPPING["llama4_text"](attention_chunk_size=12345, max_position_embeddings=100000)
    found = problem(config)
    assert found is not None
    assert "see other tokens" in found


def test_a_window_that_is_handed_over_is_none_that_is_refused() -> None:
    config = CONFIG_MAPPING["mistral"](sliding_window=3000)
    assert problem(config) is None
    assert 3001 in conformance._places(config)


def test_trying_leaves_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    conformance._problem.cache_clear()
    require_conformance(CONFIG_MAPPING["llama"](), "ref")
    assert torch.equal(torch.rand(3), expected)


def test_a_miniature_keeps_the_kinds_of_layers() -> None:
    config = CONFIG_MAPPING["gemma3_text"](num_hidden_layers=12)
    small = miniature(type(config), config.to_dict(), windows=False)
    assert sorted(set(small.layer_types)) == ["full_attention", "sliding_attention"]
    assert (small.hidden_size, small.num_hidden_layers, small.sliding_window) == (32, 2, config.sliding_window)
    assert isinstance(AutoConfig.for_model("gemma3_text"), type(config))
