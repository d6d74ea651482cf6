"""Results as OpenAI's batch API gives them: an object per custom_id."""

from collections.abc import Iterable, Iterator
from typing import Any

from db.jobs import Job, find
from db.results import groups_of
from db.session import Ledger
from db.spans import Span

TEXT_URL = "/v1/completions"
CANCELLED = {"code": "cancelled", "message": "the job was cancelled before this row was generated"}


def batch_results(ledger: Ledger, job: Job, spans: Iterable[Span]) -> Iterator[dict[str, Any]]:
    """The results of the rows that have their outcome, and errors for those that a cancelled job leaves without one.

    Raises:
        JobNotFoundError: the job is gone.
        DatabaseUnreachableError: the database does not answer.
    """
    for span in spans:
        has_ended = find(ledger, job.id).status.is_final  # before its rows: an outcome that is missing then never comes
        for request, rows in groups_of(ledger, job.id, span):
            if rows or has_ended:
                yield _result(job, request, rows)


def _result(job: Job, request: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    error = rows[0]["error"] if rows else CANCELLED
    line = {"id": f"batch_req_{request.id}", "custom_id": _custom_id(request), "response": None, "error": error}
    if error is None:
        request_id = f"{job.id}-{request.row_index}"
        line["response"] = {"status_code": 200, "request_id": request_id, "body": _body(job, request, rows)}
    return line


def _custom_id(request: Any) -> str:
    value = request.row.get("custom_id", request.row.get("id"))
    return str(request.row_index if value is None else value)


def _body(job: Job, request: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    is_text = request.row.get("url") == TEXT_URL
    choice = _text_choice if is_text else _chat_choice
    has_logprobs = _asks_for_logprobs(request)
    prompt_tokens = rows[0]["prompt_tokens"] or 0
    completion_tokens = sum(len(row["tokens"] or ()) for row in rows)
    return {
        "id": f"{'cmpl' if is_text else 'chatcmpl'}-{job.id}-{request.row_index}",
        "object": "text_completion" if is_text else "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": job.spec.get("base"),
        "choices": [choice(row, has_logprobs) for row in rows],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _asks_for_logprobs(request: Any) -> bool:
    body = request.row.get("body")
    asked = body.get("logprobs") if isinstance(body, dict) else None
    return asked is not None and asked is not False  # 0 is a number of alternatives, beside the sampled token


def _chat_choice(row: dict[str, Any], has_logprobs: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": row["completion"], "refusal": None}
    content = [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in zip(_token_names(row), row["logprobs"] or (), strict=False)
    ]
    return {
        "index": row["sample"],
        "message": message,
        "logprobs": {"content": content, "refusal": None} if has_logprobs else None,
        "finish_reason": row["finish_reason"],
    }


def _text_choice(row: dict[str, Any], has_logprobs: bool) -> dict[str, Any]:
    logprobs = {
        "tokens": _token_names(row),
        "token_logprobs": row["logprobs"],
        "top_logprobs": None,
        "text_offset": None,
    }
    return {
        "index": row["sample"],
        "text": row["completion"],
        "logprobs": logprobs if has_logprobs else None,
        "finish_reason": row["finish_reason"],
    }


def _token_names(row: dict[str, Any]) -> list[str]:
    """The tokens by their ids, as vLLM can name them: their texts are known to the tokenizer alone."""
    return [f"token_id:{token}" for token in row["tokens"]]
