"""Chat messages whose content is a list of text parts, as SDKs write them."""

from typing import Any

from db.datasets.batch_requests import is_empty

TEXT_PARTS = ("text", "input_text", "output_text")


def with_whole_texts(messages: Any) -> Any:
    """Messages, each with its text parts put together.

    One with a part that is no text, or that says more than its text, stays as it is, and fails its row later.
    """
    return [_with_whole_text(message) for message in messages] if isinstance(messages, list) else messages


def _with_whole_text(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not content or not all(map(_is_text, content)):
        return message
    return message | {"content": "".join(part["text"] for part in content)}


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict) or part.get("type", "text") not in TEXT_PARTS:
        return False
    says_more = any(not is_empty(value) for name, value in part.items() if name not in ("type", "text"))
    return isinstance(part.get("text"), str) and not says_more
