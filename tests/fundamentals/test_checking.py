"""What `check_spec` refuses before a job is submitted, and what only loading can see."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

from models.checking import check_spec
from models.errors import (
    DeviceLostError,
    IncompatibleArmError,
    ModelNotFoundError,
    ModelsError,
    SpecError,
    UnsupportedModelError,
)
from models.spec import GenerationSpec
from models.zoo import Placement, Zoo
from tests.tiny_models import OTHER_TEMPLATE, TEMPLATE, make_adapter, make_model, make_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_model(tmp_path / "base")


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    def run(base: Path, arm: Path | None = None, on_base: bool = False, **fields: Any) -> None:
        arms = [{"name": "kind", "ref": str(arm), "on_base": on_base}] if arm else []
        check_spec(GenerationSpec.parse({"base": str(base), "arms": arms, **fields}), tmp_path / "home")

    return run


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def run(base: Path, arm: Path | None = None, on_base: bool = False) -> Any:
        arms = [{"name": "kind", "ref": str(arm), "on_base": on_base}] if arm else []
        zoo = Zoo(tmp_path / "home", "cpu", "float32", 2**20, True, threading.RLock())
        return zoo.load(GenerationSpec.parse({"base": str(base), "arms": arms}))

    return run


def test_what_fits_passes_and_reads_no_weights(tmp_path: Path, base: Path, check: Any) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    (base / "model.safetensors").write_bytes(b"no weights at all")
    check(base, adapter)


def test_an_adapter_that_cannot_ride_is_refused(tmp_path: Path, base: Path, check: Any) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    (adapter / "adapter_model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UnsupportedModelError, match="adapter: its weights cannot be loaded"):
        check(base, adapter)


def test_a_missing_model_is_named(base: Path, check: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        check(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        check(base, tmp_path / "nowhere")


def test_other_tokenizers_are_refused_with_the_tokens_that_differ(tmp_path: Path, base: Path, check: Any) -> None:
    arm = make_model(tmp_path / "arm", words=["yes", "no"])
    with pytest.raises(IncompatibleArmError, match=r"id 3 is '!' in the base, 'yes' in the ARM, id 4 is"):
        check(base, arm)


def test_padding_and_added_tokens_are_no_difference(tmp_path: Path, base: Path, check: Any) -> None:
    check(base, make_model(tmp_path / "padded", padding_rows=61))
    check(base, make_model(tmp_path / "added", extra=["<new>"]))


def test_an_adapter_of_a_missing_backbone(tmp_path: Path, base: Path, check: Any) -> None:
    other = make_model(tmp_path / "other")
    adapter = make_adapter(tmp_path / "adapter", other)
    check(base, adapter)
    shutil.rmtree(other)
    with pytest.raises(
        ModelNotFoundError, match=r"adapter: the model that this adapter was trained on cannot be .*--arm-on-base NAME"
    ):
        check(base, adapter)


def test_an_arm_rides_on_the_base_where_the_job_says_so(edit: Any, tmp_path: Path, base: Path, load: Any) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/of-another-name")
    guided = load(base, adapter, on_base=True)
    assert guided.arms[0].backbone is guided.base.backbone


def test_only_an_adapter_that_fits_rides_on_the_base(tmp_path: Path, base: Path, check: Any) -> None:
    other = make_model(tmp_path / "other", "qwen3")
    with pytest.raises(UnsupportedModelError, match="other: is no adapter"):
        check(base, other, on_base=True)
    with pytest.raises(UnsupportedModelError, match="adapter: does not fit its backbone"):
        check(base, make_adapter(tmp_path / "adapter", other), on_base=True)
    adapter = make_adapter(tmp_path / "of_base", base)
    with pytest.raises(UnsupportedModelError, match="must be a whole model"):
        check(adapter, adapter, on_base=True)


@pytest.fixture
def known_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Put a model without its weights into an empty cache of the hub, as org/named."""

    def put(model: Path) -> None:
        repository = tmp_path / "hub" / "models--org--named"
        shutil.copytree(model, repository / "snapshots" / ("a" * 40))
        (repository / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return put


def test_a_local_copy_of_any_name_serves_an_adapter_of_the_hubs_model(
    edit: Any, tmp_path: Path, base: Path, load: Any, known_to_the_hub: Any
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/named")
    with pytest.raises(ModelNotFoundError, match=r"org/named.*--arm-on-base"):
        load(base, adapter)
    known_to_the_hub(base)
    guided = load(base, adapter)
    assert guided.arms[0].backbone is guided.base.backbone


@pytest.mark.parametrize("other", [{"context": 128}, {"template": OTHER_TEMPLATE}, {"extra": ["<new>"]}])
def test_a_model_that_differs_from_the_hubs_does_not(
    edit: Any, tmp_path: Path, base: Path, check: Any, known_to_the_hub: Any, other: dict[str, Any]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/named")
    known_to_the_hub(make_model(tmp_path / "other", **other))
    with pytest.raises(ModelNotFoundError, match=r"org/named.*--arm-on-base"):
        check(base, adapter)


def test_an_adapter_rides_on_a_base_of_its_backbones_name(tmp_path: Path, base: Path, load: Any) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    moved = tmp_path / "elsewhere" / "base"
    moved.parent.mkdir()
    base.rename(moved)
    guided = load(moved, adapter)
    assert guided.arms[0].backbone is guided.base.backbone


def test_an_adapter_of_a_resized_vocabulary_is_refused(tmp_path: Path, base: Path, check: Any) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    make_tokenizer(extra=["<|im_start|>", "<|im_end|>"]).save_pretrained(adapter)
    with pytest.raises(UnsupportedModelError, match=r"2 tokens, '<\|im_end\|>'.*merge"):
        check(base, adapter)
    check(make_model(tmp_path / "elsewhere" / "base", padding_rows=2), adapter)  # rows that no token had


def test_an_adapter_of_an_adapter(edit: Any, tmp_path: Path, base: Path, check: Any) -> None:
    first = make_adapter(tmp_path / "first", base)
    second = make_adapter(tmp_path / "second", base)
    edit(second / "adapter_config.json", base_model_name_or_path=str(first))
    with pytest.raises(UnsupportedModelError, match="is an adapter itself"):
        check(base, second)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 128,
            }
        },
    ],
    ids=["dynamic", "dynamic as of old", "longrope"],
)
def test_rope_that_depends_on_the_batch_is_refused(edit: Any, base: Path, check: Any, rope: dict[str, Any]) -> None:
    edit(base / "config.json", **rope)
    with pytest.raises(UnsupportedModelError, match="rows would disturb each other"):
        check(base)


