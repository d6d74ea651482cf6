"""A model's chat template around pairs of conversations, and what a template may not leave out of them."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from models.errors import UnsupportedModelError, first_line
from models.training.conversations import Message, content_of
from models.training.preferences import Chats

MARK = "genarm"
"""Stands in for a text, to see whether a template writes it."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names of one field, which templates leave out of earlier turns on purpose."""
SPOKEN = (("tool_calls",), ("function_call",), ("refusal",), ("audio",), THOUGHTS)
"""Fields of a message that are a part of what is said; with others (`name`, metadata) a template may do as it likes."""


class RefusedError(ValueError):
    """A template does not take a conversation, or leaves some of it out."""


class PairTemplate:
    """Renders the prompts and the responses of pairs.

    Args:
        tokenizer: a transformers tokenizer.
        template: a Jinja chat template.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        self.template = template

    def ids(self, chats: Chats) -> Sequence[list[int]]:
        """Token ids of the prompt, up to where a response begins, and of the prompt with each response.

        Raises:
            RefusedError: the template refuses the conversation, or leaves some of it out.
        """
        self._require_variables(chats.variables)
        texts = (self._whole if self.shows_replies else self._generated)(chats)
        return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    def _whole(self, chats: Chats) -> list[str]:
        """The conversations as the template writes them."""
        prompt = self._text(chats, chats.prompt, is_prompt=True)
        texts = []
        for reply in (chats.chosen, chats.rejected):
            messages = [*chats.prompt, *reply]
            text = self._text(chats, messages)
            self._require_written(chats, messages, len(chats.prompt), text)
            texts.append(text)
        return [prompt, *texts]

    def _generated(self, chats: Chats) -> list[str]:
        """Replies where generation puts them: right after the prompt, closed by EOS."""
        prompt = self._text(chats, chats.prompt, is_prompt=True)
        self._require_written(chats, chats.prompt, len(chats.prompt), prompt)
        eos = end_of_text(self.tokenizer)
        texts = []
        for reply in (chats.chosen, chats.rejected):
            if len(reply) > 1 or any(reply[0].get(name) for names in SPOKEN for name in names):
                raise RefusedError("the chat template shows no finished replies, so each must be one message of text")
            text = content_of(reply[0])
            texts.append(prompt + (text if text.endswith(eos) else text + eos))
        return [prompt, *texts]

    @cached_property
    def shows_replies(self) -> bool:
        """Whether the template can show a finished reply.

        One that has no `add_generation_prompt`, and writes no special token after a reply, cannot: it begins another
        turn of the assistant after every conversation.
        """
        prompt = [{"role": "user", "content": "prompt"}]
        chats = Chats((), (), ())
        try:
            with_header, without = (self._text(chats, prompt, is_prompt=header) for header in (True, False))
            text = self._text(chats, [*prompt, {"role": "assistant", "content": MARK}])
        except RefusedError:
            return True  # it wants more than this; what it makes of the pairs will show
        _, reply, after = text.rpartition(MARK)
        return with_header != without or (
            bool(reply) and any(token in after for token in special_tokens(self.tokenizer))
        )

    def _text(self, chats: Chats, messages: Iterable[Message], *, is_prompt: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=self.template,
                    tools=chats.tools,
                    add_generation_prompt=is_prompt,
                    tokenize=False,
                    **chats.variables,
                )
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise RefusedError(first_line(error)) from None

    def _require_variables(self, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if name in inspect.signature(self.tokenizer.apply_chat_template).parameters:
                raise RefusedError(f"`chat_template_kwargs` cannot set {name!r}")
            if not re.search(rf"\b{re.escape(name)}\b", self.template):
                raise RefusedError(f"the chat template has no variable {name!r} (`chat_template_kwargs`)")

    def _require_written(self, chats: Chats, messages: Sequence[Message], prompt: int, text: str) -> None:
        """Refuse a rendering that lacks a part of what the pair says.

        Args:
            chats: the pair.
            messages: what was rendered.
            prompt: how many of them are the prompt.
            text: the rendering.

        Raises:
            RefusedError: it names the part.
        """
        for index, message in enumerate(messages):
            where = f"message {index + 1} ({message['role']})"
            others = [*messages]

            def is_same_with(changed: Message, index: int = index, others: list[Message] = others) -> bool:
                others[index] = changed
                try:
                    return self._text(chats, others) == text
                except RefusedError:  # the template reads what was changed
                    return False

            _require_content(message, where, text, is_same_with)
            for names in SPOKEN:
                said = [name for name in names if message.get(name)]
                is_due = bool(said) and (names is not THOUGHTS or index >= prompt)
                if is_due and is_same_with({name: item for name, item in message.items() if name not in names}):
                    raise RefusedError(f"the chat template leaves out `{said[0]}` of {where}")
        if chats.tools and self._text(replace(chats, tools=None), messages) == text:
            raise RefusedError("the chat template leaves out `tools`")


def _require_content(message: Message, where: str, text: str, is_same_with: Callable[[Message], bool]) -> None:
    """Refuse a rendering that lacks a message's content, or writes it as Python would."""
    content = message.get("content")
    if isinstance(content, list) and str(content) in text:
        raise RefusedError(f"the chat template takes no list of parts as the content of {where}; give text")
    said = content_of(message).strip()
    if said and said not in text and is_same_with({**message, "content": MARK}):
        raise RefusedError(f"the chat template leaves out {where}")


def special_tokens(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def end_of_text(tokenizer: Any) -> str:
    """The EOS token's text.

    Raises:
        UnsupportedModelError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise UnsupportedModelError("the tokenizer has no EOS token, so that nothing could close a response")
    return str(tokenizer.eos_token)
