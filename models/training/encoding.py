"""Pairs as token ids, token by token as TRL's DPOTrainer makes them; batches."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.errors import first_line
from models.training.pair_template import PairTemplate, RefusedError, end_of_text
from models.training.preferences import BadPair, Preference, Problem


@dataclass(frozen=True)
class EncodedResponse:
    """A prompt and one response as token ids, with what the template writes after it (the closing token)."""

    ids: "array[int]"
    """int32: a large dataset stays in memory."""
    response_start: int
    """Index of the first token that belongs to the response; at least 1."""

    @property
    def response_tokens(self) -> int:
        """Tokens that carry a reward."""
        return len(self.ids) - self.response_start


@dataclass(frozen=True)
class EncodedPair:
    """Both responses to one prompt."""

    preference: Preference
    """The pair as text."""
    chosen: EncodedResponse
    rejected: EncodedResponse
    base_rewards: tuple[float, float] = (0.0, 0.0)
    """Σ log π_base of chosen and rejected; only the fused objective asks for them."""

    @property
    def tokens(self) -> int:
        """Length of the longer of the two."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


class PairEncoder:
    """Encodes pairs for one model, as TRL's DPOTrainer does.

    Args:
        tokenizer: a transformers tokenizer.
        template: its Jinja chat template; None takes pairs of text as they stand.
        max_prompt_tokens, max_tokens: longer pairs are bad pairs; nothing is cut.
    """

    def __init__(self, tokenizer: Any, template: str | None, *, max_prompt_tokens: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.chat = None if template is None else PairTemplate(tokenizer, template)
        self.max_prompt_tokens = max_prompt_tokens
        self.max_tokens = max_tokens

    def encode(self, pair: Preference) -> EncodedPair | BadPair:
        """Token ids of a pair, or why it cannot be used."""
        try:
            prompt, chosen, rejected = self._ids(pair)
        except RefusedError as error:
            return BadPair(pair.place, Problem.REFUSED, first_line(error))
        # A token that merges across the boundary, or differs in the prompt alone, counts to the responses.
        start = min(common_prefix(prompt, ids) for ids in (chosen, rejected))
        encoded = EncodedPair(pair, _response(chosen, start), _response(rejected, start))
        return self._problem(pair.place, len(prompt), encoded) or encoded

    def _ids(self, pair: Preference) -> Sequence[list[int]]:
        """The prompt, and the prompt with each response.

        Raises:
            RefusedError: the pair has no form that the model takes.
        """
        if self.chat is not None:
            if pair.chats is None:
                raise RefusedError("`prompt` is missing, and a chat template takes no beginning of a text (--raw does)")
            return self.chat.ids(pair.chats)
        if pair.texts is None:
            raise RefusedError("there is no chat template for messages; give pairs of text, or another --base")
        eos = end_of_text(self.tokenizer)
        texts = pair.texts
        whole = (text if text.endswith(eos) else text + eos for text in (texts.chosen, texts.rejected))
        return [
            list(self.tokenizer(text)["input_ids"]) for text in (texts.prompt, *(texts.prompt + text for text in whole))
        ]

    def _problem(self, place: str, prompt_tokens: int, encoded: EncodedPair) -> BadPair | None:
        if encoded.chosen.ids == encoded.rejected.ids:
            return BadPair(place, Problem.IDENTICAL, "`chosen` and `rejected` have the same tokens")
        if prompt_tokens > self.max_prompt_tokens:
            detail = f"the prompt has {prompt_tokens} tokens, allowed are {self.max_prompt_tokens}"
            return BadPair(place, Problem.PROMPT_TOO_LONG, detail)
        if encoded.tokens > self.max_tokens:
            detail = f"prompt and response have {encoded.tokens} tokens, allowed are {self.max_tokens}"
            return BadPair(place, Problem.TOO_LONG, detail)
        return None


def _response(ids: Sequence[int], start: int) -> EncodedResponse:
    # The first token has nothing before it that could predict it, so it cannot be rewarded.
    return EncodedResponse(array("i", ids), max(1, start))


def common_prefix(prompt_ids: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens a prompt has in common with prompt and response tokenised together."""
    for index, (one, other) in enumerate(zip(prompt_ids, ids, strict=False)):
        if one != other:
            return index
    return min(len(prompt_ids), len(ids))


def collate(pairs: Sequence[EncodedPair], pad_id: int) -> dict[str, Tensor]:
    """A padded batch: the chosen responses of all pairs, then the rejected ones.

    Returns:
        input_ids: int64 [2 · pairs, longest], padded on the right with `pad_id`.
        attention_mask: int64 [2 · pairs, longest], 1 where a token is.
        response_mask: bool [2 · pairs, longest], True where a token of the response is.
        base_rewards: float32 [2 · pairs], Σ log π_base of each response; zero where the objective does not ask for it.
    """
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    longest = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    response_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        attention_mask[index, : len(row.ids)] = 1
        response_mask[index, row.response_start : len(row.ids)] = True
    base = [pair.base_rewards[0] for pair in pairs] + [pair.base_rewards[1] for pair in pairs]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_mask": response_mask,
        "base_rewards": torch.tensor(base, dtype=torch.float32),
    }
