"""A LoRA adapter's files: read by PEFT onto a skeleton of its backbone, every tensor of them used or refused."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.adapter_config import MERGE, lora_fields
from models.adapters import LowRank
from models.errors import UnsupportedModelError, first_line
from models.loading import Description
from models.references import Source

FILE_NAME = "adapter_model.safetensors"
MATRIX = re.compile(r".*\.lora_[AB]\.(default\.)?weight")
"""The two matrices of an adapted linear layer, in the names that PEFT gives them."""


def check_adapter(description: Description) -> int:
    """Check that an adapter can ride on its backbone, by its configuration and the header of its file alone.

    Returns:
        How many parameters the adapter has.

    Raises:
        UnsupportedModelError: it cannot: a field of its configuration or a tensor of its file is not of plain LoRA,
            is missing, or has another shape than the backbone asks for; the message names it and the remedy.
    """
    source = description.source
    return sum(matrix.numel() for matrix in _Skeleton(source, description.config).matrices.values())


def read_updates(description: Description) -> dict[str, LowRank]:
    """The low-rank updates of an adapter, by the name of the backbone's linear layer, in float32 on the CPU.

    Raises:
        UnsupportedModelError: as `check_adapter`, or the file cannot be read.
    """
    return _Skeleton(description.source, description.config).filled()


class _Skeleton:
    """The backbone without weights, with PEFT's layers where the adapter's configuration wants them.

    Args:
        source: the adapter.
        config: transformers' configuration of the backbone.

    Raises:
        UnsupportedModelError: as `check_adapter`.
    """

    def __init__(self, source: Source, config: Any) -> None:
        self.ref = source.ref
        self.file = source.folder / FILE_NAME
        fields = lora_fields(source.adapter_config(), self.ref)
        header = _header(self.file, self.ref)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about adapters that PEFT made, but trained elsewhere
            self._model = _adapted(config, fields, self.ref)
            self.layers = self._inner_linears()
            self._load(header)
        self.matrices = header

    def filled(self) -> dict[str, LowRank]:
        """The updates by layer, after the file was read."""
        for layer in self.layers.values():
            layer.lora_A.to_empty(device="cpu")
            layer.lora_B.to_empty(device="cpu")
        self._load(_tensors(self.file, self.ref))
        return {
            name: LowRank(
                layer.lora_A["default"].weight.detach(),
                layer.lora_B["default"].weight.detach(),
                float(layer.scaling["default"]),
            )
            for name, layer in self.layers.items()
        }

    def _inner_linears(self) -> dict[str, Any]:
        from peft.tuners.lora import Linear, LoraLayer

        backbone = self._model.get_base_model()
        head = backbone.get_output_embeddings()
        layers = {name: part for name, part in backbone.named_modules() if isinstance(part, LoraLayer)}
        for name, layer in layers.items():
            if layer is head or not isinstance(layer, Linear):
                raise UnsupportedModelError(
                    f"{self.ref}: adapts {name}; an adapter that rides on a backbone may adapt inner linear layers "
                    f"only; {MERGE}"
                )
        return layers

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Give tensors to PEFT, which knows the names of older releases too, and refuse what it leaves over."""
        from peft import set_peft_model_state_dict

        try:
            found = set_peft_model_state_dict(self._model, tensors)
        except Exception as error:  # PEFT and transformers raise all sorts over files that somebody else wrote
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise UnsupportedModelError(f"{self.ref}: does not fit its backbone ({lines[-1]})") from None
        missing = sorted(key for key in found.missing_keys if ".lora_" in key)
        for keys, fault in ((missing, "lacks"), (sorted(found.unexpected_keys), "is for another model: it has")):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise UnsupportedModelError(
                    f"{self.ref}: does not fit its backbone (its file {fault} {keys[0]}{more}); check that "
                    "base_model_name_or_path and target_modules in adapter_config.json are those of its training"
                )


def _adapted(config: Any, fields: dict[str, Any], ref: str) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
            settings = LoraConfig(**fields, task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
            return get_peft_model(skeleton, settings)
        except Exception as error:  # as in _load
            raise UnsupportedModelError(f"{ref}: does not fit its backbone ({first_line(error)})") from None


def _header(file: Path, ref: str) -> dict[str, Tensor]:
    """The tensors of an adapter's file without their values, on the meta device."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(ref, error) from None
    for name in sorted(shapes):
        if MATRIX.fullmatch(name) is None:
            raise UnsupportedModelError(
                f"{ref}: its file holds {name[:200]}, which is no matrix of plain LoRA; {MERGE}"
            )
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _tensors(file: Path, ref: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
        return tensors
    except (OSError, SafetensorError) as error:
        raise _unreadable(ref, error) from None


def _unreadable(ref: str, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(f"{ref}: its weights cannot be loaded ({first_line(error)})")