def test_an_encoder_decoder_is_refused(tmp_path: Path, check: Any, base: Path) -> None:
    T5Config(vocab_size=300, d_model=16, num_layers=1).save_pretrained(base)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        check(base)


@pytest.mark.parametrize(
    ("file", "fields", "named"),
    [
        ("config.json", {"model_type": "nonesuch"}, "config cannot be read"),
        ("config.json", {"max_position_embeddings": None}, "config cannot be read"),
        ("tokenizer.json", {"model": 7}, "tokenizer cannot be read"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["x.Evil", None]}},
            "tokenizer",
        ),
    ],
)
def test_unreadable_files_are_refused_in_one_line(
    edit: Any, base: Path, check: Any, file: str, fields: dict[str, Any], named: str
) -> None:
    edit(base / file, **fields)
    with pytest.raises(UnsupportedModelError, match=named) as refused:
        check(base)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_tokenizer(base: Path, check: Any) -> None:
    for path in base.glob("*token*"):
        path.unlink()
    with pytest.raises(UnsupportedModelError, match="tokenizer cannot be read"):
        check(base)


def test_a_system_message_needs_a_template(tmp_path: Path, base: Path, check: Any) -> None:
    check(base, system="Be kind")
    with pytest.raises(SpecError, match="chat template"):
        check(make_model(tmp_path / "plain", template=None), system="Be kind")


