"""Whether ARMs fit a base, and what guidance by them costs, from configurations and tokenizers alone: no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.attention import NAME as ATTENTION
from models.attention import LayerShape, ShapeProbe, bytes_per_token
from models.conformance import require_conformance
from models.errors import IncompatibleArmError, UnsupportedModelError, first_line
from models.loading import Description, describe
from models.references import Kind
from models.rendering import closing_token
from models.spec import GenerationSpec
from models.vocabulary import differing_tokens, require_fit, reserved, shared_ids


@dataclass(frozen=True)
class Cost:
    """What a model costs while it runs."""

    parameters: int
    """That a token passes through: of the backbone, and of the adapter."""
    weight_bytes: int
    """Memory that it adds to what the models before it take."""
    kv_bytes_per_token: int
    """Keys and values of one token of one sequence."""


@dataclass(frozen=True)
class ArmFit:
    """How an ARM goes with a base."""

    name: str
    ref: str
    problem: str | None
    """Why it does not fit, with the remedy; None: it does."""
    remarks: tuple[str, ...]
    """What does not keep it from running, but may surprise."""
    shared_tokens: int
    """Ids that mean the same token on both sides; only these are generated."""
    differing_tokens: int
    """Ids that mean another token on each side."""
    rides_on: str | None
    """The model whose weights it shares, the base or an ARM before it; None: weights of its own."""
    template: str
    """Where its chat template comes from: `own`, `backbone`, `given` or `none`."""
    same_template: bool
    """Whether it renders prompts as the base does."""
    context_tokens: int
    cost: Cost


@dataclass(frozen=True)
class Fit:
    """A base with ARMs."""

    base: Description
    cost: Cost
    arms: tuple[ArmFit, ...]

    @property
    def fits(self) -> bool:
        """Whether all ARMs do."""
        return all(arm.problem is None for arm in self.arms)

    @property
    def passes_per_token(self) -> int:
        """Forward passes per generated token: one for each set of weights; adapters ride in their backbone's."""
        return 1 + sum(arm.rides_on is None for arm in self.arms)

    @property
    def weight_bytes(self) -> int:
        """Of all models together."""
        return self.cost.weight_bytes + sum(arm.cost.weight_bytes for arm in self.arms)

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all models together: each keeps its own, adapters too."""
        return self.cost.kv_bytes_per_token + sum(arm.cost.kv_bytes_per_token for arm in self.arms)

    @property
    def compute_ratio(self) -> float:
        """Multiplications per token, as a multiple of the base's own."""
        return 1.0 + sum(arm.cost.parameters for arm in self.arms) / self.cost.parameters

    @property
    def context_tokens(self) -> int:
        """The longest prompt and response that all models can hold."""
        return min(self.base.context_tokens, *(arm.context_tokens for arm in self.arms))


def fit(spec: GenerationSpec, home: Path, dtype: torch.dtype) -> Fit:
    """Describe a base and its ARMs, and whether they fit.

    Args:
        spec: a base and ARMs.
        home: where converted models are kept.
        dtype: that the weights are held in.

    Raises:
        ModelNotFoundError, UnsupportedModelError: a model cannot be read or run at all.
    """
    base = describe(spec.base, home, template=spec.chat_template)
    if base.adapter is not None:
        raise UnsupportedModelError(f"{spec.base}: is an adapter; give the model that it was trained on as the base")
    require_conformance(base.config, spec.base)
    cost = _cost(base, dtype)
    loaded = {base.backbone.folder.resolve(): spec.base}
    arms = []
    for arm in spec.arms:
        description = describe(arm.ref, home, base=base, template=arm.template, on_base=arm.on_base)
        require_conformance(description.config, description.backbone.ref)
        folder = description.backbone.folder.resolve()
        arms.append(_arm_fit(arm, description, base, loaded.get(folder), dtype))
        loaded.setdefault(folder, arm.name)
    return Fit(base, cost, tuple(arms))


