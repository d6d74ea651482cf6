"""What a model reference names (hub id, model folder, LoRA adapter folder, .gguf file) and where its files are."""

import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from models.errors import ModelNotFoundError, UnsupportedModelError
from models.model_names import HUB_ID, declared_model, is_same_model, model_name
from models.registry import Registry, is_plain_name, registry_of
from models.rights import give_usual_rights

DESCRIPTION_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
HUB_FILES = [*DESCRIPTION_FILES, "*.safetensors"]
GGUF_CONVERSION = 2
"""Counted up when files are to be converted anew."""
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
"""Files in which a model may ask for code of its own to be run."""


class Kind(Enum):
    """How the files behind a reference are laid out."""

    MODEL = "model"
    ADAPTER = "adapter"


@dataclass(frozen=True)
class Source:
    """The files behind a reference."""

    ref: str
    """The reference as the user gave it."""
    folder: Path
    """A local folder in transformers' or PEFT's layout."""
    kind: Kind
    name: str
    """The model's name: the last part of its hub id, folder or file, without a GGUF's quantisation suffix."""
    from_hub: bool
    origin: str = ""
    """The hub id or path, where the reference is an alias of the registry."""
    rides_on: str | None = None
    """The alias of the model that the registry lets this adapter ride on, where it says so."""

    def adapter_config(self) -> dict[str, Any]:
        """The contents of `adapter_config.json` of an adapter."""
        return read_json(self.folder / "adapter_config.json")

    @property
    def backbone_ref(self) -> str | None:
        """The reference of the model that this adapter was trained on: the registry's word, or its own; None: neither.

        Raises:
            UnsupportedModelError: what the adapter says is no text.
        """
        if self.rides_on is not None:
            return self.rides_on
        declared = self.adapter_config().get("base_model_name_or_path")
        if declared is not None and not isinstance(declared, str):
            raise UnsupportedModelError(
                f"{self.ref}: base_model_name_or_path in adapter_config.json must be text or null"
            )
        return declared_model(declared) if declared else None

    @property
    def backbone_revision(self) -> str | None:
        """The revision of that model on the hub, where the adapter names one and the registry does not decide."""
        revision = None if self.rides_on is not None else self.adapter_config().get("revision")
        return revision if isinstance(revision, str) and revision not in ("", "main") else None

    def is_backbone_of(self, adapter: "Source") -> bool:
        """Whether `adapter` was trained on this model, by the names of both."""
        declared = adapter.backbone_ref
        if adapter.rides_on is not None or declared is None:
            return declared in (None, self.ref)
        if declared not in (self.ref, self.origin, str(self.folder)):
            return is_same_model(declared, self.origin or self.ref, self.name, base_is_hubs=self.from_hub)
        return not self.from_hub or adapter.backbone_revision in (None, self.folder.name)


def resolve(ref: str, home: Path, revision: str | None = None) -> Source:
    """Find the files behind a reference, fetching them from the hub or converting a .gguf file where needed.

    Args:
        ref: a hub id, a folder, an adapter folder or a .gguf file.
        revision: of a hub id; None: the registry's, or the newest.
        home: converted models are kept under `home/models`; its `models.toml`, if there is one, says what is allowed.

    Raises:
        ModelNotFoundError: the reference names nothing that can be read.
        ModelNotAllowedError: `home` has a registry, and the reference is not in it.
        UnsupportedModelError: it names a checkpoint that is not in safetensors, or one that wants to run its own code.
    """
    if (registry := registry_of(home)) is not None:
        return _registered(ref, registry, home)
    if any(unicodedata.category(letter) == "Cc" for letter in ref):
        raise ModelNotFoundError(f"{ref[:200]!r}: a reference has no control characters")
    if (path := existing_path(ref)) is not None:
        return _local(ref, path, home)
    if _looks_like_path(ref):
        raise ModelNotFoundError(f"{ref[:200]}: no such file or folder")
    folder = _hub_folder(ref, revision)
    return Source(ref, folder, _kind_of(folder, ref), model_name(ref), from_hub=True)


def existing_path(ref: str) -> Path | None:
    """The path that a reference means, if it is there; `~` means a home folder unless a folder has that name.

    Raises:
        ModelNotFoundError: a folder on the way to it may not be read.
    """
    try:
        if (path := Path(ref)).exists():
            return path
        return home if (home := path.expanduser()).exists() else None
    except PermissionError as error:
        raise _denied(ref, Path(error.filename or ref)) from None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, the home folder of nobody
        return None


def _denied(ref: str, path: Path) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{ref[:200]}: permission denied for {path}; let the user that runs genarm read it (chmod -R a+rX)"
    )


def _registered(ref: str, registry: Registry, home: Path) -> Source:
    """The files of a model of the registry."""
    alias, entry = registry.find(ref)
    if entry.hub is not None:
        folder = _hub_folder(entry.hub, entry.revision)
        source = Source(alias, folder, _kind_of(folder, alias), model_name(entry.hub), from_hub=True, origin=entry.hub)
    else:
        try:
            path = registry.path_of(alias, entry)
        except PermissionError as error:
            raise _denied(alias, Path(error.filename)) from None
        if existing_path(str(path)) is None:
            raise ModelNotFoundError(f"{alias}: {path} does not exist")
        source = replace(_local(alias, path, home), origin=str(path))
    if entry.base is not None and source.kind is not Kind.ADAPTER:
        raise UnsupportedModelError(f"{alias}: is no adapter, so that it has no `base` in {registry.file}")
    return replace(source, rides_on=entry.base)


