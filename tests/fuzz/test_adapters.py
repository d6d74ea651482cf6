"""Adapters' files with anything in them, and references and names of any text."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.adapter_config import DONE, HANDED_TO_PEFT, REFUSED, lora_fields
from models.adapter_files import check_adapter
from models.errors import ModelsError, UnsupportedModelError
from models.loading import describe
from models.model_names import declared_model, is_same_model
from models.spec import GenerationSpec
from tests.fuzz.inputs import any_text, as_bytes, count, inputs, junk, numbers
from worker.cli.options import arms_of

FIELDS = sorted(DONE | REFUSED.keys())
values = junk | st.sampled_from(
    ["lora", "LORA", "IA3", "pissa", "gaussian", "all-linear", "q_proj", "CAUSAL_LM", "none"]
)
changes = st.dictionaries(st.sampled_from(FIELDS) | any_text, values | numbers, min_size=1, max_size=4)


@inputs(0.1)
@given(fields=changes, is_lora=st.booleans())
def test_configurations(fields, is_lora):
    count()
    try:
        handed = lora_fields(fields | ({"peft_type": "LORA"} if is_lora else {}), "arm")
    except UnsupportedModelError as error:
        assert is_one_line(error)
    else:
        assert handed.keys() <= HANDED_TO_PEFT
        assert not any(
            fields.get(name) for name in REFUSED.keys() - {"peft_type", "task_type", "init_lora_weights", "bias"}
        )
        assert not any(value for name, value in fields.items() if name not in DONE | REFUSED.keys())


@pytest.fixture(scope="module")
def spoiled(home, tmp_path_factory):
    """A copy of the ARM that each input spoils anew."""
    return shutil.copytree(home / "nice", tmp_path_factory.mktemp("adapters") / "spoiled")


names = any_text | st.sampled_from(
    ["base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.lora_A.weight", "x.lora_A.weight"]
)


@inputs(0.02)
@given(data=st.data())
def test_folders(home, spoiled, tmp_path_factory, data):
    count()
    config = json.loads((home / "nice" / "adapter_config.json").read_text())
    tensors = load_file(home / "nice" / "adapter_model.safetensors")
    how = data.draw(st.sampled_from(["fields", "config", "tensors", "weights"]))
    content = json.dumps(config | data.draw(changes)) if how == "fields" else json.dumps(config)
    (spoiled / "adapter_config.json").write_bytes(
        data.draw(st.binary(max_size=60)) if how == "config" else as_bytes(content)
    )
    if how == "tensors":
        taken = tensors.pop(data.draw(st.sampled_from(sorted(tensors))))
        if data.draw(st.booleans()):
            tensors[as_bytes(data.draw(names)).decode("utf-8", "replace")] = taken[
                : data.draw(st.integers(0, 4))
            ].clone()
    save_file(tensors, spoiled / "adapter_model.safetensors", {"format": "pt"})
    if how == "weights":
        (spoiled / "adapter_model.safetensors").write_bytes(data.draw(st.binary(max_size=80)))
    elsewhere = tmp_path_factory.getbasetemp()
    try:
        found = describe(str(spoiled), elsewhere, base=describe(str(home / "tiny"), elsewhere))
        assert check_adapter(found) == sum(part.numel() for part in tensors.values())
        assert how in ("fields", "config")
    except ModelsError as error:
        assert is_one_line(error)


@inputs(0.06)
@given(declared=any_text, base=any_text | st.just("org/tiny"), is_hubs=st.booleans())
def test_names_of_backbones(declared, base, is_hubs):
    count()
    ref = declared_model(declared)
    assert declared_model(ref) == ref or "\\" in declared or "models--" in declared
    assert isinstance(is_same_model(ref, base, "tiny", base_is_hubs=is_hubs), bool)


parts = st.lists(
    st.sampled_from(["a", "=", "/", "./", " ", ",", "~", "mine", "tiny", "step=7", "\\"]) | any_text, max_size=5
)


@inputs(0.06)
@given(named_ref=parts.map("".join))
def test_arms_of_the_command_line(named_ref):
    count()
    try:
        (arm,) = arms_of([(named_ref, 1.0)], [], [])
        GenerationSpec.parse({"base": "tiny", "arms": [arm]})
    except ModelsError as error:
        assert is_one_line(error)
    else:
        assert arm["ref"] in named_ref or arm["ref"].startswith("/")


def is_one_line(error):
    return len(str(error).splitlines()) <= 1
