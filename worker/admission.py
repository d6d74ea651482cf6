"""What may be asked of this service: the operator's registry and limits, checked at submit and again by the worker.

The worker checks again because the ledger is shared: whoever can write to it can forge a job.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from db.errors import DatasetError
from db.submission import NewRow
from models.errors import ModelNotAllowedError, RowError, SpecError
from models.registry import FILE_NAME, Registry, registry_of
from models.spec import GenerationSpec, PromptRow
from worker.settings import Settings


def admit(spec: GenerationSpec, settings: Settings, *, scores: bool = False) -> None:
    """Check a job's spec against the registry and the limits; opens no model.

    Args:
        spec: of the job.
        settings: with the limits, and the home that the registry is in.
        scores: the job only scores responses.

    Raises:
        ModelNotAllowedError: it names a model that the registry does not allow, or there is none and there must be.
        SpecError: it asks for more than the limits allow.
    """
    registry = required_registry(settings)
    if registry is not None:
        registry.require(spec, scores=scores)
    _require_at_most("samples", spec.samples, settings.max_samples)
    _require_at_most("sampling.max_new_tokens", spec.sampling.max_new_tokens, settings.max_new_tokens)
    rendering = {
        "system": spec.system,
        "chat_template": spec.chat_template,
        "chat_template_kwargs": spec.chat_template_kwargs,
    }
    for name, value in rendering.items():
        _require_at_most(f"{name} (in bytes)", _text_bytes(value), settings.max_prompt_bytes)


def required_registry(settings: Settings) -> Registry | None:
    """The registry of the home folder; None where there is none and none is needed.

    Raises:
        ModelNotAllowedError: it cannot be read, or there is none and there must be.
    """
    registry = registry_of(settings.home)
    if registry is None and not (settings.is_embedded or settings.allow_any_model):
        raise ModelNotAllowedError(
            "the database or the queue is shared, so jobs may name only models of a registry, and there is no "
            f"{settings.home / FILE_NAME}: write one, or set GENARM_ALLOW_ANY_MODEL=true where everybody who can reach "
            "the database is trusted"
        )
    return registry


def _require_at_most(what: str, asked: int, most: int) -> None:
    if asked > most:
        raise SpecError(f"{what}: {asked} is more than the {most} that this service allows")


def _text_bytes(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else ""
    return len(text.encode())


def admit_row(row: PromptRow, settings: Settings, response: str = "") -> None:
    """Check a row against the limits, before it is rendered and tokenized.

    Args:
        response: where the row has one to score.

    Raises:
        RowError: `prompt_too_large`, or `invalid_sampling` for more new tokens than allowed.
    """
    size = sum(map(_text_bytes, (*_texts(row), response)))
    if size > settings.max_prompt_bytes:
        what = "prompt and response have" if response else "the prompt has"
        raise RowError("prompt_too_large", f"{what} {size} bytes, and this service allows {settings.max_prompt_bytes}")
    if (asked := row.sampling.max_new_tokens) > settings.max_new_tokens:
        raise RowError(
            "invalid_sampling", f"max_new_tokens: {asked} is more than the {settings.max_new_tokens} allowed here"
        )


def _texts(row: PromptRow) -> Iterator[Any]:
    if row.prompt is not None:
        yield row.prompt
    for message in row.messages or ():
        yield from message.for_template().values()
    yield from (row.tools, row.documents, row.chat_template_kwargs)


def admit_rows(rows: Iterable[NewRow], settings: Settings) -> Iterator[NewRow]:
    """The rows of a dataset, as long as there are not too many and none is too large to store.

    Raises:
        DatasetError: there are, or one is; the message says which.
    """
    for index, row in enumerate(rows):
        if index >= settings.max_job_rows:
            raise DatasetError(
                f"{row.place}: there are more than the {settings.max_job_rows} rows that this service allows in a job, "
                "a row of a sweep counted for each of its points (GENARM_MAX_JOB_ROWS); split the dataset"
            )
        if (size := _json_bytes(row)) > settings.max_row_bytes:
            raise DatasetError(
                f"{row.place}: has {size} bytes as JSON, and this service stores {settings.max_row_bytes} at most "
                "(GENARM_MAX_ROW_BYTES)"
            )
        yield row


def _json_bytes(row: NewRow) -> int:
    try:
        return len(json.dumps(row.row, allow_nan=False))
    except RecursionError:
        raise DatasetError(f"{row.place}: is nested too deeply") from None
    except ValueError:
        raise DatasetError(f"{row.place}: has a number that is too large") from None
