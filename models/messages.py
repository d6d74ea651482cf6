"""Chat messages as SDKs and datasets write them."""

from collections.abc import Mapping, Sequence
from typing import Any

WITHOUT_EFFECT = ("id", "status")
"""Of a message that an SDK got as a response."""
DEEPEST = 8
"""Objects inside of each other that are looked into."""


def plain_message(message: Any) -> Any:
    """A message without the fields that say nothing.

    Args:
        message: as the row has it.

    Returns:
        The fields that say something; or the message as it came, where it is no object.

    Raises:
        ValueError: its content is a list of parts.
    """
    if not isinstance(message, Mapping):
        return message
    fields = {name: value for name, value in message.items() if name in ("role", "content") or _says(value)}
    for name in WITHOUT_EFFECT:
        fields.pop(name, None)
    if fields.get("type") == "message":
        del fields["type"]
    if isinstance(fields.get("content"), list | tuple):
        raise ValueError(_what_is_wrong(fields["content"]))
    return fields


def _says(value: Any, depth: int = 0) -> bool:
    """Whether a value asks for something: not null, False, or text, a list or an object without anything in it."""
    if isinstance(value, Mapping):
        return depth >= DEEPEST or any(_says(item, depth + 1) for item in value.values())
    return value is not None and value is not False and value not in ("", [], ())


def _what_is_wrong(parts: Sequence[Any]) -> str:
    """Why content parts are not one text."""
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text"):
            return f"its content has a part of type {str(kind)[:40]!r}; models here take text alone"
    return "its content must be one text, or parts with a `type` and a `text` and nothing more"
