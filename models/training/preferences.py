"""Preference pairs: a prompt, the response that was preferred, and the one that was not; checked row by row.

The forms are TRL's (https://huggingface.co/docs/trl/dataset_formats), and some that mean one of them without doubt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from models.errors import ModelsError
from models.training.conversations import (
    Malformed,
    Message,
    content_of,
    messages_of,
    text_of,
    turns_of_transcript,
)

SIDES = ("chosen", "rejected")
NOT_TRAINED_ON = {
    "image": "only text can be trained on",
    "images": "only text can be trained on",
    "margin": "margins of single pairs are not trained on; leave the column out, or see --margin",
    "system": "put it into `prompt`, as a message with the role system",
}
"""Columns that ask for something that training would leave out, and what to do."""


class PreferencesError(ModelsError):
    """Preference pairs cannot be read, or none of them can be used."""


class Problem(StrEnum):
    """Why a pair is left out of training."""

    MALFORMED = "malformed"
    """A field is missing, or neither text nor messages."""
    EMPTY = "empty"
    """The prompt or a response has no text."""
    IDENTICAL = "identical"
    """Both responses are the same, so that there is nothing to prefer."""
    OTHER_PROMPT = "another prompt"
    """What the responses answer is not the same, or not said once."""
    REFUSED = "refused by the template"
    """The model's chat template does not take the conversation or leaves some of it out, or there is no template."""
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    """Prompt and response together have more tokens than allowed."""


@dataclass(frozen=True)
class Texts:
    """A pair as plain text, for models without a chat template: each response goes on where the prompt ends."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Chats:
    """A pair as messages, for a chat template."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """What follows the prompt: a message of the assistant, perhaps more turns, a message of the assistant."""
    rejected: tuple[Message, ...]
    tools: Sequence[Any] | None = None
    """Descriptions of tools, for the template."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template: the row's `chat_template_kwargs`."""


@dataclass(frozen=True)
class Preference:
    """One pair of responses to a prompt, in the forms that it has."""

    place: str
    """Where it stands in its source: "line 7"."""
    texts: Texts | None
    """None: it is messages."""
    chats: Chats | None
    """None: a common beginning of two texts, of which nobody knows where a user's turn would end."""

    @property
    def prompt_key(self) -> str:
        """Equal for pairs that answer the same prompt."""
        if self.chats is None:
            assert self.texts is not None
            return self.texts.prompt
        return json.dumps([self.chats.prompt, self.chats.tools, self.chats.variables], sort_keys=True, default=repr)


@dataclass(frozen=True)
class BadPair:
    """A pair that is left out, and why."""

    place: str
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}: {self.detail}"


class _OtherPromptError(ValueError):
    """The responses do not answer one prompt."""


class _EmptyError(ValueError):
    """There is nothing to read."""


def parse_preference(place: str, row: Mapping[str, Any]) -> Preference | BadPair:
    """Check one row; fields that mean nothing here are ignored.

    Its forms: `prompt` (text or messages) or `messages`, with `chosen` and `rejected` as text or as the messages that
    follow; or without a prompt, `chosen` and `rejected` that begin alike: conversations, transcripts that alternate
    "\\n\\nHuman: …" and "\\n\\nAssistant: …", or text. `tools` and `chat_template_kwargs` go to the chat template.
    """
    try:
        return _parsed(place, row)
    except Malformed as error:
        return BadPair(place, Problem.MALFORMED, str(error))
    except _OtherPromptError as error:
        return BadPair(place, Problem.OTHER_PROMPT, str(error))
    except _EmptyError as error:
        return BadPair(place, Problem.EMPTY, str(error))


