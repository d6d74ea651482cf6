"""Which columns of a dataset mean what."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from db.errors import DatasetError
from db.submission import NewRow

LOOK_AHEAD_ROWS = 100


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the dataset; from then on they are called prompt, messages, id and response."""

    prompt: str = "prompt"
    messages: str = "messages"
    id: str = "id"
    response: str = "response"

    def rename(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with our names."""
        ours = {self.prompt: "prompt", self.messages: "messages", self.id: "id", self.response: "response"}
        return {ours.get(name, name): value for name, value in row.items()}


def new_rows(rows: Iterable[dict[str, Any]], columns: Columns, source: str) -> Iterator[NewRow]:
    """Rows to store.

    A row without a prompt passes: it becomes a failed row of the job.

    Raises:
        DatasetError: there are no rows, or none of the first hundred has a column to prompt with.
    """
    renamed = (columns.rename(row) for row in rows)
    beginning = list(islice(renamed, LOOK_AHEAD_ROWS))
    if not beginning:
        raise DatasetError(f"{source}: has no rows")
    if not any(row.get("prompt") is not None or row.get("messages") is not None for row in beginning):
        names = ", ".join(dict.fromkeys(name for row in beginning for name in row)) or "none"
        raise DatasetError(
            f"{source}: has no column {columns.prompt!r} or {columns.messages!r} (its columns: {names}); "
            "name one with --prompt-column or --messages-column"
        )
    return (NewRow(_custom_id(row), row) for row in chain(beginning, renamed))


def _custom_id(row: dict[str, Any]) -> str | None:
    value = row.get("id", row.get("custom_id"))
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\x00", "\ufffd")
