"""Pairs as token ids: the model's own template around the prompt, the response, the token that closes it; batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.rendering import closing_token
from models.training.preferences import BadPair, Preference, Problem


@dataclass(frozen=True)
class EncodedResponse:
    """A prompt and one response as token ids, the closing token included."""

    ids: tuple[int, ...]
    response_start: int
    """Index of the first token that belongs to the response; at least 1."""


@dataclass(frozen=True)
class EncodedPair:
    """Both responses to one prompt."""

    preference: Preference
    """The pair as text."""
    chosen: EncodedResponse
    rejected: EncodedResponse

    @property
    def tokens(self) -> int:
        """Length of the longer of the two."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


class PairEncoder:
    """Encodes pairs for one model.

    Args:
        tokenizer: a transformers tokenizer.
        template: its Jinja chat template; None uses prompts as they stand.
        max_prompt_tokens, max_tokens: longer pairs are bad pairs; nothing is cut.
    """

    def __init__(self, tokenizer: Any, template: str | None, *, max_prompt_tokens: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_prompt_tokens = max_prompt_tokens
        self.max_tokens = max_tokens
        self.closing_id = closing_token(tokenizer, template)

    def encode(self, pair: Preference) -> EncodedPair | BadPair:
        """Token ids of a pair, or why it cannot be used."""
        prompt = self._prompt_text(pair.prompt)
        prompt_ids = self._ids(prompt)
        if len(prompt_ids) > self.max_prompt_tokens:
            detail = f"the prompt has {len(prompt_ids)} tokens, allowed are {self.max_prompt_tokens}"
            return BadPair(pair.line, Problem.PROMPT_TOO_LONG, detail)
        chosen = self._response(prompt, prompt_ids, pair.chosen)
        rejected = self._response(prompt, prompt_ids, pair.rejected)
        encoded = EncodedPair(pair, chosen, rejected)
        if encoded.tokens > self.max_tokens:
            detail = f"prompt and response have {encoded.tokens} tokens, allowed are {self.max_tokens}"
            return BadPair(pair.line, Problem.TOO_LONG, detail)
        return encoded

    def _response(self, prompt: str, prompt_ids: Sequence[int], response: str) -> EncodedResponse:
        ids = self._ids(prompt + response)
        if ids[-1] != self.closing_id:
            ids.append(self.closing_id)
        # The first token has nothing before it that could predict it, so it cannot be rewarded.
        return EncodedResponse(tuple(ids), max(1, common_prefix(prompt_ids, ids)))

    def _prompt_text(self, prompt: str) -> str:
        if self.template is None:
            return prompt
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=False,
            )
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=self.template is None)["input_ids"])


def common_prefix(prompt_ids: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens a prompt has in common with prompt and response tokenised together.

    A token that merges across the boundary differs from the prompt's own, so it counts to the response.
    """
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
    return {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask}
