"""Adapters that PEFT makes, with each field of its LoraConfig set: PEFT's own rewards, or a refusal before the job."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoftQConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, MixtralConfig

from models.adapter_config import DONE, REFUSED
from models.checking import check_spec
from models.errors import ModelNotFoundError, UnsupportedModelError
from models.spec import GenerationSpec
from tests.tiny_models import SHAPE, make_model, make_tokenizer, spec_of

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [{"prompt": "Hi", "response": "hello there"}, {"prompt": "A longer prompt", "response": "x"}]

SAME: dict[str, list[dict[str, Any]]] = {
    "r": [{"r": 3}],
    "lora_alpha": [{"lora_alpha": 5}],
    "use_rslora": [{"use_rslora": True}],
    "rank_pattern": [{"rank_pattern": {"q_proj": 2}}, {"rank_pattern": {"layers.1.self_attn.v_proj": 7}}],
    "alpha_pattern": [{"alpha_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 32}}],
    "target_modules": [
        {"target_modules": r".*\.[02]\.mlp\.(up|down)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["o_proj"]},
    ],
    "exclude_modules": [
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"},
    ],
    "layers_to_transform": [{"layers_to_transform": [0, 2]}, {"layers_to_transform": 1}],
    "layers_pattern": [{"layers_to_transform": [1], "layers_pattern": "layers"}],
    "fan_in_fan_out": [{"fan_in_fan_out": True}],
    "ensure_weight_tying": [{"ensure_weight_tying": True}],
    "auto_mapping": [{"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}}],
    "peft_version": [{"peft_version": "0.3.0"}],
    "inference_mode": [{"inference_mode": True}],
    "base_model_name_or_path": [{}],
    "revision": [{"revision": "main"}],
    "task_type": [{"task_type": None}],
    "lora_dropout": [{"lora_dropout": 0.5}],
    "init_lora_weights": [{"init_lora_weights": how} for how in (False, "gaussian", "eva", "orthogonal", "mica")],
    "loftq_config": [{"loftq_config": LoftQConfig()}],
    "eva_config": [{"eva_config": EvaConfig()}],
    "corda_config": [{"corda_config": CordaConfig()}],
    "lora_ga_config": [{"lora_ga_config": LoraGAConfig()}],
    "megatron_core": [{"megatron_core": "elsewhere.core"}],
    "qalora_group_size": [{"qalora_group_size": 2}],
    "runtime_config": [{}],
}
"""Fields that are done, and values of them."""

OFF: dict[str, list[dict[str, Any]]] = {
    "init_lora_weights": [{"init_lora_weights": how} for how in ("pissa", "pissa_niter_2", "olora")],
    "bias": [{"bias": "all"}, {"bias": "lora_only"}],
    "lora_bias": [{"lora_bias": True}],
    "use_dora": [{"use_dora": True}],
    "modules_to_save": [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens", "norm"]}],
    "trainable_token_indices": [
        {"trainable_token_indices": [5, 9]},
        {"trainable_token_indices": {"embed_tokens": [7]}},
    ],
    "target_parameters": [{"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]}],
    "layer_replication": [{"layer_replication": [(0, 2), (1, 3)]}],
    "velora_config": [{"velora_config": VeloraConfig(num_groups=4)}],
    "kasa_config": [{"kasa_config": KasaConfig()}],
    "monteclora_config": [{"monteclora_config": MontecloraConfig()}],
    "use_bdlora": [{"use_bdlora": BdLoraConfig(target_modules_bd_b=["q_proj", "v_proj"], nblocks=2)}],
    "alora_invocation_tokens": [{"alora_invocation_tokens": [5, 6]}],
}
"""Fields that are refused, and values with which PEFT makes an adapter here."""

WRITTEN: dict[str, list[Any]] = {
    "peft_type": ["IA3", "ADALORA", "PREFIX_TUNING", "NONESUCH", None, ["LORA"]],
    "task_type": ["SEQ_CLS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"],
    "init_lora_weights": ["corda", "loftq", "lora_ga", "PiSSA", "nonesuch"],
    "use_qalora": [True],
    "arrow_config": [dataclasses.asdict(ArrowConfig())],
    "megatron_config": [{"hidden_size": 8}],
    "of_next_year": [True, {"x": 1}, "on"],
}
"""Values that a file may have, but that PEFT makes no adapter with here: written over a plain adapter's."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base", seed=1)


def make(folder: Path, base: Path, config: peft.PeftConfig | None = None, **fields: Any) -> Path:
    """Let PEFT make an adapter and save it, with weights large enough to matter."""
    torch.manual_seed(3)
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    settings = config or LoraConfig(**{**defaults, "task_type": "CAUSAL_LM", **fields})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    adapted.peft_config["default"].peft_version = fields.get("peft_version")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder)
    return folder


def check(base: Path, arm: Path) -> None:
    check_spec(GenerationSpec.parse(spec_of(base, ("nice", arm, 1.0))), base.parent)


def test_every_field_of_peft_is_done_or_refused() -> None:
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert known - DONE - REFUSED.keys() == set(), "PEFT has new fields: do them as PEFT does, or refuse them"
    assert DONE & REFUSED.keys() == set()
    assert DONE | REFUSED.keys() == known, "PEFT has dropped fields"


