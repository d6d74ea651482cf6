"""Responses that exist already: their rows, their way through the engine, and the token rewards that come out."""

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

from models.errors import RowError
from models.sequence import Stream
from models.spec import GenerationSpec, PromptRow


@dataclass(frozen=True)
class ResponseRow:
    """A row to score."""

    prompt: PromptRow
    response: str
    tokens: tuple[int, ...] | None
    """Ids that came with the row, as `genarm run` writes them. They count where they spell the response; else it is
    tokenised anew."""
    is_closed: bool
    """Whether the response ended by itself: one that is tokenised anew gets the token that closes it."""

    @classmethod
    def parse(cls, row: Mapping[str, Any], index: int, spec: GenerationSpec) -> "ResponseRow":
        """Validate a row against its job's spec.

        Raises:
            RowError: `invalid_response`, or as PromptRow.parse.
        """
        response, tokens = row.get("response"), row.get("tokens")
        if not isinstance(response, str):
            what = "the row has no `response`" if response is None else "`response` must be text"
            raise RowError("invalid_response", what)
        if not _is_encodable(response):
            raise RowError("invalid_response", "`response` holds half of a surrogate pair, which is no text")
        prompt = PromptRow.parse({**row, "sampling": None, "weights": None}, index, spec)
        given = tuple(tokens) if isinstance(tokens, list) and _are_ids(tokens) else None
        return cls(prompt, response, given, is_closed=row.get("finish_reason") != "length")

    def is_spelt(self, text: str) -> bool:
        """Whether the text of its tokens is the response. NUL, which databases do not store, may have been replaced."""
        return bool(self.tokens) and text.replace("\0", "\ufffd") == self.response.replace("\0", "\ufffd")


def _are_ids(tokens: list[Any]) -> bool:
    return bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class ScoredResponse:
    """What scoring gives for one response; the lists have an entry per token, the closing end-of-sequence included."""

    tokens: list[int]
    base_logprobs: list[float]
    """log π_base of each token."""
    token_rewards: dict[str, list[float]]
    """By ARM: log π_r of each token."""
    prompt_tokens: int


@dataclass(eq=False, kw_only=True)
class ScoredStream(Stream):
    """One model's view of a response to score.

    Its tokens are the prompt and the response but for the last token, after which nothing is wanted.
    """

    model: Any
    """The LoadedModel, which knows the real vocabulary."""
    response: Items[int]
    logprobs: "array[float]" = field(init=False)
    """log π of each token of the response, where it has been run; again after a preemption, with the same outcome."""

    def __post_init__(self) -> None:
        self.logprobs = array("d", [nan]) * len(self.response)

    @property
    def first_wanted(self) -> int:
        """Index of the first token whose logits are wanted: the prompt's last."""
        return self.prompt_tokens - 1

    def places(self, count: int) -> slice:
        """Which tokens of the response the last `count` tokens that were run predict."""
        end = self.cached - self.first_wanted
        return slice(end - count, end)


@dataclass(eq=False)
class ScoredSequence:
    """A response on its way through the engine; its streams need not advance together."""

    request: Any
    """The ScoreRequest that it belongs to."""
    streams: list[ScoredStream]
    """Models that are the same and see the same prompt share one."""
    stream_of: list[int]
    """The stream of each model: of the base, then of each ARM."""

    @property
    def is_decoding(self) -> bool:
        """Never: it runs as prompts do."""
        return False

    @property
    def is_finite(self) -> bool:
        """Whether the models gave a log-probability for every token."""
        return all(isfinite(logprob) for stream in self.streams for logprob in stream.logprobs)

    def scored(self, arms: Items[str]) -> ScoredResponse:
        """The outcome, once all streams have been run.

        Args:
            arms: names of the ARMs.
        """
        base, *others = (self.streams[index] for index in self.stream_of)
        return ScoredResponse(
            tokens=list(base.response),
            base_logprobs=base.logprobs.tolist(),
            token_rewards={name: stream.logprobs.tolist() for name, stream in zip(arms, others, strict=True)},
            prompt_tokens=base.prompt_tokens,
        )
