"""The combined distribution of GenARM (arXiv 2410.08193), and the rewards of the drawn tokens.

log π(y_t | x, y_<t) = −log Z + log π_base(y_t | ·) + Σ_i w_i · log π_r,i(y_t | ·)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ArmLogits:
    """One ARM's logits for the rows of a batch that it guides."""

    rows: Tensor
    """Which rows of the batch, int64 [m]."""
    logits: Tensor
    """float32 [m, size of the ARM's vocabulary], without padding rows; holes are −inf."""
    weights: Tensor
    """w = α/β for each of the rows, float32 [m]."""


def guided_scores(base: Tensor, arms: Sequence[ArmLogits], size: int, excluded: Tensor | None) -> Tensor:
    """The combined distribution's unnormalised log-probabilities: log π up to a constant per row.

    Every log-softmax subtracts a constant from its row, and so does −log Z: they all cancel in the softmax of the sum.
    So the logits themselves are added here, and normalised only where a value is reported.

    Args:
        base: the base's logits, float32 [n, size of its vocabulary], without padding rows.
        arms: each ARM's logits for its rows; an ARM listed twice counts twice.
        size: the ids below it are shared by all models.
        excluded: ids below `size` that some model lacks, int64 [e].

    Returns:
        float32 [n, size].
    """
    scores = base[:, :size].clone()
    for arm in arms:
        scores.index_add_(0, arm.rows, arm.logits[:, :size] * arm.weights[:, None])
    if excluded is not None:
        scores[:, excluded] = -torch.inf
    return scores


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax of the rows of `logits` at one token each.

    With an ARM's logits this is its token reward, log π_r(y_t | x, y_<t): temperature 1, unweighted.

    Args:
        logits: float32 [n, vocab].
        tokens: int64 [n].

    Returns:
        float32 [n].
    """
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return chosen - logits.logsumexp(dim=1)
