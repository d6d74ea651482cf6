"""ARGS (arXiv 2402.01694): a trajectory reward model scores the base's likeliest next tokens, at every step.

    score(v) = log π_base(v | x, y_<t) + w · r(x, y_<t, v)        v among the base's k likeliest

ARGS-greedy takes the best v, ARGS-stochastic draws from the softmax of the scores. The reward model reads each partial
response as if it were a whole one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.alignment.reward_model import RewardModel
from benchmarks.alignment.token_tree import TokenTree
from models.sampling import inverse_cdf, uniform


@dataclass(frozen=True)
class ArgsSettings:
    """Strength, width and law."""

    weight: float
    k: int = 10
    is_greedy: bool = True


@dataclass(frozen=True)
class Decoded:
    """One response."""

    tokens: list[int]
    """With the final EOS."""
    log_ratio: float
    """log π(y|x) − log π_base(y|x), π being the law that tokens were taken by: greedy takes the best for certain."""


class ArgsDecoder:
    """Decodes batches of prompts, k candidates of every row in one pass of the reward model.

    Args:
        base: a transformers causal language model.
        reward: the reward model over the same tokens; both loaded with `attn_implementation=token_tree.ATTENTION`.
        vocabulary_size: ids at and above it are padding of the LM head.
        eos_ids: tokens that end a response.
    """

    def __init__(self, base: Any, reward: RewardModel, vocabulary_size: int, eos_ids: Collection[int]) -> None:
        self.base = base
        self.reward = reward
        self.vocabulary_size = vocabulary_size
        self.eos_ids = torch.tensor(sorted(eos_ids))

    @torch.inference_mode()
    def decode(
        self, prompts: list[list[int]], rows: Sequence[int], settings: ArgsSettings, new_tokens: int, seed: int
    ) -> list[Decoded]:
        """Responses to prompts, given as token ids; `rows` are the indices that random numbers are drawn from."""
        policy = TokenTree(self.base.model, prompts, new_tokens)
        judge = TokenTree(self.reward.backbone, prompts, new_tokens + settings.k)
        is_running = torch.ones(len(prompts), dtype=torch.bool)
        ratios = torch.zeros(len(prompts))
        drawn = []
        for position in range(new_tokens):
            base_logprobs, candidates = self._candidates(policy.states, settings.k)
            rewards = self.reward.score(judge.look(candidates))
            uniforms = torch.tensor([uniform(seed, row, 0, position) for row in rows], dtype=torch.float64)
            chosen, logprobs = choose(base_logprobs + settings.weight * rewards, uniforms, settings.is_greedy)
            tokens = candidates.gather(1, chosen[:, None])[:, 0]
            ratios += is_running * (logprobs - base_logprobs.gather(1, chosen[:, None])[:, 0])
            drawn.append(torch.where(is_running, tokens, -1))
            is_running &= ~torch.isin(tokens, self.eos_ids)
            if not is_running.any():
                break
            judge.keep(chosen)
            policy.append(tokens)
        columns = torch.stack(drawn, dim=1).tolist()
        responses = [[token for token in row if token >= 0] for row in columns]
        return [Decoded(tokens, ratio) for tokens, ratio in zip(responses, ratios.tolist(), strict=True)]

    def _candidates(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The base's k likeliest tokens: log-probabilities float32 and ids int64, both [rows, k]."""
        logits = self.base.lm_head(states)[:, : self.vocabulary_size].float()
        top = logits.topk(k, dim=1)
        return top.values - logits.logsumexp(1, keepdim=True), top.indices


def choose(scores: Tensor, uniforms: Tensor, is_greedy: bool) -> tuple[Tensor, Tensor]:
    """Which candidate is taken, int64 [rows], and the log-probability with which it is.

    Args:
        scores: float32 [rows, k].
        uniforms: float64 [rows], in [0, 1); greedy needs none.
    """
    if is_greedy:
        return scores.argmax(1), torch.zeros(len(scores))
    chosen = inverse_cdf(scores.softmax(1), uniforms)
    return chosen, scores.log_softmax(1).gather(1, chosen[:, None])[:, 0]
