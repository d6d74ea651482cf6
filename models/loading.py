"""From a reference to a model's description (tokenizer, template, limits), and to its weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from models.adapter_config import MERGE
from models.attention import NAME as ATTENTION
from models.errors import ModelNotAllowedError, ModelNotFoundError, UnsupportedModelError, first_line
from models.references import Kind, Source, fetched_description, resolve
from models.rendering import closing_token
from models.templates import ChatTemplates, choose
from models.vocabulary import Vocabulary

# These rotary embeddings depend on the longest sequence in the batch, so a row's output would depend on its neighbours.
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}

OF_A_COPY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
"""Fields of a configuration that differ between copies of one model."""

DeviceMap: TypeAlias = str | dict[str, str | int | torch.device]
"""transformers' way to spread a model's layers over devices (auto, balanced, …), or a device by module."""


@dataclass(frozen=True)
class Description:
    """What is known of a model without its weights."""

    source: Source
    """The reference itself: a model, or an adapter."""
    backbone: Source
    """The model whose weights run: the reference itself, or what the adapter was trained on."""
    config: Any
    """transformers' configuration of the backbone."""
    tokenizer: Any
    templates: ChatTemplates | None
    """The Jinja chat templates, where there are any."""
    vocabulary: Vocabulary
    context_tokens: int
    """The most tokens that a sequence may have."""
    eos_ids: frozenset[int]
    """Tokens that end a response."""

    @property
    def template(self) -> str | None:
        """The Jinja chat template of rows without tools."""
        return self.templates.text if self.templates is not None else None

    @property
    def adapter(self) -> Source | None:
        """The adapter that rides on the backbone, if the reference is one."""
        return self.source if self.source.kind is Kind.ADAPTER else None


def describe(
    ref: str,
    home: Path,
    base: "Description | None" = None,
    template: str | None = None,
    *,
    on_base: bool = False,
    revision: str | None = None,
) -> Description:
    """Read a model's configuration and tokenizer; no weights.

    Args:
        ref: the model's reference.
        home: where converted models are kept.
        base: the job's base, which is an adapter's backbone when the adapter was trained on it.
        template: a Jinja chat template to use instead of the model's own, or the name of one of its own.
        on_base: the reference is an adapter of `base`, whatever it says itself.
        revision: of a hub id.

    Raises:
        ModelNotFoundError: nothing readable is there.
        ModelNotAllowedError: the registry does not allow it, or says that it rides on another model.
        UnsupportedModelError: the model cannot be run.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bars would mix with the command line's own
    source = resolve(ref, home, revision)
    if source.kind is Kind.ADAPTER:
        return _describe_adapter(source, home, base, template, on_base)
    if on_base:
        raise UnsupportedModelError(f"{ref}: is no adapter, so that it rides on no base; leave out --arm-on-base")
    config = _read(source, "config")
    _require_supported(config, ref)
    tokenizer = _read(source, "tokenizer")
    return _description(source, source, config, tokenizer, choose(tokenizer.chat_template, template, ref))


def _describe_adapter(
    source: Source, home: Path, base: Description | None, template: str | None, on_base: bool
) -> Description:
    backbone = _backbone_of(source, home, base, on_base)
    tokenizer = backbone.tokenizer
    if (source.folder / "tokenizer_config.json").is_file():
        tokenizer = _read(source, "tokenizer")
        _require_embeddings(source, tokenizer, backbone)
    has_own = tokenizer is not backbone.tokenizer and bool(tokenizer.chat_template)
    chosen = backbone.templates
    if has_own or template is not None:
        own = tokenizer.chat_template if has_own else backbone.tokenizer.chat_template
        chosen = choose(own, template, source.ref)
    if tokenizer is backbone.tokenizer:
        return replace(backbone, source=source, templates=chosen)
    return _description(source, backbone.source, backbone.config, tokenizer, chosen)


def _require_embeddings(adapter: Source, tokenizer: Any, backbone: Description) -> None:
    """Refuse an adapter whose tokenizer was given tokens for which its backbone has no row."""
    rows, known = backbone.config.get_text_config().vocab_size, backbone.tokenizer.get_vocab()
    added = [token for token, index in tokenizer.get_vocab().items() if index >= rows and token not in known]
    if added:
        raise UnsupportedModelError(
            f"{adapter.ref}: its tokenizer has {len(added)} tokens, {min(added)!r} among them, for which "
            f"{backbone.source.ref} has no embeddings: they were resized for its training; {MERGE}, with its tokenizer"
        )


def _backbone_of(adapter: Source, home: Path, base: Description | None, on_base: bool) -> Description:
    """The model that an adapter rides on: the job's base where that is the one, else the model that it names."""
    if base is not None and base.adapter is not None:
        base = None
    if on_base:
        if base is None:
            raise UnsupportedModelError(f"{adapter.ref}: is to ride on the job's base, which must be a whole model")
        if adapter.rides_on not in (None, base.source.ref):
            raise ModelNotAllowedError(f"{adapter.ref}: the registry lets it ride on {adapter.rides_on} alone")
        return base
    if base is not None and (base.source.is_backbone_of(adapter) or _is_copy(base, adapter)):
        return base
    return _backbone_by_name(adapter, home)


