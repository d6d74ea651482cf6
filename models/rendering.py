"""From a row's prompt or messages to token ids, in each model's own template."""

import threading
from functools import cached_property
from typing import Any

from models import templates
from models.errors import RowError, UnsupportedModelError
from models.spec import Message, PromptRow
from models.templates import ChatTemplates

PLACEHOLDER = "the-reply-itself"
"""Stands for a reply; no template has it in a text of its own."""
DEVELOPER = "developer"


class Renderer:
    """Turns rows into the token ids of one model. Thread-safe.

    Args:
        tokenizer: a transformers tokenizer.
        template: Jinja chat templates, one for all rows, or None where the model has none.
        name: the model's name, for messages.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplates | str | None, name: str) -> None:
        self.tokenizer = tokenizer
        self.templates = ChatTemplates(template, template) if isinstance(template, str) else template
        self.name = name
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once

    @property
    def template(self) -> str | None:
        """The Jinja chat template of rows without tools."""
        return self.templates.text if self.templates is not None else None

    @cached_property
    def variables(self) -> frozenset[str]:
        """What its chat templates read from outside."""
        if self.templates is None:
            return frozenset()
        return templates.variables(self.templates.text) | templates.variables(self.templates.tool_use)

    @cached_property
    def _skips_replies(self) -> bool:
        """Whether the template leaves the turns of the assistant out."""
        return self.template is not None and not writes_replies(self.tokenizer, self.template)

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
            return self._templated(row, [self._turn(message) for message in row.messages]), True
        assert row.prompt is not None
        if raw or self.templates is None:
            return row.prompt, False
        head = [{"role": "system", "content": system}] if system is not None else []
        return self._templated(row, [*head, {"role": "user", "content": row.prompt}]), True

    def _turn(self, message: Message) -> dict[str, str]:
        """A message as the template takes it: a template that knows no `developer` gets it as `system`, as OpenAI's."""
        turn = message.for_template()
        is_unknown = turn["role"] == DEVELOPER and DEVELOPER not in (self.template or "")
        return turn | {"role": "system"} if is_unknown else turn

    def _ids(self, text: str, is_templated: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not is_templated)["input_ids"])

    def _templated(self, row: PromptRow, messages: list[dict[str, Any]]) -> str:
        if self.templates is None:
            raise RowError(
                "invalid_prompt",
                f"model {self.name!r} has no chat template for `messages`; use `prompt`, or give a template",
            )
        if self._skips_replies and any(message["role"] == "assistant" for message in messages):
            raise RowError("invalid_prompt", f"the chat template of {self.name!r} leaves the assistant's turns out")
        try:
            return templates.render(
                self.templates.tool_use if row.tools is not None else self.templates.text,
                messages,
                self.tokenizer,
                day=row.date,
                tools=row.tools,
                documents=row.documents,
                kwargs={**row.job_kwargs, **row.chat_template_kwargs},
            )
        except Exception as error:  # a template is a program, and may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RowError(
                "invalid_prompt", f"the chat template of {self.name!r} refuses the messages: {reason}"
            ) from None

    def text(self, ids: list[int]) -> str:
        """The text of response tokens as it goes on after a prompt, special tokens left out.

        Decoders in SentencePiece's manner leave out the space before the first word of a text, which is there in the
        middle of one; so a token goes before the response.
        """
        with self._lock:
            before, letters = self._before
            text = str(self.tokenizer.decode([*before, *ids], skip_special_tokens=True))
            if text.startswith(letters):
                return text[len(letters) :]
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        """A token that may stand before a response, and its text; none for a tokenizer that says nothing of spaces."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.decoder is None:
            return [], ""
        before = self._ids("a", is_templated=True)[-1:]
        return before, str(self.tokenizer.decode(before, skip_special_tokens=True))


def closing_token(tokenizer: Any, template: str | None) -> int:
    """The token that ends a response: the first control token that the template writes after one, else EOS.

    Many chat models end a turn with another token than the tokenizer's EOS (Gemma: <end_of_turn>). A template that
    leaves replies out, or refuses them, closes none.

    Raises:
        UnsupportedModelError: the tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token_id
    after = _after_reply(tokenizer, template) if template is not None else None
    if after:
        control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        closing = [index for index in tokenizer(after, add_special_tokens=False)["input_ids"] if index in control]
        if closing:
            return int(closing[0])
    if eos is None:
        raise UnsupportedModelError("the tokenizer has no EOS token, so that nothing could close a response")
    return int(eos)


def writes_replies(tokenizer: Any, template: str) -> bool:
    """Whether a template writes the turns of the assistant; True where it refuses them, which it says by itself."""
    try:
        return _dialogue(tokenizer, template, "yes") != _dialogue(tokenizer, template, "no")
    except Exception:  # a template is a program, and may raise anything
        return True


def _after_reply(tokenizer: Any, template: str) -> str | None:
    """What a template writes after a reply that ends the conversation."""
    try:
        text = _dialogue(tokenizer, template, PLACEHOLDER)
    except Exception:
        return None
    _, found, after = text.rpartition(PLACEHOLDER)
    return after if found else None


def _dialogue(tokenizer: Any, template: str, reply: str) -> str:
    turns = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": reply}]
    return templates.render(template, turns, tokenizer, add_generation_prompt=False)
