"""Guided decoding as plainly as can be: one prompt, no cache, every model run over everything at every token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from models.sampling import uniform
from models.spec import SamplingParams


@dataclass
class PlainArm:
    model: Any
    prompt_ids: list[int]
    weight: float
    size: int
    """Tokens in its vocabulary."""


@dataclass
class PlainOutput:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    base_logprobs: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)


def next_logprobs(model: Any, ids: list[int], size: int) -> torch.Tensor:
    """log π(· | ids) over the first `size` ids, float32 [size]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits[:size].float().log_softmax(0)


def plain_score(model: Any, prompt_ids: list[int], response: list[int], size: int) -> list[float]:
    """log π of each token of a response over the first `size` ids, by one forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + response]), use_cache=False).logits[0]
    logprobs = logits[len(prompt_ids) - 1 : -1, :size].float().log_softmax(1)
    return [row[token].item() for row, token in zip(logprobs, response, strict=True)]


def combined_logprobs(base: torch.Tensor, arms: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """The formula of GenARM, term by term, over the ids that all vocabularies share."""
    size = min(len(base), *(len(arm) for arm, _ in arms)) if arms else len(base)
    total = base[:size].clone()
    for arm, weight in arms:
        total = total + weight * arm[:size]
    return total - total.logsumexp(0)


def plain_generate(
    base: Any,
    prompt_ids: list[int],
    base_size: int,
    arms: Sequence[PlainArm],
    sampling: SamplingParams,
    *,
    row: int = 0,
    sample: int = 0,
    eos_id: int = 2,
) -> PlainOutput:
    out = PlainOutput(rewards=[[] for _ in arms])
    while len(out.tokens) < sampling.max_new_tokens:
        base_logprobs = next_logprobs(base, prompt_ids + out.tokens, base_size)
        arm_logprobs = [next_logprobs(arm.model, arm.prompt_ids + out.tokens, arm.size) for arm in arms]
        logprobs = combined_logprobs(
            base_logprobs, [(lp, arm.weight) for lp, arm in zip(arm_logprobs, arms, strict=True)]
        )
        token = _draw(logprobs, sampling, row, sample, len(out.tokens))
        out.tokens.append(token)
        out.logprobs.append(logprobs[token].item())
        out.base_logprobs.append(base_logprobs[token].item())
        for series, arm in zip(out.rewards, arm_logprobs, strict=True):
            series.append(arm[token].item())
        if token == eos_id and not sampling.ignore_eos:
            break
    return out


def _draw(logprobs: torch.Tensor, sampling: SamplingParams, row: int, sample: int, position: int) -> int:
    if sampling.temperature == 0:
        return int(logprobs.argmax())
    probabilities = (logprobs.double() / sampling.temperature).softmax(0)
    probabilities = keep(probabilities, sampling)
    cumulative = probabilities.cumsum(0) / probabilities.sum()
    return int((cumulative <= uniform(sampling.seed, row, sample, position)).sum())


def keep(probabilities: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Top-k, top-p and min-p one after the other, each on what the one before left, float64 [vocab]."""
    kept = probabilities.clone()
    ranked = sorted(range(len(kept)), key=lambda index: (-kept[index].item(), index))
    if sampling.top_k:
        kept[ranked[sampling.top_k :]] = 0
        kept /= kept.sum()
    if sampling.top_p < 1:
        mass = 0.0
        for place, index in enumerate(ranked):
            if place and mass >= sampling.top_p:
                kept[index] = 0
            mass += kept[index].item()
        kept /= kept.sum()
    kept[kept < sampling.min_p * kept.max()] = 0
    return kept / kept.sum()
