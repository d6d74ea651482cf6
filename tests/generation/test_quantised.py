"""Quantised models run as transformers runs them: the libraries' own layers, over our cache and scheduler."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, TorchAoConfig

from models.errors import UnsupportedModelError
from models.native.modules import PackedLinear
from models.spec import GenerationSpec
from tests.tiny_models import make_adapter, make_model, make_tokenizer, spec_of

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi"},
    {"prompt": "A longer prompt, which takes more than one chunk and more than one block of the cache."},
    {"prompt": "x", "sampling": {"max_new_tokens": 3}},
    {"prompt": "Random", "sampling": {"temperature": 0.9, "top_k": 40, "seed": 7}},
]


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def int4() -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def bnb_int8(threshold: float = 0.0) -> Any:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)


def nf4() -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def plain_of(folder: Path) -> Path:
    """Where the model is that a quantised one was made of; of the same name, so that its adapters ride on both."""
    return folder.parent / "plain" / folder.name


def quantise(folder: Path, config: Any) -> Path:
    """Save a quantised tiny model: wide enough for groups of 64 weights."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain = AutoModelForCausalLM.from_config(
        LlamaConfig(**shape, intermediate_size=128, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2,
                    pad_token_id=0, max_position_embeddings=256, initializer_range=0.3)
    )  # fmt: skip
    plain.save_pretrained(plain_of(folder))
    quantised = AutoModelForCausalLM.from_pretrained(plain_of(folder), quantization_config=config, dtype="float32")
    quantised.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def use_kernels(request: Any) -> bool:
    use: bool = request.param
    return use


@pytest.mark.parametrize("config", [int8, int4, nf4], ids=lambda make: make.__name__)
def test_a_quantised_base_equals_the_plain_loop(tmp_path: Path, assert_equals_plain: Any, config: Any) -> None:
    base = quantise(tmp_path / "base", config())
    arm = make_model(tmp_path / "arm", seed=2)
    assert_equals_plain(spec_of(base, ("first", arm, 0.8)), ROWS, prefill_tokens=24)


def test_an_8_bit_base_of_bitsandbytes_gives_transformers_tokens(tmp_path: Path, generate: Any, model_of: Any) -> None:
    """Activations are rounded to 8 bits, so that log-probabilities agree less than in float32."""
    base = quantise(tmp_path / "base", bnb_int8())
    spec = {**spec_of(base, ignore_eos=True, max_new_tokens=6), "raw": True}
    prompts = ["Hi", "something longer than the other one"]
    found = generate(spec, [{"prompt": prompt} for prompt in prompts])
    for prompt, (completion,) in zip(prompts, found, strict=True):
        ids = make_tokenizer()(prompt, return_tensors="pt")
        expected = model_of(str(base)).generate(**ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert completion.tokens == expected[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("config", [int8, bnb_int8, nf4], ids=lambda make: make.__name__)
def test_an_adapter_rides_on_a_quantised_base_in_its_own_precision(
    tmp_path: Path, make_engine: Any, generate: Any, config: Any
) -> None:
    base = quantise(tmp_path / "base", config())
    adapter = make_adapter(tmp_path / "adapter", plain_of(base))
    spec = spec_of(base, ("first", adapter, 1.0))
    guided = make_engine().load(GenerationSpec.parse(spec))
    assert guided.arms[0].backbone is guided.base.backbone
    adapted = [module for module in guided.base.backbone.model.modules() if hasattr(module, "updates")]
    assert {update.a.dtype for module in adapted for update in module.updates.values()} == {torch.float32}
    with_arm, without = generate(spec, ROWS), generate(spec_of(base, ("first", adapter, 0.0)), ROWS)
    assert [row[0].tokens for row in with_arm] != [row[0].tokens for row in without]


def test_kernels_leave_quantised_layers_alone(tmp_path: Path, make_engine: Any, use_kernels: bool) -> None:
    engine = make_engine()
    guided = engine.load(GenerationSpec.parse(spec_of(quantise(tmp_path / "base", int8()))))
    model = guided.base.backbone.model
    packed = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert packed == (["lm_head"] if use_kernels else [])
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    weights = engine.stats().model_bytes - 16 * 2**20
    assert (
        weights < 2 * 64 * 259 * 4 + 2 * 64 * 7 * 64 * 2 * 1.2
    )  # the embedding and the head; a byte per weight inside


def test_a_quantisation_that_mixes_rows_is_refused_with_the_remedy(tmp_path: Path, make_engine: Any) -> None:
    base = quantise(tmp_path / "base", bnb_int8(threshold=6.0))
    with pytest.raises(UnsupportedModelError, match=r"set llm_int8_threshold to 0\.0"):
        make_engine().load(GenerationSpec.parse(spec_of(base)))
