"""What a reference may name, and what is refused before anything of it is run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from models.errors import ModelNotFoundError, ModelsError, UnsupportedModelError
from models.model_names import is_same_model, model_name
from models.references import Kind, Source, resolve
from tests.tiny_models import make_adapter, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return make_adapter(model.parent / "tiny-arm", model)


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """A copy of a folder that a test may spoil."""

    def make(folder: Path, name: str | None = None) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copies" / (name or folder.name)))

    return make


def test_a_model_folder(model: Path, tmp_path: Path) -> None:
    source = resolve(str(model), tmp_path)
    assert (source.kind, source.folder, source.name, source.from_hub) == (Kind.MODEL, model, "tiny-base", False)


def test_an_adapter_folder(adapter: Path, model: Path, tmp_path: Path) -> None:
    source = resolve(str(adapter), tmp_path)
    assert (source.kind, source.name, source.backbone_ref) == (Kind.ADAPTER, "tiny-arm", str(model))


def test_a_relative_folder_has_its_real_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert resolve(".", tmp_path).name == "tiny-base"


@pytest.mark.parametrize(
    "ref", ["./nowhere", "/no/such/folder", "~/no-such-folder", "nowhere.gguf", "a/b/c", "what is this?"]
)
def test_a_path_to_nothing(ref: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        resolve(ref, tmp_path)


def test_a_hub_id_that_the_hub_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelNotFoundError, match=r"some-org/some-model: no such folder here, and the hub did not give it"
    ):
        resolve("some-org/some-model", tmp_path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(UnsupportedModelError, match="a hub id, a folder, an adapter folder or"):
        resolve(str(path), tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither config.json .* nor adapter_config.json"):
        resolve(str(tmp_path), tmp_path)


def test_a_folder_without_weights(copy: Any, model: Path, tmp_path: Path) -> None:
    folder = copy(model)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no model\*.safetensors"):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("kind", "weights", "pickle"),
    [
        ("model", "model.safetensors", "pytorch_model.bin"),
        ("adapter", "adapter_model.safetensors", "adapter_model.bin"),
    ],
)
def test_pickles_are_refused(
    copy: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, weights: str, pickle: str
) -> None:
    folder = copy(request.getfixturevalue(kind))
    (folder / weights).rename(folder / pickle)
    with pytest.raises(UnsupportedModelError, match=r"pickle checkpoint \(.bin\).*safetensors"):
        resolve(str(folder), tmp_path)


def test_a_model_that_brings_its_own_code_is_refused(edit: Any, copy: Any, model: Path, tmp_path: Path) -> None:
    folder = copy(model)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(UnsupportedModelError, match="its own code"):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_broken_configuration_is_named(copy: Any, model: Path, tmp_path: Path, text: str) -> None:
    folder = copy(model)
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"config\.json: "):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize("declared", [None, ""])
def test_an_adapter_that_does_not_name_its_backbone_rides_on_any(
    edit: Any, copy: Any, adapter: Path, model: Path, tmp_path: Path, declared: Any
) -> None:
    folder = copy(adapter)
    edit(folder / "adapter_config.json", base_model_name_or_path=declared)
    assert resolve(str(model), tmp_path).is_backbone_of(resolve(str(folder), tmp_path))


def test_a_backbone_that_is_no_text_is_refused(edit: Any, copy: Any, adapter: Path, tmp_path: Path) -> None:
    folder = copy(adapter)
    edit(folder / "adapter_config.json", base_model_name_or_path=7)
    with pytest.raises(UnsupportedModelError, match="base_model_name_or_path"):
        _ = resolve(str(folder), tmp_path).backbone_ref


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        ("org/tiny-base", True),  # known by name where one side is local
        ("somewhere/else/tiny-base", True),
        ("tiny-base.Q4_K_M.gguf", True),
        ("somewhere/tiny-base/", True),
        (r"C:\Users\alice\models\tiny-base", True),
        ("C:\\runs\\tiny-base\\", True),
        (f"/home/alice/.cache/huggingface/hub/models--org--tiny-base/snapshots/{'0' * 40}", True),
        (f"/home/alice/.cache/huggingface/hub/models--tiny-base/snapshots/{'0' * 40}/", True),
        (f"/home/alice/.cache/huggingface/hub/models--org--other/snapshots/{'0' * 40}", False),
        ("unsloth/Tiny-Base-bnb-4bit", True),
        ("unsloth/tiny-base-unsloth-bnb-4bit", True),
        ("TheBloke/tiny-base-GPTQ", True),
        ("org/tiny-base-AWQ", True),
        ("org/tiny-base-GPTQ-Int4", True),
        ("org/tiny-base-FP8-dynamic", True),
        ("RedHatAI/tiny-base-quantized.w4a16", True),
        ("org/tiny-base-4bit", True),
        ("org/tiny-base-instruct", False),
        ("org/tiny-base-instruct-bnb-4bit", False),
        ("org/other", False),
    ],
)
def test_a_local_model_is_an_adapters_backbone_by_name(
    edit: Any, copy: Any, adapter: Path, model: Path, tmp_path: Path, declared: str, fits: bool
) -> None:
    folder = copy(adapter)
    edit(folder / "adapter_config.json", base_model_name_or_path=declared)
    assert resolve(str(model), tmp_path).is_backbone_of(resolve(str(folder), tmp_path)) is fits


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        ("org/model", True),
        ("Org/Model", True),
        ("/models/model", True),
        ("other/model", False),
        ("other/model-bnb-4bit", True),
        ("org/model-v2", False),
    ],
)
def test_a_model_of_the_hub_is_known_by_its_id(declared: str, fits: bool) -> None:
    assert is_same_model(declared, "org/model", "model", base_is_hubs=True) is fits


@pytest.mark.parametrize(("revision", "fits"), [(None, True), ("main", True), ("a" * 40, True), ("b" * 40, False)])
def test_a_revision_of_the_hub_is_another_model(
    edit: Any, copy: Any, adapter: Path, tmp_path: Path, revision: str | None, fits: bool
) -> None:
    folder = copy(adapter)
    edit(folder / "adapter_config.json", base_model_name_or_path="org/model", revision=revision)
    base = Source("org/model", tmp_path / ("a" * 40), Kind.MODEL, "model", from_hub=True)
    assert base.is_backbone_of(resolve(str(folder), tmp_path)) is fits


@pytest.mark.parametrize("name", ["step=100-loss=0.2", "my model", "a:b#c%20", "~tilde", "モデル", "👩‍💻", "café"])
def test_folders_with_signs_are_found(copy: Any, model: Path, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    folder = copy(model, name)
    assert resolve(str(folder), tmp_path).folder == folder
    monkeypatch.chdir(folder.parent)
    assert resolve(name, tmp_path).folder == Path(name)


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("org/model", "model"),
        ("model", "model"),
        ("/some/folder/", "folder"),
        ("SmolLM2-135M-Instruct.Q4_K_M.gguf", "SmolLM2-135M-Instruct"),
        ("dir/llama-7b-Q8_0.gguf", "llama-7b"),
        ("model-f16.gguf", "model"),
        ("qwen2.5-0.5b.gguf", "qwen2.5-0.5b"),
    ],
)
def test_names(ref: str, name: str) -> None:
    assert model_name(ref) == name


def test_a_broken_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF nonsense" * 100)
    with pytest.raises(ModelsError, match=r"broken\.gguf"):
        resolve(str(path), tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