def _local(ref: str, path: Path, home: Path) -> Source:
    name = model_name(str(path.resolve()))
    _require_readable(path, ref)
    if path.is_file() and path.suffix == ".gguf":
        return Source(ref, _converted_gguf(path, home), Kind.MODEL, model_name(str(path)), from_hub=False)
    if path.is_dir():
        return Source(ref, path, _kind_of(path, ref), name, from_hub=False)
    raise UnsupportedModelError(f"{ref}: a model is a hub id, a folder, an adapter folder or a .gguf file")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UnsupportedModelError: the file is missing or is not a JSON object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(loaded, dict):
        raise UnsupportedModelError(f"{path}: is not a JSON object")
    return loaded


def _require_readable(path: Path, ref: str) -> None:
    """Refuse what this user may not read, by its cause: later it would be missing, or no model."""
    files = [file for pattern in HUB_FILES for file in sorted(path.glob(pattern))] if os.access(path, os.R_OK) else []
    for one in (path, *files):
        if not os.access(one, os.R_OK | os.X_OK if one.is_dir() else os.R_OK):
            raise _denied(ref, one)


def _looks_like_path(ref: str) -> bool:
    return ref.startswith((".", "/", "~")) or ref.endswith(".gguf") or HUB_ID.match(ref) is None


def _kind_of(folder: Path, ref: str) -> Kind:
    _require_no_code(folder, ref)
    if (folder / "adapter_config.json").is_file():
        _require_safetensors(folder, ref, "adapter_model.safetensors")
        return Kind.ADAPTER
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{ref}: the folder has neither config.json (a model) nor adapter_config.json (an adapter)"
        )
    read_json(folder / "config.json")
    _require_safetensors(folder, ref, "model*.safetensors")
    return Kind.MODEL


def _require_no_code(folder: Path, ref: str) -> None:
    """Refuse a model or adapter whose files ask for code of their own to be run."""
    for name in CONFIGURATIONS:
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise UnsupportedModelError(
                f"{ref}: the model wants to run its own code (auto_map in {name}), which genarm never does"
            )


def _require_safetensors(folder: Path, ref: str, names: str) -> None:
    if any(folder.glob(names)):
        _require_plain_index(folder, ref)
        return
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        raise UnsupportedModelError(
            f"{ref}: {pickles[0]} is a pickle checkpoint (.bin), which can run code; save it again with safetensors "
            "(model.save_pretrained(folder))"
        )
    raise ModelNotFoundError(f"{ref}: no {names} in the folder")


def _require_plain_index(folder: Path, ref: str) -> None:
    """The index of a sharded checkpoint names files, which must be the folder's own."""
    for index in folder.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(is_plain_name(name) for name in shards.values()):
            raise UnsupportedModelError(f"{ref}: {index.name} names files outside of the model's folder")


def _hub_folder(ref: str, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"{ref}: no such folder here, and the hub did not give it ({reason}); "
            "check the name, or the connection, or give a local folder"
        ) from None


def _converted_gguf(path: Path, home: Path) -> Path:
    """The folder of a .gguf file's weights as bfloat16 safetensors, made on first use.

    The folder's name carries the file's path, size and time, so that a changed file is converted again; it appears by
    one rename, so that two processes that convert at the same time do no harm.
    """
    stat = path.stat()
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{GGUF_CONVERSION}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = home / "models" / f"{model_name(str(path))}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert_gguf(path, partial)
        give_usual_rights((partial, *partial.iterdir()))
        partial.replace(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _convert_gguf(path: Path, folder: Path) -> None:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError:
        raise UnsupportedModelError(
            f"{path}: reading .gguf files needs more packages: pip install 'genarm[gguf]'"
        ) from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model.generation_config.eos_token_id = _gguf_ends(path) or model.generation_config.eos_token_id
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedModelError(f"{path}: transformers cannot read this .gguf file ({error})") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fetched_description(ref: str, revision: str | None) -> Path | None:
    """A folder with a hub model's configuration and tokenizer, where the hub or its cache gives one without weights."""
    from huggingface_hub import snapshot_download

    if not HUB_ID.match(ref) or existing_path(ref) is not None:
        return None
    try:
        folder = Path(snapshot_download(ref, revision=revision, allow_patterns=DESCRIPTION_FILES))
    except Exception:  # the hub's, the network's: then the model itself is asked for, and says what is wrong
        return None
    is_whole = any(folder.glob("*.safetensors"))
    return folder if not is_whole and (folder / "config.json").is_file() else None


def _gguf_ends(path: Path) -> list[int]:
    """The tokens that a file names as ends: of a sequence, a turn or a message."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    found = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return sorted({int(one.contents()) for one in found if one is not None})
