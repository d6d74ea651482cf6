"""Rows of OpenAI's batch request files, as rows of ours."""

from collections.abc import Mapping
from typing import Any

from db.errors import DatasetError

SAMPLING_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
WITHOUT_EFFECT = {
    "model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier",
    "prompt_cache_key", "logprobs", "top_logprobs", "parallel_tool_calls",
}  # fmt: skip
"""Fields of a body that change no completion; they stay in the row's `body`, for the batch results."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
"""Fields that we do not know, and the values with which they ask for nothing."""
OF_THE_ROW = ("messages", "prompt", "weights")


def is_batch_request(row: Mapping[str, Any]) -> bool:
    """True for a row like {"custom_id": …, "method": "POST", "url": …, "body": {"messages": […]}}."""
    body = row.get("body")
    return "custom_id" in row and isinstance(body, dict) and ("messages" in body or "prompt" in body)


def from_batch_request(row: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The row with `messages` or `prompt`, and `sampling`.

    Fields of the body that we do not know go into `sampling`, where validation names them: that row fails, rather
    than being answered as if it had not asked.

    Raises:
        DatasetError: it asks for another number of completions than the job makes.
    """
    body = {name: value for name, value in row["body"].items() if value is not None}
    asked = body.pop("n", samples)
    if asked != samples:
        raise DatasetError(f"asks for n = {asked}, the job makes {samples} per row; give it --samples {asked}")
    ours: dict[str, Any] = {name: value for name, value in row.items() if name != "body"}
    ours |= {name: body.pop(name) for name in OF_THE_ROW if name in body}
    if isinstance(ours.get("messages"), list):
        ours["messages"] = [_message(message) for message in ours["messages"]]
    ignored = {name: body.pop(name) for name in sorted(WITHOUT_EFFECT & body.keys())}
    sampling = {
        SAMPLING_NAMES.get(name, name): value for name, value in body.items() if value not in NEUTRAL.get(name, ())
    }
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]
    return ours | {"sampling": sampling, "body": ignored}


def _message(message: Any) -> Any:
    """The message with its content as one text, where it came as a list of text parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return message
    return message | {"content": "".join(part["text"] for part in content)}
