"""From a row's prompt or messages to token ids, in each model's own template."""

import threading
from typing import Any

from models.errors import RowError
from models.spec import PromptRow


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
            if row.messages is not None:
                ids = self._templated([{"role": m.role, "content": m.content} for m in row.messages])
            elif raw or self.template is None:
                ids = list(self.tokenizer(row.prompt)["input_ids"])
            else:
                head = [{"role": "system", "content": system}] if system is not None else []
                ids = self._templated([*head, {"role": "user", "content": row.prompt}])
        if not ids:
            raise RowError("invalid_prompt", f"the prompt has no tokens for model {self.name!r}")
        return ids

    def _templated(self, messages: list[dict[str, Any]]) -> list[int]:
        if self.template is None:
            raise RowError(
                "invalid_prompt",
                f"model {self.name!r} has no chat template for `messages`; use `prompt`, or give a template",
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template is a program, and may raise anything
            reason = " ".join(str(error).split())
            raise RowError(
                "invalid_prompt", f"the chat template of {self.name!r} refuses the messages: {reason}"
            ) from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: list[int]) -> str:
        """The text of response tokens, special tokens left out."""
        with self._lock:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
