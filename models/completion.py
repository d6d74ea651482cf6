"""What generation gives for one sample of a row."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One generated sample."""

    sample: int
    text: str
    """Without special tokens, and without the stop string that ended it."""
    finish_reason: FinishReason
    """`stop`: an end-of-sequence token or a stop string; `length`: max_new_tokens."""
    tokens: list[int]
    """All drawn tokens, with the final EOS, and those of a stop string."""
    logprobs: list[float]
    """log π of each token, of the combined distribution at temperature 1, before top-k, top-p and min-p."""
    base_logprobs: list[float]
    """log π_base of each token; Σ(logprobs − base_logprobs) estimates the KL spent."""
    token_rewards: dict[str, list[float]]
    """By ARM: log π_r of each token, at temperature 1, unweighted."""
    prompt_tokens: int
    """Tokens of the prompt in the base's template."""
