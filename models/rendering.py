"""From a row's prompt or messages to token ids, in each model's own template."""

import threading
from typing import Any

from models.errors import RowError, UnsupportedModelError
from models.spec import Message, PromptRow

PLACEHOLDER = "response"
DEVELOPER = "developer"


class Renderer:
    """Turns rows into the token ids of one model. Thread-safe.

    Args:
        tokenizer: a transformers tokenizer.
        template: a Jinja chat template, or None where the model has none.
        name: the model's name, for messages.
    """

    def __init__(self, tokenizer: Any, template: str | None, name: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once

    def prompt_ids(self, row: PromptRow, *, system: str | None, raw: bool) -> list[int]:
        """The ids of a row's prompt, up to where the response begins.

        `messages` go through the chat template; `prompt` is wrapped as one user message where there is a template and
        `raw` is False, and used as it stands otherwise, with the tokenizer's own special tokens (BOS).

        Raises:
            RowError: `invalid_prompt`: messages for a model without a template, a template that refuses them, or
                nothing left after rendering.
        """
        with self._lock:
            text, is_templated = self._prompt_text(row, system, raw)
            ids = self._ids(text, is_templated)
        if not ids:
            raise RowError("invalid_prompt", f"the prompt has no tokens for model {self.name!r}")
        return ids

    def response_ids(
        self, row: PromptRow, response: str, *, system: str | None, raw: bool, is_closed: bool
    ) -> list[int]:
        """The ids of a response as it goes on after a row's prompt.

        A response whose first letters would merge with the end of the prompt into one token is tokenised alone, since
        the prompt's ids are given.

        Args:
            is_closed: end it with the token that closes a response.

        Raises:
            RowError: as `prompt_ids`.
            UnsupportedModelError: it is to be closed, and the tokenizer has no EOS token.
        """
        with self._lock:
            text, is_templated = self._prompt_text(row, system, raw)
            prompt, whole = self._ids(text, is_templated), self._ids(text + response, is_templated)
            goes_on = whole[: len(prompt)] == prompt
            ids = whole[len(prompt) :] if goes_on else self._ids(response, is_templated=True)
            if is_closed:
                closing = closing_token(self.tokenizer, self.template if is_templated else None)
                ids += [closing] if ids[-1:] != [closing] else []
        return ids

    def _prompt_text(self, row: PromptRow, system: str | None, raw: bool) -> tuple[str, bool]:
        """A row's prompt, and whether it came out of the chat template, which writes the special tokens itself."""
        if row.messages is not None:
            return self._templated([self._turn(message) for message in row.messages]), True
        assert row.prompt is not None
        if raw or self.template is None:
            return row.prompt, False
        head = [{"role": "system", "content": system}] if system is not None else []
        return self._templated([*head, {"role": "user", "content": row.prompt}]), True

    def _turn(self, message: Message) -> dict[str, str]:
        """A message as the template takes it: a template that knows no `developer` gets it as `system`, as OpenAI's."""
        turn = message.for_template()
        is_unknown = turn["role"] == DEVELOPER and DEVELOPER not in (self.template or "")
        return turn | {"role": "system"} if is_unknown else turn

    def _ids(self, text: str, is_templated: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not is_templated)["input_ids"])

    def _templated(self, messages: list[dict[str, Any]]) -> str:
        if self.template is None:
            raise RowError(
                "invalid_prompt",
                f"model {self.name!r} has no chat template for `messages`; use `prompt`, or give a template",
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.template, add_generation_prompt=True, tokenize=False
                )
            )
        except Exception as error:  # a template is a program, and may raise anything
            reason = " ".join(str(error).split())
            raise RowError(
                "invalid_prompt", f"the chat template of {self.name!r} refuses the messages: {reason}"
            ) from None

    def text(self, ids: list[int]) -> str:
        """The text of response tokens, special tokens left out."""
        with self._lock:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def closing_token(tokenizer: Any, template: str | None) -> int:
    """The token that ends a response: the first special token that the template writes after one, else EOS.

    Many chat models end a turn with another token than the tokenizer's EOS (Gemma: <end_of_turn>).

    Raises:
        UnsupportedModelError: the tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UnsupportedModelError("the tokenizer has no EOS token, so that nothing could close a response")
    if template is None:
        return int(eos)
    turns = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": PLACEHOLDER}]
    text = str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
    after = text[text.rindex(PLACEHOLDER) + len(PLACEHOLDER) :]
    special = set(tokenizer.all_special_ids)
    return next(
        (index for index in tokenizer(after, add_special_tokens=False)["input_ids"] if index in special), int(eos)
    )
