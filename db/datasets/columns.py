"""Which columns of a dataset mean what."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from db.datasets.batch_requests import from_batch_request, is_batch_request
from db.datasets.template import Template
from db.datasets.text import PlacedRow
from db.errors import DatasetError
from db.outcomes import storable
from db.submission import NewRow

LOOK_AHEAD_ROWS = 100
STRUCTURED = ("messages", "weights", "sampling")
"""Columns that hold objects or lists; in CSV they are written as JSON."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the dataset; from then on they are called prompt, messages, id and response."""

    prompt: str = "prompt"
    messages: str = "messages"
    id: str = "id"
    response: str = "response"
    template: Template | None = None
    """Makes the prompt, instead of a column."""
    needs_response: bool = False
    """The rows are to be scored."""

    def row(self, source: dict[str, Any], samples: int = 1) -> dict[str, Any]:
        """A row of the dataset with our names.

        A column that had one of our names, and is not the one chosen for it, becomes `input_NAME`.

        Raises:
            DatasetError: the row is an OpenAI batch request for another number of samples.
        """
        if is_batch_request(source):
            return from_batch_request(source, samples)
        chosen = {self.prompt: "prompt", self.messages: "messages", self.id: "id", self.response: "response"}
        chosen = {theirs: ours for theirs, ours in chosen.items() if theirs in source}
        taken = set(chosen.values()) - set(chosen)
        row = {chosen.get(name, f"input_{name}" if name in taken else name): value for name, value in source.items()}
        if self.template is not None:
            row["prompt"] = self.template.render(source)
        for name in STRUCTURED:
            if name in row:
                row[name] = _structured(row[name])
        return row

    @property
    def wanted(self) -> str:
        """The columns that make a prompt, for a message."""
        if self.template is None:
            return f"column {self.prompt!r} or {self.messages!r}"
        return f"row with all of the template's columns {', '.join(map(repr, self.template.columns))}"


def new_rows(rows: Iterable[PlacedRow], columns: Columns, source: str, samples: int = 1) -> Iterator[NewRow]:
    """Rows to store.

    A row without a prompt passes: it becomes a failed row of the job.

    Raises:
        DatasetError: there are no rows, or none of the first hundred has a column to prompt with.
    """
    placed = iter(rows)
    beginning = list(islice(placed, LOOK_AHEAD_ROWS))
    if not beginning:
        raise DatasetError(f"{source}: has no rows")
    renamed = [_row(columns, placed_row, source, samples) for placed_row in beginning]
    if not any(row.get("prompt") is not None or row.get("messages") is not None for row in renamed):
        names = ", ".join(dict.fromkeys(name for _, row in beginning for name in row)) or "none"
        raise DatasetError(
            f"{source}: has no {columns.wanted} (its columns: {names}); "
            "name one with --prompt-column or --messages-column, or make prompts with --template"
        )
    if columns.needs_response and not any(row.get("response") is not None for row in renamed):
        raise DatasetError(f"{source}: has no column {columns.response!r}; name one with --response-column")
    rest = (_row(columns, placed_row, source, samples) for placed_row in placed)
    return (NewRow(_custom_id(row), row) for row in chain(renamed, rest))


def _row(columns: Columns, placed_row: PlacedRow, source: str, samples: int) -> dict[str, Any]:
    place, row = placed_row
    try:
        return columns.row(row, samples)
    except DatasetError as error:
        raise DatasetError(f"{source}, {place}: {error}") from None


def _structured(value: Any) -> Any:
    """The value of a structured column: text is read as JSON; fields that are null are left out, as if absent.

    Text that is no JSON stays, and fails its row later. Columns of tables have every field in every row.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            return value
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_structured(item) if isinstance(item, dict) else item for item in value]
    return value


def _custom_id(row: dict[str, Any]) -> str | None:
    value = row.get("id", row.get("custom_id"))
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return storable(text)
