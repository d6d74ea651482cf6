"""Conversations in the two forms that preference data has them: messages, and transcripts of Human and Assistant."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


class Malformed(ValueError):  # noqa: N818  # it ends as a bad pair, never as an error
    """A field has none of the forms that a pair may have."""


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns before a response."""

    turns: tuple[Turn, ...]
    transcript: str | None = field(default=None, compare=False)
    """The same as text that ends where the response begins, for models without a chat template; None: it was none."""

    def __str__(self) -> str:
        return "\n".join(turn.content for turn in self.turns)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a chat template takes them."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]


def turns_of(name: str, messages: Sequence[Any]) -> tuple[Turn, ...]:
    """Messages as turns.

    Raises:
        Malformed: a message is no object whose `role` and `content` are text.
    """
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise Malformed(f"`{name}` has a message without `role` and `content` as text")
        turns.append(Turn(role, content))
    return tuple(turns)


def reply_of(name: str, messages: Sequence[Any]) -> tuple[Conversation | None, str]:
    """The conversation before the last message, None where there is none, and the last message's text.

    Raises:
        Malformed: there are no messages, or the last one is not the assistant's.
    """
    turns = turns_of(name, messages)
    if not turns or turns[-1].role != "assistant":
        raise Malformed(f"`{name}` must end with a message of the assistant")
    return Conversation(turns[:-1]) if len(turns) > 1 else None, turns[-1].content


def split_transcript(text: str) -> tuple[Conversation, str] | None:
    """A transcript's turns before the last "\\n\\nAssistant:", and what follows; None where the text is no transcript.

    It begins with a turn of the human and ends with one of the assistant.
    """
    marks = list(TURN.finditer(text))
    if len(marks) < 2 or marks[0].start() != 0 or marks[0][1] != "Human" or marks[-1][1] != "Assistant":
        return None
    ends = [mark.start() for mark in marks[1:]]
    turns = tuple(Turn(ROLES[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=False))
    return Conversation(turns, text[: marks[-1].end()]), text[marks[-1].end() :].strip()