def _is_copy(base: Description, adapter: Source) -> bool:
    """Whether a local base and the hub's model that an adapter names agree in all but weights, which are not here."""
    if base.source.from_hub or base.source.origin or adapter.backbone_ref is None:
        return False
    folder = fetched_description(adapter.backbone_ref, adapter.backbone_revision)
    if folder is None:
        return False
    named = replace(base.source, ref=adapter.backbone_ref, folder=folder)
    try:
        config, tokenizer = _read(named, "config"), _read(named, "tokenizer")
    except UnsupportedModelError:
        return False
    return (
        _essence(config) == _essence(base.config)
        and _eos_ids(named, config, tokenizer) == base.eos_ids
        and tokenizer.get_vocab() == base.tokenizer.get_vocab()
        and tokenizer.chat_template == base.template
    )


def _essence(config: Any) -> dict[str, Any]:
    """A configuration without what differs between copies of one model."""
    return {name: value for name, value in config.to_dict().items() if name not in OF_A_COPY}


def _backbone_by_name(adapter: Source, home: Path) -> Description:
    ref = adapter.backbone_ref
    remedy = "if it was trained on the job's base, say so: --arm-on-base NAME, or `base = ALIAS` in models.toml"
    if ref is None:
        raise UnsupportedModelError(
            f"{adapter.ref}: adapter_config.json does not name the model it was trained on (base_model_name_or_path); "
            + remedy
        )
    try:
        backbone = describe(ref, home, revision=adapter.backbone_revision)
    except (ModelNotFoundError, ModelNotAllowedError) as error:
        raise type(error)(
            f"{adapter.ref}: the model that this adapter was trained on cannot be read; {error}; {remedy}"
        ) from None
    if backbone.adapter is not None:
        raise UnsupportedModelError(f"{adapter.ref}: its base_model_name_or_path is an adapter itself")
    revision = adapter.backbone_revision
    if backbone.source.from_hub and backbone.source.origin and revision not in (None, backbone.source.folder.name):
        raise ModelNotAllowedError(
            f"{adapter.ref}: was trained on revision {revision} of {ref}, and the registry pins another; {remedy}"
        )
    return backbone


def _description(
    source: Source, backbone: Source, config: Any, tokenizer: Any, templates: ChatTemplates | None
) -> Description:
    text_config = config.get_text_config()
    context = _context_tokens(text_config)
    if context is None:
        raise UnsupportedModelError(f"{source.ref}: its configuration does not say how many positions it has")
    return Description(
        source=source,
        backbone=backbone,
        config=config,
        tokenizer=tokenizer,
        templates=templates,
        vocabulary=Vocabulary.of(tokenizer, rows=text_config.vocab_size),
        context_tokens=context,
        eos_ids=_eos_ids(backbone, config, tokenizer) | _closing_ids(tokenizer, templates),
    )


def _context_tokens(text_config: Any) -> int | None:
    """The positions that a model has, as vLLM counts them.

    YaRN stretches the positions before scaling by its factor, and models are published with `max_position_embeddings`
    from before (Qwen2.5) or after (DeepSeek V3). For linear scaling transformers' documentation asks for the one from
    before. Others (Llama 3) are published with the one from after.
    """
    context = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(context, int):
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1.0
    before = rope.get("original_max_position_embeddings") or context
    if kind == "yarn":
        return max(context, int(before * factor))
    return int(context * factor) if kind == "linear" and before == context else context


