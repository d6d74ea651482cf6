"""Model folders that want to run code, or to read what is not theirs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checking import check_spec
from models.errors import RowError, UnsupportedModelError
from models.references import resolve
from models.spec import GenerationSpec

EVIL = b"cos\nsystem\n(S'touch /tmp/genarm-was-here'\ntR."
"""A pickle that runs a command when it is loaded."""


@pytest.mark.parametrize(("folder", "weights"), [("base", "model.safetensors"), ("arm", "adapter_model.safetensors")])
@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_pickle_is_refused_with_the_remedy(home, folder, weights, pickle):
    model = home / "shelf" / folder
    (model / weights).unlink()
    (model / pickle).write_bytes(EVIL)
    with pytest.raises(UnsupportedModelError, match=r"pickle checkpoint \(.bin\).*save_pretrained"):
        resolve(str(model), home)


def test_a_pickle_under_the_name_of_safetensors_is_refused(home):
    from models.engine import Engine, EngineSettings

    (home / "shelf" / "base" / "model.safetensors").write_bytes(EVIL)
    engine = Engine(EngineSettings(home=home, dtype="float32"))
    with pytest.raises(UnsupportedModelError, match="weights cannot be loaded"):
        engine.load(GenerationSpec.parse({"base": str(home / "shelf" / "base")}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_model_that_brings_code_is_refused_whichever_file_says_so(home, edit, name):
    folder = home / "shelf" / "base"
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModelError, match=f"its own code \\(auto_map in {name}\\)"):
        resolve(str(folder), home)


def test_an_adapter_that_names_a_module_to_import_is_refused(home, edit, monkeypatch):
    from models.engine import Engine, EngineSettings

    folder = home / "shelf" / "arm"
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(folder)
    edit(folder / "adapter_config.json", megatron_config={"x": 1}, megatron_core="evil")
    arms = [{"name": "arm", "ref": str(folder)}]
    spec = GenerationSpec.parse({"base": str(home / "shelf" / "base"), "arms": arms})
    with pytest.raises(UnsupportedModelError, match="megatron_config"):
        check_spec(spec, home)
    with pytest.raises(UnsupportedModelError, match="megatron_config"):
        Engine(EngineSettings(home=home, dtype="float32")).load(spec)


@pytest.mark.parametrize("shard", ["../../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", 7])
def test_the_index_of_a_checkpoint_names_files_of_its_own_folder_only(home, shard):
    index = home / "shelf" / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(UnsupportedModelError, match="outside of the model's folder"):
        resolve(str(index.parent), home)


def test_weights_that_are_no_numbers_do_not_reach_the_results(home):
    """A checkpoint of NaN gives an error for each row, never a completion."""
    from models.engine import Engine, EngineSettings
    from models.spec import PromptRow

    file = home / "shelf" / "base" / "model.safetensors"
    weights = load_file(file)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, file, {"format": "pt"})
    engine = Engine(EngineSettings(home=home, dtype="float32"))
    spec = GenerationSpec.parse({"base": str(file.parent), "sampling": {"max_new_tokens": 4}})
    engine.start()
    try:
        future = engine.submit(engine.load(spec), PromptRow.parse({"prompt": "hi"}, 0, spec))
        error = future.exception(timeout=60)
        assert isinstance(error, RowError)
        assert error.code == "not_finite"
    finally:
        engine.stop()
