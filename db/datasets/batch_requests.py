"""Rows of OpenAI's batch request files, as rows of ours."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from db.errors import DatasetError

CHAT, TEXT, RESPONSES = ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
PROMPTS = {CHAT: "messages", TEXT: "prompt", RESPONSES: "input"}
"""The field of a body that has the prompt."""
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of `max_new_tokens`."""
WITHOUT_EFFECT = {
    "model", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "prediction", "logprobs", "top_logprobs", "parallel_tool_calls",
    "max_tool_calls",
}  # fmt: skip
"""Fields of a body that change no completion; they stay in the row's `body`, for the batch results."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "best_of": (1,),
    "detokenize": (True,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "priority": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (True, False),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stream": (False,),
    "tool_choice": ("none", "auto"),
    "truncation": ("disabled",),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Fields that are not ours, and the values with which they ask for nothing; so do all that are empty."""
NEUTRAL_AT: dict[str, dict[str, tuple[Any, ...]]] = {
    CHAT: {"add_generation_prompt": (True,), "continue_final_message": (False,), "add_special_tokens": (False,)},
    TEXT: {"add_special_tokens": (True,)},
    RESPONSES: {},
}
"""The same, where an endpoint decides what asks for nothing."""
OFF = {"top_k": -1}
"""Values that turn a field of ours off, which is 0 with us."""
DEEPEST = 8
"""Objects inside of each other that are looked into."""
OF_THE_ROW = ("weights", "chat_template_kwargs")


def is_batch_request(row: Mapping[str, Any]) -> bool:
    """True for a row like {"custom_id": …, "method": "POST", "url": …, "body": {"messages": […]}}."""
    body = row.get("body")
    if "custom_id" not in row or not isinstance(body, dict):
        return False
    return row.get("url") is not None or bool(_endpoints_of(body))


def _endpoints_of(body: Mapping[str, Any]) -> list[str]:
    """The endpoints whose prompt the body has."""
    return [endpoint for endpoint, name in PROMPTS.items() if body.get(name) is not None]


def from_batch_request(row: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The row with `messages` or `prompt`, `url` as the endpoint, and `sampling`.

    Fields of the body that we do not know go into `sampling`, where validation names them: that row fails, rather
    than being answered as if it had not asked.

    Raises:
        DatasetError: it is for an endpoint that is none of ours, asks for two lengths, or for another number of
            completions than the job makes.
    """
    endpoint = _endpoint(row)
    body = {name: value for name, value in row["body"].items() if value is not None}
    _require_samples(body, endpoint, samples)
    ours: dict[str, Any] = {name: value for name, value in row.items() if name != "body"}
    ours |= {"url": endpoint, **_prompt(body, endpoint)}
    ours |= {name: body.pop(name) for name in OF_THE_ROW if name in body}
    if endpoint == RESPONSES and isinstance(body.get("text"), dict):
        text = body.pop("text")
        body |= {{"format": "response_format"}.get(name, name): value for name, value in text.items()}
    ignored = {name: body.pop(name) for name in sorted(WITHOUT_EFFECT & body.keys())}
    _rename_length(body)
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]] if body["stop"] else []
    neutral = NEUTRAL_AT[endpoint]
    sampling = {name: value for name, value in body.items() if value not in neutral.get(name, ())}
    return ours | {"sampling": sampling, "body": ignored}


def _endpoint(row: Mapping[str, Any]) -> str:
    if str(row.get("method") or "POST").upper() != "POST":
        raise DatasetError(f"the request has the method {_shown(row['method'])}; batch requests have POST")
    url = row.get("url")
    if url is None:
        return _endpoints_of(row["body"])[0]
    try:
        path = urlsplit(str(url)).path.rstrip("/")
    except ValueError:
        path = ""
    for endpoint in ENDPOINTS:
        if path.endswith(endpoint.removeprefix("/v1")):
            return endpoint
    raise DatasetError(
        f"the request is for {_shown(url)}, which is no endpoint of genarm (it has: {', '.join(ENDPOINTS)})"
    )


def _require_samples(body: dict[str, Any], endpoint: str, samples: int) -> None:
    """Take the number of completions out of a body; make sure that it is the job's."""
    asked = body.pop("n", 1 if endpoint == RESPONSES else samples)
    if asked != samples:
        raise DatasetError(
            f"asks for n = {_shown(asked)}, the job makes {samples} per row; give it --samples {_shown(asked)}"
        )
    if body.get("best_of") == samples:
        del body["best_of"]


def _prompt(body: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """Take the prompt out of a body, as `messages` or `prompt`; nothing where it has none."""
    name = PROMPTS[endpoint]
    if name not in body:
        return {}
    value = body.pop(name)
    if endpoint == TEXT and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if endpoint != RESPONSES:
        return {name: value}
    instructions = body.pop("instructions", None)
    head = [] if instructions is None else [{"role": "system", "content": instructions}]
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    return {"messages": [*head, *turns] if isinstance(turns, list) else turns}


def _rename_length(body: dict[str, Any]) -> None:
    for name in LENGTHS:
        if name in body:
            asked = body.pop(name)
            if body.setdefault("max_new_tokens", asked) != asked:
                raise DatasetError(f"asks for two lengths, one of them {name} = {_shown(asked)}; keep one")


def asked_for(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `sampling` that ask for something."""
    ours = {name: 0 if value == OFF.get(name) else value for name, value in sampling.items()}
    return {
        name: value
        for name, value in ours.items()
        if name == "stop" or not (is_empty(value) or value in NEUTRAL.get(name, ()))
    }


def is_empty(value: Any, depth: int = 0) -> bool:
    """Whether a value says nothing: null, or text, a list or an object without anything in it."""
    if isinstance(value, dict):
        return depth < DEEPEST and all(is_empty(item, depth + 1) for item in value.values())
    return value is None or value in ("", [])


def _shown(value: Any) -> str:
    return repr(value)[:100]
