"""The models that a process holds: descriptions, backbones and adapters, each loaded once."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from models.adapters import read_updates
from models.backbone import Backbone
from models.blocks import BlockPool
from models.errors import SpecError
from models.guided import GuidedModel, LoadedModel
from models.loading import Description, describe, load_weights
from models.native.kernels import kernels_for
from models.rendering import Renderer
from models.spec import ArmSpec, GenerationSpec
from models.vocabulary import require_fit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_CACHE_BYTES = 2 * 2**30
CUDA_CACHE_SHARE = 0.5


@dataclass(frozen=True)
class Placement:
    """Where models run and in what precision."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str, dtype: str) -> "Placement":
        """Resolve `auto`: CUDA where present, and bfloat16 where the device supports it.

        Raises:
            SpecError: the device or dtype has no such name, or the device is not there.
        """
        try:
            chosen = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        except RuntimeError:
            raise SpecError(f"device {device!r}: use auto, cpu, cuda or cuda:N") from None
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"device {device!r}: no CUDA device is available here")
        if dtype == "auto":
            return cls(chosen, torch.bfloat16 if _supports_bfloat16(chosen) else torch.float32)
        if dtype not in DTYPES:
            raise SpecError(f"dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
        return cls(chosen, DTYPES[dtype])


def _supports_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def describe_spec(spec: GenerationSpec, home: Path) -> tuple[Description, list[Description]]:
    """Describe a job's base and ARMs, and check that they fit together; no weights are read.

    Raises:
        ModelNotFoundError, UnsupportedModelError: a model cannot be read or run.
        IncompatibleArmError: an ARM has another tokenizer than the base.
        SpecError: the spec asks for what its models cannot do.
    """
    base = describe(spec.base, home)
    if spec.system is not None and base.template is None:
        raise SpecError(f"a system message needs a chat template, and base {base.source.name!r} has none")
    arms = [describe(arm.ref, home, base=base, template=arm.template) for arm in spec.arms]
    for arm, description in zip(spec.arms, arms, strict=True):
        require_fit(base.vocabulary, description.vocabulary, base.source.name, arm.name)
    return base, arms


class Zoo:
    """Loads what specs ask for, and keeps it; thread-safe.

    Args:
        home: converted models are kept under it.
        device, dtype: where to run and in what precision; a spec's own dtype goes first.
        cache_bytes: KV cache of each backbone; None: a share of the device's free memory.
        use_kernels: run models on the CPU with our own kernels where they can be compiled.
        running: held while a loaded backbone is changed, so that no forward pass sees half an adapter.
    """

    def __init__(
        self, home: Path, device: str, dtype: str, cache_bytes: int | None, use_kernels: bool, running: threading.RLock
    ) -> None:
        self._home = home
        self._device = device
        self._dtype = dtype
        self._cache_bytes = cache_bytes
        self._use_kernels = use_kernels
        self._running = running
        self._loading = threading.Lock()
        self._backbones: dict[tuple[Path, torch.dtype], Backbone] = {}
        self._models: dict[tuple[str, str | None, Backbone], LoadedModel] = {}

    def load(self, spec: GenerationSpec) -> GuidedModel:
        """The models of a spec, loaded where they are not yet.

        Raises:
            ModelsError: as `describe_spec`, or the weights cannot be loaded.
        """
        with self._loading:
            placement = Placement.choose(self._device, spec.dtype if spec.dtype != "auto" else self._dtype)
            base, arms = describe_spec(spec, self._home)
            return GuidedModel(
                spec,
                self._loaded(base, None, placement),
                tuple(self._loaded(arm, one, placement) for arm, one in zip(arms, spec.arms, strict=True)),
            )

    def pools(self) -> list[BlockPool]:
        """The KV caches' accounting, one of each backbone."""
        return [backbone.pool for backbone in list(self._backbones.values())]

    def _loaded(self, description: Description, arm: ArmSpec | None, placement: Placement) -> LoadedModel:
        backbone = self._backbone(description, placement)
        template = arm.template if arm is not None else None
        key = (str(description.source.folder.resolve()), template, backbone)
        if (model := self._models.get(key)) is None:
            model = LoadedModel(
                description, backbone, Renderer(description.tokenizer, description.template, description.source.name)
            )
            self._attach_adapter(model)
            self._models[key] = model
        return model

    def _backbone(self, description: Description, placement: Placement) -> Backbone:
        key = (description.backbone.folder.resolve(), placement.dtype)
        if (backbone := self._backbones.get(key)) is None:
            model = load_weights(description, placement.dtype, placement.device)
            cache_bytes = self._cache_bytes or _default_cache_bytes(placement.device)
            kernels = kernels_for(placement.device, placement.dtype) if self._use_kernels else None
            backbone = self._backbones[key] = Backbone(model, description.backbone.ref, cache_bytes, kernels)
        return backbone

    def _attach_adapter(self, model: LoadedModel) -> None:
        adapter = model.description.adapter
        if adapter is None or model.adapter in model.backbone.adapters:
            return
        assert model.adapter is not None
        updates = read_updates(adapter.folder, model.description.config, adapter.ref)
        with self._running:
            model.backbone.attach(model.adapter, updates, adapter.ref)


def _default_cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_CACHE_SHARE)
    return CPU_CACHE_BYTES