def _closing_ids(tokenizer: Any, templates: ChatTemplates | None) -> set[int]:
    """The token that the template closes a response with, which ends one that is generated, too."""
    if templates is None or tokenizer.eos_token_id is None:
        return set()
    return {closing_token(tokenizer, templates.text)}


def _eos_ids(backbone: Source, config: Any, tokenizer: Any) -> frozenset[int]:
    from transformers import GenerationConfig

    declared = [tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
    if (backbone.folder / "generation_config.json").is_file():
        try:
            declared.append(GenerationConfig.from_pretrained(backbone.folder).eos_token_id)
        except Exception as error:
            raise UnsupportedModelError(
                f"{backbone.ref}: its generation_config.json cannot be read ({first_line(error)})"
            ) from None
    ids = [one for some in declared for one in (some if isinstance(some, list | tuple) else [some])]
    return frozenset(one for one in ids if isinstance(one, int))


def _read(source: Source, what: str) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    reader: Any = AutoConfig if what == "config" else AutoTokenizer
    try:
        return reader.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # files that somebody else wrote: their readers raise all sorts
        raise UnsupportedModelError(f"{source.ref}: its {what} cannot be read ({first_line(error)})") from None


def _require_supported(config: Any, ref: str) -> None:
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{ref}: is an encoder-decoder model; genarm runs decoder-only language models")
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if bad := kinds & BATCH_DEPENDENT_ROPE:
        raise UnsupportedModelError(
            f"{ref}: its {bad.pop()} rotary embedding changes with the longest sequence in the batch, "
            "so that rows would disturb each other"
        )
    _require_rows_alone(config, ref)


def _require_rows_alone(config: Any, ref: str) -> None:
    """Refuse a quantisation that looks at all rows of a batch."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    fields = settings if isinstance(settings, dict) else settings.to_dict()
    if fields.get("load_in_8bit") and fields.get("llm_int8_threshold", 6.0) > 0:
        raise UnsupportedModelError(
            f"{ref}: bitsandbytes chooses by all rows of a batch which columns run in 16 bits, so that rows would "
            "disturb each other; set llm_int8_threshold to 0.0 in the quantization_config of its config.json"
        )


def load_weights(
    description: Description, dtype: torch.dtype, device: torch.device, device_map: DeviceMap | None = None
) -> torch.nn.Module:
    """The backbone's weights as a transformers causal language model that runs over our KV cache.

    Args:
        description: of the model.
        dtype: its weights are converted to it.
        device: where all of it goes, where there is no `device_map`.
        device_map: which layers go to which device: transformers' name of a way to find out, or by module.

    Raises:
        UnsupportedModelError: transformers cannot load it, the files do not hold every weight in its shape, the
            model's attention cannot be replaced, or it does not fit on the devices of a `device_map`.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    ref = description.backbone.ref
    is_quantised = getattr(description.config, "quantization_config", None) is not None
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            description.backbone.folder,
            config=description.config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, in words of ours
            output_loading_info=True,
            # The libraries of quantised models prepare weights for where they run.
            device_map=device_map or ({"": device} if is_quantised else None),
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:  # a quantised one needs its library
        raise UnsupportedModelError(f"{ref}: its weights cannot be loaded ({first_line(error)})") from None
    _require_all_weights(found, ref)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{ref}: {type(model).__name__} does not let its attention be replaced")
    model.requires_grad_(False)
    module: torch.nn.Module = model.eval()
    if device_map is not None:
        _require_no_offload(module, ref)
    return module if device_map is not None or is_quantised else module.to(device)


def _require_no_offload(model: Any, ref: str) -> None:
    """Refuse a model that accelerate would copy to the GPU layer by layer, at every step, from elsewhere."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    elsewhere = places & {"disk", "meta"} or (places & {"cpu"} if len(places) > 1 else set())
    if elsewhere:
        raise UnsupportedModelError(
            f"{ref}: does not fit on the devices of this worker: a part of it would lie on {elsewhere.pop()}; "
            "give it more GPUs, or another dtype"
        )


def _require_all_weights(found: dict[str, Any], ref: str) -> None:
    """Refuse a model of which transformers would have made up a part at random."""
    missing = sorted(found["missing_keys"])
    mismatched = sorted(key for key, *_ in found["mismatched_keys"])
    for names, fault in ((missing, "are missing"), (mismatched, "have another shape than its configuration says")):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise UnsupportedModelError(f"{ref}: weights {fault}: {', '.join(names[:2])}{more}")