def test_the_documentation_has_every_field() -> None:
    page = Path("docs/adapters.md").read_text()
    assert [name for name in sorted(DONE | REFUSED.keys()) if f"`{name}`" not in page] == []


def test_every_field_is_tried() -> None:
    assert SAME.keys() >= DONE
    assert REFUSED.keys() <= OFF.keys() | WRITTEN.keys()


@pytest.mark.parametrize("fields", [pytest.param(one, id=name) for name, some in SAME.items() for one in some])
def test_rewards_are_those_of_peft(
    tmp_path: Path, base: Path, assert_scores_equal_plain: Any, fields: dict[str, Any]
) -> None:
    arm = make(tmp_path / "arm", base, **fields)
    check(base, arm)
    assert_scores_equal_plain(spec_of(base, ("nice", arm, 1.0)), ROWS)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_transposed_layers_are_done(tmp_path: Path, assert_scores_equal_plain: Any, fan_in_fan_out: bool) -> None:
    base = make_model(tmp_path / "base", "gpt2", seed=1)
    arm = make(tmp_path / "arm", base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=fan_in_fan_out)
    assert_scores_equal_plain(spec_of(base, ("nice", arm, 1.0)), ROWS)


@pytest.mark.parametrize(
    ("name", "fields"), [pytest.param(name, one, id=name) for name, some in OFF.items() for one in some]
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, base: Path, name: str, fields: dict[str, Any]) -> None:
    arm = make(tmp_path / "arm", base, **fields)
    with pytest.raises(UnsupportedModelError, match=f"arm: only plain LoRA .* its {name} .*; .*(merge|train)"):
        check(base, arm)


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, one, id=f"{name}={one}") for name, some in WRITTEN.items() for one in some]
)
def test_what_a_file_says_is_refused_by_name(tmp_path: Path, base: Path, edit: Any, name: str, value: Any) -> None:
    arm = make(tmp_path / "arm", base)
    edit(arm / "adapter_config.json", **{name: value})
    with pytest.raises(UnsupportedModelError, match=f"arm: .*{name}.*; .*(merge|train|save)"):
        check(base, arm)


@pytest.mark.parametrize("nothing", [None, False, [], {}, ""])
def test_a_field_that_asks_for_nothing_is_accepted(tmp_path: Path, base: Path, edit: Any, nothing: Any) -> None:
    arm = make(tmp_path / "arm", base)
    names = [name for name in REFUSED if name != "peft_type"]
    edit(arm / "adapter_config.json", **dict.fromkeys([*names, "of_next_year"], nothing))
    check(base, arm)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.VeraConfig(target_modules=["q_proj"]),
        peft.OFTConfig(target_modules=["q_proj"], oft_block_size=0, r=4),
        peft.TrainableTokensConfig(token_indices=[4]),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_another_method_is_named(tmp_path: Path, base: Path, config: peft.PeftConfig) -> None:
    arm = make(tmp_path / "arm", base, config)
    with pytest.raises(UnsupportedModelError, match=f"its peft_type .'{config.peft_type.value}'.*; (merge|train)"):
        check(base, arm)


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5]}],
    ids=lambda fields: next(iter(fields)),
)
def test_tensors_that_the_configuration_does_not_own_up_to_are_refused(
    tmp_path: Path, base: Path, edit: Any, fields: dict[str, Any]
) -> None:
    arm = make(tmp_path / "arm", base, **fields)
    edit(arm / "adapter_config.json", **dict.fromkeys(fields))
    with pytest.raises(UnsupportedModelError, match=r"arm: its file holds base_model.*no matrix of plain LoRA.*merge"):
        check(base, arm)


def test_embeddings_in_the_file_are_refused(tmp_path: Path, base: Path) -> None:
    arm = make(tmp_path / "arm", base)
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), arm)
    adapted.save_pretrained(arm, save_embedding_layers=True)
    with pytest.raises(UnsupportedModelError, match=r"its file holds .*(embed_tokens|lm_head)\.weight.*merge"):
        check(base, arm)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_the_head_and_the_embeddings_are_refused_before_the_job(tmp_path: Path, base: Path, target: str) -> None:
    arm = make(tmp_path / "arm", base, target_modules=["q_proj", target])
    file = arm / "adapter_model.safetensors"
    save_file({name: part for name, part in load_file(file).items() if "lora_A" in name or "lora_B" in name}, file)
    with pytest.raises(UnsupportedModelError, match=rf"adapts .*{target}|lora_embedding"):
        check(base, arm)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda name: name.replace("q_proj", "w_proj"), "lacks .*q_proj"),
        (lambda name: name.removeprefix("base_model.model."), "lacks base_model"),
        (lambda name: name.replace("layers.2.", "layers.9."), "lacks .*layers.2"),
        (lambda name: name.replace("lora_A", "lora_C"), "holds .*lora_C"),
    ],
)
def test_every_tensor_is_used_or_refused(tmp_path: Path, base: Path, change: Any, named: str) -> None:
    arm = make(tmp_path / "arm", base)
    file = arm / "adapter_model.safetensors"
    save_file({change(name): part for name, part in load_file(file).items()}, file)
    with pytest.raises(UnsupportedModelError, match=named):
        check(base, arm)