def _parsed(place: str, row: Mapping[str, Any]) -> Preference | BadPair:
    _require_known(row)
    given, sides = _value("prompt", row.get("prompt")), [_side(name, row) for name in SIDES]
    if given is None and not all(_begins_with_a_prompt(side) for side in sides):
        given = _messages_column(row)
    if given is None or _is_beside(given, sides):
        texts, turns = _common_beginning(*sides)
    else:
        texts, turns = _after(given, *sides)
    chats = None if turns is None else _checked(Chats(*turns, _tools(row), _variables(row)))
    _require_text(texts)
    if _are_identical(texts, chats):
        return BadPair(place, Problem.IDENTICAL, "`chosen` and `rejected` are the same")
    return Preference(place, texts, chats)


Value = str | tuple[Message, ...]
ThreeChats = tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]


def _require_known(row: Mapping[str, Any]) -> None:
    """Refuse what would be left out of training without a word."""
    for name, remedy in NOT_TRAINED_ON.items():
        if row.get(name):
            raise Malformed(f"`{name}`: {remedy}")
    if row.get("completion") is not None and row.get("chosen") is None:
        raise Malformed("`completion` is one response (KTO's form); a pair has `chosen` and `rejected`")


def _value(name: str, value: Any) -> Value | None:
    if value is None:
        return None
    if isinstance(value, str):
        return text_of(name, value)
    if isinstance(value, list | tuple):
        return messages_of(name, list(value))
    raise Malformed(f"`{name}` must be text or messages, not {type(value).__name__}")


def _side(name: str, row: Mapping[str, Any]) -> Value:
    value = _value(name, row.get(name))
    if value is None:
        raise Malformed(f"`{name}` is missing")
    if value == "":
        raise _EmptyError(f"`{name}` is empty")
    if isinstance(value, tuple) and (not value or value[-1]["role"] != "assistant"):
        raise Malformed(f"`{name}` must end with a message of the assistant")
    return value


def _begins_with_a_prompt(side: Value) -> bool:
    if isinstance(side, str):
        return turns_of_transcript(side) is not None
    return bool(side[0]["role"] != "assistant")


def _messages_column(row: Mapping[str, Any]) -> Value | None:
    """The column `messages`, where it holds the prompt."""
    value = row.get("messages")
    if value in (None, ""):
        return None
    if not isinstance(value, list | tuple):
        raise Malformed(f"`messages` must be a list of messages, not {type(value).__name__}")
    messages = messages_of("messages", list(value))
    if messages and messages[-1]["role"] == "assistant":
        raise Malformed("`messages` ends with a reply, so it is no prompt; leave it out, or the reply in it")
    return messages


def _is_beside(given: Value, sides: Sequence[Value]) -> bool:
    """Whether a prompt as text stands beside conversations that have it in them.

    Raises:
        _OtherPromptError: they lack it, or what follows a prompt has turns before the reply.
    """
    whole = [_begins_with_a_prompt(side) for side in sides]
    if not any(whole):
        return False
    if not all(whole) or not isinstance(given, str) or any(isinstance(side, str) for side in sides):
        raise _OtherPromptError(
            "`chosen` and `rejected` must begin with the assistant's turn where there is a `prompt`: put the turns "
            "before it into `prompt`, or leave `prompt` out where they have it in them"
        )
    chats = [side for side in sides if not isinstance(side, str)]
    if not all(any(given.strip() == content_of(turn).strip() for turn in chat[:-1]) for chat in chats):
        raise _OtherPromptError("the conversations in `chosen` and `rejected` do not have `prompt` in them")
    return True


