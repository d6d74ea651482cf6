"""Conversations in the two forms that preference data has them: messages, and transcripts of Human and Assistant."""

import re
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]
"""One message as a chat template takes it: `role`, `content` (text, parts of text, null beside tool calls), others."""

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
WRITTEN_MESSAGES = re.compile(r"\s*(?:array\()?\[\s*\{(?=.{0,20000}?['\"]role['\"]\s*:)", re.DOTALL)
"""How a list of messages begins where a file holds it as text, be it JSON or Python."""


class Malformed(ValueError):  # noqa: N818  # it ends as a bad pair, never as an error
    """A field has none of the forms that a pair may have."""


def text_of(name: str, text: str) -> str:
    """Text of a row.

    Raises:
        Malformed: it cannot be encoded, or is a list of messages that was written as text.
    """
    if WRITTEN_MESSAGES.match(text):
        raise Malformed(f"`{name}` is a text that spells a list of messages; give the list itself, in CSV as JSON")
    return _encodable(name, text)


def messages_of(name: str, value: list[Any]) -> tuple[Message, ...]:
    """Messages as a chat template takes them; fields that are null are left out, as if absent, but for `content`.

    Raises:
        Malformed: a message is no object with a `role` and a `content` of text.
    """
    return tuple(_message(name, one) for one in value)


def _message(name: str, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        hint = "; rename `from` and `value`" if isinstance(message, dict) and "from" in message else ""
        raise Malformed(f"`{name}` has a message without `role` and `content` as text{hint}")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            _part(name, part)
    elif isinstance(content, str):
        _encodable(name, content)
    elif content is not None or not message.get("tool_calls"):
        raise Malformed(f"`{name}` has a message without `role` and `content` as text")
    return {field: item for field, item in message.items() if item is not None or field == "content"}


def _part(name: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise Malformed(f"`{name}` has a message with a part that is no text ({kind}); only text can be trained on")
    _encodable(name, part["text"])


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed(f"`{name}` holds half of a surrogate pair, which is no text") from None
    return text


def content_of(message: Message) -> str:
    """The text of a message; its parts on lines of their own."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def turns_of_transcript(text: str) -> list[Message] | None:
    """A transcript's turns as messages, the last one of the assistant; None where the text is no transcript.

    A transcript alternates "\\n\\nHuman: …" and "\\n\\nAssistant: …", and begins with the human. It ends with the
    assistant, whose last turn may be empty.
    """
    marks = list(TURN.finditer(text))
    if len(marks) < 2 or marks[0].start() != 0 or marks[0][1] != "Human" or marks[-1][1] != "Assistant":
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [
        {"role": ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
