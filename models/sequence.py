"""A sample in flight: its state, its tokens in every model, and its rewards so far."""

import hashlib
import time
from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from models.spec import SamplingParams

DIGEST_BYTES = 16


@dataclass(eq=False)
class Stream:
    """One model's view of a sequence: its own rendering of the prompt, then the shared response tokens."""

    backbone: Any
    """The Backbone that runs it; compared by identity alone."""
    adapter: str | None
    tokens: list[int]
    """The prompt in this model's template, then the response so far."""
    prompt_tokens: int
    cached: int = 0
    """How many leading tokens have their keys and values in the cache."""
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    """The block table: where in the cache its tokens lie, block by block; int64, which kernels read as it is."""

    _digests: list[bytes] = field(default_factory=list)

    def digest(self, block: int, block_size: int) -> bytes:
        """What the stream's full block number `block` holds: a digest of the adapter and of all tokens up to its end.

        Args:
            block_size: tokens per block.
        """
        while len(self._digests) <= block:
            first = len(self._digests) * block_size
            before = self._digests[-1] if self._digests else (self.adapter or "").encode()
            tokens = array("q", self.tokens[first : first + block_size]).tobytes()
            self._digests.append(hashlib.blake2b(before + tokens, digest_size=DIGEST_BYTES).digest())
        return self._digests[block]

    @property
    def pending(self) -> int:
        """Tokens that have not been run; the last one's logits give the next token."""
        return len(self.tokens) - self.cached

    @property
    def first_wanted(self) -> int:
        """Index of the first token whose logits are wanted; so are those of all tokens behind it."""
        return len(self.tokens) - 1

    def next_chunk(self, count: int) -> "Chunk":
        """Its next `count` tokens, at least one."""
        return Chunk(self, count, min(count, max(0, self.cached + count - self.first_wanted)))


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of a stream, to run in one step."""

    stream: Stream
    count: int
    wants: int
    """After how many of its last tokens the logits are wanted."""


@dataclass(eq=False)
class Sequence:
    """One sample of one request: a stream for the base and one for each ARM, and what has been drawn."""

    request: Any
    """The EngineRequest that it belongs to."""
    sample: int
    row: int
    sampling: SamplingParams
    weights: Items[float]
    """One per ARM."""
    streams: list[Stream]
    """The base's, then one per ARM."""
    response: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    base_logprobs: list[float] = field(default_factory=list)
    token_rewards: list[list[float]] = field(default_factory=list)
    """One list per ARM."""
    arrived_at: float = field(default_factory=time.monotonic)
    drawn_at: float = 0.0
    """When its last token was drawn, by `time.monotonic`."""

    @property
    def is_decoding(self) -> bool:
        """Whether its prompts have been run, so that each step gives a token."""
        return all(stream.pending == 1 for stream in self.streams)

    def append(self, token: int, logprob: float, base_logprob: float, rewards: Items[float]) -> None:
        """Add a drawn token to the response and to every stream."""
        self.response.append(token)
        self.logprobs.append(logprob)
        self.base_logprobs.append(base_logprob)
        for series, reward in zip(self.token_rewards, rewards, strict=True):
            series.append(reward)
        for stream in self.streams:
            stream.tokens.append(token)
