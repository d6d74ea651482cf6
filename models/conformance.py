"""Whether the engine runs a model as transformers does: tried on a miniature of its configuration, before any weights.

The miniature is run twice: by transformers' own eager attention, one sequence at a time, and as the engine runs it,
several sequences side by side, with attention told of no more than a window. Where the two differ (another mask,
positions of its own, biases, a state beside the attention), the engine would generate something else, and the model is
refused.
"""

import json
import logging
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from models.attention import NAME as ATTENTION
from models.errors import UnsupportedModelError, first_line
from models.miniature import VOCABULARY, miniature

OBSERVED = "genarm_observed"
LENGTHS = (23, 9)
"""Tokens of the sequences; the first is longer than a miniature's windows."""
MOST_PARAMETERS = 20_000_000
MOST_NATS = 1e-3
"""float32 sums in another order differ by some 1e-5."""
log = logging.getLogger(__name__)


def require_conformance(config: Any, ref: str) -> None:
    """Check that the engine runs models of a configuration as transformers does.

    Raises:
        UnsupportedModelError: it does not, or cannot.
    """
    if problem := _problem(cast(Hashable, type(config)), config.to_json_string(use_diff=False)):
        raise UnsupportedModelError(f"{ref}: {problem}")


@lru_cache(64)
def _problem(kind: Any, fields: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES

    if kind not in CLASSES:
        return f"transformers has no causal language model for a {getattr(kind, '__name__', kind)}"
    model = CLASSES[kind]
    name = model.__name__
    if getattr(model, "_is_stateful", False):
        return f"{name} keeps a state beside its attention (state-space or recurrent layers), which genarm does not run"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not let its attention be replaced, so that genarm cannot run it"
    return _tried(kind, json.loads(fields), name)


def _tried(kind: Any, fields: dict[str, Any], name: str) -> str | None:
    """What goes wrong with miniatures of a configuration; None too where none can be made, since that says nothing."""
    for windows in (False, True):
        try:
            small = miniature(kind, fields, windows=windows)
            model = _model(small)
            expected = None if model is None else [_alone(model, ids) for ids in _sequences()]
        except Exception as error:  # small numbers need not go together
            log.debug("no miniature of a %s can be made: %s", name, first_line(error))
            continue
        if model is None or expected is None:
            continue
        problem = _masks(model, name) if not windows else _side_by_side(model, expected, name)
        if problem is not None:
            return problem
    return None


def _model(config: Any) -> Any:
    """A random model with weights large enough to matter; None where it is not small."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if sum(weight.numel() for weight in skeleton.parameters()) > MOST_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=1.0 if "emb" in name else 0.25)
    return model.requires_grad_(False)


def _sequences() -> list[Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY - 4, (length,), generator=numbers) for length in LENGTHS]


def _alone(model: Any, ids: Tensor) -> Tensor:
    """log π of each next token, float32 [tokens, vocabulary], by transformers' eager attention."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _side_by_side(model: Any, expected: list[Tensor], name: str) -> str | None:
    """What differs when sequences lie side by side as in the engine."""
    sequences = _sequences()
    owners = torch.cat([torch.full((len(ids),), index) for index, ids in enumerate(sequences)])
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    model.set_attn_implementation(ATTENTION)
    step = _Step(owners, positions)
    try:
        with torch.inference_mode():
            logits = model(
                input_ids=torch.cat(sequences)[None],
                position_ids=positions[None],
                logits_to_keep=torch.arange(len(owners)),
                use_cache=False,
                attention=step,
            ).logits[0]
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:  # models of others, run as they were not meant to be
        return f"{name} cannot be run with the engine's attention ({first_line(error)})"
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(step.layers) != list(range(layers)):
        return f"{name} has layers without plain attention, which genarm does not run"
    apart = max((logits.float().log_softmax(-1) - torch.cat(expected)).abs().max().item(), 0.0)
    if not apart < MOST_NATS:
        return (
            f"{name} computes something else in the engine than by transformers' eager attention (by {apart:.2g} nats "
            "in a miniature): positions, masks, biases or states that the engine is not told of"
        )
    return None


@dataclass
class _Step:
    """The attention of a step over sequences that lie side by side, in as few lines as can be."""

    owners: Tensor
    """Which sequence a token belongs to, int64 [tokens]."""
    positions: Tensor
    layers: list[int] = field(default_factory=list)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See AttentionStep.attend."""
        self.layers.append(layer)
        seen = _seen(self.positions, window) & (self.owners[:, None] == self.owners)
        group = query.shape[1] // key.shape[1]
        queries, keys, values = (states.transpose(0, 1) for states in (query, key, value))
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        out = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scaling)
        return out.transpose(0, 1).contiguous()


def _seen(positions: Tensor, window: int | None) -> Tensor:
    """What each token sees of the others, bool [tokens, tokens], by what the engine's attention is told."""
    last, first = positions[:, None], positions[None, :]
    causal = first <= last
    return causal & (first > last - window) if window is not None else causal


@dataclass
class _Masks:
    """The masks of a pass, at positions that lie far apart."""

    positions: Tensor
    wrong: set[str] = field(default_factory=set)


_observing: ContextVar[_Masks] = ContextVar("_observing")


def _observed_mask(q_length: int, kv_length: int, mask_function: Any, **_: Any) -> Tensor:
    """The mask that a model asks for, at the positions of the observation in place of 0, 1, 2, …"""
    places = _observing.get().positions
    if q_length != len(places) or kv_length != len(places):
        raise UnsupportedModelError("makes masks of other lengths than its input's")
    zero = torch.zeros(1, dtype=torch.int64)
    seen: Tensor = mask_function(zero[:, None, None, None], zero[None, :, None, None], places[:, None], places[None, :])
    return seen.expand(1, 1, len(places), len(places))


def _observe(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compare the mask of a layer with what the engine would be told; the attention itself is left out (zeros)."""
    found = _observing.get()
    expected = _seen(found.positions, sliding_window)
    if attention_mask is None:
        found.wrong.add("no mask at all")
    else:
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1.0
        if seen.shape[-2:] != expected.shape or not bool((seen == expected).all()):
            found.wrong.add("another mask")
    tokens = query.shape[2]
    return query.new_zeros(query.shape[0], tokens, query.shape[1], value.shape[-1]), None


AttentionInterface.register(OBSERVED, _observe)
AttentionMaskInterface.register(OBSERVED, _observed_mask)


def _masks(model: Any, name: str) -> str | None:
    """What is wrong with the masks of a model, which must be causal, or those of the window that it hands over."""
    places = torch.tensor(_places(model.config))
    found = _Masks(places)
    token = _observing.set(found)
    model.set_attn_implementation(OBSERVED)
    try:
        with torch.inference_mode():
            model(input_ids=torch.full((1, len(places)), 5), use_cache=False)
    except Exception as error:  # what cannot be observed is tried by numbers
        log.debug("the masks of %s cannot be observed: %s", name, first_line(error))
        return None
    finally:
        _observing.reset(token)
    if found.wrong:
        return (
            f"{name} has layers that see other tokens than all before, or those of a sliding window "
            f"({found.wrong.pop()}); genarm runs causal and sliding-window attention"
        )
    return None


def _places(config: Any) -> list[int]:
    """Positions about every number of a configuration that a window or chunk might be, in order, from 0."""
    text = config.get_text_config()
    numbers = {value for value in vars(text).values() if isinstance(value, int) and not isinstance(value, bool)}
    numbers |= {2**power for power in range(1, 14)}
    around = {place for one in numbers if 1 < one < 1 << 20 for place in (one - 1, one, one + 1, 2 * one)}
    return sorted({0, 1, 2, 3} | around)[:200]
