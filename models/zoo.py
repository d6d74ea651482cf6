"""The models that a process holds: backbones and adapters, each loaded once, the least recently used dropped."""

import gc
import itertools
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from models.adapter_files import read_updates
from models.backbone import Backbone
from models.conformance import require_conformance
from models.errors import DeviceLostError, ModelMemoryError, ModelsError, SpecError, first_line
from models.failures import is_lost, is_out_of_memory
from models.fitting import kv_bytes_per_token
from models.guided import GuidedModel, LoadedModel
from models.loading import Description, DeviceMap, describe, load_weights
from models.memory import LEAST_CACHE_SHARE, WANTED_CACHE_SHARE, cache_bytes, default_budget, model_bytes, stored_bytes
from models.native.choice import auto_dtype, chosen_kernels
from models.native.kernels import Kernels
from models.rendering import Renderer
from models.residents import Resident
from models.shelf import GiveUp, Shelf, Turn
from models.spec import GenerationSpec
from models.templates import ChatTemplates, unread, variables
from models.units import readable_size
from models.vocabulary import require_fit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where models run and in what precision."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str, dtype: str, use_kernels: bool | None = False) -> "Placement":
        """Resolve `auto`: CUDA where present; bfloat16 where the device computes in it or the kernels are faster in it.

        float16 is never chosen: it has too small a range for models that were trained in bfloat16.

        Args:
            device: auto, cpu, cuda or cuda:N.
            dtype: auto, or a name of DTYPES.
            use_kernels: as of `auto_dtype`, for models on the CPU.

        Raises:
            SpecError: the device or dtype has no such name, or the device is not there.
        """
        try:
            chosen = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        except RuntimeError:
            raise SpecError(f"device {device!r}: use auto, cpu, cuda or cuda:N") from None
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"device {device!r}: no CUDA device is available here")
        if chosen.index is not None and chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
            raise SpecError(f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices here, from cuda:0")
        if dtype == "auto":
            return cls(chosen, torch.bfloat16 if _supports_bfloat16(chosen, use_kernels) else torch.float32)
        if dtype not in DTYPES:
            raise SpecError(f"dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
        return cls(chosen, DTYPES[dtype])


def _supports_bfloat16(device: torch.device, use_kernels: bool | None) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return auto_dtype(use_kernels) == torch.bfloat16


def prepare(device: str, dtype: str, use_kernels: bool | None) -> Placement:
    """Do at once what the first model would wait for: compile the kernels and measure them; arguments as of `choose`.

    Raises:
        SpecError: as `choose`; or the kernels are demanded, and cannot be had.
    """
    placement = Placement.choose(device, dtype, use_kernels)
    kernels = chosen_kernels(placement.dtype, use_kernels) if placement.device.type == "cpu" else None
    how = "our kernels" if kernels is not None else "PyTorch's operations"
    name = str(placement.dtype).removeprefix("torch.")
    log.info("models run on %s with %s, in %s where a job leaves its dtype open", placement.device, how, name)
    return placement


def describe_spec(spec: GenerationSpec, home: Path) -> tuple[Description, list[Description]]:
    """Describe a job's base and ARMs, and check that they fit together; no weights are read.

    Raises:
        ModelNotFoundError, UnsupportedModelError: a model cannot be read or run.
        IncompatibleArmError: an ARM has another tokenizer than the base.
        SpecError: the spec asks for what its models cannot do.
    """
    base = describe(spec.base, home, template=spec.chat_template)
    if spec.system is not None and base.template is None:
        raise SpecError(f"a system message needs a chat template, and base {base.source.name!r} has none")
    arms = [describe(arm.ref, home, base=base, template=arm.template, on_base=arm.on_base) for arm in spec.arms]
    for arm, description in zip(spec.arms, arms, strict=True):
        require_fit(base.vocabulary, description.vocabulary, base.source.name, arm.name)
    for one in (base, *arms):
        require_conformance(one.config, one.backbone.ref)
    _require_variables(spec, [one.templates for one in (base, *arms)])
    return base, arms


def _require_variables(spec: GenerationSpec, used: Sequence[ChatTemplates | None]) -> None:
    """Refuse a variable that no chat template of a job reads."""
    read = frozenset[str]().union(*(variables(text) for one in used if one for text in (one.text, one.tool_use)))
    for name in spec.chat_template_kwargs:
        if name not in read:
            raise SpecError(f"chat_template_kwargs: {unread(name, read)}")


@dataclass(frozen=True, eq=False)
class Attached:
    """An adapter on its backbone."""

    backbone: Backbone
    name: str
    ref: str


class Zoo:
    """Loads what specs ask for, and keeps it as long as memory allows; thread-safe.

    Args:
        home: converted models are kept under it.
        device, dtype: where to run and in what precision; a spec's own dtype goes first.
        cache_bytes: KV cache of each backbone; None: a share of what the models leave of the memory for them.
        memory_bytes: for models and their KV caches; None: a share of the device's memory.
        use_kernels: run models on the CPU with our own kernels, or with PyTorch's operations; None: what is faster.
        static_decode: run decodes in static shapes; None: on CUDA, as graphs.
        device_map: spreads a model's layers over devices, instead of one; see `load_weights`.
        running: held while a loaded backbone is changed, so that no forward pass sees half an adapter, and while the
            device frees memory or is waited for, which a CUDA graph that is being captured does not allow.
    """

    def __init__(
        self,
        home: Path,
        device: str,
        dtype: str,
        cache_bytes: int | None,
        use_kernels: bool | None,
        running: threading.RLock,
        memory_bytes: int | None = None,
        static_decode: bool | None = None,
        device_map: DeviceMap | None = None,
    ) -> None:
        self._home = home
        self._device = device
        self._dtype = dtype
        self._cache_bytes = cache_bytes
        self._memory_bytes = memory_bytes
        self._static_decode = static_decode
        self._use_kernels = use_kernels
        self._running = running
        self._device_map = device_map
        self._starting = threading.Lock()
        self._shelf: Shelf | None = None
        self._serials = itertools.count()
        self._models: WeakValueDictionary[tuple[Path, str | None, Resident], LoadedModel] = WeakValueDictionary()

    def load(self, spec: GenerationSpec, give_up: GiveUp | None = None) -> GuidedModel:
        """The models of a spec, loaded where they are not yet; they stay in memory until `let_go`.

        Args:
            give_up: asked from time to time while models in use leave no room; None: no waiting for that.

        Raises:
            ModelsError: as `describe_spec`, or the weights cannot be loaded.
            ModelMemoryError: they do not fit into the memory for models.
            ModelsInUseError: they fit, but not beside the models in use, and the caller gave up.
            DeviceLostError: nothing can be loaded any more.
        """
        try:
            return self._load(spec, give_up)
        except ModelsError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            with self._running:
                if is_lost(Placement.choose(self._device, self._dtype).device):
                    raise DeviceLostError(f"the device fails at everything ({what})") from error
            if is_out_of_memory(error):
                raise ModelMemoryError(
                    f"{spec.base} and its ARMs: there is no memory for them and their KV caches ({what}): stop what "
                    "else uses the device, or lower GENARM_MODEL_MEMORY_BYTES or GENARM_KV_CACHE_BYTES"
                ) from None
            log.exception("the models of a job cannot be loaded")
            raise ModelsError(f"{spec.base} and its ARMs cannot be loaded ({what}); the log says where") from error

    def _load(self, spec: GenerationSpec, give_up: GiveUp | None) -> GuidedModel:
        dtype = spec.dtype if spec.dtype != "auto" else self._dtype
        placement = Placement.choose(self._device, dtype, self._use_kernels)
        base, arms = describe_spec(spec, self._home)
        shelf = self._shelf_on(placement.device)
        keys = list(dict.fromkeys(key for one in (base, *arms) for key in _keys(one, placement.dtype)))
        with shelf.turn(keys, give_up) as turn:
            if turn.is_loading:
                self._load_missing(shelf, turn, (base, *arms), placement)
        residents = {resident.key: resident for resident in turn.residents}
        try:
            models = [
                self._loaded(one, template, residents, placement)
                for one, template in zip(
                    (base, *arms), (spec.chat_template, *(arm.template for arm in spec.arms)), strict=True
                )
            ]
        except BaseException:
            shelf.let_go(turn.residents)
            raise
        return GuidedModel(spec, models[0], tuple(models[1:]))

    def hold(self, guided: GuidedModel) -> bool:
        """Keep a model that was loaded before in memory until `let_go`; False: load it again.

        It is False where memory was taken from it, and where others wait for memory, who go first.
        """
        return self._shelf is not None and self._shelf.hold(guided.residents)

    def hold_again(self, guided: GuidedModel) -> None:
        """Keep a model that somebody holds for one more user."""
        if self._shelf is None or not self._shelf.hold_again(guided.residents):
            raise RuntimeError("the models were dropped from memory: hold or load them while rows are submitted")

    def let_go(self, guided: GuidedModel) -> None:
        """Let go of a model; it stays in memory until others need that."""
        if self._shelf is not None:
            self._shelf.let_go(guided.residents)

    @property
    def backbones(self) -> list[Backbone]:
        """The backbones in memory."""
        items = self._shelf.items() if self._shelf is not None else []
        return [item for item in items if isinstance(item, Backbone)]

    @property
    def usage(self) -> tuple[int, int, int]:
        """Bytes that models and caches take, bytes that they may take, and evictions so far."""
        return self._shelf.usage() if self._shelf is not None else (0, self._memory_bytes or 0, 0)

    def _shelf_on(self, device: torch.device) -> Shelf:
        with self._starting:
            if self._shelf is None:
                devices = torch.cuda.device_count() if self._device_map is not None and device.type == "cuda" else 1
                self._shelf = Shelf(self._memory_bytes or default_budget(device) * devices, self._drop)
            return self._shelf

    def _loaded(
        self, description: Description, template: str | None, residents: dict[Any, Resident], placement: Placement
    ) -> LoadedModel:
        """A model over residents; one object for all jobs, so that their rows are drawn together."""
        own = [residents[key] for key in _keys(description, placement.dtype)]
        key = (description.source.folder.resolve(), template, own[-1])
        with self._starting:
            if (model := self._models.get(key)) is None:
                renderer = Renderer(description.tokenizer, description.templates, description.source.name)
                model = self._models[key] = LoadedModel(description, tuple(own), renderer)
            return model

    def _load_missing(
        self, shelf: Shelf, turn: Turn, descriptions: Sequence[Description], placement: Placement
    ) -> None:
        backbones, adapters = {}, {}
        for one in descriptions:
            backbone_key, *adapter_key = _keys(one, placement.dtype)
            backbones[backbone_key] = one
            adapters.update(dict.fromkeys(adapter_key, one))
        missing = {key: self._weight_bytes(one, placement) for key, one in backbones.items() if not shelf.find(key)}
        riding = {
            key: stored_bytes(one.source.folder, placement.dtype)
            for key, one in adapters.items()
            if not shelf.find(key)
        }
        if missing or riding:
            weights = sum(missing.values()) + sum(riding.values())
            wanted, least = (
                weights + len(missing) * (self._cache_bytes or int(shelf.budget * share))
                for share in (WANTED_CACHE_SHARE, LEAST_CACHE_SHARE)
            )
            shelf.make_room(turn, wanted, least)
        needs = self._cache_needs(descriptions, placement.dtype, missing)
        spare = sum(needs.values()) // max(1, len(needs))
        while missing:
            left = shelf.left - sum(missing.values()) - sum(riding.values())
            key = next(iter(missing))
            need = needs.pop(key)
            size = self._cache_bytes or cache_bytes(
                placement.device, shelf.budget, left, need, sum(needs.values()), spare
            )
            backbone = self._backbone(backbones[key], placement, size)
            shelf.add(key, backbone, model_bytes(backbone.model) + size)
            del missing[key]
        for key in riding:
            on = shelf.find(_keys(adapters[key], placement.dtype)[0])
            assert on is not None
            shelf.add(key, *self._attached(adapters[key], on.item), on)

    def _cache_needs(
        self, descriptions: Sequence[Description], dtype: torch.dtype, missing: Iterable[Any]
    ) -> dict[Any, int]:
        """Bytes that a token of a sequence takes in each missing backbone's cache, those of its adapters too."""
        needs = dict.fromkeys(missing, 0)
        for one in descriptions:
            if (key := _keys(one, dtype)[0]) in needs:
                needs[key] += kv_bytes_per_token(one, dtype)
        return needs

    def _weight_bytes(self, description: Description, placement: Placement) -> int:
        size = stored_bytes(description.backbone.folder, placement.dtype)
        config = description.config.get_text_config()
        if config.tie_word_embeddings and self._kernels(placement) is not None:
            size += config.vocab_size * config.hidden_size * placement.dtype.itemsize  # the LM head is packed apart
        return size

    def _backbone(self, description: Description, placement: Placement, cache_bytes: int) -> Backbone:
        static = placement.device.type == "cuda" if self._static_decode is None else self._static_decode
        ref, dtype = description.backbone.ref, str(placement.dtype).removeprefix("torch.")
        size = stored_bytes(description.backbone.folder, placement.dtype)
        log.info("loading %s: %s in %s to %s", ref, readable_size(size), dtype, placement.device)
        started = time.monotonic()
        model = load_weights(description, placement.dtype, placement.device, self._device_map)
        backbone = Backbone(model, ref, cache_bytes, self._kernels(placement), static)
        seconds = time.monotonic() - started
        log.info("loaded %s in %.1f s, with a KV cache of %s", ref, seconds, readable_size(cache_bytes))
        return backbone

    def _kernels(self, placement: Placement) -> Kernels | None:
        return chosen_kernels(placement.dtype, self._use_kernels) if placement.device.type == "cpu" else None

    def _attached(self, description: Description, backbone: Backbone) -> tuple[Attached, int]:
        """An adapter, attached to its backbone under a name that no other ever had there, and its bytes."""
        adapter = description.source
        updates = read_updates(description)
        name = f"{adapter.folder.resolve()}#{next(self._serials)}"
        with self._running:
            try:
                backbone.attach(name, updates)
            except BaseException:  # memory may run out in the middle
                backbone.detach(name)
                raise
        size = sum((update.a.numel() + update.b.numel()) * backbone.dtype.itemsize for update in updates.values())
        log.info("attached the adapter %s to %s: %s", adapter.ref, backbone.ref, readable_size(size))
        return Attached(backbone, name, adapter.ref), size

    def _drop(self, items: list[Any]) -> None:
        """Let go of what was evicted, and of its memory."""
        while items:
            item = items.pop()
            if isinstance(item, Attached):
                with self._running:
                    item.backbone.detach(item.name)
            log.info("dropped %s from memory for other models", item.ref)
        item = None
        with self._running:
            gc.collect()  # rows that are done still know their backbone, in cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _keys(description: Description, dtype: torch.dtype) -> list[Any]:
    """What names a model in memory: its backbone, and its adapter where it is one."""
    backbone = (description.backbone.folder.resolve(), dtype)
    return [backbone] if description.adapter is None else [backbone, (description.source.folder.resolve(), backbone)]
