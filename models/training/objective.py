"""The objective of the autoregressive reward model, and the rewards that it compares.

    r(x, y) = Σ_t log π_r(y_t | x, y_<t)
    L = − E log σ( β_r · [ r(x, y_w) − r(x, y_l) ] )

No reference model and no length normalisation (arXiv 2410.08193, equation 7).

The fused objective compares, in place of r, what guided decoding adds up, per token, and wants a margin γ between them:

    s(x, y) = Σ_t [ log π_base(y_t | x, y_<t) + w · log π_r(y_t | x, y_<t) ] / |y|
    L = − E log σ( β_r · [ s(x, y_w) − s(x, y_l) ] − γ )
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 256
"""Tokens whose full distributions are in memory as float32 at the same time."""


def preference_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """The objective over a batch of pairs.

    Args:
        chosen_rewards: r(x, y_w), or s(x, y_w), float32 [pairs].
        rejected_rewards: r(x, y_l), or s(x, y_l), float32 [pairs].
        beta: β_r.
        margin: γ.

    Returns:
        The mean loss, float32 [].
    """
    return -logsigmoid(beta * (chosen_rewards - rejected_rewards) - margin).mean()


def fused_scores(rewards: Tensor, base_rewards: Tensor, tokens: Tensor, weight: float) -> Tensor:
    """s(x, y) of the fused objective.

    Args:
        rewards: Σ log π_r, float32 [rows].
        base_rewards: Σ log π_base over the same tokens, float32 [rows].
        tokens: |y|, the closing token included, [rows].
        weight: w.

    Returns:
        float32 [rows].
    """
    return (base_rewards + weight * rewards) / tokens


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of given tokens, in float32 whatever the logits' dtype.

    The distributions are computed a chunk of tokens at a time, in the backward pass once more, so that no float32 copy
    of all logits exists.

    Args:
        logits: [tokens, vocab].
        targets: int64 [tokens].

    Returns:
        float32 [tokens].
    """
    chunks = zip(torch.split(logits, CHUNK_TOKENS), torch.split(targets, CHUNK_TOKENS), strict=True)
    if not logits.requires_grad:
        return torch.cat([_chunk_logprobs(*chunk) for chunk in chunks])
    return torch.cat([checkpoint(_chunk_logprobs, *chunk, use_reentrant=False) for chunk in chunks])


def _chunk_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


def sequence_rewards(
    model: Any, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, vocabulary_size: int
) -> Tensor:
    """Rewards r(x, y) = Σ log π_r over the response tokens of each row; prompt and padding do not count.

    Args:
        model: a transformers causal language model, or a PEFT model around one; also in DistributedDataParallel.
        input_ids: int64 [rows, length], padded on the right.
        attention_mask: [rows, length], 1 where a token is.
        response_mask: bool [rows, length], True at response tokens; never in the first column.
        vocabulary_size: ids at and above it are padding of the LM head and have no probability.

    Returns:
        float32 [rows].
    """
    predicting = response_mask.roll(-1, dims=1)
    with rows_of_head(model, predicting):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    logprobs = token_logprobs(logits[:, :vocabulary_size], input_ids[response_mask])
    row_of_token = response_mask.nonzero()[:, 0]
    return logprobs.new_zeros(len(input_ids)).index_add(0, row_of_token, logprobs)


@contextmanager
def rows_of_head(model: Any, wanted: Tensor) -> Iterator[None]:
    """Within it, the model computes logits for the `wanted` positions only, as [positions, vocab].

    The LM head is by far the widest layer; positions of the prompt and of padding need no logits.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        wanted: bool [rows, length].
    """

    def keep_wanted(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (states[0][wanted], *states[1:])

    model = getattr(model, "module", model)  # as it is inside of DistributedDataParallel
    hook = model.get_output_embeddings().register_forward_pre_hook(keep_wanted)
    try:
        yield
    finally:
        hook.remove()
