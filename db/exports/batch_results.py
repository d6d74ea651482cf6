"""Results as OpenAI's batch API gives them: an object per custom_id."""

from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from db.datasets.batch_requests import RESPONSES
from db.datasets.batch_requests import TEXT as TEXT_URL
from db.errors import DatasetError
from db.jobs import Job, find
from db.results import groups_of
from db.session import Ledger, reading
from db.spans import Span
from db.tables import requests

CANCELLED = {"code": "cancelled", "message": "the job was cancelled before this row was generated"}


def require_unique_ids(ledger: Ledger, job: Job) -> None:
    """Make sure that the results of a job can be told apart.

    Raises:
        DatasetError: two of its rows have one id.
        DatabaseUnreachableError: the database does not answer.
    """
    of_job = sa.select(requests.c.custom_id).where(requests.c.job_id == job.id, requests.c.custom_id.is_not(None))
    with reading(ledger) as connection:
        twice = connection.execute(of_job.group_by(requests.c.custom_id).having(sa.func.count() > 1).limit(1)).scalar()
    if twice is not None:
        raise DatasetError(
            f"two rows of the job have the id {twice[:200]!r}, and OpenAI's format has a result per custom_id: "
            "export it as .jsonl"
        )


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
    if request.row.get("url") == RESPONSES:
        return _response(job, request, rows[0])
    is_text = request.row.get("url") == TEXT_URL
    choice = _text_choice if is_text else _chat_choice
    has_logprobs = _asks_for_logprobs(request)
    prompt_tokens, completion_tokens = _tokens(rows)
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


def _tokens(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Of the prompt, and of all completions."""
    return rows[0]["prompt_tokens"] or 0, sum(len(row["tokens"] or ()) for row in rows)


def _response(job: Job, request: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request for /v1/responses, which has one completion."""
    name = f"{job.id}-{request.row_index}"
    is_whole = row["finish_reason"] != "length"
    status = "completed" if is_whole else "incomplete"
    text = {"type": "output_text", "text": row["completion"], "annotations": [], "logprobs": []}
    message = {"id": f"msg_{name}", "type": "message", "role": "assistant", "status": status, "content": [text]}
    prompt_tokens, completion_tokens = _tokens([row])
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": job.created_at.timestamp(),
        "model": job.spec.get("base"),
        "status": status,
        "error": None,
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
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
