"""The filtered distribution, and draws from it that depend on (seed, row, sample, position) alone."""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from models.spec import SamplingParams

BLOCK = 256


def uniform(seed: int, row: int, sample: int, position: int) -> float:
    """A number in [0, 1) from a keyed counter: the same on every machine, in every batch.

    53 bits of BLAKE2b (RFC 7693) over the four integers.

    Args:
        seed: of the job or row.
        row: index of the row in its dataset.
        sample: index of the sample.
        position: index of the token in the response.
    """
    digest = hashlib.blake2b(struct.pack("<4q", seed, row, sample, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def draw(scores: Tensor, sampling: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """Draw one token per row; any token of the vocabulary where a row's scores are not finite.

    Args:
        scores: unnormalised log-probabilities, float32 [n, vocab]; not changed.
        sampling: one per row; temperature 0 takes the most probable token (the lowest id among equals).
        uniforms: one per row, in [0, 1).

    Returns:
        int64 [n].
    """
    tokens = torch.empty(len(sampling), dtype=torch.int64, device=scores.device)
    greedy = [row for row, params in enumerate(sampling) if params.temperature == 0]
    random = [row for row, params in enumerate(sampling) if params.temperature > 0]
    if greedy:
        tokens[greedy] = _rows(scores, greedy).argmax(dim=1)
    if random:
        params = [sampling[row] for row in random]
        chosen = torch.tensor([uniforms[row] for row in random], dtype=torch.float64, device=scores.device)
        tokens[random] = inverse_cdf(filtered(_rows(scores, random), params), chosen)
    return tokens


def _rows(scores: Tensor, rows: list[int]) -> Tensor:
    return scores if len(rows) == scores.shape[0] else scores[rows]


def filtered(scores: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """The distribution to draw from: temperature, then top-k, then top-p, then min-p.

    Args:
        scores: unnormalised log-probabilities, float32 [n, vocab].
        sampling: one per row, all with a temperature above 0.

    Returns:
        Unnormalised probabilities, float32 [n, vocab]; the largest of each row is 1.
    """
    temperatures = [params.temperature for params in sampling]
    scores = scores - scores.amax(dim=1, keepdim=True)
    if any(temperature != 1 for temperature in temperatures):
        # After the subtraction, so that a temperature near 0 gives 0 and −inf; the smallest ones are 0 in float32.
        divisors = scores.new_tensor(temperatures).clamp_(min=torch.finfo(scores.dtype).tiny)
        scores /= divisors[:, None]
    weights = scores.exp_()
    truncated = [row for row, params in enumerate(sampling) if params.top_k or params.top_p < 1]
    if truncated:
        weights[truncated] = _truncated(weights[truncated], [sampling[row] for row in truncated])
    min_p = [params.min_p for params in sampling]
    if any(min_p):
        weights = weights.masked_fill(weights < weights.new_tensor(min_p)[:, None], 0.0)
    return weights


def _truncated(weights: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """Keep each row's top-k tokens, and of them the fewest most probable ones whose probability reaches top-p."""
    ordered, ids = weights.sort(dim=1, descending=True, stable=True)
    top_k = torch.tensor([params.top_k or weights.shape[1] for params in sampling], device=weights.device)
    ranks = torch.arange(weights.shape[1], device=weights.device)
    ordered = ordered.masked_fill(ranks >= top_k[:, None], 0.0)
    sums = ordered.double().cumsum(dim=1)
    top_p = torch.tensor([params.top_p for params in sampling], dtype=torch.float64, device=weights.device)
    reached_before = (sums - ordered) >= top_p[:, None] * sums[:, -1:]
    ordered = ordered.masked_fill(reached_before & (ranks > 0), 0.0)
    return torch.zeros_like(weights).scatter_(1, ids, ordered)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first token at which the cumulative distribution exceeds the uniform, found in two levels.

    Sums of blocks of the vocabulary name the block, a cumulative sum inside it the token, so that the vocabulary is
    passed over once.

    Args:
        weights: unnormalised probabilities, float32 [n, vocab], at least one above 0 in each row.
        uniforms: float64 [n], in [0, 1).

    Returns:
        int64 [n]; the weight of each is above 0. In a row with a NaN it is any token.
    """
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK))
    blocks = padded.view(padded.shape[0], -1, BLOCK)
    sums = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    targets = uniforms * sums[:, -1]
    block = _first_above(sums, targets)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = blocks[torch.arange(len(block), device=block.device), block].double().cumsum(dim=1)
    return (block * BLOCK + _first_above(inside, targets - before)).clamp_(max=weights.shape[1] - 1)


def _first_above(sums: Tensor, targets: Tensor) -> Tensor:
    """In each row of increasing sums, the first index above the target; past the end (rounding) the last step.

    NaN is past the end too, even of the last step; on CUDA an index past the end would kill the process.
    """
    index = torch.searchsorted(sums, targets[:, None], right=True)[:, 0]
    last_step = torch.searchsorted(sums, sums[:, -1:].contiguous())[:, 0]
    return torch.minimum(index, last_step).clamp_(max=sums.shape[1] - 1)