def test_templates_come_from_the_spec_then_the_model_then_its_backbone(tmp_path: Path, load: Any, base: Path) -> None:
    plain = make_model(tmp_path / "plain", template=None)
    with_template = make_adapter(tmp_path / "with_template", plain)
    make_tokenizer(OTHER_TEMPLATE).save_pretrained(with_template)
    without = make_adapter(tmp_path / "without", base)
    assert load(base).base.renderer.template == TEMPLATE
    assert load(plain).base.renderer.template is None
    assert load(plain, with_template).arms[0].renderer.template == OTHER_TEMPLATE
    assert load(base, without).arms[0].renderer.template == TEMPLATE


@pytest.mark.parametrize("kept", [100, -100], ids=["the header", "the tensors"])
@pytest.mark.parametrize("which", ["model", "adapter"])
def test_truncated_weights_are_refused(tmp_path: Path, base: Path, load: Any, which: str, kept: int) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    path = base / "model.safetensors" if which == "model" else adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnsupportedModelError, match=f"{path.parent.name}: its weights cannot be loaded"):
        load(base, adapter)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"num_hidden_layers": 5}, "weights are missing: model.layers.3"), ({"hidden_size": 64}, "another shape")],
)
def test_weights_are_never_made_up(edit: Any, base: Path, load: Any, fields: dict[str, Any], named: str) -> None:
    edit(base / "config.json", **fields)
    with pytest.raises(UnsupportedModelError, match=named):
        load(base)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "only plain LoRA .* use_dora"),
        ({"target_modules": ["nonesuch"]}, "does not fit its backbone"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks .*o_proj"),
        ({"r": 5}, "does not fit its backbone"),
    ],
)
def test_adapters_that_cannot_ride(
    edit: Any, tmp_path: Path, base: Path, load: Any, fields: dict[str, Any], named: str
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    edit(adapter / "adapter_config.json", **fields)
    with pytest.raises(UnsupportedModelError, match=named):
        load(base, adapter)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_the_head_or_the_embeddings_cannot_ride(
    tmp_path: Path, base: Path, load: Any, target: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{target}.* merge_and_unload"):
        load(base, make_adapter(tmp_path / "adapter", base, targets=["q_proj", target]))


@pytest.mark.parametrize("step", ["describe", "load_weights"])
def test_what_nobody_thought_of_fails_the_job_in_a_line_or_the_device(
    base: Path, load: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyError("rope_theta")

    monkeypatch.setattr(f"models.zoo.{step}", fail)
    with pytest.raises(ModelsError, match=r"base and its ARMs cannot be loaded \(KeyError: 'rope_theta'\)"):
        load(base)
    monkeypatch.setattr("models.zoo.is_lost", lambda device: device.type == "cpu")
    with pytest.raises(DeviceLostError, match="rope_theta"):
        load(base)


def test_a_cache_too_small_for_one_block(tmp_path: Path, base: Path) -> None:
    zoo = Zoo(tmp_path, "cpu", "float32", 100, True, threading.RLock())
    with pytest.raises(UnsupportedModelError, match="KV cache of 100 bytes"):
        zoo.load(GenerationSpec.parse({"base": str(base)}))


def test_models_are_loaded_once(tmp_path: Path, base: Path) -> None:
    zoo = Zoo(tmp_path, "cpu", "float32", 2**20, True, threading.RLock())
    spec = GenerationSpec.parse({"base": str(base), "arms": [{"name": "own", "ref": str(base)}]})
    first, second = zoo.load(spec), zoo.load(spec)
    assert first.base is second.base is first.arms[0]


@pytest.mark.parametrize(
    ("device", "dtype", "named"),
    [("tpu?", "auto", "device 'tpu\\?'"), ("cpu", "int4", "dtype 'int4'"), ("", "auto", "device ''")],
)
def test_a_wrong_placement_is_named(device: str, dtype: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        Placement.choose(device, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(SpecError, match="no CUDA device"):
        Placement.choose("cuda", "auto")
    assert Placement.choose("auto", "float32") == Placement(torch.device("cpu"), torch.float32)


def test_a_quantised_model_names_the_library_that_it_needs(base: Path, load: Any, edit: Any) -> None:
    edit(base / "config.json", quantization_config={"quant_method": "hqq", "quant_config": {}})
    with pytest.raises(UnsupportedModelError, match=r"[Hh]qq"):
        load(base)