def _arm_fit(arm: Any, description: Description, base: Description, rides_on: str | None, dtype: torch.dtype) -> ArmFit:
    return ArmFit(
        name=arm.name,
        ref=arm.ref,
        problem=_problem(arm.name, description, base),
        remarks=_remarks(description, base),
        shared_tokens=_shared(base, description),
        differing_tokens=len(differing_tokens(base.vocabulary, description.vocabulary)),
        rides_on=rides_on,
        template=_template_of(arm.template, description, base),
        same_template=description.template == base.template,
        context_tokens=description.context_tokens,
        cost=_cost(description, dtype, is_loaded=rides_on is not None),
    )


def _problem(name: str, arm: Description, base: Description) -> str | None:
    try:
        require_fit(base.vocabulary, arm.vocabulary, base.source.name, name)
    except IncompatibleArmError as error:
        return str(error)
    return None


def _remarks(arm: Description, base: Description) -> tuple[str, ...]:
    remarks = []
    ends = [closing_token(one.tokenizer, one.template) for one in (base, arm)]
    if ends[0] != ends[1]:
        names = [one.vocabulary.tokens.get(end, str(end)) for one, end in zip((base, arm), ends, strict=True)]
        remarks.append(
            f"ends a response with {names[1]}, the base with {names[0]}: it was not trained on where the base stops; "
            "give it the base's template (--arm-template) or train it on this base"
        )
    elif arm.template != base.template:
        remarks.append("sees prompts in another chat template than the base, its own")
    if renamed := reserved(base.vocabulary, differing_tokens(base.vocabulary, arm.vocabulary)):
        remarks.append(f"has other tokens for {len(renamed)} ids that the base reserves, which are not generated")
    if arm.context_tokens < base.context_tokens:
        remarks.append(f"has a context of {arm.context_tokens} tokens, the base one of {base.context_tokens}")
    return tuple(remarks)


def _shared(base: Description, arm: Description) -> int:
    size, excluded = shared_ids([base.vocabulary, arm.vocabulary])
    return size - len(excluded)


def _template_of(given: str | None, arm: Description, base: Description) -> str:
    if given is not None:
        return "given"
    if arm.template is None:
        return "none"
    if arm.source.kind is Kind.ADAPTER and not (arm.source.folder / "tokenizer_config.json").is_file():
        return "backbone"
    return "own"


def kv_bytes_per_token(description: Description, dtype: torch.dtype) -> int:
    """Bytes that a token's keys and values take in a model's cache, by a skeleton of it without weights.

    Raises:
        UnsupportedModelError: the engine could not run it.
    """
    return bytes_per_token(_layer_shapes(_skeleton(description, dtype)), dtype)


def _cost(description: Description, dtype: torch.dtype, *, is_loaded: bool = False) -> Cost:
    """What a model costs; raises as kv_bytes_per_token."""
    model = _skeleton(description, dtype)
    adapter = _adapter_parameters(description)
    own = sum(weight.numel() for weight in model.parameters())
    held = adapter + (0 if is_loaded else own)
    return Cost(own + adapter, held * dtype.itemsize, bytes_per_token(_layer_shapes(model), dtype))


def _skeleton(description: Description, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(
                description.config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False
            )
        except (ValueError, KeyError, ImportError) as error:
            raise UnsupportedModelError(f"{description.source.ref}: cannot be run ({first_line(error)})") from None


def _layer_shapes(model: Any) -> dict[int, LayerShape]:
    """The keys and values of a model on the meta device: those of a pass, or else what its configuration says."""
    probe = ShapeProbe()
    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    positions = torch.arange(2, device="meta")[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False, attention=probe)
    except (RuntimeError, NotImplementedError):  # operations of mixtures of experts need values
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return dict.fromkeys(range(config.num_hidden_layers), LayerShape(heads, dim, dim))
    return probe.shapes


def _adapter_parameters(description: Description) -> int:
    from models.adapter_files import check_adapter

    return 0 if description.adapter is None else check_adapter(description)