def _after(given: Value, chosen: Value, rejected: Value) -> tuple[Texts | None, ThreeChats]:
    """A pair whose responses follow a given prompt."""
    if isinstance(given, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return Texts(given, chosen, rejected), _wrapped(given, chosen, rejected)
    prompt: tuple[Message, ...] = ({"role": "user", "content": given},) if isinstance(given, str) else given
    return None, (prompt, _reply(chosen), _reply(rejected))


def _wrapped(prompt: str, chosen: str, rejected: str) -> ThreeChats:
    """Texts as messages: the turns of a transcript, else one of the user."""
    turns = turns_of_transcript(prompt)
    if turns is not None and not turns[-1]["content"]:
        return tuple(turns[:-1]), _reply(chosen.strip()), _reply(rejected.strip())
    return ({"role": "user", "content": prompt},), _reply(chosen), _reply(rejected)


def _reply(value: Value) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": value},) if isinstance(value, str) else value


def _common_beginning(chosen: Value, rejected: Value) -> tuple[Texts | None, ThreeChats | None]:
    """A pair whose prompt is what both sides begin with.

    Raises:
        Malformed: one side is text, the other one messages.
    """
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        return None, _split(chosen, rejected)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Malformed("`prompt` is missing, and one of `chosen` and `rejected` is text, the other one messages")
    start = _common(chosen, rejected)
    if chosen[start] != rejected[start] and chosen[max(0, start - 1)] == " ":
        start -= 1  # as TRL: the blank before a word is a part of the word
    texts = Texts(chosen[: max(0, start)], chosen[max(0, start) :], rejected[max(0, start) :])
    turns = [turns_of_transcript(side) for side in (chosen, rejected)]
    if turns[0] is None or turns[1] is None:
        if not texts.prompt.strip():
            raise Malformed("`prompt` is missing, and `chosen` and `rejected` do not begin alike")
        return texts, None
    return texts, _split(tuple(turns[0]), tuple(turns[1]))


def _common(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Where two sequences part; where one ends before, its last element."""
    shorter = min(len(chosen), len(rejected))
    return next((index for index in range(shorter) if chosen[index] != rejected[index]), shorter - 1)


def _split(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> ThreeChats:
    start = _common(chosen, rejected)
    if start == 0 and chosen[0]["role"] == "assistant":
        raise Malformed("`prompt` is missing, and `chosen` and `rejected` are no conversations that have it in them")
    return chosen[:start], chosen[start:], rejected[start:]


def _checked(chats: Chats) -> Chats:
    """The same.

    Raises:
        _OtherPromptError: a response begins with a turn that is not the assistant's.
        _EmptyError: there is no prompt, or the assistant says nothing.
    """
    for name, turns in zip(SIDES, (chats.chosen, chats.rejected), strict=True):
        if turns[0]["role"] != "assistant":
            raise _OtherPromptError("`chosen` and `rejected` differ before the assistant's turn")
        if not (content_of(turns[-1]).strip() or turns[-1].get("tool_calls")):
            raise _EmptyError(f"`{name}` is empty")
    if not any(content_of(turn).strip() for turn in chats.prompt):
        raise _EmptyError("`prompt` is empty")
    return chats


def _require_text(texts: Texts | None) -> None:
    for name, text in vars(texts).items() if texts is not None else ():
        if not text.strip():
            raise _EmptyError(f"`{name}` is empty")


def _are_identical(texts: Texts | None, chats: Chats | None) -> bool:
    if texts is not None:
        return texts.chosen.strip() == texts.rejected.strip()
    assert chats is not None
    return [_stripped(turn) for turn in chats.chosen] == [_stripped(turn) for turn in chats.rejected]


def _stripped(turn: Message) -> Message:
    return {**turn, "content": content_of(turn).strip()}


def _tools(row: Mapping[str, Any]) -> Sequence[Any] | None:
    tools = _read_json("tools", row.get("tools"))
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Malformed("`tools` must be a list of descriptions of tools")
    return tools


def _variables(row: Mapping[str, Any]) -> Mapping[str, Any]:
    variables = _read_json("chat_template_kwargs", row.get("chat_template_kwargs"))
    if not isinstance(variables, dict | None):
        raise Malformed("`chat_template_kwargs` must be an object")
    return {name: value for name, value in (variables or {}).items() if value is not None}


def _read_json(name: str, value: Any) -> Any:
    """A list or an object, which TRL takes as JSON text too."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise Malformed(f"`{name}` is text, but no JSON") from None
