"""Pairs as token ids: the model's own template around the prompt, the response, the token that closes it; batches."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.errors import first_line
from models.rendering import closing_token
from models.training.conversations import Conversation
from models.training.preferences import BadPair, Preference, Problem, Prompt


@dataclass(frozen=True)
class EncodedResponse:
    """A prompt and one response as token ids, the closing token included."""

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
        try:
            prompt, space = self._prompt_text(pair.prompt)
        except Exception as error:  # a template is a program, and may raise anything
            return BadPair(pair.place, Problem.REFUSED, first_line(error))
        prompt_ids = self._ids(prompt)
        if len(prompt_ids) > self.max_prompt_tokens:
            detail = f"the prompt has {len(prompt_ids)} tokens, allowed are {self.max_prompt_tokens}"
            return BadPair(pair.place, Problem.PROMPT_TOO_LONG, detail)
        chosen = self._response(prompt, prompt_ids, space + pair.chosen)
        rejected = self._response(prompt, prompt_ids, space + pair.rejected)
        encoded = EncodedPair(pair, chosen, rejected)
        if encoded.tokens > self.max_tokens:
            detail = f"prompt and response have {encoded.tokens} tokens, allowed are {self.max_tokens}"
            return BadPair(pair.place, Problem.TOO_LONG, detail)
        return encoded

    def _response(self, prompt: str, prompt_ids: Sequence[int], response: str) -> EncodedResponse:
        ids = self._ids(prompt + response)
        if ids[-1] != self.closing_id:
            ids.append(self.closing_id)
        # The first token has nothing before it that could predict it, so it cannot be rewarded.
        return EncodedResponse(array("i", ids), max(1, common_prefix(prompt_ids, ids)))

    def _prompt_text(self, prompt: Prompt) -> tuple[str, str]:
        """A prompt as the model sees it, and what stands between it and the response.

        Raises:
            Exception: the template refuses the conversation, or there is none.
        """
        if self.template is None:
            if isinstance(prompt, str):
                return prompt, ""
            if prompt.transcript is None:
                raise ValueError("the model has no chat template for messages")
            return prompt.transcript, " "
        conversation = prompt.messages if isinstance(prompt, Conversation) else [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        return str(text), ""

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