def test_a_tensor_for_a_layer_that_is_not_adapted_is_refused(tmp_path: Path, base: Path, edit: Any) -> None:
    arm = make(tmp_path / "arm", base)
    edit(arm / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(UnsupportedModelError, match=r"it has .*v_proj.*target_modules"):
        check(base, arm)


def test_names_with_the_adapters_own_are_read_as_peft_reads_them(
    tmp_path: Path, base: Path, assert_scores_equal_plain: Any
) -> None:
    arm = make(tmp_path / "arm", base)
    file = arm / "adapter_model.safetensors"
    save_file({name.replace(".weight", ".default.weight"): part for name, part in load_file(file).items()}, file)
    check(base, arm)
    assert_scores_equal_plain(spec_of(base, ("nice", arm, 1.0)), ROWS)


def _gemma3_with_vision(folder: Path) -> Path:
    tokenizer = make_tokenizer(extra=["<boi>", "<eoi>", "<img>"])
    text = {
        **SHAPE, "num_key_value_heads": 1, "head_dim": 12, "intermediate_size": 48, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "query_pre_attn_scalar": 12,
        "vocab_size": len(tokenizer), "max_position_embeddings": 256,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    first = len(tokenizer) - 3
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=first,
        eoi_token_index=first + 1, image_token_index=first + 2, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_layers_named_as_in_older_releases_of_transformers_are_found(
    tmp_path: Path, assert_scores_equal_plain: Any
) -> None:
    base = _gemma3_with_vision(tmp_path / "base")
    new = make(tmp_path / "new", base, target_modules=r".*language_model.*(q_proj|v_proj)")
    old = tmp_path / "old"
    shutil.copytree(new, old)
    file = old / "adapter_model.safetensors"
    renamed = {
        name.replace("model.model.language_model.layers", "model.language_model.model.layers"): part
        for name, part in load_file(file).items()
    }
    assert renamed.keys() != load_file(file).keys()
    save_file(renamed, file)
    scored = [assert_scores_equal_plain(spec_of(base, ("nice", arm, 1.0)), ROWS) for arm in (new, old)]
    assert scored[0][0].token_rewards == scored[1][0].token_rewards


def test_experts_that_transformers_has_fused_since_are_refused(tmp_path: Path, edit: Any) -> None:
    tokenizer = make_tokenizer()
    config = MixtralConfig(
        **SHAPE, num_key_value_heads=2, intermediate_size=48, num_local_experts=2, vocab_size=len(tokenizer)
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    arm = make(tmp_path / "arm", tmp_path / "base")
    check(tmp_path / "base", arm)
    edit(arm / "adapter_config.json", target_modules=["q_proj", "v_proj", "w1", "w2", "w3"])
    with pytest.raises(UnsupportedModelError, match=r"arm: adapts .*experts.*merge"):
        check(tmp_path / "base", arm)


def test_shapes_are_checked_before_the_job(tmp_path: Path, base: Path, edit: Any) -> None:
    arm = make(tmp_path / "arm", base)
    edit(arm / "adapter_config.json", r=5)
    with pytest.raises(UnsupportedModelError, match=r"arm: does not fit its backbone .*v_proj.*\[16, 4\]"):
        check(base, arm)


def test_a_rank_that_no_memory_holds_is_refused(tmp_path: Path, base: Path, edit: Any) -> None:
    arm = make(tmp_path / "arm", base)
    edit(arm / "adapter_config.json", r=10**12)
    with pytest.raises(UnsupportedModelError, match="arm: does not fit its backbone"):
        check(base, arm)


@pytest.mark.parametrize(
    "fields",
    [{"r": "4"}, {"r": 0}, {"lora_alpha": "8"}, {"target_modules": 7}, {"target_modules": "("}, {"rank_pattern": [1]}],
)
def test_fields_of_other_types_are_refused_in_a_line(
    tmp_path: Path, base: Path, edit: Any, fields: dict[str, Any]
) -> None:
    arm = make(tmp_path / "arm", base)
    edit(arm / "adapter_config.json", **fields)
    with pytest.raises(UnsupportedModelError, match="arm: does not fit its backbone") as refused:
        check(base, arm)
    assert len(str(refused.value).splitlines()) == 1


def test_half_precision_is_read_as_peft_reads_it(tmp_path: Path, base: Path, assert_scores_equal_plain: Any) -> None:
    arm = make(tmp_path / "arm", base)
    file = arm / "adapter_model.safetensors"
    save_file({name: part.bfloat16() for name, part in load_file(file).items()}, file)
    assert_scores_equal_plain(spec_of(base, ("nice", arm, 1.0)), ROWS)


def test_the_file_is_the_only_one_that_peft_reads(tmp_path: Path, base: Path) -> None:
    arm = make(tmp_path / "arm", base)
    (arm / "adapter_model.safetensors").rename(arm / "adapter_model-00001-of-00001.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"adapter_model\.safetensors"):
        check(base, arm)
